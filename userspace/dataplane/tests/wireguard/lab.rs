//! Nodes with a device each, in namespaces of their own.

use std::{net::SocketAddr, path::Path, sync::Arc, time::SystemTime};

use ghostwire_dataplane::{
    netlink::{Link, LinkName, Netlink},
    wireguard::{
        Backend, Choice, Device, DeviceConfig, DeviceStatus, Error, Helper, Opened, Options, PeerConfig,
        PeerStatus, PrivateKey, PublicKey, Update, UserspaceDevice, adopt,
    },
};
use tempfile::TempDir;

use crate::netns::Netns;

pub(crate) fn helper() -> Helper {
    // What follows `--` is a test name to the test harness: one that is not there.
    ["--exact", "helper_process", "--nocapture", "--test-threads=1", "--"]
        .into_iter()
        .fold(Helper::new(std::env::current_exe().unwrap()), Helper::argument)
}

pub(crate) fn options(dir: &Path, choice: Choice) -> Options {
    let helper = helper().log_to(dir.join("helper.log"));
    Options { name: name(), choice, uapi_dir: dir.to_owned(), helper }
}

pub(crate) fn name() -> LinkName {
    "gw0".parse().unwrap()
}

/// The engines that this machine has. What it has not is said aloud.
pub(crate) fn engines() -> Vec<Choice> {
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
pub(crate) struct Wg {
    device: Device,
    netns: Arc<Netns>,
}

impl Wg {
    pub(crate) fn apply(&self, device: &DeviceConfig, peers: &[PeerConfig]) -> Result<Update, Error> {
        self.netns.run(|| self.device.apply(device, peers))
    }

    pub(crate) fn change(&self, update: &Update) -> Result<(), Error> {
        self.netns.run(|| self.device.change(update))
    }

    pub(crate) fn set_endpoint(&self, peer: &PublicKey, endpoint: SocketAddr) -> Result<(), Error> {
        self.netns.run(|| self.device.set_endpoint(peer, endpoint))
    }

    pub(crate) fn status(&self) -> Result<DeviceStatus, Error> {
        self.netns.run(|| self.device.status())
    }

    pub(crate) fn link(&self) -> Result<Link, Error> {
        self.device.link()
    }

    pub(crate) fn backend(&self) -> Backend {
        self.device.backend()
    }

    pub(crate) fn delete(self) -> Result<(), Error> {
        let Self { device, netns } = self;
        netns.run(|| device.delete())
    }
}

/// One end of a tunnel.
pub(crate) struct Node {
    pub(crate) netns: Arc<Netns>,
    pub(crate) dir: TempDir,
    choice: Choice,
    pub(crate) key: PrivateKey,
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
    pub(crate) fn new(choice: Choice, port: u16) -> Self {
        let dir = TempDir::new().unwrap();
        Self { netns: Arc::new(Netns::new()), dir, choice, key: PrivateKey::generate(), port }
    }

    pub(crate) fn open(&self) -> (Wg, Opened) {
        self.open_as(&options(self.dir.path(), self.choice)).unwrap()
    }

    pub(crate) fn open_as(&self, options: &Options) -> Result<(Wg, Opened), Error> {
        let (device, opened) = self.netns.run(|| Device::open(options))?;
        Ok((Wg { device, netns: Arc::clone(&self.netns) }, opened))
    }

    pub(crate) fn config(&self) -> DeviceConfig {
        DeviceConfig { private_key: self.key.clone(), listen_port: self.port, fwmark: 0 }
    }

    /// What the other end has to know of this one, which is number `number` on both networks.
    pub(crate) fn as_peer(&self, number: u8) -> PeerConfig {
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
    pub(crate) fn start(&self, number: u8, peers: &[PeerConfig]) -> Wg {
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

    pub(crate) fn ping(&self, target: &str) {
        self.netns.command(&format!("ping -n -c 3 -i 0.2 -W 20 {target}"));
    }
}

/// Two nodes, 1 and 2, on the network 192.0.2.0/24 and in the overlay 100.64.0.0/10.
pub(crate) fn pair(choice: Choice) -> (Node, Wg, Node, Wg) {
    let (a, b) = (Node::new(choice, 51820), Node::new(choice, 51821));
    a.netns.connect(&b.netns, "eth0", "192.0.2.1/24", "192.0.2.2/24");
    let at_b = b.start(2, &[a.as_peer(1)]);
    let at_a = a.start(1, &[b.as_peer(2)]);
    (a, at_a, b, at_b)
}

pub(crate) fn only_peer(device: &Wg) -> PeerStatus {
    let status = device.status().unwrap();
    assert_eq!(status.peers.len(), 1);
    status.peers[0].clone()
}

/// A session, known by its handshake: that of any later one is later than this moment.
pub(crate) struct Session {
    seen: SystemTime,
}

impl Session {
    /// That of the device's only peer.
    pub(crate) fn of(device: &Wg) -> Self {
        assert!(only_peer(device).last_handshake.is_some());
        Self { seen: SystemTime::now() }
    }

    /// Whether the device's only peer has it still. gotatun tells the age of a handshake, which is older when the answer
    /// has arrived: each reading is too late by what the answer took, and one that is early enough is proof.
    pub(crate) fn lives_on(&self, device: &Wg) -> bool {
        let is_older = |peer: PeerStatus| peer.last_handshake.is_some_and(|handshake| handshake < self.seen);
        (0..50).any(|_| is_older(only_peer(device)))
    }
}

/// A userspace device alone.
pub(crate) fn lone_device() -> (Node, Wg, UserspaceDevice) {
    let node = Node::new(Choice::Userspace, 51820);
    let (device, _) = node.open();
    let userspace = adopt(&name(), node.dir.path()).unwrap().unwrap();
    (node, device, userspace)
}
