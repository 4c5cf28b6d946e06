//! The JSON of every command: one struct for each kind of thing.
//!
//! Conventions: times are milliseconds since 1970 in fields named `*_unix_ms`, 0 for never; keys and
//! fingerprints are hexadecimal; addresses and prefixes are text; what is unknown is `null`.

mod paths;
mod relays;

pub use paths::{Netcheck, Path, Why, Wish};
pub use relays::Relay;

use ghostwire_proto::address::{NodeEndpoint, prefixes_from_wire};
use ghostwire_proto::{local, v1};
use ipnet::IpNet;
use serde::Serialize;

/// Prefixes as text; single addresses without their length.
pub fn prefixes(messages: &[v1::Prefix]) -> Vec<String> {
    let nets = prefixes_from_wire(messages).unwrap_or_default();
    nets.iter().map(|net| if is_host(net) { net.addr().to_string() } else { net.to_string() }).collect()
}

fn is_host(net: &IpNet) -> bool {
    net.prefix_len() == net.max_prefix_len()
}

/// Endpoints as text.
pub fn endpoints(messages: &[v1::Endpoint]) -> Vec<String> {
    let parsed = messages.iter().filter_map(|message| NodeEndpoint::try_from(message).ok());
    parsed.map(|endpoint| endpoint.address.to_string()).collect()
}

/// `gwctl status`
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// `stopped`, `enrolling`, `connecting`, `running`, `offline` or `removed`.
    pub state: String,
    /// Why, if something is wrong.
    pub detail: String,
    /// The daemon's version.
    pub version: String,
    /// Name of the interface.
    pub interface: String,
    /// `kernel` or `userspace`, with the reason.
    pub wireguard_backend: String,
    /// `tcx` or `clsact`.
    pub hook: String,
    /// MTU of the interface.
    pub mtu: u32,
    /// WireGuard's UDP port.
    pub listen_port: u32,
    /// This node, once it is in a network.
    pub node: Option<OwnNode>,
    /// Address of the coordinator.
    pub coordinator: String,
    /// Whether the stream to it is open.
    pub coordinator_connected: bool,
    /// Generation of the policy that the coordinator wants enforced.
    pub wanted_generation: u32,
    /// Generation that the kernel enforces.
    pub enforced_generation: u32,
    /// Whether the policy only reports.
    pub shadow: bool,
    /// The peers.
    pub peers: Vec<Peer>,
    /// What is wrong, why, what to do.
    pub problems: Vec<String>,
    /// WireGuard's public key.
    pub node_key: String,
    /// Memory of the daemon.
    pub resident_bytes: u64,
    /// Whether paths are found and switched; if not, WireGuard gets plain endpoints.
    pub steering: bool,
    /// Why not.
    pub steering_detail: String,
}

/// This node.
#[derive(Clone, Debug, Serialize)]
pub struct OwnNode {
    /// Id at the coordinator.
    pub id: u64,
    /// Name.
    pub name: String,
    /// Overlay addresses.
    pub addresses: Vec<String>,
    /// Owner; empty for a tagged node.
    pub user: String,
    /// Tags.
    pub tags: Vec<String>,
    /// Subnets that it may route.
    pub approved_routes: Vec<String>,
    /// When its key expires.
    pub key_expiry_unix_ms: i64,
}

/// A peer in `gwctl status`.
#[derive(Clone, Debug, Serialize)]
pub struct Peer {
    /// Id at the coordinator.
    pub id: u64,
    /// Name.
    pub name: String,
    /// Overlay addresses.
    pub addresses: Vec<String>,
    /// What WireGuard accepts from it.
    pub allowed_prefixes: Vec<String>,
    /// Where it says that it can be reached.
    pub endpoints: Vec<String>,
    /// Whether the coordinator sees it.
    pub online: bool,
    /// Owner; empty for a tagged node.
    pub user: String,
    /// Tags.
    pub tags: Vec<String>,
    /// WireGuard's public key.
    pub node_key: String,
    /// When the coordinator saw it last.
    pub last_seen_unix_ms: i64,
    /// `direct ADDRESS:PORT`, `relay (UDP) NAME`, `relay (TLS) NAME` or `none`.
    pub path: String,
    /// Its kind: `direct`, `quic`, `relay-udp`, `relay-tls` or `none`.
    pub path_class: String,
    /// Why this path, or what is wrong.
    pub why: String,
    /// Round-trip time; `null` if unknown.
    pub latency_ms: Option<f64>,
    /// Last handshake.
    pub last_handshake_unix_ms: i64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets to or from it that the policy dropped.
    pub dropped_packets: u64,
    /// Their bytes.
    pub dropped_bytes: u64,
}

