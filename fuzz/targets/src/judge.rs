//! What must hold of a policy that was accepted, against any network.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ghostwire_policy::filter::Flow;
use ghostwire_policy::image::NodeContext;
use ghostwire_policy::{Policy, ResolvedPolicy, Topology};

/// Nodes of a network that are looked at; each pair costs.
const MOST_NODES: usize = 6;

/// Resolves the policy and asks everything that can be asked. True if it resolves.
pub(crate) fn policy(policy: &Policy, topology: &Topology) -> bool {
    let Ok(resolved) = policy.resolve(topology) else { return false };
    for failure in resolved.run_tests() {
        assert!(!failure.to_string().is_empty());
    }
    for user in &topology.users {
        for tag in policy.tags() {
            let _owns = (policy.may_own_tag(user, tag), policy.tag_owns_tag(tag, tag));
        }
    }
    for index in 0..topology.nodes.len().min(MOST_NODES) {
        node(&resolved, index);
    }
    true
}

fn node(resolved: &ResolvedPolicy, index: usize) {
    let filter = resolved.node_filter(index);
    crate::filter_message::check(&filter);
    for rule in filter.inbound.iter().chain(&filter.outbound) {
        let _text = resolved.policy().rule_text(rule.origin);
    }
    let node = &resolved.topology().nodes[index];
    for route in &node.advertised_routes {
        let _approved = resolved.approves_route(index, *route);
    }
    for peer in resolved.visible_peers(index) {
        assert_ne!(peer, index, "a node sees itself");
        let _allowed = resolved.peer_allowed_prefixes(index, peer);
    }
    crate::image::judge(&filter, &context(&node.addresses));
    explain(resolved, index);
}

/// An explanation and the filters of both ends say the same about flows between nodes.
fn explain(resolved: &ResolvedPolicy, from: usize) {
    let nodes = &resolved.topology().nodes;
    for (to, dst_node) in nodes.iter().enumerate().take(MOST_NODES).filter(|&(to, _)| to != from) {
        for src in &nodes[from].addresses {
            for dst in dst_node.addresses.iter().filter(|dst| dst.is_ipv4() == src.is_ipv4()) {
                for (protocol, dst_port) in [(6, 22), (17, 443), (1, 0), (47, 0)] {
                    let flow = Flow { src: *src, dst: *dst, protocol, dst_port };
                    let explained = resolved.explain(*src, *dst, protocol, dst_port);
                    assert!(!explained.to_string().is_empty());
                    let open = src != dst && is_only(nodes, *src) && is_only(nodes, *dst);
                    let admitted = resolved.node_filter(to).inbound_verdict(&flow).is_allowed();
                    assert!(!open || admitted == explained.allowed, "{flow:?}\n{explained}");
                }
            }
        }
    }
}

/// Whether the address belongs to one node, and nobody routes it: then there is one place where it is judged.
fn is_only(nodes: &[ghostwire_policy::topology::Node], address: IpAddr) -> bool {
    let owners = nodes.iter().filter(|node| node.addresses.contains(&address)).count();
    // Exit nodes route the internet, of which neither is a part.
    let private = match address {
        IpAddr::V4(v4) => v4.octets()[0] == 100 && v4.octets()[1] & 0xc0 == 64,
        IpAddr::V6(v6) => v6.octets()[0] == 0xfd,
    };
    let routed = |net: &ipnet::IpNet| net.contains(&address) && !(private && net.prefix_len() == 0);
    owners == 1 && !nodes.iter().any(|node| node.approved_routes.iter().any(routed))
}

/// A node with these addresses, its overlay around them.
pub(crate) fn context(addresses: &[IpAddr]) -> NodeContext {
    let v4 = addresses.iter().find_map(|address| match address {
        IpAddr::V4(v4) => Some(*v4),
        IpAddr::V6(_) => None,
    });
    let v6 = addresses.iter().find_map(|address| match address {
        IpAddr::V6(v6) => Some(*v6),
        IpAddr::V4(_) => None,
    });
    let dense4 = |v4: Ipv4Addr| ipnet::Ipv4Net::new_assert(v4, 16).trunc();
    let dense6 = |v6: Ipv6Addr| ipnet::Ipv6Net::new_assert(v6, 112).trunc();
    NodeContext {
        own4: v4,
        own6: v6,
        overlay4: v4.map(dense4),
        overlay6: v6.map(dense6),
        generation: 1,
        shadow: false,
        net_slot: 0,
        peers: None,
    }
}
