//! Relay ports through real sockets.

use std::io::IoSliceMut;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ed25519_dalek::SigningKey;
use ghostwire_relay_protocol::control::{
    Action, CHALLENGE_LEN, IntegrityKey, Lease, MIN_REQUEST_LEN, Response, code, write_request,
};
use ghostwire_relay_protocol::stun::{Class, Kind, Message, Method, TransactionId, Writer};
use ghostwire_relay_protocol::token::{Grant, KeyNumber, NetworkId, NodeId, RelayId, Token};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt};
use x25519_dalek::{PublicKey, StaticSecret};

use crate::lab::{PATIENCE, RELAY_V4, RELAY_V6, Relay, in_namespace};

pub(crate) const MAIN: u16 = 3478;

#[derive(Clone)]
pub(crate) struct Identity {
    relay: RelayId,
    relay_key: [u8; 32],
    coordinator: SigningKey,
}

impl Identity {
    pub(crate) fn of(relay: &Relay) -> Self {
        Self {
            relay: RelayId(relay.key("relay_id")),
            relay_key: relay.key("relay_key"),
            coordinator: relay.coordinator.clone(),
        }
    }
}

pub(crate) struct Node {
    relay: Identity,
    id: u64,
    secret: StaticSecret,
    pub(crate) socket: UdpSocket,
    /// What is wrong with its tokens, if anything.
    pub(crate) forgery: fn(&mut Token),
    pub(crate) transaction: TransactionId,
    sequence: u64,
}

pub(crate) fn socket(address: &str) -> UdpSocket {
    let socket = UdpSocket::bind(address).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

impl Node {
    pub(crate) fn new(relay: &Relay, id: u64, address: &str) -> Self {
        let secret = StaticSecret::from([u8::try_from(id).unwrap(); 32]);
        let transaction = TransactionId([1; 12]);
        let socket = socket(address);
        Self { relay: Identity::of(relay), id, secret, socket, forgery: |_| (), transaction, sequence: 0 }
    }

    /// The relay, at the address of this node's family.
    pub(crate) fn relay_at(&self, port: u16) -> SocketAddr {
        let ip = if self.socket.local_addr().unwrap().is_ipv4() { RELAY_V4 } else { RELAY_V6 };
        SocketAddr::new(ip.parse().unwrap(), port)
    }

    pub(crate) fn request(
        &mut self,
        action: Action,
        peer: Option<u64>,
        challenge: Option<&[u8; CHALLENGE_LEN]>,
    ) -> Vec<u8> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let mut token = Token {
            key: KeyNumber(1),
            network: NetworkId(1),
            node: NodeId(self.id),
            grant: peer.map_or(Grant::Allocate, |peer| Grant::Bind { peer: NodeId(peer) }),
            relay: self.relay.relay,
            rate_kbit: None,
            issued: now - 5,
            expires: now + 3600,
            session_key: PublicKey::from(&self.secret).to_bytes(),
        };
        (self.forgery)(&mut token);
        self.sequence += 1;
        let mut buffer = [0; MIN_REQUEST_LEN];
        let (token, key) = (token.sign(&self.relay.coordinator), self.key());
        write_request(&mut buffer, action, self.transaction, &token, challenge, self.sequence, &key)
            .unwrap()
            .to_vec()
    }

    fn key(&self) -> IntegrityKey {
        IntegrityKey::for_node(&self.secret, self.relay.relay, &self.relay.relay_key).unwrap()
    }

    pub(crate) fn exchange(&self, action: Action, port: u16, request: &[u8]) -> Response {
        self.socket.send_to(request, self.relay_at(port)).unwrap();
        let mut buffer = [0; 2048];
        let (len, from) = uninterrupted(|| self.socket.recv_from(&mut buffer)).unwrap();
        assert_eq!(from, self.relay_at(port));
        self.read(action, &buffer[..len])
    }

    pub(crate) fn read(&self, action: Action, answer: &[u8]) -> Response {
        let message = Message::parse(answer).unwrap();
        Response::parse(&message, action.method(), self.transaction, &self.key()).unwrap()
    }

    pub(crate) fn ask(&mut self, action: Action, peer: Option<u64>, port: u16) -> Result<Lease, u16> {
        let request = self.request(action, peer, None);
        let Response::Challenge(challenge) = self.exchange(action, port, &request) else {
            panic!("no challenge")
        };
        let request = self.request(action, peer, Some(&challenge));
        match self.exchange(action, port, &request) {
            Response::Granted(lease) => Ok(lease),
            Response::Refused { code, .. } => Err(code),
            Response::Challenge(_) => panic!("another challenge"),
        }
    }

    pub(crate) fn send(&self, port: u16, bytes: &[u8]) {
        self.socket.send_to(bytes, self.relay_at(port)).unwrap();
    }

    pub(crate) fn receive(&self) -> (Vec<u8>, SocketAddr) {
        let mut buffer = [0; 2048];
        let (len, from) = uninterrupted(|| self.socket.recv_from(&mut buffer)).unwrap();
        (buffer[..len].to_vec(), from)
    }
}

