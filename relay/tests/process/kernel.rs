//! Relaying in the kernel: the real process with XDP in the driver's mode, between namespaces.
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
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use aya::Ebpf;
use aya::programs::{Xdp, XdpMode};
use ghostwire_relay::xdp::OBJECT;
use ghostwire_relay_protocol::control::Action;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::lab::{Relay, ip};
use crate::udp::{MAIN, Node, data, meet};

struct Namespace(File);

impl Namespace {
    fn new() -> Self {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace; run the tests as root");
        ip(&["link", "set", "lo", "up"]);
        Self(File::open("/proc/thread-self/ns/net").unwrap())
    }

    fn enter(&self) {
        setns(&self.0, CloneFlags::CLONE_NEWNET).unwrap();
    }

    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }
}

struct World {
    a: Namespace,
    b: Namespace,
    relay: Namespace,
    /// The router's, kept because a namespace that nobody has ends.
    _router: Option<(Namespace, Ebpf)>,
    pins: PathBuf,
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
    fn routed() -> Self {
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
    fn two_cards() -> Self {
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

    fn start(&self, state: TempDir, extra: &[&str]) -> Relay {
        self.relay.enter();
        let pins = self.pins.to_str().unwrap();
        Relay::start_in(state, &[&["--bpf-dir", pins], extra].concat())
    }

    /// A metric of the relay.
    fn metric(&self, name: &str) -> u64 {
        self.relay.enter();
        let mut stream = TcpStream::connect("127.0.0.1:9478").unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("ghostwire_relay_{name} ")));
        line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
    }

    fn xdp(&self, result: &str) -> u64 {
        self.metric(&format!("xdp_packets_total{{result=\"{result}\"}}"))
    }

    fn nodes(&self, relay: &Relay, at_a: &str, at_b: &str) -> (Node, Node) {
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
fn apart(test: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        if let Err(panic) = scope.spawn(test).join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// Datagrams both ways, until all that are sent come through the kernel's program.
fn exchange(a: &Node, b: &Node, (port_a, port_b): (u16, u16), count: u8) {
    for number in 0..count {
        a.send(port_b, &data(number, 200));
        assert_eq!(b.receive(), (data(number, 200), b.relay_at(port_a)));
        b.send(port_a, &data(number, 1300));
        assert_eq!(a.receive(), (data(number, 1300), a.relay_at(port_b)));
    }
}

#[test]
fn datagrams_are_relayed_in_the_kernel_within_and_between_the_families() {
    apart(|| {
        let world = World::routed();
        let relay = world.start(TempDir::new().unwrap(), &["--xdp", "native"]);
        assert!(relay.ready.contains("by XDP on r0 (native)"), "{}", relay.ready);
        let mut sockets = 0;
        for (at_a, at_b, result) in [
            ("198.51.100.1:0", "198.51.101.1:0", "returned"),
            ("[2001:db8:a::1]:0", "[2001:db8:b::1]:0", "returned"),
            ("198.51.100.1:0", "[2001:db8:b::1]:0", "crossed"),
        ] {
            let (mut a, mut b) = world.nodes(&relay, at_a, at_b);
            let ports = meet(&mut a, &mut b);
            let before = world.xdp(result);
            exchange(&a, &b, ports, 50);
            assert_eq!(world.xdp(result) - before, 100, "{at_a} {at_b}");
            a.ask(Action::Release, None, MAIN).unwrap();
            b.ask(Action::Release, None, MAIN).unwrap();
            sockets = world.metric("socket_packets_total{result=\"forwarded\"}");
        }
        assert_eq!(sockets, 0, "nothing took the slow path");
        assert_eq!(world.xdp("spoilt"), 0);
    });
}

#[test]
fn between_network_cards_datagrams_follow_the_kernels_routes() {
    apart(|| {
        let world = World::two_cards();
        let cards = ["--xdp", "native", "--xdp-interface", "ra,rb"];
        let relay = world.start(TempDir::new().unwrap(), &cards);
        for (at_a, at_b) in [("198.51.100.1:0", "198.51.101.1:0"), ("[2001:db8:a::1]:0", "198.51.101.1:0")] {
            let (mut a, mut b) = world.nodes(&relay, at_a, at_b);
            let ports = meet(&mut a, &mut b);
            let before = world.xdp("routed");
            exchange(&a, &b, ports, 50);
            assert_eq!(world.xdp("routed") - before, 100, "{at_a} {at_b}");
            a.ask(Action::Release, None, MAIN).unwrap();
            b.ask(Action::Release, None, MAIN).unwrap();
        }
    });
}

#[test]
fn generic_code_and_userspace_do_where_the_driver_does_not() {
    apart(|| {
        let world = World::routed();
        let relay = world.start(TempDir::new().unwrap(), &["--xdp", "generic"]);
        assert!(relay.ready.contains("by XDP on r0 (generic)"), "{}", relay.ready);
        let (mut a, mut b) = world.nodes(&relay, "198.51.100.1:0", "198.51.101.1:0");
        let ports = meet(&mut a, &mut b);
        exchange(&a, &b, ports, 20);
        assert_eq!(world.xdp("returned"), 40);
        // Fragments are put together by the kernel and relayed by userspace.
        let before = world.metric("socket_packets_total{result=\"forwarded\"}");
        a.send(ports.1, &data(1, 3000));
        let mut buffer = [0; 4000];
        let (len, _) = b.socket.recv_from(&mut buffer).unwrap();
        assert_eq!(buffer[..len], data(1, 3000));
        assert_eq!(world.metric("socket_packets_total{result=\"forwarded\"}") - before, 1);
        assert!(world.xdp("fragment") >= 2);
    });
}

/// Sends numbered datagrams all the time while `change` happens; all of them have to arrive.
fn nothing_is_lost_during<T>(a: &Node, b: &Node, port_b: u16, change: impl FnOnce() -> T) -> T {
    let done = AtomicBool::new(false);
    let numbered = |number: u32| {
        let mut payload = data(0, 100);
        payload[96..].copy_from_slice(&number.to_be_bytes());
        payload
    };
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| {
            let mut number = 0_u32;
            while !done.load(Ordering::Relaxed) {
                a.send(port_b, &numbered(number));
                number += 1;
                std::thread::sleep(Duration::from_micros(500));
            }
            number
        });
        let receiver = scope.spawn(|| {
            let mut next = 0_u32;
            let mut buffer = [0; 2048];
            loop {
                let (len, _) = b.socket.recv_from(&mut buffer).unwrap();
                let number = u32::from_be_bytes(buffer[len - 4..len].try_into().unwrap());
                if number == u32::MAX {
                    return next;
                }
                assert_eq!(number, next, "lost or reordered");
                next += 1;
            }
        });
        let result = change();
        done.store(true, Ordering::Relaxed);
        let sent = sender.join().unwrap();
        a.send(port_b, &numbered(u32::MAX));
        assert_eq!(receiver.join().unwrap(), sent);
        assert!(sent > 100, "{sent}");
        result
    })
}

