//! The network as this node knows it: checked, and changed by deltas.
//!
//! Messages are checked once, here; what a [`NetworkMap`] holds needs no second look. A message that is not
//! well-formed changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ghostwire_policy::filter::NodeFilter;
use ghostwire_proto::address::{
    AddressError, NodeEndpoint, OverlayRanges, addresses_from_wire, prefixes_from_wire,
};
use ghostwire_proto::filter::FilterError;
use ghostwire_proto::keys::{KeyError, NodeKey};
use ipnet::IpNet;

use crate::pb;

/// More peers than nodes fit into the overlay's numbering are not a map but an attack.
pub const MAX_PEERS: usize = 1 << 16;

/// Why a message of the coordinator was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// Something that must be there is not.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// Not an address, a prefix or an endpoint.
    #[error("{of}: {source}")]
    Address {
        /// Whose.
        of: String,
        /// What is wrong with it.
        source: AddressError,
    },
    /// Not a key.
    #[error("{of}: {source}")]
    Key {
        /// Whose.
        of: String,
        /// What is wrong with it.
        source: KeyError,
    },
    /// Two peers cannot share it.
    #[error("peers {first} and {second} share {what}")]
    Shared {
        /// What they share.
        what: &'static str,
        /// Name of the one.
        first: String,
        /// Name of the other.
        second: String,
    },
    /// The filter cannot be read.
    #[error("the filter cannot be read: {0}")]
    Filter(#[from] FilterError),
    /// More than we take.
    #[error("{0} peers are more than the {MAX_PEERS} that an overlay can number")]
    TooLarge(usize),
    /// A delta for a map of another state of the coordinator. Equal revisions mean nothing across epochs.
    #[error("the delta is for a map of another state of the coordinator")]
    OtherEpoch,
    /// A delta for another revision than ours.
    #[error("the delta is for revision {delta}, we have {ours}")]
    OutOfOrder {
        /// What it applies to.
        delta: u64,
        /// What we have.
        ours: u64,
    },
    /// A delta that leads nowhere.
    #[error("the delta leads from revision {from} back to {to}")]
    Backwards {
        /// What it applies to.
        from: u64,
        /// What it leads to.
        to: u64,
    },
    /// A delta that changes what is not there.
    #[error("the delta patches peer {0}, which we do not have")]
    NoSuchPeer(u64),
}

/// This node.
#[derive(Clone, Debug, PartialEq)]
pub struct OwnNode {
    /// As received, for status and for the disk.
    pub message: pb::SelfNode,
    /// Overlay addresses.
    pub addresses: Vec<IpAddr>,
    /// The overlay's address ranges.
    pub overlay: OverlayRanges,
    /// What this node may route for others.
    pub approved_routes: Vec<IpNet>,
}

/// Another node.
#[derive(Clone, Debug, PartialEq)]
pub struct Peer {
    /// As received, for status and for the disk.
    pub message: pb::Peer,
    /// WireGuard's public key.
    pub key: NodeKey,
    /// Overlay addresses.
    pub addresses: Vec<IpAddr>,
    /// What WireGuard accepts from it.
    pub allowed: Vec<IpNet>,
    /// Where it may be reached, in its own order.
    pub endpoints: Vec<SocketAddr>,
}

/// The network of one revision.
#[derive(Clone, Debug, PartialEq)]
pub struct NetworkMap {
    /// Which run of the coordinator's state counts the revisions.
    pub epoch: String,
    /// The revision.
    pub revision: u64,
    /// This node.
    pub own: OwnNode,
    /// The others, by id.
    pub peers: BTreeMap<u64, Peer>,
    /// What to enforce. Absent: nothing is known, nothing passes.
    pub filter: Option<Filter>,
}

/// What to enforce.
#[derive(Clone, Debug, PartialEq)]
pub struct Filter {
    /// As received, for the disk.
    pub message: Arc<pb::Filter>,
    /// Grows with every change.
    pub generation: u32,
    /// The rules.
    pub rules: Arc<NodeFilter>,
}

/// What a delta touched: decides how soon it must be on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weight {
    /// Who may talk to whom: must survive a crash now.
    Membership,
    /// Only where peers are and whether they are online.
    Presence,
}

