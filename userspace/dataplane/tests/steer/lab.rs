//! Nodes in namespaces: WireGuard with stable endpoints, steering, and the networks between them.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path as FsPath, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use ghostwire_dataplane::netlink::{LinkName, Netlink};
use ghostwire_dataplane::steer::{Class, Family, Options, Path, PeerId, Reason, Steer, Uplink, UplinkReport};
use ghostwire_dataplane::wireguard::{
    self, Backend, Choice, Device, DeviceConfig, Helper, PeerConfig, PrivateKey, adopt,
};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::netns::Netns;

static NEXT: AtomicU32 = AtomicU32::new(0);

pub(crate) fn name() -> LinkName {
    "gw0".parse().unwrap()
}

/// The engines that this machine has. What it has not is said aloud.
pub(crate) fn engines() -> Vec<Choice> {
    match Netns::new().run(|| Backend::detect().unwrap()) {
        Backend::Kernel => vec![Choice::Kernel, Choice::Userspace],
        Backend::Userspace => {
            println!("NOT COVERED HERE: kernel WireGuard; the virtual machines run this test with it");
            vec![Choice::Userspace]
        }
    }
}

/// One node, number `number` of the overlay.
pub(crate) struct Node {
    pub(crate) netns: Netns,
    pub(crate) number: u8,
    pub(crate) key: PrivateKey,
    pub(crate) options: Options,
    /// Keeps the process of a userspace device on one processor.
    pub(crate) pinned: bool,
    choice: Choice,
    dir: TempDir,
    bpf_dir: PathBuf,
}

impl Drop for Node {
    fn drop(&mut self) {
        // The process of a userspace device outlives whatever started it, so also a failed test.
        if let Ok(Some(device)) = adopt(&name(), self.dir.path()) {
            drop(device.stop());
        }
        let removed = self.netns.run(|| Steer::remove(&name(), &self.bpf_dir));
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.dir.path().join("helper.log"));
            eprintln!("log of the userspace process: {}", log.unwrap_or_default());
        } else {
            removed.unwrap();
            assert!(!self.bpf_dir.exists(), "{} is left", self.bpf_dir.display());
        }
    }
}

impl Node {
    pub(crate) fn new(choice: Choice, number: u8) -> Self {
        let port = 51_820 + u16::from(number);
        let count = NEXT.fetch_add(1, Ordering::Relaxed);
        let bpf_dir = PathBuf::from(format!("/sys/fs/bpf/ghostwire-steer-{}-{count}", std::process::id()));
        let netns = Netns::new();
        netns.sysctl("net/ipv4/conf/all/rp_filter", "1");
        netns.sysctl("net/ipv4/conf/default/rp_filter", "1");
        Self {
            netns,
            number,
            key: PrivateKey::generate(),
            options: Options::new(port),
            pinned: false,
            choice,
            dir: TempDir::new().unwrap(),
            bpf_dir,
        }
    }

    pub(crate) fn id(&self) -> PeerId {
        PeerId(self.number.into())
    }

    pub(crate) fn port(&self) -> u16 {
        self.options.wireguard_port
    }

    pub(crate) fn bpf_dir(&self) -> &FsPath {
        &self.bpf_dir
    }

    pub(crate) fn overlay(&self) -> String {
        format!("100.64.0.{}", self.number)
    }

    /// A firewall that lets in answers, what comes out of the tunnel, and what IPv6 needs for neighbours.
    pub(crate) fn close_firewall(&self) {
        for line in [
            "add table inet f",
            "add chain inet f input { type filter hook input priority 0 ; policy drop ; }",
            "add rule inet f input ct state established,related accept",
            "add rule inet f input iifname { lo, gw0 } accept",
            "add rule inet f input meta l4proto ipv6-icmp accept",
        ] {
            self.netns.command(&format!("nft {line}"));
        }
    }

    pub(crate) fn steer(&self) -> Steer {
        self.netns
            .run(|| Steer::open(&name(), &self.bpf_dir, &self.options))
            .unwrap_or_else(|error| panic!("{error}"))
    }

