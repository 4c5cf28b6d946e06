//! A bare WireGuard tunnel, to compare with: the same backend and the same uplinks as GhostWire's, and nothing
//! else.

use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result};

use crate::lab::Host;
use crate::process::{Process, bin_dir, check_in};
use crate::wait::{patience, until};

/// A tunnel `bare0` between two hosts, 10.99.0.1 and 10.99.0.2.
#[derive(Debug)]
pub struct BareTunnel {
    helpers: Vec<Process>,
    hosts: [crate::netns::NetnsRef; 2],
}

/// Where `wg` looks for userspace devices.
const UAPI_DIR: &str = "/var/run/wireguard";

impl BareTunnel {
    /// Sets it up; `kernel` says which backend.
    pub fn start(a: &Host, b: &Host, kernel: bool, dir: &Path) -> Result<Self> {
        let mut tunnel = Self { helpers: Vec::new(), hosts: [a.netns.reference(), b.netns.reference()] };
        let sides = [(a, "10.99.0.1", "bare1"), (b, "10.99.0.2", "bare2")];
        let mut keys = Vec::new();
        for (host, address, link) in sides {
            tunnel.create(host, link, kernel, dir)?;
            let private = check_in(&host.netns, "wg", &["genkey"])?;
            let file = dir.join(format!("{link}.key"));
            std::fs::write(&file, &private)?;
            let file = file.to_string_lossy().into_owned();
            check_in(&host.netns, "wg", &["set", link, "listen-port", "51999", "private-key", &file])?;
            keys.push(check_in(&host.netns, "wg", &["show", link, "public-key"])?.trim().to_owned());
            host.netns.ip(&["address", "add", &format!("{address}/24"), "dev", link])?;
            host.netns.ip(&["link", "set", link, "mtu", "1420", "up"])?;
        }
        for (i, (host, _, link)) in sides.iter().enumerate() {
            let (peer, address, _) = sides[1 - i];
            let endpoint = format!("{}:51999", peer.address);
            let allowed = format!("{address}/32");
            check_in(
                &host.netns,
                "wg",
                &["set", link, "peer", &keys[1 - i], "endpoint", &endpoint, "allowed-ips", &allowed],
            )?;
        }
        Ok(tunnel)
    }

    fn create(&mut self, host: &Host, link: &str, kernel: bool, dir: &Path) -> Result<()> {
        if kernel {
            host.netns.ip(&["link", "add", link, "type", "wireguard"])?;
            return Ok(());
        }
        let program = bin_dir()?.join("ghostwire-client");
        let args = ["userspace-wireguard", link, "--uapi-dir", UAPI_DIR];
        let log = dir.join(format!("{link}.log"));
        let mut helper = Process::spawn(&host.netns, link, &program, &args, &log)?;
        until("the bare tunnel's device", patience(10), || {
            helper.check_alive()?;
            check_in(&host.netns, "wg", &["show", link]).map(drop)
        })
        .with_context(|| format!("start userspace WireGuard\n{}", helper.log()))?;
        self.helpers.push(helper);
        Ok(())
    }

    /// Overlay address of the second host.
    pub fn far_address() -> IpAddr {
        IpAddr::from([10, 99, 0, 2])
    }
}

impl Drop for BareTunnel {
    fn drop(&mut self) {
        self.helpers.clear();
        for (host, link) in self.hosts.iter().zip(["bare1", "bare2"]) {
            // Userspace devices vanish with their process; kernel ones have to be deleted.
            drop(host.ip(&["link", "del", link]));
        }
    }
}