/// Reads again when a child of this process that ended has interrupted it: reading with a time limit is not started
/// again by the kernel.
pub(crate) fn uninterrupted<T>(mut read: impl FnMut() -> std::io::Result<T>) -> std::io::Result<T> {
    loop {
        match read() {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

pub(crate) fn data(mark: u8, len: usize) -> Vec<u8> {
    let mut bytes = vec![mark; len];
    bytes[..4].copy_from_slice(&[4, 0, 0, 0]);
    bytes
}

/// Allocates for both and binds both ways; gives their ports.
pub(crate) fn meet(a: &mut Node, b: &mut Node) -> (u16, u16) {
    let port_a = a.ask(Action::Allocate, None, MAIN).unwrap().relayed.port();
    let port_b = b.ask(Action::Allocate, None, MAIN).unwrap().relayed.port();
    assert!(!a.ask(Action::Bind, Some(b.id), port_b).unwrap().peer_bound);
    assert!(b.ask(Action::Bind, Some(a.id), port_a).unwrap().peer_bound);
    (port_a, port_b)
}

#[test]
fn wireguard_passes_between_the_families_and_nothing_else_passes() {
    in_namespace(|| {
        let relay = Relay::start(&[]);
        let mut a = Node::new(&relay, 1, "198.51.100.1:0");
        let mut b = Node::new(&relay, 2, "[2001:db8:2::2]:0");
        let (port_a, port_b) = meet(&mut a, &mut b);

        // None of these may arrive: what arrives first is what was sent last.
        a.send(port_b, b"not WireGuard at all, but an attempt to use an open proxy");
        a.send(port_b, &data(1, 31));
        a.send(port_b, &[5; 148]);
        let spoofed = Node::new(&relay, 1, "198.51.100.2:0");
        spoofed.send(port_b, &data(2, 64));
        let initiation = [&[1, 0, 0, 0][..], &[7; 144]].concat();
        a.send(port_b, &initiation);
        assert_eq!(b.receive(), (initiation, b.relay_at(port_a)));
        for len in [32, 64, 1000, 1452] {
            b.send(port_a, &data(3, len));
            assert_eq!(a.receive(), (data(3, len), a.relay_at(port_b)));
        }
        // Keys are private.
        for name in ["relay.key", "derp.key", "tls.key"] {
            let mode = std::fs::metadata(relay.state_file(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
    });
}

#[test]
fn hops_count_down_and_the_type_of_service_stays() {
    in_namespace(|| {
        let relay = Relay::start(&[]);
        let mut a = Node::new(&relay, 1, "198.51.100.1:0");
        let mut b = Node::new(&relay, 2, "198.51.100.2:0");
        let (_, port_b) = meet(&mut a, &mut b);
        setsockopt(&b.socket, sockopt::Ipv4RecvTtl, &true).unwrap();
        setsockopt(&b.socket, sockopt::IpRecvTos, &true).unwrap();
        // DSCP EF, ECN capable.
        setsockopt(&a.socket, sockopt::Ipv4Tos, &0xBA).unwrap();
        a.socket.set_ttl(1).unwrap();
        a.send(port_b, &data(1, 64));
        a.socket.set_ttl(40).unwrap();
        a.send(port_b, &data(2, 64));

        uninterrupted(|| b.socket.peek_from(&mut [0])).unwrap();
        let mut buffer = [0; 2048];
        let mut vectors = [IoSliceMut::new(&mut buffer)];
        let mut control = nix::cmsg_space!(i32, u8);
        let flags = MsgFlags::empty();
        let fd = b.socket.as_raw_fd();
        let received =
            recvmsg::<SockaddrStorage>(fd, &mut vectors, Some(control.as_mut_slice()), flags).unwrap();
        let (mut ttl, mut tos) = (None, None);
        for message in received.cmsgs().unwrap() {
            match message {
                ControlMessageOwned::Ipv4Ttl(value) => ttl = Some(value),
                ControlMessageOwned::Ipv4Tos(value) => tos = Some(value),
                _ => {}
            }
        }
        assert_eq!((ttl, tos), (Some(39), Some(0xBA)));
        assert_eq!(buffer[4], 2, "the one with a single hop left went no further");
    });
}

#[test]
fn a_port_scan_gets_unreachable_or_nothing() {
    in_namespace(|| {
        let relay = Relay::start(&[]);
        let mut a = Node::new(&relay, 1, "198.51.100.1:0");
        let port = a.ask(Action::Allocate, None, MAIN).unwrap().relayed.port();
        let scanner = socket("198.51.100.2:0");
        for scanned in (50_000..50_100).filter(|scanned| *scanned != port) {
            scanner.connect((RELAY_V4, scanned)).unwrap();
            scanner.send(&data(1, 64)).unwrap();
            let refused = uninterrupted(|| scanner.recv(&mut [0; 64])).unwrap_err();
            assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused, "port {scanned}");
        }
        // The one live port is silent: what answers first is the main port.
        let scanner = socket("198.51.100.2:0");
        scanner.send_to(&data(1, 64), (RELAY_V4, port)).unwrap();
        let mut buffer = [0; 64];
        let writer =
            Writer::new(&mut buffer, Class::Request, Method::BINDING, TransactionId([4; 12])).unwrap();
        let request = writer.finish().to_vec();
        scanner.send_to(&request, (RELAY_V4, port)).unwrap();
        scanner.send_to(&request, (RELAY_V4, MAIN)).unwrap();
        let mut answer = [0; 128];
        let (len, from) = uninterrupted(|| scanner.recv_from(&mut answer)).unwrap();
        assert_eq!(from.port(), MAIN);
        let message = Message::parse(&answer[..len]).unwrap();
        let mapped = message.attribute(Kind::XOR_MAPPED_ADDRESS).unwrap().xor_address(message.transaction());
        assert_eq!(mapped, Some(scanner.local_addr().unwrap()));
        // And a released port is closed again, as soon as its task has ended.
        a.ask(Action::Release, None, MAIN).unwrap();
        scanner.connect((RELAY_V4, port)).unwrap();
        scanner.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let deadline = Instant::now() + PATIENCE;
        loop {
            // The send may be the one to report the refusal of the one before.
            let refused = scanner.send(&data(1, 64)).and_then(|_| scanner.recv(&mut [0; 64])).unwrap_err();
            if refused.kind() == std::io::ErrorKind::ConnectionRefused {
                break;
            }
            assert!(Instant::now() < deadline, "the port is still open");
        }
    });
}

#[test]
fn private_and_own_addresses_are_no_legs_unless_allowed() {
    in_namespace(|| {
        let relay = Relay::start(&[]);
        for address in ["10.0.0.1:0", "203.0.113.1:0"] {
            assert_eq!(Node::new(&relay, 1, address).ask(Action::Allocate, None, MAIN), Err(code::FORBIDDEN));
        }
        drop(relay);
        let relay = Relay::start(&["--allow-leg", "10.0.0.0/8"]);
        let lease = Node::new(&relay, 1, "10.0.0.1:0").ask(Action::Allocate, None, MAIN).unwrap();
        // Another one of the relay's ports.
        let port = if lease.relayed.port() == 50_050 { 50_051 } else { 50_050 };
        let circle = Node::new(&relay, 2, &format!("203.0.113.1:{port}")).ask(Action::Allocate, None, MAIN);
        assert_eq!(circle, Err(code::FORBIDDEN));
    });
}