impl From<&local::StatusResponse> for Status {
    fn from(status: &local::StatusResponse) -> Self {
        Self {
            state: status.state.clone(),
            detail: status.detail.clone(),
            version: status.version.clone(),
            interface: status.interface.clone(),
            wireguard_backend: status.wireguard_backend.clone(),
            hook: status.hook.clone(),
            mtu: status.mtu,
            listen_port: status.listen_port,
            node: status.node.as_ref().map(OwnNode::from),
            coordinator: status.coordinator.clone(),
            coordinator_connected: status.coordinator_connected,
            wanted_generation: status.wanted_generation,
            enforced_generation: status.enforced_generation,
            shadow: status.shadow,
            peers: status.peers.iter().map(Peer::from).collect(),
            problems: status.problems.clone(),
            node_key: hex::encode(&status.node_key),
            resident_bytes: status.resident_bytes,
            steering: status.steering,
            steering_detail: status.steering_detail.clone(),
        }
    }
}

impl From<&v1::SelfNode> for OwnNode {
    fn from(node: &v1::SelfNode) -> Self {
        Self {
            id: node.id,
            name: node.name.clone(),
            addresses: prefixes(&node.addresses),
            user: node.user.clone(),
            tags: node.tags.clone(),
            approved_routes: prefixes(&node.approved_routes),
            key_expiry_unix_ms: node.key_expiry_unix_ms,
        }
    }
}

impl From<&local::PeerStatus> for Peer {
    fn from(status: &local::PeerStatus) -> Self {
        let peer = status.peer.clone().unwrap_or_default();
        Self {
            id: peer.id,
            addresses: prefixes(&peer.addresses),
            allowed_prefixes: prefixes(&peer.allowed_prefixes),
            endpoints: endpoints(&peer.endpoints),
            online: peer.online,
            user: peer.user,
            tags: peer.tags,
            node_key: hex::encode(&peer.node_key),
            last_seen_unix_ms: peer.last_seen_unix_ms,
            name: peer.name,
            path: status.path.clone(),
            path_class: status.path_class.clone(),
            why: status.why.clone(),
            latency_ms: (status.latency_ms >= 0.0).then_some(status.latency_ms),
            last_handshake_unix_ms: status.last_handshake_unix_ms,
            rx_bytes: status.rx_bytes,
            tx_bytes: status.tx_bytes,
            dropped_packets: status.dropped_packets,
            dropped_bytes: status.dropped_bytes,
        }
    }
}

/// One line of `gwctl ping --json`
#[derive(Clone, Debug, Serialize)]
pub struct Ping {
    /// From 1.
    pub sequence: u32,
    /// Round-trip time; `null` without a reply.
    pub latency_ms: Option<f64>,
    /// The path in use when the reply came.
    pub path: String,
    /// Its kind: `direct`, `quic`, `relay-udp`, `relay-tls` or `none`.
    pub path_class: String,
    /// Why there was no reply.
    pub error: String,
}

