//! What nodes do, from their first request to their last.

use ghostwire_relay::sessions::config::LocalAddress;
use ghostwire_relay::sessions::{Event, Owner};
use ghostwire_relay_protocol::control::{Action, code};
use ghostwire_relay_protocol::stun::{Class, Kind, Message, Method, TransactionId, Writer};
use ghostwire_relay_protocol::token::{NetworkId, NodeId};

use crate::world::{AT_A, AT_B, MAIN, Met, Node, World, address, config};

#[test]
fn two_nodes_meet_and_traffic_flows_both_ways_through_their_own_ports() {
    let mut met = Met::new();
    assert!(met.flows(AT_A, AT_B));
    assert_eq!(met.world.relay.load(), (2, 1));
    assert!(met.world.events.contains(&Event::OpenPort(met.port_a)));
    assert!(met.world.events.iter().any(|event| matches!(event, Event::SessionOpened { session: 0, .. })));
}

#[test]
fn one_leg_alone_carries_nothing() {
    let (mut world, mut a, mut b) = (World::new(), Node::new(1), Node::new(2));
    a.allocate(&mut world, AT_A).unwrap();
    let port_b = b.allocate(&mut world, AT_B).unwrap();
    a.bind(&mut world, 2, port_b, AT_A).unwrap();
    assert_eq!(world.route(port_b, address(AT_A)), None);
}

#[test]
fn families_cross() {
    let (mut world, mut a, mut b) = (World::new(), Node::new(1), Node::new(2));
    let at_b = "[2001:db8:2::2]:2222";
    let port_a = a.allocate(&mut world, AT_A).unwrap();
    let port_b = b.allocate(&mut world, at_b).unwrap();
    a.bind(&mut world, 2, port_b, AT_A).unwrap();
    let lease = b.bind(&mut world, 1, port_a, at_b).unwrap();
    assert_eq!((lease.mapped, lease.relayed.port(), lease.relayed.is_ipv6()), (address(at_b), port_a, true));
    assert_eq!(world.route(port_b, address(AT_A)), Some((1, port_a, address(at_b))));
    assert_eq!(world.route(port_a, address(at_b)), Some((0, port_b, address(AT_A))));
}

#[test]
fn behind_a_one_to_one_nat_the_advertised_address_is_told() {
    let mut config = config();
    config.locals[0] =
        LocalAddress { local: "10.0.0.5".parse().unwrap(), advertised: "203.0.113.9".parse().unwrap() };
    let mut world = World::with(config);
    let lease = Node::new(1).ask(&mut world, Action::Allocate, None, MAIN, address(AT_A)).unwrap();
    assert_eq!(lease.relayed.ip(), "203.0.113.9".parse::<std::net::IpAddr>().unwrap());
    assert_eq!(lease.mapped, address(AT_A));
}

#[test]
fn a_node_keeps_its_port_when_it_asks_again() {
    let (mut world, mut a) = (World::new(), Node::new(1));
    let port = a.allocate(&mut world, AT_A).unwrap();
    assert_eq!(a.allocate(&mut world, "198.51.100.9:9"), Ok(port));
    assert_eq!(a.ask(&mut world, Action::Refresh, None, MAIN, address(AT_A)).unwrap().relayed.port(), port);
    assert_eq!(Node::new(2).ask(&mut world, Action::Refresh, None, MAIN, address(AT_B)), Err(code::MISMATCH));
}

#[test]
fn a_node_whose_address_changed_binds_again_and_the_old_address_is_dead() {
    let mut met = Met::new();
    let moved = "198.51.100.1:4444";
    assert_eq!(met.world.route(met.port_b, address(moved)), None);
    met.a.bind(&mut met.world, 2, met.port_b, moved).unwrap();
    assert!(met.flows(moved, AT_B));
    assert_eq!(met.world.route(met.port_b, address(AT_A)), None);
    // And back again.
    met.a.bind(&mut met.world, 2, met.port_b, AT_A).unwrap();
    assert!(met.flows(AT_A, AT_B));
}

#[test]
fn a_leg_at_an_address_that_another_node_has_shown_to_have_now_gives_way() {
    let mut met = Met::new();
    let mut c = Node::new(3);
    let port_c = c.allocate(&mut met.world, AT_A).unwrap();
    c.bind(&mut met.world, 2, met.port_b, AT_A).unwrap();
    assert_eq!(met.world.route(met.port_b, address(AT_A)), None, "C has no peer yet, and A is not there");
    met.b.bind(&mut met.world, 3, port_c, AT_B).unwrap();
    assert_eq!(met.world.route(met.port_b, address(AT_A)), Some((0, port_c, address(AT_B))));
    assert_eq!(met.world.route(met.port_a, address(AT_B)), None);
}

