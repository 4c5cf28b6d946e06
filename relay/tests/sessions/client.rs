//! The node's side against the relay's, without sockets.

use std::net::SocketAddr;
use std::time::Duration;

use ghostwire_relay_protocol::client::{Client, Event};
use ghostwire_relay_protocol::token::NodeId;
use x25519_dalek::PublicKey;

use crate::world::{AT_A, AT_B, MAIN, Node, RELAY, START, World, address};

/// A client with an address, and the node that gets its tokens.
struct Side {
    node: Node,
    client: Client,
    at: SocketAddr,
    events: Vec<Event>,
}

const TICK: Duration = Duration::from_millis(50);

impl Side {
    fn new(world: &World, id: u64, at: &str) -> Self {
        let node = Node::new(id);
        let (key, main) = (PublicKey::from(&world.secret).to_bytes(), address("203.0.113.1:3478"));
        let client = Client::new(RELAY, &key, main, &node.secret, [7; 32], START * 1000).unwrap();
        Self { node, client, at: address(at), events: Vec::new() }
    }

    fn tokens(&mut self, now: Duration, peer: u64) {
        self.client.set_token(now, None, self.node.token(None));
        self.client.set_token(now, Some(NodeId(peer)), self.node.token(Some(peer)));
    }

    fn bound(&self) -> Option<(SocketAddr, bool)> {
        self.events.iter().rev().find_map(|event| match event {
            Event::Bound { at, peer_bound, .. } => Some(Some((*at, *peer_bound))),
            Event::Unbound { .. } => Some(None),
            _ => None,
        })?
    }
}

/// Lets time pass and datagrams travel; about every `lossy`th datagram is lost.
fn run(world: &mut World, sides: &mut [Side], time: Duration, lossy: Option<u32>) {
    let end = world.now.monotonic + time;
    let mut count = 0;
    while world.now.monotonic < end {
        world.now.monotonic += TICK;
        world.now.unix = START + world.now.monotonic.as_secs() - 100;
        world.relay.handle_timeout(world.now);
        for side in sides.iter_mut() {
            side.client.handle_timeout(world.now.monotonic);
            while let Some(transmit) = side.client.poll_transmit() {
                count += 1;
                // Without a pattern, which would take always the same ones.
                let lost = |number: u32| {
                    let scrambled = number.wrapping_mul(0x9E37_79B1) >> 16;
                    lossy.is_some_and(|each| scrambled.is_multiple_of(each))
                };
                if lost(count) {
                    continue;
                }
                let answer = world.send(transmit.to.port(), side.at, &transmit.bytes);
                count += 1;
                if let (Some(answer), false) = (answer, lost(count)) {
                    assert!(side.client.handle_input(world.now.monotonic, transmit.to, &answer));
                }
            }
            while let Some(event) = side.client.poll_event() {
                side.events.push(event);
            }
        }
    }
}

fn flows(world: &mut World, a: &Side, b: &Side) -> bool {
    let (Some((to_b, true)), Some((to_a, true))) = (a.bound(), b.bound()) else { return false };
    let there = world.route(to_b.port(), a.at).map(|(_, port, to)| (port, to));
    let back = world.route(to_a.port(), b.at).map(|(_, port, to)| (port, to));
    there == Some((to_a.port(), b.at)) && back == Some((to_b.port(), a.at))
}

fn met(lossy: Option<u32>) -> (World, [Side; 2]) {
    let mut config = crate::world::config();
    config.limits.penalty = 0;
    let mut world = World::with(config);
    let mut sides = [Side::new(&world, 1, AT_A), Side::new(&world, 2, AT_B)];
    for (side, peer) in sides.iter_mut().zip([2, 1]) {
        side.tokens(world.now.monotonic, peer);
        side.client.bind(world.now.monotonic, NodeId(peer));
    }
    run(&mut world, &mut sides, Duration::from_secs(20), lossy);
    assert!(flows(&mut world, &sides[0], &sides[1]), "{:?}\n{:?}", sides[0].events, sides[1].events);
    (world, sides)
}

#[test]
fn two_clients_meet_and_stay_bound() {
    let (mut world, mut sides) = met(None);
    let relayed = sides[0].events.iter().find_map(|event| match event {
        Event::Allocated { relayed, mapped } => Some((*relayed, *mapped)),
        _ => None,
    });
    assert_eq!(relayed.map(|(_, mapped)| mapped), Some(address(AT_A)));
    // Two hours: every lease has ended many times.
    for _ in 0..120 {
        run(&mut world, &mut sides, Duration::from_mins(1), None);
        assert!(flows(&mut world, &sides[0], &sides[1]));
    }
    assert_eq!(world.relay.load(), (2, 1));
}

#[test]
fn lost_datagrams_cost_time_only() {
    for lossy in [2, 3, 5] {
        met(Some(lossy));
    }
}

