//! One thing happens at a time, and what has to follow.

use std::time::Duration;

use ghostwire_path::timing::IDLE_AFTER;
use ghostwire_path::{Advice, Class, Filter, Input, RelayId, Route, State, Steer};

use crate::grid::{ENDPOINT_INDEPENDENT, Kind, PORT_PRESERVING, SYMMETRIC};
use crate::sim::World;
use crate::sim::nat::{Behaviour, Scope};
use crate::sim::net::INTERNET;

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn between(a: Kind, b: Kind) -> World {
    let mut world = World::new(1);
    a.build(&mut world, 0);
    b.build(&mut world, 1);
    world.start();
    world
}

fn settled(a: Kind, b: Kind) -> World {
    let mut world = between(a, b);
    world.run_for(seconds(30));
    world
}

fn why(world: &World, host: usize) -> String {
    world.nodes[host].machine.why(world.now).to_string()
}

/// The longest silence at the receiver since then, both directions.
fn gap(world: &World, since: std::time::Instant) -> Duration {
    world.nodes.iter().map(|node| node.longest_gap(since, world.now)).max().unwrap()
}

#[test]
fn traffic_starts_at_the_relay_and_moves_up() {
    let mut world = between(Kind::PortPreserving, Kind::EndpointIndependent);
    world.run_for(seconds(20));
    let node = &world.nodes[0];
    let classes: Vec<Class> =
        node.switches.iter().filter_map(|(_, route)| Some(route.as_ref()?.class())).collect();
    assert!(classes.len() <= 4, "{classes:?}");
    assert_eq!(classes.last(), Some(&Class::Direct), "{}", why(&world, 0));
    assert!(gap(&world, world.begin + seconds(1)) < Duration::from_millis(400));
}

#[test]
fn an_idle_peer_is_silent_and_the_first_packet_after_it_arrives() {
    let mut world = settled(Kind::PortPreserving, Kind::EndpointIndependent);
    world.traffic = [None, None];
    world.run_for(IDLE_AFTER + seconds(30));
    let before: u64 = world.nodes.iter().map(|node| node.outputs).sum();
    assert_eq!(world.nodes[0].machine.poll_timeout(), None);
    assert_eq!(world.nodes[1].machine.poll_timeout(), None);
    assert_eq!(world.nodes[0].machine.why(world.now).state, State::Asleep);
    world.run_for(seconds(3600));
    assert_eq!(world.nodes.iter().map(|node| node.outputs).sum::<u64>(), before);
    let received = world.nodes[1].delivered.len();
    world.traffic = [Some(Duration::from_millis(100)), None];
    let took = world.run_until(seconds(5), |world| world.nodes[1].delivered.len() > received);
    // Half a second is how often the simulated application looks whether it may send.
    assert!(took.is_some_and(|took| took < Duration::from_millis(700)), "{took:?}");
    world.traffic = [Some(Duration::from_millis(100)); 2];
    world.run_for(seconds(20));
    assert!(world.both(Class::Direct), "{}", why(&world, 0));
}

#[test]
fn a_dead_direct_path_costs_no_second_and_comes_back_after_a_hold_down() {
    let mut world = settled(Kind::PortPreserving, Kind::EndpointIndependent);
    assert!(world.both(Class::Direct));
    let then = world.now;
    for host in 0..2 {
        world.net.hosts[host].udp_blocked = true;
    }
    // The relay's UDP is gone too: only the stream is left, which was not even open.
    world.run_for(seconds(20));
    assert!(world.both(Class::Derp), "{}", why(&world, 0));
    assert!(gap(&world, then) < seconds(5), "{:?}", gap(&world, then));
    for host in 0..2 {
        world.net.hosts[host].udp_blocked = false;
    }
    assert!(world.run_until(seconds(200), |world| world.both(Class::Direct)).is_some(), "{}", why(&world, 0));
}

