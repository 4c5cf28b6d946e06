//! Policies and networks of any size, and how long it takes to turn them into filters and images.
//!
//! The network is a company's: a fifth of the nodes are tagged servers, the others belong to users; users are in
//! several groups; some rules name users, hosts, everyone or patterns. All of it follows from the sizes, so two
//! runs measure the same.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use ghostwire_policy::image::{self, ClassImage, NodeContext};
use ghostwire_policy::topology::{Node, Overlay, User};
use ghostwire_policy::{Policy, ResolvedPolicy, Topology};

/// Upper 112 bits of the nodes' IPv6 addresses.
const ULA: u128 = 0xfd7a_115c_a1e0 << 80;

/// How big a network and its policy are.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Number of nodes.
    pub nodes: u32,
    /// Number of rules.
    pub rules: u32,
}

impl Size {
    fn users(self) -> u32 {
        (self.nodes / 4).max(4)
    }

    fn groups(self) -> u32 {
        (self.nodes / 50).clamp(4, 200)
    }

    fn tags(self) -> u32 {
        (self.nodes / 50).clamp(4, 200)
    }
}

/// A number between 0 and `below`, from others: the same every time.
fn pick(seed: u32, salt: u32, below: u32) -> u32 {
    let mut value = u64::from(seed) << 32 | u64::from(salt);
    value = (value ^ (value >> 31)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    value = (value ^ (value >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    u32::try_from((value ^ (value >> 32)) % u64::from(below.max(1))).unwrap_or_default()
}

/// The network.
pub fn topology(size: Size) -> Topology {
    let login = |user: u32| format!("user{user}@company.com");
    let users = (0..size.users()).map(|user| User { login: login(user), groups: Vec::new() });
    let nodes = (0..size.nodes).map(|number| {
        let tagged = number % 5 == 0;
        let host = number + 2;
        Node {
            name: format!("node{number}"),
            user: (!tagged).then(|| login(pick(number, 1, size.users()))),
            tags: if tagged { vec![format!("tag:t{}", pick(number, 2, size.tags()))] } else { Vec::new() },
            addresses: vec![
                IpAddr::V4(Ipv4Addr::from(0x6440_0000 + host)),
                IpAddr::V6(Ipv6Addr::from(ULA | u128::from(host))),
            ],
            advertised_routes: Vec::new(),
            approved_routes: Vec::new(),
        }
    });
    Topology { users: users.collect(), nodes: nodes.collect(), overlay: Overlay::default() }
}

/// The policy's text. `edited` changes one rule.
pub fn policy_text(size: Size, edited: bool) -> String {
    let mut text = String::from("{\n  \"groups\": {\n");
    for group in 0..size.groups() {
        let members: Vec<String> = (0..size.users())
            .filter(|&user| (0..3).any(|way| pick(user, 10 + way, size.groups()) == group))
            .map(|user| format!("\"user{user}@company.com\""))
            .collect();
        let _ = writeln!(text, "    \"group:g{group}\": [{}],", members.join(", "));
    }
    text.push_str("  },\n  \"tagOwners\": {\n");
    for tag in 0..size.tags() {
        let _ = writeln!(text, "    \"tag:t{tag}\": [\"group:g0\"],");
    }
    text.push_str("  },\n  \"acls\": [\n");
    for rule in 0..size.rules {
        let src = match rule % 100 {
            0 => "*".to_owned(),
            1..=10 => format!("user{}@company.com", pick(rule, 20, size.users())),
            11..=15 => format!("tag:t{}", pick(rule, 21, size.tags())),
            _ => format!("group:g{}", pick(rule, 22, size.groups())),
        };
        let dst = match rule % 50 {
            7 => format!("100.64.{}.{}", pick(rule, 30, 40), pick(rule, 31, 256)),
            _ => format!("tag:t{}", pick(rule, 32, size.tags())),
        };
        let port = if edited && rule == size.rules / 2 { 1 } else { 1 + pick(rule, 40, 2_000) };
        let proto = if rule % 4 == 0 { "\"proto\": \"tcp\", " } else { "" };
        let _ = writeln!(
            text,
            "    {{\"action\": \"accept\", {proto}\"src\": [\"{src}\"], \"dst\": [\"{dst}:{port}\"]}},"
        );
    }
    text.push_str("  ],\n}\n");
    text
}

/// What was measured for one size.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    /// Longest time to compile one node's filter into an image.
    pub compile: Duration,
    /// Bytes of the largest image.
    pub image: usize,
    /// Rules of the largest filter, both directions.
    pub filter: usize,
    /// Edited text to every node's filter.
    pub all_nodes: Duration,
}

/// Builds every size's policy, compiles the images of the nodes with the most rules, and after the edit of one
/// rule makes every node's filter anew. Panics if a policy of its own making is refused.
pub fn measure(size: Size) -> Measured {
    let topology = topology(size);
    let resolved = resolve(&policy_text(size, false), &topology);
    let lengths = filters(&resolved);
    let mut busiest: Vec<usize> = (0..lengths.len()).collect();
    busiest.sort_unstable_by_key(|&node| std::cmp::Reverse(lengths[node]));
    // The busiest nodes, and ordinary ones.
    let step = (busiest.len() / 8).max(1);
    let sample: Vec<usize> = busiest.iter().take(4).chain(busiest.iter().step_by(step)).copied().collect();
    let mut measured = Measured {
        compile: Duration::ZERO,
        image: 0,
        filter: lengths[busiest[0]],
        all_nodes: Duration::ZERO,
    };
    for node in sample {
        let (image, time) = compile(&resolved, node);
        measured.compile = measured.compile.max(time);
        measured.image = measured.image.max(image.size());
    }
    let edited = policy_text(size, true);
    let start = Instant::now();
    let resolved = resolve(&edited, &topology);
    std::hint::black_box(filters(&resolved));
    measured.all_nodes = start.elapsed();
    measured
}

fn resolve(text: &str, topology: &Topology) -> ResolvedPolicy {
    let policy =
        Policy::parse(text).unwrap_or_else(|errors| panic!("the benchmark's policy is refused: {errors}"));
    policy.resolve(topology).unwrap_or_else(|errors| panic!("the benchmark's policy is refused: {errors}"))
}

/// Makes every node's filter; returns how many rules each has.
fn filters(resolved: &ResolvedPolicy) -> Vec<usize> {
    let filters =
        (0..resolved.topology().nodes.len()).map(|node| std::hint::black_box(resolved.node_filter(node)));
    filters.map(|filter| filter.inbound.len() + filter.outbound.len()).collect()
}

fn compile(resolved: &ResolvedPolicy, node: usize) -> (ClassImage, Duration) {
    let filter = resolved.node_filter(node);
    let addresses = &resolved.topology().nodes[node].addresses;
    let context = NodeContext {
        own4: addresses.iter().find_map(|addr| if let IpAddr::V4(addr) = addr { Some(*addr) } else { None }),
        own6: addresses.iter().find_map(|addr| if let IpAddr::V6(addr) = addr { Some(*addr) } else { None }),
        overlay4: "100.64.0.0/16".parse().ok(),
        overlay6: "fd7a:115c:a1e0::/112".parse().ok(),
        generation: 1,
        shadow: false,
        net_slot: 0,
        peers: None,
    };
    let start = Instant::now();
    let image = image::compile(&filter, &context).unwrap_or_else(|error| panic!("node {node}: {error}"));
    (image, start.elapsed())
}
