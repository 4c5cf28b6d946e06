//! What to say to a node that knows a certain state.
//!
//! Invariant, tested: a delta from `a` to `b`, applied to the snapshot of `a`, is the snapshot of `b`.

use std::collections::BTreeMap;
use std::sync::Arc;

use ghostwire_proto::{filter, v1};

use crate::model::{Network, NodeId};
use crate::view::{Extent, View, World};

/// What a node has been told.
#[derive(Clone, Debug)]
pub struct Told {
    /// Number of the world.
    pub seq: u64,
    /// The node's view in it.
    pub view: Arc<View>,
}

/// What to say.
#[derive(Debug)]
pub enum News {
    /// Nothing: the node knows all that concerns it.
    None,
    /// This, without its revisions.
    Delta(Box<v1::Delta>),
    /// Everything: the log no longer reaches back.
    Snapshot,
    /// The node was deleted.
    Gone,
}

impl World {
    /// What the node knows once it has this world's snapshot.
    pub fn told(&self, node: NodeId) -> Option<Told> {
        Some(Told { seq: self.seq, view: self.views.get(&node)?.clone() })
    }

    /// The state that revisions are counted in.
    pub fn epoch(&self) -> &str {
        &self.network.epoch
    }

    /// Everything that concerns the node.
    pub fn snapshot(&self, id: NodeId, revision: u64) -> Option<v1::Snapshot> {
        let node = self.network.nodes.get(&id)?;
        let view = self.views.get(&id)?;
        Some(v1::Snapshot {
            epoch: self.network.epoch.clone(),
            revision,
            node: Some(self.network.self_node(node)),
            peers: view.visible.iter().filter_map(|peer| self.peer(view, peer)).collect(),
            filter: self.filter(id).map(|(generation, filter)| filter::to_wire(&filter, generation)),
        })
    }

    fn peer(&self, view: &View, peer: NodeId) -> Option<v1::Peer> {
        let routes = view.routes.get(&peer).map(Vec::as_slice).unwrap_or_default();
        Some(self.network.peer(self.network.nodes.get(&peer)?, routes))
    }

    /// What is new to a node that was told `told`.
    pub fn news(&self, id: NodeId, told: &Told) -> News {
        let (Some(node), Some(view)) = (self.network.nodes.get(&id), self.views.get(&id)) else {
            return News::Gone;
        };
        if told.seq < self.log_since || told.seq > self.seq {
            return News::Snapshot;
        }
        let changed = self.changed_since(told.seq);
        let mut delta = v1::Delta::default();
        if !Arc::ptr_eq(view, &told.view) {
            delta.removed = told.view.visible.difference(&view.visible).map(|id| id.0).collect();
            if view.generation != told.view.generation {
                delta.filter =
                    self.filter(id).map(|(generation, filter)| filter::to_wire(&filter, generation));
            }
        }
        self.peers_news(&told.view, view, &changed, &mut delta);
        if changed.get(&id) == Some(&Extent::Whole) {
            delta.node = Some(self.network.self_node(node));
        }
        if delta == v1::Delta::default() { News::None } else { News::Delta(Box::new(delta)) }
    }

    fn peers_news(&self, old: &View, new: &View, changed: &BTreeMap<NodeId, Extent>, delta: &mut v1::Delta) {
        let routes_changed = |peer: &NodeId| old.routes.get(peer) != new.routes.get(peer);
        let mut whole: Vec<NodeId> = new.visible.difference(&old.visible).collect();
        if old.routes != new.routes {
            whole.extend(old.routes.keys().chain(new.routes.keys()).filter(|peer| routes_changed(peer)));
        }
        whole.extend(changed.iter().filter(|(_, extent)| **extent == Extent::Whole).map(|(peer, _)| *peer));
        whole.retain(|peer| new.visible.contains(*peer));
        whole.sort_unstable();
        whole.dedup();
        for (peer, _) in changed.iter().filter(|(_, extent)| **extent == Extent::Patch) {
            if new.visible.contains(*peer) && whole.binary_search(peer).is_err() {
                delta.patched.extend(self.network.nodes.get(peer).map(|node| Network::peer_patch(node)));
            }
        }
        delta.changed = whole.into_iter().filter_map(|peer| self.peer(new, peer)).collect();
    }

    /// The nodes that changed after the world `seq`, each with the larger extent of its changes.
    fn changed_since(&self, seq: u64) -> BTreeMap<NodeId, Extent> {
        let mut changed = BTreeMap::new();
        for change in self.log.iter().rev().take_while(|change| change.seq > seq) {
            let extent = changed.entry(change.node).or_insert(change.extent);
            *extent = change.extent.max(*extent);
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{Step, apply, fleet, steps};

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn deltas_lead_from_snapshot_to_snapshot(script in steps(), skip in 1usize..4) {
            let mut fleet = fleet();
            let mut known: BTreeMap<NodeId, (Told, v1::Snapshot)> = BTreeMap::new();
            for (index, step) in script.into_iter().enumerate() {
                fleet.apply(step);
                let world = fleet.world();
                if index % skip != 0 {
                    continue;
                }
                for id in world.network.nodes.keys() {
                    let now = world.snapshot(*id, 0).unwrap();
                    let told = world.told(*id).unwrap();
                    if let Some((before, snapshot)) = known.get(id) {
                        let mut snapshot = snapshot.clone();
                        match world.news(*id, before) {
                            News::None => {}
                            News::Delta(delta) => apply(&mut snapshot, &delta),
                            other => prop_assert!(false, "{other:?}"),
                        }
                        prop_assert_eq!(&snapshot, &now);
                    }
                    known.insert(*id, (told, now));
                }
                known.retain(|id, (before, _)| {
                    world.network.nodes.contains_key(id) || !matches!(world.news(*id, before), News::Gone)
                });
                prop_assert!(known.keys().all(|id| world.network.nodes.contains_key(id)));
            }
        }

        #[test]
        fn a_node_without_news_is_not_affected(script in steps()) {
            let mut fleet = fleet();
            for step in script {
                let before = fleet.world().clone();
                fleet.apply(step);
                let world = fleet.world();
                let affected = world.affected(&before, before.network.nodes.keys().copied());
                for id in before.network.nodes.keys() {
                    let news = world.news(*id, &before.told(*id).unwrap());
                    prop_assert!(affected.contains(id) || matches!(news, News::None), "{id}: {news:?}");
                }
            }
        }
    }

    #[test]
    fn who_was_away_for_too_long_gets_a_snapshot() {
        let mut fleet = fleet();
        let id = *fleet.world().network.nodes.keys().next().unwrap();
        let told = fleet.world().told(id).unwrap();
        for number in 0..=crate::view::LOG_LENGTH {
            fleet.apply(Step::Endpoint { node: 1, port: u16::try_from(number % 60_000 + 1).unwrap() });
        }
        assert!(matches!(fleet.world().news(id, &told), News::Snapshot));
    }
}
