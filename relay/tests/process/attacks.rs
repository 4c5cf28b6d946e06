//! What an attacker tries, against each way through the relay: sockets, XDP in the driver's mode, generic XDP.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Instant;

use etherparse::{IpFragOffset, Ipv4Header, PacketBuilder, ip_number};
use ghostwire_relay_protocol::control::{Action, CHALLENGE_LEN, Response, code};
use ghostwire_relay_protocol::stun::{Class, Kind, Message, Method, TransactionId, Writer};
use ghostwire_relay_protocol::token::{KeyNumber, NetworkId, RelayId};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use socket2::{Domain, Protocol, Socket, Type};
use tempfile::TempDir;
use x25519_dalek::{PublicKey, StaticSecret};

use crate::lab::{PATIENCE, RELAY_V4, Relay, ip};
use crate::udp::{MAIN, Node, data, meet, socket, uninterrupted};
use crate::world::{World, apart};

const AT_A: &str = "198.51.100.1:4001";
const AT_B: &str = "198.51.101.1:4002";
const ATTACKER: &str = "198.51.100.66:6666";
const VICTIM: &str = "198.51.101.66:3478";

/// A and B have met; an attacker that is a node itself, with a raw socket, is in A's network and a victim in B's.
struct Scene {
    world: World,
    relay: Relay,
    xdp: bool,
    a: Node,
    b: Node,
    port_a: u16,
    port_b: u16,
    attacker: Node,
    victim: UdpSocket,
    raw: Socket,
}

fn on_each_path(extra: &[&str], attack: impl Fn(&mut Scene) + Sync) {
    for mode in ["off", "native", "generic"] {
        apart(|| {
            let world = World::routed();
            let relay = world.start(TempDir::new().unwrap(), &[&["--xdp", mode], extra].concat());
            let (mut a, mut b) = world.nodes(&relay, AT_A, AT_B);
            let (port_a, port_b) = meet(&mut a, &mut b);
            ip(&["address", "add", "198.51.101.66/24", "dev", "b0"]);
            let victim = socket(VICTIM);
            world.a.enter();
            ip(&["address", "add", "198.51.100.66/24", "dev", "a0"]);
            let attacker = Node::new(&relay, 66, ATTACKER);
            let raw = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW))).unwrap();
            let xdp = mode != "off";
            let mut scene = Scene { world, relay, xdp, a, b, port_a, port_b, attacker, victim, raw };
            attack(&mut scene);
            scene.flows();
        });
    }
}

impl Scene {
    /// How many datagrams the path at hand has dropped for this reason.
    fn dropped(&self, reason: &str) -> u64 {
        if self.xdp { self.world.xdp(reason) } else { self.sockets(reason) }
    }

    fn sockets(&self, result: &str) -> u64 {
        self.world.metric(&format!("socket_packets_total{{result=\"{result}\"}}"))
    }

    fn requests(&self, result: &str) -> u64 {
        self.world.metric(&format!("requests_total{{result=\"{result}\"}}"))
    }

    fn forwarded(&self) -> u64 {
        if self.xdp { self.world.xdp("returned") } else { self.sockets("forwarded") }
    }

    /// A and B still reach each other, and what they get is what they have sent, first and in order: nothing of the
    /// attacker's came between.
    fn flows(&self) {
        for number in 0..3 {
            self.a.send(self.port_b, &data(number, 200));
            assert_eq!(self.b.receive(), (data(number, 200), self.b.relay_at(self.port_a)));
            self.b.send(self.port_a, &data(number, 300));
            assert_eq!(self.a.receive(), (data(number, 300), self.a.relay_at(self.port_b)));
        }
    }

    /// Sends a datagram that claims to come from elsewhere.
    fn spoof(&self, source: &str, port: u16, payload: &[u8]) {
        let source: SocketAddr = source.parse().unwrap();
        let IpAddr::V4(from) = source.ip() else { panic!("IPv4 is what is spoofed here") };
        let relay: Ipv4Addr = RELAY_V4.parse().unwrap();
        let builder = PacketBuilder::ipv4(from.octets(), relay.octets(), 64).udp(source.port(), port);
        let mut packet = Vec::new();
        builder.write(&mut packet, payload).unwrap();
        self.send_raw(&packet);
    }

