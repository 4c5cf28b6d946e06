//! A relay on a host of its own, and what its metrics say.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::lab::Host;
use crate::mesh::{Mesh, json, text};
use crate::process::{Process, bin_dir, check_in};
use crate::wait::{patience, until};

/// `ghostwire-relay` with a key from the coordinator.
#[derive(Debug)]
pub struct Relay {
    /// Where it runs.
    pub host: Host,
    process: Process,
    bpf_dir: PathBuf,
}

impl Relay {
    /// Starts one on a host of the mesh's lab and waits until it carries.
    pub fn join(mesh: &mut Mesh, name: &str) -> Result<Self> {
        let key = mesh.coordinator.gwctl(&["--json", "key", "create", "--relay", "--expires", "never"])?;
        let dir = mesh.lab.dir().join(name);
        std::fs::create_dir_all(&dir)?;
        let key_file = dir.join("join.key");
        std::fs::write(&key_file, text(&json(&key)?, "join_key")?)?;
        let host = mesh.lab.host(name)?;
        mesh.lab.prepare_for_xdp(&host)?;
        // In the lab, every router is a next hop of its own: the relay's program asks the kernel for the way.
        check_in(&host.netns, "sysctl", &["-q", "-w", "net.ipv4.conf.eth0.forwarding=1"])?;
        let v6 = host.v6.clone().context("an IPv6 address")?;
        let bpf_dir = PathBuf::from(format!("/sys/fs/bpf/{}-{name}", mesh.lab.id()));
        let (state, key, bpf) = (dir.join("state"), key_file.to_string_lossy(), bpf_dir.to_string_lossy());
        let state = state.to_string_lossy();
        let files = ["--state-dir", &*state, "--join-key-file", &*key, "--bpf-dir", &*bpf];
        // The lab's addresses are for documentation, which no relay on the internet sends to.
        let network = [
            "--allow-leg",
            "192.0.2.0/24,2001:db8::/32",
            "--address",
            &host.address,
            "--address",
            &v6,
            "--region",
            name,
        ];
        let args = [&["run"][..], &files, &network].concat();
        let program = bin_dir()?.join("ghostwire-relay");
        let mut process = Process::spawn(&host.netns, name, &program, &args, &dir.join("log"))?;
        until("the relay to be ready", patience(20), || {
            process.check_alive()?;
            process.log().contains("ghostwire-relay ready").then_some(()).context("not yet")
        })?;
        let relay = Self { host, process, bpf_dir };
        until("the coordinator to know the relay", patience(20), || {
            let list = mesh.coordinator.gwctl(&["--json", "relay", "list"])?;
            list.contains(&format!("\"{name}\"")).then_some(()).with_context(|| list.clone())
        })
        .with_context(|| relay.log())?;
        Ok(relay)
    }

    /// Everything it logged.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// The line by which it says what it does.
    pub fn ready_line(&self) -> Result<String> {
        let log = self.log();
        log.lines().find(|line| line.contains(" ready: ")).map(str::to_owned).context("no ready line")
    }

    /// All metrics that begin so, as they are served.
    pub fn metrics(&self, prefix: &str) -> Result<String> {
        let all = self.host.netns.run(|| {
            let mut stream =
                TcpStream::connect("127.0.0.1:9478").context("connect to the relay's metrics")?;
            stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        })?;
        Ok(all.lines().filter(|line| line.starts_with(prefix)).collect::<Vec<_>>().join("\n"))
    }

    /// How many packets its XDP program has sent on.
    pub fn forwarded_in_kernel(&self) -> Result<u64> {
        let family = "ghostwire_relay_xdp_packets_total";
        let lines = self.metrics(family)?;
        let of = |result: &str| {
            let start = format!("{family}{{result=\"{result}\"}}");
            let value = lines.lines().find_map(|line| line.strip_prefix(&start)?.trim().parse::<u64>().ok());
            value.with_context(|| format!("no {result} in:\n{lines}"))
        };
        Ok(of("returned")? + of("crossed")? + of("routed")?)
    }

    /// Ends it for good, with its program.
    pub fn end(mut self) -> Result<()> {
        self.process.kill()?;
        let bpf = self.bpf_dir.to_string_lossy();
        let relay = bin_dir()?.join("ghostwire-relay");
        check_in(&self.host.netns, &relay.to_string_lossy(), &["detach", "--bpf-dir", &bpf]).map(drop)
    }
}
