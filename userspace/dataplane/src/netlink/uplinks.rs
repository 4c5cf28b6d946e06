//! Where a node can be reached on the networks around it, and the MTU those networks leave for a
//! tunnel.

use std::{collections::HashSet, net::IpAddr};

use super::{Address, Error, Link, Netlink, Route};

/// The MTU of a tunnel when nothing is known of the uplinks: Ethernet's 1500 less [`WIREGUARD_OVERHEAD`].
pub const DEFAULT_MTU: u32 = 1420;

/// IPv6 needs this much (RFC 8200 section 5); a tunnel never offers less. On uplinks that are smaller
/// still, the outer packets are fragmented.
pub const MINIMUM_MTU: u32 = 1280;

/// What WireGuard adds to a packet in the worst case: IPv6 40, UDP 8, data header 16, tag 16.
pub const WIREGUARD_OVERHEAD: u32 = 80;

/// Virtual interfaces that lead into some tunnel: their addresses are reached through it, not through
/// the network that we would announce them on.
const TUNNELS: [&str; 18] = [
    "wireguard",
    "tun",
    "ipip",
    "sit",
    "gre",
    "gretap",
    "erspan",
    "ip6gre",
    "ip6gretap",
    "ip6tnl",
    "vti",
    "vti6",
    "xfrm",
    "vxlan",
    "geneve",
    "amt",
    "ovpn",
    "nlmon",
];

/// Interface names of container and virtual machine networks inside this host.
const INTERNAL_NAMES: [&str; 9] =
    ["docker", "br-", "virbr", "vmnet", "vboxnet", "lxcbr", "lxdbr", "cni", "podman"];

/// How likely an address can be reached from elsewhere, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rank {
    /// On an interface with a default route.
    Uplink,
    /// On another real network.
    Attached,
    /// On a bridge of containers or virtual machines inside this host.
    Internal,
}

/// A local address that a peer on the same network may reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalEndpoint {
    /// The address.
    pub address: IpAddr,
    /// Name of its interface.
    pub interface: String,
    /// Index of its interface.
    pub index: u32,
    /// MTU of its interface.
    pub mtu: u32,
    /// How likely it is to be of use.
    pub rank: Rank,
}

impl Netlink {
    /// The addresses that peers may reach this node at, best first. Loopback, link-local addresses,
    /// tunnels (ours and others') and interfaces that are down are left out; networks inside the host
    /// come last.
    pub fn local_endpoints(&self) -> Result<Vec<LocalEndpoint>, Error> {
        Ok(select(&self.links()?, &self.addresses()?, &self.routes()?))
    }
}

/// The MTU for a tunnel over these endpoints' interfaces: the smallest uplink less WireGuard's
/// overhead, within [`MINIMUM_MTU`] and [`DEFAULT_MTU`]. (A larger one would serve only peers on the
/// same jumbo-frame network and be fragmented on the way to all others.)
pub fn tunnel_mtu(endpoints: &[LocalEndpoint]) -> u32 {
    let smallest = |ranks: &[Rank]| {
        endpoints
            .iter()
            .filter(|endpoint| ranks.contains(&endpoint.rank) && endpoint.mtu > 0)
            .map(|endpoint| endpoint.mtu)
            .min()
    };
    smallest(&[Rank::Uplink, Rank::Attached])
        .or_else(|| smallest(&[Rank::Internal]))
        .map_or(DEFAULT_MTU, |mtu| mtu.saturating_sub(WIREGUARD_OVERHEAD).clamp(MINIMUM_MTU, DEFAULT_MTU))
}

fn select(links: &[Link], addresses: &[Address], routes: &[Route]) -> Vec<LocalEndpoint> {
    let default_routes: HashSet<u32> =
        routes.iter().filter(|route| route.destination.prefix_len() == 0).map(|route| route.index).collect();
    let mut endpoints: Vec<LocalEndpoint> = addresses
        .iter()
        .filter(|address| address.usable() && announceable(address.net.addr()))
        .filter_map(|address| {
            let link = links.iter().find(|link| link.index == address.index)?;
            Some(LocalEndpoint {
                address: address.net.addr(),
                interface: link.name.clone(),
                index: link.index,
                mtu: link.mtu,
                rank: rank(link, default_routes.contains(&link.index))?,
            })
        })
        .collect();
    // Stable order, so that an unchanged network is announced unchanged.
    endpoints.sort_by_key(|endpoint| (endpoint.rank, endpoint.index, endpoint.address));
    endpoints
}

fn announceable(address: IpAddr) -> bool {
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    !(link_local || address.is_loopback() || address.is_unspecified() || address.is_multicast())
}