    /// All links but loopback and ours, with all their addresses.
    pub(crate) fn uplinks(&self) -> Vec<Uplink> {
        self.netns.run(|| {
            let netlink = Netlink::open().unwrap();
            let addresses = netlink.addresses().unwrap();
            netlink
                .links()
                .unwrap()
                .into_iter()
                .filter(|link| !link.loopback && !link.is_ours())
                .map(|link| Uplink {
                    index: link.index,
                    addresses: addresses
                        .iter()
                        .filter(|address| address.index == link.index && !address.link_local())
                        .map(|address| address.net.addr())
                        .collect(),
                })
                .collect()
        })
    }

    pub(crate) fn set_uplinks(&self, steer: &mut Steer) -> UplinkReport {
        let uplinks = self.uplinks();
        let report = self.netns.run(|| steer.set_uplinks(&uplinks)).unwrap();
        assert!(report.failed.is_empty(), "{:?}", report.failed);
        report
    }

    /// A path from one of our addresses.
    pub(crate) fn wire(&self, local: &str, remote: &str) -> Path {
        let local: IpAddr = local.parse().unwrap();
        let uplink =
            self.uplinks().into_iter().find(|uplink| uplink.addresses.contains(&local)).unwrap().index;
        let local = SocketAddr::new(local, self.port());
        Path::Wire { class: Class::Direct, uplink, local, remote: remote.parse().unwrap() }
    }

    pub(crate) fn set_path(&self, steer: &mut Steer, peer: PeerId, primary: &Path, also: Option<&Path>) {
        self.netns
            .run(|| steer.set_path(peer, Some(primary), also))
            .unwrap_or_else(|error| panic!("{error}"));
    }

    /// WireGuard with these peers, behind their stable endpoints.
    pub(crate) fn wireguard(&self, peers: &[&Self]) -> WireGuard<'_> {
        let program = std::env::current_exe().unwrap();
        let helper = ["--exact", "helper_process", "--nocapture", "--test-threads=1", "--"]
            .into_iter()
            .fold(Helper::new(program), Helper::argument)
            .log_to(self.dir.path().join("helper.log"));
        let options = wireguard::Options {
            name: name(),
            choice: self.choice,
            uapi_dir: self.dir.path().to_owned(),
            helper,
        };
        let (device, _) = self
            .netns
            .run(|| {
                if self.pinned {
                    pin();
                }
                Device::open(&options)
            })
            .unwrap();
        let config = DeviceConfig {
            private_key: self.key.clone(),
            listen_port: self.port(),
            fwmark: self.options.fwmark,
        };
        let peers: Vec<PeerConfig> = peers
            .iter()
            .map(|peer| PeerConfig {
                endpoint: Some(peer.id().stable_endpoint(self.options.family)),
                allowed_ips: vec![format!("{}/32", peer.overlay()).parse().unwrap()],
                ..PeerConfig::new(peer.key.public_key())
            })
            .collect();
        self.netns.run(|| {
            device.apply(&config, &peers).unwrap();
            let netlink = Netlink::open().unwrap();
            let link = device.link().unwrap();
            netlink.set_addresses(&link, &[format!("{}/16", self.overlay()).parse().unwrap()]).unwrap();
            netlink.set_mtu(&link, 1420).unwrap();
            netlink.set_up(&link).unwrap();
        });
        WireGuard { device, node: self }
    }

    pub(crate) fn ping(&self, target: &Self) {
        let target = target.overlay();
        self.netns.command(&format!("ping -n -c 3 -i 0.2 -W 20 {target}"));
    }

    /// One ping that nobody answers.
    pub(crate) fn cannot_ping(&self, target: &Self) {
        let output = self.netns.output(&format!("ping -n -c 1 -W 1 {}", target.overlay()));
        assert!(!output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }
}

