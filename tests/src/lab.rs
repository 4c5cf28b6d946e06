//! A bridge ("the internet") and hosts around it.
//!
//! ```text
//!   host a            host b
//!   eth0 192.0.2.2    eth0 192.0.2.3     (2001:db8::2, 2001:db8::3)
//!      └───── bridge in a namespace of its own ─────┘
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::nat::Network;
use crate::netns::Netns;
use crate::process::check_in;

/// Distinguishes the labs of one process.
static SERIAL: AtomicU32 = AtomicU32::new(0);

/// A set of hosts that reach each other, and a directory for their files.
#[derive(Debug)]
pub struct Lab {
    id: String,
    hosts: u8,
    switch: Netns,
    /// Routers with several hosts behind them.
    shared: BTreeMap<Network, Router>,
    dir: TempDir,
}

/// A router with a LAN behind it.
#[derive(Debug)]
struct Router {
    netns: Netns,
    /// Its address outside.
    outside: String,
    /// The first three bytes of the LAN's addresses.
    lan: String,
    /// How many are on the LAN.
    members: u16,
    /// Port of the bridge behind which it is.
    port: String,
}

/// A machine: a namespace with one uplink, `eth0`.
#[derive(Debug)]
pub struct Host {
    /// Its name in the lab.
    pub name: String,
    /// Its namespace.
    pub netns: Netns,
    /// Its IPv4 address on the uplink.
    pub address: String,
    /// Its IPv6 address on the uplink, if there is nothing between it and the bridge.
    pub v6: Option<String>,
    /// What is between it alone and the bridge, the nearest last.
    pub routers: Vec<Netns>,
    /// Port of the bridge behind which it is.
    port: String,
}

impl Lab {
    /// Creates the bridge.
    pub fn new() -> Result<Self> {
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        Self::named(&format!("gw{}x{serial}", std::process::id()))
    }

    /// Creates the bridge; namespaces are called `<id>-<host>`.
    pub fn named(id: &str) -> Result<Self> {
        let switch = Netns::create(&format!("{id}-net"))?;
        switch.ip(&["link", "add", "br0", "type", "bridge"])?;
        switch.ip(&["link", "set", "br0", "up"])?;
        let dir =
            tempfile::Builder::new().prefix("ghostwire-lab-").tempdir().context("temporary directory")?;
        Ok(Self { id: id.to_owned(), hosts: 0, switch, shared: BTreeMap::new(), dir })
    }

    /// Identifies the lab in the names of namespaces.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Where its files live.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Adds a host.
    pub fn host(&mut self, name: &str) -> Result<Host> {
        self.host_in(name, Network::Public)
    }

    /// Adds a host with what is between it and the bridge.
    pub fn host_in(&mut self, name: &str, network: Network) -> Result<Host> {
        let netns = Netns::create(&format!("{}-{name}", self.id))?;
        let (name, port) = (name.to_owned(), String::new());
        let mut host = Host { name, netns, address: String::new(), v6: None, routers: Vec::new(), port };
        if network.is_shared() {
            let mut router = match self.shared.remove(&network) {
                Some(router) => router,
                None => self.router(&format!("{}-shared{}", self.id, self.shared.len()), network)?,
            };
            host.address = router.join(network, &host.netns)?;
            host.port.clone_from(&router.port);
            self.shared.insert(network, router);
        } else if network.routers() == 0 {
            let (port, number) = self.plug_in(&host.netns)?;
            host.address = outside(number);
            let v6 = format!("2001:db8::{number:x}");
            host.netns.ip(&["address", "add", &format!("{}/24", host.address), "dev", "eth0"])?;
            host.netns.ip(&["address", "add", &format!("{v6}/64"), "dev", "eth0", "nodad"])?;
            host.netns.ip(&["link", "set", "eth0", "up"])?;
            (host.port, host.v6) = (port, Some(v6));
        } else {
            self.put_behind_routers(&mut host, network)?;
        }
        network.configure_host(&host.netns)?;
        Ok(host)
    }

    /// A chain of routers of its own.
    fn put_behind_routers(&mut self, host: &mut Host, network: Network) -> Result<()> {
        let name = |number| format!("{}-{}-r{number}", self.id, host.name);
        let names: Vec<String> = (0..network.routers()).map(name).collect();
        let mut router = self.router(&names[0], network)?;
        host.port.clone_from(&router.port);
        for (depth, name) in names.iter().enumerate().skip(1) {
            let inner = Netns::create(name)?;
            let address = router.join(network, &inner)?;
            let lan = format!("{}{depth}", router.lan.trim_end_matches(|digit| digit != '.'));
            host.routers.push(router.netns);
            router = Router::new(inner, network, address, lan, String::new())?;
        }
        host.address = router.join(network, &host.netns)?;
        host.routers.push(router.netns);
        Ok(())
    }

