//! WireGuard devices on the running kernel, in namespaces of the tests' own.
//!
//! What both engines have to do is tested with each that is there: userspace always, the kernel's
//! where the kernel has WireGuard (in the virtual machines that run this same program).
//!
//! The process of a userspace device is this test program again: with the arguments of the hidden
//! subcommand, the "test" `helper_process` becomes it; `daemon_process` becomes a daemon to be killed.

#![expect(clippy::unwrap_used, reason = "the helpers of a test fail like the test")]

mod netns;

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    num::NonZeroU16,
    os::unix::{fs::PermissionsExt as _, net::UnixStream},
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use ghostwire_dataplane::{
    netlink::{Link, LinkName, Netlink},
    wireguard::{
        Backend, Choice, Device, DeviceConfig, DeviceStatus, Error, Helper, Opened, Options, PeerConfig,
        PeerStatus, PeerUpdate, PresharedKey, PrivateKey, PublicKey, SUBCOMMAND, Update, UserspaceDevice,
        adopt, run_userspace,
    },
};
use netns::{Netns, eventually};
use tempfile::TempDir;

/// The argument after `mark`, if this program was started by one of its own tests.
fn argument_after(mark: &str) -> Option<String> {
    std::env::args().skip_while(|argument| argument != mark).nth(1)
}

#[test]
fn helper_process() {
    let (Some(name), Some(dir)) = (argument_after(SUBCOMMAND), argument_after("--uapi-dir")) else {
        return;
    };
    if let Err(error) = run_userspace(&name.parse().unwrap(), Path::new(&dir)) {
        eprintln!("{error}");
        std::process::exit(1);
    }
    std::process::exit(0);
}

#[test]
fn daemon_process() {
    let Some(dir) = argument_after("daemon-of") else { return };
    let (_device, opened) = Device::open(&options(Path::new(&dir), Choice::Userspace)).unwrap();
    assert_eq!(opened, Opened::Created);
    std::fs::write(Path::new(&dir).join("daemon-is-ready"), "").unwrap();
    loop {
        std::thread::park();
    }
}

fn helper() -> Helper {
    // What follows `--` is a test name to the test harness: one that is not there.
    ["--exact", "helper_process", "--nocapture", "--test-threads=1", "--"]
        .into_iter()
        .fold(Helper::new(std::env::current_exe().unwrap()), Helper::argument)
}

fn options(dir: &Path, choice: Choice) -> Options {
    let helper = helper().log_to(dir.join("helper.log"));
    Options { name: name(), choice, uapi_dir: dir.to_owned(), helper }
}

fn name() -> LinkName {
    "gw0".parse().unwrap()
}

/// The engines that this machine has. What it has not is said aloud.
fn engines() -> Vec<Choice> {
    let backend = Netns::new().run(|| Backend::detect().unwrap());
    println!("this kernel's WireGuard backend: {backend}");
    match backend {
        Backend::Kernel => vec![Choice::Kernel, Choice::Userspace],
        Backend::Userspace => {
            println!("NOT COVERED HERE: kernel WireGuard; the virtual machines run this test with it");
            vec![Choice::Userspace]
        }
    }
}

/// A device, used from within its namespace: the kernel's is found only there.
struct Wg {
    device: Device,
    netns: Arc<Netns>,
}

impl Wg {
    fn apply(&self, device: &DeviceConfig, peers: &[PeerConfig]) -> Result<Update, Error> {
        self.netns.run(|| self.device.apply(device, peers))
    }

    fn change(&self, update: &Update) -> Result<(), Error> {
        self.netns.run(|| self.device.change(update))
    }

    fn set_endpoint(&self, peer: &PublicKey, endpoint: SocketAddr) -> Result<(), Error> {
        self.netns.run(|| self.device.set_endpoint(peer, endpoint))
    }

    fn status(&self) -> Result<DeviceStatus, Error> {
        self.netns.run(|| self.device.status())
    }

    fn link(&self) -> Result<Link, Error> {
        self.device.link()
    }

    fn backend(&self) -> Backend {
        self.device.backend()
    }

    fn delete(self) -> Result<(), Error> {
        let Self { device, netns } = self;
        netns.run(|| device.delete())
    }
}

/// One end of a tunnel.
struct Node {
    netns: Arc<Netns>,
    dir: TempDir,
    choice: Choice,
    key: PrivateKey,
    port: u16,
}