/// Keeps this thread, and the processes that it starts, on the first processor.
fn pin() {
    let mut processors = CpuSet::new();
    processors.set(0).unwrap();
    sched_setaffinity(Pid::from_raw(0), &processors).unwrap();
}

/// A WireGuard device, used from within its namespace: the kernel's is found only there.
pub(crate) struct WireGuard<'a> {
    device: Device,
    node: &'a Node,
}

impl WireGuard<'_> {
    /// Where it sends to: it must never be anything but the stable endpoints.
    pub(crate) fn endpoints(&self) -> Vec<Option<SocketAddr>> {
        let status = self.node.netns.run(|| self.device.status()).unwrap();
        status.peers.into_iter().map(|peer| peer.endpoint).collect()
    }

    pub(crate) fn set_endpoint(&self, peer: &Node, endpoint: SocketAddr) {
        self.node.netns.run(|| self.device.set_endpoint(&peer.key.public_key(), endpoint)).unwrap();
    }
}

impl Drop for WireGuard<'_> {
    fn drop(&mut self) {
        if self.device.backend() == Backend::Kernel && !std::thread::panicking() {
            self.node.netns.ip(&format!("link delete {}", name()));
        }
    }
}

impl Netns {
    /// Sets a value below /proc/sys, which shows the namespace of whoever looks.
    pub(crate) fn sysctl(&self, path: &str, value: &str) {
        self.run(|| std::fs::write(format!("/proc/sys/{path}"), value))
            .unwrap_or_else(|error| panic!("{path}: {error}"));
    }
}

/// What a counter says.
pub(crate) fn counted(steer: &Steer, reason: Reason) -> u64 {
    steer.counters().unwrap().get(reason).packets
}

/// Two nodes, 1 and 2, with two networks between them: one where they are neighbours, and one behind a router. IPv4 and
/// IPv6 on both. Strict reverse path filters and closed firewalls at both.
pub(crate) struct Pair {
    pub(crate) a: Node,
    pub(crate) b: Node,
    pub(crate) router: Netns,
    _switch: Option<Netns>,
}

/// The networks of a [`Pair`]: our address at node 1 and at node 2.
pub(crate) const NEIGHBOURS4: [&str; 2] = ["192.0.2.1", "192.0.2.2"];
pub(crate) const ROUTED4: [&str; 2] = ["10.1.0.2", "10.2.0.2"];
pub(crate) const NEIGHBOURS6: [&str; 2] = ["2001:db8:1::1", "2001:db8:1::2"];
pub(crate) const ROUTED6: [&str; 2] = ["2001:db8:a::2", "2001:db8:b::2"];

fn nodes(choice: Choice, family: Family) -> (Node, Node) {
    let (mut a, mut b) = (Node::new(choice, 1), Node::new(choice, 2));
    a.options.family = family;
    b.options.family = family;
    (a, b)
}

impl Pair {
    pub(crate) fn new(choice: Choice) -> Self {
        Self::with(choice, Family::V4)
    }

    pub(crate) fn with(choice: Choice, family: Family) -> Self {
        let (a, b) = nodes(choice, family);
        a.netns.connect(&b.netns, "eth0", "192.0.2.1/24", "192.0.2.2/24");
        Self::between(a, b, None)
    }

    /// Where no datagram overtakes one that was sent earlier by another network: both have as many queues in a row, since
    /// the neighbours are connected by a switch, and what a userspace device sends goes into the queues of one
    /// processor. Linux 6.1 lets packets wait in them when it is busy. What is sent from another processor, or by a
    /// shorter way, then arrives first, also without steering.
    pub(crate) fn in_step(choice: Choice, family: Family) -> Self {
        let (mut a, mut b) = nodes(choice, family);
        a.pinned = true;
        b.pinned = true;
        let switch = Netns::new();
        switch.ip("link add br0 up type bridge");
        for (node, port, address) in [(&a, "port1", "192.0.2.1/24"), (&b, "port2", "192.0.2.2/24")] {
            node.netns.ip(&format!("link add eth0 type veth peer name {port} netns {}", switch.path()));
            switch.ip(&format!("link set {port} master br0 up"));
            node.netns.ip(&format!("address add {address} dev eth0"));
            node.netns.ip("link set eth0 up");
        }
        Self::between(a, b, Some(switch))
    }

