//! What stands behind each node: its own addresses, the subnets it routes, the internet.

use std::net::IpAddr;
use std::sync::{Arc, LazyLock};

use ipnet::IpNet;

use crate::filter::AddrSet;
use crate::topology::Topology;

/// Every node's scope, and the way back from addresses to nodes.
#[derive(Clone, Debug)]
pub(crate) struct Scopes {
    nodes: Vec<Scope>,
    v4: Vec<(u32, u32)>,
    v6: Vec<(u128, u32)>,
    /// Each approved subnet with its routers.
    subnets: Vec<(IpNet, Vec<u32>)>,
    /// Exit nodes by family: IPv4, IPv6.
    exits: [Vec<u32>; 2],
}

/// What stands behind one node.
#[derive(Clone, Debug)]
pub(crate) struct Scope {
    /// Its overlay addresses.
    pub(crate) own: Arc<AddrSet>,
    /// What it routes: approved subnets, and the internet for an exit node.
    pub(crate) routes: Arc<AddrSet>,
    /// Both.
    pub(crate) all: Arc<AddrSet>,
}

/// What `autogroup:internet` stands for: everything that is not private, shared, local or multicast.
pub(crate) static INTERNET: LazyLock<AddrSet> = LazyLock::new(|| {
    // RFC 6890 registries: this network, private use, shared address space, loopback, link-local, multicast
    // and reserved. IPv6: only the part that is allocated as global unicast, without its documentation range.
    const NOT_V4: [&str; 9] = [
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "224.0.0.0/4",
        "240.0.0.0/4",
    ];
    let all = AddrSet::from_nets(["0.0.0.0/0", "2000::/3"].iter().filter_map(|net| net.parse().ok()));
    all.difference(&AddrSet::from_nets(NOT_V4.iter().filter_map(|net| net.parse().ok())))
});

/// The addresses that an approved route stands for: `/0` means the internet, not the routers' own networks.
pub(crate) fn routed(net: IpNet) -> AddrSet {
    match net {
        IpNet::V4(net) if net.prefix_len() == 0 => AddrSet { v4: INTERNET.v4.clone(), v6: Vec::new() },
        IpNet::V6(net) if net.prefix_len() == 0 => AddrSet { v4: Vec::new(), v6: INTERNET.v6.clone() },
        net => AddrSet::from_nets([net]),
    }
}

impl Scopes {
    pub(crate) fn new(topology: &Topology) -> Self {
        let nothing = Arc::new(AddrSet::EMPTY);
        let mut scopes = Vec::with_capacity(topology.nodes.len());
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        let mut subnets: Vec<(IpNet, u32)> = Vec::new();
        let mut exits = [Vec::new(), Vec::new()];
        for (node, index) in topology.nodes.iter().zip(0_u32..) {
            for addr in &node.addresses {
                match addr {
                    IpAddr::V4(addr) => v4.push((u32::from(*addr), index)),
                    IpAddr::V6(addr) => v6.push((u128::from(*addr), index)),
                }
            }
            let own = Arc::new(AddrSet::from_addrs(node.addresses.iter().copied()));
            for route in &node.approved_routes {
                match route {
                    IpNet::V4(net) if net.prefix_len() == 0 => exits[0].push(index),
                    IpNet::V6(net) if net.prefix_len() == 0 => exits[1].push(index),
                    net => subnets.push((net.trunc(), index)),
                }
            }
            if node.approved_routes.is_empty() {
                scopes.push(Scope { all: Arc::clone(&own), own, routes: Arc::clone(&nothing) });
            } else {
                let parts: Vec<AddrSet> = node.approved_routes.iter().map(|&net| routed(net)).collect();
                let routes = Arc::new(AddrSet::union_of(&parts));
                let all = Arc::new(own.union(&routes));
                scopes.push(Scope { own, routes, all });
            }
        }
        v4.sort_unstable();
        v6.sort_unstable();
        subnets.sort_unstable();
        let mut grouped: Vec<(IpNet, Vec<u32>)> = Vec::new();
        for (net, node) in subnets {
            match grouped.last_mut() {
                Some((last, nodes)) if *last == net => nodes.push(node),
                _ => grouped.push((net, vec![node])),
            }
        }
        Self { nodes: scopes, v4, v6, subnets: grouped, exits }
    }

    pub(crate) fn get(&self, node: usize) -> Option<&Scope> {
        self.nodes.get(node)
    }

    /// The approved subnets, without exit routes.
    pub(crate) fn subnets(&self) -> impl Iterator<Item = IpNet> {
        self.subnets.iter().map(|&(net, _)| net)
    }

    /// The nodes that have one of the addresses, or route to one; ascending.
    pub(crate) fn touched_by(&self, set: &AddrSet) -> Vec<u32> {
        let mut nodes = Vec::new();
        for &(first, last) in &set.v4 {
            let start = self.v4.partition_point(|&(addr, _)| addr < first);
            nodes.extend(
                self.v4[start..].iter().take_while(|&&(addr, _)| addr <= last).map(|&(_, node)| node),
            );
        }
        for &(first, last) in &set.v6 {
            let start = self.v6.partition_point(|&(addr, _)| addr < first);
            nodes.extend(
                self.v6[start..].iter().take_while(|&&(addr, _)| addr <= last).map(|&(_, node)| node),
            );
        }
        nodes.extend(self.routers_to(set));
        nodes.sort_unstable();
        nodes.dedup();
        nodes
    }

    /// The nodes that route to one of the addresses.
    pub(crate) fn routers_to(&self, set: &AddrSet) -> Vec<u32> {
        let mut nodes = Vec::new();
        for (net, routers) in &self.subnets {
            if set.overlaps_net(*net) {
                nodes.extend_from_slice(routers);
            }
        }
        let internet = [IpNet::V4(ipnet::Ipv4Net::default()), IpNet::V6(ipnet::Ipv6Net::default())];
        for (routers, family) in self.exits.iter().zip(internet) {
            if !routers.is_empty() && routed(family).overlaps(set) {
                nodes.extend_from_slice(routers);
            }
        }
        nodes
    }

    /// The node that has the address.
    pub(crate) fn node_at(&self, addr: IpAddr) -> Option<usize> {
        let found = match addr {
            IpAddr::V4(addr) => {
                let addr = u32::from(addr);
                self.v4.binary_search_by_key(&addr, |&(key, _)| key).ok().map(|at| self.v4[at].1)
            }
            IpAddr::V6(addr) => {
                let addr = u128::from(addr);
                self.v6.binary_search_by_key(&addr, |&(key, _)| key).ok().map(|at| self.v6[at].1)
            }
        };
        found.map(super::index)
    }
}
