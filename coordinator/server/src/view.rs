//! What each node may see, and what happened lately: all that a stream needs to tell its node the news.
//!
//! A [`World`] is one published state: the network, the policy resolved against it, a [`View`] for each node, and
//! a bounded log of which nodes changed. Nothing in it is per pair of nodes but one bit.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroU32;
use std::sync::Arc;

use ghostwire_policy::filter::{AddrSet, FilterRule, NodeFilter};
use ghostwire_policy::{PolicyErrors, ResolvedPolicy};
use ipnet::IpNet;
use sha2::{Digest as _, Sha256};

use crate::id_set::IdSet;
use crate::model::{Network, NodeId};

/// How many changes the log keeps. A stream that has missed more gets a snapshot.
pub const LOG_LENGTH: usize = 4096;

/// SHA-256 over all that a filter says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FilterDigest(pub [u8; 32]);

/// What one node may know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// Its peers.
    pub visible: IdSet,
    /// The routes of those peers that have any which this node may use.
    pub routes: BTreeMap<NodeId, Vec<IpNet>>,
    /// Counts the changes of its filter.
    pub generation: NonZeroU32,
    /// What its filter is.
    pub digest: FilterDigest,
}

/// How much of a node changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Extent {
    /// Endpoints, online, last seen.
    Patch,
    /// Anything else.
    Whole,
}

/// One entry of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeChange {
    /// Number of the world that it came with.
    pub seq: u64,
    /// Which node.
    pub node: NodeId,
    /// How much of it.
    pub extent: Extent,
}

/// One published state.
#[derive(Clone, Debug)]
pub struct World {
    /// Counts up.
    pub seq: u64,
    /// The network.
    pub network: Arc<Network>,
    /// The policy against the network.
    pub resolved: Arc<ResolvedPolicy>,
    /// By node.
    pub views: Arc<HashMap<NodeId, Arc<View>>>,
    /// Changes of nodes, oldest first.
    pub log: Arc<[NodeChange]>,
    /// The log holds everything after the world with this number.
    pub log_since: u64,
}

/// Generations and digests that were stored.
pub type Generations = HashMap<NodeId, (u32, FilterDigest)>;

impl World {
    /// The first world of a process. `seq` is 0.
    pub fn first(network: Arc<Network>, stored: &Generations) -> Result<Self, PolicyErrors> {
        let resolved = Arc::new(network.policy.policy.resolve(&network.topology())?);
        let views = views(&network, &resolved, |node| stored.get(&node).copied());
        Ok(Self { seq: 0, network, resolved, views: Arc::new(views), log: Arc::from([]), log_since: 0 })
    }

    /// The world after this one.
    pub fn next(&self, network: Arc<Network>) -> Result<Self, PolicyErrors> {
        let seq = self.seq + 1;
        let changes = changes(seq, &self.network, &network);
        let (resolved, views) = if resolves_alike(&self.network, &network) {
            (self.resolved.clone(), self.views.clone())
        } else {
            let resolved = network.policy.policy.resolve(&network.topology())?;
            let old = |node| self.views.get(&node).map(|view| (view.generation.get(), view.digest));
            let mut views = views(&network, &resolved, old);
            for (node, view) in &mut views {
                // Nothing changed: keep the old allocation, so that it can be compared at a glance.
                if let Some(old) = self.views.get(node).filter(|old| *old == view) {
                    view.clone_from(old);
                }
            }
            (Arc::new(resolved), Arc::new(views))
        };
        let mut log: Vec<NodeChange> = self.log.iter().copied().chain(changes).collect();
        let excess = log.len().saturating_sub(LOG_LENGTH);
        let log_since = excess.checked_sub(1).map_or(self.log_since, |last_dropped| log[last_dropped].seq);
        log.drain(..excess);
        Ok(Self { seq, network, resolved, views, log: log.into(), log_since })
    }

    /// The node's place in the policy's topology.
    pub fn topology_index(&self, node: NodeId) -> Option<usize> {
        index_of(&self.network, node)
    }

    /// The node's filter.
    pub fn filter(&self, node: NodeId) -> Option<(NonZeroU32, NodeFilter)> {
        let view = self.views.get(&node)?;
        Some((view.generation, self.resolved.node_filter(self.topology_index(node)?)))
    }

    /// The nodes whose streams may have news in this world, compared with `old`.
    pub fn affected<'a>(&'a self, old: &'a World, streams: impl Iterator<Item = NodeId> + 'a) -> Vec<NodeId> {
        let news: Vec<NodeId> = self
            .log
            .iter()
            .rev()
            .take_while(|change| change.seq > old.seq)
            .map(|change| change.node)
            .collect();
        streams
            .filter(|node| match (self.views.get(node), old.views.get(node)) {
                (Some(new), Some(old)) => {
                    !Arc::ptr_eq(new, old) || news.iter().any(|id| id == node || new.visible.contains(*id))
                }
                _ => true,
            })
            .collect()
    }

    /// How many nodes have another view than in `old`.
    pub fn views_changed_since(&self, old: &World) -> usize {
        let same = |node: &NodeId, view: &Arc<View>| {
            old.views.get(node).is_some_and(|old| Arc::ptr_eq(old, view) || old == view)
        };
        self.views.iter().filter(|(node, view)| !same(node, view)).count()
    }
}

fn index_of(network: &Network, node: NodeId) -> Option<usize> {
    // Ids grow and nodes are ordered by id, so the place is the number of smaller ids.
    network.nodes.contains_key(&node).then(|| network.nodes.range(..node).count())
}

