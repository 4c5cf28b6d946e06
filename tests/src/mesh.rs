//! A coordinator and nodes on the hosts of a lab, driven through `gwctl` as a user would.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::lab::{Host, Lab};
use crate::nat::Network;
use crate::netns::{Netns, outcome};
use crate::process::{Process, bin_dir, run_in};
use crate::wait::{patience, until};

/// A coordinator and its nodes. Everything is gone when it is dropped.
#[derive(Debug)]
pub struct Mesh {
    /// Who is in the mesh; dropped before the lab.
    pub nodes: Vec<Node>,
    /// The coordinator.
    pub coordinator: Coordinator,
    /// The underlay.
    pub lab: Lab,
}

/// `ghostwire-server` on a host of its own.
#[derive(Debug)]
pub struct Coordinator {
    /// Where it runs.
    pub host: Host,
    process: Process,
    dir: PathBuf,
}

/// `ghostwire-client` on a host of its own.
#[derive(Debug)]
pub struct Node {
    /// Where it runs.
    pub host: Host,
    process: Process,
    dir: PathBuf,
    bpf_dir: PathBuf,
    mounts: Mounts,
    steering: &'static str,
    /// Overlay IPv4 address, known after enrolment.
    pub v4: IpAddr,
    /// Overlay IPv6 address, known after enrolment.
    pub v6: IpAddr,
}

/// What a daemon sees of the file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mounts {
    /// The host's mounts.
    Shared,
    /// A mount namespace of its own with its own BPF filesystem, as under `ip netns exec`.
    Private,
}

/// Who a join key enrols.
#[derive(Clone, Copy, Debug)]
pub enum Owner<'a> {
    /// A person's machine.
    User(&'a str),
    /// A machine that belongs to a tag.
    Tag(&'a str),
}

/// A node to be.
#[derive(Clone, Debug)]
pub struct NewNode<'a> {
    /// Host name, also in the mesh.
    pub name: String,
    /// Who enrols it.
    pub owner: Owner<'a>,
    /// Where it is.
    pub network: Network,
}

impl Mesh {
    /// Starts a lab with a coordinator.
    pub fn start() -> Result<Self> {
        Self::start_in(Lab::new()?)
    }

    /// Starts a coordinator in `lab`.
    pub fn start_in(mut lab: Lab) -> Result<Self> {
        let host = lab.host("coordinator")?;
        let dir = lab.dir().join("coordinator");
        std::fs::create_dir_all(&dir)?;
        let process = Coordinator::spawn(&host, &dir)?;
        let mut coordinator = Coordinator { host, process, dir };
        coordinator.wait_ready()?;
        Ok(Self { nodes: Vec::new(), coordinator, lab })
    }

    /// Creates a user.
    pub fn create_user(&self, email: &str) -> Result<()> {
        self.coordinator.gwctl(&["user", "create", email]).map(drop)
    }

    /// Creates a join key for one machine.
    pub fn join_key(&self, owner: Owner<'_>) -> Result<String> {
        let answer = match owner {
            Owner::User(email) => self.coordinator.gwctl(&["--json", "key", "create", "--user", email])?,
            Owner::Tag(tag) => self.coordinator.gwctl(&["--json", "key", "create", "--tag", tag])?,
        };
        text(&json(&answer)?, "join_key")
    }

    /// Puts a policy in force.
    pub fn set_policy(&self, policy: &str) -> Result<String> {
        let file = self.lab.dir().join("policy.hujson");
        std::fs::write(&file, policy)?;
        self.coordinator.gwctl(&["policy", "set", &file.to_string_lossy()])
    }

    /// Adds a host, starts the daemon on it and joins the mesh.
    pub fn add_node(&mut self, name: &str, owner: Owner<'_>) -> Result<&Node> {
        self.add_node_in(name, owner, Network::Public)
    }

    /// Adds a host in a network of its own, starts the daemon on it and joins the mesh.
    pub fn add_node_in(&mut self, name: &str, owner: Owner<'_>, network: Network) -> Result<&Node> {
        self.add_nodes(vec![NewNode { name: name.to_owned(), owner, network }])?;
        self.nodes.last().context("the node just added")
    }

    /// Adds several hosts, which join at the same time.
    pub fn add_nodes(&mut self, wanted: Vec<NewNode<'_>>) -> Result<()> {
        let mut joining = Vec::new();
        for NewNode { name, owner, network } in wanted {
            let key = self.join_key(owner)?;
            joining.push((self.start_node(&name, network)?, key));
        }
        let joined: Vec<Result<Node>> = std::thread::scope(|scope| {
            let join = |(node, key): (Node, String)| scope.spawn(move || node.join(&key));
            let threads: Vec<_> = joining.into_iter().map(join).collect();
            threads.into_iter().map(|thread| outcome(thread.join())).collect()
        });
        for node in joined {
            self.nodes.push(node?);
        }
        Ok(())
    }

