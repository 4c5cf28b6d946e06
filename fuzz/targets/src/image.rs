//! The image compiler against the reference evaluator, on filters made of any bytes.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use arbitrary::{Result, Unstructured};
use ghostwire_ebpf_abi::event::Direction;
use ghostwire_policy::filter::{
    AddrSet, FilterRule, Flow, NodeFilter, PortRange, ProtocolSet, RuleOrigin, Section,
};
use ghostwire_policy::image::{ClassImage, ImageVerdict, NodeContext, compile};
use ipnet::{Ipv4Net, Ipv6Net};

const OWN4: u32 = 0x6440_0009;
const ULA: u128 = 0xfd7a_115c_a1e0_0000_0000_0000_0000_0000;
/// Where boundaries matter: ends of the address space, of the dense range, of subnets.
const V4: [u32; 8] = [0, 0x0a00_0000, 0x6440_0000, OWN4, 0x6440_ffff, 0x6441_0000, 0xc0a8_0100, u32::MAX];
const V6: [u128; 8] = [0, ULA - 1, ULA, ULA | 9, ULA | 0xffff, ULA | 0x1_0000, 0x2001_0db8 << 96, u128::MAX];
const PROTOCOLS: [u8; 8] = [0, 1, 6, 17, 47, 58, 132, 255];
/// Cells of the grid of flows; more take too long for one input.
const MOST_FLOWS: usize = 60_000;

/// Bytes that choose a filter and a context. True unless the compiler refuses it.
pub fn run(data: &[u8]) -> bool {
    let mut bytes = Unstructured::new(data);
    let Ok((filter, context)) = input(&mut bytes) else { return false };
    judge(&filter, &context)
}

/// Compiles, and compares at every boundary. True unless the compiler refuses it.
pub(crate) fn judge(filter: &NodeFilter, context: &NodeContext) -> bool {
    let Ok(image) = compile(filter, context) else { return false };
    let (v4, v6) = addresses(filter, context);
    let services = services(filter);
    let mut flows = 0;
    for family in [v4, v6] {
        for &src in &family {
            for &dst in &family {
                for &(protocol, dst_port) in &services {
                    compare(filter, context, &image, &Flow { src, dst, protocol, dst_port });
                    flows += 1;
                    if flows == MOST_FLOWS {
                        return true;
                    }
                }
            }
        }
    }
    true
}

fn compare(filter: &NodeFilter, context: &NodeContext, image: &ClassImage, flow: &Flow) {
    let near = |addr: IpAddr, side: fn(&FilterRule) -> &AddrSet, rules: &[FilterRule]| {
        context.own4.map(IpAddr::V4) == Some(addr)
            || context.own6.map(IpAddr::V6) == Some(addr)
            || rules.iter().any(|rule| side(rule).contains(addr))
    };
    for direction in [Direction::Ingress, Direction::Egress] {
        let (reference, remote) = match direction {
            Direction::Ingress => (filter.inbound_verdict(flow), flow.src),
            Direction::Egress => (filter.outbound_verdict(flow), flow.dst),
        };
        let known = context.peers.as_ref().is_none_or(|peers| peers.contains(remote));
        let wanted = known && reference.is_allowed();
        let got = image.verdict(direction, flow);
        assert_eq!(
            got == ImageVerdict::Allowed,
            wanted,
            "{direction:?} {flow:?}: {reference:?}, image {got:?}"
        );
        assert!(known || got != ImageVerdict::Denied, "{direction:?} {flow:?}: an unknown remote is {got:?}");
        if got == ImageVerdict::NotLocal {
            let local = if direction == Direction::Ingress { flow.dst } else { flow.src };
            assert!(!near(local, |rule| &rule.dst, &filter.inbound), "{flow:?}: {local} is local");
        }
    }
}

/// Every boundary of every set, one below and one above it.
fn addresses(filter: &NodeFilter, context: &NodeContext) -> (Vec<IpAddr>, Vec<IpAddr>) {
    let mut v4: BTreeSet<u32> = context.own4.map(u32::from).into_iter().collect();
    let mut v6: BTreeSet<u128> = context.own6.map(u128::from).into_iter().collect();
    let rules = filter.inbound.iter().chain(&filter.outbound);
    for set in rules.flat_map(|rule| [&*rule.src, &*rule.dst]).chain(context.peers.as_deref()) {
        for &(first, last) in &set.v4 {
            v4.extend([first.saturating_sub(1), first, last, last.saturating_add(1)]);
        }
        for &(first, last) in &set.v6 {
            v6.extend([first.saturating_sub(1), first, last, last.saturating_add(1)]);
        }
    }
    // IPv4-mapped addresses do not exist on the wire.
    v6.retain(|addr| addr >> 32 != 0xffff);
    (
        v4.into_iter().map(|addr| IpAddr::V4(addr.into())).collect(),
        v6.into_iter().map(|addr| IpAddr::V6(addr.into())).collect(),
    )
}