#[test]
fn a_relay_that_dies_costs_less_than_two_seconds() {
    let mut world = settled(Kind::Symmetric, Kind::Symmetric);
    assert!(world.both(Class::RelayPort), "{}", why(&world, 0));
    let then = world.now;
    world.set_relay(0, false);
    world.run_for(seconds(15));
    assert!(world.both(Class::RelayPort), "{}", why(&world, 0));
    assert!(gap(&world, then) < seconds(2), "{:?}", gap(&world, then));
    let then = world.now;
    world.set_relay(0, true);
    world.set_relay(1, false);
    world.run_for(seconds(30));
    assert!(gap(&world, then) < seconds(10), "{:?}", gap(&world, then));
    assert!(world.both(Class::RelayPort), "{}", why(&world, 0));
}

#[test]
fn a_relay_without_udp_falls_to_its_stream() {
    let mut world = settled(Kind::Symmetric, Kind::Symmetric);
    let then = world.now;
    for relay in &mut world.relays {
        relay.udp = false;
    }
    world.run_for(seconds(30));
    assert!(world.both(Class::Derp), "{}", why(&world, 0));
    assert!(gap(&world, then) < seconds(8), "{:?}", gap(&world, then));
    for relay in &mut world.relays {
        relay.udp = true;
    }
    assert!(
        world.run_until(seconds(120), |world| world.both(Class::RelayPort)).is_some(),
        "{}",
        why(&world, 0)
    );
}

#[test]
fn nat_rebinding_is_survived() {
    let mut world = settled(Kind::PortPreserving, Kind::EndpointIndependent);
    let then = world.now;
    world.rebind(0);
    world.rebind(1);
    world.run_for(seconds(60));
    assert!(world.both(Class::Direct), "{}", why(&world, 0));
    assert!(gap(&world, then) < seconds(3), "{:?}", gap(&world, then));
}

#[test]
fn a_rebooted_side_is_found_again() {
    let mut world = settled(Kind::PortPreserving, Kind::EndpointIndependent);
    let then = world.now;
    world.reboot(1, false);
    world.run_for(seconds(30));
    assert!(world.both(Class::Direct), "{} {}", why(&world, 0), why(&world, 1));
    assert!(gap(&world, then) < seconds(5), "{:?}", gap(&world, then));
}

#[test]
fn a_rebooted_side_is_found_again_without_the_coordinator() {
    let mut world = settled(Kind::PortPreserving, Kind::EndpointIndependent);
    world.set_coordinator(false);
    world.reboot(1, true);
    world.run_for(seconds(60));
    assert!(world.both(Class::Direct), "{} {}", why(&world, 0), why(&world, 1));
}

#[test]
fn traffic_flows_on_without_the_coordinator() {
    let mut world = settled(Kind::PortPreserving, Kind::PortPreserving);
    world.set_coordinator(false);
    let then = world.now;
    world.run_for(seconds(300));
    assert!(world.both(Class::Direct));
    assert!(gap(&world, then) < Duration::from_millis(400));
    // The address changes while nobody can be told: checks show it.
    world.rebind(0);
    let then = world.now;
    world.run_for(seconds(120));
    assert!(world.both(Class::Direct), "{}", why(&world, 0));
    assert!(gap(&world, then) < seconds(3), "{:?}", gap(&world, then));
}

#[test]
fn traffic_flows_on_while_the_peers_daemon_is_dead() {
    for kinds in [(Kind::PortPreserving, Kind::EndpointIndependent), (Kind::Symmetric, Kind::PortPreserving)]
    {
        let mut world = settled(kinds.0, kinds.1);
        world.nodes[1].daemon = false;
        let then = world.now;
        world.run_for(seconds(60));
        let gap = gap(&world, then);
        assert!(gap < seconds(1), "{gap:?}\n{}", why(&world, 0));
    }
}