#[test]
fn a_peer_that_comes_late_is_found_within_a_second_or_so() {
    let mut world = World::new();
    let mut sides = [Side::new(&world, 1, AT_A), Side::new(&world, 2, AT_B)];
    sides[0].tokens(world.now.monotonic, 2);
    sides[0].client.bind(world.now.monotonic, NodeId(2));
    run(&mut world, &mut sides, Duration::from_secs(30), None);
    assert_eq!(sides[0].bound(), None);
    sides[1].tokens(world.now.monotonic, 1);
    sides[1].client.bind(world.now.monotonic, NodeId(1));
    run(&mut world, &mut sides, Duration::from_secs(4), None);
    let [a, b] = &sides;
    assert!(flows(&mut world, a, b), "{:?}\n{:?}", a.events, b.events);
}

#[test]
fn a_client_whose_address_changed_binds_again_when_told() {
    let (mut world, mut sides) = met(None);
    sides[0].at = address("198.51.100.1:4444");
    let [a, b] = &sides;
    assert!(!flows(&mut world, a, b));
    sides[0].client.rebind(world.now.monotonic);
    run(&mut world, &mut sides, Duration::from_secs(2), None);
    let [a, b] = &sides;
    assert!(flows(&mut world, a, b));
}

#[test]
fn without_tokens_they_are_asked_for_and_used_when_they_come() {
    let mut world = World::new();
    let mut sides = [Side::new(&world, 1, AT_A)];
    sides[0].client.bind(world.now.monotonic, NodeId(2));
    run(&mut world, &mut sides, Duration::from_secs(1), None);
    assert!(sides[0].events.contains(&Event::TokenNeeded { peer: None }));
    assert!(sides[0].events.contains(&Event::TokenNeeded { peer: Some(NodeId(2)) }));
    // An expired one is no better.
    let expired = Node { expires: START + 1, ..Node::new(1) };
    sides[0].events.clear();
    sides[0].client.set_token(world.now.monotonic, None, expired.token(None));
    run(&mut world, &mut sides, Duration::from_secs(3), None);
    assert!(sides[0].events.contains(&Event::TokenNeeded { peer: None }));
    sides[0].tokens(world.now.monotonic, 2);
    run(&mut world, &mut sides, Duration::from_secs(12), None);
    assert!(sides[0].events.iter().any(|event| matches!(event, Event::Allocated { .. })));
}

#[test]
fn a_relay_that_does_not_answer_is_told_about_and_found_again() {
    let (mut world, mut sides) = met(None);
    sides[0].client.rebind(world.now.monotonic);
    run(&mut world, &mut sides, Duration::from_secs(20), Some(1));
    assert_eq!(sides[0].events.iter().filter(|event| **event == Event::Unreachable).count(), 1);
    run(&mut world, &mut sides, Duration::from_secs(10), None);
    let [a, b] = &sides;
    assert!(flows(&mut world, a, b));
}

#[test]
fn a_draining_relay_and_one_that_forgot_are_noticed() {
    let (mut world, mut sides) = met(None);
    world.relay.drain();
    run(&mut world, &mut sides, Duration::from_mins(6), None);
    assert!(sides[0].events.contains(&Event::Draining));
    // The relay has lost everything; its ports may be others.
    let fresh = World::with(crate::world::config());
    world.relay = fresh.relay;
    run(&mut world, &mut sides, Duration::from_mins(12), None);
    let [a, b] = &sides;
    assert!(flows(&mut world, a, b), "{:?}", a.events);
}

#[test]
fn what_is_given_back_is_gone() {
    let (mut world, mut sides) = met(None);
    sides[0].client.unbind(world.now.monotonic, NodeId(2));
    run(&mut world, &mut sides, Duration::from_secs(1), None);
    assert_eq!(world.relay.load(), (2, 0));
    sides[0].client.release(world.now.monotonic);
    run(&mut world, &mut sides, Duration::from_secs(1), None);
    assert_eq!(world.relay.load().0, 1);
    assert_eq!(MAIN, sides[0].client.main().port());
}

#[test]
fn strangers_answers_change_nothing() {
    let (mut world, mut sides) = met(None);
    sides[0].client.rebind(world.now.monotonic);
    sides[0].client.handle_timeout(world.now.monotonic);
    let transmit = sides[0].client.poll_transmit().unwrap();
    let answer = world.send(transmit.to.port(), sides[0].at, &transmit.bytes).unwrap();
    let now = world.now.monotonic;
    assert!(!sides[0].client.handle_input(now, address("203.0.113.9:3478"), &answer), "from elsewhere");
    assert!(!sides[0].client.handle_input(now, address("203.0.113.1:3479"), &answer), "from another port");
    for at in 0..answer.len() {
        let mut forged = answer.clone();
        forged[at] ^= 1;
        let _ = sides[0].client.handle_input(now, transmit.to, &forged);
    }
    assert!(!sides[0].client.handle_input(now, transmit.to, b"no STUN"));
}