/// Whether the policy means the same in both networks.
fn resolves_alike(old: &Network, new: &Network) -> bool {
    Arc::ptr_eq(&old.policy, &new.policy)
        && Arc::ptr_eq(&old.users, &new.users)
        && (Arc::ptr_eq(&old.nodes, &new.nodes)
            || old.nodes.len() == new.nodes.len()
                && old.nodes.values().zip(new.nodes.values()).all(|(old, new)| {
                    Arc::ptr_eq(old, new) || old.id == new.id && !new.differs_for_policy(old)
                }))
}

/// Which nodes that exist in both networks, or in the new one only, changed.
fn changes(seq: u64, old: &Network, new: &Network) -> Vec<NodeChange> {
    if Arc::ptr_eq(&old.nodes, &new.nodes) && Arc::ptr_eq(&old.users, &new.users) {
        return Vec::new();
    }
    let extent = |id, node| match old.nodes.get(id) {
        Some(before) if Arc::ptr_eq(before, node) => None,
        Some(before) if node.differs_for_peers(before) => Some(Extent::Whole),
        Some(before) if node.differs_in_patch(before) => Some(Extent::Patch),
        Some(_) => None,
        None => Some(Extent::Whole),
    };
    let changed = new.nodes.iter().filter_map(|(id, node)| Some((*id, extent(id, node)?)));
    changed.map(|(node, extent)| NodeChange { seq, node, extent }).collect()
}

fn views(
    network: &Network,
    resolved: &ResolvedPolicy,
    old: impl Fn(NodeId) -> Option<(u32, FilterDigest)>,
) -> HashMap<NodeId, Arc<View>> {
    let ids: Vec<NodeId> = network.nodes.keys().copied().collect();
    let routers: Vec<bool> = network.nodes.values().map(|node| !node.approved.is_empty()).collect();
    let mut digester = Digester::default();
    ids.iter()
        .enumerate()
        .map(|(index, &id)| {
            let peers = resolved.visible_peers(index);
            let with_routes = peers.iter().filter(|&&peer| routers[peer]);
            let routes = with_routes
                .map(|&peer| (ids[peer], routes_of(resolved, index, peer)))
                .filter(|(_, routes)| !routes.is_empty())
                .collect();
            let visible = peers.iter().map(|&peer| ids[peer]).collect();
            let digest = digester.digest(&resolved.node_filter(index));
            let generation = match old(id) {
                Some((generation, known)) if known == digest => generation,
                Some((generation, _)) => generation.saturating_add(1),
                None => 1,
            };
            let generation = NonZeroU32::new(generation).unwrap_or(NonZeroU32::MIN);
            (id, Arc::new(View { visible, routes, generation, digest }))
        })
        .collect()
}

/// The peer's routes that the viewer may use, without the peer's own addresses.
fn routes_of(resolved: &ResolvedPolicy, viewer: usize, peer: usize) -> Vec<IpNet> {
    let own = resolved.topology().nodes.get(peer).map(|node| node.addresses.as_slice()).unwrap_or_default();
    let mut routes = resolved.peer_allowed_prefixes(viewer, peer);
    routes.retain(|net| !own.iter().any(|address| IpNet::from(*address) == *net));
    routes.sort_unstable();
    routes
}

/// Digests filters. Large address sets are shared by many filters and digested once.
#[derive(Default)]
struct Digester {
    /// By address of the allocation, which the entry keeps alive.
    known: HashMap<*const AddrSet, (Arc<AddrSet>, [u8; 32])>,
}

/// Sets with fewer ranges are digested each time: cheaper than remembering them.
const SMALL_SET: usize = 8;

impl Digester {
    fn digest(&mut self, filter: &NodeFilter) -> FilterDigest {
        let mut hash = Sha256::new();
        for rules in [&filter.inbound, &filter.outbound] {
            hash.update((rules.len() as u64).to_be_bytes());
            for rule in rules {
                self.rule(&mut hash, rule);
            }
        }
        FilterDigest(hash.finalize().into())
    }

    fn rule(&mut self, hash: &mut Sha256, rule: &FilterRule) {
        hash.update(self.set(&rule.src));
        hash.update(self.set(&rule.dst));
        for word in rule.protocols.0 {
            hash.update(word.to_be_bytes());
        }
        hash.update((rule.ports.len() as u64).to_be_bytes());
        for range in rule.ports.iter() {
            hash.update(range.first.to_be_bytes());
            hash.update(range.last.to_be_bytes());
        }
        hash.update([rule.origin.section as u8]);
        hash.update(rule.origin.index.to_be_bytes());
        hash.update(rule.origin.line.to_be_bytes());
    }

    fn set(&mut self, set: &Arc<AddrSet>) -> [u8; 32] {
        if set.v4.len() + set.v6.len() < SMALL_SET {
            return set_digest(set);
        }
        self.known.entry(Arc::as_ptr(set)).or_insert_with(|| (set.clone(), set_digest(set))).1
    }
}

fn set_digest(set: &AddrSet) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update((set.v4.len() as u64).to_be_bytes());
    for (first, last) in &set.v4 {
        hash.update(first.to_be_bytes());
        hash.update(last.to_be_bytes());
    }
    for (first, last) in &set.v6 {
        hash.update(first.to_be_bytes());
        hash.update(last.to_be_bytes());
    }
    hash.finalize().into()
}
