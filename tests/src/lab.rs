//! A bridge ("the internet") and hosts around it.
//!
//! ```text
//!   host a            host b
//!   eth0 192.0.2.2    eth0 192.0.2.3     (2001:db8::2, 2001:db8::3)
//!      └───── bridge in a namespace of its own ─────┘
//! ```

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::nat::Network;
use crate::netns::Netns;

/// Distinguishes the labs of one process.
static SERIAL: AtomicU32 = AtomicU32::new(0);

/// A set of hosts that reach each other, and a directory for their files.
#[derive(Debug)]
pub struct Lab {
    id: String,
    hosts: u8,
    switch: Netns,
    dir: TempDir,
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
    /// What is between it and the bridge, the nearest last.
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
        Ok(Self { id: id.to_owned(), hosts: 0, switch, dir })
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
        let mut routers: Vec<Netns> = Vec::new();
        for number in 0..network.routers() {
            routers.push(Netns::create(&format!("{}-{name}-r{number}", self.id))?);
        }
        let outermost = routers.first().unwrap_or(&netns);
        let (port, number) = self.plug_in(outermost)?;
        let mut address = format!("192.0.2.{number}");
        outermost.ip(&["address", "add", &format!("{address}/24"), "dev", "eth0"])?;
        let v6 = routers.is_empty().then(|| format!("2001:db8::{number:x}"));
        if let Some(v6) = &v6 {
            netns.ip(&["address", "add", &format!("{v6}/64"), "dev", "eth0", "nodad"])?;
        }
        outermost.ip(&["link", "set", "eth0", "up"])?;
        for (depth, router) in routers.iter().enumerate() {
            let next = routers.get(depth + 1).unwrap_or(&netns);
            let (inner, gateway) = (format!("10.{number}.{depth}.2"), format!("10.{number}.{depth}.1"));
            router.ip(&[
                "link",
                "add",
                "lan",
                "type",
                "veth",
                "peer",
                "name",
                "eth0",
                "netns",
                next.name(),
            ])?;
            router.ip(&["address", "add", &format!("{gateway}/24"), "dev", "lan"])?;
            router.ip(&["link", "set", "lan", "up"])?;
            next.ip(&["address", "add", &format!("{inner}/24"), "dev", "eth0"])?;
            next.ip(&["link", "set", "eth0", "up"])?;
            next.ip(&["route", "add", "default", "via", &gateway])?;
            network.configure(router, &address, &inner)?;
            address = inner;
        }
        network.configure_host(&netns)?;
        Ok(Host { name: name.to_owned(), netns, address, v6, routers, port })
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

    /// Leaves namespaces and files in place and returns where the files are.
    pub fn leak(self) -> PathBuf {
        self.switch.leak();
        self.dir.keep()
    }
}