#[test]
fn a_relay_that_is_killed_or_upgraded_drops_nothing_and_goes_on() {
    apart(|| {
        let world = World::routed();
        let relay = world.start(TempDir::new().unwrap(), &["--xdp", "native"]);
        let (mut a, mut b) = world.nodes(&relay, "198.51.100.1:0", "198.51.101.1:0");
        let (port_a, port_b) = meet(&mut a, &mut b);
        exchange(&a, &b, (port_a, port_b), 5);

        let relay = nothing_is_lost_during(&a, &b, port_b, || {
            let state = relay.kill();
            std::thread::sleep(Duration::from_millis(200));
            world.start(state, &["--xdp", "native"])
        });
        // It knows whose ports and bindings it has found.
        assert_eq!(world.metric("nodes"), 2);
        assert_eq!(world.metric("pairs"), 1);
        assert_eq!(a.ask(Action::Refresh, None, MAIN).unwrap().relayed.port(), port_a);
        assert!(a.ask(Action::Refresh, Some(2), port_b).unwrap().peer_bound);

        let relay = nothing_is_lost_during(&a, &b, port_b, || {
            let state = relay.end(Signal::SIGHUP);
            world.start(state, &["--xdp", "native"])
        });
        exchange(&a, &b, (port_a, port_b), 5);
        // A pair that ends after all that is gone from the kernel, too.
        a.ask(Action::Release, None, MAIN).unwrap();
        let before = world.xdp("unknown_source");
        b.send(port_a, &data(1, 100));
        b.ask(Action::Refresh, None, MAIN).unwrap();
        assert_eq!(world.xdp("unknown_source") - before, 1);
        b.ask(Action::Release, None, MAIN).unwrap();

        relay.end(Signal::SIGTERM);
        assert!(!world.pins.exists(), "pins are left");
        world.relay.enter();
        let link = Command::new("ip").args(["link", "show", "r0"]).output().unwrap();
        assert!(!String::from_utf8_lossy(&link.stdout).contains("xdp"), "the program is left");
    });
}

#[test]
fn what_a_killed_relay_left_can_be_removed() {
    apart(|| {
        let world = World::routed();
        let relay = world.start(TempDir::new().unwrap(), &["--xdp", "native"]);
        let _state = relay.kill();
        assert!(world.pins.exists());
        let binary = env!("CARGO_BIN_EXE_ghostwire-relay");
        let status = Command::new(binary).arg("detach").arg("--bpf-dir").arg(&world.pins).status().unwrap();
        assert!(status.success() && !world.pins.exists());
    });
}