fn services(filter: &NodeFilter) -> Vec<(u8, u16)> {
    let mut ports = BTreeSet::from([0, u16::MAX]);
    for range in filter.inbound.iter().chain(&filter.outbound).flat_map(|rule| rule.ports.iter()) {
        let (below, above) = (range.first.saturating_sub(1), range.last.saturating_add(1));
        ports.extend([below, range.first, range.last, above]);
    }
    let with_ports =
        [6_u8, 17, 132].into_iter().flat_map(|protocol| ports.iter().map(move |&port| (protocol, port)));
    with_ports.chain([0, 1, 2, 47, 58, 255].map(|protocol| (protocol, 0))).collect()
}

fn input(bytes: &mut Unstructured<'_>) -> Result<(NodeFilter, NodeContext)> {
    let context = NodeContext {
        own4: bytes.ratio(7, 8)?.then(|| Ipv4Addr::from(OWN4)),
        own6: bytes.ratio(7, 8)?.then(|| Ipv6Addr::from(ULA | 9)),
        overlay4: if bytes.ratio(7, 8)? {
            Some(Ipv4Net::new_assert([100, 64, 0, 0].into(), 16))
        } else {
            None
        },
        overlay6: if bytes.ratio(7, 8)? { Some(Ipv6Net::new_assert(ULA.into(), 112)) } else { None },
        generation: 7,
        shadow: bytes.arbitrary()?,
        net_slot: u8::from(bytes.arbitrary::<bool>()?),
        peers: if bytes.ratio(1, 4)? { Some(Arc::new(addr_set(bytes)?)) } else { None },
    };
    let mut sets = Vec::new();
    for _ in 0..bytes.int_in_range(1..=8)? {
        sets.push(Arc::new(addr_set(bytes)?));
    }
    let filter = NodeFilter { inbound: rules(bytes, &sets)?, outbound: rules(bytes, &sets)? };
    crate::filter_message::check(&filter);
    Ok((filter, context))
}

fn rules(bytes: &mut Unstructured<'_>, sets: &[Arc<AddrSet>]) -> Result<Vec<FilterRule>> {
    let mut rules = Vec::new();
    for index in 0..bytes.int_in_range(0..=6)? {
        let mut ports = Vec::new();
        for _ in 0..bytes.int_in_range(0..=3)? {
            let (first, last): (u16, u16) = (bytes.arbitrary()?, bytes.arbitrary()?);
            ports.push(match first % 4 {
                0 => PortRange::ALL,
                1 => PortRange { first, last: first },
                _ => PortRange { first: first.min(last), last: first.max(last) },
            });
        }
        let mut protocols = ProtocolSet::default();
        for _ in 0..bytes.int_in_range(0..=3)? {
            protocols.insert(*bytes.choose(&PROTOCOLS)?);
        }
        rules.push(FilterRule {
            src: Arc::clone(bytes.choose(sets)?),
            dst: Arc::clone(bytes.choose(sets)?),
            protocols,
            ports: ports.into(),
            origin: RuleOrigin { section: Section::Acls, index, line: 1 },
        });
    }
    Ok(rules)
}

fn addr_set(bytes: &mut Unstructured<'_>) -> Result<AddrSet> {
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for _ in 0..bytes.int_in_range(0..=3)? {
        let (a, b) = (bytes.choose(&V4)?, bytes.choose(&V4)?);
        let (a, b) = (a.wrapping_add(bytes.int_in_range(0..=4)?), b.wrapping_sub(bytes.int_in_range(0..=4)?));
        v4.push((a.min(b), a.max(b)));
    }
    for _ in 0..bytes.int_in_range(0..=3)? {
        let (a, b) = (bytes.choose(&V6)?, bytes.choose(&V6)?);
        let (a, b) = (a.wrapping_add(bytes.int_in_range(0..=4)?), b.wrapping_sub(bytes.int_in_range(0..=4)?));
        v6.push((a.min(b), a.max(b)));
    }
    Ok(AddrSet::from_ranges(v4, v6))
}
