//! Two nodes, their datagrams, signals and streams, in one test.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use ghostwire_path::{Class, Filter, Steer};
use ghostwire_proto::keys::NodeKey;

use super::*;

const PORT: u16 = 51_820;
const QUIC_PORT: u16 = 443;

struct Node {
    id: u64,
    key: NodeKey,
    address: IpAddr,
    ways: Ways,
    told: Option<(Option<Hop>, Option<Hop>)>,
    admitted: Vec<SocketAddr>,
    /// Packets of the peer that reached this node's WireGuard, and how.
    got: Vec<(Vec<u8>, &'static str)>,
    /// It has a connection.
    connected: bool,
    calls: u32,
}

/// What the network lets through.
#[derive(Clone, Copy)]
struct Weather {
    direct: bool,
    quic: bool,
    streams: bool,
    signals: bool,
}

struct World {
    now: Instant,
    nodes: [Node; 2],
    weather: Weather,
    /// So many packets are lost in streams from now on.
    lost: u32,
}

fn key(number: u8) -> NodeKey {
    NodeKey::new([number; 32])
}

fn relay() -> pb::Relay {
    pb::Relay {
        number: 7,
        id: vec![7; 16],
        region: "frankfurt".to_owned(),
        addresses: vec![vec![203, 0, 113, 7]],
        key: vec![9; 32],
        derp_key: vec![8; 32],
        derp_port: 443,
        ..pb::Relay::default()
    }
}

impl World {
    fn new(weather: Weather) -> Self {
        let now = Instant::now();
        let node = |number: u8| {
            let address: IpAddr = format!("192.0.2.{number}").parse().unwrap();
            let mut ways = Ways::new(now, key(number), [number; 32]);
            ways.set_quic(Some(OwnQuic { key: PublicKey([number; 32]), port: QUIC_PORT }));
            let uplinks = vec![Uplink { index: 2, addresses: vec![address] }];
            ways.set_network(now, uplinks, PORT, Vec::new(), None);
            ways.set_relays(now, &[relay()]);
            let other = 3 - number;
            let peers = BTreeMap::from([(u64::from(other), Neighbour { key: key(other), online: true })]);
            ways.set_peers(now, &peers);
            Node {
                id: number.into(),
                key: key(number),
                address,
                ways,
                told: None,
                admitted: Vec::new(),
                got: Vec::new(),
                connected: false,
                calls: 0,
            }
        };
        Self { now, nodes: [node(1), node(2)], weather, lost: 0 }
    }

    /// Does what both want until nothing moves any more.
    fn settle(&mut self) {
        loop {
            let mut moved = false;
            for at in 0..2 {
                while let Some(effect) = self.nodes[at].ways.poll_effect() {
                    moved = true;
                    self.effect(at, effect);
                }
            }
            if !moved {
                return;
            }
        }
    }

