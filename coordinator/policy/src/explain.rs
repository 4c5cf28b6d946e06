//! Why a flow is allowed, or what would have to change.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::filter::{Flow, RuleOrigin};
use crate::resolve::{ResolvedPolicy, ResolvedRule, index};
use crate::service::{self, protocol_name};

/// How many rules that nearly fit are shown.
const MAX_NEAR: usize = 5;

/// The answer to "may this flow pass, and why".
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// The flow that was asked about.
    pub flow: Flow,
    /// Who the source is.
    pub src: Party,
    /// Who the destination is.
    pub dst: Party,
    /// Whether it passes.
    pub allowed: bool,
    /// The rules that allow it.
    pub allowed_by: Vec<RuleText>,
    /// Rules that come near, and what keeps them from allowing it; the nearest first.
    pub near: Vec<NearRule>,
    /// What stands in the way apart from rules, such as an address that no node has.
    pub obstacles: Vec<String>,
}

/// An end of a flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Party {
    /// The address.
    pub address: IpAddr,
    /// The node that has the address, or routes to it.
    pub node: Option<String>,
    /// The node's user, if it counts as a user's.
    pub user: Option<String>,
    /// The node's tags.
    pub tags: Vec<String>,
    /// Whether the address is behind the node rather than the node's own.
    pub routed: bool,
}

/// A rule and its text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleText {
    /// Which rule.
    pub origin: RuleOrigin,
    /// The rule as it is written, on one line.
    pub text: String,
}

/// A rule that does not allow a flow, but could.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NearRule {
    /// The rule.
    pub rule: RuleText,
    /// What does not fit.
    pub missing: Vec<String>,
}

impl ResolvedPolicy {
    /// Explains what the policy says about a flow. The port counts for protocols that have ports.
    pub fn explain(&self, src: IpAddr, dst: IpAddr, protocol: u8, port: u16) -> Explanation {
        let flow = Flow { src, dst, protocol, dst_port: port };
        let (src_party, dst_party) = (self.party(src), self.party(dst));
        let obstacles = obstacles(&flow, &src_party, &dst_party);
        let mut allowed_by: Vec<RuleOrigin> = Vec::new();
        let mut near: Vec<(RuleOrigin, Vec<String>)> = Vec::new();
        for (rule, own) in self.every_rule() {
            let missing = self.missing(rule, own, &flow);
            if missing.is_empty() {
                allowed_by.push(rule.origin);
            } else if missing.len() < 3 {
                near.push((rule.origin, missing));
            }
        }
        allowed_by.sort_unstable();
        allowed_by.dedup();
        let allowed_by: Vec<RuleText> = allowed_by.into_iter().map(|origin| self.rule_text(origin)).collect();
        near.retain(|_| allowed_by.is_empty());
        near.sort_by_key(|(origin, missing)| (missing.len(), *origin));
        near.dedup_by_key(|(origin, _)| *origin);
        near.truncate(MAX_NEAR);
        let near =
            near.into_iter().map(|(origin, missing)| NearRule { rule: self.rule_text(origin), missing });
        let near: Vec<NearRule> = near.collect();
        let allowed = !allowed_by.is_empty() && obstacles.is_empty();
        Explanation { flow, src: src_party, dst: dst_party, allowed, allowed_by, near, obstacles }
    }

    /// The address that a word on a command line means: an address, the name of a node, or a login or tag that
    /// one node only has. Of the family asked for where there is a choice.
    pub fn find_address(&self, word: &str, ipv6: bool) -> Option<IpAddr> {
        if let Ok(addr) = word.parse() {
            return Some(addr);
        }
        let nodes = &self.topology.nodes;
        let mut found: Vec<_> = nodes.iter().filter(|node| node.name == word).collect();
        if found.is_empty() {
            let has = |tag: &String| tag == word;
            found =
                nodes.iter().filter(|node| node.owner() == Some(word) || node.tags.iter().any(has)).collect();
        }
        let [node] = found.as_slice() else { return None };
        let mut addresses = node.addresses.iter();
        addresses.clone().find(|addr| addr.is_ipv6() == ipv6).or_else(|| addresses.next()).copied()
    }

    fn every_rule(&self) -> impl Iterator<Item = (&ResolvedRule, bool)> {
        let packets = |rule: &&ResolvedRule| !rule.services.is_empty();
        let rules = self.rules.iter().filter(packets).map(|rule| (rule, false));
        rules.chain(self.own_rules.iter().filter(packets).map(|rule| (rule, true)))
    }

    fn rule_text(&self, origin: RuleOrigin) -> RuleText {
        RuleText { origin, text: self.policy.rule_text(origin) }
    }

