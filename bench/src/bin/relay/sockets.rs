//! Relays that receive and send through sockets: our own, and coturn. Flooded; what arrives per second counts. The
//! relay has a processor to itself, beside the one that generates, receives and counts.

use std::net::{IpAddr, SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::AsFd as _;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use ed25519_dalek::SigningKey;
use ghostwire_bench::relay::lab::{self, Lab, RECEIVER_IP, RELAY, RELAY_IP, SENDER_IP};
use ghostwire_bench::relay::program::{Flow, Generator, Link, Sink, pass};
use ghostwire_bench::relay::turn;
use ghostwire_relay::sessions::Owner;
use ghostwire_relay::sessions::config::{Config, Limits, LocalAddress, Secrets};
use ghostwire_relay::udp::{Observer, Plane};
use ghostwire_relay_protocol::client::{Client, Event};
use ghostwire_relay_protocol::token::{Grant, KeyNumber, NetworkId, NodeId, RelayId, Token};
use x25519_dalek::{PublicKey, StaticSecret};

use crate::SIZES;

const WIREGUARD: u16 = 51_820;
const MAIN: u16 = 3478;
const TURN: u16 = 3479;
const RELAY_ID: RelayId = RelayId([1; 16]);

/// How long a relay is flooded for each size.
const FLOOD: Duration = Duration::from_millis(1500);

/// Frames between two looks at the clock.
const FRAMES: u32 = 4096;

/// Datagrams per second of the userspace path, by size.
pub(crate) fn ours(lab: &Lab) -> Result<Vec<f64>> {
    // The runtime's threads open sockets later; they are in the namespace of the thread that starts them.
    lab.relay.enter()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .on_thread_start(|| {
            // Where it cannot be moved it is slower, which is said nowhere; there is one processor then.
            let _ = stay_on(1);
        })
        .build()?;
    let plane = {
        let _inside = runtime.enter();
        start()?
    };
    lab.client.enter()?;
    let harness = Harness::new(lab)?;
    let (sender, receiver) = (client(1, SENDER_IP.into())?, client(2, RECEIVER_IP.into())?);
    let port = meet(sender, receiver)?;
    let flow = Flow { source: SENDER_IP.octets(), source_port: WIREGUARD, port };
    let rates = SIZES.iter().map(|size| {
        let mut payload = vec![0x5A; *size];
        payload[..4].copy_from_slice(&[4, 0, 0, 0]);
        eprintln!("userspace path: {size} bytes");
        harness.rate(flow, &payload)
    });
    let rates = rates.collect();
    plane.stop();
    rates
}

/// Datagrams per second of coturn, by size.
pub(crate) fn coturn(lab: &Lab) -> Result<Vec<f64>> {
    lab.relay.enter()?;
    let server = Server::start()?;
    lab.client.enter()?;
    let harness = Harness::new(lab)?;
    let socket = UdpSocket::bind((SENDER_IP, WIREGUARD))?;
    let peer = SocketAddrV4::new(RECEIVER_IP, WIREGUARD);
    turn::open_channel(&socket, SocketAddrV4::new(RELAY_IP, TURN), peer)?;
    let flow = Flow { source: SENDER_IP.octets(), source_port: WIREGUARD, port: TURN };
    let rates = SIZES.iter().map(|size| {
        eprintln!("coturn: {size} bytes");
        harness.rate(flow, &turn::channel_data(&vec![0x5A; *size])?)
    });
    let rates = rates.collect();
    drop(server);
    rates
}

struct Server(Child);

impl Server {
    fn start() -> Result<Self> {
        let mut command = Command::new("taskset");
        command.args(["-c", "1", "turnserver", "-n", "--no-auth", "--no-tls", "--no-dtls", "--no-cli"]);
        command.args(["--log-file", "stdout", "--simple-log", "--no-stdout-log"]);
        command.args(["--listening-port", &TURN.to_string(), "--min-port", "40000", "--max-port", "40999"]);
        for option in ["--listening-ip", "--relay-ip"] {
            command.args([option, &RELAY_IP.to_string()]);
        }
        command.args(["--pidfile", "/dev/null", "--userdb", "/dev/null"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().map(Self).context("starting turnserver (Debian package coturn)")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The devices around a relay that uses sockets.
struct Harness {
    sink: Sink,
    at_client: Link,
    pass: std::os::fd::OwnedFd,
    _at_relay: Link,
    interface: u32,
}

impl Harness {
    fn new(lab: &Lab) -> Result<Self> {
        let (sink, pass, interface) = (Sink::new()?, pass()?, Lab::client_interface()?);
        let at_client = Link::new(pass.as_fd(), interface)?;
        lab.relay.enter()?;
        // Without a program there, the driver takes no frames from one at the other end.
        let at_relay = Link::new(pass.as_fd(), nix::net::if_::if_nametoindex(RELAY)?);
        lab.client.enter()?;
        Ok(Self { sink, at_client, pass, _at_relay: at_relay?, interface })
    }

    fn rate(&self, flow: Flow, payload: &[u8]) -> Result<f64> {
        let generator = Generator::new(&[flow])?;
        let frame = lab::frame(flow.source.into(), flow.source_port, flow.port, payload)?;
        self.at_client.replace(self.sink.program())?;
        let flood = |time: Duration| -> Result<f64> {
            let (before, started) = (self.sink.count()?, Instant::now());
            while started.elapsed() < time {
                generator.send(&frame, self.interface, FRAMES)?;
            }
            let arrived = self.sink.count()? - before;
            #[expect(clippy::cast_precision_loss, reason = "fewer than 2^52 frames")]
            let arrived = arrived as f64;
            Ok(arrived / started.elapsed().as_secs_f64())
        };
        flood(FLOOD / 5)?;
        let rate = flood(FLOOD)?;
        self.at_client.replace(self.pass.as_fd())?;
        Ok(rate)
    }
}

fn stay_on(processor: usize) -> nix::Result<()> {
    let mut processors = nix::sched::CpuSet::new();
    processors.set(processor)?;
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &processors)
}

struct Nobody;

impl Observer for Nobody {
    fn unknown_source(&self, _: Owner, _: SocketAddr) {}
}

fn coordinator() -> SigningKey {
    SigningKey::from_bytes(&[3; 32])
}

fn relay_secret() -> StaticSecret {
    StaticSecret::from([2; 32])
}

fn start() -> Result<Arc<Plane>> {
    let mut limits = Limits { pairs: 1000, ..Limits::default() };
    limits.session.bytes = ghostwire_relay::limits::Rate { per_second: 12_500_000_000, burst: 1_250_000_000 };
    let config = Config {
        locals: vec![LocalAddress { local: RELAY_IP.into(), advertised: RELAY_IP.into() }],
        main_port: MAIN,
        ports: 50_000..=50_099,
        allowed_legs: vec!["198.18.0.0/15".parse()?],
        allocation_lease: Duration::from_mins(10),
        binding_lease: Duration::from_mins(5),
        limits,
    };
    let secrets = Secrets {
        relay: RELAY_ID,
        key: relay_secret(),
        coordinators: vec![(KeyNumber(1), coordinator().verifying_key())],
    };
    Ok(Plane::start(config, secrets, &[4; 32], Arc::new(Nobody), None)?)
}

/// A node with a socket at WireGuard's port.
fn client(id: u64, ip: IpAddr) -> Result<(u64, Client, UdpSocket, StaticSecret)> {
    let secret = StaticSecret::from([u8::try_from(id)? + 10; 32]);
    let socket = UdpSocket::bind((ip, WIREGUARD))?;
    socket.set_read_timeout(Some(Duration::from_millis(20)))?;
    let key = PublicKey::from(&relay_secret()).to_bytes();
    let main = SocketAddr::new(RELAY_IP.into(), MAIN);
    let sequence = u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?;
    let client = Client::new(RELAY_ID, &key, main, &secret, [u8::try_from(id)?; 32], sequence);
    Ok((id, client.context("the relay's key")?, socket, secret))
}

fn token(id: u64, peer: Option<NodeId>, secret: &StaticSecret) -> Result<Token> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    Ok(Token {
        key: KeyNumber(1),
        network: NetworkId(1),
        node: NodeId(id),
        grant: peer.map_or(Grant::Allocate, |peer| Grant::Bind { peer }),
        relay: RELAY_ID,
        rate_kbit: None,
        issued: now - 5,
        expires: now + 3600,
        session_key: PublicKey::from(secret).to_bytes(),
    })
}

type Node = (u64, Client, UdpSocket, StaticSecret);

/// Binds two nodes to each other; gives the port to which the first one sends.
fn meet(mut sender: Node, mut receiver: Node) -> Result<u16> {
    let started = Instant::now();
    let mut port = None;
    for (node, peer) in [(&mut sender, 2), (&mut receiver, 1)] {
        let peer = NodeId(peer);
        for grant in [None, Some(peer)] {
            let token = token(node.0, grant, &node.3)?.sign(&coordinator());
            node.1.set_token(started.elapsed(), grant, token);
        }
        node.1.bind(started.elapsed(), peer);
    }
    while started.elapsed() < Duration::from_secs(20) {
        for node in [&mut sender, &mut receiver] {
            node.1.handle_timeout(started.elapsed());
            while let Some(transmit) = node.1.poll_transmit() {
                node.2.send_to(&transmit.bytes, transmit.to)?;
            }
            let mut buffer = [0; 2048];
            if let Ok((len, from)) = node.2.recv_from(&mut buffer) {
                node.1.handle_input(started.elapsed(), from, &buffer[..len]);
            }
            while let Some(event) = node.1.poll_event() {
                if let Event::Bound { at, peer_bound: true, .. } = event
                    && node.0 == 1
                {
                    port = Some(at.port());
                }
            }
        }
        if let Some(port) = port {
            return Ok(port);
        }
    }
    bail!("the nodes do not get through to the relay")
}