/// A counter in `gwctl acl counters --json`
#[derive(Clone, Debug, Serialize)]
pub struct Counter {
    /// `ingress`: from the tunnel, `egress`: into it.
    pub direction: String,
    /// Why packets passed or were dropped.
    pub reason: String,
    /// Whether they passed.
    pub passed: bool,
    /// How many.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// `gwctl acl counters`
#[derive(Clone, Debug, Serialize)]
pub struct Counters {
    /// Generation in force.
    pub generation: u32,
    /// Whether the policy only reports.
    pub shadow: bool,
    /// All counters, also those that are 0.
    pub counters: Vec<Counter>,
    /// Connections that are remembered.
    pub connections: u32,
    /// Size of the policy's image in the kernel, in words of 64 bits.
    pub image_words_used: u64,
}

impl From<&local::AclResponse> for Counters {
    fn from(acl: &local::AclResponse) -> Self {
        let counters = acl.counters.iter().map(|counter| Counter {
            direction: counter.direction.clone(),
            reason: counter.reason.clone(),
            passed: counter.passed,
            packets: counter.packets,
            bytes: counter.bytes,
        });
        Self {
            generation: acl.generation,
            shadow: acl.shadow,
            counters: counters.collect(),
            connections: acl.connections,
            image_words_used: acl.image_words_used,
        }
    }
}

/// `gwctl acl show`
#[derive(Clone, Debug, Serialize)]
pub struct Rules {
    /// Generation in force.
    pub generation: u32,
    /// Whether the policy only reports.
    pub shadow: bool,
    /// The rules for people.
    pub rules: Vec<String>,
    /// The filter as it is compiled.
    pub filter: serde_json::Value,
}

/// One line of `gwctl acl watch --json`
#[derive(Clone, Debug, Serialize)]
#[expect(missing_docs, reason = "the fields of local.proto's AclEvent, documented there")]
pub struct AclEvent {
    pub time_unix_ms: i64,
    pub action: String,
    pub direction: String,
    pub reason: String,
    pub src: String,
    pub dst: String,
    pub src_port: u32,
    pub dst_port: u32,
    pub protocol: u32,
    pub length: u32,
    pub generation: u32,
    pub src_name: String,
    pub dst_name: String,
    pub explanation: String,
    pub suppressed: u64,
}

impl From<local::AclEvent> for AclEvent {
    fn from(event: local::AclEvent) -> Self {
        Self {
            time_unix_ms: event.time_unix_ms,
            action: event.action,
            direction: event.direction,
            reason: event.reason,
            src: event.src,
            dst: event.dst,
            src_port: event.src_port,
            dst_port: event.dst_port,
            protocol: event.protocol,
            length: event.length,
            generation: event.generation,
            src_name: event.src_name,
            dst_name: event.dst_name,
            explanation: event.explanation,
            suppressed: event.suppressed,
        }
    }
}

/// `gwctl server status`
#[derive(Clone, Debug, Serialize)]
#[expect(missing_docs, reason = "the fields of admin.proto's ServerStatus, documented there")]
pub struct Server {
    pub version: String,
    pub started_unix_ms: i64,
    pub listen: String,
    pub advertised: Vec<String>,
    pub ca_fingerprint: String,
    pub nodes: u32,
    pub nodes_online: u32,
    pub users: u32,
    pub policy_version: u32,
    pub overlay: Overlay,
    pub problems: Vec<String>,
}

/// Address ranges of the network.
#[derive(Clone, Debug, Serialize)]
pub struct Overlay {
    /// IPv4.
    pub v4: String,
    /// The part of it that nodes are numbered in.
    pub v4_nodes: String,
    /// IPv6.
    pub v6: String,
}

impl From<&v1::ServerStatus> for Server {
    fn from(status: &v1::ServerStatus) -> Self {
        let overlay = status.overlay.clone().unwrap_or_default();
        let text = |prefix: &Option<v1::Prefix>| prefixes(prefix.as_slice()).pop().unwrap_or_default();
        Self {
            version: status.version.clone(),
            started_unix_ms: status.started_unix_ms,
            listen: status.listen.clone(),
            advertised: status.advertised.clone(),
            ca_fingerprint: hex::encode(&status.ca_fingerprint),
            nodes: status.nodes,
            nodes_online: status.nodes_online,
            users: status.users,
            policy_version: status.policy_version,
            overlay: Overlay {
                v4: text(&overlay.v4),
                v4_nodes: text(&overlay.v4_nodes),
                v6: text(&overlay.v6),
            },
            problems: status.problems.clone(),
        }
    }
}

/// A user.
#[derive(Clone, Debug, Serialize)]
#[expect(missing_docs, reason = "the fields of admin.proto's User, documented there")]
pub struct User {
    pub id: String,
    pub email: String,
    pub name: String,
    pub role: String,
    pub created_unix_ms: i64,
}

impl From<&v1::User> for User {
    fn from(user: &v1::User) -> Self {
        Self {
            id: user.id.clone(),
            email: user.email.clone(),
            name: user.name.clone(),
            role: user.role.clone(),
            created_unix_ms: user.created_unix_ms,
        }
    }
}

/// An auth key, without its secret.
#[derive(Clone, Debug, Serialize)]
#[expect(missing_docs, reason = "the fields of admin.proto's AuthKey, documented there")]
pub struct Key {
    pub id: String,
    pub user: String,
    pub tags: Vec<String>,
    pub reusable: bool,
    pub ephemeral: bool,
    pub created_unix_ms: i64,
    pub expires_unix_ms: i64,
    pub revoked_unix_ms: i64,
    pub uses: u32,
    pub relay: bool,
}

impl From<&v1::AuthKey> for Key {
    fn from(key: &v1::AuthKey) -> Self {
        Self {
            id: key.id.clone(),
            user: key.user.clone(),
            tags: key.tags.clone(),
            reusable: key.reusable,
            ephemeral: key.ephemeral,
            created_unix_ms: key.created_unix_ms,
            expires_unix_ms: key.expires_unix_ms,
            revoked_unix_ms: key.revoked_unix_ms,
            uses: key.uses,
            relay: key.relay,
        }
    }
}

/// A machine in the network.
#[derive(Clone, Debug, Serialize)]
#[expect(missing_docs, reason = "the fields of admin.proto's Node, documented there")]
pub struct Node {
    pub id: u64,
    pub name: String,
    pub addresses: Vec<String>,
    pub user: String,
    pub tags: Vec<String>,
    pub online: bool,
    pub ephemeral: bool,
    pub last_seen_unix_ms: i64,
    pub created_unix_ms: i64,
    pub key_expiry_unix_ms: i64,
    pub endpoints: Vec<String>,
    pub advertised_routes: Vec<String>,
    pub approved_routes: Vec<String>,
    pub filter_generation: u32,
    pub enforced_generation: u32,
    pub problems: Vec<String>,
    pub version: String,
    pub os: String,
    pub machine_key: String,
    pub node_key: String,
}

impl From<&v1::Node> for Node {
    fn from(node: &v1::Node) -> Self {
        Self {
            id: node.id,
            name: node.name.clone(),
            addresses: prefixes(&node.addresses),
            user: node.user.clone(),
            tags: node.tags.clone(),
            online: node.online,
            ephemeral: node.ephemeral,
            last_seen_unix_ms: node.last_seen_unix_ms,
            created_unix_ms: node.created_unix_ms,
            key_expiry_unix_ms: node.key_expiry_unix_ms,
            endpoints: endpoints(&node.endpoints),
            advertised_routes: prefixes(&node.advertised_routes),
            approved_routes: prefixes(&node.approved_routes),
            filter_generation: node.filter_generation,
            enforced_generation: node.enforced_generation,
            problems: node.problems.clone(),
            version: node.version.clone(),
            os: node.os.clone(),
            machine_key: hex::encode(&node.machine_key),
            node_key: hex::encode(&node.node_key),
        }
    }
}

/// A version of the policy; `content` only where the policy itself is asked for.
#[derive(Clone, Debug, Serialize)]
#[expect(missing_docs, reason = "the fields of admin.proto's PolicyVersion, documented there")]
pub struct PolicyVersion {
    pub version: u32,
    pub author: String,
    pub created_unix_ms: i64,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub content: String,
}

impl From<&v1::PolicyVersion> for PolicyVersion {
    fn from(policy: &v1::PolicyVersion) -> Self {
        Self {
            version: policy.version,
            author: policy.author.clone(),
            created_unix_ms: policy.created_unix_ms,
            content: policy.content.clone(),
        }
    }
}