impl Drop for Node {
    fn drop(&mut self) {
        // The process of a userspace device outlives whatever started it, so also a failed test.
        if let Ok(Some(device)) = adopt(&name(), self.dir.path()) {
            drop(device.stop());
        }
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.dir.path().join("helper.log"));
            eprintln!("log of the userspace process: {}", log.unwrap_or_default());
        }
    }
}

impl Node {
    fn new(choice: Choice, port: u16) -> Self {
        let dir = TempDir::new().unwrap();
        Self { netns: Arc::new(Netns::new()), dir, choice, key: PrivateKey::generate(), port }
    }

    fn open(&self) -> (Wg, Opened) {
        self.open_as(&options(self.dir.path(), self.choice)).unwrap()
    }

    fn open_as(&self, options: &Options) -> Result<(Wg, Opened), Error> {
        let (device, opened) = self.netns.run(|| Device::open(options))?;
        Ok((Wg { device, netns: Arc::clone(&self.netns) }, opened))
    }

    fn config(&self) -> DeviceConfig {
        DeviceConfig { private_key: self.key.clone(), listen_port: self.port, fwmark: 0 }
    }

    /// What the other end has to know of this one, which is number `number` on both networks.
    fn as_peer(&self, number: u8) -> PeerConfig {
        PeerConfig {
            endpoint: Some(SocketAddr::new([192, 0, 2, number].into(), self.port)),
            allowed_ips: vec![
                format!("100.64.0.{number}/32").parse().unwrap(),
                format!("fd00:1234:5678::{number}/128").parse().unwrap(),
            ],
            ..PeerConfig::new(self.key.public_key())
        }
    }

    /// Opens the device and makes it number `number` of the overlay.
    fn start(&self, number: u8, peers: &[PeerConfig]) -> Wg {
        let (device, opened) = self.open();
        assert_eq!(opened, Opened::Created);
        device.apply(&self.config(), peers).unwrap();
        let link = device.link().unwrap();
        self.netns.run(|| {
            let netlink = Netlink::open().unwrap();
            let nets = [format!("100.64.0.{number}/10"), format!("fd00:1234:5678::{number}/48")];
            netlink.set_addresses(&link, &nets.map(|net| net.parse().unwrap())).unwrap();
            netlink.set_mtu(&link, 1420).unwrap();
            netlink.set_up(&link).unwrap();
        });
        device
    }

    fn ping(&self, target: &str) {
        self.netns.command(&format!("ping -n -c 3 -i 0.2 -W 20 {target}"));
    }
}

/// Two nodes, 1 and 2, on the network 192.0.2.0/24 and in the overlay 100.64.0.0/10.
fn pair(choice: Choice) -> (Node, Wg, Node, Wg) {
    let (a, b) = (Node::new(choice, 51820), Node::new(choice, 51821));
    a.netns.connect(&b.netns, "eth0", "192.0.2.1/24", "192.0.2.2/24");
    let at_b = b.start(2, &[a.as_peer(1)]);
    let at_a = a.start(1, &[b.as_peer(2)]);
    (a, at_a, b, at_b)
}

fn only_peer(device: &Wg) -> PeerStatus {
    let status = device.status().unwrap();
    assert_eq!(status.peers.len(), 1);
    status.peers[0].clone()
}

/// Whether a session is still the same: the engines tell the time of the handshake, gotatun by its age.
fn same_session(before: &PeerStatus, after: &PeerStatus) -> bool {
    let (Some(before), Some(after)) = (before.last_handshake, after.last_handshake) else {
        return false;
    };
    after.duration_since(before).unwrap_or_else(|error| error.duration()) < Duration::from_millis(20)
}

/// Sends `length` bytes from one namespace to the other and checks each of them.
fn transfer(from: &Netns, to: &Netns, target: Ipv4Addr, length: usize) {
    let listener = to.run(|| TcpListener::bind((target, 7000)).unwrap());
    let pattern: Vec<u8> = (0..=250).collect();
    let expected: Vec<u8> = pattern.iter().copied().cycle().take(length).collect();
    let sent = expected.clone();
    let mut stream = from.run(|| TcpStream::connect((target, 7000)).unwrap());
    let sender = std::thread::spawn(move || stream.write_all(&sent).unwrap());
    let mut received = Vec::new();
    listener.accept().unwrap().0.read_to_end(&mut received).unwrap();
    sender.join().unwrap();
    assert!(received == expected, "{} of {length} bytes, or other bytes", received.len());
}

