//! A policy against a topology: who the names are, in addresses.
//!
//! Rules share *sides*: what the same list of names stands for is worked out once, with the nodes that it
//! touches. A node's filter is put together from the sides that touch it, so it costs what it contains, not
//! what the policy contains.

mod aliases;
mod peers;
mod routes;
mod scope;

use std::collections::HashMap;
use std::sync::Arc;

use ipnet::IpNet;

use crate::alias::{Alias, AutoGroup};
use crate::error::{PolicyError, PolicyErrors};
use crate::filter::{AddrSet, FilterRule, NodeFilter, PortRange, ProtocolSet, RuleOrigin, Section};
use crate::policy::Policy;
use crate::policy_tests::TestFailure;
use crate::service::Service;
use crate::topology::Topology;

pub(crate) use aliases::People;
pub(crate) use scope::Scopes;

/// A policy resolved against a topology. Nodes are meant by their index in [`Topology::nodes`].
#[derive(Clone, Debug)]
pub struct ResolvedPolicy {
    pub(crate) policy: Policy,
    pub(crate) topology: Arc<Topology>,
    pub(crate) people: People,
    pub(crate) scopes: Scopes,
    pub(crate) sides: Vec<Side>,
    pub(crate) rules: Vec<ResolvedRule>,
    /// Rules whose destination is `autogroup:self`.
    pub(crate) own_rules: Vec<ResolvedRule>,
    /// Side → rules, as source and as destination.
    by_src: Grouped,
    by_dst: Grouped,
    /// Node → sides that touch it, as source and as destination.
    pub(crate) src_sides: Grouped,
    pub(crate) dst_sides: Grouped,
    primaries: HashMap<IpNet, usize>,
}

/// What a list of names stands for.
#[derive(Clone, Debug)]
pub(crate) struct Side {
    pub(crate) addrs: Arc<AddrSet>,
    /// The nodes that have one of the addresses, or route to one; ascending.
    pub(crate) nodes: Vec<u32>,
    /// Reached through routers with certain tags only: their own addresses are not meant.
    pub(crate) via: bool,
}

/// A rule between two sides. One policy rule may become several.
#[derive(Clone, Debug)]
pub(crate) struct ResolvedRule {
    pub(crate) origin: RuleOrigin,
    pub(crate) src: u32,
    /// For rules on `autogroup:self`, of no meaning.
    pub(crate) dst: u32,
    /// Empty: makes peers visible only.
    pub(crate) services: Arc<[Service]>,
}

/// Lists of numbers by a dense key, in one allocation.
#[derive(Clone, Debug, Default)]
pub(crate) struct Grouped {
    starts: Vec<u32>,
    items: Vec<u32>,
}

impl Grouped {
    /// Groups pairs of (key, item); keeps the order of items.
    fn new<I: Iterator<Item = (u32, u32)> + Clone>(keys: usize, pairs: I) -> Self {
        let mut starts = vec![0_u32; keys + 1];
        for (key, _) in pairs.clone() {
            starts[index(key) + 1] += 1;
        }
        for key in 0..keys {
            starts[key + 1] += starts[key];
        }
        let mut next = starts.clone();
        let mut items = vec![0; index(starts[keys])];
        for (key, item) in pairs {
            items[index(next[index(key)])] = item;
            next[index(key)] += 1;
        }
        Self { starts, items }
    }

    pub(crate) fn of(&self, key: usize) -> &[u32] {
        match (self.starts.get(key), self.starts.get(key + 1)) {
            (Some(&start), Some(&end)) => &self.items[index(start)..index(end)],
            _ => &[],
        }
    }
}

/// Numbers of nodes, sides and rules fit into 32 bits; so do they into a `usize`.
pub(crate) fn index(number: u32) -> usize {
    number as usize
}

