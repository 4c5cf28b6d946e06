//! Uplinks, addresses and routes come and go.

use ghostwire_dataplane::steer::{Class, Path, PeerId, Reason, SteerError};
use ghostwire_dataplane::wireguard::Choice;

use crate::lab::{NEIGHBOURS4, Node, Pair, ROUTED4, counted, engines};

#[test]
fn an_uplink_that_is_deleted_and_made_again_is_used_again() {
    for choice in engines() {
        let pair = Pair::new(choice);
        let (mut at_a, mut at_b) = pair.steer();
        pair.use_network(&mut at_a, &mut at_b, NEIGHBOURS4);
        let (_wg_a, _wg_b) = (pair.a.wireguard(&[&pair.b]), pair.b.wireguard(&[&pair.a]));
        pair.meet();
        let former = pair.path_from_a(NEIGHBOURS4);
        pair.a.netns.ip("link delete eth0");
        for (node, steer, peer) in [(&pair.a, &mut at_a, pair.b.id()), (&pair.b, &mut at_b, pair.a.id())] {
            let report = node.set_uplinks(steer);
            assert_eq!((report.lost, report.detached.len()), (vec![peer], 1));
            assert_eq!(steer.path(peer), (None, None));
            assert!(node.netns.run(|| steer.is_attached()).unwrap());
        }
        let refused = pair.a.netns.run(|| at_a.set_path(pair.b.id(), Some(&former), None)).unwrap_err();
        assert!(matches!(refused, SteerError::NotAnUplink { .. }), "{refused}");
        pair.use_network(&mut at_a, &mut at_b, ROUTED4);
        pair.a.ping(&pair.b);

        pair.a.netns.connect(&pair.b.netns, "eth0", "192.0.2.1/24", "192.0.2.2/24");
        assert_eq!(pair.a.set_uplinks(&mut at_a).attached.len(), 1);
        assert_eq!(pair.b.set_uplinks(&mut at_b).attached.len(), 1);
        pair.use_network(&mut at_a, &mut at_b, NEIGHBOURS4);
        pair.a.ping(&pair.b);
        let direct = at_a.traffic(pair.b.id()).sent[Class::Direct as usize];
        assert!(direct.packets > 6, "the counters go on: {direct:?}");
    }
}

#[test]
fn a_changed_address_is_followed() {
    for choice in engines() {
        let pair = Pair::new(choice);
        let (mut at_a, mut at_b) = pair.steer();
        pair.use_network(&mut at_a, &mut at_b, NEIGHBOURS4);
        let (wg_a, wg_b) = (pair.a.wireguard(&[&pair.b]), pair.b.wireguard(&[&pair.a]));
        pair.meet();
        pair.a.netns.ip("address flush dev eth0 to 192.0.2.1");
        pair.a.netns.ip("address add 192.0.2.7/24 dev eth0");
        assert_eq!(pair.a.set_uplinks(&mut at_a).lost, [pair.b.id()]);
        let moved = ["192.0.2.7", NEIGHBOURS4[1]];
        at_b.admit("192.0.2.7:51821".parse().unwrap(), pair.a.id(), Class::Direct).unwrap();
        pair.use_network(&mut at_a, &mut at_b, moved);
        pair.a.ping(&pair.b);
        pair.b.ping(&pair.a);
        assert_eq!(wg_a.endpoints(), [Some(at_a.stable_endpoint(pair.b.id()))]);
        assert_eq!(wg_b.endpoints(), [Some(at_b.stable_endpoint(pair.a.id()))]);
    }
}

