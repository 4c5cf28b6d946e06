//! Filters over a small world, so that their sets meet, and the points at which they can differ.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ghostwire_policy::filter::{
    AddrSet, FilterRule, NodeFilter, PortRange, ProtocolSet, RuleOrigin, Section,
};
use ghostwire_policy::image::NodeContext;
use proptest::prelude::*;

pub(crate) const OWN4: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 9);
pub(crate) const ULA: u128 = 0xfd7a_115c_a1e0_0000_0000_0000_0000_0000;

/// Points that rules are made of: in the overlay's dense range and at its ends, in the rest of the overlay, in
/// subnets, at the ends of the address space.
const V4: [u32; 16] = [
    0,
    0x0a00_0000,
    0x0a21_0000,
    0x0a21_00ff,
    0x643f_ffff,
    0x6440_0000,
    0x6440_0001,
    0x6440_0008,
    0x6440_0009,
    0x6440_000a,
    0x6440_00ff,
    0x6440_ffff,
    0x6441_0000,
    0x647f_ffff,
    0xc0a8_0100,
    u32::MAX,
];

fn v6(point: usize) -> u128 {
    const LOW: [u128; 8] = [0, 1, 8, 9, 10, 0xff, 0xffff, 0x1_0000];
    match point {
        0 => 0,
        1..=8 => ULA | LOW[point - 1],
        9 => ULA - 1,
        10 => 0x2001_0db8 << 96,
        11 => (0x2001_0db8 << 96) + 0xffff,
        12 => 0x2000 << 112,
        13 => 0xfd00_0001 << 96,
        14 => u128::MAX - 1,
        _ => u128::MAX,
    }
}

prop_compose! {
    pub(crate) fn addr_set()(ranges in proptest::collection::vec((0_usize..16, 0_usize..3, any::<[bool; 2]>()), 0..4)) -> Arc<AddrSet> {
        let (mut in_v4, mut in_v6) = (Vec::new(), Vec::new());
        for (first, length, families) in ranges {
            let last = (first + length).min(15);
            if families[0] {
                in_v4.push((V4[first], V4[last]));
            }
            if families[1] {
                let (a, b) = (v6(first), v6(last));
                in_v6.push((a.min(b), a.max(b)));
            }
        }
        Arc::new(AddrSet::from_ranges(in_v4, in_v6))
    }
}

prop_compose! {
    pub(crate) fn rule()(
        src in addr_set(), dst in addr_set(), index in 0_u32..100,
        protocols in proptest::collection::vec(prop::sample::select(vec![1_u8, 6, 17, 47, 58, 132, 255, 0]), 1..4),
        ports in prop_oneof![
            Just(vec![PortRange::ALL]),
            proptest::collection::vec((any::<u16>(), 0_u16..3), 0..3).prop_map(|ranges| {
                let mut ports: Vec<PortRange> = ranges.into_iter()
                    .map(|(first, length)| PortRange { first, last: first.saturating_add(length) }).collect();
                ports.sort_unstable();
                ports
            }),
            prop::sample::select(vec![(0, 0), (22, 22), (80, 443), (u16::MAX, u16::MAX), (1, u16::MAX)])
                .prop_map(|(first, last)| vec![PortRange { first, last }]),
        ],
    ) -> FilterRule {
        let origin = RuleOrigin { section: Section::Acls, index, line: index };
        FilterRule { src, dst, protocols: ProtocolSet::of(protocols), ports: ports.into(), origin }
    }
}

prop_compose! {
    pub(crate) fn filter()(inbound in proptest::collection::vec(rule(), 0..4), outbound in proptest::collection::vec(rule(), 0..4))
        -> NodeFilter {
        NodeFilter { inbound, outbound }
    }
}

pub(crate) fn context(peers: Option<Arc<AddrSet>>) -> NodeContext {
    NodeContext {
        own4: Some(OWN4),
        own6: Some(Ipv6Addr::from(ULA | 9)),
        overlay4: Some("100.64.0.0/16".parse().unwrap()),
        overlay6: Some("fd7a:115c:a1e0::/112".parse().unwrap()),
        generation: 7,
        shadow: false,
        net_slot: 1,
        peers,
    }
}

/// Every boundary of every set, one below and one above it.
pub(crate) fn addresses(filter: &NodeFilter) -> (Vec<IpAddr>, Vec<IpAddr>) {
    let (mut in_v4, mut in_v6) = (BTreeSet::from([u32::from(OWN4)]), BTreeSet::from([ULA | 9]));
    for rule in filter.inbound.iter().chain(&filter.outbound) {
        for set in [&rule.src, &rule.dst] {
            for &(first, last) in &set.v4 {
                in_v4.extend([first.saturating_sub(1), first, last, last.saturating_add(1)]);
            }
            for &(first, last) in &set.v6 {
                in_v6.extend([first.saturating_sub(1), first, last, last.saturating_add(1)]);
            }
        }
    }
    // IPv4-mapped addresses do not exist on the wire.
    in_v6.retain(|addr| addr >> 32 != 0xffff);
    (
        in_v4.into_iter().map(|addr| IpAddr::V4(addr.into())).collect(),
        in_v6.into_iter().map(|addr| IpAddr::V6(addr.into())).collect(),
    )
}

pub(crate) fn services(filter: &NodeFilter) -> Vec<(u8, u16)> {
    let mut ports = BTreeSet::from([0, u16::MAX]);
    for rule in filter.inbound.iter().chain(&filter.outbound) {
        for range in rule.ports.iter() {
            ports.extend([
                range.first.saturating_sub(1),
                range.first,
                range.last,
                range.last.saturating_add(1),
            ]);
        }
    }
    let with_ports =
        [6_u8, 17, 132].into_iter().flat_map(|protocol| ports.iter().map(move |&port| (protocol, port)));
    with_ports.chain([0, 1, 2, 47, 58, 255].map(|protocol| (protocol, 0))).collect()
}