    fn send_raw(&self, packet: &[u8]) {
        let to = SocketAddr::new(RELAY_V4.parse().unwrap(), 0);
        self.raw.send_to(packet, &to.into()).unwrap();
    }

    fn challenge(&mut self, port: u16) -> [u8; CHALLENGE_LEN] {
        let request = self.attacker.request(Action::Bind, Some(2), None);
        match self.attacker.exchange(Action::Bind, port, &request) {
            Response::Challenge(challenge) => challenge,
            other => panic!("{other:?}"),
        }
    }
}

/// What a socket gets next, if it comes from the relay.
fn receive(socket: &UdpSocket) -> Vec<u8> {
    let mut buffer = [0; 2048];
    let (len, _) = uninterrupted(|| socket.recv_from(&mut buffer)).unwrap();
    buffer[..len].to_vec()
}

fn binding(transaction: u8) -> Vec<u8> {
    let mut buffer = [0; 64];
    let transaction = TransactionId([transaction; 12]);
    Writer::new(&mut buffer, Class::Request, Method::BINDING, transaction).unwrap().finish().to_vec()
}

#[test]
fn a_spoofed_source_gets_no_leg_and_no_more_than_was_sent() {
    on_each_path(&[], |scene| {
        let granted = scene.requests("granted");
        let own = scene.challenge(scene.port_b);
        for challenge in [None, Some(own), Some([0; CHALLENGE_LEN]), Some([0xFF; CHALLENGE_LEN])] {
            let request = scene.attacker.request(Action::Bind, Some(2), challenge.as_ref());
            scene.spoof(VICTIM, scene.port_b, &request);
            let answer = receive(&scene.victim);
            assert!(answer.len() <= request.len());
            assert!(matches!(scene.attacker.read(Action::Bind, &answer), Response::Challenge(_)));
        }
        assert_eq!(scene.requests("granted"), granted);
        let before = scene.dropped("unknown_source");
        scene.spoof(VICTIM, scene.port_b, &data(9, 100));
        scene.flows();
        assert_eq!(scene.dropped("unknown_source"), before + 1);
    });
}

#[test]
fn a_replayed_bind_moves_nothing_back() {
    on_each_path(&[], |scene| {
        let Scene { a, b, port_a, port_b, .. } = scene;
        let request = a.request(Action::Bind, Some(2), None);
        let Response::Challenge(challenge) = a.exchange(Action::Bind, *port_b, &request) else { panic!() };
        let recorded = a.request(Action::Bind, Some(2), Some(&challenge));
        assert!(matches!(a.exchange(Action::Bind, *port_b, &recorded), Response::Granted(_)));

        scene.world.a.enter();
        let old = std::mem::replace(&mut a.socket, socket("198.51.100.1:0"));
        a.ask(Action::Bind, Some(2), *port_b).unwrap();
        b.send(*port_a, &data(1, 64));
        assert_eq!(a.receive().0, data(1, 64), "the leg has moved");

        // From the old address, and from the attacker's own.
        let new = std::mem::replace(&mut a.socket, old);
        let replayed = a.exchange(Action::Bind, *port_b, &recorded);
        assert_eq!(replayed, Response::Refused { code: code::OUT_OF_ORDER, signed: true });
        scene.attacker.send(*port_b, &recorded);
        assert!(matches!(a.read(Action::Bind, &receive(&scene.attacker.socket)), Response::Challenge(_)));
        a.socket = new;
        b.send(*port_a, &data(2, 64));
        assert_eq!(a.receive().0, data(2, 64));
    });
}

