//! `gwctl up`: from a join key to a running node, step by step, each told to the user.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use ghostwire_proto::join_key::{self, JoinKey};
use ipnet::IpNet;
use tokio::sync::mpsc;

use super::requests::RequestError;
use super::{Daemon, Happening};
use crate::coordinator::{Contact, ContactError};
use crate::session::{Input, State};
use crate::store::Membership;
use crate::{local, pb};

/// A node that has no map gives up waiting for its coordinator after this.
const PATIENCE: Duration = Duration::from_mins(1);
/// And one that has, waiting for its kernel, which has to verify the programs.
const SETUP_PATIENCE: Duration = Duration::from_mins(5);

/// Somebody who waits for the node to run.
#[derive(Debug)]
pub(super) struct Waiting {
    progress: mpsc::Sender<Result<local::UpProgress, RequestError>>,
    told: Vec<&'static str>,
    deadline: Instant,
}

/// The coordinator's answer to an enrolment.
#[derive(Debug)]
pub(super) struct Enrolled {
    key: JoinKey,
    result: Result<(String, pb::SelfNode), ContactError>,
}

impl Waiting {
    /// When to look again at the latest.
    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// It will not come to that.
    pub(super) fn fail(self, error: RequestError) {
        // Full or closed: nobody reads any more.
        let _ = self.progress.try_send(Err(error));
    }

    /// Tells of a step once. `true`: it is new.
    fn tell(&mut self, id: &'static str, step: String) -> bool {
        let new = !self.told.contains(&id);
        if new {
            self.told.push(id);
            let _ = self.progress.try_send(Ok(local::UpProgress { step, done: false, status: None }));
        }
        new
    }
}

impl Daemon {
    pub(super) fn on_up(
        &mut self,
        request: &local::UpRequest,
        progress: mpsc::Sender<Result<local::UpProgress, RequestError>>,
    ) {
        let waiting = Waiting { progress, told: Vec::new(), deadline: Instant::now() + PATIENCE };
        match self.begin_up(request) {
            Ok(None) => {
                self.ups.push(waiting);
                // What was in the way may be gone.
                self.no_steering = None;
                self.input(Input::Up);
                self.refresh_about();
                self.steer_network(Instant::now());
            }
            Ok(Some(key)) => self.enroll(key, waiting),
            Err(error) => waiting.fail(error),
        }
    }

    /// The join key, if there is one to enrol with.
    fn begin_up(&mut self, request: &local::UpRequest) -> Result<Option<JoinKey>, RequestError> {
        let key = match request.join_key.as_str() {
            "" => None,
            token => Some(join_key::parse(token).map_err(|error| RequestError::Invalid(error.to_string()))?),
        };
        match (&self.identity.membership, &key) {
            (None, None) => {
                return Err(RequestError::Precondition(
                    "this machine is in no network yet; make a join key with `gwctl key create` where the server \
                     runs, then `gwctl up JOIN_KEY` here"
                        .to_owned(),
                ));
            }
            (Some(membership), Some(key))
                if membership.ca_fingerprint != *key.ca.as_bytes() && self.session.is_up() =>
            {
                return Err(RequestError::Precondition(format!(
                    "this machine is in the network of {}; run `gwctl down` first, then `gwctl up` with the key of the \
                     other network",
                    membership.coordinators.join(", ")
                )));
            }
            _ => {}
        }
        if self.enrolling {
            return Err(RequestError::Precondition(
                "another `gwctl up` is enrolling this machine".to_owned(),
            ));
        }
        self.take_settings(request)?;
        if key.is_none() {
            self.settings.up = true;
        }
        self.store.save_settings(&self.settings).map_err(|error| RequestError::Failed(error.to_string()))?;
        Ok(key)
    }

    fn take_settings(&mut self, request: &local::UpRequest) -> Result<(), RequestError> {
        let routes: Option<Vec<IpNet>> = list(&request.advertise_routes, "prefix")?;
        let endpoints: Option<Vec<SocketAddr>> = list(&request.static_endpoints, "address with a port")?;
        if let Some(routes) = routes {
            self.settings.advertise_routes = routes.iter().map(IpNet::trunc).collect();
        }
        if let Some(endpoints) = endpoints {
            self.settings.static_endpoints = endpoints;
        }
        if !request.hostname.is_empty() {
            self.settings.hostname.clone_from(&request.hostname);
        }
        Ok(())
    }

    fn enroll(&mut self, key: JoinKey, mut waiting: Waiting) {
        let addresses: Vec<String> = key.addresses.iter().map(ToString::to_string).collect();
        waiting.tell("enrolling", format!("Enrolling with {}", addresses.join(", ")));
        self.ups.push(waiting);
        self.enrolling = true;
        let contact = Contact::new(&self.identity, key.addresses.clone(), key.ca);
        let hostname = self.hostname();
        let happenings = self.happen_later();
        tokio::spawn(async move {
            let result = contact.enroll(&key.auth_key, &hostname).await;
            let _ = happenings.send(Happening::Enrolled(Box::new(Enrolled { key, result }))).await;
        });
    }