#[test]
fn tunnel_carries_pings_and_ten_megabytes_of_tcp() {
    for choice in engines() {
        let (a, at_a, b, at_b) = pair(choice);
        println!("through {}", at_a.backend());
        a.ping("100.64.0.2");
        b.ping("fd00:1234:5678::1");
        transfer(&a.netns, &b.netns, [100, 64, 0, 2].into(), 10 << 20);
        for (device, floor) in [(&at_a, "tx"), (&at_b, "rx")] {
            let peer = only_peer(device);
            assert!(peer.last_handshake.is_some());
            let bytes = if floor == "tx" { peer.tx_bytes } else { peer.rx_bytes };
            assert!(bytes > 10 << 20, "{floor} {bytes}");
        }
        at_a.delete().unwrap();
        at_b.delete().unwrap();
        for node in [&a, &b] {
            let links = node.netns.ip("-o link");
            assert!(!links.contains("gw0"), "{links}");
        }
    }
}

#[test]
fn killing_the_daemon_loses_no_packet() {
    let (a, b) = (Node::new(Choice::Userspace, 51820), Node::new(Choice::Userspace, 51821));
    a.netns.connect(&b.netns, "eth0", "192.0.2.1/24", "192.0.2.2/24");
    let mut daemon = a.netns.run(|| {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "daemon_process", "--nocapture", "--test-threads=1", "--", "daemon-of"])
            .arg(a.dir.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    });
    eventually("the daemon is ready", || a.dir.path().join("daemon-is-ready").exists());

    let _at_b = b.start(2, &[a.as_peer(1)]);
    let (at_a, opened) = a.open();
    assert_eq!(opened, Opened::Adopted);
    at_a.apply(&a.config(), &[b.as_peer(2)]).unwrap();
    a.netns.ip("address add 100.64.0.1/10 dev gw0");
    a.netns.ip("link set gw0 up");
    a.ping("100.64.0.2");

    let mut pings = b.netns.run(|| {
        Command::new("ping")
            .args(["-n", "-c", "100", "-i", "0.02", "-W", "20", "100.64.0.1"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    });
    let before = only_peer(&at_a).rx_bytes;
    eventually("pings flow", || only_peer(&at_a).rx_bytes > before + 500);
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    let mut report = String::new();
    pings.stdout.take().unwrap().read_to_string(&mut report).unwrap();
    pings.wait().unwrap();
    assert!(report.contains("100 packets transmitted, 100 received"), "{report}");
    assert!(same_session(&only_peer(&at_a), &only_peer(&a.open().0)));
}

#[test]
fn adopting_and_applying_again_resets_no_session() {
    for choice in engines() {
        let (a, at_a, b, _at_b) = pair(choice);
        a.ping("100.64.0.2");
        let before = only_peer(&at_a);
        drop(at_a);
        for choice in [choice, Choice::Auto] {
            let options = options(a.dir.path(), choice);
            let (device, opened) = a.open_as(&options).unwrap();
            assert_eq!(opened, Opened::Adopted);
            let change = device.apply(&a.config(), &[b.as_peer(2)]).unwrap();
            assert!(change.is_empty(), "{change:?}");
            a.ping("100.64.0.2");
            let after = only_peer(&device);
            assert!(same_session(&before, &after), "{before:?} {after:?}");
            assert!(after.rx_bytes > before.rx_bytes);
        }
    }
}

#[test]
fn changing_peers_keeps_every_session() {
    for choice in engines() {
        let (a, at_a, b, _at_b) = pair(choice);
        a.ping("100.64.0.2");
        let before = only_peer(&at_a);

        // Another peer comes and goes.
        let other = PeerConfig {
            allowed_ips: vec!["10.7.0.0/16".parse().unwrap()],
            endpoint: Some("192.0.2.77:1".parse().unwrap()),
            ..PeerConfig::new(PrivateKey::generate().public_key())
        };
        let change = at_a.apply(&a.config(), &[b.as_peer(2), other.clone()]).unwrap();
        assert_eq!(change.peers.len(), 1);
        let added = at_a.status().unwrap().peer(&other.public_key).unwrap().clone();
        assert_eq!((added.allowed_ips, added.endpoint), (other.allowed_ips, other.endpoint));
        at_a.apply(&a.config(), &[b.as_peer(2)]).unwrap();

        // The peer itself is changed in every respect but its identity.
        let mut changed = b.as_peer(2);
        changed.keepalive = NonZeroU16::new(25);
        changed.allowed_ips.push("10.9.0.0/16".parse().unwrap());
        at_a.apply(&a.config(), std::slice::from_ref(&changed)).unwrap();
        changed.allowed_ips.pop();
        at_a.apply(&a.config(), std::slice::from_ref(&changed)).unwrap();
        let after = only_peer(&at_a);
        assert_eq!(after.keepalive, changed.keepalive);
        assert_eq!(after.allowed_ips.len(), 2);
        assert!(same_session(&before, &after), "{before:?} {after:?}");
        a.ping("100.64.0.2");

        // The endpoint moves to another address of the peer, and back.
        b.netns.ip("address add 192.0.2.22/24 dev eth0");
        for endpoint in ["192.0.2.22:51821", "192.0.2.2:51821"] {
            let endpoint = endpoint.parse().unwrap();
            at_a.set_endpoint(&b.key.public_key(), endpoint).unwrap();
            assert_eq!(only_peer(&at_a).endpoint, Some(endpoint));
            a.ping("100.64.0.2");
        }
        assert!(same_session(&before, &only_peer(&at_a)));
    }
}

#[test]
fn addresses_move_from_one_peer_to_another() {
    for choice in engines() {
        let (a, at_a, b, _at_b) = pair(choice);
        let mut thief = PeerConfig::new(PrivateKey::generate().public_key());
        thief.allowed_ips = b.as_peer(2).allowed_ips;
        at_a.apply(&a.config(), &[b.as_peer(2), thief.clone()]).unwrap();
        assert!(at_a.apply(&a.config(), &[b.as_peer(2), thief.clone()]).unwrap().is_empty());
        let lost = a.netns.output("ping -n -c 1 -W 1 100.64.0.2");
        assert!(!lost.status.success(), "the last claimant has the address");
        at_a.apply(&a.config(), &[thief, b.as_peer(2)]).unwrap();
        a.ping("100.64.0.2");
    }
}

#[test]
fn a_preshared_key_has_to_be_the_same_at_both_ends() {
    for choice in engines() {
        let (a, at_a, b, at_b) = pair(choice);
        let shared = PresharedKey::generate();
        let with =
            |peer: PeerConfig, key: &PresharedKey| PeerConfig { preshared_key: Some(key.clone()), ..peer };
        at_a.apply(&a.config(), &[with(b.as_peer(2), &shared)]).unwrap();
        at_b.apply(&b.config(), &[with(a.as_peer(1), &PresharedKey::generate())]).unwrap();
        let refused = a.netns.output("ping -n -c 1 -W 1 100.64.0.2");
        assert!(!refused.status.success());
        at_b.apply(&b.config(), &[with(a.as_peer(1), &shared)]).unwrap();
        assert_eq!(only_peer(&at_b).preshared_key, Some(shared));
        a.ping("100.64.0.2");
        at_b.apply(&b.config(), &[a.as_peer(1)]).unwrap();
        assert_eq!(only_peer(&at_b).preshared_key, None);
    }
}

#[test]
fn port_and_key_can_change_and_a_port_in_use_leaves_the_old_one() {
    for choice in engines() {
        let (a, at_a, b, at_b) = pair(choice);
        a.ping("100.64.0.2");
        // A new port at one end: the other learns it from the packets that arrive.
        at_b.apply(&DeviceConfig { listen_port: 40000, ..b.config() }, &[a.as_peer(1)]).unwrap();
        assert_eq!(at_b.status().unwrap().listen_port, 40000);
        b.ping("100.64.0.1");
        assert_eq!(only_peer(&at_a).endpoint, Some("192.0.2.2:40000".parse().unwrap()));

        let taken = b.netns.run(|| std::net::UdpSocket::bind("0.0.0.0:40001").unwrap());
        let error =
            at_b.apply(&DeviceConfig { listen_port: 40001, ..b.config() }, &[a.as_peer(1)]).unwrap_err();
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(source.contains("Address already in use"), "{error}: {source}");
        drop(taken);
        if choice == Choice::Userspace {
            b.ping("100.64.0.1");
            assert_eq!(at_b.status().unwrap().listen_port, 40000);
        }

        // Port 0 keeps what is there, or takes any.
        let any = DeviceConfig { listen_port: 0, ..b.config() };
        at_b.apply(&any, &[a.as_peer(1)]).unwrap();
        assert_ne!(at_b.status().unwrap().listen_port, 0);

        // A new key at one end: the other end has to be told, and then it works.
        let key = PrivateKey::generate();
        let config = DeviceConfig { private_key: key.clone(), listen_port: 51821, fwmark: 0 };
        at_b.apply(&config, &[a.as_peer(1)]).unwrap();
        assert_eq!(at_b.status().unwrap().private_key, Some(key.clone()));
        let renewed = PeerConfig { public_key: key.public_key(), ..b.as_peer(2) };
        at_a.apply(&a.config(), &[renewed]).unwrap();
        a.ping("100.64.0.2");
    }
}

#[test]
fn the_firewall_mark_is_on_the_encrypted_packets() {
    for choice in engines() {
        let (a, at_a, b, _at_b) = pair(choice);
        a.ping("100.64.0.2");
        a.netns.ip("rule add fwmark 0x77 prohibit");
        let marked = DeviceConfig { fwmark: 0x77, ..a.config() };
        at_a.apply(&marked, &[b.as_peer(2)]).unwrap();
        assert_eq!(at_a.status().unwrap().fwmark, 0x77);
        assert!(!a.netns.output("ping -n -c 1 -W 1 100.64.0.2").status.success());
        at_a.apply(&a.config(), &[b.as_peer(2)]).unwrap();
        assert_eq!(at_a.status().unwrap().fwmark, 0);
        a.ping("100.64.0.2");
    }
}

#[test]
fn a_foreign_interface_of_the_same_name_is_refused_and_left_alone() {
    for choice in engines() {
        let node = Node::new(choice, 51820);
        node.netns.ip("link add gw0 type bridge");
        let options = options(node.dir.path(), choice);
        let error = node.open_as(&options).err().unwrap();
        assert!(matches!(error, Error::NameTaken { .. }), "{error}");
        assert!(error.to_string().contains("ip link delete gw0"), "{error}");
        assert!(node.netns.ip("-d link show gw0").contains("bridge"));
    }
}

#[test]
fn a_device_of_ours_with_another_engine_is_replaced() {
    let engines = engines();
    if let [kernel, userspace] = engines[..] {
        let node = Node::new(userspace, 51820);
        let (device, _) = node.open();
        assert_eq!(device.backend(), Backend::Userspace);
        for (choice, backend) in [(kernel, Backend::Kernel), (userspace, Backend::Userspace)] {
            let options = options(node.dir.path(), choice);
            let (device, opened) = node.open_as(&options).unwrap();
            assert_eq!((device.backend(), opened), (backend, Opened::Created));
        }
    } else {
        let node = Node::new(Choice::Kernel, 51820);
        let options = options(node.dir.path(), Choice::Kernel);
        let error = node.open_as(&options).err().unwrap();
        assert!(matches!(error, Error::NoKernelSupport), "{error}");
    }
}

/// A userspace device alone.
fn lone_device() -> (Node, Wg, UserspaceDevice) {
    let node = Node::new(Choice::Userspace, 51820);
    let (device, _) = node.open();
    let userspace = adopt(&name(), node.dir.path()).unwrap().unwrap();
    (node, device, userspace)
}

fn set(peers: Vec<PeerUpdate>) -> Update {
    Update { peers, ..Update::default() }
}

#[test]
fn userspace_devices_do_what_the_configuration_protocol_says() {
    let (node, device, _) = lone_device();
    let keys: Vec<_> = (0..3).map(|_| PrivateKey::generate().public_key()).collect();
    assert_eq!(device.status().unwrap(), DeviceStatus::default());

    // Without a key there can be neither port nor peers.
    for change in [set(vec![PeerUpdate::new(keys[0])]), Update { listen_port: Some(1), ..Update::default() }]
    {
        let error = device.change(&change).unwrap_err();
        assert!(
            matches!(&error, Error::Refused { source, .. } if source.raw_os_error() == Some(libc::ENOKEY))
        );
    }
    device.apply(&node.config(), &[]).unwrap();

    let listed = || {
        let mut listed: Vec<_> =
            device.status().unwrap().peers.into_iter().map(|peer| peer.public_key).collect();
        listed.sort();
        listed
    };
    let sorted = |mut keys: Vec<_>| {
        keys.sort();
        keys
    };
    // update_only adds nothing; a plain change does; remove removes; replace_peers leaves the named.
    device.change(&set(vec![PeerUpdate { update_only: true, ..PeerUpdate::new(keys[0]) }])).unwrap();
    assert_eq!(listed(), []);
    device.change(&set(keys.iter().copied().map(PeerUpdate::new).collect())).unwrap();
    assert_eq!(listed(), sorted(keys.clone()));
    device.change(&set(vec![PeerUpdate::removal(keys[0]), PeerUpdate::removal(keys[0])])).unwrap_err();
    device.change(&set(vec![PeerUpdate::removal(keys[0])])).unwrap();
    assert_eq!(listed(), sorted(keys[1..].to_vec()));
    let rest = Update { replace_peers: true, ..set(vec![PeerUpdate::new(keys[2])]) };
    device.change(&rest).unwrap();
    assert_eq!(listed(), [keys[2]]);

    // allowed_ip adds, replace_allowed_ips replaces, 0 switches keepalive off.
    let nets = |list: &[&str]| list.iter().map(|net| net.parse().unwrap()).collect::<Vec<_>>();
    let one =
        PeerUpdate { allowed_ips: nets(&["10.0.0.0/8"]), keepalive: Some(9), ..PeerUpdate::new(keys[2]) };
    device.change(&set(vec![one.clone()])).unwrap();
    device.change(&set(vec![PeerUpdate { allowed_ips: nets(&["fd00::/8"]), ..one.clone() }])).unwrap();
    assert_eq!(only_peer(&device).allowed_ips.len(), 2);
    assert_eq!(only_peer(&device).keepalive, NonZeroU16::new(9));
    let replaced = PeerUpdate {
        allowed_ips: nets(&["10.1.0.0/16"]),
        replace_allowed_ips: true,
        keepalive: Some(0),
        ..one
    };
    device.change(&set(vec![replaced])).unwrap();
    assert_eq!(only_peer(&device).allowed_ips, nets(&["10.1.0.0/16"]));
    assert_eq!(only_peer(&device).keepalive, None);
    let none = Update { replace_peers: true, ..Update::default() };
    device.change(&none).unwrap();
    assert_eq!(listed(), []);
}

#[test]
fn hundreds_of_peers_are_applied_and_read_back() {
    for choice in engines() {
        let node = Node::new(choice, 51820);
        let (device, _) = node.open();
        let peers: Vec<PeerConfig> = (0..300_u16)
            .map(|number| PeerConfig {
                allowed_ips: vec![format!("100.64.{}.{}/32", number / 250, number % 250).parse().unwrap()],
                endpoint: Some(SocketAddr::new([127, 0, 0, 1].into(), 9)),
                ..PeerConfig::new(PrivateKey::generate().public_key())
            })
            .collect();
        device.apply(&node.config(), &peers).unwrap();
        assert_eq!(device.status().unwrap().peers.len(), 300);
        assert!(device.apply(&node.config(), &peers).unwrap().is_empty());
        // One with more addresses than fit into one message to the kernel.
        let mut many = peers[0].clone();
        many.allowed_ips = (0..1000_u32)
            .map(|n| Ipv4Addr::from(0x0b00_0000 + n))
            .map(|ip| std::net::IpAddr::V4(ip).into())
            .collect();
        device.apply(&node.config(), std::slice::from_ref(&many)).unwrap();
        assert_eq!(only_peer(&device).allowed_ips.len(), 1000);
        assert!(device.apply(&node.config(), &[many]).unwrap().is_empty());
    }
}

#[test]
fn the_configuration_socket_is_private_and_survives_nonsense() {
    let (_node, device, userspace) = lone_device();
    let mode = std::fs::metadata(userspace.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let long = vec![b'x'; 100_000];
    let nonsense: [&[u8]; 5] =
        [b"\xff\xfe\n\n", b"get=1\nwhat=1\n\n", b"set=1\nprivate_key=short\n\n", b"hello\n\n", &long];
    for bytes in nonsense {
        let mut stream = UnixStream::connect(userspace.socket()).unwrap();
        // The process may hang up before it has read everything.
        drop(stream.write_all(bytes));
        let mut answer = String::new();
        drop(stream.read_to_string(&mut answer));
        assert!(answer.is_empty() || answer == format!("errno={}\n\n", libc::EINVAL), "{answer}");
        device.status().unwrap();
    }
    // Two questions in one breath are two answers.
    let mut stream = UnixStream::connect(userspace.socket()).unwrap();
    stream.write_all(b"get=1\n\nget=1\n\n").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answers = String::new();
    stream.read_to_string(&mut answers).unwrap();
    assert_eq!(answers, "listen_port=0\nerrno=0\n\n".repeat(2));
}

#[test]
fn the_userspace_process_has_no_more_rights_than_it_needs() {
    let (_node, _device, userspace) = lone_device();
    let pid = userspace.pid().unwrap();
    // The test harness, unlike the daemon's program, calls the helper on a thread that is not the
    // first: what is true of that one is seen in the threads that it started.
    let mut threads = 0;
    for thread in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let status = std::fs::read_to_string(thread.unwrap().path().join("status")).unwrap();
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap();
            line[name.len()..].trim().to_owned()
        };
        if !field("Name:").starts_with("tokio") {
            continue;
        }
        threads += 1;
        let effective = u64::from_str_radix(&field("CapEff:"), 16).unwrap();
        let allowed = (1 << 12) | (1 << 10);
        assert_eq!(effective & !allowed, 0, "{effective:x}");
        assert_eq!(field("NoNewPrivs:"), "1");
    }
    assert!(threads > 0);
    let session = nix::unistd::getsid(Some(nix::unistd::Pid::from_raw(pid))).unwrap();
    assert_eq!(session.as_raw(), pid, "a session of its own");
}

