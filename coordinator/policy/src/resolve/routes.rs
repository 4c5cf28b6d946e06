//! Route approval, and which of several routers a subnet belongs to.

use std::collections::HashMap;

use ipnet::IpNet;

use super::ResolvedPolicy;
use crate::alias::{Alias, AutoGroup};
use crate::topology::Topology;

/// The first node of the topology that has each approved subnet.
pub(super) fn first_routers(topology: &Topology) -> HashMap<IpNet, usize> {
    let mut primaries = HashMap::new();
    for (index, node) in topology.nodes.iter().enumerate() {
        for route in node.approved_routes.iter().filter(|route| route.prefix_len() > 0) {
            primaries.entry(route.trunc()).or_insert(index);
        }
    }
    primaries
}

impl ResolvedPolicy {
    /// Whether `autoApprovers` approve that the node routes the prefix: an entry for the prefix or one that
    /// contains it names the node's tag or owner. Exit routes (`/0`) are approved by `exitNode` only.
    pub fn approves_route(&self, node: usize, route: IpNet) -> bool {
        let approved_by =
            |approvers: &[Alias]| approvers.iter().any(|approver| self.approver_is(approver, node));
        if route.prefix_len() == 0 {
            return approved_by(&self.policy.exit_approvers);
        }
        let mut entries = self.policy.route_approvers.iter().filter(|(prefix, _)| prefix.contains(&route));
        entries.any(|(_, approvers)| approved_by(approvers))
    }

    fn approver_is(&self, approver: &Alias, node: usize) -> bool {
        let Some(node) = self.topology.nodes.get(node) else { return false };
        match approver {
            Alias::Tag(tag) => node.tags.contains(tag),
            Alias::Auto(AutoGroup::Tagged) => node.is_tagged(),
            person => {
                let owner = node.owner().and_then(|login| self.people.user(login));
                owner.is_some_and(|user| self.policy.names_user(person, user))
            }
        }
    }

    /// The router that an approved subnet belongs to: the first one in the topology, unless
    /// [`Self::set_primary_router`] said otherwise.
    pub fn primary_router(&self, route: IpNet) -> Option<usize> {
        self.primaries.get(&route.trunc()).copied()
    }

    /// Moves a subnet to another of its approved routers. Returns false, and changes nothing, if the node has no
    /// approval for it.
    pub fn set_primary_router(&mut self, route: IpNet, node: usize) -> bool {
        let route = route.trunc();
        let approved = self
            .topology
            .nodes
            .get(node)
            .is_some_and(|node| node.approved_routes.iter().any(|approved| approved.trunc() == route));
        if approved {
            self.primaries.insert(route, node);
        }
        approved
    }
}
