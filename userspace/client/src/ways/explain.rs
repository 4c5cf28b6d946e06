//! What is told about the ways: in few words for `gwctl status` and `ping`, in full for `gwctl why` and `netcheck`.

use std::time::{Duration, Instant};

use ghostwire_path::{
    Advice, Class, Mapping, PathState, PathWhy, Reach, RelayId, Role, Route, State, Steer, Why,
};

use super::relays::Stream;
use super::{Hop, Ways};
use crate::local;

/// The way to a peer in few words.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// `direct 192.0.2.7:51820`, `relay (UDP) frankfurt`, `none`, or `idle` if nobody has needed one.
    pub path: String,
    /// `direct`, `quic`, `relay-udp`, `relay-tls`, `none`.
    pub class: &'static str,
    /// Packets have somewhere to go.
    pub works: bool,
    /// It is shown to work, or nobody needs it now.
    pub is_proven: bool,
    /// Round trip by checks, of the path in use.
    pub latency: Option<Duration>,
    /// Why this one, and what would make it better.
    pub why: String,
}

impl Ways {
    /// `None`: no such peer.
    pub fn summary(&self, now: Instant, id: u64) -> Option<Summary> {
        let peer = self.peers.get(&id)?;
        let why = peer.machine.why(now);
        let hop = peer.told.and_then(|(primary, _)| primary).or(peer.hope);
        let primary = why.paths.iter().find(|path| Some(path.id) == why.primary);
        let (path, class) = match hop {
            None if why.state == State::Asleep => ("idle".to_owned(), "none"),
            None => ("none".to_owned(), "none"),
            Some(hop) => (self.hop_text(hop, primary), class_word(hop)),
        };
        let proven =
            primary.is_some_and(|path| matches!(path.state, PathState::Proven | PathState::Doubtful(_)));
        Some(Summary {
            path,
            class,
            works: hop.is_some(),
            is_proven: proven || why.state == State::Asleep && hop.is_some(),
            latency: primary.and_then(|path| path.round_trip),
            why: Self::why_in_a_line(&why, peer.trouble.as_deref()),
        })
    }

    fn hop_text(&self, hop: Hop, primary: Option<&PathWhy>) -> String {
        match (hop, primary.map(|path| path.route)) {
            (Hop::Wire { relayed: true, .. }, Some(Route::RelayPort(relay))) => {
                format!("relay (UDP) {}", self.relay_name(relay))
            }
            (Hop::Wire { remote, relayed: true, .. }, _) => format!("relay (UDP) {remote}"),
            (Hop::Wire { remote, .. }, _) => format!("direct {remote}"),
            (Hop::Quic { remote }, _) => format!("QUIC {remote}"),
            (Hop::Stream(relay), _) => format!("relay (TLS) {}", self.relay_name(relay)),
        }
    }

    fn relay_name(&self, relay: RelayId) -> String {
        match self.relays.description(relay) {
            Some(known) if !known.region.is_empty() => known.region.clone(),
            Some(known) => known.addresses.first().map_or_else(|| relay.0.to_string(), ToString::to_string),
            None => relay.0.to_string(),
        }
    }

    fn why_in_a_line(why: &Why, trouble: Option<&str>) -> String {
        let mut parts = vec![match why.state {
            State::Asleep if why.primary.is_some() => {
                "no traffic: packets would take the last path".to_owned()
            }
            State::Asleep => "no traffic yet: a way is looked for when there is some".to_owned(),
            State::Searching => "looking for a way".to_owned(),
            State::Connected(_) => why.reason.to_string(),
            State::Doubt(_) => format!("{}; an answer is late", why.reason),
        }];
        parts.extend(trouble.map(str::to_owned));
        if why.state != State::Asleep {
            let worth = |advice: &&Advice| {
                !matches!(why.state, State::Connected(Class::Direct)) || **advice == Advice::Pinned
            };
            parts.extend(why.advice.iter().filter(worth).map(ToString::to_string));
        }
        parts.join("; ")
    }

    /// Everything about the way to a peer. `None`: no such peer.
    pub fn why(&self, now: Instant, id: u64) -> Option<local::WhyResponse> {
        let peer = self.peers.get(&id)?;
        let why = peer.machine.why(now);
        let summary = self.summary(now, id)?;
        Some(local::WhyResponse {
            peer: String::new(),
            path: summary.path,
            path_class: summary.class.to_owned(),
            state: why.state.to_string(),
            reason: why.reason.to_string(),
            in_use_s: why.for_how_long.map_or(-1.0, |since| since.as_secs_f64()),
            paths: why.paths.iter().map(|path| self.path_report(path)).collect(),
            running: why.running.map(|cause| cause.to_string()).unwrap_or_default(),
            next_s: why.next.map_or(-1.0, |(wait, _)| wait.as_secs_f64()),
            next_cause: why.next.map(|(_, cause)| cause.to_string()).unwrap_or_default(),
            advice: why.advice.iter().map(ToString::to_string).chain(peer.trouble.clone()).collect(),
            wish: match why.steer {
                Steer::Automatic => String::new(),
                Steer::Prefer(filter) => format!("prefer {filter}"),
                Steer::Pin(filter) => format!("only {filter}"),
            },
        })
    }

