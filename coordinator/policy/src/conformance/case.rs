//! One case.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use serde::Deserialize;

use super::meaning;
use crate::alias::Alias;
use crate::filter::{AddrSet, FilterRule, PortRange, ProtocolSet, RuleOrigin, Section};
use crate::policy::Policy;
use crate::resolve::ResolvedPolicy;
use crate::topology::json::TopologyText;
use crate::topology::{Node, Topology};

#[derive(Deserialize)]
struct Case {
    policy: String,
    #[serde(default)]
    expect: Option<BTreeMap<String, Expected>>,
    #[serde(default)]
    expect_error: Option<ExpectedError>,
}

#[derive(Deserialize)]
struct ExpectedError {
    message: String,
}

/// What a node must enforce and see.
#[derive(Deserialize)]
struct Expected {
    inbound_rules: Vec<ExpectedRule>,
    #[serde(default)]
    peers: Option<BTreeMap<String, Vec<IpNet>>>,
}

#[derive(Deserialize)]
struct ExpectedRule {
    src: Vec<String>,
    dst: Vec<ExpectedTarget>,
    #[serde(default)]
    proto: Option<Vec<u8>>,
}

#[derive(Deserialize)]
struct ExpectedTarget {
    ip: String,
    first: u16,
    last: u16,
}

/// Runs one case, given as the text of its file. The error says what is different.
pub fn run_case(text: &str) -> Result<(), String> {
    let read = |error: serde_json::Error| format!("the case cannot be read: {error}");
    let case: Case = serde_json::from_str(text).map_err(read)?;
    let topology: TopologyText = serde_json::from_str(text).map_err(read)?;
    let topology = topology.into_topology().map_err(|error| error.to_string())?;
    let result = apply(&case.policy, &topology);
    match (case.expect_error, case.expect, result) {
        (Some(expected), _, Err(message)) => {
            if message.contains(&expected.message) {
                return Ok(());
            }
            Err(format!("refused with another message\n- expected: {}\n- got: {message}", expected.message))
        }
        (Some(expected), _, Ok(_)) => Err(format!("accepted, but must be refused: {}", expected.message)),
        (None, _, Err(message)) => Err(format!("refused, but must be accepted: {message}")),
        (None, Some(expected), Ok(resolved)) => compare(&resolved, &expected),
        (None, None, Ok(_)) => Err("the case expects nothing".to_owned()),
    }
}

/// What accepting a policy comes down to: reading, resolving, its own tests.
fn apply(policy: &str, topology: &Topology) -> Result<ResolvedPolicy, String> {
    let policy = Policy::parse(policy).map_err(|errors| errors.to_string())?;
    let resolved = policy.resolve(topology).map_err(|errors| errors.to_string())?;
    let failures: Vec<String> = resolved.run_tests().iter().map(ToString::to_string).collect();
    if failures.is_empty() { Ok(resolved) } else { Err(failures.join("\n")) }
}

fn compare(resolved: &ResolvedPolicy, expected: &BTreeMap<String, Expected>) -> Result<(), String> {
    let plain = compare_policy(resolved.policy(), resolved.topology(), expected)?;
    if plain.is_empty() {
        return Ok(());
    }
    // One reading of the policy for the whole case.
    if let Some(renumbered) = without_ipv6_literals(resolved.policy(), resolved.topology())
        && compare_policy(&renumbered, resolved.topology(), expected)?.is_empty()
    {
        return Ok(());
    }
    Err(plain)
}

/// How the nodes' views differ from what is expected; empty: they do not. Each node's view was captured by itself,
/// before or after pending routes reached it.
fn compare_policy(
    policy: &Policy,
    topology: &Topology,
    expected: &BTreeMap<String, Expected>,
) -> Result<String, String> {
    let resolve = |topology: &Topology| {
        let mut resolved = policy.resolve(topology).map_err(|errors| errors.to_string())?;
        choose_primaries(&mut resolved, expected);
        Ok::<_, String>(resolved)
    };
    let before = resolve(topology)?;
    let after = with_pending_routes(&before).map(|topology| resolve(&topology)).transpose()?;
    let mut differences = String::new();
    for (name, expected) in expected {
        let Err(difference) = compare_node(&before, name, expected) else { continue };
        if after.as_ref().is_none_or(|after| compare_node(after, name, expected).is_err()) {
            let _ = writeln!(differences, "{name}: {difference}");
        }
    }
    Ok(differences)
}