    fn effect(&mut self, at: usize, effect: Effect) {
        let now = self.now;
        let (from, key, address) = (self.nodes[at].id, self.nodes[at].key, self.nodes[at].address);
        let other = &mut self.nodes[1 - at];
        match effect {
            Effect::Send { base, remote, bytes } if base.socket == Socket::Quic => {
                let (source, target) = (SocketAddr::new(address, QUIC_PORT), other.address);
                assert_eq!(base.address, source);
                if self.weather.quic && remote == SocketAddr::new(target, QUIC_PORT) {
                    other.ways.quic_stun(now, Some(target), source, &bytes);
                }
            }
            Effect::Quic { bytes, .. } => {
                if self.weather.quic && other.connected {
                    other.ways.quic_message(now, from, bytes);
                }
            }
            Effect::OpenQuic { peer, key, remote, .. } => self.connect(at, peer, key, remote),
            Effect::CloseQuic { .. } => {
                self.nodes[at].connected = false;
                if std::mem::take(&mut self.nodes[1 - at].connected) {
                    self.nodes[1 - at].ways.quic_down(now, from, ghostwire_path::CarrierFailure::Lost);
                }
            }
            Effect::Send { base, remote, bytes } => {
                assert_eq!(base.address, SocketAddr::new(address, PORT));
                let source = SocketAddr::new(address, PORT);
                if self.weather.direct && remote == SocketAddr::new(other.address, PORT) {
                    if bytes.starts_with(&[1, 0, 0, 0]) {
                        let admitted = other.admitted.contains(&source);
                        other.got.extend(admitted.then_some((bytes, "wire")));
                    } else {
                        other.ways.datagram(now, 2, remote, source, &bytes);
                    }
                }
            }
            Effect::Stream { relay, to, bytes } => {
                assert_eq!((relay, to), (RelayId(7), other.key));
                if self.lost > 0 {
                    self.lost -= 1;
                } else if self.weather.streams {
                    other.ways.stream_packet(now, relay, key, bytes);
                }
            }
            Effect::Deliver { peer, class, bytes } => {
                assert_eq!(peer, 3 - from);
                let how = if class == Class::Quic { "quic" } else { "stream" };
                self.nodes[at].got.push((bytes, how));
            }
            Effect::Use { primary, also, .. } => self.nodes[at].told = Some((primary, also)),
            Effect::Admit { remote, .. } => self.nodes[at].admitted.push(remote),
            Effect::Dismiss { remote, .. } => self.nodes[at].admitted.retain(|known| *known != remote),
            Effect::Signal { to, signal } => {
                assert_eq!(to, other.id);
                if self.weather.signals {
                    other.ways.signal(now, from, &signal);
                }
            }
            Effect::OpenStream(description) => {
                let opened = if self.weather.streams {
                    Ok(Duration::from_millis(30))
                } else {
                    Err(ghostwire_path::CarrierFailure::Unreachable)
                };
                self.nodes[at].ways.on_stream(now, description.number, opened);
            }
            Effect::MoveQuic { .. }
            | Effect::QuicPeers(_)
            | Effect::AskTokens(_)
            | Effect::CloseStream(_) => {}
        }
    }

    /// A node calls the other by QUIC.
    fn connect(&mut self, at: usize, peer: u64, key: PublicKey, remote: SocketAddr) {
        let (now, source) = (self.now, SocketAddr::new(self.nodes[at].address, QUIC_PORT));
        let (from, target) = (self.nodes[at].id, self.nodes[1 - at].address);
        assert_eq!(
            (key, remote),
            (PublicKey([3 - u8::try_from(from).unwrap(); 32]), SocketAddr::new(target, QUIC_PORT))
        );
        self.nodes[at].calls += 1;
        if !self.weather.quic {
            self.nodes[at].ways.quic_down(now, peer, ghostwire_path::CarrierFailure::Unreachable);
            return;
        }
        self.nodes.iter_mut().for_each(|node| node.connected = true);
        self.nodes[at].ways.quic_up(now, peer, true, None, remote);
        self.nodes[1 - at].ways.quic_up(now, from, false, Some(target), source);
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            self.settle();
            let due = self.nodes.iter().filter_map(|node| node.ways.poll_timeout()).min();
            let Some(due) = due.filter(|due| *due <= end) else { break };
            self.now = self.now.max(due);
            for node in &mut self.nodes {
                node.ways.on_time(self.now);
            }
        }
        self.now = end;
    }

    /// The first node's WireGuard sends.
    fn send(&mut self, byte: u8) {
        let packet = vec![1, 0, 0, 0, byte];
        self.nodes[0].ways.outgoing(self.now, 2, packet);
        self.settle();
    }

    fn class(&self, at: usize) -> &'static str {
        let node = &self.nodes[at];
        node.ways.summary(self.now, 3 - node.id).unwrap().class
    }
}

const FAIR: Weather = Weather { direct: true, quic: false, streams: true, signals: true };

