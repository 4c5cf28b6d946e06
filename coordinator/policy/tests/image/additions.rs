//! An image that is changed in place: what is judged to add only takes nothing away, at no moment.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ghostwire_ebpf_abi::event::Direction;
use ghostwire_policy::filter::{
    AddrSet, FilterRule, Flow, NodeFilter, PortRange, ProtocolSet, RuleOrigin, Section, Verdict,
};
use ghostwire_policy::image::{ClassImage, NodeContext, compile};
use proptest::prelude::*;

use crate::rules::{OWN4, ULA, addresses, context, filter, rule, services};

/// Who comes, goes and changes places: some are named by rules, some are new.
const PEERS: [u16; 6] = [1, 8, 10, 0x100, 0x101, 0xfffe];

fn addresses_of(peer: u16) -> AddrSet {
    let peer = PEERS[usize::from(peer) % PEERS.len()];
    let v4 = IpAddr::V4((0x6440_0000 + u32::from(peer)).into());
    AddrSet::from_addrs([v4, IpAddr::V6(Ipv6Addr::from(ULA | u128::from(peer)))])
}

/// An edit of the policy, as seen by one node.
#[derive(Clone, Debug)]
enum Edit {
    /// The second peer may do all that the first may.
    Imitate(u16, u16),
    /// The peer may do nothing any more.
    Leave(u16),
    /// Only one rule is changed: it names the peer now, or does not any more.
    Name(u16, usize),
    Unname(u16, usize),
    /// A rule comes or goes.
    Admit(FilterRule),
    Drop(usize),
}

fn edit() -> impl Strategy<Value = Edit> {
    prop_oneof![
        5 => (0_u16..6, 0_u16..6).prop_map(|(model, peer)| Edit::Imitate(model, peer)),
        1 => (0_u16..6).prop_map(Edit::Leave),
        2 => (0_u16..6, any::<usize>()).prop_map(|(peer, rule)| Edit::Name(peer, rule)),
        1 => (0_u16..6, any::<usize>()).prop_map(|(peer, rule)| Edit::Unname(peer, rule)),
        1 => rule().prop_map(Edit::Admit),
        1 => any::<usize>().prop_map(Edit::Drop),
    ]
}

/// The far sides of all rules, inbound first.
fn remotes(filter: &mut NodeFilter) -> Vec<&mut Arc<AddrSet>> {
    let inbound = filter.inbound.iter_mut().map(|rule| &mut rule.src);
    inbound.chain(filter.outbound.iter_mut().map(|rule| &mut rule.dst)).collect()
}

fn apply(filter: &mut NodeFilter, edit: Edit) {
    match edit {
        Edit::Imitate(model, peer) => {
            let (model, peer) = (addresses_of(model), addresses_of(peer));
            for (model, peer) in [
                (AddrSet { v6: Vec::new(), ..model.clone() }, AddrSet { v6: Vec::new(), ..peer.clone() }),
                (AddrSet { v4: Vec::new(), ..model }, AddrSet { v4: Vec::new(), ..peer }),
            ] {
                for set in remotes(filter) {
                    if model.difference(set).is_empty() {
                        *set = Arc::new(set.union(&peer));
                    }
                }
            }
        }
        Edit::Leave(peer) => {
            for set in remotes(filter) {
                *set = Arc::new(set.difference(&addresses_of(peer)));
            }
        }
        Edit::Name(peer, rule) | Edit::Unname(peer, rule) => {
            let mut sets = remotes(filter);
            let count = sets.len().max(1);
            if let Some(set) = sets.get_mut(rule % count) {
                let peer = addresses_of(peer);
                let names = matches!(edit, Edit::Name(..));
                **set = Arc::new(if names { set.union(&peer) } else { set.difference(&peer) });
            }
        }
        Edit::Admit(rule) => filter.inbound.push(rule),
        Edit::Drop(rule) => {
            let count = filter.inbound.len().max(1);
            filter.inbound.truncate(rule % count);
        }
    }
}

/// All flows at the boundaries of both filters, in both directions.
fn flows(before: &NodeFilter, after: &NodeFilter) -> Vec<(Direction, Flow)> {
    let both = NodeFilter {
        inbound: before.inbound.iter().chain(&after.inbound).cloned().collect(),
        outbound: before.outbound.iter().chain(&after.outbound).cloned().collect(),
    };
    let (v4, v6) = addresses(&both);
    let services = services(&both);
    let mut flows = Vec::new();
    for (family, own) in [(v4, IpAddr::V4(OWN4)), (v6, IpAddr::V6(Ipv6Addr::from(ULA | 9)))] {
        // Between other places than this node nothing else happens; a few of them are enough.
        let locals = family.iter().copied().take(4).chain([own]);
        for local in locals {
            for &remote in &family {
                for &(protocol, dst_port) in &services {
                    let inbound = Flow { src: remote, dst: local, protocol, dst_port };
                    flows.push((Direction::Ingress, inbound));
                    flows.push((Direction::Egress, Flow { src: local, dst: remote, ..inbound }));
                }
            }
        }
    }
    flows
}

fn allowed(filter: &NodeFilter, direction: Direction, flow: &Flow) -> bool {
    let verdict = match direction {
        Direction::Ingress => filter.inbound_verdict(flow),
        Direction::Egress => filter.outbound_verdict(flow),
    };
    matches!(verdict, Verdict::Allowed { .. })
}

