//! Random networks and random misfortunes. What must hold:
//! - in the end both sides use the best class that theory says exists;
//! - data arrives, whatever happens, as soon as some path has worked for a few seconds;
//! - once nothing changes any more, neither does the choice;
//! - memory and the rate of checks are bounded, an idle peer is silent.

use std::time::Duration;

use ghostwire_path::Class;
use ghostwire_path::timing::IDLE_AFTER;
use proptest::prelude::*;

use crate::sim::World;
use crate::sim::nat::{Behaviour, Scope};
use crate::sim::net::INTERNET;

/// How a host is attached.
#[derive(Clone, Debug)]
struct Place {
    nat: Option<Behaviour>,
    provider: Option<Behaviour>,
    v6: bool,
    firewall: bool,
    block: Block,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Block {
    Nothing,
    WireGuard,
    Udp,
}

#[derive(Clone, Debug)]
enum Misfortune {
    Rebind(usize),
    Reboot(usize, bool),
    UplinkDown(usize),
    UplinkUp(usize),
    RelayDown(usize),
    RelayUp(usize),
    CoordinatorAway,
    CoordinatorBack,
    Loss(u8),
    Sleep(usize, u16),
    Block(usize, Block),
    Silence,
    Traffic(usize),
}

fn scope() -> impl Strategy<Value = Scope> {
    prop_oneof![3 => Just(Scope::Any), 1 => Just(Scope::Address), 2 => Just(Scope::AddressPort)]
}

fn nat() -> impl Strategy<Value = Behaviour> {
    (scope(), scope(), any::<bool>(), any::<bool>()).prop_map(
        |(mapping, filtering, preserves_ports, hairpins)| Behaviour {
            mapping,
            filtering,
            preserves_ports,
            hairpins,
        },
    )
}

fn block() -> impl Strategy<Value = Block> {
    prop_oneof![8 => Just(Block::Nothing), 1 => Just(Block::WireGuard), 1 => Just(Block::Udp)]
}

fn place() -> impl Strategy<Value = Place> {
    (
        proptest::option::of(nat()),
        proptest::option::weighted(0.2, nat()),
        any::<bool>(),
        any::<bool>(),
        block(),
    )
        .prop_map(|(nat, provider, v6, firewall, block)| Place { nat, provider, v6, firewall, block })
}

fn misfortune() -> impl Strategy<Value = Misfortune> {
    let host = 0_usize..2;
    prop_oneof![
        host.clone().prop_map(Misfortune::Rebind),
        (host.clone(), any::<bool>()).prop_map(|(host, keeps)| Misfortune::Reboot(host, keeps)),
        host.clone().prop_map(Misfortune::UplinkDown),
        host.clone().prop_map(Misfortune::UplinkUp),
        host.clone().prop_map(Misfortune::RelayDown),
        host.clone().prop_map(Misfortune::RelayUp),
        Just(Misfortune::CoordinatorAway),
        Just(Misfortune::CoordinatorBack),
        (0_u8..40).prop_map(Misfortune::Loss),
        (host.clone(), 1_u16..1000).prop_map(|(host, seconds)| Misfortune::Sleep(host, seconds)),
        (host.clone(), block()).prop_map(|(host, block)| Misfortune::Block(host, block)),
        Just(Misfortune::Silence),
        host.prop_map(Misfortune::Traffic),
    ]
}

fn build(world: &mut World, host: usize, place: &Place) {
    let outside = |at: usize| format!("203.0.113.{}", host * 10 + at).parse().unwrap();
    let mut realm = INTERNET;
    if let Some(provider) = place.provider {
        realm = world.net.add_nat(realm, provider, outside(1));
    }
    if let Some(nat) = place.nat {
        let address =
            if realm == INTERNET { outside(2) } else { format!("100.64.{host}.7").parse().unwrap() };
        realm = world.net.add_nat(realm, nat, address);
    }
    // The same private address behind both NATs, as it is with home routers.
    let inside =
        if realm == INTERNET { format!("198.51.100.{}", host + 1) } else { "192.168.0.10".to_owned() };
    world.uplink(host, 1, realm, &inside);
    if place.v6 {
        world.uplink(host, 1, INTERNET, &format!("2001:db8:{}::10", host + 1));
    }
    world.net.hosts[host].firewall = place.firewall;
    set_block(world, host, place.block);
}

fn set_block(world: &mut World, host: usize, block: Block) {
    world.net.hosts[host].udp_blocked = block == Block::Udp;
    world.net.hosts[host].wireguard_blocked = block == Block::WireGuard;
}

fn suffer(world: &mut World, what: &Misfortune) {
    match *what {
        Misfortune::Rebind(nat) => world.rebind(nat),
        Misfortune::Reboot(host, keeps) => world.reboot(host, keeps),
        Misfortune::UplinkDown(host) => world.set_uplink(host, 1, false),
        Misfortune::UplinkUp(host) => world.set_uplink(host, 1, true),
        Misfortune::RelayDown(relay) => world.set_relay(relay, false),
        Misfortune::RelayUp(relay) => world.set_relay(relay, true),
        Misfortune::CoordinatorAway => world.set_coordinator(false),
        Misfortune::CoordinatorBack => world.set_coordinator(true),
        Misfortune::Loss(percent) => world.loss = f64::from(percent) / 100.0,
        Misfortune::Sleep(host, seconds) => world.sleep(host, Duration::from_secs(u64::from(seconds))),
        Misfortune::Block(host, block) => {
            set_block(world, host, block);
            world.gather(host);
        }
        Misfortune::Silence => world.traffic = [None, None],
        Misfortune::Traffic(host) => world.traffic[host] = Some(Duration::from_millis(250)),
    }
}

/// All is well again, except for what belongs to the place.
fn recover(world: &mut World, places: &[Place; 2]) {
    world.loss = 0.0;
    world.set_coordinator(true);
    world.set_relay(0, true);
    world.set_relay(1, true);
    world.traffic = [Some(Duration::from_millis(250)); 2];
    for (host, place) in places.iter().enumerate() {
        set_block(world, host, place.block);
        world.set_uplink(host, 1, true);
    }
}

/// Whether a port can be guessed from what STUN shows, and who gets in.
fn sums_up(place: &Place) -> (Scope, Scope, bool) {
    let mut mapping = Scope::Any;
    let mut filtering = if place.firewall { Scope::AddressPort } else { Scope::Any };
    let mut keeps_ports = false;
    for nat in [place.nat, place.provider].into_iter().flatten() {
        mapping = mapping.max(nat.mapping);
        filtering = filtering.max(nat.filtering);
        keeps_ports |= nat.preserves_ports;
    }
    (mapping, filtering, keeps_ports)
}

/// The best class that is certain to exist, and the best that may.
fn theory(places: &[Place; 2]) -> (Class, Class) {
    let blocked = |block: Block| places.iter().any(|place| place.block == block);
    if blocked(Block::Udp) {
        return (Class::Derp, Class::Derp);
    }
    let (best, relay) = if blocked(Block::WireGuard) {
        (Class::Quic, Class::Derp)
    } else {
        (Class::Direct, Class::RelayPort)
    };
    if places.iter().all(|place| place.v6) {
        return (best, best);
    }
    let [(mapping_a, filter_a, keeps_a), (mapping_b, filter_b, keeps_b)] =
        [sums_up(&places[0]), sums_up(&places[1])];
    let (hard_a, hard_b) = (mapping_a != Scope::Any, mapping_b != Scope::Any);
    match (hard_a, hard_b) {
        (false, false) => (best, best),
        (true, false) if filter_b < Scope::AddressPort => (best, best),
        (false, true) if filter_a < Scope::AddressPort => (best, best),
        (true, true)
            if filter_a == Scope::AddressPort && filter_b == Scope::AddressPort && !keeps_a && !keeps_b =>
        {
            (relay, relay)
        }
        _ => (relay, best),
    }
}

fn explain(world: &World) -> String {
    let [a, b] = [0, 1].map(|host| world.nodes[host].machine.why(world.now));
    format!("after {:.1} s\n{a}\n{b}", world.seconds())
}

pub(crate) fn cases(default: u32) -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(default);
    ProptestConfig { cases, failure_persistence: None, max_shrink_iters: 200, ..ProptestConfig::default() }
}

