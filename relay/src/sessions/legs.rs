//! Which addresses a relay sends to.
//!
//! A leg has shown that it receives at its address, so it cannot be anybody's victim. What remains are addresses
//! that mean something else to the relay than to the node: its own network, where a node could be a neighbour by
//! accident or by a trick, and the relay itself, which would send to itself in a circle.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;

use ipnet::IpNet;

use super::config::Config;

/// Says which.
#[derive(Clone, Debug)]
pub struct LegPolicy {
    allowed: Vec<IpNet>,
    own: Vec<IpAddr>,
    main_port: u16,
    ports: RangeInclusive<u16>,
}

impl LegPolicy {
    /// The policy of a configuration.
    pub fn new(config: &Config) -> Self {
        Self {
            allowed: config.allowed_legs.clone(),
            own: config.locals.iter().flat_map(|address| [address.local, address.advertised]).collect(),
            main_port: config.main_port,
            ports: config.ports.clone(),
        }
    }

    /// Whether a leg may be there.
    pub fn allows(&self, source: SocketAddr) -> bool {
        let ip = source.ip().to_canonical();
        if source.port() == 0
            || ip.is_multicast()
            || ip.is_unspecified()
            || ip == IpAddr::V4(Ipv4Addr::BROADCAST)
        {
            return false;
        }
        let own = self.own.contains(&ip);
        // A circle, which no operator can want.
        if own && (source.port() == self.main_port || self.ports.contains(&source.port())) {
            return false;
        }
        if self.allowed.iter().any(|net| net.contains(&ip)) {
            return true;
        }
        !own && is_global(ip)
    }
}

/// Whether the address is a place in the internet (IANA's special-purpose registry; documentation networks are
/// nowhere, so they do no harm).
pub fn is_global(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => is_global_v4(ip),
        IpAddr::V6(ip) => is_global_v6(ip),
    }
}

fn is_global_v4(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    !(a == 0
        || a >= 240
        || ip.is_private()
        || ip.is_loopback()
        || ip.is_link_local()
        || (a == 100 && b & 0xC0 == 64)
        || (a == 192 && b == 0 && c == 0)
        || (a == 198 && b & 0xFE == 18))
}

/// Global unicast is 2000::/3; 2002::/16 (6to4) carries an IPv4 address that would have to be judged too.
fn is_global_v6(ip: Ipv6Addr) -> bool {
    let [first, ..] = ip.segments();
    first & 0xE000 == 0x2000 && first != 0x2002
}
