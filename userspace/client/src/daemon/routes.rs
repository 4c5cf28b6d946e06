//! The ways to peers: steered where the kernel can, else one plain endpoint for each peer at a time.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use ghostwire_dataplane::netlink::{LocalEndpoint, Rank};
use ghostwire_dataplane::steer;
use ghostwire_path::{Class, Filter, RelayId, Steer};

use super::quic;
use super::requests::{Answer, RequestError};
use super::steering::{Arrived, Steering};
use super::{Daemon, Happening, status};
use crate::plane::reconcile::Endpoints;
use crate::plane::{Device, PlaneError};
use crate::session::map::NetworkMap;
use crate::session::{Desired, Input};
use crate::ways;
use crate::ways::explain::Summary;
use crate::{local, pb};

/// Signals that are kept for peers to come.
const MOST_EARLY: usize = 4_096;

/// Whether paths are steered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Steered {
    /// Where the kernel can.
    #[default]
    Auto,
    /// Not: WireGuard gets plain endpoints.
    Off,
}

impl std::str::FromStr for Steered {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "off" => Ok(Self::Off),
            other => Err(format!("{other:?} is neither auto nor off")),
        }
    }
}

/// Somebody waits for what the relays answer.
#[derive(Debug)]
pub(super) struct Netcheck {
    answer: Answer<local::NetcheckResponse>,
    /// Not before: the question must have gone out.
    asked: Instant,
}

impl Daemon {
    /// What the data plane is to be after this, with the endpoints that steering or the plain paths want. Where steering
    /// is not open yet, that comes first.
    pub(super) fn prepare(&mut self, now: Instant, desired: Desired) {
        let wanted = self.steering.is_none() && self.no_steering.is_none();
        if wanted && self.config.steered == Steered::Auto {
            let job = self.worker.run(crate::plane::kernel::Kernel::open_steering);
            let happenings = self.happen_later();
            tokio::spawn(async move {
                let opened = job.await.and_then(|opened| opened);
                let _ = happenings.send(Happening::Steered(Box::new(opened), desired)).await;
            });
            return;
        }
        if wanted {
            self.no_steering = Some("switched off by --steering off".to_owned());
        }
        let endpoints = self.endpoints(now, &desired.map);
        self.apply(desired, endpoints);
    }

    pub(super) fn on_steered(
        &mut self,
        opened: Result<(Device, steer::Steer), PlaneError>,
        desired: Desired,
    ) {
        if !self.session.is_up() {
            // Taken down meanwhile; what was opened goes with the rest.
            return;
        }
        match opened {
            Ok((device, steer)) => {
                self.device = Some(device);
                let own = ghostwire_proto::keys::NodeKey::new(self.identity.node_public());
                let quic = quic::Carrier::open(self.config.quic, self.identity.machine_key.expose());
                let trouble = quic.as_ref().err().map(|error| {
                    let port = self.config.quic;
                    format!("no QUIC, which is needed where WireGuard does not pass: port {port}: {error}")
                });
                self.note("quic", trouble);
                let key = *self.identity.node_key.expose();
                let mut steering = Steering::new(steer, own, key, quic.ok().flatten());
                steering.ways.remember(self.acquaintances());
                let now = Instant::now();
                steering.ways.set_relays(now, &self.relays);
                if self.session.is_connected() {
                    steering.connected(now);
                }
                self.steering = Some(steering);
                self.steer_network(now);
            }
            Err(error) => {
                tracing::error!(%error, "paths cannot be steered; peers are reached by plain endpoints");
                self.no_steering = Some(error.0);
            }
        }
        self.prepare(Instant::now(), desired);
    }

    fn endpoints(&mut self, now: Instant, map: &NetworkMap) -> Endpoints {
        match &mut self.steering {
            Some(steering) => {
                let endpoints = steering.set_peers(now, map);
                for (id, signal) in std::mem::take(&mut self.early) {
                    self.on_signal(now, id, signal);
                }
                self.early.retain(|id, _| map.peers.contains_key(id));
                Endpoints::Stable(endpoints)
            }
            None => Endpoints::First(self.update_paths(now, map)),
        }
    }

    /// The map that names the peer may be under way to the data plane still.
    pub(super) fn on_signal(&mut self, now: Instant, from: u64, signal: pb::Signal) {
        match &mut self.steering {
            Some(steering) if steering.ways.knows(from) => {
                steering.ways.signal(now, from, &signal);
                steering.act();
            }
            _ => {
                let room = self.early.len() < MOST_EARLY || self.early.contains_key(&from);
                if room && self.no_steering.is_none() {
                    self.early.insert(from, signal);
                }
            }
        }
    }

