//! A relay, a coordinator's key and nodes; no sockets and no clock.

use std::net::SocketAddr;
use std::time::Duration;

use ed25519_dalek::SigningKey;
use ghostwire_relay::sessions::config::{Config, Limits, LocalAddress, Secrets};
use ghostwire_relay::sessions::{Arrival, Event, Now, Sessions};
use ghostwire_relay::table::HeapTable;
use ghostwire_relay_fastpath::{Datagram, Forward, Reason, Verdict, decide};
use ghostwire_relay_protocol::control::{
    Action, CHALLENGE_LEN, IntegrityKey, Lease, MIN_REQUEST_LEN, Response, write_request,
};
use ghostwire_relay_protocol::stun::{Message, TransactionId};
use ghostwire_relay_protocol::token::{Grant, KeyNumber, NetworkId, NodeId, RelayId, TOKEN_LEN, Token};
use x25519_dalek::{PublicKey, StaticSecret};

pub(crate) const MAIN: u16 = 3478;
pub(crate) const RELAY: RelayId = RelayId([0xAA; 16]);
pub(crate) const KEY: KeyNumber = KeyNumber(1);
pub(crate) const START: u64 = 1_800_000_000;

pub(crate) fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

pub(crate) fn coordinator() -> SigningKey {
    SigningKey::from_bytes(&[1; 32])
}

pub(crate) fn config() -> Config {
    let local = |ip: &str| LocalAddress { local: ip.parse().unwrap(), advertised: ip.parse().unwrap() };
    Config {
        locals: vec![local("203.0.113.1"), local("2001:db8::1")],
        main_port: MAIN,
        ports: 50_000..=50_009,
        allowed_legs: Vec::new(),
        allocation_lease: Duration::from_mins(10),
        binding_lease: Duration::from_mins(5),
        limits: Limits { pairs: 20, ..Limits::default() },
    }
}

pub(crate) struct World {
    pub(crate) relay: Sessions<HeapTable>,
    pub(crate) now: Now,
    pub(crate) secret: StaticSecret,
    pub(crate) events: Vec<Event>,
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with(config())
    }

    pub(crate) fn with(config: Config) -> Self {
        let secret = StaticSecret::from([7; 32]);
        let secrets = Secrets {
            relay: RELAY,
            key: secret.clone(),
            coordinators: vec![(KEY, coordinator().verifying_key())],
        };
        let table = HeapTable::new(Sessions::<HeapTable>::table_lines(&config).unwrap());
        let relay = Sessions::new(config, secrets, table, &[9; 32]).unwrap();
        let now = Now { monotonic: Duration::from_secs(100), unix: START };
        Self { relay, now, secret, events: Vec::new() }
    }

    pub(crate) fn pass(&mut self, seconds: u64) {
        self.now.monotonic += Duration::from_secs(seconds);
        self.now.unix += seconds;
        self.relay.handle_timeout(self.now);
        self.settle();
    }

    fn settle(&mut self) {
        while let Some(event) = self.relay.poll_event() {
            self.events.push(event);
        }
    }

    pub(crate) fn arrival(port: u16, source: SocketAddr) -> Arrival {
        Arrival { local: u8::from(source.is_ipv6()), port, source }
    }

    /// Sends bytes to the relay as control does; gives the answer.
    pub(crate) fn send(&mut self, port: u16, source: SocketAddr, bytes: &[u8]) -> Option<Vec<u8>> {
        let answer = self.relay.handle_control(self.now, Self::arrival(port, source), bytes);
        self.settle();
        answer.map(|answer| answer.bytes().to_vec())
    }

    /// Decides about a WireGuard data packet, as the data path does.
    pub(crate) fn data(&mut self, port: u16, source: SocketAddr) -> Option<Forward> {
        let arrival = Self::arrival(port, source);
        let datagram = Datagram {
            local: arrival.local,
            port,
            source: source.into(),
            hops: 64,
            len: 128,
            head: [4, 0, 0, 0, 1, 2, 3, 4],
        };
        match decide(self.relay.table(), &datagram) {
            Verdict::Forward(forward) => Some(forward),
            Verdict::Drop(Reason::UnknownSource) => {
                self.relay.handle_unknown_source(self.now, arrival);
                self.settle();
                None
            }
            other => panic!("{other:?}"),
        }
    }

    /// From where a data packet leaves and where it goes.
    pub(crate) fn route(&mut self, port: u16, source: SocketAddr) -> Option<(u8, u16, SocketAddr)> {
        self.data(port, source).map(|forward| (forward.local, forward.port, forward.destination.into()))
    }
}

/// A node with its session key.
#[derive(Clone)]
pub(crate) struct Node {
    pub(crate) network: u64,
    pub(crate) id: u64,
    pub(crate) secret: StaticSecret,
    pub(crate) sequence: u64,
    pub(crate) issued: u64,
    pub(crate) expires: u64,
    pub(crate) relay: RelayId,
    pub(crate) signer: SigningKey,
}

