//! Changing the image in place: a peer that joins an existing class is a few writes, and no packet is the worse for
//! it.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};

use ghostwire_dataplane::acl::{Acl, Image};
use ghostwire_ebpf_abi::event::{Direction, Reason};
use ghostwire_ebpf_abi::image as abi;
use ghostwire_policy::filter::AddrSet;
use ghostwire_policy::image::ClassImage;
use rand::SeedableRng;

use crate::lab::{DROP, Lab, PASS, judge, run, udp};
use crate::model::Rules;
use crate::policies;
use crate::swap::{OWN, PEER, rule, rules};

/// Shares a word of the table with the newcomer.
const NEIGHBOUR: [u8; 4] = [100, 64, 0, 8];
const NEWCOMER: [u8; 4] = [100, 64, 0, 9];

/// Every peer may reach port 1000 of this node, which may ask each of them on port 53.
fn policy(peers: &[[u8; 4]], generation: u32) -> Rules {
    let inbound = peers.iter().map(|peer| rule(*peer, OWN, 17, 1000)).collect();
    let outbound = peers.iter().map(|peer| rule(OWN, *peer, 17, 53)).collect();
    let known = AddrSet::from_addrs(peers.iter().map(|peer| IpAddr::from(*peer)));
    Rules { peers: known, ..rules(inbound, outbound, generation) }
}

/// What has to be written; the kernel's image is what it is compared with.
fn additions(acl: &Acl, rules: &Rules) -> Option<Vec<(u32, u64)>> {
    let class_image =
        |Image { words, remote_nets, local_nets }| ClassImage { words, remote_nets, local_nets };
    let in_force = class_image(acl.in_force().unwrap().unwrap());
    let mut wanted = class_image(policies::image(rules));
    wanted.remote_nets.sort_unstable();
    wanted.local_nets.sort_unstable();
    wanted.additions_to(&in_force)
}

fn join(acl: &mut Acl, rules: &Rules) {
    let before = acl.image_id().unwrap();
    let cells = additions(acl, rules).unwrap();
    assert_eq!(cells.len(), 1);
    acl.add_in_place(&cells, rules.generation).unwrap();
    assert_eq!(acl.image_id().unwrap(), before);
    assert_eq!(acl.generation().unwrap(), Some(rules.generation));
}

#[test]
fn a_peer_joins_by_one_word_and_its_events_name_the_new_generation() {
    let lab = Lab::new();
    let mut acl = lab.open();
    acl.install(&policies::image(&policy(&[PEER, NEIGHBOUR], 1))).unwrap();
    let newcomer = udp(NEWCOMER, OWN, 1, 1000);
    assert_eq!(judge(&acl, Direction::Ingress, &newcomer), (DROP, Reason::UnknownRemote));
    join(&mut acl, &policy(&[PEER, NEIGHBOUR, NEWCOMER], 2));
    for peer in [PEER, NEIGHBOUR, NEWCOMER] {
        assert_eq!(judge(&acl, Direction::Ingress, &udp(peer, OWN, 1, 1000)), (PASS, Reason::Policy));
        assert_eq!(judge(&acl, Direction::Ingress, &udp(peer, OWN, 1, 1001)), (DROP, Reason::Denied));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut events = acl.events().unwrap();
        let unknown = events.next().await.unwrap();
        assert_eq!((unknown.generation, unknown.classes[0]), (1, 0));
        let denied =
            [events.next().await.unwrap(), events.next().await.unwrap(), events.next().await.unwrap()];
        for event in denied {
            assert_eq!((event.generation, event.classes), (2, denied[0].classes), "one class for all three");
        }
    });
}

#[test]
fn leaving_is_no_addition() {
    let lab = Lab::new();
    let mut acl = lab.open();
    acl.install(&policies::image(&policy(&[PEER, NEIGHBOUR], 1))).unwrap();
    assert_eq!(additions(&acl, &policy(&[PEER], 2)), None);
    assert_eq!(additions(&acl, &policy(&[PEER, NEWCOMER], 2)), None, "one comes and one goes");
    let used = u32::try_from(acl.image_words().unwrap().len()).unwrap();
    for word in [0, abi::header::FLAGS, abi::TCP, abi::PROTO, abi::REMOTE4 - 1, abi::MATRICES, used] {
        assert!(acl.add_in_place(&[(word, 1)], 2).is_err(), "word {word} is in no table of remotes");
    }
    assert!(acl.add_in_place(&[], 0).is_err());
    assert_eq!(acl.generation().unwrap(), Some(1));
}

