//! Addresses as the table holds them.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// An IP address of either family, IPv4 as an IPv4-mapped IPv6 address: four words as they lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Ip(pub [u32; 4]);

/// The third word of an IPv4-mapped address: two bytes of zeros, two of ones.
const MAPPED: u32 = u32::from_ne_bytes([0, 0, 0xFF, 0xFF]);

impl Ip {
    /// An IPv4 address of four bytes as they lie in memory.
    #[inline(always)]
    pub const fn from_v4_word(word: u32) -> Self {
        Self([0, 0, MAPPED, word])
    }

    /// The four bytes of an IPv4 address as they lie in memory. `None`: it is an IPv6 address.
    #[inline(always)]
    pub const fn v4_word(self) -> Option<u32> {
        let [a, b, c, word] = self.0;
        if a | b == 0 && c == MAPPED { Some(word) } else { None }
    }

    /// Two words of the table.
    #[inline(always)]
    pub(crate) const fn words(self) -> [u64; 2] {
        let [a, b, c, d] = self.0;
        [a as u64 | (b as u64) << 32, c as u64 | (d as u64) << 32]
    }

    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "takes words apart")]
    pub(crate) const fn from_words([low, high]: [u64; 2]) -> Self {
        Self([low as u32, (low >> 32) as u32, high as u32, (high >> 32) as u32])
    }

    fn octets(self) -> [u8; 16] {
        let mut octets = [0; 16];
        for (bytes, word) in octets.chunks_exact_mut(4).zip(self.0) {
            bytes.copy_from_slice(&word.to_ne_bytes());
        }
        octets
    }
}

impl From<IpAddr> for Ip {
    fn from(ip: IpAddr) -> Self {
        let octets = match ip {
            IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
            IpAddr::V6(ip) => ip.octets(),
        };
        let mut words = [0; 4];
        for (word, bytes) in words.iter_mut().zip(octets.chunks_exact(4)) {
            *word = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        Self(words)
    }
}

impl From<Ipv4Addr> for Ip {
    fn from(ip: Ipv4Addr) -> Self {
        IpAddr::V4(ip).into()
    }
}

impl From<Ip> for IpAddr {
    fn from(ip: Ip) -> Self {
        Ipv6Addr::from(ip.octets()).to_canonical()
    }
}

/// An address and a UDP port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Endpoint {
    /// The address.
    pub ip: Ip,
    /// The port, in host byte order.
    pub port: u16,
}

impl From<SocketAddr> for Endpoint {
    fn from(address: SocketAddr) -> Self {
        Self { ip: address.ip().into(), port: address.port() }
    }
}

impl From<Endpoint> for SocketAddr {
    fn from(endpoint: Endpoint) -> Self {
        Self::new(endpoint.ip.into(), endpoint.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_the_table() {
        for text in ["192.0.2.1:51820", "[2001:db8::1]:1", "[::1]:65535", "0.0.0.0:0"] {
            let address: SocketAddr = text.parse().unwrap();
            let endpoint = Endpoint::from(address);
            assert_eq!(Ip::from_words(endpoint.ip.words()), endpoint.ip);
            assert_eq!(SocketAddr::from(endpoint), address);
        }
    }
}