#[test]
fn a_second_process_for_the_same_device_is_refused() {
    let (node, _device, _) = lone_device();
    let other = Netns::new();
    let started = other.run(|| {
        let program = std::env::current_exe().unwrap();
        Command::new(program)
            .args(["--exact", "helper_process", "--nocapture", "--", SUBCOMMAND, "gw0", "--uapi-dir"])
            .arg(node.dir.path())
            .output()
            .unwrap()
    });
    assert_eq!(started.status.code(), Some(1));
    let text = String::from_utf8_lossy(&started.stderr).into_owned();
    assert!(text.contains("another process already runs"), "{text}");
}

#[test]
fn deleting_the_device_ends_its_process_and_leaves_nothing() {
    let (node, device, userspace) = lone_device();
    let pid = userspace.pid().unwrap();
    device.delete().unwrap();
    eventually("the process is gone", || !Path::new(&format!("/proc/{pid}")).exists());
    assert!(!userspace.socket().exists());
    assert!(!node.netns.ip("-o link").contains("gw0"));
    assert!(adopt(&name(), node.dir.path()).unwrap().is_none());
    userspace.stop().unwrap();
    // And it can be made again.
    assert_eq!(node.open().1, Opened::Created);
}

#[test]
fn the_process_ends_when_its_interface_is_deleted_and_is_replaced() {
    let (node, device, userspace) = lone_device();
    device.apply(&node.config(), &[]).unwrap();
    let pid = userspace.pid().unwrap();
    node.netns.ip("link delete gw0");
    eventually("the process is gone", || !Path::new(&format!("/proc/{pid}")).exists());
    assert!(matches!(device.status(), Err(Error::Gone(_))));
    assert!(matches!(device.link(), Err(Error::Gone(_))));
    assert_eq!(node.open().1, Opened::Created);
}

#[test]
fn a_device_that_was_down_passes_packets_again() {
    for choice in engines() {
        let (a, _at_a, b, _at_b) = pair(choice);
        a.ping("100.64.0.2");
        a.netns.ip("link set gw0 down");
        assert!(!b.netns.output("ping -n -c 2 -i 0.2 -W 1 100.64.0.1").status.success());
        a.netns.ip("link set gw0 up");
        a.ping("100.64.0.2");
        b.ping("100.64.0.1");
    }
}

#[test]
fn other_devices_are_left_alone() {
    for choice in engines() {
        let (a, at_a, _b, _at_b) = pair(choice);
        let second: LinkName = "gw1".parse().unwrap();
        let options = Options { name: second.clone(), ..options(a.dir.path(), choice) };
        let (other, opened) = a.open_as(&options).unwrap();
        assert_eq!(opened, Opened::Created);
        let config = DeviceConfig { listen_port: 51900, ..a.config() };
        other.apply(&config, &[PeerConfig::new(PrivateKey::generate().public_key())]).unwrap();
        assert_eq!(other.status().unwrap().peers.len(), 1);
        assert_eq!(at_a.status().unwrap().listen_port, 51820);
        other.delete().unwrap();
        a.ping("100.64.0.2");
    }
}
