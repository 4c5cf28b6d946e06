//! `gwctl status`: what the loop knows, completed outside the loop with what takes time.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ghostwire_dataplane::acl::Attachment;

use super::requests::may_echo;
use super::{Daemon, Observed};
use crate::local;
use crate::plane::worker::Worker;
use crate::plane::{Machinery as _, PresentPeer};
use crate::probe::Echo;
use crate::session::map::{NetworkMap, Peer};
use crate::ways::explain::Summary;

/// A reply that takes longer is not waited for: status must be quick.
const ECHO_PATIENCE: Duration = Duration::from_millis(400);

/// What the loop knows.
#[derive(Clone, Debug)]
pub struct Draft {
    worker: Worker,
    response: local::StatusResponse,
    ways: BTreeMap<u64, Summary>,
    steered: bool,
    map: Option<Arc<NetworkMap>>,
    up: bool,
}

impl Daemon {
    pub(super) fn draft_status(&self) -> Draft {
        let map = self.session.map();
        let device = self.device.as_ref();
        let state =
            if self.enrolling && !self.session.is_up() { "enrolling" } else { self.session.state().as_str() };
        let wanted = map.and_then(|map| map.filter.as_ref()).map_or(0, |filter| filter.generation);
        let mut problems = self.session.problems();
        problems.extend(self.troubles.values().cloned());
        problems.extend(self.inspections.told(Instant::now()));
        let coordinator = match (self.session.coordinator(), &self.identity.membership) {
            ("", Some(membership)) => membership.coordinators.join(", "),
            (known, _) => known.to_owned(),
        };
        let response = local::StatusResponse {
            state: state.to_owned(),
            detail: self.detail(),
            version: crate::VERSION.to_owned(),
            interface: self.config.kernel.interface.to_string(),
            wireguard_backend: device.map(|device| device.backend.clone()).unwrap_or_default(),
            mtu: device.map_or(0, |device| device.mtu),
            listen_port: device.map_or(0, |device| device.listen_port.into()),
            node: map.map(|map| map.own.message.clone()),
            coordinator,
            coordinator_connected: self.session.is_connected(),
            wanted_generation: wanted,
            enforced_generation: self.session.enforced(),
            shadow: self.session.shadow(),
            problems,
            node_key: self.identity.node_public().to_vec(),
            steering: self.steering.is_some(),
            steering_detail: self.no_steering.clone().unwrap_or_default(),
            ..local::StatusResponse::default()
        };
        Draft {
            worker: self.worker.clone(),
            response,
            ways: self.ways_to_all(Instant::now()),
            steered: self.steering.is_some(),
            map: map.cloned(),
            up: self.session.is_up(),
        }
    }

    fn detail(&self) -> String {
        if self.identity.membership.is_none() && !self.session.is_up() {
            let detail = self.session.detail();
            return if detail.starts_with("run ") {
                "this machine is in no network yet; join one with `gwctl up JOIN_KEY`".to_owned()
            } else {
                detail
            };
        }
        self.session.detail()
    }
}

impl Draft {
    /// Completes it: bytes and handshakes from WireGuard, drops from the programs, latency if wanted.
    pub async fn finish(mut self, measure: bool) -> local::StatusResponse {
        let asked = self.worker.run(|kernel| {
            let peers = kernel.peers().unwrap_or_default();
            (peers, kernel.observe(), kernel.hook())
        });
        let (peers, observed, hook) = asked.await.unwrap_or_default();
        self.response.hook = match hook {
            Some(Attachment::Tcx) => "tcx".to_owned(),
            Some(Attachment::Clsact) => "clsact".to_owned(),
            None => String::new(),
        };
        self.response.resident_bytes = resident_bytes();
        let Some(map) = self.map.take().filter(|_| self.up) else { return self.response };
        // Steered paths are measured all the time, and an echo would wake peers that sleep.
        let latencies = if measure && !self.steered { self.measure(&map).await } else { BTreeMap::new() };
        for (id, peer) in &map.peers {
            let present = peers.iter().find(|present| present.key == peer.key);
            let way = self.ways.get(id);
            let checked = way.and_then(|way| way.latency).map(|latency| latency.as_secs_f64() * 1e3);
            let latency = latencies.get(id).copied().or(checked).unwrap_or(-1.0);
            self.response.peers.push(describe(peer, present, way, latency, observed.as_ref()));
        }
        self.response
    }