#[test]
fn an_uplink_that_goes_is_replaced_at_once() {
    let mut world = World::new(3);
    let wifi = world.net.add_nat(INTERNET, PORT_PRESERVING, "203.0.113.1".parse().unwrap());
    let mobile = world.net.add_nat(INTERNET, ENDPOINT_INDEPENDENT, "203.0.113.2".parse().unwrap());
    world.uplink(0, 1, wifi, "192.168.1.10");
    world.uplink(0, 2, mobile, "10.1.1.10");
    Kind::Public.build(&mut world, 1);
    world.start();
    world.run_for(seconds(30));
    assert!(world.both(Class::Direct));
    let then = world.now;
    world.set_uplink(0, 1, false);
    world.run_for(seconds(20));
    assert!(world.both(Class::Direct), "{}", why(&world, 0));
    assert!(gap(&world, then) < seconds(2), "{:?}", gap(&world, then));
    let then = world.now;
    world.set_uplink(0, 1, true);
    world.set_uplink(0, 2, false);
    world.run_for(seconds(20));
    assert!(world.both(Class::Direct), "{}", why(&world, 0));
    assert!(gap(&world, then) < seconds(3), "{:?}", gap(&world, then));
}

#[test]
fn a_suspended_machine_comes_back() {
    let mut world = settled(Kind::PortPreserving, Kind::EndpointIndependent);
    world.sleep(0, seconds(7200));
    let then = world.now;
    world.run_for(seconds(20));
    assert!(world.both(Class::Direct), "{}", why(&world, 0));
    assert!(gap(&world, then) < seconds(3), "{:?}", gap(&world, then));
}

#[test]
fn blocked_wireguard_goes_by_quic_and_says_so() {
    let world = settled(Kind::WireGuardBlocked, Kind::PortPreserving);
    assert!(world.both(Class::Quic), "{}", why(&world, 0));
    let advice = world.nodes[0].machine.why(world.now).advice;
    assert!(advice.contains(&Advice::WireGuardBlocked), "{advice:?}");
    // A block that begins later.
    let mut world = settled(Kind::Public, Kind::PortPreserving);
    assert!(world.both(Class::Direct));
    let then = world.now;
    world.net.hosts[0].wireguard_blocked = true;
    world.gather(0);
    world.run_for(seconds(40));
    assert!(world.both(Class::Quic), "{}", why(&world, 0));
    assert!(gap(&world, then) < seconds(5), "{:?}", gap(&world, then));
}

#[test]
fn the_operator_can_prefer_and_pin() {
    let mut world = settled(Kind::Public, Kind::Public);
    let relay = Filter { class: Some(Class::RelayPort), ..Filter::default() };
    let then = world.now;
    for host in 0..2 {
        world.input(host, Input::Steer(Steer::Prefer(relay)));
    }
    world.run_for(seconds(10));
    assert!(world.both(Class::RelayPort), "{}", why(&world, 0));
    world.set_relay(0, false);
    world.set_relay(1, false);
    world.run_for(seconds(20));
    assert!(world.both(Class::Direct), "preferred is not pinned: {}", why(&world, 0));
    assert!(gap(&world, then) < seconds(2), "{:?}", gap(&world, then));
    for host in 0..2 {
        world.input(host, Input::Steer(Steer::Pin(relay)));
    }
    world.run_for(seconds(20));
    assert_eq!(world.class(0), None, "{}", why(&world, 0));
    assert!(world.nodes[0].machine.why(world.now).advice.contains(&Advice::Pinned));
    for host in 0..2 {
        world.input(host, Input::Steer(Steer::Automatic));
    }
    world.run_for(seconds(5));
    assert!(world.both(Class::Direct), "{}", why(&world, 0));
}

#[test]
fn the_operator_can_pin_a_stream_relay() {
    let mut world = settled(Kind::Public, Kind::Public);
    let derp = Filter { class: Some(Class::Derp), relay: Some(RelayId(1)), ..Filter::default() };
    for host in 0..2 {
        world.input(host, Input::Steer(Steer::Pin(derp)));
    }
    world.run_for(seconds(20));
    let route = world.nodes[0].machine.in_use().primary.map(|(_, route)| route);
    assert_eq!(route, Some(Route::Derp(RelayId(1))), "{}", why(&world, 0));
}

#[test]
fn a_lossy_path_is_kept_and_nothing_flaps() {
    let mut world = settled(Kind::PortPreserving, Kind::EndpointIndependent);
    world.loss = 0.1;
    let before = world.nodes[0].switches.len();
    world.run_for(seconds(1800));
    let switches = world.nodes[0].switches.len() - before;
    assert!(switches <= 4, "{switches} {}", why(&world, 0));
}

