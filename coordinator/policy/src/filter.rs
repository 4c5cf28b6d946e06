//! The per-node filter: what one node enforces, in addresses and numbers only.
//!
//! This is what the coordinator streams to a node. Rules only admit; what no rule admits is denied; order has
//! no meaning.

use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
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