#[test]
fn a_route_that_goes_takes_the_path_along_and_the_next_hop_is_followed() {
    let pair = Pair::new(Choice::Userspace);
    let (mut at_a, mut at_b) = pair.steer();
    pair.use_network(&mut at_a, &mut at_b, ROUTED4);
    let (_wg_a, _wg_b) = (pair.a.wireguard(&[&pair.b]), pair.b.wireguard(&[&pair.a]));
    pair.meet();
    // Another router's address on the same link.
    pair.router.ip("address delete 10.1.0.1/24 dev eth1");
    pair.router.ip("address add 10.1.0.9/24 dev eth1");
    pair.a.netns.ip("route replace 10.2.0.0/24 via 10.1.0.9");
    pair.a.netns.ip("neighbour flush dev eth1");
    assert!(pair.a.set_uplinks(&mut at_a).lost.is_empty());
    pair.a.ping(&pair.b);
    pair.a.netns.ip("route delete 10.2.0.0/24");
    assert_eq!(pair.a.set_uplinks(&mut at_a).lost, [pair.b.id()]);
    pair.a.cannot_ping(&pair.b);
    assert!(counted(&at_a, Reason::NoPath) > 0);
    let path = pair.path_from_a(ROUTED4);
    let refused = pair.a.netns.run(|| at_a.set_path(pair.b.id(), Some(&path), None)).unwrap_err();
    assert!(matches!(refused, SteerError::NoRoute { .. }), "not taken for a neighbour: {refused}");
}

#[test]
fn the_first_path_is_lost_and_the_second_goes_on() {
    let pair = Pair::new(Choice::Userspace);
    let (mut at_a, mut at_b) = pair.steer();
    pair.use_network(&mut at_a, &mut at_b, NEIGHBOURS4);
    let (_wg_a, _wg_b) = (pair.a.wireguard(&[&pair.b]), pair.b.wireguard(&[&pair.a]));
    pair.meet();
    let (first, second) = (pair.path_from_a(NEIGHBOURS4), pair.path_from_a(ROUTED4));
    pair.a.set_path(&mut at_a, pair.b.id(), &first, Some(&second));
    pair.b.set_path(&mut at_b, pair.a.id(), &pair.path_from_b(ROUTED4), None);
    pair.a.netns.ip("address delete 192.0.2.1/24 dev eth0");
    assert_eq!(pair.a.set_uplinks(&mut at_a).lost, [pair.b.id()]);
    assert_eq!(at_a.path(pair.b.id()), (Some(second), None));
    pair.a.ping(&pair.b);
}

#[test]
fn loops_are_refused() {
    let pair = Pair::new(Choice::Userspace);
    let (mut at_a, _at_b) = pair.steer();
    let mut refused = |remote: &str| {
        let path = pair.a.wire(NEIGHBOURS4[0], remote);
        pair.a.netns.run(|| at_a.set_path(pair.b.id(), Some(&path), None)).unwrap_err()
    };
    for remote in ["198.18.0.2:51820", "198.19.0.1:51821", "192.0.2.1:51821", "10.1.0.2:1", "127.0.0.1:1"] {
        let error = refused(remote);
        assert!(matches!(error, SteerError::Loop { .. }), "{remote}: {error}");
    }
    assert!(matches!(refused("[2001:db8:1::2]:1"), SteerError::Families { .. }));
    let none = Path::Carrier { class: Class::Derp };
    assert!(matches!(at_a.set_path(PeerId(0), Some(&none), None), Err(SteerError::NoPeer)));
    assert!(at_a.admit("198.18.0.9:51820".parse().unwrap(), pair.b.id(), Class::Direct).is_err());
    // The device itself is no uplink.
    let own = ghostwire_dataplane::steer::Uplink { index: at_a.device().index, addresses: Vec::new() };
    let report = pair.a.netns.run(|| at_a.set_uplinks(&[own])).unwrap();
    assert_eq!((report.failed.len(), report.attached.len()), (1, 0));
}

#[test]
fn one_daemon_in_a_network_namespace() {
    let (node, other) = (Node::new(Choice::Userspace, 1), Node::new(Choice::Userspace, 2));
    let _first = node.steer();
    let refused = node
        .netns
        .run(|| {
            ghostwire_dataplane::steer::Steer::open(&"gw1".parse().unwrap(), other.bpf_dir(), &node.options)
        })
        .unwrap_err();
    assert!(matches!(refused, SteerError::NetworkInUse { .. }), "{refused}");
    let links = node.netns.ip("link list");
    assert!(!links.contains("gw1-steer"), "{links}");
}