/// What is wrong with changing `before` by these writes.
fn harm(
    filters: [&NodeFilter; 2],
    images: [&ClassImage; 2],
    writes: &[(u32, u64)],
) -> Result<(), TestCaseError> {
    let flows = flows(filters[0], filters[1]);
    for (direction, flow) in &flows {
        let [was, is] = filters.map(|filter| allowed(filter, *direction, flow));
        prop_assert!(is || !was, "{direction:?} {flow:?} was allowed");
    }
    let mut patched = images[0].clone();
    // Whole ranges may join: a few places in between stand for all.
    for some in writes.chunks((writes.len() / 4).max(1)) {
        for (word, value) in some {
            patched.words[*word as usize] = *value;
        }
        for (direction, flow) in &flows {
            let now = patched.verdict(*direction, flow);
            let old_or_new = images.map(|image| image.verdict(*direction, flow)).contains(&now);
            prop_assert!(old_or_new, "{direction:?} {flow:?} is {now:?} in between");
        }
    }
    let generation = ghostwire_ebpf_abi::image::header::GENERATION as usize;
    patched.words[generation] = u64::from(images[1].generation());
    prop_assert_eq!(&patched, images[1]);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn what_is_judged_to_add_takes_nothing_away(
        before in filter(), edits in proptest::collection::vec(edit(), 1..3),
    ) {
        let mut after = before.clone();
        for edit in edits {
            apply(&mut after, edit);
        }
        let old = compile(&before, &context(None)).unwrap();
        let new = compile(&after, &NodeContext { generation: 8, ..context(None) }).unwrap();
        if let Some(writes) = new.additions_to(&old) {
            harm([&before, &after], [&old, &new], &writes)?;
        }
    }

    #[test]
    fn a_new_peer_of_a_known_kind_is_a_few_writes(mut before in filter(), model in 0_u16..3) {
        apply(&mut before, Edit::Leave(4));
        let mut after = before.clone();
        apply(&mut after, Edit::Imitate(model, 4));
        let old = compile(&before, &context(None)).unwrap();
        let new = compile(&after, &NodeContext { generation: 8, ..context(None) }).unwrap();
        let writes = new.additions_to(&old).expect("only cells of the new peer differ");
        prop_assert!(writes.len() <= 2);
        harm([&before, &after], [&old, &new], &writes)?;
    }
}

/// `wide` may reach two ports, `narrow` one of them.
fn two_kinds(wide: &[u16], narrow: &[u16], generation: u32) -> ClassImage {
    let set = |peers: &[u16]| {
        let addresses = peers.iter().map(|&peer| IpAddr::V4((0x6440_0000 + u32::from(peer)).into()));
        Arc::new(AddrSet::from_addrs(addresses))
    };
    let rule = |peers: &[u16], port| FilterRule {
        src: set(peers),
        dst: Arc::new(AddrSet::from_addrs([IpAddr::V4(OWN4)])),
        protocols: ProtocolSet::DEFAULT,
        ports: [PortRange { first: port, last: port }].into(),
        origin: RuleOrigin { section: Section::Acls, index: 0, line: 1 },
    };
    let everyone: Vec<u16> = wide.iter().chain(narrow).copied().collect();
    let filter = NodeFilter { inbound: vec![rule(wide, 22), rule(&everyone, 80)], outbound: Vec::new() };
    compile(&filter, &NodeContext { generation, ..context(None) }).unwrap()
}

#[test]
fn joining_and_promotion_are_written_in_place_leaving_and_demotion_are_not() {
    let before = two_kinds(&[1, 2], &[3, 4], 7);
    let count = |wide: &[u16], narrow: &[u16]| {
        two_kinds(wide, narrow, 8).additions_to(&before).map(|writes| writes.len())
    };
    assert_eq!(count(&[1, 2], &[3, 4]), Some(0), "the same under another generation");
    assert_eq!(count(&[1, 2, 5], &[3, 4]), Some(1), "a peer joins");
    assert_eq!(count(&[1, 2, 4], &[3]), Some(1), "a peer gets more");
    assert_eq!(count(&[1, 2, 4, 5], &[3]), Some(1), "both, in one word");
    assert_eq!(count(&[1], &[3, 4]), None, "a peer leaves");
    assert_eq!(count(&[1], &[2, 3, 4]), None, "a peer gets less");
    assert_eq!(count(&[1, 5], &[3, 4]), None, "one comes and one goes");
    assert_eq!(count(&[1, 2], &[]), None, "a class goes");
}

#[test]
fn what_is_no_matter_of_cells_is_not_written_in_place() {
    let filter = NodeFilter::default();
    let before = compile(&filter, &context(None)).unwrap();
    let other = |change: &dyn Fn(&mut NodeContext)| {
        let mut context = context(None);
        change(&mut context);
        compile(&filter, &context).unwrap().additions_to(&before)
    };
    assert_eq!(other(&|context| context.generation = 9), Some(Vec::new()));
    assert_eq!(other(&|context| context.shadow = true), None);
    assert_eq!(other(&|context| context.own4 = Some(Ipv4Addr::new(100, 64, 0, 10))), None);
    let mut nets = before.clone();
    nets.remote_nets.push(("10.0.0.0/8".parse().unwrap(), 1));
    assert_eq!(nets.additions_to(&before), None);
}
