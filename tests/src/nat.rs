//! Networks that a host can be in, as nftables on real routers makes them (RFC 4787 in brackets).
//!
//! ```text
//!   host                router                     the internet
//!   eth0 10.n.0.2 ───── lan 10.n.0.1 | eth0 192.0.2.x ───── bridge
//! ```

use std::fmt;

use anyhow::{Context, Result};

use crate::netns::Netns;
use crate::process::check_in;

/// The port of WireGuard on every host.
const PORT: u16 = 51820;

/// What is between a host and the internet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Network {
    /// Nothing.
    Public,
    /// A NAT that keeps the port where it can and lets in whom was sent to (endpoint-independent mapping in effect,
    /// address- and port-dependent filtering): Linux's masquerading.
    PortPreserving,
    /// A NAT that uses one other port and lets in everybody (endpoint-independent mapping and filtering).
    EndpointIndependent,
    /// A NAT that uses a new random port for every destination (address- and port-dependent mapping).
    Symmetric,
    /// A port-preserving NAT behind another one.
    Double,
    /// A port-preserving NAT that drops UDP.
    UdpBlocked,
    /// No NAT, and no IPv4.
    Ipv6Only,
    /// No NAT, and a firewall on the host itself that lets in only answers.
    Firewalled,
}

impl Network {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Public,
        Self::PortPreserving,
        Self::EndpointIndependent,
        Self::Symmetric,
        Self::Double,
        Self::UdpBlocked,
        Self::Ipv6Only,
        Self::Firewalled,
    ];

    /// Whether theory allows two such networks a direct path.
    pub fn can_be_direct(self, other: Self) -> bool {
        use Network::{
            Double, EndpointIndependent, Firewalled, Ipv6Only, PortPreserving, Public, Symmetric, UdpBlocked,
        };
        let v6 = |network| matches!(network, Ipv6Only | Public | Firewalled);
        match (self, other) {
            (UdpBlocked, _) | (_, UdpBlocked) => false,
            (Ipv6Only, other) | (other, Ipv6Only) => v6(other),
            // The mapping cannot be known, and the other side's filter wants to know it.
            (Symmetric, PortPreserving | Symmetric | Double) | (PortPreserving | Double, Symmetric) => false,
            // Who is reached by whom was sent to learns the port from the first packet.
            (Symmetric, Public | EndpointIndependent) | (Public | EndpointIndependent, Symmetric) => true,
            // A firewall that is stateful by address and port.
            (Symmetric, Firewalled) | (Firewalled, Symmetric) => false,
            _ => true,
        }
    }

    fn is_behind_nat(self) -> bool {
        !matches!(self, Self::Public | Self::Ipv6Only | Self::Firewalled)
    }

    /// How many routers there are.
    pub fn routers(self) -> u8 {
        match self {
            Self::Double => 2,
            other => u8::from(other.is_behind_nat()),
        }
    }

    /// Makes a router of `netns` whose outer link is `eth0` with the address `outside`, and whose inner one is `lan`.
    /// `inside` is the host's address.
    pub fn configure(self, netns: &Netns, outside: &str, inside: &str) -> Result<()> {
        check_in(netns, "sysctl", &["-q", "-w", "net.ipv4.ip_forward=1"])?;
        let rules = match self {
            Self::EndpointIndependent => {
                let mapped = 45_000;
                format!(
                    "chain out {{ type nat hook postrouting priority srcnat;\n\
                       oifname eth0 udp sport {PORT} snat to {outside}:{mapped}\n\
                       oifname eth0 masquerade\n}}\n\
                     chain in {{ type nat hook prerouting priority dstnat;\n\
                       iifname eth0 udp dport {mapped} dnat to {inside}:{PORT}\n}}"
                )
            }
            Self::Symmetric => "chain out { type nat hook postrouting priority srcnat;\n\
                                oifname eth0 masquerade fully-random\n}"
                .to_owned(),
            _ => "chain out { type nat hook postrouting priority srcnat;\n\
                  oifname eth0 masquerade\n}"
                .to_owned(),
        };
        let udp = if self == Self::UdpBlocked { "meta l4proto udp drop" } else { "" };
        // What was not asked for does not come in: a router at home.
        let closed =
            if self == Self::EndpointIndependent { "iifname eth0 ct status dnat accept" } else { "" };
        let filter = format!(
            "chain forward {{ type filter hook forward priority filter; policy drop;\n{udp}\n\
             ct state established,related accept\niifname lan accept\n{closed}\n}}\n\
             chain input {{ type filter hook input priority filter; policy accept;\n\
             iifname eth0 ct state new udp dport != 0 drop\n}}"
        );
        nft(netns, &format!("table inet router {{\n{rules}\n{filter}\n}}"))
    }

    /// Does what is to be done on the host itself.
    pub fn configure_host(self, netns: &Netns) -> Result<()> {
        match self {
            Self::Firewalled => nft(
                netns,
                "table inet host {\nchain input { type filter hook input priority filter; policy drop;\n\
                 iifname { lo, gw0 } accept\nct state established,related accept\n\
                 icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-advert } accept\n}\n}",
            ),
            Self::Ipv6Only => netns.ip(&["-4", "address", "flush", "dev", "eth0"]).map(drop),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Public => "public",
            Self::PortPreserving => "port-preserving",
            Self::EndpointIndependent => "endpoint-indep.",
            Self::Symmetric => "symmetric",
            Self::Double => "double NAT",
            Self::UdpBlocked => "UDP blocked",
            Self::Ipv6Only => "IPv6 only",
            Self::Firewalled => "firewalled",
        })
    }
}

fn nft(netns: &Netns, rules: &str) -> Result<()> {
    check_in(netns, "nft", &[rules]).map(drop).with_context(|| format!("nft rules:\n{rules}"))
}