#[test]
fn nothing_is_said_until_there_is_something_to_send() {
    let mut world = World::new(FAIR);
    world.run(Duration::from_hours(1));
    assert!(world.nodes.iter().all(|node| node.told.is_none() && node.admitted.is_empty()));
    assert_eq!(world.class(0), "none");
    assert_eq!(world.nodes[0].ways.summary(world.now, 2).unwrap().path, "idle");
}

#[test]
fn the_first_packet_is_kept_and_arrives_and_both_get_a_direct_path() {
    let mut world = World::new(FAIR);
    world.send(1);
    world.run(Duration::from_secs(2));
    assert!(!world.nodes[1].got.is_empty());
    assert!(world.nodes[0].ways.peers[&2].held.is_empty(), "what has arrived is not kept");
    for at in 0..2 {
        assert_eq!(world.class(at), "direct");
        let peer = SocketAddr::new(world.nodes[1 - at].address, PORT);
        assert!(world.nodes[at].admitted.contains(&peer));
        let Some((Some(Hop::Wire { remote, relayed: false, .. }), None)) = world.nodes[at].told else {
            panic!("{:?}", world.nodes[at].told)
        };
        assert_eq!(remote, peer);
    }
    assert!(world.nodes[0].ways.summary(world.now, 2).unwrap().latency.is_some());
}

#[test]
fn what_goes_by_a_way_that_is_not_proven_is_repeated() {
    let mut world = World::new(Weather { direct: false, ..FAIR });
    world.lost = 4;
    world.send(1);
    world.send(2);
    assert_eq!(world.nodes[0].told, None, "both went, on hope");
    assert!(world.nodes[1].got.is_empty());
    world.run(Duration::from_secs(2));
    let got: Vec<u8> = world.nodes[1].got.iter().filter_map(|(bytes, _)| bytes.last().copied()).collect();
    assert!(got.contains(&1) && got.contains(&2), "{got:?}");
    assert!(world.nodes[0].told.is_some());
}

#[test]
fn only_the_last_packets_are_kept_and_not_for_long() {
    let mut world = World::new(Weather { direct: false, streams: false, ..FAIR });
    for byte in 0..20 {
        world.send(byte);
    }
    assert_eq!(world.nodes[0].ways.peers[&2].held.len(), MOST_HELD);
    world.run(HELD_FOR);
    world.weather = FAIR;
    world.run(Duration::from_secs(20));
    assert_eq!(world.nodes[1].got, [], "what is old is not sent any more");
    world.send(99);
    world.run(Duration::from_secs(30));
    assert!(world.nodes[1].got.iter().any(|(bytes, _)| bytes[4] == 99), "{:?}", world.nodes[1].got);
}

#[test]
fn where_udp_does_not_pass_the_stream_carries_and_is_told_why() {
    let mut world = World::new(Weather { direct: false, ..FAIR });
    world.send(1);
    world.run(Duration::from_secs(2));
    assert!(world.nodes[1].got.contains(&(vec![1, 0, 0, 0, 1], "stream")));
    let summary = world.nodes[0].ways.summary(world.now, 2).unwrap();
    assert_eq!((summary.path.as_str(), summary.class), ("relay (TLS) frankfurt", "relay-tls"));
    world.run(Duration::from_secs(20));
    let why = world.nodes[0].ways.why(world.now, 2).unwrap();
    assert!(why.advice.iter().any(|advice| advice.contains("firewall")), "{:?}", why.advice);
    assert!(why.paths.iter().any(|path| path.class == "direct" && path.failure == "no answer"));
    // The way opens: the next tries find it.
    world.weather = FAIR;
    world.nodes[0].ways.try_now(world.now, 2);
    world.run(Duration::from_secs(5));
    assert_eq!(world.class(0), "direct");
}