#[test]
fn what_is_not_refreshed_ends_and_what_is_lives() {
    let mut met = Met::new();
    for _ in 0..3 {
        met.world.pass(200);
        for (node, port, peer, at) in [(&mut met.a, met.port_b, 2, AT_A), (&mut met.b, met.port_a, 1, AT_B)] {
            node.ask(&mut met.world, Action::Refresh, Some(peer), port, address(at)).unwrap();
            node.ask(&mut met.world, Action::Refresh, None, MAIN, address(at)).unwrap();
        }
    }
    assert!(met.flows(AT_A, AT_B));
    met.world.pass(299);
    assert!(met.flows(AT_A, AT_B));
    met.world.pass(2);
    assert!(!met.flows(AT_A, AT_B));
    assert_eq!(met.world.relay.load(), (2, 0));
    met.world.pass(300);
    assert_eq!(met.world.relay.load(), (0, 0));
    assert!(met.world.events.contains(&Event::ClosePort(met.port_a)));
    assert!(met.world.events.contains(&Event::SessionClosed { session: 0 }));
}

#[test]
fn a_refresh_never_moves_a_leg() {
    let mut met = Met::new();
    let elsewhere = address("198.51.100.1:4444");
    let refresh = met.a.ask(&mut met.world, Action::Refresh, Some(2), met.port_b, elsewhere);
    assert_eq!(refresh, Err(code::MISMATCH));
    assert!(met.flows(AT_A, AT_B));
}

#[test]
fn releasing_a_leg_or_a_port_ends_it_at_once() {
    let mut met = Met::new();
    met.a.ask(&mut met.world, Action::Release, Some(2), met.port_b, address(AT_A)).unwrap();
    assert_eq!(met.world.route(met.port_b, address(AT_A)), None);
    assert_eq!(met.world.route(met.port_a, address(AT_B)), None);
    met.a.bind(&mut met.world, 2, met.port_b, AT_A).unwrap();
    assert!(met.flows(AT_A, AT_B));
    met.b.ask(&mut met.world, Action::Release, None, MAIN, address(AT_B)).unwrap();
    assert_eq!(met.world.route(met.port_b, address(AT_A)), None);
    assert_eq!(met.world.relay.load(), (1, 0));
}

#[test]
fn a_draining_relay_takes_nobody_new_and_keeps_those_who_are_there() {
    let mut met = Met::new();
    met.world.relay.drain();
    assert!(met.flows(AT_A, AT_B));
    assert_eq!(Node::new(3).allocate(&mut met.world, "198.51.100.3:3"), Err(code::TRY_ALTERNATE));
    let lease = met.a.ask(&mut met.world, Action::Refresh, None, MAIN, address(AT_A)).unwrap();
    assert!(lease.draining);
    met.a.bind(&mut met.world, 2, met.port_b, "198.51.100.1:4444").unwrap();
    assert!(met.flows("198.51.100.1:4444", AT_B));
}

#[test]
fn a_port_that_cannot_be_opened_is_not_given_out_again() {
    let (mut world, mut a) = (World::new(), Node::new(1));
    let port = a.allocate(&mut world, AT_A).unwrap();
    world.relay.port_failed(port);
    for id in 1..10 {
        assert_ne!(Node::new(id).allocate(&mut world, AT_A), Ok(port));
    }
    assert_eq!(Node::new(10).allocate(&mut world, AT_A), Err(code::CAPACITY));
}

#[test]
fn networks_are_apart() {
    let mut met = Met::new();
    let mut other = Node { network: 2, ..Node::new(1) };
    other.allocate(&mut met.world, "198.51.100.7:7").unwrap();
    // It is node 1 as well, but of another network.
    assert_eq!(other.bind(&mut met.world, 2, met.port_b, "198.51.100.7:7"), Err(code::MISMATCH));
}

#[test]
fn stun_tells_the_address_in_both_families_on_the_main_port_only() {
    let mut world = World::new();
    for source in ["198.51.100.1:1111", "[2001:db8:9::1]:2"] {
        let mut buffer = [0; 64];
        let mut writer =
            Writer::new(&mut buffer, Class::Request, Method::BINDING, TransactionId([1; 12])).unwrap();
        writer.fingerprint().unwrap();
        let request = writer.finish().to_vec();
        let answer = world.send(MAIN, address(source), &request).unwrap();
        let message = Message::parse(&answer).unwrap();
        let mapped = message.attribute(Kind::XOR_MAPPED_ADDRESS).unwrap().xor_address(message.transaction());
        assert_eq!(mapped, Some(address(source)));
        assert_eq!(world.send(50_000, address(source), &request), None);
    }
    let mut buffer = [0; 64];
    let mut writer =
        Writer::new(&mut buffer, Class::Request, Method::BINDING, TransactionId([1; 12])).unwrap();
    writer.attribute(Kind(0x0003), &[0; 4]).unwrap();
    let request = writer.finish().to_vec();
    let answer = world.send(MAIN, address(AT_A), &request).unwrap();
    let message = Message::parse(&answer).unwrap();
    assert_eq!(message.attribute(Kind::ERROR_CODE).unwrap().error_code(), Some(420));
    assert_eq!(message.attribute(Kind::UNKNOWN_ATTRIBUTES).unwrap().value, [0, 3]);
}

#[test]
fn an_unknown_source_on_a_live_port_is_reported_with_the_ports_owner() {
    let mut met = Met::new();
    met.world.events.clear();
    let stranger = address("198.51.100.1:5555");
    met.world.data(met.port_b, stranger);
    let owner = Owner { network: NetworkId(1), node: NodeId(2) };
    assert_eq!(met.world.events, [Event::UnknownSource { owner, source: stranger }]);
}