    fn path_report(&self, path: &PathWhy) -> local::PathReport {
        let seconds = |time: Option<Duration>| time.map_or(-1.0, |time| time.as_secs_f64());
        local::PathReport {
            id: path.id.to_string(),
            class: route_class(&path.route).to_owned(),
            local: path.route.base().map(|base| base.address.to_string()).unwrap_or_default(),
            remote: match path.route {
                Route::Pair { remote, .. } => remote.to_string(),
                Route::RelayPort(relay) | Route::Derp(relay) => self.relay_name(relay),
            },
            kind: path.kind.map(|kind| kind.to_string()).unwrap_or_default(),
            state: path.state.to_string(),
            works: matches!(path.state, PathState::Proven | PathState::Doubtful(_)),
            role: match path.role {
                Role::Primary => "in use",
                Role::Copy => "copy",
                Role::Standby => "standby",
                Role::None => "",
            }
            .to_owned(),
            latency_ms: path.round_trip.map_or(-1.0, |time| time.as_secs_f64() * 1e3),
            proven_ago_s: seconds(path.last_proof),
            failure: path.last_failure.map(|(why, _)| why.to_string()).unwrap_or_default(),
            failure_ago_s: seconds(path.last_failure.map(|(_, ago)| ago)),
            held_down_s: seconds(path.held_down),
        }
    }

    /// What is known about the network that this node is in.
    pub fn netcheck(&self) -> local::NetcheckResponse {
        let nat = self.nat;
        let mapped = self.survey.answers().map(|(base, server, mapped, latency)| local::MappedAddress {
            local: base.address.to_string(),
            server: server.to_string(),
            mapped: mapped.to_string(),
            latency_ms: latency.map_or(-1.0, |time| time.as_secs_f64() * 1e3),
        });
        let has = |v4: bool| {
            let mut addresses = self.uplinks.iter().flat_map(|uplink| &uplink.addresses);
            addresses.any(|address| address.is_ipv4() == v4)
        };
        let behind_nat = !self.survey.reflexive().is_empty();
        local::NetcheckResponse {
            steering: true,
            steering_detail: String::new(),
            udp: match nat.udp {
                None => "unknown",
                Some(true) => "passes",
                Some(false) => "blocked",
            }
            .to_owned(),
            nat: match (nat.mapping, behind_nat) {
                (Mapping::EndpointIndependent, false) => "none",
                (Mapping::EndpointIndependent, true) => "easy",
                (Mapping::EndpointDependent, _) => "hard",
                (Mapping::Unknown, true) => "some",
                (Mapping::Unknown, false) => "unknown",
            }
            .to_owned(),
            ipv4: has(true),
            ipv6: has(false),
            local: self.all_bases().iter().map(|base| base.address.to_string()).collect(),
            mapped: mapped.collect(),
            port_mapping: self.mapped.map(|address| address.to_string()).unwrap_or_default(),
            relays: self.relays.all().map(|(relay, stream)| self.relay_report(relay, stream)).collect(),
            meaning: self.meaning(),
            quic_port: self.own_quic.map_or(0, |own| own.port.into()),
        }
    }

    fn relay_report(&self, relay: &super::relays::Description, stream: Stream) -> local::RelayReport {
        let udp = match self.survey.reach(relay.number) {
            _ if relay.udp_port == 0 => ("none", -1.0),
            Reach::Unknown => ("unknown", -1.0),
            Reach::Blocked => ("blocked", -1.0),
            Reach::Answers(time) => ("answers", time.as_secs_f64() * 1e3),
        };
        let tls = match stream {
            _ if relay.derp_port == 0 => ("none", -1.0),
            Stream::Closed => ("not needed yet", -1.0),
            Stream::Opening => ("connecting", -1.0),
            Stream::Failed => ("failed", -1.0),
            Stream::Open(took) => ("open", took.as_secs_f64() * 1e3),
        };
        local::RelayReport {
            number: relay.number.0,
            name: self.relay_name(relay.number),
            addresses: relay.addresses.iter().map(ToString::to_string).collect(),
            udp: udp.0.to_owned(),
            udp_ms: udp.1,
            tls: tls.0.to_owned(),
            tls_ms: tls.1,
            draining: relay.draining,
        }
    }

    /// What that means for the user.
    fn meaning(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let relays = self.relays.all().count();
        if self.uplinks.is_empty() {
            lines.push("This machine has no network.".to_owned());
        }
        if relays == 0 {
            lines.push(
                "The network has no relay: peers connect only where one of the two can be reached directly, and nothing \
                 outside tells this node how it is seen."
                    .to_owned(),
            );
        }
        match self.nat.udp {
            Some(false) => lines.push(
                "UDP does not leave this network: traffic goes through relays' TLS streams. Let UDP out, at least to \
                 the relays."
                    .to_owned(),
            ),
            Some(true) => lines.push(match (self.nat.mapping, self.survey.reflexive().is_empty()) {
                (Mapping::EndpointDependent, _) => {
                    "The NAT here uses a new port for every destination: direct paths come about with peers that are \
                     not behind such a NAT. Port mapping (UPnP, NAT-PMP, PCP) or a forwarded port would help."
                        .to_owned()
                }
                (Mapping::EndpointIndependent, false) => {
                    "The NAT here can be traversed: direct paths come about with most peers.".to_owned()
                }
                (Mapping::EndpointIndependent, true) => {
                    "No NAT: direct paths come about with every peer that can send UDP.".to_owned()
                }
                (Mapping::Unknown, _) => {
                    "There is a NAT; a second relay, or a path through one, would show of which kind.".to_owned()
                }
            }),
            None => {}
        }
        if self.mapped.is_some() {
            lines.push("The router forwards a port to this node: any peer can reach it.".to_owned());
        }
        lines
    }
}

fn class_word(hop: Hop) -> &'static str {
    match hop {
        Hop::Wire { relayed: false, .. } => "direct",
        Hop::Wire { relayed: true, .. } => "relay-udp",
        Hop::Quic { .. } => "quic",
        Hop::Stream(_) => "relay-tls",
    }
}

fn route_class(route: &Route) -> &'static str {
    match route.class() {
        Class::Direct => "direct",
        Class::Quic => "quic",
        Class::RelayPort => "relay-udp",
        Class::Derp => "relay-tls",
    }
}