    /// Adds a host and starts the daemon on it.
    fn start_node(&mut self, name: &str, network: Network) -> Result<Node> {
        let host = self.lab.host_in(name, network)?;
        let dir = self.lab.dir().join(name);
        std::fs::create_dir_all(&dir)?;
        let bpf_dir = PathBuf::from(format!("/sys/fs/bpf/{}-{name}", self.lab.id()));
        let mounts = Mounts::Shared;
        let steering = "auto";
        let process = Node::spawn(&host, &dir, &bpf_dir, mounts, steering)?;
        let unspecified = IpAddr::from([0; 4]);
        let (v4, v6) = (unspecified, unspecified);
        Ok(Node { host, process, dir, bpf_dir, mounts, steering, v4, v6 })
    }

    /// A node by name.
    pub fn node(&self, name: &str) -> Result<&Node> {
        self.nodes.iter().find(|n| n.host.name == name).with_context(|| format!("no node {name}"))
    }

    /// A node by name, to be killed and restarted.
    pub fn node_mut(&mut self, name: &str) -> Result<&mut Node> {
        self.nodes.iter_mut().find(|n| n.host.name == name).with_context(|| format!("no node {name}"))
    }

    /// Waits until every node enforces the filter that the coordinator wants.
    pub fn wait_enforced(&self) -> Result<()> {
        until("every node to enforce the current policy", patience(20), || {
            let nodes = json(&self.coordinator.gwctl(&["--json", "node", "list"])?)?;
            let nodes = nodes.get("nodes").and_then(Value::as_array).context("a list of nodes")?.clone();
            for node in &nodes {
                let wanted = node.get("filter_generation").and_then(Value::as_u64);
                let enforced = node.get("enforced_generation").and_then(Value::as_u64);
                if wanted != enforced || wanted.is_none() {
                    bail!("{node}");
                }
            }
            Ok(())
        })
    }

    /// Leaves everything running; returns the directory with its files.
    pub fn leak(self) -> PathBuf {
        for node in self.nodes {
            node.leak();
        }
        self.coordinator.process.leak();
        self.coordinator.host.netns.leak();
        self.lab.leak()
    }
}

impl Coordinator {
    fn spawn(host: &Host, dir: &Path) -> Result<Process> {
        let advertise = format!("{}:8080", host.address);
        let advertise6 = format!("[{}]:8080", host.v6.as_deref().context("an IPv6 address")?);
        Process::spawn(
            &host.netns,
            "ghostwire-server",
            &bin_dir()?.join("ghostwire-server"),
            &[
                "run",
                "--state-dir",
                &dir.join("state").to_string_lossy(),
                "--socket",
                &dir.join("server.sock").to_string_lossy(),
                "--listen",
                "[::]:8080",
                "--advertise",
                &advertise,
                "--advertise",
                &advertise6,
            ],
            &dir.join("log"),
        )
    }

    fn wait_ready(&mut self) -> Result<()> {
        until("the coordinator to answer", patience(20), || {
            self.process.check_alive()?;
            self.gwctl(&["--json", "server", "status"]).map(drop)
        })
    }

    /// Its local socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("server.sock")
    }

    /// Everything it logged.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Runs `gwctl` against it; the output, or an error with all it said.
    pub fn gwctl(&self, args: &[&str]) -> Result<String> {
        succeed("gwctl", args, &self.try_gwctl(args)?)
    }

    /// Runs `gwctl` against it, whatever comes out.
    pub fn try_gwctl(&self, args: &[&str]) -> Result<Output> {
        let socket = self.socket();
        let mut all = vec!["--server-socket", socket.to_str().context("UTF-8 path")?];
        all.extend_from_slice(args);
        run_in(&self.host.netns, &bin_dir()?.join("gwctl").to_string_lossy(), &all)
    }

    /// `kill -9`.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill()
    }

    /// Starts it again on the same state.
    pub fn restart(&mut self) -> Result<()> {
        self.process = Self::spawn(&self.host, &self.dir)?;
        self.wait_ready()
    }
}

impl Node {
    fn spawn(host: &Host, dir: &Path, bpf_dir: &Path, mounts: Mounts, steering: &str) -> Result<Process> {
        let program = bin_dir()?.join("ghostwire-client");
        let (state, socket) = (dir.join("state"), dir.join("client.sock"));
        let [state, socket, bpf_dir] = [&*state, &*socket, bpf_dir].map(Path::to_string_lossy);
        let files = ["--state-dir", &state, "--socket", &socket, "--bpf-dir", &bpf_dir];
        let args = [&["run", "--steering", steering][..], &files].concat();
        let log = dir.join("log");
        match mounts {
            Mounts::Shared => Process::spawn(&host.netns, "ghostwire-client", &program, &args, &log),
            Mounts::Private => {
                let program = program.to_string_lossy();
                let script = "mount -t bpf bpf /sys/fs/bpf && exec \"$0\" \"$@\"";
                let outer = ["--mount", "--propagation", "private", "sh", "-c", script, &*program];
                let args = [&outer[..], &args[..]].concat();
                Process::spawn(&host.netns, "ghostwire-client", Path::new("unshare"), &args, &log)
            }
        }
    }

