//! What the local API asks of the loop.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use ghostwire_policy::filter::{Flow, NodeFilter, Verdict};
use tokio::sync::{broadcast, mpsc, oneshot};

use super::{Daemon, Happening, status, up};
use crate::local;
use crate::plane::PlaneError;
use crate::plane::worker::Worker;
use crate::session::Input;
use crate::ways::explain::Summary;

/// Why a request was not granted.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RequestError {
    /// It cannot be done in this state.
    #[error("{0}")]
    Precondition(String),
    /// It makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// No such peer.
    #[error("{0}")]
    NotFound(String),
    /// It was tried.
    #[error("{0}")]
    Failed(String),
    /// The coordinator says no.
    #[error("{0}")]
    Refused(String),
    /// The coordinator does not answer.
    #[error("{0}")]
    Unreachable(String),
}

/// The answer to a request.
pub type Answer<T> = oneshot::Sender<Result<T, RequestError>>;

/// How to reach a peer with ICMP echo.
#[derive(Clone, Debug)]
pub struct PingTarget {
    /// Its address.
    pub address: IpAddr,
    /// Our interface.
    pub interface: String,
    /// Whose it is.
    pub peer: u64,
    /// Why the policy does not let echo requests out, if so.
    pub denied: Option<String>,
}

/// What is asked.
#[derive(Debug)]
pub enum Request {
    /// Connect.
    Up(Box<local::UpRequest>, mpsc::Sender<Result<local::UpProgress, RequestError>>),
    /// Disconnect and remove every trace.
    Down(Answer<()>),
    /// How things are. What takes time is done outside the loop.
    Status(oneshot::Sender<status::Draft>),
    /// Where a peer is.
    Ping(String, Answer<PingTarget>),
    /// By which way packets to a peer go now.
    Way(u64, oneshot::Sender<Option<Summary>>),
    /// Try to get a direct path to a peer now.
    TryNow(u64),
    /// Why packets to a peer go the way they go.
    Why(String, Answer<local::WhyResponse>),
    /// Which paths to use.
    SetPath(Box<local::SetPathRequest>, Answer<()>),
    /// What the network around us is like.
    Netcheck(Answer<local::NetcheckResponse>),
    /// What the policy does.
    Acl(oneshot::Sender<(Worker, AclDraft)>),
    /// Events, and whether accepted packets are wanted too.
    Watch(bool, oneshot::Sender<broadcast::Receiver<Arc<local::AclEvent>>>),
    /// A watcher of accepted packets has left.
    Unwatch,
    /// Shadow mode.
    Shadow(bool, Answer<()>),
}

/// What the loop knows about the policy.
#[derive(Clone, Debug, Default)]
pub struct AclDraft {
    /// The generation in force.
    pub generation: u32,
    /// Shadow mode.
    pub shadow: bool,
    /// The rules in force, if they are known.
    pub filter: Option<Arc<NodeFilter>>,
}

impl Daemon {
    pub(super) fn on_request(&mut self, request: Request) {
        match request {
            Request::Up(request, progress) => self.on_up(&request, progress),
            Request::Down(answer) => self.on_down(answer),
            // Who asked may have left; that is no concern of the loop.
            Request::Status(answer) => drop(answer.send(self.draft_status())),
            Request::Ping(peer, answer) => drop(answer.send(self.ping_target(&peer))),
            Request::Way(id, answer) => drop(answer.send(self.way_to(Instant::now(), id))),
            Request::TryNow(id) => self.try_now(id),
            Request::Why(peer, answer) => drop(answer.send(self.on_why(&peer))),
            Request::SetPath(request, answer) => drop(answer.send(self.on_set_path(&request))),
            Request::Netcheck(answer) => self.on_netcheck(answer),
            Request::Acl(answer) => drop(answer.send((self.worker.clone(), self.draft_acl()))),
            Request::Watch(accepted, answer) => {
                if accepted {
                    self.watch_accepted(true);
                }
                drop(answer.send(self.watchers.subscribe()));
            }
            Request::Unwatch => self.watch_accepted(false),
            Request::Shadow(shadow, answer) => {
                self.settings.shadow = shadow;
                let saved = self.store.save_settings(&self.settings);
                self.input(Input::Shadow(shadow));
                drop(answer.send(saved.map_err(|error| RequestError::Failed(error.to_string()))));
            }
        }
    }

    fn on_down(&mut self, answer: Answer<()>) {
        self.settings.up = false;
        if let Err(error) = self.store.save_settings(&self.settings) {
            self.note("state", Some(error.to_string()));
        }
        for waiting in self.ups.drain(..) {
            waiting.fail(RequestError::Precondition("`gwctl down` was asked for meanwhile".to_owned()));
        }
        self.downs.push(answer);
        self.input(Input::Down);
    }

    pub(super) fn on_torn_down(&mut self, result: Result<(), PlaneError>) {
        self.note(
            "down",
            result.as_ref().err().map(|error| format!("something is left in the system: {error}")),
        );
        let answer = result.map_err(|error| RequestError::Failed(error.0));
        let done = answer.is_ok() && !self.downs.is_empty();
        for waiting in self.downs.drain(..) {
            drop(waiting.send(answer.clone()));
        }
        if done && self.config.exit_on_down && !self.settings.up {
            self.ending = true;
        }
    }

    pub(super) fn draft_acl(&self) -> AclDraft {
        let filter = self.session.map().and_then(|map| map.filter.as_ref());
        AclDraft {
            generation: self.session.enforced(),
            shadow: self.session.shadow(),
            filter: filter.map(|filter| filter.rules.clone()),
        }
    }

    fn ping_target(&self, text: &str) -> Result<PingTarget, RequestError> {
        let not_up = || RequestError::Precondition("this node is not up; run `gwctl up`".to_owned());
        let map = self.session.map().filter(|_| self.session.is_up()).ok_or_else(not_up)?;
        let interface = self.device.as_ref().map(|device| device.name.clone()).ok_or_else(not_up)?;
        let peer = status::find_peer(map, text).map_err(RequestError::NotFound)?;
        let wanted: Option<IpAddr> = text.parse().ok();
        let address = wanted.or_else(|| peer.addresses.first().copied());
        let address = address.ok_or_else(|| RequestError::NotFound(format!("{text} has no address")))?;
        let own = map.own.addresses.iter().find(|own| own.is_ipv4() == address.is_ipv4());
        let denied = match (map.filter.as_ref(), own) {
            (Some(filter), Some(own)) if !may_echo(&filter.rules, *own, address) => Some(format!(
                "the policy has no rule that lets {} reach {} with ICMP; `gwctl policy explain {} {}/icmp` on the server says more",
                map.own.message.name, peer.message.name, map.own.message.name, peer.message.name
            )),
            _ => None,
        };
        Ok(PingTarget { address, interface, peer: peer.message.id, denied })
    }

    pub(super) fn on_enrolled(&mut self, enrolled: up::Enrolled) {
        self.finish_enrolment(enrolled);
    }

    pub(super) fn happen_later(&self) -> mpsc::Sender<Happening> {
        self.happenings.clone()
    }
}

/// Whether the policy lets echo requests from here to there pass.
pub(super) fn may_echo(filter: &NodeFilter, own: IpAddr, peer: IpAddr) -> bool {
    let protocol = if peer.is_ipv4() { 1 } else { 58 };
    let flow = Flow { src: own, dst: peer, protocol, dst_port: 0 };
    matches!(filter.outbound_verdict(&flow), Verdict::Allowed { .. })
}
