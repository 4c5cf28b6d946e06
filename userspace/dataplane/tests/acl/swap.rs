//! Policy swaps while packets flow: never a mixture, never a gap, and a removed permission cuts at once.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use ghostwire_ebpf_abi::event::{Action, Direction, Reason};
use ghostwire_policy::filter::{
    AddrSet, FilterRule, NodeFilter, PortRange, ProtocolSet, RuleOrigin, Section,
};

use crate::lab::{DROP, Lab, PASS, judge, run, udp};
use crate::model::Rules;
use crate::policies;

pub(crate) const PEER: [u8; 4] = [100, 64, 0, 3];
pub(crate) const OWN: [u8; 4] = [100, 64, 0, 2];

pub(crate) fn set(addr: [u8; 4]) -> Arc<AddrSet> {
    Arc::new(AddrSet::from_addrs([IpAddr::from(addr)]))
}

pub(crate) fn rule(src: [u8; 4], dst: [u8; 4], protocol: u8, port: u16) -> FilterRule {
    FilterRule {
        src: set(src),
        dst: set(dst),
        protocols: ProtocolSet::of([protocol]),
        ports: Arc::from([PortRange { first: port, last: port }]),
        origin: RuleOrigin { section: Section::Acls, index: 0, line: 1 },
    }
}

pub(crate) fn rules(inbound: Vec<FilterRule>, outbound: Vec<FilterRule>, generation: u32) -> Rules {
    Rules {
        filter: NodeFilter { inbound, outbound },
        own: policies::own(),
        peers: (*set(PEER)).clone(),
        routed: AddrSet::default(),
        generation,
        shadow: false,
    }
}

/// Two policies: each allows port 1000, and a pair of ports of its own. A packet that saw the ports' classes of one and
/// the verdicts of the other would come out wrong.
fn policy(generation: u32) -> Rules {
    let own = if generation.is_multiple_of(2) { 2000 } else { 3000 };
    let inbound = [1000, own, own + 1].map(|port| rule(PEER, OWN, 17, port));
    // A different number of rules makes another layout of classes.
    let more = (0..generation % 5).map(|extra| rule(PEER, OWN, 17, 9000 + u16::try_from(extra).unwrap() * 7));
    rules(inbound.into_iter().chain(more).collect(), Vec::new(), generation)
}

#[test]
fn no_packet_sees_two_policies_and_a_flow_allowed_by_both_loses_nothing() {
    let lab = Lab::new();
    let mut acl = lab.open();
    acl.install(&policies::image(&policy(1))).unwrap();
    let reader = lab.open();
    let stop = AtomicBool::new(false);
    let counts = [const { AtomicU64::new(0) }; 3];
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                for (count, port) in counts.iter().zip([1000, 2000, 8000]) {
                    if run(&reader, Direction::Ingress, &udp(PEER, OWN, 40_000, port)) == PASS {
                        count.fetch_add(1, Ordering::Relaxed);
                    } else if port == 1000 {
                        panic!("a permanently allowed packet was lost");
                    }
                }
            }
        });
        for generation in 2..=100 {
            acl.install(&policies::image(&policy(generation))).unwrap();
            // Right after the swap nothing of the old policy is left.
            let (mine, other) = if generation.is_multiple_of(2) { (2001, 3001) } else { (3001, 2001) };
            assert_eq!(run(&acl, Direction::Ingress, &udp(PEER, OWN, 1, mine)), PASS);
            assert_eq!(run(&acl, Direction::Ingress, &udp(PEER, OWN, 1, other)), DROP);
            assert!(!worker.is_finished(), "the sender failed");
        }
        stop.store(true, Ordering::Relaxed);
    });
    let [always, sometimes, never] = counts.map(AtomicU64::into_inner);
    assert!(always > 100, "only {always} packets under 99 swaps");
    assert!(sometimes < always && sometimes > 0, "{sometimes} of {always}");
    assert_eq!(never, 0, "a port that no policy allows");
}

#[test]
fn a_removed_permission_cuts_a_running_flow_with_its_next_packet() {
    let lab = Lab::new();
    let mut acl = lab.open();
    let out = |generation| rules(Vec::new(), vec![rule(OWN, PEER, 17, 53)], generation);
    acl.install(&policies::image(&out(1))).unwrap();
    let (query, answer) = (udp(OWN, PEER, 40_000, 53), udp(PEER, OWN, 53, 40_000));
    assert_eq!(judge(&acl, Direction::Ingress, &answer), (DROP, Reason::Denied));
    assert_eq!(judge(&acl, Direction::Egress, &query), (PASS, Reason::Policy));
    assert_eq!(judge(&acl, Direction::Ingress, &answer), (PASS, Reason::Connection));
    // Another policy that still allows it: the connection lives on.
    acl.install(&policies::image(&out(2))).unwrap();
    assert_eq!(judge(&acl, Direction::Ingress, &answer), (PASS, Reason::Connection));
    assert_eq!(acl.connections().unwrap()[0].generation, 2);
    // And one that does not.
    acl.install(&policies::image(&rules(Vec::new(), Vec::new(), 3))).unwrap();
    assert_eq!(judge(&acl, Direction::Ingress, &answer), (DROP, Reason::Denied));
    assert_eq!(judge(&acl, Direction::Egress, &query), (DROP, Reason::Denied));
}

#[test]
fn a_refused_image_leaves_the_old_one_in_force() {
    let lab = Lab::new();
    let mut acl = lab.open();
    acl.install(&policies::image(&policy(1))).unwrap();
    let mut broken = policies::image(&policy(2));
    broken.words[0] ^= 1;
    assert!(acl.install(&broken).is_err());
    assert_eq!(acl.generation().unwrap(), Some(1));
    assert_eq!(run(&acl, Direction::Ingress, &udp(PEER, OWN, 1, 1000)), PASS);
}

#[test]
fn shadow_mode_reports_what_it_would_drop() {
    let lab = Lab::new();
    let mut acl = lab.open();
    acl.install(&policies::image(&policy(1))).unwrap();
    let denied = udp(PEER, OWN, 1, 7);
    assert_eq!(judge(&acl, Direction::Ingress, &denied), (DROP, Reason::Denied));
    assert_eq!(acl.drops_by_remote().unwrap()[0].0, IpAddr::from(PEER));
    acl.set_shadow(true).unwrap();
    assert_eq!(judge(&acl, Direction::Ingress, &denied), (PASS, Reason::Shadow));
    acl.set_shadow(false).unwrap();
    assert_eq!(judge(&acl, Direction::Ingress, &denied), (DROP, Reason::Denied));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut events = acl.events().unwrap();
        let mut actions = Vec::new();
        for _ in 0..3 {
            let event = events.next().await.unwrap();
            assert_eq!((event.src, event.dst_port, event.reason), (IpAddr::from(PEER), 7, Reason::Denied));
            assert_eq!((event.generation, event.direction), (1, Direction::Ingress));
            actions.push(event.action);
        }
        assert_eq!(actions, [Action::Drop, Action::WouldDrop, Action::Drop]);
    });
}