    /// A router at the bridge.
    fn router(&mut self, name: &str, network: Network) -> Result<Router> {
        let netns = Netns::create(name)?;
        let (port, number) = self.plug_in(&netns)?;
        netns.ip(&["address", "add", &format!("{}/24", outside(number)), "dev", "eth0"])?;
        netns.ip(&["link", "set", "eth0", "up"])?;
        Router::new(netns, network, outside(number), format!("10.{number}.0"), port)
    }

    /// Gives a namespace an `eth0` at the bridge; the bridge's port and its number.
    fn plug_in(&mut self, netns: &Netns) -> Result<(String, u8)> {
        self.hosts += 1;
        let number = self.hosts;
        let port = format!("port{number}");
        let peer = ["type", "veth", "peer", "name", "eth0", "netns", netns.name()];
        self.switch.ip(&[&["link", "add", &port][..], &peer].concat())?;
        self.switch.ip(&["link", "set", &port, "master", "br0", "up"])?;
        Ok((port, number))
    }

    /// Cuts a host off, or connects it again.
    pub fn set_uplink(&self, host: &Host, up: bool) -> Result<()> {
        self.switch.ip(&["link", "set", &host.port, if up { "up" } else { "down" }])?;
        Ok(())
    }

    /// Lets everything that the bridge sends out suffer this netem discipline. Needs a kernel that has netem.
    pub fn impair(&self, netem: &str) -> Result<()> {
        for number in 1..=self.hosts {
            let port = format!("port{number}");
            let qdisc = ["qdisc", "add", "dev", &port, "root", "netem"];
            let all: Vec<&str> = qdisc.into_iter().chain(netem.split_whitespace()).collect();
            check_in(&self.switch, "tc", &all)?;
        }
        Ok(())
    }

    /// Makes a host's link like a wire for XDP: checksums are complete when it sees a packet.
    pub fn prepare_for_xdp(&self, host: &Host) -> Result<()> {
        check_in(&self.switch, "ethtool", &["-K", &host.port, "tx", "off"]).map(drop)
    }

    /// Leaves namespaces and files in place and returns where the files are.
    pub fn leak(self) -> PathBuf {
        self.switch.leak();
        self.shared.into_values().for_each(|router| router.netns.leak());
        self.dir.keep()
    }
}

impl Router {
    fn new(netns: Netns, network: Network, outside: String, lan: String, port: String) -> Result<Self> {
        netns.ip(&["link", "add", "lan", "type", "bridge"])?;
        netns.ip(&["address", "add", &format!("{lan}.1/24"), "dev", "lan"])?;
        netns.ip(&["link", "set", "lan", "up"])?;
        network.configure(&netns, &outside)?;
        Ok(Self { netns, outside, lan, members: 0, port })
    }

    /// Gives a namespace an `eth0` on the LAN; its address.
    fn join(&mut self, network: Network, member: &Netns) -> Result<String> {
        self.members += 1;
        let (port, address) = (format!("lan{}", self.members), format!("{}.{}", self.lan, self.members + 1));
        let peer = ["type", "veth", "peer", "name", "eth0", "netns", member.name()];
        self.netns.ip(&[&["link", "add", &port][..], &peer].concat())?;
        self.netns.ip(&["link", "set", &port, "master", "lan", "up"])?;
        let gateway = format!("{}.1", self.lan);
        // Isolated: everything goes to the router. (A bridge's own isolation also stops what the router sends back.)
        let length = if network.isolates() { 32 } else { 24 };
        member.ip(&["address", "add", &format!("{address}/{length}"), "dev", "eth0"])?;
        member.ip(&["link", "set", "eth0", "up"])?;
        member.ip(&["route", "replace", &gateway, "dev", "eth0"])?;
        member.ip(&["route", "add", "default", "via", &gateway])?;
        network.add_inside(&self.netns, &self.outside, &address, self.members)?;
        Ok(address)
    }
}

/// The address of the `number`th host or router at the bridge.
fn outside(number: u8) -> String {
    format!("192.0.2.{number}")
}