/// Checks of one side in a second, everything together: paced ones, health, birthday probes.
const MOST_CHECKS: usize = 180;
/// With loss as high as in these tests an answer takes a few tries.
const DELIVERED_AFTER: Duration = Duration::from_secs(20);

proptest! {
    #![proptest_config(cases(250))]

    #[test]
    fn the_best_path_is_found_and_kept(places in [place(), place()], seed in any::<u64>(), loss in 0_u8..10) {
        let mut world = World::new(seed);
        for (host, place) in places.iter().enumerate() {
            build(&mut world, host, place);
        }
        world.loss = f64::from(loss) / 100.0;
        world.start();
        world.run_for(Duration::from_secs(90));
        let (certain, possible) = theory(&places);
        for host in 0..2 {
            let class = world.class(host);
            prop_assert!(class.is_some_and(|class| (possible..=certain).contains(&class)),
                "wanted {certain} or {possible}, got {class:?} {}", explain(&world));
            prop_assert!(world.nodes[host].longest_gap(world.begin, world.now) < Duration::from_secs(5),
                "{:?} {}", world.nodes[host].longest_gap(world.begin, world.now), explain(&world));
        }
        let before = [0, 1].map(|host| world.nodes[host].switches.len());
        world.run_for(Duration::from_mins(5));
        for (host, before) in before.into_iter().enumerate() {
            let switches = world.nodes[host].switches.len() - before;
            prop_assert!(switches <= 3, "{switches} switches {:?} {}",
                &world.nodes[host].switches[before..], explain(&world));
            prop_assert!(world.nodes[host].most_checks_in_a_second <= MOST_CHECKS);
        }
    }

    #[test]
    fn no_misfortune_lasts(
        places in [place(), place()],
        seed in any::<u64>(),
        misfortunes in prop::collection::vec((misfortune(), 0_u16..40), 0..12),
    ) {
        let mut world = World::new(seed);
        for (host, place) in places.iter().enumerate() {
            build(&mut world, host, place);
        }
        world.start();
        for (what, pause) in &misfortunes {
            suffer(&mut world, what);
            world.run_for(Duration::from_secs(u64::from(*pause)));
        }
        recover(&mut world, &places);
        let recovered = world.now;
        // Both relays are back: from here on there is a path.
        world.run_for(Duration::from_secs(150));
        for host in 0..2 {
            let gap = world.nodes[host].longest_gap(recovered, world.now);
            prop_assert!(gap < DELIVERED_AFTER, "{gap:?} {}", explain(&world));
        }
        // Hold-downs of up to five minutes may still run.
        world.run_for(Duration::from_secs(330));
        let (certain, possible) = theory(&places);
        for host in 0..2 {
            let class = world.class(host);
            prop_assert!(class.is_some_and(|class| (possible..=certain).contains(&class)),
                "wanted {certain} or {possible}, got {class:?} {}", explain(&world));
        }
        let before = [0, 1].map(|host| world.nodes[host].switches.len());
        let calm = world.now;
        world.run_for(Duration::from_mins(5));
        for (host, before) in before.into_iter().enumerate() {
            let node = &world.nodes[host];
            let switches = node.switches.len() - before;
            prop_assert!(switches <= 2, "{switches} switches {:?} {}", &node.switches[before..], explain(&world));
            prop_assert!(node.longest_gap(calm, world.now) < Duration::from_secs(1), "{}", explain(&world));
            prop_assert!(node.most_checks_in_a_second <= MOST_CHECKS, "{}", node.most_checks_in_a_second);
        }
        world.traffic = [None, None];
        world.run_for(IDLE_AFTER + Duration::from_secs(30));
        let outputs = [0, 1].map(|host| world.nodes[host].outputs);
        world.run_for(Duration::from_hours(1));
        for (host, outputs) in outputs.into_iter().enumerate() {
            prop_assert_eq!(world.nodes[host].outputs, outputs, "not silent");
            prop_assert_eq!(world.nodes[host].machine.poll_timeout(), None);
        }
    }
}