impl NetworkMap {
    /// Checks a snapshot.
    pub fn from_snapshot(snapshot: &pb::Snapshot) -> Result<Self, MapError> {
        if snapshot.peers.len() > MAX_PEERS {
            return Err(MapError::TooLarge(snapshot.peers.len()));
        }
        let own = OwnNode::check(snapshot.node.as_ref().ok_or(MapError::Missing("the node itself"))?)?;
        let mut peers = BTreeMap::new();
        for message in &snapshot.peers {
            peers.insert(message.id, Peer::check(message)?);
        }
        let filter = snapshot.filter.as_ref().map(Filter::check).transpose()?;
        let map = Self { epoch: snapshot.epoch.clone(), revision: snapshot.revision, own, peers, filter };
        map.check_disjoint()?;
        Ok(map)
    }

    /// What is written to disk; [`Self::from_snapshot`] takes it back.
    pub fn to_snapshot(&self) -> pb::Snapshot {
        pb::Snapshot {
            epoch: self.epoch.clone(),
            revision: self.revision,
            node: Some(self.own.message.clone()),
            peers: self.peers.values().map(|peer| peer.message.clone()).collect(),
            filter: self.filter.as_ref().map(|filter| (*filter.message).clone()),
        }
    }

    /// The map after a delta. On an error there is no such map, and the old one stands.
    pub fn with(&self, delta: &pb::Delta) -> Result<(Self, Weight), MapError> {
        if delta.epoch != self.epoch {
            return Err(MapError::OtherEpoch);
        }
        if delta.base_revision != self.revision {
            return Err(MapError::OutOfOrder { delta: delta.base_revision, ours: self.revision });
        }
        if delta.revision <= delta.base_revision {
            return Err(MapError::Backwards { from: delta.base_revision, to: delta.revision });
        }
        let mut next = self.clone();
        next.revision = delta.revision;
        for id in &delta.removed {
            next.peers.remove(id);
        }
        for message in &delta.changed {
            next.peers.insert(message.id, Peer::check(message)?);
        }
        if next.peers.len() > MAX_PEERS {
            return Err(MapError::TooLarge(next.peers.len()));
        }
        for patch in &delta.patched {
            next.peers.get_mut(&patch.id).ok_or(MapError::NoSuchPeer(patch.id))?.patch(patch)?;
        }
        if let Some(filter) = &delta.filter {
            next.filter = Some(Filter::check(filter)?);
        }
        if let Some(node) = &delta.node {
            next.own = OwnNode::check(node)?;
        }
        let touched = !delta.removed.is_empty()
            || !delta.changed.is_empty()
            || delta.filter.is_some()
            || delta.node.is_some();
        if touched {
            next.check_disjoint()?;
        }
        Ok((next, if touched { Weight::Membership } else { Weight::Presence }))
    }

    /// The peer that has an overlay address, or that routes it.
    pub fn peer_of(&self, address: IpAddr) -> Option<&Peer> {
        self.peers.values().find(|peer| peer.addresses.contains(&address)).or_else(|| {
            self.peers
                .values()
                .filter_map(|peer| {
                    let covering = peer.allowed.iter().filter(|net| net.contains(&address));
                    covering.map(IpNet::prefix_len).max().map(|length| (length, peer))
                })
                .max_by_key(|(length, _)| *length)
                .map(|(_, peer)| peer)
        })
    }

    /// What WireGuard is to accept from each peer. WireGuard gives a prefix to one peer only and would take it
    /// from the earlier one silently, so where several peers route the same subnet, the first that is online
    /// has it.
    pub fn allowed(&self) -> BTreeMap<u64, Vec<IpNet>> {
        let mut owner: BTreeMap<IpNet, (bool, u64)> = BTreeMap::new();
        for (id, peer) in &self.peers {
            // An overlay address belongs to its node, whoever claims to route it.
            for net in peer.addresses.iter().map(|address| IpNet::from(*address)) {
                owner.insert(net, (true, *id));
            }
        }
        for (id, peer) in &self.peers {
            for net in &peer.allowed {
                let slot = owner.entry(*net).or_insert((peer.message.online, *id));
                if !slot.0 && peer.message.online {
                    *slot = (true, *id);
                }
            }
        }
        let mut allowed: BTreeMap<u64, Vec<IpNet>> = self.peers.keys().map(|id| (*id, Vec::new())).collect();
        for (net, (_, id)) in owner {
            allowed.entry(id).or_default().push(net);
        }
        allowed
    }