/// The inverse of [`index`]; a policy or network with more than four thousand million entries does not exist.
pub(crate) fn number(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

static ANY: Alias = Alias::Any;
static OWN: Alias = Alias::Auto(AutoGroup::Own);

impl Policy {
    /// Works out everything that needs users and nodes.
    pub fn resolve(&self, topology: &Topology) -> Result<ResolvedPolicy, PolicyErrors> {
        check_topology(topology)?;
        let topology = Arc::new(topology.clone());
        let people = People::new(&topology);
        let scopes = Scopes::new(&topology);
        let mut sides = aliases::Sides::new(self, &topology, &people, &scopes);
        let mut rules = Vec::with_capacity(self.rules.len());
        let mut own_rules = Vec::new();
        // Equal services share memory: filters are made of references to them.
        let mut known_services: HashMap<&[Service], Arc<[Service]>> = HashMap::new();
        if self.unrestricted {
            let protocols = ProtocolSet([u64::MAX; 4]);
            let services = [Service { protocols, ports: [PortRange::ALL].into() }];
            let origin = RuleOrigin { section: Section::Default, index: 0, line: 1 };
            let (src, dst) = (sides.source([&ANY]), sides.destination([&ANY], &[]));
            rules.push(ResolvedRule { origin, src, dst, services: services.into() });
        }
        for rule in self.rules.iter() {
            let src = sides.source(&rule.src);
            for target in &rule.targets {
                let services = known_services
                    .entry(&target.services)
                    .or_insert_with(|| target.services.as_slice().into())
                    .clone();
                let resolved = ResolvedRule { origin: rule.origin, src, dst: 0, services };
                let others = || target.dst.iter().filter(|&dst| *dst != OWN);
                if target.dst.contains(&OWN) {
                    own_rules.push(resolved.clone());
                }
                if others().next().is_some() {
                    let dst = sides.destination(others(), &rule.via);
                    rules.push(ResolvedRule { dst, ..resolved });
                }
            }
        }
        let sides = sides.finish();
        let numbered = || rules.iter().zip(0_u32..);
        let by_src = Grouped::new(sides.len(), numbered().map(|(rule, number)| (rule.src, number)));
        let by_dst = Grouped::new(sides.len(), numbered().map(|(rule, number)| (rule.dst, number)));
        let touching = |used: &Grouped| {
            let used: Vec<u32> =
                (0..sides.len()).filter(|&side| !used.of(side).is_empty()).map(number).collect();
            let pairs =
                used.iter().flat_map(|&side| sides[index(side)].nodes.iter().map(move |&node| (node, side)));
            Grouped::new(topology.nodes.len(), pairs)
        };
        let (src_sides, dst_sides) = (touching(&by_src), touching(&by_dst));
        let primaries = routes::first_routers(&topology);
        let policy = self.clone();
        Ok(ResolvedPolicy {
            policy,
            topology,
            people,
            scopes,
            sides,
            rules,
            own_rules,
            by_src,
            by_dst,
            src_sides,
            dst_sides,
            primaries,
        })
    }

    /// Resolves and runs the policy's own tests; empty: all passed.
    pub fn run_tests(&self, topology: &Topology) -> Vec<TestFailure> {
        match self.resolve(topology) {
            Ok(resolved) => resolved.run_tests(),
            Err(errors) => vec![TestFailure::unresolved(&errors)],
        }
    }
}

/// Two nodes with one address would get each other's permissions.
fn check_topology(topology: &Topology) -> Result<(), PolicyErrors> {
    let mut owners = HashMap::new();
    for node in &topology.nodes {
        for &addr in &node.addresses {
            if let Some(other) = owners.insert(addr, &node.name) {
                let message = format!("nodes \"{other}\" and \"{}\" have the same address {addr}", node.name);
                return Err(PolicyErrors::from(PolicyError {
                    line: 0,
                    column: 0,
                    path: String::new(),
                    snippet: String::new(),
                    message,
                    hint: Some("the topology is wrong, not the policy".to_owned()),
                }));
            }
        }
    }
    Ok(())
}

impl ResolvedPolicy {
    /// The topology that it was resolved against.
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// The policy that was resolved.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// What the node enforces. Rules are in the order of the policy.
    pub fn node_filter(&self, node: usize) -> NodeFilter {
        let Some(scope) = self.scopes.get(node) else { return NodeFilter::default() };
        let here = |side: &Side| if side.via { Arc::clone(&scope.routes) } else { Arc::clone(&scope.all) };
        let (rules, dst) = self.rules_by_number(self.dst_sides.of(node), &self.by_dst, here);
        let mut inbound = Vec::with_capacity(rules.len());
        for (rule, at) in rules {
            let rule = &self.rules[index(rule)];
            push(&mut inbound, rule, &self.sides[index(rule.src)].addrs, &dst[index(at)]);
        }
        let (rules, src) =
            self.rules_by_number(self.src_sides.of(node), &self.by_src, |_| Arc::clone(&scope.all));
        let mut outbound = Vec::with_capacity(rules.len());
        for (rule, at) in rules {
            let rule = &self.rules[index(rule)];
            push(&mut outbound, rule, &src[index(at)], &self.sides[index(rule.dst)].addrs);
        }
        let mut filter = NodeFilter { inbound, outbound };
        self.own_filter(node, &mut filter);
        filter
    }

    /// The rules of some sides in the order of the policy, each with the index of what its side means here.
    fn rules_by_number(
        &self,
        sides: &[u32],
        rules_of: &Grouped,
        here: impl Fn(&Side) -> Arc<AddrSet>,
    ) -> (Vec<(u32, u32)>, Vec<Arc<AddrSet>>) {
        let mut rules = Vec::with_capacity(sides.iter().map(|&side| rules_of.of(index(side)).len()).sum());
        let mut sets = Vec::with_capacity(sides.len());
        for (&side, at) in sides.iter().zip(0_u32..) {
            rules.extend(rules_of.of(index(side)).iter().map(|&rule| (rule, at)));
            let side = &self.sides[index(side)];
            sets.push(Arc::new(side.addrs.intersection(&here(side))));
        }
        rules.sort_unstable();
        (rules, sets)
    }

    pub(crate) fn rules_from(&self, side: u32) -> impl Iterator<Item = &ResolvedRule> {
        self.by_src.of(index(side)).iter().map(|&rule| &self.rules[index(rule)])
    }

    pub(crate) fn rules_to(&self, side: u32) -> impl Iterator<Item = &ResolvedRule> {
        self.by_dst.of(index(side)).iter().map(|&rule| &self.rules[index(rule)])
    }

    /// What a name stands for.
    pub(crate) fn addresses(&self, alias: &Alias, as_source: bool) -> AddrSet {
        aliases::addresses(alias, as_source, &self.policy, &self.topology, &self.people, &self.scopes)
    }

    /// The part of a filter that `autogroup:self` makes.
    fn own_filter(&self, node: usize, filter: &mut NodeFilter) {
        if self.own_rules.is_empty() {
            return;
        }
        let Some((_, family)) = self.people.family(&self.topology, node) else { return };
        let Some(scope) = self.scopes.get(node) else { return };
        for rule in &self.own_rules {
            let src = Arc::new(self.sides[index(rule.src)].addrs.intersection(family));
            push(&mut filter.inbound, rule, &src, &scope.own);
            let src = Arc::new(src.intersection(&scope.own));
            push(&mut filter.outbound, rule, &src, family);
        }
        filter.inbound.sort_by_key(|rule| rule.origin);
        filter.outbound.sort_by_key(|rule| rule.origin);
    }
}

fn push(rules: &mut Vec<FilterRule>, rule: &ResolvedRule, src: &Arc<AddrSet>, dst: &Arc<AddrSet>) {
    if src.is_empty() || dst.is_empty() {
        return;
    }
    rules.extend(rule.services.iter().map(|service| FilterRule {
        src: Arc::clone(src),
        dst: Arc::clone(dst),
        protocols: service.protocols,
        ports: Arc::clone(&service.ports),
        origin: rule.origin,
    }));
}
