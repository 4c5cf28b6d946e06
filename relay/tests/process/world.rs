//! Namespaces with a relay between two nodes.
//!
//! ```text
//!  A 198.51.100.1 ──┐
//!                   world (a router) ── 192.0.2.0/24 ── relay 203.0.113.1
//!  B 198.51.101.1 ──┘
//! ```

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use aya::Ebpf;
use aya::programs::{Xdp, XdpMode};
use ghostwire_relay::xdp::OBJECT;
use nix::sched::{CloneFlags, setns, unshare};
use tempfile::TempDir;

use crate::lab::{Relay, ip};
use crate::udp::Node;

pub(crate) struct Namespace(File);

impl Namespace {
    fn new() -> Self {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace; run the tests as root");
        ip(&["link", "set", "lo", "up"]);
        Self(File::open("/proc/thread-self/ns/net").unwrap())
    }

    pub(crate) fn enter(&self) {
        setns(&self.0, CloneFlags::CLONE_NEWNET).unwrap();
    }

    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }
}

pub(crate) struct World {
    pub(crate) a: Namespace,
    pub(crate) b: Namespace,
    pub(crate) relay: Namespace,
    /// The router's, kept because a namespace that nobody has ends.
    _router: Option<(Namespace, Ebpf)>,
    pub(crate) pins: PathBuf,
}

fn run(command: &str) {
    let mut words = command.split(' ');
    let status = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(status.status.success(), "{command}: {}", String::from_utf8_lossy(&status.stderr));
}

/// Makes a device here and its other end there, with an address each.
fn cable(here: &str, there: &str, namespace: &Namespace, world: &Namespace, addresses: [&[&str]; 2]) {
    world.enter();
    ip(&["link", "add", here, "type", "veth", "peer", "name", there, "netns", &namespace.path()]);
    for (device, namespace, addresses) in [(here, world, addresses[0]), (there, namespace, addresses[1])] {
        namespace.enter();
        for address in addresses {
            let nodad: &[&str] = if address.contains(':') { &["nodad"] } else { &[] };
            ip(&[&["address", "add", address, "dev", device], nodad].concat());
        }
        ip(&["link", "set", device, "up"]);
        // Frames that an XDP program redirects are taken only by a device with NAPI, and a checksum that a network card
        // is yet to compute is none.
        run(&format!("ethtool -K {device} gro on tx off"));
    }
}

fn default_routes(namespace: &Namespace, device: &str, v4: &str, v6: &str) {
    namespace.enter();
    ip(&["route", "add", "default", "via", v4, "dev", device]);
    ip(&["-6", "route", "add", "default", "via", v6, "dev", device]);
}

fn forward() {
    for file in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        std::fs::write(Path::new("/proc/sys/net").join(file), "1").unwrap();
    }
}

/// veth delivers what an XDP program sends back only to an end that has a program, too. Ours without a table passes
/// everything.
fn pass_everything(device: &str) -> Ebpf {
    let mut ebpf = Ebpf::load(OBJECT).unwrap();
    let program: &mut Xdp = ebpf.program_mut("relay").unwrap().try_into().unwrap();
    program.load().unwrap();
    program.attach(device, XdpMode::Driver).unwrap();
    ebpf
}

fn pins() -> PathBuf {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    PathBuf::from(format!("/sys/fs/bpf/ghostwire-relay-test-{}-{number}", std::process::id()))
}

impl World {
    /// One router between all.
    pub(crate) fn routed() -> Self {
        let (a, b, relay, world) = (Namespace::new(), Namespace::new(), Namespace::new(), Namespace::new());
        cable(
            "wr",
            "r0",
            &relay,
            &world,
            [&["192.0.2.1/24", "2001:db8:ff::1/64"], &["192.0.2.2/24", "2001:db8:ff::2/64"]],
        );
        cable(
            "wa",
            "a0",
            &a,
            &world,
            [&["198.51.100.254/24", "2001:db8:a::fe/64"], &["198.51.100.1/24", "2001:db8:a::1/64"]],
        );
        cable(
            "wb",
            "b0",
            &b,
            &world,
            [&["198.51.101.254/24", "2001:db8:b::fe/64"], &["198.51.101.1/24", "2001:db8:b::1/64"]],
        );
        world.enter();
        forward();
        let passing = pass_everything("wr");
        ip(&["route", "add", "203.0.113.1/32", "via", "192.0.2.2"]);
        ip(&["-6", "route", "add", "2001:db8::1/128", "via", "2001:db8:ff::2"]);
        default_routes(&a, "a0", "198.51.100.254", "2001:db8:a::fe");
        default_routes(&b, "b0", "198.51.101.254", "2001:db8:b::fe");
        default_routes(&relay, "r0", "192.0.2.1", "2001:db8:ff::1");
        ip(&["address", "add", "203.0.113.1/32", "dev", "r0"]);
        ip(&["-6", "address", "add", "2001:db8::1/128", "dev", "r0", "nodad"]);
        Self { a, b, relay, _router: Some((world, passing)), pins: pins() }
    }

    /// The relay has a network card towards each of the two.
    pub(crate) fn two_cards() -> Self {
        let (a, b, relay) = (Namespace::new(), Namespace::new(), Namespace::new());
        cable(
            "ra",
            "a0",
            &a,
            &relay,
            [&["198.51.100.254/24", "2001:db8:a::fe/64"], &["198.51.100.1/24", "2001:db8:a::1/64"]],
        );
        cable(
            "rb",
            "b0",
            &b,
            &relay,
            [&["198.51.101.254/24", "2001:db8:b::fe/64"], &["198.51.101.1/24", "2001:db8:b::1/64"]],
        );
        default_routes(&a, "a0", "198.51.100.254", "2001:db8:a::fe");
        default_routes(&b, "b0", "198.51.101.254", "2001:db8:b::fe");
        relay.enter();
        forward();
        ip(&["address", "add", "203.0.113.1/32", "dev", "ra"]);
        ip(&["-6", "address", "add", "2001:db8::1/128", "dev", "ra", "nodad"]);
        Self { a, b, relay, _router: None, pins: pins() }
    }

    pub(crate) fn start(&self, state: TempDir, extra: &[&str]) -> Relay {
        self.relay.enter();
        let pins = self.pins.to_str().unwrap();
        Relay::start_in(state, &[&["--bpf-dir", pins], extra].concat())
    }

    /// A metric of the relay.
    pub(crate) fn metric(&self, name: &str) -> u64 {
        self.relay.enter();
        let mut stream = TcpStream::connect("127.0.0.1:9478").unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("ghostwire_relay_{name} ")));
        line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
    }

    pub(crate) fn xdp(&self, result: &str) -> u64 {
        self.metric(&format!("xdp_packets_total{{result=\"{result}\"}}"))
    }

    pub(crate) fn nodes(&self, relay: &Relay, at_a: &str, at_b: &str) -> (Node, Node) {
        self.a.enter();
        let a = Node::new(relay, 1, at_a);
        self.b.enter();
        (a, Node::new(relay, 2, at_b))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.pins);
    }
}

/// Runs a test on a thread of its own, whose namespaces are nobody else's.
pub(crate) fn apart(test: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        if let Err(panic) = scope.spawn(test).join() {
            std::panic::resume_unwind(panic);
        }
    });
}