#[test]
fn where_wireguard_does_not_pass_quic_carries_and_gives_way_again() {
    let mut world = World::new(Weather { direct: false, quic: true, ..FAIR });
    world.send(1);
    world.run(Duration::from_secs(5));
    for at in 0..2 {
        assert_eq!(world.class(at), "quic");
        let id = 3 - world.nodes[at].id;
        let path = world.nodes[at].ways.summary(world.now, id).unwrap().path;
        assert_eq!(path, format!("QUIC {}:{QUIC_PORT}", world.nodes[1 - at].address));
        assert!(world.nodes[at].admitted.is_empty(), "the key of a connection is what lets in");
    }
    world.send(2);
    assert!(world.nodes[1].got.contains(&(vec![1, 0, 0, 0, 2], "quic")));
    assert_eq!(world.nodes.iter().map(|node| node.calls).sum::<u32>(), 1, "one side calls");
    world.weather.direct = true;
    world.nodes[0].ways.try_now(world.now, 2);
    world.run(Duration::from_secs(5));
    assert_eq!((world.class(0), world.class(1)), ("direct", "direct"));
}

#[test]
fn connection_moves_with_the_callers_address() {
    let mut world = World::new(Weather { direct: false, quic: true, ..FAIR });
    world.send(1);
    world.run(Duration::from_secs(5));
    let caller = usize::from(world.nodes[1].calls > 0);
    let other = world.nodes[1 - caller].id;
    let address: IpAddr = "192.0.2.77".parse().unwrap();
    world.nodes[caller].address = address;
    let (now, id) = (world.now, world.nodes[caller].id);
    let uplinks = vec![Uplink { index: 2, addresses: vec![address] }];
    world.nodes[caller].ways.set_network(now, uplinks, PORT, Vec::new(), None);
    let effects: Vec<Effect> = std::iter::from_fn(|| world.nodes[caller].ways.poll_effect()).collect();
    assert!(
        effects.iter().any(|effect| matches!(effect, Effect::MoveQuic { local, .. } if *local == address))
    );
    assert!(!effects.iter().any(|effect| matches!(effect, Effect::CloseQuic { .. })), "{effects:?}");
    for effect in effects {
        world.effect(caller, effect);
    }
    world.nodes[1 - caller].ways.quic_moved(now, id, SocketAddr::new(address, QUIC_PORT));
    world.send(2);
    world.run(Duration::from_secs(1));
    assert_eq!(world.nodes[caller].ways.summary(world.now, other).unwrap().class, "quic");
    assert_eq!(world.nodes.iter().map(|node| node.calls).sum::<u32>(), 1, "it is the same connection");
}

#[test]
fn without_the_peers_key_nobody_is_called_and_another_key_ends_the_connection() {
    let mut world = World::new(Weather { direct: false, quic: true, ..FAIR });
    world.send(1);
    world.run(Duration::from_secs(5));
    assert_eq!(world.class(0), "quic");
    let now = world.now;
    let ways = &mut world.nodes[0].ways;
    let told = |revision: u32, key: Vec<u8>| pb::Signal {
        generation: u64::MAX,
        revision,
        quic_key: key,
        ..pb::Signal::default()
    };
    ways.note_quic_key(now, 2, &told(2, vec![9; 32]));
    let effects: Vec<Effect> = std::iter::from_fn(|| ways.poll_effect()).collect();
    assert!(effects.contains(&Effect::QuicPeers(HashSet::from([PublicKey([9; 32])]))), "{effects:?}");
    assert!(effects.contains(&Effect::CloseQuic { peer: 2 }));
    assert_eq!((ways.quic_peer(PublicKey([2; 32])), ways.quic_peer(PublicKey([9; 32]))), (None, Some(2)));
    // What is older, or no key at all, opens nothing.
    ways.note_quic_key(now, 2, &told(1, vec![2; 32]));
    assert_eq!(ways.quic_peer(PublicKey([2; 32])), None);
    ways.note_quic_key(now, 2, &told(3, vec![2; 31]));
    let base = ways.quic_bases()[0];
    ways.open_quic(now, 2, ghostwire_path::Route::Pair { base, remote: "198.51.100.2:443".parse().unwrap() });
    let opened =
        std::iter::from_fn(|| ways.poll_effect()).any(|effect| matches!(effect, Effect::OpenQuic { .. }));
    assert!(!opened);
}

