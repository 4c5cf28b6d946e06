//! The network that a policy is resolved against.

pub(crate) mod json;

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

pub use json::{TopologyError, from_json};

use crate::filter::AddrSet;

/// Users, nodes and address ranges.
#[derive(Clone, Debug, Default)]
pub struct Topology {
    /// Logins, e.g. `alice@example.com`.
    pub users: Vec<User>,
    /// All nodes. Their order is the caller's; results refer to nodes by index into this list.
    pub nodes: Vec<Node>,
    /// Address ranges of the overlay.
    pub overlay: Overlay,
}

/// A person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Login, e.g. `alice@example.com`.
    pub login: String,
    /// Groups that the identity provider asserts, without the `group:` prefix.
    pub groups: Vec<String>,
}

/// The overlay's address ranges, which `*` as a source stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlay {
    /// IPv4 range, `100.64.0.0/10` by default.
    pub v4: Ipv4Net,
    /// Parts of `v4` that are not the overlay's (`100.115.92.0/23` is used by ChromeOS, and excluded by
    /// Tailscale's meaning of `*`).
    pub v4_excluded: Vec<Ipv4Net>,
    /// IPv6 unique local prefix.
    pub v6: Ipv6Net,
}

impl Default for Overlay {
    fn default() -> Self {
        Self {
            v4: Ipv4Net::new_assert([100, 64, 0, 0].into(), 10),
            v4_excluded: vec![Ipv4Net::new_assert([100, 115, 92, 0].into(), 23)],
            v6: Ipv6Net::new_assert(
                "fd7a:115c:a1e0::".parse().unwrap_or(std::net::Ipv6Addr::UNSPECIFIED),
                48,
            ),
        }
    }
}

/// A machine in the mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Unique name.
    pub name: String,
    /// Login of the owner; `None` for a node that only its tags own.
    pub user: Option<String>,
    /// Tags, with the `tag:` prefix. A tagged node does not count as its user's.
    pub tags: Vec<String>,
    /// Overlay addresses, at most one of each family.
    pub addresses: Vec<IpAddr>,
    /// Prefixes the node offers to route.
    pub advertised_routes: Vec<IpNet>,
    /// The advertised prefixes that were approved; `0.0.0.0/0` and `::/0` make an exit node.
    pub approved_routes: Vec<IpNet>,
}

impl Node {
    /// Whether its tags own it, rather than its user.
    pub fn is_tagged(&self) -> bool {
        !self.tags.is_empty()
    }

    /// The user whose node it counts as: none for tagged nodes.
    pub fn owner(&self) -> Option<&str> {
        if self.is_tagged() { None } else { self.user.as_deref() }
    }
}

impl Overlay {
    /// All of the overlay's addresses.
    pub fn addresses(&self) -> AddrSet {
        let excluded = AddrSet::from_nets(self.v4_excluded.iter().copied().map(IpNet::V4));
        AddrSet::from_nets([IpNet::V4(self.v4), IpNet::V6(self.v6)]).difference(&excluded)
    }
}