#[test]
fn a_path_that_comes_and_goes_is_held_down_longer_and_longer() {
    let mut world = settled(Kind::PortPreserving, Kind::PortPreserving);
    let before = world.nodes[0].switches.len();
    let then = world.now;
    for _ in 0..60 {
        world.net.hosts[0].udp_blocked = true;
        world.run_for(seconds(15));
        world.net.hosts[0].udp_blocked = false;
        world.run_for(seconds(15));
    }
    let switches = world.nodes[0].switches.len() - before;
    assert!(switches <= 30, "{switches} in half an hour of 60 outages");
    assert!(gap(&world, then) < seconds(12), "{:?} {}", gap(&world, then), why(&world, 0));
}

#[test]
fn a_faster_path_of_the_same_kind_wins_in_the_end() {
    let mut world = World::new(5);
    world.delay_v6 = Duration::from_millis(60);
    Kind::Public.build(&mut world, 0);
    Kind::Public.build(&mut world, 1);
    world.start();
    world.run_for(seconds(90));
    for host in 0..2 {
        let remote = world.nodes[host].machine.in_use().primary.and_then(|(_, route)| route.remote());
        assert!(remote.is_some_and(|remote| remote.is_ipv4()), "{}", why(&world, host));
    }
    let before = world.nodes[0].switches.len();
    world.run_for(seconds(1200));
    assert_eq!(world.nodes[0].switches.len(), before, "{}", why(&world, 0));
}

#[test]
fn says_why_it_is_relayed_and_when_it_tries_again() {
    let mut world = settled(Kind::Symmetric, Kind::Symmetric);
    let explained = world.nodes[0].machine.why(world.now);
    assert!(explained.next.is_some() != explained.running.is_some(), "{explained}");
    let planned = |world: &World| world.nodes[0].machine.why(world.now).next.is_some();
    assert!(world.run_until(seconds(20), planned).is_some());
    let explained = world.nodes[0].machine.why(world.now);
    assert_eq!(explained.state, State::Connected(Class::RelayPort));
    assert_eq!(explained.running, None);
    assert_eq!(explained.advice, [Advice::BothHard], "{explained}");
    assert!(explained.to_string().contains("UPnP"), "{explained}");
    println!("{explained}");
    let world = settled(Kind::UdpBlocked, Kind::Public);
    let explained = world.nodes[1].machine.why(world.now);
    assert!(explained.advice.contains(&Advice::UdpBlockedThere), "{explained}");
    println!("{explained}");
}

/// Every check comes from a new address, is let in and triggers another one.
#[test]
fn two_nats_that_show_new_addresses_without_end_starve_nothing() {
    let behaviour = Behaviour { filtering: Scope::Any, ..SYMMETRIC };
    let mut world = World::new(9);
    for host in 0..2 {
        let outside = format!("203.0.113.{}", host + 1).parse().unwrap();
        let realm = world.net.add_nat(INTERNET, behaviour, outside);
        world.uplink(host, 1, realm, "192.168.0.10");
    }
    world.start();
    world.run_for(seconds(60));
    for host in 0..2 {
        assert!(world.class(host).is_some(), "{}", why(&world, host));
        assert!(world.nodes[host].checks < 600, "{}", world.nodes[host].checks);
    }
    assert!(gap(&world, world.begin + seconds(1)) < seconds(1), "{}", why(&world, 0));
}

#[test]
fn birthday_probing_keeps_its_limits() {
    let world = settled(Kind::Symmetric, Kind::PortPreserving);
    for node in &world.nodes {
        assert!(node.most_checks_in_a_second <= 160, "{}", node.most_checks_in_a_second);
        assert!(node.checks < 2_000, "{}", node.checks);
    }
}

#[test]
fn the_passwords_are_not_shown() {
    let world = settled(Kind::Public, Kind::Public);
    let machine = &world.nodes[0].machine;
    assert!(!format!("{machine:?}").contains(&machine.credentials().password));
    assert!(machine.peer_credentials().is_some_and(|held| !format!("{machine:?}").contains(&held.password)));
}