#[test]
fn operators_choose() {
    let mut world = World::new(FAIR);
    world.send(1);
    world.run(Duration::from_secs(2));
    let relayed = Filter { class: Some(Class::Derp), ..Filter::default() };
    world.nodes[0].ways.steer(world.now, 2, Steer::Pin(relayed));
    world.run(Duration::from_secs(3));
    assert_eq!(world.class(0), "relay-tls");
    assert_eq!(world.nodes[0].ways.why(world.now, 2).unwrap().wish, "only relay (TLS)");
    world.nodes[0].ways.steer(world.now, 2, Steer::Automatic);
    world.run(Duration::from_secs(10));
    assert_eq!(world.class(0), "direct");
}

#[test]
fn what_was_adopted_stays_until_something_is_proven() {
    let mut world = World::new(Weather { direct: false, ..FAIR });
    let now = world.now;
    let peers = BTreeMap::from([(2, Neighbour { key: key(2), online: true })]);
    world.nodes[0].ways.set_peers(now, &BTreeMap::new());
    world.nodes[0].ways.adopt(now, 2);
    world.nodes[0].ways.set_peers(now, &peers);
    world.weather = Weather { direct: false, signals: false, ..FAIR };
    world.nodes[0].ways.traffic(now, 2, true, false);
    world.run(Duration::from_secs(1));
    assert_eq!(world.nodes[0].told, None, "hope must not replace what works");
    world.weather = FAIR;
    world.nodes[0].ways.traffic(world.now, 2, true, false);
    world.run(Duration::from_secs(12));
    assert!(world.nodes[0].told.is_some());
}

#[test]
fn strangers_and_damaged_messages_move_nothing() {
    let mut world = World::new(FAIR);
    world.send(1);
    world.run(Duration::from_secs(2));
    let told = world.nodes[1].told;
    let local = SocketAddr::new(world.nodes[1].address, PORT);
    let stranger: SocketAddr = "198.51.100.66:4444".parse().unwrap();
    // A check of somebody who knows the names but not the password.
    let fragment = world.nodes[1].ways.peers[&1].machine.credentials().fragment.clone();
    let forged = ghostwire_path::Credentials { fragment, password: "p".repeat(32) };
    let base = world.nodes[1].ways.bases()[0];
    let check = ghostwire_path::Check {
        route: ghostwire_path::Route::Pair { base, remote: stranger },
        framing: ghostwire_path::Framing::Stun,
        transaction: ghostwire_path::Transaction([1; 12]),
        priority: 1,
        nominate: true,
        attempt: 900,
    };
    let bytes = checks::check(&check, "who", &forged).unwrap();
    let now = world.now;
    world.nodes[1].ways.datagram(now, 2, local, stranger, &bytes);
    world.nodes[1].ways.datagram(now, 2, local, stranger, &bytes[..30]);
    world.nodes[1].ways.stream_packet(now, RelayId(7), key(77), vec![1, 0, 0, 0, 5]);
    world.nodes[1].ways.signal(now, 77, &pb::Signal::default());
    assert_eq!(world.nodes[1].ways.poll_effect(), None);
    world.nodes[1].ways.signal(now, 1, &pb::Signal { protocol: 99, ..pb::Signal::default() });
    world.settle();
    assert_eq!(world.nodes[1].told, told);
    assert!(!world.nodes[1].admitted.contains(&stranger));
    let why = world.nodes[1].ways.why(now, 1).unwrap();
    assert!(why.advice.iter().any(|advice| advice.contains("version 99")), "{:?}", why.advice);
}

