//! The class image says what the reference evaluator says: at every boundary of every rule, and one beside it.
#![expect(clippy::unwrap_used, reason = "the helpers of a test are as much a test as the rest")]

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ghostwire_ebpf_abi::event::Direction;
use ghostwire_policy::filter::{
    AddrSet, FilterRule, Flow, NodeFilter, PortRange, ProtocolSet, RuleOrigin, Section, Verdict,
};
use ghostwire_policy::image::{ClassImage, ImageVerdict, NodeContext, compile};
use proptest::prelude::*;

const OWN4: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 9);
const ULA: u128 = 0xfd7a_115c_a1e0_0000_0000_0000_0000_0000;

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
    fn addr_set()(ranges in proptest::collection::vec((0_usize..16, 0_usize..3, any::<[bool; 2]>()), 0..4)) -> Arc<AddrSet> {
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
    fn rule()(
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
    fn filter()(inbound in proptest::collection::vec(rule(), 0..4), outbound in proptest::collection::vec(rule(), 0..4))
        -> NodeFilter {
        NodeFilter { inbound, outbound }
    }
}

fn context(peers: Option<Arc<AddrSet>>) -> NodeContext {
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
fn addresses(filter: &NodeFilter) -> (Vec<IpAddr>, Vec<IpAddr>) {
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

fn services(filter: &NodeFilter) -> Vec<(u8, u16)> {
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

/// The first flow on which the two differ.
fn disagreement(filter: &NodeFilter, image: &ClassImage, peers: Option<&AddrSet>) -> Option<String> {
    let (in_v4, in_v6) = addresses(filter);
    let services = services(filter);
    for family in [in_v4, in_v6] {
        for &src in &family {
            for &dst in &family {
                for &(protocol, dst_port) in &services {
                    let flow = Flow { src, dst, protocol, dst_port };
                    for direction in [Direction::Ingress, Direction::Egress] {
                        let (reference, remote) = match direction {
                            Direction::Ingress => (filter.inbound_verdict(&flow), src),
                            Direction::Egress => (filter.outbound_verdict(&flow), dst),
                        };
                        let known = peers.is_none_or(|peers| peers.contains(remote));
                        let wanted = known && matches!(reference, Verdict::Allowed { .. });
                        let got = image.verdict(direction, &flow);
                        if wanted != (got == ImageVerdict::Allowed) || (!known && got == ImageVerdict::Denied)
                        {
                            return Some(format!(
                                "{direction:?} {flow:?}: reference {reference:?}, image {got:?}"
                            ));
                        }
                    }
                }
            }
        }
    }
    None
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn image_equals_reference(filter in filter(), peers in proptest::option::of(addr_set())) {
        let image = compile(&filter, &context(peers.clone())).unwrap();
        prop_assert_eq!(disagreement(&filter, &image, peers.as_deref()), None);
    }

    #[test]
    fn a_new_peer_of_a_known_kind_is_a_few_writes(filter in filter(), peer in 0x6440_0100_u32..0x6440_ff00) {
        // Whoever may do what the model peer may do joins its class.
        let model = IpAddr::V4(Ipv4Addr::new(100, 64, 0, 10));
        let joined = |set: &Arc<AddrSet>| {
            if !set.contains(model) { return Arc::clone(set); }
            Arc::new(set.union(&AddrSet::from_ranges(vec![(peer, peer)], Vec::new())))
        };
        let cleared = |set: &Arc<AddrSet>| {
            Arc::new(set.difference(&AddrSet::from_ranges(vec![(peer, peer)], Vec::new())))
        };
        let map = |change: &dyn Fn(&Arc<AddrSet>) -> Arc<AddrSet>, filter: &NodeFilter| NodeFilter {
            inbound: filter.inbound.iter().map(|rule| FilterRule { src: change(&rule.src), ..rule.clone() }).collect(),
            outbound: filter.outbound.iter().map(|rule| FilterRule { dst: change(&rule.dst), ..rule.clone() }).collect(),
        };
        let before_filter = map(&cleared, &filter);
        let after_filter = map(&joined, &before_filter);
        let before = compile(&before_filter, &context(None)).unwrap();
        let after = compile(&after_filter, &NodeContext { generation: 8, ..context(None) }).unwrap();
        let writes = after.diff_cells(&before).expect("only cells of the new peer differ");
        prop_assert!(writes.len() <= 1);
        let mut patched = before.clone();
        for (word, value) in writes {
            patched.words[word as usize] = value;
        }
        prop_assert_eq!(patched.generation(), before.generation());
        prop_assert_eq!(disagreement(&after_filter, &patched, None), None);
    }
}

/// The specimen: one bit of a matrix is flipped, and the comparison notices.
#[test]
fn a_broken_image_is_noticed() {
    let remote = Arc::new(AddrSet::from_addrs([IpAddr::V4(Ipv4Addr::new(100, 64, 0, 2))]));
    let own = Arc::new(AddrSet::from_addrs([IpAddr::V4(OWN4)]));
    let rule = FilterRule {
        src: remote,
        dst: own,
        protocols: ProtocolSet::DEFAULT,
        ports: [PortRange { first: 22, last: 22 }].into(),
        origin: RuleOrigin { section: Section::Acls, index: 0, line: 1 },
    };
    let filter = NodeFilter { inbound: vec![rule], outbound: Vec::new() };
    let mut image = compile(&filter, &context(None)).unwrap();
    assert_eq!(disagreement(&filter, &image, None), None);
    let bit = image.words.iter().rposition(|&word| word != 0).unwrap();
    image.words[bit] ^= 2;
    assert!(disagreement(&filter, &image, None).is_some());
}

#[test]
fn what_does_not_fit_is_refused() {
    let filter = NodeFilter::default();
    let wrong = |change: &dyn Fn(&mut NodeContext)| {
        let mut context = context(None);
        change(&mut context);
        compile(&filter, &context).unwrap_err().to_string()
    };
    assert!(wrong(&|context| context.generation = 0).contains("generation"));
    assert!(wrong(&|context| context.net_slot = 2).contains("slot"));
    assert!(wrong(&|context| context.overlay4 = Some("100.64.0.0/10".parse().unwrap())).contains("16 bits"));
    // Ten thousand peers, each with a port of its own.
    let own = Arc::new(AddrSet::from_addrs([IpAddr::V4(OWN4)]));
    let rules = (0..10_000_u16).map(|number| FilterRule {
        src: Arc::new(AddrSet::from_addrs([IpAddr::V4((0x6440_1000 + u32::from(number)).into())])),
        dst: Arc::clone(&own),
        protocols: ProtocolSet::DEFAULT,
        ports: [PortRange { first: 1000 + number, last: 1000 + number }].into(),
        origin: RuleOrigin { section: Section::Acls, index: number.into(), line: 1 },
    });
    let filter = NodeFilter { inbound: rules.collect(), outbound: Vec::new() };
    let error = compile(&filter, &context(None)).unwrap_err().to_string();
    assert!(error.contains("too large"), "{error}");
}