    fn join(mut self, key: &str) -> Result<Self> {
        self.wait_ready()?;
        let name = self.host.name.clone();
        self.gwctl(&["up", key, "--hostname", &name])?;
        self.learn_addresses()?;
        Ok(self)
    }

    fn wait_ready(&mut self) -> Result<()> {
        until("the daemon to answer", patience(20), || {
            self.process.check_alive()?;
            self.gwctl(&["--json", "status"]).map(drop)
        })
    }

    fn learn_addresses(&mut self) -> Result<()> {
        let status = self.status()?;
        let addresses: Vec<IpAddr> = status
            .pointer("/node/addresses")
            .and_then(Value::as_array)
            .context("the node's addresses")?
            .iter()
            .filter_map(|a| a.as_str()?.split('/').next()?.parse().ok())
            .collect();
        self.v4 = *addresses.iter().find(|a| a.is_ipv4()).context("an IPv4 overlay address")?;
        self.v6 = *addresses.iter().find(|a| a.is_ipv6()).context("an IPv6 overlay address")?;
        Ok(())
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.host.name
    }

    /// Its local socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("client.sock")
    }

    /// Where its maps and links are pinned.
    pub fn bpf_dir(&self) -> &Path {
        &self.bpf_dir
    }

    /// Everything it logged.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Process id of the daemon.
    pub fn pid(&self) -> Option<u32> {
        self.process.pid()
    }

    /// Runs `gwctl` against it; the output, or an error with all it said.
    pub fn gwctl(&self, args: &[&str]) -> Result<String> {
        succeed("gwctl", args, &self.try_gwctl(args)?)
    }

    /// Runs `gwctl` against it, whatever comes out.
    pub fn try_gwctl(&self, args: &[&str]) -> Result<Output> {
        let socket = self.socket();
        let mut all = vec!["--socket", socket.to_str().context("UTF-8 path")?];
        all.extend_from_slice(args);
        run_in(&self.host.netns, &bin_dir()?.join("gwctl").to_string_lossy(), &all)
    }

    /// `gwctl --json status`.
    pub fn status(&self) -> Result<Value> {
        json(&self.gwctl(&["--json", "status"])?)
    }

    /// An overlay socket address of this node.
    pub fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.v4, port)
    }

    /// An IPv6 overlay socket address of this node.
    pub fn at6(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.v6, port)
    }

    /// `kill -9` of the daemon.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill()
    }

    /// SIGTERM of the daemon.
    pub fn terminate(&mut self, limit: Duration) -> Result<()> {
        let status = self.process.terminate(limit)?;
        if !status.success() {
            bail!("{} ended with {status}", self.host.name);
        }
        Ok(())
    }

    /// Starts the daemon again on the same state.
    pub fn restart(&mut self) -> Result<()> {
        self.process = Self::spawn(&self.host, &self.dir, &self.bpf_dir, self.mounts, self.steering)?;
        self.wait_ready()
    }

    /// [`Self::restart`] with another view of the file system.
    pub fn restart_with(&mut self, mounts: Mounts) -> Result<()> {
        self.mounts = mounts;
        self.restart()
    }

    /// Ends it with everything it has set up, and starts it again with plain endpoints.
    pub fn restart_without_steering(&mut self) -> Result<()> {
        self.gwctl(&["down"])?;
        self.terminate(patience(20))?;
        self.steering = "off";
        self.restart()?;
        self.gwctl(&["up"]).map(drop)
    }

    fn leak(mut self) {
        let Self { process, host, .. } = &mut self;
        std::mem::replace(process, Process::absent()).leak();
        host.netns.take().leak();
        host.routers.drain(..).for_each(Netns::leak);
        self.bpf_dir = PathBuf::new();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.bpf_dir.as_os_str().is_empty() {
            return;
        }
        // The namespace's guard ends the processes inside; pins outlive them by design.
        drop(std::fs::remove_dir_all(&self.bpf_dir));
    }
}

/// Output of a successful run; otherwise an error with all it said.
pub fn succeed(program: &str, args: &[&str], output: &Output) -> Result<String> {
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("{program} {}: {}\n{stdout}{stderr}", args.join(" "), output.status);
    }
    Ok(stdout)
}

/// Parses what a `--json` command printed.
pub fn json(text: &str) -> Result<Value> {
    serde_json::from_str(text).with_context(|| format!("not JSON: {text}"))
}

/// A text field of a JSON object.
pub fn text(value: &Value, field: &str) -> Result<String> {
    value
        .get(field)
        .and_then(Value::as_str)
        .map(str::to_owned)
        .with_context(|| format!("no {field} in {value}"))
}
