//! Which nodes see each other, and what each is allowed to be.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::{ResolvedPolicy, index, number};
use crate::filter::AddrSet;

impl ResolvedPolicy {
    /// The peers that the node sees: those that it may reach or that may reach it, by any rule, packets or
    /// application capabilities. Ascending; symmetric.
    pub fn visible_peers(&self, node: usize) -> Vec<usize> {
        let mut visible = vec![false; self.topology.nodes.len()];
        for partner in self.partners(node) {
            for &peer in &self.sides[index(partner)].nodes {
                visible[index(peer)] = true;
            }
        }
        self.own_peers(node, &mut visible);
        let peers = visible.iter().enumerate().filter(|&(peer, &seen)| seen && peer != node);
        peers.map(|(peer, _)| peer).collect()
    }

    /// The sides at the other ends of all rules that touch the node.
    fn partners(&self, node: usize) -> BTreeSet<u32> {
        let mut partners = BTreeSet::new();
        for &side in self.src_sides.of(node) {
            partners.extend(self.rules_from(side).map(|rule| rule.dst));
        }
        for &side in self.dst_sides.of(node) {
            partners.extend(self.rules_to(side).map(|rule| rule.src));
        }
        partners
    }

    /// Peers by `autogroup:self`: the user's other nodes.
    fn own_peers(&self, node: usize, visible: &mut [bool]) {
        if self.own_rules.is_empty() {
            return;
        }
        let Some((_, family)) = self.people.family(&self.topology, node) else { return };
        let Some(scope) = self.scopes.get(node) else { return };
        for rule in &self.own_rules {
            let src = self.sides[index(rule.src)].addrs.intersection(family);
            let reached = if src.overlaps(&scope.own) { family.as_ref() } else { &src };
            for peer in self.scopes.touched_by(reached) {
                let own = self.scopes.get(index(peer)).is_some_and(|peer| peer.own.overlaps(reached));
                visible[index(peer)] |= own;
            }
        }
    }

    /// What WireGuard at `viewer` accepts from and sends to `peer`: the peer's addresses, and those of its approved
    /// routes that a rule lets the two use. A subnet with several routers belongs to one of them at a time,
    /// its primary router. Exit routes come from every exit node: the user chooses one.
    pub fn peer_allowed_prefixes(&self, viewer: usize, peer: usize) -> Vec<IpNet> {
        let Some(node) = self.topology.nodes.get(peer) else { return Vec::new() };
        let mut prefixes: Vec<IpNet> = node.addresses.iter().map(|&addr| IpNet::from(addr)).collect();
        if node.approved_routes.is_empty() || !self.sees(viewer, peer) {
            return prefixes;
        }
        for route in &node.approved_routes {
            let route = route.trunc();
            let primary = route.prefix_len() == 0 || self.primary_router(route) == Some(peer);
            // A router that stands by for a subnet reaches it through the primary one, too.
            let stands_by = primary && route.prefix_len() > 0 && self.routes(viewer, route);
            if stands_by || self.route_is_usable(viewer, peer, route, primary) {
                prefixes.push(route);
            }
        }
        prefixes
    }

    fn routes(&self, node: usize, route: IpNet) -> bool {
        let node = self.topology.nodes.get(node);
        node.is_some_and(|node| node.approved_routes.iter().any(|approved| approved.trunc() == route))
    }

    fn sees(&self, viewer: usize, peer: usize) -> bool {
        let peer_number = number(peer);
        let linked = |side: u32| self.sides[index(side)].nodes.binary_search(&peer_number).is_ok();
        self.partners(viewer).into_iter().any(linked)
    }

    /// Whether a rule lets the viewer, or something behind it, use the route at the peer, in either direction.
    fn route_is_usable(&self, viewer: usize, peer: usize, route: IpNet, primary: bool) -> bool {
        let route = super::scope::routed(route);
        let peer = number(peer);
        let reaches = self.src_sides.of(viewer).iter().any(|&side| {
            self.rules_from(side).any(|rule| {
                let dst = &self.sides[index(rule.dst)];
                // A rule through tagged routers chooses the router itself.
                (primary || dst.via) && uses(&dst.addrs, &route) && dst.nodes.binary_search(&peer).is_ok()
            })
        });
        let reached = || {
            self.dst_sides
                .of(viewer)
                .iter()
                .any(|&side| self.rules_to(side).any(|rule| uses(&self.sides[index(rule.src)].addrs, &route)))
        };
        reaches || (primary && reached())
    }
}

fn uses(side: &AddrSet, route: &AddrSet) -> bool {
    side.overlaps(route)
}