    /// Tells steering which links there are.
    pub(super) fn steer_network(&mut self, now: Instant) {
        if self.steering.is_none() {
            return;
        }
        let ends = match self.netlink.local_endpoints() {
            Ok(ends) => ends,
            Err(error) => {
                tracing::warn!(%error, "cannot list the addresses of this machine");
                return;
            }
        };
        let port = self.device.as_ref().map_or(self.config.kernel.listen_port, |device| device.listen_port);
        self.ask_for_port(&ends, port);
        let by_link = |wanted: &dyn Fn(&LocalEndpoint) -> bool| {
            let mut links: Vec<(u32, Vec<IpAddr>)> = Vec::new();
            for end in ends.iter().filter(|end| wanted(end)) {
                match links.iter_mut().find(|(index, _)| *index == end.index) {
                    Some((_, addresses)) => addresses.push(end.address),
                    None => links.push((end.index, vec![end.address])),
                }
            }
            links
        };
        let all: Vec<steer::Uplink> = by_link(&|_| true)
            .into_iter()
            .map(|(index, addresses)| steer::Uplink { index, addresses })
            .collect();
        // What is inside of this machine is the same in others, and they reach it by the other addresses.
        let outside = ends.iter().any(|end| end.rank != Rank::Internal);
        let preferred = by_link(&|end| !outside || end.rank != Rank::Internal)
            .into_iter()
            .map(|(index, addresses)| ways::Uplink { index, addresses })
            .collect();
        let fixed = self.settings.static_endpoints.clone();
        let mapped = self.port_mapping.as_ref().and_then(|asking| asking.mapped);
        if let Some(steering) = &mut self.steering {
            steering.set_network(now, &all, preferred, port, fixed, mapped);
        }
    }

    pub(super) fn on_arrived(&mut self, arrived: Arrived) {
        let Some(steering) = &mut self.steering else { return };
        if let Err(error) = steering.on_arrived(Instant::now(), arrived) {
            tracing::error!(%error, "steering begins anew");
            self.keep_acquaintances_now();
            self.steering = None;
            self.input(Input::Disturbed);
        }
    }

    pub(super) fn tick_steering(&mut self, now: Instant) {
        let Some(steering) = &mut self.steering else { return };
        if steering.poll_timeout() <= now {
            steering.on_time(now);
        }
        if let Some(stream) = self.stream.as_ref().filter(|_| self.session.is_connected()) {
            // A message that does not fit any more is as good as lost with the stream, which then ends.
            steering.tell(
                now,
                || stream.has_room(),
                |message| {
                    let _ = stream.send(message);
                },
            );
        }
        let (mended, trouble) = (steering.mended.take(), steering.trouble.clone());
        if let Some(mended) = mended {
            self.inspections.note(now, mended);
        }
        self.warn("steering", trouble);
        self.answer_netchecks(now);
    }

    // Requests

    /// The way to a peer in few words.
    pub(super) fn way_to(&self, now: Instant, id: u64) -> Option<Summary> {
        if let Some(steering) = &self.steering {
            return steering.ways.summary(now, id);
        }
        let (_, path) = self.paths.get(&id)?;
        let works = path.is_working();
        Some(Summary {
            path: path.describe(),
            class: if works { "direct" } else { "none" },
            works,
            is_proven: works,
            latency: None,
            why: path.why(now),
        })
    }

    pub(super) fn ways_to_all(&self, now: Instant) -> BTreeMap<u64, Summary> {
        let map = self.session.map();
        let ids = map.iter().flat_map(|map| map.peers.keys());
        ids.filter_map(|id| Some((*id, self.way_to(now, *id)?))).collect()
    }

    fn steering_of(&mut self, text: &str) -> Result<(&mut Steering, u64, String), RequestError> {
        let not_up = || RequestError::Precondition("this node is not up; run `gwctl up`".to_owned());
        let map = self.session.map().filter(|_| self.session.is_up()).ok_or_else(not_up)?;
        let peer = status::find_peer(map, text).map_err(RequestError::NotFound)?;
        let (id, name) = (peer.message.id, peer.message.name.clone());
        let why = self.no_steering.clone().unwrap_or_else(|| "it is not set up yet".to_owned());
        let steering = self.steering.as_mut().ok_or_else(|| {
            RequestError::Precondition(format!("paths are not steered on this machine: {why}"))
        })?;
        Ok((steering, id, name))
    }

