//! Networks for unit tests.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;

use ghostwire_policy::filter::NodeFilter;
use ghostwire_proto::address::{NodeEndpoint, OverlayRanges};
use ghostwire_proto::keys::NodeKey;

use crate::pb;

/// The key of peer `id`.
pub(crate) fn key(id: u64) -> NodeKey {
    let mut bytes = [0xaa; 32];
    bytes[..8].copy_from_slice(&id.to_be_bytes());
    NodeKey::new(bytes)
}

/// The overlay of all tests.
pub(crate) fn overlay() -> OverlayRanges {
    OverlayRanges {
        v4: "100.64.0.0/10".parse().unwrap(),
        v4_nodes: "100.64.0.0/16".parse().unwrap(),
        v6: "fd77:1:2::/48".parse().unwrap(),
    }
}

/// This node, 100.64.0.2.
pub(crate) fn own() -> pb::SelfNode {
    let addresses: [IpAddr; 2] = ["100.64.0.2".parse().unwrap(), "fd77:1:2::2".parse().unwrap()];
    pb::SelfNode {
        id: 1000,
        name: "own".into(),
        addresses: addresses.into_iter().map(pb::Prefix::from).collect(),
        overlay: Some(overlay().into()),
        ..pb::SelfNode::default()
    }
}

/// Peer `id` with the address 100.64.1.`id`.
pub(crate) fn peer(id: u64) -> pb::Peer {
    let addresses: [IpAddr; 2] =
        [format!("100.64.1.{id}").parse().unwrap(), format!("fd77:1:2::1:{id:x}").parse().unwrap()];
    let addresses: Vec<pb::Prefix> = addresses.into_iter().map(pb::Prefix::from).collect();
    let endpoint: SocketAddr = format!("192.0.2.{id}:51820").parse().unwrap();
    pb::Peer {
        id,
        name: format!("peer{id}"),
        node_key: key(id).as_bytes().to_vec(),
        allowed_prefixes: addresses.clone(),
        addresses,
        endpoints: vec![NodeEndpoint { address: endpoint, fixed: false }.into()],
        online: true,
        ..pb::Peer::default()
    }
}

/// An empty filter.
pub(crate) fn filter(generation: u32) -> pb::Filter {
    ghostwire_proto::filter::to_wire(&NodeFilter::default(), NonZeroU32::new(generation).unwrap())
}

/// A network of these peers at revision and generation `generation`.
pub(crate) fn snapshot(generation: u32, peers: &[u64]) -> pb::Snapshot {
    pb::Snapshot {
        epoch: "first".into(),
        revision: generation.into(),
        node: Some(own()),
        peers: peers.iter().map(|id| peer(*id)).collect(),
        filter: Some(filter(generation)),
    }
}