#[test]
fn expired_foreign_and_stolen_tokens_open_nothing() {
    on_each_path(&[], |scene| {
        let Scene { attacker, port_b, .. } = scene;
        attacker.forgery = |token| token.expires = token.issued;
        assert_eq!(attacker.ask(Action::Allocate, None, MAIN), Err(code::WRONG_CREDENTIALS), "expired");
        attacker.forgery = |token| token.issued += 3000;
        assert_eq!(attacker.ask(Action::Allocate, None, MAIN), Err(code::WRONG_CREDENTIALS), "not yet");
        attacker.forgery = |token| token.relay = RelayId([0xBB; 16]);
        assert_eq!(attacker.ask(Action::Bind, Some(2), *port_b), Err(code::WRONG_CREDENTIALS), "relay");
        attacker.forgery = |token| token.key = KeyNumber(9);
        assert_eq!(attacker.ask(Action::Bind, Some(2), *port_b), Err(code::WRONG_CREDENTIALS), "signer");
        attacker.forgery = |token| {
            token.node.0 = 1;
            token.session_key = PublicKey::from(&StaticSecret::from([1; 32])).to_bytes();
        };
        assert_eq!(attacker.ask(Action::Bind, Some(2), *port_b), Err(code::WRONG_CREDENTIALS), "stolen");
        attacker.forgery = |token| token.network = NetworkId(2);
        assert_eq!(attacker.ask(Action::Bind, Some(2), *port_b), Err(code::MISMATCH), "network");
        attacker.forgery = |_| ();
        assert_eq!(attacker.ask(Action::Bind, Some(7), *port_b), Err(code::MISMATCH), "for another peer");
        assert_eq!(attacker.ask(Action::Release, Some(2), *port_b), Err(code::MISMATCH), "another's leg");
        let before = scene.dropped("unknown_source");
        scene.attacker.send(scene.port_b, &data(1, 64));
        scene.flows();
        assert_eq!(scene.dropped("unknown_source"), before + 1);
    });
}

/// Requests of every kind, whole and cut, and noise: each is recognised in its answer by its transaction.
fn probes(scene: &mut Scene, rng: &mut StdRng) -> Vec<Vec<u8>> {
    let mut probes: Vec<Vec<u8>> = Vec::new();
    for action in [Action::Allocate, Action::Bind, Action::Refresh, Action::Release, Action::Lookup] {
        for challenge in [None, Some([7; CHALLENGE_LEN])] {
            for peer in [None, Some(2)] {
                for cut in [0, 4, 100, 296] {
                    scene.attacker.transaction = TransactionId([probes.len() as u8; 12]);
                    let whole = scene.attacker.request(action, peer, challenge.as_ref());
                    let len = whole.len() - cut;
                    let mut request = whole[..len].to_vec();
                    request[2..4].copy_from_slice(&u16::try_from(len - 20).unwrap().to_be_bytes());
                    probes.push(request);
                }
            }
        }
    }
    probes.push(binding(probes.len() as u8));
    let mut buffer = [0; 64];
    let transaction = TransactionId([probes.len() as u8; 12]);
    let mut strange = Writer::new(&mut buffer, Class::Request, Method::BINDING, transaction).unwrap();
    strange.attribute(Kind(0x7FFF), &[]).unwrap();
    probes.push(strange.finish().to_vec());
    for _ in 0..20 {
        let mut noise: Vec<u8> = (0..rng.random_range(20..400)).map(|_| rng.random()).collect();
        noise[..8].copy_from_slice(&[0, 1, 0, 0, 0x21, 0x12, 0xA4, 0x42]);
        noise[8..20].copy_from_slice(&[probes.len() as u8; 12]);
        probes.push(noise);
    }
    probes
}

#[test]
fn no_answer_is_longer_than_its_request() {
    let mut rng = StdRng::seed_from_u64(0x6777_0010);
    let seed: u64 = rng.random();
    on_each_path(&[], |scene| {
        let mut rng = StdRng::seed_from_u64(seed);
        for port in [MAIN, scene.port_b] {
            let mut sent = HashMap::new();
            for (number, probe) in (0_u8..).zip(probes(scene, &mut rng)) {
                scene.attacker.send(port, &probe);
                sent.insert(number, probe);
            }
            // The last one is certainly answered; userspace answers each port's requests in order.
            scene.attacker.transaction = TransactionId([0xEE; 12]);
            let last = scene.attacker.request(Action::Bind, Some(2), None);
            scene.attacker.send(port, &last);
            sent.insert(0xEE, last);
            let mut answers = 0;
            loop {
                let answer = receive(&scene.attacker.socket);
                answers += 1;
                let message = Message::parse(&answer).unwrap();
                let number = message.transaction().0[0];
                let request = &sent[&number];
                // Plain STUN has to tell an address of 12 bytes, whatever the request's length.
                let more = if message.method() == Method::BINDING { 12 } else { 0 };
                assert!(answer.len() <= request.len() + more, "{answer:02x?} to {request:02x?}");
                if number == 0xEE {
                    break;
                }
            }
            assert!(answers > 10, "{answers}");
        }
    });
}

