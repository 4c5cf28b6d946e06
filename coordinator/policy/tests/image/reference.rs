//! The class image says what the reference evaluator says: at every boundary of every rule, and one beside it.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use ghostwire_ebpf_abi::event::Direction;
use ghostwire_policy::filter::{
    AddrSet, FilterRule, Flow, NodeFilter, PortRange, ProtocolSet, RuleOrigin, Section, Verdict,
};
use ghostwire_policy::image::{ClassImage, ImageVerdict, NodeContext, compile};
use proptest::prelude::*;

use crate::rules::{OWN4, addr_set, addresses, context, filter, services};

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

/// Filters that are small and would take gigabytes: the compiler gives up early.
#[test]
fn what_takes_too_much_is_refused_before_it_is_taken() {
    let own = Arc::new(AddrSet::from_addrs([IpAddr::V4(OWN4)]));
    let rule = |src: &Arc<AddrSet>, dst: &Arc<AddrSet>, index: u32, port: u16| FilterRule {
        src: src.clone(),
        dst: dst.clone(),
        protocols: ProtocolSet::DEFAULT,
        ports: [PortRange { first: port, last: port }].into(),
        origin: RuleOrigin { section: Section::Acls, index, line: 1 },
    };
    let refused = |inbound: Vec<FilterRule>| {
        compile(&NodeFilter { inbound, outbound: Vec::new() }, &context(None)).unwrap_err().to_string()
    };
    // Each range of addresses takes 250 prefixes.
    let ranges =
        (0..600_u128).map(|n| ((n << 80) + (0x2001 << 112) + 1, ((n + 1) << 80) + (0x2001 << 112) - 2));
    let crumbs = Arc::new(AddrSet::from_ranges(Vec::new(), ranges.collect()));
    let error = refused(vec![rule(&crumbs, &own, 0, 22)]);
    assert!(error.contains("65536 remote prefixes"), "{error}");
    // Networks within networks: every one is in all that are larger.
    let nested = |n: u32| Arc::new(AddrSet::from_ranges(vec![(0x0a00_0000 + n, 0x0aff_ffff)], Vec::new()));
    let error = refused((0..6_000).map(|n| rule(&own, &nested(n), n, 22)).collect());
    assert!(error.contains("too intricate"), "{error}");
}
