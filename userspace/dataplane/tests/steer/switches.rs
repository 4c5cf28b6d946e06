//! Paths are switched under load.

use ghostwire_dataplane::acl::{Attach, Attachment};
use ghostwire_dataplane::steer::{Family, Reason};
use ghostwire_dataplane::wireguard::Choice;

use crate::lab::{NEIGHBOURS4, NEIGHBOURS6, Pair, ROUTED4, ROUTED6, counted, engines};
use crate::numbered::{assert_complete, assert_in_order, stream};

const SWITCHES: u64 = 48;
const BETWEEN: u64 = 100;

/// Switches between networks under numbered datagrams in both directions.
fn switch_under_load(pair: &Pair, networks: &[[&str; 2]]) {
    let (mut at_a, mut at_b) = pair.steer();
    pair.use_network(&mut at_a, &mut at_b, networks[0]);
    let (wg_a, wg_b) = (pair.a.wireguard(&[&pair.b]), pair.b.wireguard(&[&pair.a]));
    pair.meet();
    let total = SWITCHES * BETWEEN;
    let arrived = stream(&pair.a, &pair.b, total, |progress| {
        for switch in 1..SWITCHES {
            if !progress.wait_for(switch * BETWEEN) {
                return;
            }
            let index = usize::try_from(switch).unwrap();
            let network = networks[index % networks.len()];
            // One end, then the other: in between they use different ways.
            pair.a.set_path(&mut at_a, pair.b.id(), &pair.path_from_a(network), None);
            if index % 3 != 0 {
                pair.b.set_path(&mut at_b, pair.a.id(), &pair.path_from_b(network), None);
            }
            assert_eq!(wg_a.endpoints(), [Some(at_a.stable_endpoint(pair.b.id()))]);
        }
    });
    assert_in_order(&arrived, total);
    assert_eq!(wg_a.endpoints(), [Some(at_a.stable_endpoint(pair.b.id()))]);
    assert_eq!(wg_b.endpoints(), [Some(at_b.stable_endpoint(pair.a.id()))]);
    let traffic = at_a.traffic(pair.b.id());
    assert!(traffic.sent_total().packets >= total && traffic.received_total().packets > 0, "{traffic:?}");
    assert!(traffic.sent_total().bytes > total * 32 && traffic.sent_total().last.is_some());
    for reason in [Reason::Failed, Reason::NoPath, Reason::TooBig, Reason::Malformed, Reason::UnknownSource] {
        assert_eq!((counted(&at_a, reason), counted(&at_b, reason)), (0, 0), "{reason:?}");
    }
}

#[test]
fn switches_between_neighbours_and_a_router_lose_and_reorder_nothing() {
    for choice in engines() {
        switch_under_load(&Pair::in_step(choice, Family::V4), &[NEIGHBOURS4, ROUTED4]);
    }
}

#[test]
fn switches_between_families_lose_and_reorder_nothing() {
    for choice in engines() {
        switch_under_load(&Pair::in_step(choice, Family::V4), &[NEIGHBOURS4, NEIGHBOURS6, ROUTED4, ROUTED6]);
    }
}

#[test]
fn an_ipv6_stable_endpoint_carries_both_families() {
    for choice in engines() {
        switch_under_load(&Pair::in_step(choice, Family::V6), &[NEIGHBOURS6, ROUTED4, ROUTED6, NEIGHBOURS4]);
    }
}

#[test]
fn clsact_filters_do_the_same() {
    let mut pair = Pair::in_step(Choice::Userspace, Family::V4);
    pair.a.options.attach = Attach::Clsact;
    pair.b.options.attach = Attach::Clsact;
    assert_eq!(pair.a.steer().attachment(), Attachment::Clsact);
    switch_under_load(&pair, &[NEIGHBOURS4, ROUTED4, NEIGHBOURS6]);
}

#[test]
fn a_copy_goes_by_the_second_path_while_the_first_is_in_doubt() {
    for choice in engines() {
        let pair = Pair::new(choice);
        let (mut at_a, mut at_b) = pair.steer();
        pair.use_network(&mut at_a, &mut at_b, NEIGHBOURS4);
        let (_wg_a, _wg_b) = (pair.a.wireguard(&[&pair.b]), pair.b.wireguard(&[&pair.a]));
        pair.meet();
        // Both paths work: every datagram arrives twice, and WireGuard drops the second.
        let (first, second) = (pair.path_from_a(NEIGHBOURS4), pair.path_from_a(ROUTED6));
        pair.a.set_path(&mut at_a, pair.b.id(), &first, Some(&second));
        assert_eq!(at_a.path(pair.b.id()), (Some(first), Some(second)));
        let before = at_b.traffic(pair.a.id()).received_total().packets;
        let arrived = stream(&pair.a, &pair.b, 500, |_| ());
        assert_complete(arrived, 500);
        assert!(at_b.traffic(pair.a.id()).received_total().packets >= before + 1000);
        // The first leads nowhere: nothing is lost.
        let nowhere = pair.a.wire(NEIGHBOURS4[0], "192.0.2.99:9");
        pair.a.set_path(&mut at_a, pair.b.id(), &nowhere, Some(&second));
        assert_in_order(&stream(&pair.a, &pair.b, 500, |_| ()), 500);
        // And without the second everything is.
        pair.a.set_path(&mut at_a, pair.b.id(), &nowhere, None);
        pair.a.cannot_ping(&pair.b);
    }
}