    /// What keeps a rule from allowing the flow.
    fn missing(&self, rule: &ResolvedRule, own: bool, flow: &Flow) -> Vec<String> {
        let mut missing = Vec::new();
        let src = &self.sides[index(rule.src)].addrs;
        if !src.contains(flow.src) {
            missing.push(format!("its sources do not include {}", flow.src));
        }
        if own {
            let family = |addr| {
                let node = self.scopes.node_at(addr)?;
                self.people.family(&self.topology, node).map(|(user, _)| &user.login)
            };
            if family(flow.dst).is_none() || family(flow.src) != family(flow.dst) {
                missing.push("autogroup:self admits the untagged nodes of one user only".to_owned());
            }
        } else {
            let dst = &self.sides[index(rule.dst)];
            if !dst.addrs.contains(flow.dst) {
                missing.push(format!("its destinations do not include {}", flow.dst));
            } else if dst.via
                && !self
                    .router_of(flow.dst)
                    .is_some_and(|node| dst.nodes.contains(&crate::resolve::number(node)))
            {
                missing.push("it holds through routers with other tags only".to_owned());
            }
        }
        let protocols_fit = rule.services.iter().any(|service| service.protocols.contains(flow.protocol));
        let fits = rule.services.iter().any(|service| {
            service.protocols.contains(flow.protocol)
                && match flow.protocol {
                    service::ICMP | service::ICMPV6 => true,
                    protocol if service::has_ports(protocol) => {
                        service.ports.iter().any(|range| range.contains(flow.dst_port))
                    }
                    _ => service.ports.contains(&crate::filter::PortRange::ALL),
                }
        });
        if !fits {
            let admitted: Vec<String> = rule.services.iter().map(ToString::to_string).collect();
            missing.push(if protocols_fit {
                format!("its ports do not include {} (it admits {})", flow.dst_port, admitted.join(", "))
            } else {
                format!(
                    "it is not about {} (it admits {})",
                    protocol_name(flow.protocol),
                    admitted.join(", ")
                )
            });
        }
        missing
    }

    /// The node that routes to an address: the primary router of the longest approved prefix.
    fn router_of(&self, addr: IpAddr) -> Option<usize> {
        let subnets = self.scopes.subnets().filter(|net| net.contains(&addr));
        let longest = subnets.max_by_key(ipnet::IpNet::prefix_len);
        if let Some(net) = longest {
            return self.primary_router(net);
        }
        let set = crate::filter::AddrSet::from_addrs([addr]);
        self.scopes.routers_to(&set).first().map(|&node| index(node))
    }

    fn party(&self, address: IpAddr) -> Party {
        let own = self.scopes.node_at(address);
        let node = own.or_else(|| self.router_of(address)).and_then(|node| self.topology.nodes.get(node));
        Party {
            address,
            node: node.map(|node| node.name.clone()),
            user: node.and_then(|node| node.owner()).map(str::to_owned),
            tags: node.map(|node| node.tags.clone()).unwrap_or_default(),
            routed: own.is_none() && node.is_some(),
        }
    }
}

/// What stands in the way apart from rules.
fn obstacles(flow: &Flow, src: &Party, dst: &Party) -> Vec<String> {
    let mut obstacles = Vec::new();
    if flow.src.is_ipv4() != flow.dst.is_ipv4() {
        obstacles.push("source and destination are of different address families".to_owned());
    }
    for party in [src, dst] {
        if party.node.is_none() {
            obstacles.push(format!(
                "no node has the address {}, and no node has an approved route to it",
                party.address
            ));
        }
    }
    if flow.src == flow.dst {
        obstacles.push("source and destination are the same".to_owned());
    }
    obstacles
}

impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.address)?;
        let Some(node) = &self.node else { return f.write_str(" (nobody's)") };
        let behind = if self.routed { "behind " } else { "" };
        write!(f, " ({behind}{node}")?;
        if let Some(user) = &self.user {
            write!(f, ", {user}")?;
        }
        for tag in &self.tags {
            write!(f, ", {tag}")?;
        }
        f.write_str(")")
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.allowed { "ALLOWED" } else { "DENIED" };
        write!(f, "{verdict}  {} -> {}", self.src, self.dst)?;
        let name = protocol_name(self.flow.protocol);
        if service::has_ports(self.flow.protocol) {
            write!(f, " port {}/{name}", self.flow.dst_port)?;
        } else {
            write!(f, " {name}")?;
        }
        for rule in &self.allowed_by {
            write!(f, "\n  by {}\n      {}", rule.origin, rule.text)?;
        }
        for obstacle in &self.obstacles {
            write!(f, "\n  {obstacle}")?;
        }
        if self.allowed_by.is_empty() {
            f.write_str("\n  no rule admits it")?;
            if !self.near.is_empty() {
                f.write_str("; these come near:")?;
            }
            for near in &self.near {
                write!(f, "\n  {}\n      {}", near.rule.origin, near.rule.text)?;
                for missing in &near.missing {
                    write!(f, "\n      - {missing}")?;
                }
            }
        }
        Ok(())
    }
}