/// The rank of an interface's addresses; `None` if they are not to be announced at all.
fn rank(link: &Link, default_route: bool) -> Option<Rank> {
    let tunnel = link.kind.as_deref().is_some_and(|kind| TUNNELS.contains(&kind))
        || [
            libc::ARPHRD_NONE,
            libc::ARPHRD_TUNNEL,
            libc::ARPHRD_TUNNEL6,
            libc::ARPHRD_SIT,
            libc::ARPHRD_IPGRE,
        ]
        .contains(&link.hardware);
    if !link.up || link.loopback || link.is_ours() || tunnel {
        return None;
    }
    let internal = link.kind.as_deref() == Some("bridge")
        || INTERNAL_NAMES.iter().any(|prefix| link.name.starts_with(prefix));
    Some(match (default_route, internal) {
        (true, _) => Rank::Uplink,
        (false, false) => Rank::Attached,
        (false, true) => Rank::Internal,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::OWNER_ALIAS;

    fn link(index: u32, name: &str, kind: Option<&str>, mtu: u32) -> Link {
        Link {
            index,
            name: name.to_owned(),
            kind: kind.map(str::to_owned),
            alias: None,
            mtu,
            hardware: libc::ARPHRD_ETHER,
            up: true,
            carrier: true,
            loopback: name == "lo",
            master: None,
        }
    }

    fn address(index: u32, net: &str) -> Address {
        Address { index, net: net.parse().unwrap(), flags: libc::IFA_F_PERMANENT }
    }

    #[test]
    fn uplinks_come_first_bridges_last_and_tunnels_never() {
        let mut down = link(7, "eth9", None, 1500);
        down.up = false;
        let mut own = link(8, "gw0", None, 1420);
        own.alias = Some(OWNER_ALIAS.to_owned());
        let links = [
            link(1, "lo", None, 65536),
            link(2, "docker0", Some("bridge"), 1500),
            link(3, "wg-home", Some("wireguard"), 1420),
            link(4, "eth1", None, 9000),
            link(5, "eth0", None, 1400),
            link(6, "br0", Some("bridge"), 1500),
            down,
            own,
        ];
        let mut tentative = address(5, "2001:db8::6/64");
        tentative.flags = libc::IFA_F_TENTATIVE;
        let addresses = [
            address(1, "127.0.0.1/8"),
            address(2, "172.17.0.1/16"),
            address(3, "10.9.0.2/32"),
            address(4, "10.1.0.5/24"),
            address(5, "192.0.2.7/24"),
            address(5, "fe80::1/64"),
            address(5, "2001:db8::5/64"),
            tentative,
            address(6, "10.2.0.1/24"),
            address(7, "10.3.0.1/24"),
            address(8, "100.64.0.2/32"),
        ];
        let routes = [Route {
            destination: "0.0.0.0/0".parse().unwrap(),
            index: 5,
            gateway: Some("192.0.2.1".parse().unwrap()),
            source: None,
            metric: 0,
            protocol: 3,
        }];
        let endpoints = select(&links, &addresses, &routes);
        let names: Vec<String> = endpoints.iter().map(|e| format!("{} {:?}", e.address, e.rank)).collect();
        assert_eq!(
            names,
            [
                "192.0.2.7 Uplink",
                "2001:db8::5 Uplink",
                "10.1.0.5 Attached",
                "172.17.0.1 Internal",
                "10.2.0.1 Internal",
            ]
        );
        assert_eq!(tunnel_mtu(&endpoints), 1320);
    }

    #[test]
    fn a_bridge_with_the_default_route_is_an_uplink() {
        let routes = [Route::through(&link(2, "br0", None, 0), "::/0".parse().unwrap())];
        let endpoints =
            select(&[link(2, "br0", Some("bridge"), 1500)], &[address(2, "10.0.0.2/24")], &routes);
        assert_eq!(endpoints[0].rank, Rank::Uplink);
    }

    #[test]
    fn tunnel_mtu_stays_within_bounds() {
        let with = |mtu| LocalEndpoint {
            address: "192.0.2.1".parse().unwrap(),
            interface: "eth0".to_owned(),
            index: 1,
            mtu,
            rank: Rank::Uplink,
        };
        assert_eq!(tunnel_mtu(&[]), 1420);
        assert_eq!(tunnel_mtu(&[with(1500)]), 1420);
        assert_eq!(tunnel_mtu(&[with(9000)]), 1420);
        assert_eq!(tunnel_mtu(&[with(9000), with(1492)]), 1412);
        assert_eq!(tunnel_mtu(&[with(1300)]), 1280);
        assert_eq!(tunnel_mtu(&[with(40)]), 1280);
    }
}