/// The topology with the routes approved that nodes offer and the policy approves, if there are such.
fn with_pending_routes(resolved: &ResolvedPolicy) -> Option<Topology> {
    let mut topology = resolved.topology().clone();
    let mut changed = false;
    for (index, node) in topology.nodes.iter_mut().enumerate() {
        for &route in &node.advertised_routes {
            if !node.approved_routes.contains(&route) && resolved.approves_route(index, route) {
                node.approved_routes.push(route);
                changed = true;
            }
        }
    }
    changed.then_some(topology)
}

/// The policy without single IPv6 addresses that are nodes', if there are such and the nodes were renumbered.
fn without_ipv6_literals(policy: &Policy, topology: &Topology) -> Option<Policy> {
    if !topology.nodes.iter().all(|node| is_renumbered(node, topology)) {
        return None;
    }
    let literal = |alias: &Alias| match alias {
        Alias::Net(IpNet::V6(net)) => {
            net.prefix_len() == 128
                && topology.nodes.iter().any(|node| node.addresses.contains(&IpAddr::V6(net.addr())))
        }
        _ => false,
    };
    let mut rules = policy.rules.to_vec();
    let mut changed = false;
    for rule in &mut rules {
        let lists =
            std::iter::once(&mut rule.src).chain(rule.targets.iter_mut().map(|target| &mut target.dst));
        for list in lists {
            let before = list.len();
            list.retain(|alias| !literal(alias));
            changed |= list.len() != before;
        }
    }
    changed.then(|| Policy { rules: rules.into(), ..policy.clone() })
}

/// Whether the node's two addresses are one small number in each of the overlay's ranges. The language's own control
/// plane never numbers like that.
fn is_renumbered(node: &Node, topology: &Topology) -> bool {
    let number = |address: &IpAddr| match address {
        IpAddr::V4(v4) => u128::from(u32::from(*v4).wrapping_sub(u32::from(topology.overlay.v4.network()))),
        IpAddr::V6(v6) => u128::from(*v6).wrapping_sub(u128::from(topology.overlay.v6.network())),
    };
    let numbers: BTreeSet<u128> = node.addresses.iter().map(number).collect();
    node.addresses.len() == 2 && numbers.len() == 1 && numbers.first().is_some_and(|number| *number < 1 << 16)
}

fn compare_node(resolved: &ResolvedPolicy, name: &str, expected: &Expected) -> Result<(), String> {
    let Some(node) = resolved.topology().nodes.iter().position(|node| node.name == *name) else {
        return Err("the case expects something of it, but it is no node".to_owned());
    };
    compare_rules(resolved, node, &expected.inbound_rules)
        .map_err(|difference| format!("inbound: {difference}"))?;
    expected.peers.as_ref().map_or(Ok(()), |peers| compare_peers(resolved, node, peers))
}

fn compare_rules(resolved: &ResolvedPolicy, node: usize, expected: &[ExpectedRule]) -> Result<(), String> {
    let Some(scope) = resolved.scopes.get(node) else { return Err("no such node".to_owned()) };
    let mut rules = Vec::new();
    for rule in expected {
        rules.extend(read_rule(rule, &scope.all)?);
    }
    let ours = resolved.node_filter(node).inbound;
    match meaning::difference(&ours, &rules) {
        None => Ok(()),
        Some(difference) => Err(difference),
    }
}

/// An expected rule, cut down to what is behind the node, as ours are.
fn read_rule(rule: &ExpectedRule, here: &AddrSet) -> Result<Vec<FilterRule>, String> {
    let mut src = AddrSet::EMPTY;
    for text in &rule.src {
        src = src.union(&read_addresses(text)?);
    }
    let src = Arc::new(src);
    let protocols = rule
        .proto
        .as_ref()
        .map_or(ProtocolSet::DEFAULT, |protocols| ProtocolSet::of(protocols.iter().copied()));
    let mut rules = Vec::new();
    for target in &rule.dst {
        rules.push(FilterRule {
            src: Arc::clone(&src),
            dst: Arc::new(read_addresses(&target.ip)?.intersection(here)),
            protocols,
            ports: [PortRange { first: target.first, last: target.last }].into(),
            origin: RuleOrigin { section: Section::Default, index: 0, line: 0 },
        });
    }
    Ok(rules)
}