    /// Adds the network behind a router, and IPv6.
    fn between(a: Node, b: Node, switch: Option<Netns>) -> Self {
        let router = Netns::new();
        router.sysctl("net/ipv4/ip_forward", "1");
        router.sysctl("net/ipv6/conf/all/forwarding", "1");
        a.netns.connect(&router, "eth1", "10.1.0.2/24", "10.1.0.1/24");
        router.connect(&b.netns, "eth2", "10.2.0.1/24", "10.2.0.2/24");
        for (netns, device, address) in [
            (&a.netns, "eth0", "2001:db8:1::1/64"),
            (&b.netns, "eth0", "2001:db8:1::2/64"),
            (&a.netns, "eth1", "2001:db8:a::2/64"),
            (&router, "eth1", "2001:db8:a::1/64"),
            (&router, "eth2", "2001:db8:b::1/64"),
            (&b.netns, "eth2", "2001:db8:b::2/64"),
        ] {
            netns.ip(&format!("address add {address} dev {device} nodad"));
        }
        a.netns.ip("route add 10.2.0.0/24 via 10.1.0.1");
        b.netns.ip("route add 10.1.0.0/24 via 10.2.0.1");
        a.netns.ip("route add 2001:db8:b::/64 via 2001:db8:a::1");
        b.netns.ip("route add 2001:db8:a::/64 via 2001:db8:b::1");
        a.close_firewall();
        b.close_firewall();
        Self { a, b, router, _switch: switch }
    }

    /// The way of node 1's packets on a network.
    pub(crate) fn path_from_a(&self, network: [&str; 2]) -> Path {
        self.a.wire(network[0], &remote(network[1], self.b.port()))
    }

    /// The way of node 2's packets on a network.
    pub(crate) fn path_from_b(&self, network: [&str; 2]) -> Path {
        self.b.wire(network[1], &remote(network[0], self.a.port()))
    }

    /// Steering at both ends, with all uplinks, and everybody let in from everywhere.
    pub(crate) fn steer(&self) -> (Steer, Steer) {
        let (mut at_a, mut at_b) = (self.a.steer(), self.b.steer());
        self.a.set_uplinks(&mut at_a);
        self.b.set_uplinks(&mut at_b);
        for network in [NEIGHBOURS4, ROUTED4, NEIGHBOURS6, ROUTED6] {
            let from_b = remote(network[1], self.b.port()).parse().unwrap();
            at_a.admit(from_b, self.b.id(), Class::Direct).unwrap();
            let from_a = remote(network[0], self.a.port()).parse().unwrap();
            at_b.admit(from_a, self.a.id(), Class::Direct).unwrap();
        }
        (at_a, at_b)
    }

    /// Both ends by one network.
    pub(crate) fn use_network(&self, at_a: &mut Steer, at_b: &mut Steer, network: [&str; 2]) {
        self.a.set_path(at_a, self.b.id(), &self.path_from_a(network), None);
        self.b.set_path(at_b, self.a.id(), &self.path_from_b(network), None);
    }

    /// A session, which with closed firewalls takes both sides to send.
    pub(crate) fn meet(&self) {
        std::thread::scope(|scope| {
            scope.spawn(|| self.a.netns.output(&format!("ping -n -c 30 -i 0.2 -W 1 {}", self.b.overlay())));
            self.b.netns.command(&format!("ping -n -c 3 -i 1 -W 20 {}", self.a.overlay()));
        });
        self.a.ping(&self.b);
    }
}

/// An address with a port, as text.
pub(crate) fn remote(address: &str, port: u16) -> String {
    SocketAddr::new(address.parse().unwrap(), port).to_string()
}
