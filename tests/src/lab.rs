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
        self.hosts += 1;
        let number = self.hosts;
        let netns = Netns::create(&format!("{}-{name}", self.id))?;
        let port = format!("port{number}");
        self.switch.ip(&[
            "link",
            "add",
            &port,
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            netns.name(),
        ])?;
        self.switch.ip(&["link", "set", &port, "master", "br0", "up"])?;
        let address = format!("192.0.2.{number}");
        netns.ip(&["address", "add", &format!("{address}/24"), "dev", "eth0"])?;
        netns.ip(&["address", "add", &format!("2001:db8::{number:x}/64"), "dev", "eth0", "nodad"])?;
        netns.ip(&["link", "set", "eth0", "up"])?;
        Ok(Host { name: name.to_owned(), netns, address })
    }

    /// Cuts a host off, or connects it again.
    pub fn set_uplink(&self, host: &Host, up: bool) -> Result<()> {
        let number = host.address.rsplit('.').next().context("host number")?;
        self.switch.ip(&["link", "set", &format!("port{number}"), if up { "up" } else { "down" }])?;
        Ok(())
    }

    /// Leaves namespaces and files in place and returns where the files are.
    pub fn leak(self) -> PathBuf {
        self.switch.leak();
        self.dir.keep()
    }
}