    /// A key or an overlay address belongs to one node.
    fn check_disjoint(&self) -> Result<(), MapError> {
        let mut keys = BTreeMap::new();
        let mut addresses = BTreeMap::new();
        let own: BTreeSet<&IpAddr> = self.own.addresses.iter().collect();
        for peer in self.peers.values() {
            let name = |peer: &Peer| peer.message.name.clone();
            if let Some(other) = keys.insert(peer.key, peer) {
                return Err(MapError::Shared { what: "a key", first: name(other), second: name(peer) });
            }
            for address in &peer.addresses {
                if let Some(other) = addresses.insert(*address, peer) {
                    return Err(MapError::Shared {
                        what: "an address",
                        first: name(other),
                        second: name(peer),
                    });
                }
                if own.contains(address) {
                    let first = self.own.message.name.clone();
                    return Err(MapError::Shared { what: "an address", first, second: name(peer) });
                }
            }
        }
        Ok(())
    }
}

impl OwnNode {
    fn check(message: &pb::SelfNode) -> Result<Self, MapError> {
        let wrong = |source| MapError::Address { of: "this node".to_owned(), source };
        let overlay = message.overlay.as_ref().ok_or(MapError::Missing("the overlay's address range"))?;
        let addresses = addresses_from_wire(&message.addresses).map_err(wrong)?;
        if addresses.is_empty() {
            return Err(MapError::Missing("an address of the node itself"));
        }
        Ok(Self {
            addresses,
            overlay: OverlayRanges::try_from(overlay).map_err(wrong)?,
            approved_routes: prefixes_from_wire(&message.approved_routes).map_err(wrong)?,
            message: message.clone(),
        })
    }

    /// This node's addresses with the length that goes on the interface.
    pub fn interface_addresses(&self) -> Vec<IpNet> {
        self.addresses.iter().map(|address| IpNet::from(*address)).collect()
    }
}

impl Peer {
    fn check(message: &pb::Peer) -> Result<Self, MapError> {
        let of = || format!("peer {:?}", message.name);
        let wrong = |source| MapError::Address { of: of(), source };
        Ok(Self {
            key: NodeKey::try_from(message.node_key.as_slice())
                .map_err(|source| MapError::Key { of: of(), source })?,
            addresses: addresses_from_wire(&message.addresses).map_err(wrong)?,
            allowed: prefixes_from_wire(&message.allowed_prefixes).map_err(wrong)?,
            endpoints: endpoints(&message.endpoints).map_err(wrong)?,
            message: message.clone(),
        })
    }

    fn patch(&mut self, patch: &pb::PeerPatch) -> Result<(), MapError> {
        if let Some(list) = &patch.endpoints {
            let of = || format!("peer {:?}", self.message.name);
            self.endpoints =
                endpoints(&list.endpoints).map_err(|source| MapError::Address { of: of(), source })?;
            self.message.endpoints.clone_from(&list.endpoints);
        }
        if let Some(online) = patch.online {
            self.message.online = online;
        }
        if patch.last_seen_unix_ms != 0 {
            self.message.last_seen_unix_ms = patch.last_seen_unix_ms;
        }
        Ok(())
    }
}

fn endpoints(messages: &[pb::Endpoint]) -> Result<Vec<SocketAddr>, AddressError> {
    messages.iter().map(|message| Ok(NodeEndpoint::try_from(message)?.address)).collect()
}

impl Filter {
    fn check(message: &pb::Filter) -> Result<Self, MapError> {
        let (generation, rules) = ghostwire_proto::filter::from_wire(message)?;
        Ok(Self { generation: generation.get(), rules: Arc::new(rules), message: Arc::new(message.clone()) })
    }
}
