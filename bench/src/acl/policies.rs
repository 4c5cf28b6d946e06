//! Policies of a given size: rule `i` lets one peer reach one UDP port of this node.

use std::net::Ipv4Addr;
use std::sync::Arc;

use anyhow::{Context, Result};
use ghostwire_dataplane::acl::Image;
use ghostwire_policy::filter::{
    AddrSet, FilterRule, NodeFilter, PortRange, ProtocolSet, RuleOrigin, Section,
};
use ghostwire_policy::image::{NodeContext, compile};

/// This node.
pub const OWN: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 2);
const UDP: u8 = 17;
const FIRST_PORT: u32 = 10_000;

/// Where the peers' addresses are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peers {
    /// In the overlay: found by index.
    Overlay,
    /// Behind subnet routers: found in a trie.
    Subnets,
}

/// Address of a peer.
pub fn peer(peers: Peers, number: u32) -> Ipv4Addr {
    match peers {
        Peers::Overlay => Ipv4Addr::from(u32::from(Ipv4Addr::new(100, 64, 0, 3)) + number),
        Peers::Subnets => Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 0, 0, 1)) + number * 16),
    }
}

/// The addresses and ports that a policy allows, one pair for each rule.
pub fn pairs(rules: u32, count: u32, peers: Peers) -> Vec<(Ipv4Addr, u16)> {
    (0..rules)
        .map(|rule| {
            let port = FIRST_PORT + (rule / count + rule * 7) % 1000.max(rules / count);
            (peer(peers, rule % count), u16::try_from(port).unwrap_or(u16::MAX))
        })
        .collect()
}

/// The compiled policy.
pub fn image(rules: u32, count: u32, peers: Peers, generation: u32) -> Result<Image> {
    let own = Arc::new(AddrSet::from_addrs([OWN.into()]));
    let inbound = (0..)
        .zip(pairs(rules, count, peers))
        .map(|(index, (src, port))| FilterRule {
            src: Arc::new(AddrSet::from_addrs([src.into()])),
            dst: Arc::clone(&own),
            protocols: ProtocolSet::of([UDP]),
            ports: Arc::from([PortRange { first: port, last: port }]),
            origin: RuleOrigin { section: Section::Acls, index, line: index + 1 },
        })
        .collect();
    let filter = NodeFilter { inbound, outbound: Vec::new() };
    let context = NodeContext {
        own4: Some(OWN),
        own6: None,
        overlay4: Some("100.64.0.0/16".parse()?),
        overlay6: None,
        generation,
        shadow: false,
        net_slot: 0,
        peers: Some(Arc::new(AddrSet::from_addrs((0..count).map(|number| peer(peers, number).into())))),
    };
    let compiled = compile(&filter, &context).context("compiling the benchmark's policy")?;
    Ok(Image { words: compiled.words, remote_nets: compiled.remote_nets, local_nets: compiled.local_nets })
}