#[test]
fn under_traffic_every_verdict_is_the_old_one_or_the_new_one() {
    let lab = Lab::new();
    let mut acl = lab.open();
    acl.install(&policies::image(&policy(&[PEER], 1))).unwrap();
    let reader = lab.open();
    let stop = AtomicBool::new(false);
    let peer = |number: u8| [100, 64, 1, number];
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            let mut passing = 0;
            while !stop.load(Ordering::Relaxed) {
                let allowed = run(&reader, Direction::Ingress, &udp(PEER, OWN, 40_000, 1000));
                assert_eq!(allowed, PASS, "a permanently allowed packet was lost");
                let never = run(&reader, Direction::Ingress, &udp(peer(passing), OWN, 40_000, 1001));
                assert_eq!(never, DROP, "a port that no policy allows");
                // Whoever has joined stays; the next one is let in at some time.
                if passing > 0 {
                    let joined = run(&reader, Direction::Ingress, &udp(peer(passing - 1), OWN, 1, 1000));
                    assert_eq!(joined, PASS, "peer {} was in", passing - 1);
                }
                if run(&reader, Direction::Ingress, &udp(peer(passing), OWN, 1, 1000)) == PASS {
                    passing += 1;
                }
            }
            passing
        });
        let mut peers = vec![PEER];
        for number in 0..100 {
            peers.push(peer(number));
            join(&mut acl, &policy(&peers, 2 + u32::from(number)));
            assert_eq!(run(&acl, Direction::Ingress, &udp(peer(number), OWN, 1, 1000)), PASS);
            assert!(!worker.is_finished(), "the sender failed");
        }
        stop.store(true, Ordering::Relaxed);
        assert!(worker.join().unwrap() > 0, "nobody was seen to join");
    });
}

#[test]
fn a_running_connection_goes_on_and_takes_the_new_generation() {
    let lab = Lab::new();
    let mut acl = lab.open();
    acl.install(&policies::image(&policy(&[PEER], 1))).unwrap();
    assert_eq!(run(&acl, Direction::Egress, &udp(OWN, PEER, 40_000, 53)), PASS);
    join(&mut acl, &policy(&[PEER, NEWCOMER], 2));
    let answer = udp(PEER, OWN, 53, 40_000);
    assert_eq!(judge(&acl, Direction::Ingress, &answer), (PASS, Reason::Connection));
    assert_eq!(acl.connections().unwrap()[0].generation, 2);
    // And a revocation after it cuts.
    acl.install(&policies::image(&policy(&[NEWCOMER], 3))).unwrap();
    assert_eq!(run(&acl, Direction::Ingress, &answer), DROP);
}

/// A fragment of 32 bytes of a UDP datagram.
fn fragment(src: [u8; 4], first: bool) -> Vec<u8> {
    let mut packet = udp(src, OWN, 1, 1000);
    packet.extend([0; 4]);
    packet[2..4].copy_from_slice(&52_u16.to_be_bytes());
    packet[4..6].copy_from_slice(&7_u16.to_be_bytes());
    packet[6..8].copy_from_slice(&(if first { 0x2000_u16 } else { 4 }).to_be_bytes());
    packet
}

/// A daemon that ended between two writes leaves additions under the old generation; if they are taken back under the
/// same, what they let begin must end.
#[test]
fn another_policy_under_the_same_generation_inherits_no_fragments() {
    let lab = Lab::new();
    let mut acl = lab.open();
    let before = policies::image(&policy(&[PEER], 1));
    acl.install(&before).unwrap();
    let cells = additions(&acl, &policy(&[PEER, NEWCOMER], 2)).unwrap();
    acl.add_in_place(&cells, 1).unwrap();
    assert_eq!(run(&acl, Direction::Ingress, &fragment(NEWCOMER, true)), PASS);
    let later = fragment(NEWCOMER, false);
    assert_eq!(judge(&acl, Direction::Ingress, &later), (PASS, Reason::Fragment));
    acl.install(&before).unwrap();
    assert_eq!(judge(&acl, Direction::Ingress, &later), (DROP, Reason::OrphanFragment));
}

#[test]
fn what_is_in_force_is_read_back_as_it_was_installed() {
    let lab = Lab::new();
    let mut acl = lab.open();
    assert_eq!(acl.in_force().unwrap(), None);
    let mut config = acl.config().unwrap();
    config.accept_sample = 10;
    acl.set_config(&config).unwrap();
    let mut with_nets = 0;
    for seed in 0..20 {
        let rules = policies::random(&mut rand::rngs::StdRng::seed_from_u64(seed), 1);
        let mut image = policies::image(&rules);
        acl.install(&image).unwrap();
        image.remote_nets.sort_unstable();
        image.local_nets.sort_unstable();
        with_nets += usize::from(!image.remote_nets.is_empty() && !image.local_nets.is_empty());
        assert!(acl.in_force().unwrap() == Some(image), "policy {seed}");
        assert_eq!(additions(&acl, &rules), Some(Vec::new()));
    }
    assert!(with_nets > 5, "only {with_nets} policies with networks");
}