impl Node {
    pub(crate) fn new(id: u64) -> Self {
        let mut secret = [0x40; 32];
        secret[..8].copy_from_slice(&id.to_be_bytes());
        Self {
            network: 1,
            id,
            secret: StaticSecret::from(secret),
            sequence: 0,
            issued: START,
            expires: START + 36_000,
            relay: RELAY,
            signer: coordinator(),
        }
    }

    /// A token as the coordinator would sign it for this node.
    pub(crate) fn token(&self, peer: Option<u64>) -> [u8; TOKEN_LEN] {
        let token = Token {
            key: KEY,
            network: NetworkId(self.network),
            node: NodeId(self.id),
            grant: peer.map_or(Grant::Allocate, |peer| Grant::Bind { peer: NodeId(peer) }),
            relay: self.relay,
            rate_kbit: None,
            issued: self.issued,
            expires: self.expires,
            session_key: PublicKey::from(&self.secret).to_bytes(),
        };
        token.sign(&self.signer)
    }

    pub(crate) fn key(&self, world: &World) -> IntegrityKey {
        IntegrityKey::for_node(&self.secret, RELAY, &PublicKey::from(&world.secret).to_bytes()).unwrap()
    }

    /// A request with the next sequence number.
    pub(crate) fn request(
        &mut self,
        world: &World,
        action: Action,
        peer: Option<u64>,
        challenge: Option<&[u8; CHALLENGE_LEN]>,
    ) -> Vec<u8> {
        self.sequence += 1;
        let mut buffer = [0; MIN_REQUEST_LEN];
        let transaction = TransactionId([3; 12]);
        let (token, key) = (self.token(peer), self.key(world));
        write_request(&mut buffer, action, transaction, &token, challenge, self.sequence, &key)
            .unwrap()
            .to_vec()
    }

    pub(crate) fn read(&self, world: &World, action: Action, answer: &[u8]) -> Response {
        let message = Message::parse(answer).unwrap();
        Response::parse(&message, action.method(), TransactionId([3; 12]), &self.key(world)).unwrap()
    }

    /// Asks for a challenge from an address.
    pub(crate) fn challenge(
        &mut self,
        world: &mut World,
        action: Action,
        peer: Option<u64>,
        port: u16,
        source: SocketAddr,
    ) -> [u8; CHALLENGE_LEN] {
        let request = self.request(world, action, peer, None);
        let answer = world.send(port, source, &request).unwrap();
        match self.read(world, action, &answer) {
            Response::Challenge(challenge) => challenge,
            other => panic!("{other:?}"),
        }
    }

    /// The whole exchange. `Err`: the error's code.
    pub(crate) fn ask(
        &mut self,
        world: &mut World,
        action: Action,
        peer: Option<u64>,
        port: u16,
        source: SocketAddr,
    ) -> Result<Lease, u16> {
        let challenge = self.challenge(world, action, peer, port, source);
        let request = self.request(world, action, peer, Some(&challenge));
        let answer = world.send(port, source, &request).expect("an answer");
        assert!(answer.len() <= request.len());
        match self.read(world, action, &answer) {
            Response::Granted(lease) => Ok(lease),
            Response::Refused { code, .. } => Err(code),
            Response::Challenge(_) => panic!("another challenge"),
        }
    }

    pub(crate) fn allocate(&mut self, world: &mut World, source: &str) -> Result<u16, u16> {
        self.ask(world, Action::Allocate, None, MAIN, address(source)).map(|lease| lease.relayed.port())
    }

    pub(crate) fn bind(
        &mut self,
        world: &mut World,
        peer: u64,
        port: u16,
        source: &str,
    ) -> Result<Lease, u16> {
        self.ask(world, Action::Bind, Some(peer), port, address(source))
    }
}

/// Two nodes that have met: A at 198.51.100.1:1111, B at 198.51.100.2:2222.
pub(crate) struct Met {
    pub(crate) world: World,
    pub(crate) a: Node,
    pub(crate) b: Node,
    pub(crate) port_a: u16,
    pub(crate) port_b: u16,
}

pub(crate) const AT_A: &str = "198.51.100.1:1111";
pub(crate) const AT_B: &str = "198.51.100.2:2222";

impl Met {
    pub(crate) fn new() -> Self {
        Self::with(config())
    }

    pub(crate) fn with(config: Config) -> Self {
        let (mut world, mut a, mut b) = (World::with(config), Node::new(1), Node::new(2));
        let port_a = a.allocate(&mut world, AT_A).unwrap();
        let port_b = b.allocate(&mut world, AT_B).unwrap();
        assert!(!a.bind(&mut world, 2, port_b, AT_A).unwrap().peer_bound);
        assert!(b.bind(&mut world, 1, port_a, AT_B).unwrap().peer_bound);
        Self { world, a, b, port_a, port_b }
    }

    /// Whether traffic flows both ways between these addresses.
    pub(crate) fn flows(&mut self, at_a: &str, at_b: &str) -> bool {
        let to_b = self.world.route(self.port_b, address(at_a));
        let to_a = self.world.route(self.port_a, address(at_b));
        to_b.is_some_and(|(_, port, to)| (port, to) == (self.port_a, address(at_b)))
            && to_a.is_some_and(|(_, port, to)| (port, to) == (self.port_b, address(at_a)))
    }
}