    pub(super) fn finish_enrolment(&mut self, enrolled: Enrolled) {
        self.enrolling = false;
        let Enrolled { key, result } = enrolled;
        let node = match result {
            Ok((_, node)) => node,
            Err(error) => {
                tracing::error!(%error, "enrolment failed");
                self.fail_ups(&match error {
                    ContactError::Unreachable(_) => RequestError::Unreachable(error.to_string()),
                    ContactError::Refused { .. } => RequestError::Refused(error.to_string()),
                    ContactError::Nonsense { .. } => RequestError::Failed(error.to_string()),
                });
                return;
            }
        };
        tracing::info!(name = %node.name, id = node.id, "enrolled");
        let other =
            self.identity.membership.as_ref().is_some_and(|old| old.ca_fingerprint != *key.ca.as_bytes());
        self.identity.membership = Some(Membership {
            coordinators: key.addresses.iter().map(ToString::to_string).collect(),
            ca_fingerprint: *key.ca.as_bytes(),
        });
        self.settings.up = true;
        let kept = self
            .store
            .save_identity(&self.identity)
            .and_then(|()| self.store.save_settings(&self.settings))
            .and_then(|()| if other { self.store.forget_map() } else { Ok(()) });
        if let Err(error) = kept {
            self.fail_ups(&RequestError::Failed(format!(
                "the coordinator admitted this machine, but {error}"
            )));
            return;
        }
        if other {
            self.generations.clear();
            self.session = crate::session::Session::new(None, self.settings.shadow, rand::random());
        }
        if let Err(error) = self.refresh_contact() {
            self.fail_ups(&RequestError::Failed(error.to_string()));
            return;
        }
        for waiting in &mut self.ups {
            waiting.tell("enrolled", format!("This machine is {} in the network", node.name));
        }
        self.input(Input::Up);
        self.refresh_about();
    }

    fn fail_ups(&mut self, error: &RequestError) {
        for waiting in self.ups.drain(..) {
            waiting.fail(error.clone());
        }
    }

    /// Tells those who wait how far it is.
    pub(super) fn advance_ups(&mut self) {
        if self.ups.is_empty() || self.enrolling {
            return;
        }
        let state = self.session.state();
        let tried = self.session.is_connected() || !self.session.detail().starts_with("connecting");
        let settled =
            self.session.is_settled() && (self.device.is_some() || !self.session.problems().is_empty());
        let done = settled && tried && matches!(state, State::Running | State::Offline);
        let coordinators = self
            .contact
            .iter()
            .flat_map(|contact| &contact.addresses)
            .map(ToString::to_string)
            .collect::<Vec<_>>();
        let interface = self.config.kernel.interface.to_string();
        let detail = self.session.detail();
        let draft = done.then(|| self.draft_status());
        let now = Instant::now();
        for mut waiting in std::mem::take(&mut self.ups) {
            match state {
                State::Connecting => {
                    waiting.tell("connecting", format!("Connecting to {}", coordinators.join(", ")));
                }
                State::Running | State::Offline => {
                    if waiting.tell("interface", format!("Setting up {interface} and the policy")) {
                        waiting.deadline = now + SETUP_PATIENCE;
                    }
                }
                State::Removed | State::Stopped => {
                    waiting.fail(RequestError::Refused(detail.clone()));
                    continue;
                }
            }
            if let Some(draft) = draft.clone() {
                let progress = waiting.progress.clone();
                tokio::spawn(async move {
                    let status = draft.finish(false).await;
                    let done = local::UpProgress { step: String::new(), done: true, status: Some(status) };
                    let _ = progress.send(Ok(done)).await;
                });
            } else if waiting.deadline <= now || waiting.progress.is_closed() {
                waiting.fail(RequestError::Unreachable(match state {
                    State::Running | State::Offline => format!(
                        "{interface} is not set up after {} s; the daemon keeps trying, see `gwctl status`",
                        SETUP_PATIENCE.as_secs()
                    ),
                    _ => format!(
                        "no network map after {} s: {detail}; the daemon keeps trying, see `gwctl status`",
                        PATIENCE.as_secs()
                    ),
                }));
            } else {
                self.ups.push(waiting);
            }
        }
    }
}

/// `None`: not said, leave it; `none` clears.
fn list<T: std::str::FromStr>(texts: &[String], what: &str) -> Result<Option<Vec<T>>, RequestError> {
    if texts.is_empty() {
        return Ok(None);
    }
    if texts == ["none"] {
        return Ok(Some(Vec::new()));
    }
    let parsed: Result<Vec<T>, RequestError> = texts
        .iter()
        .map(|text| text.parse().map_err(|_| RequestError::Invalid(format!("{text:?} is not a {what}"))))
        .collect();
    parsed.map(Some)
}
