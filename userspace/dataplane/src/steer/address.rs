//! Names and addresses: peers, the synthetic addresses that stand for them, and what cannot be a path's far end.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ghostwire_ebpf_abi::steer::{OWN4, OWN6, PEERS4, PEERS6, STABLE_PORT};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::SteerError;

/// A peer, by the low 16 bits of its overlay address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId(pub u16);

impl PeerId {
    /// The peer with an overlay address. `None`: no node has that one.
    pub fn of(overlay: IpAddr) -> Option<Self> {
        let number = match overlay {
            IpAddr::V4(v4) => u16::from_be_bytes([v4.octets()[2], v4.octets()[3]]),
            IpAddr::V6(v6) => v6.segments()[7],
        };
        (number != 0).then_some(Self(number))
    }

    /// Where WireGuard sends what is for the peer, in a family.
    pub fn stable_endpoint(self, family: Family) -> SocketAddr {
        let address = match family {
            Family::V4 => {
                let bits = u32::from(PEERS4) << 16 | u32::from(self.0);
                IpAddr::V4(Ipv4Addr::from_bits(bits))
            }
            Family::V6 => {
                let mut octets = [0; 16];
                octets[..PEERS6.len()].copy_from_slice(&PEERS6);
                octets[PEERS6.len()..].copy_from_slice(&self.0.to_be_bytes());
                IpAddr::V6(octets.into())
            }
        };
        SocketAddr::new(address, STABLE_PORT)
    }

    /// The peer that a synthetic address stands for.
    pub(super) fn of_synthetic(address: IpAddr) -> Option<Self> {
        let number = match address {
            IpAddr::V4(v4) if v4.to_bits() >> 16 == u32::from(PEERS4) => v4.to_bits() & 0xffff,
            IpAddr::V6(v6) if v6.octets().starts_with(&PEERS6) => u32::from(v6.segments()[7]),
            _ => return None,
        };
        u16::try_from(number).ok().filter(|number| *number != 0).map(Self)
    }
}

impl fmt::Display for PeerId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// Family of the stable endpoints. Either carries paths of both families; within one family a packet costs less.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4, which every kernel has.
    #[default]
    V4,
    /// IPv6.
    V6,
}

/// Kinds of path, as traffic is counted. For these programs no more than a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// WireGuard's own datagrams from node to node.
    Direct = 0,
    /// Inside of QUIC.
    Quic = 1,
    /// Through a relay's UDP port.
    RelayPort = 2,
    /// Through a relay's TLS stream.
    Derp = 3,
}

impl Class {
    /// All of them, by number.
    pub const ALL: [Self; 4] = [Self::Direct, Self::Quic, Self::RelayPort, Self::Derp];

    /// By number; what is unknown counts as the last.
    pub(super) fn from_number(number: u16) -> Self {
        Self::ALL.get(usize::from(number)).copied().unwrap_or(Self::Derp)
    }
}

/// Our end of the synthetic networks.
pub(super) fn own(family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::from(OWN4),
        Family::V6 => IpAddr::from(OWN6),
    }
}

/// The synthetic networks: 198.18.0.0/15 and the first 64 bits of [`OWN6`].
pub(super) fn network(family: Family) -> IpNet {
    match family {
        Family::V4 => IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::from_bits(u32::from(PEERS4) << 16), 15)),
        Family::V6 => IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::from(OWN6), 64).trunc()),
    }
}

/// Refuses what cannot be a path's far end.
pub(super) fn check_remote(remote: SocketAddr) -> Result<(), SteerError> {
    let ip = remote.ip();
    let reason = if [Family::V4, Family::V6].iter().any(|family| network(*family).contains(&ip)) {
        "a synthetic address"
    } else if ip.is_unspecified() || remote.port() == 0 {
        "nobody's"
    } else if ip.is_multicast() || matches!(ip, IpAddr::V4(v4) if v4.is_broadcast()) {
        "everybody's"
    } else if ip.is_loopback() {
        "this host"
    } else if matches!(ip, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some()) {
        "an IPv4 address in IPv6's dress"
    } else {
        return Ok(());
    };
    Err(SteerError::Loop { remote, reason })
}

/// An address as it lies in a packet, IPv4 in the first word.
pub(super) fn words(address: IpAddr) -> [u32; 4] {
    match address {
        IpAddr::V4(v4) => [u32::from_ne_bytes(v4.octets()), 0, 0, 0],
        IpAddr::V6(v6) => words_of(v6.octets()),
    }
}

/// An address as it lies in a packet, IPv4 as IPv4-mapped.
pub(super) fn mapped(address: IpAddr) -> [u32; 4] {
    match address {
        IpAddr::V4(v4) => words_of(v4.to_ipv6_mapped().octets()),
        IpAddr::V6(v6) => words_of(v6.octets()),
    }
}

fn words_of(octets: [u8; 16]) -> [u32; 4] {
    let mut words = [0; 4];
    for (word, bytes) in words.iter_mut().zip(octets.chunks_exact(4)) {
        *word = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    }
    words
}

/// An address from a packet's words.
pub(super) fn address(words: [u32; 4], is_ipv4: bool) -> IpAddr {
    if is_ipv4 {
        return IpAddr::from(words[0].to_ne_bytes());
    }
    let mut octets = [0; 16];
    for (bytes, word) in octets.chunks_exact_mut(4).zip(words) {
        bytes.copy_from_slice(&word.to_ne_bytes());
    }
    IpAddr::from(octets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_has_one_number_in_all_its_addresses() {
        let peer = PeerId::of("100.64.1.2".parse().unwrap()).unwrap();
        assert_eq!(peer, PeerId(0x0102));
        assert_eq!(PeerId::of("fd00:1:2::102".parse().unwrap()), Some(peer));
        assert_eq!(peer.stable_endpoint(Family::V4).to_string(), "198.18.1.2:51820");
        for family in [Family::V4, Family::V6] {
            let endpoint = peer.stable_endpoint(family).ip();
            assert_eq!(PeerId::of_synthetic(endpoint), Some(peer));
            assert!(network(family).contains(&endpoint) && network(family).contains(&own(family)));
            assert_eq!(PeerId::of_synthetic(own(family)), None);
        }
        assert_eq!(PeerId::of("100.64.0.0".parse().unwrap()), None);
    }

    #[test]
    fn a_far_end_is_somebody_else() {
        for bad in [
            "198.18.0.3:51820",
            "198.19.0.1:1",
            "[fd67:7773:7465:6572::3]:51820",
            "0.0.0.0:1",
            "192.0.2.1:0",
            "224.0.0.1:1",
            "255.255.255.255:1",
            "127.0.0.1:1",
            "[::1]:1",
            "[ff02::1]:1",
            "[::ffff:192.0.2.1]:1",
        ] {
            assert!(check_remote(bad.parse().unwrap()).is_err(), "{bad}");
        }
        for good in ["192.0.2.1:51820", "10.0.0.1:1", "[2001:db8::1]:7", "[fe80::1]:7", "198.17.0.1:1"] {
            check_remote(good.parse().unwrap()).unwrap();
        }
    }

    #[test]
    fn addresses_go_into_words_and_back() {
        for text in ["192.0.2.1", "2001:db8::1", "fe80::a:b"] {
            let ip: IpAddr = text.parse().unwrap();
            assert_eq!(address(words(ip), ip.is_ipv4()), ip);
        }
        assert_eq!(address(mapped("192.0.2.1".parse().unwrap()), false).to_string(), "::ffff:192.0.2.1");
    }
}