#[test]
fn nothing_goes_in_a_circle() {
    on_each_path(&[], |scene| {
        // A datagram that was relayed too often.
        let before = scene.dropped("hop_limit");
        scene.a.socket.set_ttl(2).unwrap();
        scene.a.send(scene.port_b, &data(5, 64));
        scene.a.socket.set_ttl(64).unwrap();
        scene.flows();
        assert_eq!(scene.dropped("hop_limit"), before + 1);

        // As if from the relay's own ports, and a request so that one of them becomes a leg.
        let (forwarded, granted) = (scene.forwarded(), scene.requests("granted"));
        let own = format!("{RELAY_V4}:{}", scene.port_a);
        let main = format!("{RELAY_V4}:{MAIN}");
        let request = scene.attacker.request(Action::Bind, Some(2), None);
        for source in [&own, &main] {
            scene.spoof(source, scene.port_b, &data(6, 64));
            scene.spoof(source, scene.port_b, &request);
            scene.spoof(source, MAIN, &binding(1));
        }
        scene.flows();
        assert_eq!(scene.forwarded(), forwarded + 6, "only what flows");
        assert_eq!(scene.requests("granted"), granted);

        // As if from another relay, which sends the answer back as it came: that is no request.
        scene.spoof(VICTIM, MAIN, &binding(2));
        let answer = receive(&scene.victim);
        assert_eq!(Message::parse(&answer).unwrap().class(), Class::Success);
        for port in [MAIN, scene.port_b] {
            scene.victim.send_to(&answer, (RELAY_V4, port)).unwrap();
        }
        scene.victim.send_to(&binding(3), (RELAY_V4, MAIN)).unwrap();
        let next = receive(&scene.victim);
        assert_eq!(Message::parse(&next).unwrap().transaction(), TransactionId([3; 12]));
    });
}

#[test]
fn what_is_not_wireguard_does_not_pass() {
    on_each_path(&[], |scene| {
        let before = scene.dropped("not_wireguard");
        let of = |kind: [u8; 4], len: usize| [&kind[..], &vec![7; len - 4]].concat();
        let strangers = [
            b"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n".to_vec(),
            of([0x12, 0x34, 1, 0], 512),
            of([1, 0, 0, 0], 147),
            of([1, 0, 0, 0], 149),
            of([2, 0, 0, 0], 91),
            of([3, 0, 0, 0], 65),
            of([4, 0, 0, 0], 31),
            of([4, 0, 0, 1], 64),
            of([5, 0, 0, 0], 64),
            of([0, 0, 0, 0], 64),
        ];
        for stranger in &strangers {
            scene.a.send(scene.port_b, stranger);
        }
        scene.flows();
        assert_eq!(scene.dropped("not_wireguard"), before + strangers.len() as u64);
    });
}

/// An IPv4 fragment from A.
fn fragment(offset: u16, more: bool, payload: &[u8]) -> Vec<u8> {
    let relay: Ipv4Addr = RELAY_V4.parse().unwrap();
    let len = u16::try_from(payload.len()).unwrap();
    let mut header = Ipv4Header::new(len, 64, ip_number::UDP, [198, 51, 100, 1], relay.octets()).unwrap();
    header.identification = 0x1234;
    header.dont_fragment = false;
    header.more_fragments = more;
    header.fragment_offset = IpFragOffset::try_new(offset / 8).unwrap();
    let mut packet = Vec::new();
    header.write(&mut packet).unwrap();
    packet.extend(payload);
    packet
}

#[test]
fn parts_of_datagrams_are_no_datagrams() {
    on_each_path(&[], |scene| {
        let port_b = scene.port_b;
        let udp = |payload: &[u8]| {
            let mut udp = 4001_u16.to_be_bytes().to_vec();
            udp.extend(port_b.to_be_bytes());
            udp.extend(u16::try_from(payload.len() + 8).unwrap().to_be_bytes());
            // Without a checksum, so that each part would do by itself.
            udp.extend([0, 0]);
            udp.extend(payload);
            udp
        };
        let forwarded = scene.forwarded();
        // A first part that looks like a whole datagram, and a later part that looks like a first one.
        scene.send_raw(&fragment(0, true, &udp(&data(1, 64))));
        scene.send_raw(&fragment(1600, false, &udp(&data(2, 64))));
        scene.send_raw(&fragment(800, true, &udp(&data(3, 64))));
        scene.flows();
        assert_eq!(scene.forwarded(), forwarded + 6, "only what flows");
        if scene.xdp {
            assert_eq!(scene.world.xdp("fragment"), 3);
        }
    });
}

