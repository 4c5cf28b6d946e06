//! Random policies over a small world, so that packets and rules meet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ghostwire_dataplane::acl::Image;
use ghostwire_policy::filter::{
    AddrSet, FilterRule, NodeFilter, PortRange, ProtocolSet, RuleOrigin, Section,
};
use ghostwire_policy::image::{NodeContext, compile};
use ipnet::IpNet;
use rand::RngExt;
use rand::rngs::StdRng;

use crate::model::Rules;

pub(crate) const PORTS: [u16; 8] = [0, 22, 53, 80, 443, 8080, 40_000, 65_535];
pub(crate) const PROTOCOLS: [u8; 8] = [1, 6, 17, 58, 132, 47, 50, 0xfd];

pub(crate) fn own() -> Vec<IpAddr> {
    ["100.64.0.2", "fd7a:1:2::2"].map(parse).to_vec()
}

pub(crate) fn parse(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn net(text: &str) -> AddrSet {
    AddrSet::from_nets([text.parse::<IpNet>().unwrap()])
}

/// Sets that a rule's far side is made of.
fn remote_pieces() -> Vec<AddrSet> {
    [
        "100.64.0.3/32",
        "100.64.0.4/31",
        "100.64.1.0/24",
        "100.64.255.254/32",
        "10.1.0.0/16",
        "10.1.2.0/24",
        "10.1.2.3/32",
        "203.0.113.0/25",
        "fd7a:1:2::3/128",
        "fd7a:1:2::4/127",
        "fd7a:1:2::100/120",
        "2001:db8:1::/48",
        "2001:db8:1:2::3/128",
    ]
    .map(net)
    .to_vec()
}

/// Sets that a rule's near side is made of.
fn local_pieces() -> Vec<AddrSet> {
    let mut pieces: Vec<AddrSet> =
        ["192.168.5.0/24", "192.168.5.128/25", "192.168.6.6/32", "fd00:5::/64", "fd00:5::1:0/112"]
            .map(net)
            .to_vec();
    pieces.extend(own().into_iter().map(|addr| AddrSet::from_addrs([addr])));
    pieces
}

fn some_of(rng: &mut StdRng, pieces: &[AddrSet], chance: f64) -> AddrSet {
    AddrSet::union_of(pieces.iter().filter(|_| rng.random_bool(chance)))
}

fn rule(rng: &mut StdRng, remote: AddrSet, local: AddrSet, inbound: bool) -> FilterRule {
    let protocols = ProtocolSet::of(PROTOCOLS.into_iter().filter(|_| rng.random_bool(0.6)));
    let ports: Vec<PortRange> = if rng.random_bool(0.3) {
        vec![PortRange::ALL]
    } else {
        let mut bounds: Vec<u16> = (0..2 * rng.random_range(1..3))
            .map(|_| PORTS[rng.random_range(0..PORTS.len())].saturating_add(rng.random_range(0..2)))
            .collect();
        bounds.sort_unstable();
        // Disjoint, as the policy crate makes them.
        bounds.dedup();
        bounds.chunks_exact(2).map(|pair| PortRange { first: pair[0], last: pair[1] }).collect()
    };
    let (src, dst) = if inbound { (remote, local) } else { (local, remote) };
    FilterRule {
        src: Arc::new(src),
        dst: Arc::new(dst),
        protocols,
        ports: ports.into(),
        origin: RuleOrigin { section: Section::Acls, index: 0, line: 1 },
    }
}

/// A random policy.
pub(crate) fn random(rng: &mut StdRng, generation: u32) -> Rules {
    let (remotes, locals) = (remote_pieces(), local_pieces());
    let mut filter = NodeFilter::default();
    for inbound in [true, false] {
        let rules: Vec<FilterRule> = (0..rng.random_range(0..6))
            .map(|_| {
                let (remote, local) = (some_of(rng, &remotes, 0.4), some_of(rng, &locals, 0.5));
                rule(rng, remote, local, inbound)
            })
            .collect();
        *(if inbound { &mut filter.inbound } else { &mut filter.outbound }) = rules;
    }
    let own = own();
    let sides =
        filter.inbound.iter().map(|rule| &*rule.dst).chain(filter.outbound.iter().map(|rule| &*rule.src));
    let routed = AddrSet::union_of(sides).difference(&AddrSet::from_addrs(own.iter().copied()));
    let peers = some_of(rng, &remotes, 0.85);
    Rules { filter, own, peers, routed, generation, shadow: rng.random_bool(0.15) }
}

/// What the loader installs for a policy.
pub(crate) fn image(rules: &Rules) -> Image {
    let context = NodeContext {
        own4: Some(Ipv4Addr::new(100, 64, 0, 2)),
        own6: Some("fd7a:1:2::2".parse::<Ipv6Addr>().unwrap()),
        overlay4: Some("100.64.0.0/16".parse().unwrap()),
        overlay6: Some("fd7a:1:2::/112".parse().unwrap()),
        generation: rules.generation,
        shadow: rules.shadow,
        net_slot: 0,
        peers: Some(Arc::new(rules.peers.clone())),
    };
    let compiled = compile(&rules.filter, &context).unwrap();
    Image { words: compiled.words, remote_nets: compiled.remote_nets, local_nets: compiled.local_nets }
}
