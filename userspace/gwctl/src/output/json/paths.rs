//! The JSON of `gwctl netcheck`, `why` and `path`.

use ghostwire_proto::local;
use serde::Serialize;

/// What is negative on the wire is unknown.
fn known(number: f64) -> Option<f64> {
    (number >= 0.0).then_some(number)
}

fn said(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

/// `gwctl netcheck`
#[derive(Clone, Debug, Serialize)]
pub struct Netcheck {
    /// Whether paths are steered on this machine; if not, the rest is empty.
    pub steering: bool,
    /// Why not.
    pub steering_detail: Option<String>,
    /// `passes`, `blocked` or `unknown`.
    pub udp: String,
    /// `none`, `easy` (the same port for every destination), `hard` (a new one for each), `some` or `unknown`.
    pub nat: String,
    /// Whether this machine has IPv4 addresses.
    pub ipv4: bool,
    /// Whether it has IPv6 addresses.
    pub ipv6: bool,
    /// WireGuard's port at each of our addresses.
    pub local: Vec<String>,
    /// What others see of them.
    pub mapped: Vec<Mapped>,
    /// Our address outside, if the router forwards a port.
    pub port_mapping: Option<String>,
    /// UDP port of QUIC, unless that is off.
    pub quic_port: Option<u32>,
    /// The relays.
    pub relays: Vec<Relay>,
    /// What that means, in words.
    pub meaning: Vec<String>,
}

/// One of our addresses as one server sees it.
#[derive(Clone, Debug, Serialize)]
pub struct Mapped {
    /// Ours.
    pub local: String,
    /// Who sees it.
    pub server: String,
    /// As what.
    #[serde(rename = "mapped")]
    pub outside: String,
    /// Round-trip time.
    pub latency_ms: Option<f64>,
}

/// A relay.
#[derive(Clone, Debug, Serialize)]
pub struct Relay {
    /// The coordinator's number.
    pub number: u32,
    /// Region or address.
    pub name: String,
    /// Where it is.
    pub addresses: Vec<String>,
    /// `answers`, `blocked`, `unknown` or `none`.
    pub udp: String,
    /// Round-trip time by UDP.
    pub udp_ms: Option<f64>,
    /// `open`, `connecting`, `failed`, `not needed yet` or `none`.
    pub tls: String,
    /// How long connecting by TLS took.
    pub tls_ms: Option<f64>,
    /// About to stop.
    pub draining: bool,
}

impl From<&local::NetcheckResponse> for Netcheck {
    fn from(found: &local::NetcheckResponse) -> Self {
        let mapped = found.mapped.iter().map(|mapped| Mapped {
            local: mapped.local.clone(),
            server: mapped.server.clone(),
            outside: mapped.mapped.clone(),
            latency_ms: known(mapped.latency_ms),
        });
        let relays = found.relays.iter().map(|relay| Relay {
            number: relay.number,
            name: relay.name.clone(),
            addresses: relay.addresses.clone(),
            udp: relay.udp.clone(),
            udp_ms: known(relay.udp_ms),
            tls: relay.tls.clone(),
            tls_ms: known(relay.tls_ms),
            draining: relay.draining,
        });
        Self {
            steering: found.steering,
            steering_detail: said(&found.steering_detail),
            udp: found.udp.clone(),
            nat: found.nat.clone(),
            ipv4: found.ipv4,
            ipv6: found.ipv6,
            local: found.local.clone(),
            mapped: mapped.collect(),
            port_mapping: said(&found.port_mapping),
            quic_port: (found.quic_port != 0).then_some(found.quic_port),
            relays: relays.collect(),
            meaning: found.meaning.clone(),
        }
    }
}

/// `gwctl why PEER`
#[derive(Clone, Debug, Serialize)]
pub struct Why {
    /// Name of the peer.
    pub peer: String,
    /// The path in use, or `none`.
    pub path: String,
    /// `direct`, `quic`, `relay-udp`, `relay-tls` or `none`.
    pub path_class: String,
    /// What the node is doing about it.
    pub state: String,
    /// Why this path.
    pub reason: String,
    /// For how long it has been in use, in seconds.
    pub in_use_s: Option<f64>,
    /// Every path, the one in use first.
    pub paths: Vec<Path>,
    /// Why a round of checks is running, if one is.
    pub running: Option<String>,
    /// Seconds until the next one.
    pub next_s: Option<f64>,
    /// Why it will be.
    pub next_cause: Option<String>,
    /// What would make it better.
    pub advice: Vec<String>,
    /// What was asked for with `gwctl path`.
    pub wish: Option<String>,
}

/// One path.
#[derive(Clone, Debug, Serialize)]
pub struct Path {
    /// Names it in the daemon's log.
    pub id: String,
    /// Kind, as in [`Why::path_class`].
    pub class: String,
    /// Our address, if the path leads straight to the peer.
    pub local: Option<String>,
    /// Address of the peer, or name of the relay.
    pub remote: String,
    /// How the address became known.
    pub kind: Option<String>,
    /// Where it stands.
    pub state: String,
    /// Whether it works.
    pub works: bool,
    /// `in use`, `copy` or `standby`.
    pub role: Option<String>,
    /// Round-trip time.
    pub latency_ms: Option<f64>,
    /// Seconds since it was last shown to work.
    pub proven_ago_s: Option<f64>,
    /// The last failure.
    pub failure: Option<String>,
    /// Seconds since then.
    pub failure_ago_s: Option<f64>,
    /// Not used for so many seconds, since it failed while it was used.
    pub held_down_s: Option<f64>,
}

impl From<&local::WhyResponse> for Why {
    fn from(why: &local::WhyResponse) -> Self {
        let paths = why.paths.iter().map(|path| Path {
            id: path.id.clone(),
            class: path.class.clone(),
            local: said(&path.local),
            remote: path.remote.clone(),
            kind: said(&path.kind),
            state: path.state.clone(),
            works: path.works,
            role: said(&path.role),
            latency_ms: known(path.latency_ms),
            proven_ago_s: known(path.proven_ago_s),
            failure: said(&path.failure),
            failure_ago_s: known(path.failure_ago_s),
            held_down_s: known(path.held_down_s),
        });
        Self {
            peer: why.peer.clone(),
            path: why.path.clone(),
            path_class: why.path_class.clone(),
            state: why.state.clone(),
            reason: why.reason.clone(),
            in_use_s: known(why.in_use_s),
            paths: paths.collect(),
            running: said(&why.running),
            next_s: known(why.next_s),
            next_cause: said(&why.next_cause),
            advice: why.advice.clone(),
            wish: said(&why.wish),
        }
    }
}

/// `gwctl path PEER`
#[derive(Clone, Debug, Serialize)]
pub struct Wish {
    /// Name of the peer, as it was given.
    pub peer: String,
    /// `auto`, `prefer` or `pin`.
    pub mode: String,
    /// Kind of path; empty: any.
    pub class: String,
}
