//! Policies of a given size: rule `i` lets one peer reach one UDP port of this node, which may reach every peer.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use anyhow::{Context, Result};
use ghostwire_dataplane::acl::Image;
use ghostwire_policy::filter::{
    AddrSet, FilterRule, NodeFilter, PortRange, ProtocolSet, RuleOrigin, Section,
};
use ghostwire_policy::image::{NodeContext, compile};

/// This node, IPv4.
pub const OWN4: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 2);
/// This node, IPv6.
pub const OWN6: Ipv6Addr = Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, 2);
const OVERLAY4: &str = "100.64.0.0/16";
const OVERLAY6: &str = "fd7a:115c:a1e0::/112";
const UDP: u8 = 17;
const FIRST_PORT: u32 = 10_000;

/// Where the peers' addresses are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peers {
    /// In the overlay: found by index.
    Overlay4,
    /// In the overlay, IPv6: found by index.
    Overlay6,
    /// Behind subnet routers: found in a table.
    Subnets4,
    /// Behind subnet routers, IPv6: found in a table.
    Subnets6,
}

impl Peers {
    /// For a table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Overlay4 => "overlay, IPv4",
            Self::Overlay6 => "overlay, IPv6",
            Self::Subnets4 => "subnets, IPv4",
            Self::Subnets6 => "subnets, IPv6",
        }
    }

    /// Address of a peer.
    pub fn address(self, number: u32) -> IpAddr {
        match self {
            Self::Overlay4 => Ipv4Addr::from(u32::from(OWN4) + 1 + number).into(),
            Self::Overlay6 => Ipv6Addr::from(u128::from(OWN6) + 1 + u128::from(number)).into(),
            Self::Subnets4 => Ipv4Addr::from(0x0a00_0001 + number * 16).into(),
            Self::Subnets6 => {
                Ipv6Addr::from((0x2001_0db8_u128 << 96) + (u128::from(number) << 64) + 1).into()
            }
        }
    }

    /// This node's address of the same family.
    pub fn own(self) -> IpAddr {
        match self {
            Self::Overlay4 | Self::Subnets4 => OWN4.into(),
            Self::Overlay6 | Self::Subnets6 => OWN6.into(),
        }
    }
}

/// How big a policy is, and about whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Number of rules.
    pub rules: u32,
    /// Number of peers.
    pub peers: u32,
    /// Where they are.
    pub place: Peers,
}

impl Size {
    /// The addresses and ports that the policy lets in, one pair for each rule.
    pub fn pairs(self) -> Vec<(IpAddr, u16)> {
        let Self { rules, peers, place } = self;
        let pair = |rule: u32| {
            let port = FIRST_PORT + (rule / peers + rule * 7) % 1000.max(rules / peers);
            (place.address(rule % peers), u16::try_from(port).unwrap_or(u16::MAX))
        };
        (0..rules).map(pair).collect()
    }

    /// The compiled policy.
    pub fn image(self, generation: u32) -> Result<Image> {
        let own = Arc::new(AddrSet::from_addrs([OWN4.into(), OWN6.into()]));
        let everyone =
            Arc::new(AddrSet::from_addrs((0..self.peers).map(|number| self.place.address(number))));
        let rule = |index, src: &Arc<AddrSet>, dst: &Arc<AddrSet>, first, last| FilterRule {
            src: Arc::clone(src),
            dst: Arc::clone(dst),
            protocols: ProtocolSet::of([UDP]),
            ports: Arc::from([PortRange { first, last }]),
            origin: RuleOrigin { section: Section::Acls, index, line: index + 1 },
        };
        let inbound = (0..)
            .zip(self.pairs())
            .map(|(index, (src, port))| rule(index, &Arc::new(AddrSet::from_addrs([src])), &own, port, port));
        let outbound = vec![rule(0, &own, &everyone, 1, u16::MAX)];
        let filter = NodeFilter { inbound: inbound.collect(), outbound };
        let context = NodeContext {
            own4: Some(OWN4),
            own6: Some(OWN6),
            overlay4: Some(OVERLAY4.parse()?),
            overlay6: Some(OVERLAY6.parse()?),
            generation,
            shadow: false,
            net_slot: 0,
            peers: Some(everyone),
        };
        let compiled = compile(&filter, &context).context("compiling the benchmark's policy")?;
        Ok(Image {
            words: compiled.words,
            remote_nets: compiled.remote_nets,
            local_nets: compiled.local_nets,
        })
    }
}