#[test]
fn a_peer_that_is_gone_leaves_nothing_behind() {
    let mut world = World::new(FAIR);
    world.send(1);
    world.run(Duration::from_secs(2));
    let now = world.now;
    world.nodes[0].ways.set_peers(now, &BTreeMap::new());
    let ways = &world.nodes[0].ways;
    assert!(ways.peers.is_empty() && ways.fragments.is_empty() && ways.keys.is_empty());
    assert_eq!(ways.summary(now, 2), None);
    assert!(ways.asked.is_empty());
    world.settle();
    assert_eq!((world.nodes[0].told, world.nodes[0].admitted.len()), (Some((None, None)), 0));
}

/// The first node starts again with what is left of it, and nothing of the network's.
fn restart(world: &mut World, kept: Vec<crate::store::Acquaintance>) {
    let now = world.now;
    let fresh = World::new(world.weather);
    let [mut node, _] = fresh.nodes;
    node.ways = Ways::new(now, node.key, [77; 32]);
    node.ways.remember(kept);
    node.ways.set_peers(now, &BTreeMap::from([(2, Neighbour { key: key(2), online: true })]));
    node.ways.set_network(
        now,
        vec![Uplink { index: 2, addresses: vec![node.address] }],
        PORT,
        Vec::new(),
        None,
    );
    world.nodes[0] = node;
}

#[test]
fn a_node_that_starts_again_finds_a_sleeping_peer_without_the_coordinator() {
    let mut world = World::new(Weather { streams: false, ..FAIR });
    assert!(world.nodes[0].ways.acquaintances().is_empty(), "nobody was told anything");
    world.send(1);
    world.run(Duration::from_mins(10));
    assert!(world.nodes[0].ways.take_acquaintances_changed());
    let kept = world.nodes[0].ways.acquaintances();
    assert!(!world.nodes[1].ways.is_active());
    world.weather.signals = false;
    restart(&mut world, kept.clone());
    world.run(Duration::from_secs(5));
    assert!(!world.nodes[0].ways.is_active(), "a signal of the past is no call");
    assert_eq!(world.nodes[0].ways.acquaintances(), kept, "what is known stays known");
    world.nodes[1].got.clear();
    world.send(2);
    world.run(Duration::from_secs(2));
    assert!(!world.nodes[1].got.is_empty());
    assert_eq!((world.class(0), world.class(1)), ("direct", "direct"));
    assert!(world.nodes[1].ways.is_active(), "a call of the new life is above those of the life before");
    // The coordinator is back: what either says now is newer than what was kept.
    world.weather.signals = true;
    world.nodes.iter_mut().for_each(|node| node.ways.try_now(world.now, 3 - node.id));
    world.send(3);
    world.run(Duration::from_secs(5));
    let told = world.nodes[0].ways.peers[&2].signal.clone().unwrap();
    assert_eq!(
        world.nodes[1].ways.peers[&1].heard.as_ref().map(|heard| heard.generation),
        Some(told.generation)
    );
}

#[test]
fn what_was_kept_of_another_machine_or_is_damaged_is_not_used() {
    let mut world = World::new(FAIR);
    world.send(1);
    world.run(Duration::from_secs(2));
    let kept = world.nodes[0].ways.acquaintances().remove(0);
    let damaged = [
        {
            let mut other = kept.clone();
            other.key = [9; 32];
            other
        },
        {
            let mut cut = kept.clone();
            (cut.password, cut.signal) = ("short".to_owned(), vec![0xff; 9]);
            cut
        },
    ];
    for bad in damaged {
        restart(&mut world, vec![bad]);
        let peer = &world.nodes[0].ways.peers[&2];
        assert_ne!(peer.machine.credentials().fragment, kept.fragment);
        assert!(peer.machine.peer_credentials().is_none() && !peer.is_known);
    }
}