/// `*`, an address, a prefix, or a range with a hyphen.
fn read_addresses(text: &str) -> Result<AddrSet, String> {
    if text == "*" {
        return Ok(AddrSet::everything());
    }
    if let Some((first, last)) = text.split_once('-')
        && let (Ok(first), Ok(last)) = (first.parse::<IpAddr>(), last.parse::<IpAddr>())
        && let Some(range) = AddrSet::from_range(first, last)
    {
        return Ok(range);
    }
    let net = crate::alias::parse_net(text)
        .ok_or_else(|| format!("the case has an unreadable address \"{text}\""))?;
    Ok(AddrSet::from_nets([net]))
}

/// Makes those routers primary that the case shows as such.
fn choose_primaries(resolved: &mut ResolvedPolicy, expected: &BTreeMap<String, Expected>) {
    let mut shown: Vec<(IpNet, usize)> = Vec::new();
    let mut shown_nets = BTreeSet::new();
    for (name, prefixes) in expected.values().filter_map(|node| node.peers.as_ref()).flatten() {
        let Some(peer) = resolved.topology().nodes.iter().position(|node| node.name == *name) else {
            continue;
        };
        shown_nets.extend(prefixes.iter().copied());
        shown.extend(prefixes.iter().map(|&net| (net, peer)));
    }
    for (net, peer) in shown {
        resolved.set_primary_router(net, peer);
    }
    // A subnet that nobody is shown: its primary is a router that nobody may use it through, if there is one.
    let mut open: BTreeMap<IpNet, Vec<usize>> = BTreeMap::new();
    for (index, node) in resolved.topology().nodes.iter().enumerate() {
        for net in
            node.approved_routes.iter().filter(|net| net.prefix_len() > 0 && !shown_nets.contains(*net))
        {
            open.entry(*net).or_default().push(index);
        }
    }
    for (net, routers) in open {
        for router in routers {
            resolved.set_primary_router(net, router);
            let nodes = 0..resolved.topology().nodes.len();
            let sees = |viewer: usize| {
                resolved.visible_peers(viewer).contains(&router)
                    && resolved.peer_allowed_prefixes(viewer, router).contains(&net)
            };
            if !nodes.into_iter().any(sees) {
                break;
            }
        }
    }
}

fn compare_peers(
    resolved: &ResolvedPolicy,
    node: usize,
    expected: &BTreeMap<String, Vec<IpNet>>,
) -> Result<(), String> {
    let mut ours: BTreeMap<&str, Nets> = BTreeMap::new();
    for peer in resolved.visible_peers(node) {
        let prefixes = resolved.peer_allowed_prefixes(node, peer);
        ours.insert(&resolved.topology().nodes[peer].name, nets(&prefixes));
    }
    let mut difference = String::new();
    for name in expected.keys().map(String::as_str).chain(ours.keys().copied()).collect::<BTreeSet<_>>() {
        let theirs = expected.get(name).map(|prefixes| nets(prefixes));
        match (ours.get(name), theirs) {
            (Some(ours), Some(theirs)) if *ours != theirs => {
                let _ = writeln!(difference, "peer {name}: expected {theirs:?}, got {ours:?}");
            }
            (Some(_), Some(_)) | (None, None) => {}
            (Some(_), None) => {
                let _ = writeln!(difference, "sees peer {name}, and must not");
            }
            (None, Some(_)) => {
                let _ = writeln!(difference, "does not see peer {name}");
            }
        }
    }
    if difference.is_empty() { Ok(()) } else { Err(difference) }
}

/// Prefixes as a set.
type Nets = BTreeSet<IpNet>;

fn nets(prefixes: &[IpNet]) -> Nets {
    prefixes.iter().map(IpNet::trunc).collect()
}