    /// One echo to each peer that packets arrive from and that the policy lets us ping.
    async fn measure(&self, map: &NetworkMap) -> BTreeMap<u64, f64> {
        let Some(filter) = &map.filter else { return BTreeMap::new() };
        let mut probes = Vec::new();
        for (id, peer) in &map.peers {
            let works = self.ways.get(id).is_some_and(|way| way.works);
            let target = peer.addresses.iter().find(|address| {
                let own = map.own.addresses.iter().find(|own| own.is_ipv4() == address.is_ipv4());
                own.is_some_and(|own| may_echo(&filter.rules, *own, **address))
            });
            if let Some(target) = target.filter(|_| works) {
                let (id, target, interface) = (*id, *target, self.response.interface.clone());
                probes.push(tokio::spawn(async move {
                    let echo = Echo::new(target, &interface).ok()?;
                    let took = echo.round_trip(1, ECHO_PATIENCE).await.ok()?;
                    Some((id, took.as_secs_f64() * 1_000.0))
                }));
            }
        }
        let mut latencies = BTreeMap::new();
        for probe in probes {
            latencies.extend(probe.await.ok().flatten());
        }
        latencies
    }
}

fn describe(
    peer: &Peer,
    present: Option<&PresentPeer>,
    way: Option<&Summary>,
    latency_ms: f64,
    observed: Option<&Observed>,
) -> local::PeerStatus {
    let (dropped_packets, dropped_bytes) = observed
        .iter()
        .flat_map(|observed| &observed.drops)
        .filter(|(address, _)| belongs(peer, *address))
        .fold((0, 0), |(packets, bytes), (_, counter)| (packets + counter.packets, bytes + counter.bytes));
    let why = match (present, way) {
        (None, _) => {
            "not in WireGuard yet: the data plane is being set up, or see the problems below".to_owned()
        }
        (Some(_), Some(way)) => way.why.clone(),
        (Some(_), None) => String::new(),
    };
    local::PeerStatus {
        peer: Some(peer.message.clone()),
        path: way.map_or_else(|| "none".to_owned(), |way| way.path.clone()),
        path_class: way.map_or("none", |way| way.class).to_owned(),
        why,
        latency_ms,
        path_latency_ms: way.and_then(|way| way.latency).map_or(-1.0, |time| time.as_secs_f64() * 1e3),
        last_handshake_unix_ms: present
            .and_then(|present| present.handshake_age)
            .map_or(0, unix_ms_before_now),
        rx_bytes: present.map_or(0, |present| present.rx_bytes),
        tx_bytes: present.map_or(0, |present| present.tx_bytes),
        dropped_packets,
        dropped_bytes,
    }
}

fn belongs(peer: &Peer, address: IpAddr) -> bool {
    peer.addresses.contains(&address)
        || peer.allowed.iter().any(|net| net.prefix_len() != 0 && net.contains(&address))
}

/// By name, by address, or by an unambiguous beginning of the name.
pub(super) fn find_peer<'m>(map: &'m NetworkMap, text: &str) -> Result<&'m Peer, String> {
    if let Ok(address) = text.parse::<IpAddr>() {
        if map.own.addresses.contains(&address) {
            return Err(format!("{address} is this node itself"));
        }
        return map.peer_of(address).ok_or_else(|| format!("no peer has or routes the address {address}"));
    }
    if let Some(peer) = map.peers.values().find(|peer| peer.message.name == text) {
        return Ok(peer);
    }
    if map.own.message.name == text {
        return Err(format!("{text} is this node itself"));
    }
    let names: Vec<&str> = map.peers.values().map(|peer| peer.message.name.as_str()).collect();
    match names.len() {
        0 => Err(format!("there is no peer {text:?}: the policy lets this node see none")),
        1..=12 => Err(format!("there is no peer {text:?}; there are: {}", names.join(", "))),
        all => Err(format!("there is no peer {text:?} among the {all}; `gwctl status` lists them")),
    }
}

fn unix_ms_before_now(age: Duration) -> i64 {
    let then = SystemTime::now().checked_sub(age).unwrap_or(UNIX_EPOCH);
    i64::try_from(then.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis()).unwrap_or(i64::MAX)
}

fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kibibytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kibibytes.unwrap_or(0) * 1_024
}