    pub(super) fn on_why(&mut self, text: &str) -> Result<local::WhyResponse, RequestError> {
        let (steering, id, name) = self.steering_of(text)?;
        let waits = || RequestError::Precondition(format!("{name} has just appeared: try again"));
        let why = steering.ways.why(Instant::now(), id).ok_or_else(waits)?;
        Ok(local::WhyResponse { peer: name, ..why })
    }

    pub(super) fn on_set_path(&mut self, request: &local::SetPathRequest) -> Result<(), RequestError> {
        let (steering, id, _) = self.steering_of(&request.peer)?;
        let filter = filter(request, &steering.ways)?;
        let steer = match request.mode() {
            local::set_path_request::Mode::Unspecified => Steer::Automatic,
            local::set_path_request::Mode::Prefer => Steer::Prefer(filter),
            local::set_path_request::Mode::Pin => Steer::Pin(filter),
        };
        steering.ways.steer(Instant::now(), id, steer);
        steering.act();
        Ok(())
    }

    /// `gwctl ping --until-direct`: everything is tried now.
    pub(super) fn try_now(&mut self, id: u64) {
        if let Some(steering) = &mut self.steering {
            steering.ways.try_now(Instant::now(), id);
            steering.act();
        }
    }

    pub(super) fn on_netcheck(&mut self, answer: Answer<local::NetcheckResponse>) {
        let Some(steering) = &mut self.steering else {
            let steering_detail = match (&self.no_steering, self.session.is_up()) {
                (Some(why), _) => why.clone(),
                (None, true) => "it is not set up yet".to_owned(),
                (None, false) => "this node is not up; run `gwctl up`".to_owned(),
            };
            let meaning = vec![format!("Paths are not steered on this machine: {steering_detail}.")];
            let response =
                local::NetcheckResponse { steering_detail, meaning, ..local::NetcheckResponse::default() };
            drop(answer.send(Ok(response)));
            return;
        };
        let asked = Instant::now();
        steering.ways.ask_world(asked);
        steering.act();
        self.netchecks.push(Netcheck { answer, asked });
    }

    fn answer_netchecks(&mut self, now: Instant) {
        let Some(steering) = &self.steering else { return };
        if self.netchecks.is_empty() || steering.ways.is_asking_world() {
            return;
        }
        for waiting in std::mem::take(&mut self.netchecks) {
            tracing::debug!(took = ?now.saturating_duration_since(waiting.asked), "asked all relays");
            // Who asked may have left.
            drop(waiting.answer.send(Ok(steering.ways.netcheck())));
        }
    }
}

/// Which paths an operator means.
fn filter(request: &local::SetPathRequest, ways: &ways::Ways) -> Result<Filter, RequestError> {
    let class = match request.class.as_str() {
        "" => None,
        "direct" => Some(Class::Direct),
        "quic" => Some(Class::Quic),
        "relay-udp" => Some(Class::RelayPort),
        "relay-tls" => Some(Class::Derp),
        other => return Err(RequestError::Invalid(format!("{other:?} is no kind of path"))),
    };
    let mut filter = Filter { class, ..Filter::default() };
    if !request.remote.is_empty() {
        match (request.remote.parse::<SocketAddr>(), request.remote.parse::<IpAddr>()) {
            (Ok(remote), _) => filter.remote = Some(remote),
            (_, Ok(address)) => filter.address = Some(address),
            _ => return Err(RequestError::Invalid(format!("{:?} is not an address", request.remote))),
        }
    }
    if !request.relay.is_empty() {
        filter.relay = Some(ways.find_relay(&request.relay).ok_or_else(|| unknown_relay(request, ways))?);
    }
    Ok(filter)
}

fn unknown_relay(request: &local::SetPathRequest, ways: &ways::Ways) -> RequestError {
    let known: Vec<String> = ways.netcheck().relays.into_iter().map(|relay| relay.name).collect();
    let known = if known.is_empty() { "there is none".to_owned() } else { known.join(", ") };
    RequestError::NotFound(format!("there is no relay {:?}; there are: {known}", request.relay))
}

impl ways::Ways {
    fn find_relay(&self, text: &str) -> Option<RelayId> {
        let relays = self.netcheck().relays;
        let is = |relay: &&local::RelayReport| {
            relay.name == text
                || relay.number.to_string() == text
                || relay.addresses.iter().any(|address| address == text)
        };
        relays.iter().find(is).map(|relay| RelayId(relay.number))
    }
}