#[test]
fn a_port_scan_is_answered_by_nobody() {
    on_each_path(&[], |scene| {
        let scanner = &scene.attacker.socket;
        for port in 50_000..50_100 {
            for probe in [data(1, 64), binding(1), b"GET / HTTP/1.1\r\n\r\n".to_vec()] {
                scanner.send_to(&probe, (RELAY_V4, port)).unwrap();
            }
        }
        // The first answer is to what is sent last, elsewhere.
        scanner.send_to(&binding(2), (RELAY_V4, MAIN)).unwrap();
        let mut buffer = [0; 256];
        let (len, from) = uninterrupted(|| scanner.recv_from(&mut buffer)).unwrap();
        assert_eq!(from, scene.attacker.relay_at(MAIN));
        assert_eq!(Message::parse(&buffer[..len]).unwrap().transaction(), TransactionId([2; 12]));
    });
}

#[test]
fn a_flood_of_binds_leaves_established_traffic_alone() {
    on_each_path(&[], |scene| {
        let granted = scene.requests("granted");
        let requests = [None, Some([3; CHALLENGE_LEN])]
            .map(|challenge| scene.attacker.request(Action::Bind, Some(2), challenge.as_ref()));
        for number in 0..20_000 {
            // The kernel may refuse a datagram when its queue is full; that is a flood, too.
            let to = scene.attacker.relay_at(scene.port_b);
            let _ = scene.attacker.socket.send_to(&requests[number % 2], to);
            if scene.xdp && number % 100 == 0 {
                scene.flows();
            }
        }
        // On the other node's port, which the flood does not fill; what is dropped there is sent again.
        scene.b.send(scene.port_a, &data(1, 64));
        assert_eq!(scene.a.receive(), (data(1, 64), scene.a.relay_at(scene.port_b)));
        assert_eq!(scene.a.ask(Action::Refresh, None, MAIN).unwrap().relayed.port(), scene.port_a);
        assert_eq!(scene.requests("granted"), granted + 1);
        // More than its burst and what time adds is not even looked at.
        until(|| scene.requests("source_limited") > 1000);
    });
}

/// Waits for something that certainly comes.
fn until(done: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "it does not come");
        std::thread::yield_now();
    }
}

#[test]
fn a_session_that_sends_too_much_harms_only_itself() {
    const FLOOD: u64 = 2000;
    on_each_path(&["--session-rate", "1"], |scene| {
        let (mut c, mut d) = {
            scene.world.a.enter();
            let c = Node::new(&scene.relay, 3, "198.51.100.1:0");
            scene.world.b.enter();
            (c, Node::new(&scene.relay, 4, "198.51.101.1:0"))
        };
        let (_, port_d) = meet(&mut c, &mut d);
        let initiation = [&[1, 0, 0, 0][..], &[7; 144]].concat();
        // In the kernel, each processor counts for itself.
        let counts = if scene.xdp { std::thread::available_parallelism().unwrap().get() } else { 1 };
        // Per second and at once: 20 and 40 handshakes, 125,000 and 131,072 bytes.
        for (flood, reason, rate, burst) in
            [(initiation, "handshakes_limited", 20.0, 40.0), (data(1, 1000), "rate_limited", 125.0, 131.0)]
        {
            let (dropped, forwarded) = (scene.dropped(reason), scene.forwarded());
            let started = Instant::now();
            for _ in 0..FLOOD / 50 {
                let before = scene.dropped(reason) + scene.forwarded();
                for _ in 0..50 {
                    c.send(port_d, &flood);
                }
                // Slowly enough that no queue on the way is full.
                until(|| scene.dropped(reason) + scene.forwarded() == before + 50);
            }
            let (dropped, forwarded) = (scene.dropped(reason) - dropped, scene.forwarded() - forwarded);
            assert_eq!(dropped + forwarded, FLOOD);
            let most = (burst + rate * (started.elapsed().as_secs_f64() + 0.02) + 1.0) * counts as f64;
            assert!(forwarded as f64 <= most, "{reason}: {forwarded} of at most {most} relayed");
            assert!(forwarded >= 40, "{reason}: {forwarded} relayed");
            scene.flows();
        }
    });
}
