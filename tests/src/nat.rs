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
/// First of the ports that NATs with a fixed mapping use outside.
const MAPPED: u16 = 45_000;

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
    /// A LAN of several hosts behind one port-preserving NAT that does not lead back inside (no hairpinning).
    SharedLan,
    /// Several hosts behind one NAT with fixed mappings that leads back inside (hairpinning); they cannot reach each other
    /// on the LAN, as guests of a wireless network cannot.
    SharedHairpin,
    /// A port-preserving NAT that drops UDP.
    UdpBlocked,
    /// No NAT, and no IPv4.
    Ipv6Only,
    /// No NAT, and a firewall on the host itself that lets in only answers.
    Firewalled,
}

impl Network {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Public,
        Self::PortPreserving,
        Self::EndpointIndependent,
        Self::Symmetric,
        Self::Double,
        Self::SharedLan,
        Self::SharedHairpin,
        Self::UdpBlocked,
        Self::Ipv6Only,
        Self::Firewalled,
    ];

    /// The best class of path that theory allows two such networks.
    pub fn best_class(self, other: Self) -> &'static str {
        if self.can_be_direct(other) {
            "direct"
        } else if self == Self::UdpBlocked || other == Self::UdpBlocked {
            "relay-tls"
        } else {
            "relay-udp"
        }
    }

    /// Whether theory allows two such networks a direct path.
    pub fn can_be_direct(self, other: Self) -> bool {
        // Seen from outside, a shared NAT is like one with a single host.
        let alone = |network| match network {
            Self::SharedLan => Self::PortPreserving,
            Self::SharedHairpin => Self::EndpointIndependent,
            other => other,
        };
        let has_v6 = |network| matches!(network, Self::Ipv6Only | Self::Public | Self::Firewalled);
        match (alone(self), alone(other)) {
            (Self::UdpBlocked, _) | (_, Self::UdpBlocked) => false,
            (Self::Ipv6Only, other) | (other, Self::Ipv6Only) => has_v6(other),
            // Who lets in everybody learns the port from the first packet; whoever else filters by address and port
            // would have to know a port that nobody can know.
            (Self::Symmetric, other) | (other, Self::Symmetric) => {
                matches!(other, Self::Public | Self::EndpointIndependent)
            }
            _ => true,
        }
    }

    /// Whether hosts of this kind are behind one router.
    pub fn is_shared(self) -> bool {
        matches!(self, Self::SharedLan | Self::SharedHairpin)
    }

    /// How many routers there are for each host, or for all of a shared network.
    pub fn routers(self) -> u8 {
        match self {
            Self::Public | Self::Ipv6Only | Self::Firewalled => 0,
            Self::Double => 2,
            _ => 1,
        }
    }

    /// Whether hosts on the LAN do not reach each other there.
    pub fn isolates(self) -> bool {
        self == Self::SharedHairpin
    }

    /// Makes a router of `netns` whose outer link is `eth0` with the address `outside`, and whose inner one is `lan`.
    pub fn configure(self, netns: &Netns, outside: &str) -> Result<()> {
        check_in(netns, "sysctl", &["-q", "-w", "net.ipv4.ip_forward=1"])?;
        let masquerade = match self {
            Self::Symmetric => "masquerade fully-random",
            _ => "masquerade",
        };
        for link in ["all", "lan"] {
            let redirects = format!("net.ipv4.conf.{link}.send_redirects=0");
            check_in(netns, "sysctl", &["-q", "-w", &redirects])?;
        }
        let isolate = if self.isolates() { "iifname lan oifname lan drop" } else { "" };
        let udp = if self == Self::UdpBlocked { "meta l4proto udp drop" } else { "" };
        // What was not asked for does not come in: a router at home.
        nft(
            netns,
            &format!(
                "table inet router {{\n\
                 chain fixed_out {{ }}\n\
                 chain fixed_in {{ }}\n\
                 chain out {{ type nat hook postrouting priority srcnat;\n\
                   jump fixed_out\n\
                   oifname eth0 {masquerade}\n}}\n\
                 chain in {{ type nat hook prerouting priority dstnat;\n\
                   ip daddr {outside} jump fixed_in\n}}\n\
                 chain forward {{ type filter hook forward priority filter; policy drop;\n\
                   {udp}\n\
                   ct state established,related accept\n\
                   ct status dnat accept\n\
                   {isolate}\n\
                   iifname lan accept\n}}\n\
                 chain input {{ type filter hook input priority filter; policy accept;\n\
                   iifname eth0 ct state new meta l4proto udp drop\n}}\n}}"
            ),
        )
    }

    /// Tells the router of a host behind it: the `number`th one, whose address is `inside`.
    pub fn add_inside(self, router: &Netns, outside: &str, inside: &str, number: u16) -> Result<()> {
        if !matches!(self, Self::EndpointIndependent | Self::SharedHairpin) {
            return Ok(());
        }
        let mapped = MAPPED + number;
        let from = format!("ip saddr {inside} udp sport {PORT}");
        // The second rule is the hairpin: who is behind the router sees the other by its address outside.
        nft(
            router,
            &format!(
                "add rule inet router fixed_out oifname eth0 {from} snat ip to {outside}:{mapped}\n\
                 add rule inet router fixed_out oifname lan ct status dnat {from} snat ip to {outside}:{mapped}\n\
                 add rule inet router fixed_in udp dport {mapped} dnat ip to {inside}:{PORT}"
            ),
        )
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
            Self::SharedLan => "same LAN",
            Self::SharedHairpin => "hairpin",
            Self::UdpBlocked => "UDP blocked",
            Self::Ipv6Only => "IPv6 only",
            Self::Firewalled => "firewalled",
        })
    }
}

fn nft(netns: &Netns, rules: &str) -> Result<()> {
    check_in(netns, "nft", &[rules]).map(drop).with_context(|| format!("nft rules:\n{rules}"))
}
