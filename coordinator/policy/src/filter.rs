//! The per-node filter: what one node enforces, in addresses and numbers only.
//!
//! This is what the coordinator streams to a node. Rules only admit; what no rule admits is denied; order has
//! no meaning.

use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::service;

/// What one node enforces.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeFilter {
    /// Who may open flows to this node, or through it to the subnets that it routes.
    pub inbound: Vec<FilterRule>,
    /// Which flows this node, or a host behind it, may open.
    pub outbound: Vec<FilterRule>,
}

/// One admitting rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilterRule {
    /// Sources. Shared between rules and nodes.
    pub src: Arc<AddrSet>,
    /// Destinations. Inbound rules are cut down to the node's own addresses and approved routes.
    pub dst: Arc<AddrSet>,
    /// IANA protocol numbers.
    pub protocols: ProtocolSet,
    /// Destination ports; ignored for protocols without ports. A rule that links two addresses for ICMP
    /// admits ICMP whatever its ports are.
    pub ports: Arc<[PortRange]>,
    /// Where in the policy text it comes from.
    pub origin: RuleOrigin,
}

/// A set of addresses: sorted, disjoint, non-adjacent inclusive ranges for each family.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct AddrSet {
    /// IPv4 ranges as big-endian numbers (`u32::from`).
    pub v4: Vec<(u32, u32)>,
    /// IPv6 ranges as big-endian numbers (`u128::from`).
    pub v6: Vec<(u128, u128)>,
}

/// Inclusive range of destination ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PortRange {
    /// Lowest port.
    pub first: u16,
    /// Highest port.
    pub last: u16,
}

/// A set of IANA protocol numbers, as 256 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ProtocolSet(pub [u64; 4]);

/// The part of the policy that a rule was written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Section {
    /// `acls`
    Acls,
    /// `grants`
    Grants,
    /// No `acls` and no `grants` in the policy: everything is allowed.
    Default,
}

/// Names a rule in the policy text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RuleOrigin {
    /// Which list.
    pub section: Section,
    /// Index in that list, from 0.
    pub index: u32,
    /// Line of the rule's opening brace, from 1.
    pub line: u32,
}

/// What a filter decides about: the first packet of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Flow {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// IANA protocol number.
    pub protocol: u8,
    /// Destination port; 0 for protocols without ports.
    pub dst_port: u16,
}

/// What the reference evaluator says about a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// A rule admits it; the first one in the filter's order.
    Allowed {
        /// The rule.
        origin: RuleOrigin,
    },
    /// No rule admits it.
    Denied,
}

impl Verdict {
    /// Whether the flow passes.
    pub fn is_allowed(self) -> bool {
        matches!(self, Self::Allowed { .. })
    }
}

impl NodeFilter {
    /// Whether a remote may open the flow to this side. Slow and obvious: the reference for everything faster.
    pub fn inbound_verdict(&self, flow: &Flow) -> Verdict {
        verdict(&self.inbound, flow)
    }

    /// Whether this side may open the flow to a remote.
    pub fn outbound_verdict(&self, flow: &Flow) -> Verdict {
        verdict(&self.outbound, flow)
    }
}

fn verdict(rules: &[FilterRule], flow: &Flow) -> Verdict {
    rules
        .iter()
        .find(|rule| rule.admits(flow))
        .map_or(Verdict::Denied, |rule| Verdict::Allowed { origin: rule.origin })
}

impl FilterRule {
    /// Whether this rule admits the flow.
    pub fn admits(&self, flow: &Flow) -> bool {
        flow.src.is_ipv4() == flow.dst.is_ipv4()
            && self.src.contains(flow.src)
            && self.dst.contains(flow.dst)
            && self.admits_service(flow.protocol, flow.dst_port)
    }

    /// Whether this rule admits the protocol and port between its addresses. ICMP ignores ports; other
    /// protocols without ports need a rule for all ports.
    pub fn admits_service(&self, protocol: u8, port: u16) -> bool {
        self.protocols.contains(protocol)
            && match protocol {
                service::TCP | service::UDP | service::SCTP => {
                    self.ports.iter().any(|range| range.contains(port))
                }
                service::ICMP | service::ICMPV6 => true,
                _ => self.ports.contains(&PortRange::ALL),
            }
    }
}

impl PortRange {
    /// All ports.
    pub const ALL: Self = Self { first: 0, last: u16::MAX };

    /// Whether the port is in the range.
    pub fn contains(self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }
}

impl ProtocolSet {
    /// What a rule without a protocol is about: TCP, UDP, ICMP, ICMPv6.
    pub const DEFAULT: Self =
        Self([1 << service::TCP | 1 << service::UDP | 1 << service::ICMP | 1 << service::ICMPV6, 0, 0, 0]);

    /// These protocols.
    pub fn of<I: IntoIterator<Item = u8>>(protocols: I) -> Self {
        let mut set = Self::default();
        for protocol in protocols {
            set.insert(protocol);
        }
        set
    }

    /// Adds one.
    pub fn insert(&mut self, protocol: u8) {
        self.0[usize::from(protocol / 64)] |= 1 << (protocol % 64);
    }

    /// Whether the protocol is in the set.
    pub fn contains(self, protocol: u8) -> bool {
        self.0[usize::from(protocol / 64)] >> (protocol % 64) & 1 == 1
    }

    /// In ascending order.
    pub fn iter(self) -> impl Iterator<Item = u8> {
        (0..=u8::MAX).filter(move |&protocol| self.contains(protocol))
    }
}

impl Section {
    /// The field of the policy.
    pub fn name(self) -> &'static str {
        match self {
            Self::Acls => "acls",
            Self::Grants => "grants",
            Self::Default => "default",
        }
    }
}

impl std::fmt::Display for RuleOrigin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.section {
            Section::Default => f.write_str("no rules in the policy: everything is allowed"),
            section => write!(f, "{}[{}] (line {})", section.name(), self.index, self.line),
        }
    }
}
