//! A namespace, a relay in it, and what talks to it.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use ed25519_dalek::SigningKey;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

/// Nothing takes so long unless it is broken.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) const RELAY_V4: &str = "203.0.113.1";
pub(crate) const RELAY_V6: &str = "2001:db8::1";

/// Runs a test on a thread in a network namespace that ends with it. All addresses are on the loopback device.
pub(crate) fn in_namespace(test: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace; run the tests as root");
            ip(&["link", "set", "lo", "up"]);
            for address in ["203.0.113.1/32", "198.51.100.1/32", "198.51.100.2/32", "10.0.0.1/32"] {
                ip(&["address", "add", address, "dev", "lo"]);
            }
            for address in ["2001:db8::1/128", "2001:db8:2::2/128"] {
                ip(&["-6", "address", "add", address, "dev", "lo", "nodad"]);
            }
            test();
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

pub(crate) fn ip(args: &[&str]) {
    let status = Command::new("ip").args(args).status().expect("ip of iproute2");
    assert!(status.success(), "ip {args:?}");
}

/// A relay's process; killed with the test.
pub(crate) struct Relay {
    child: Child,
    _stdout: BufReader<ChildStdout>,
    pub(crate) identity: serde_json::Value,
    pub(crate) coordinator: SigningKey,
    pub(crate) tls: SocketAddr,
    pub(crate) plain: SocketAddr,
    /// What it said when it was ready.
    pub(crate) ready: String,
    state: Option<TempDir>,
}

impl Relay {
    /// Everything in userspace.
    pub(crate) fn start(extra: &[&str]) -> Self {
        Self::start_in(
            TempDir::new().unwrap(),
            &[&["--xdp", "off", "--metrics-listen", "off"], extra].concat(),
        )
    }

    /// With a state directory that may have been another relay's.
    pub(crate) fn start_in(state: TempDir, extra: &[&str]) -> Self {
        let state_dir = state.path().join("relay");
        let binary = env!("CARGO_BIN_EXE_ghostwire-relay");
        let output =
            Command::new(binary).arg("identity").arg("--state-dir").arg(&state_dir).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let identity = serde_json::from_slice(&output.stdout).unwrap();
        let coordinator = SigningKey::from_bytes(&[5; 32]);
        let mut child = Command::new(binary)
            .args(["run", "--address", RELAY_V4, "--address", RELAY_V6, "--ports", "50000-50099"])
            .args(["--tls-listen", "203.0.113.1:0", "--http-listen", "203.0.113.1:0", "--pairs", "1000"])
            .arg("--coordinator-key")
            .arg(hex::encode(coordinator.verifying_key().as_bytes()))
            .arg("--state-dir")
            .arg(&state_dir)
            .args(extra)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let after = |label: &str| {
            let rest = line.split(label).nth(1).unwrap_or_else(|| panic!("no {label} in {line:?}"));
            rest.trim_start().split([',', '\n']).next().unwrap().parse().unwrap()
        };
        Self {
            tls: after("over TLS"),
            plain: after("plain HTTP"),
            ready: line.clone(),
            child,
            _stdout: stdout,
            identity,
            coordinator,
            state: Some(state),
        }
    }

    /// SIGKILL; gives the state directory for the next one.
    pub(crate) fn kill(mut self) -> TempDir {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.state.take().unwrap()
    }

    /// Sends a signal and waits for the end; gives the state directory for the next one.
    pub(crate) fn end(mut self, signal: Signal) -> TempDir {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
        assert_eq!(self.wait(), Some(0));
        self.state.take().unwrap()
    }

    pub(crate) fn state_file(&self, name: &str) -> PathBuf {
        self.state.as_ref().unwrap().path().join("relay").join(name)
    }

    /// Bytes of the identity.
    pub(crate) fn key<const N: usize>(&self, name: &str) -> [u8; N] {
        let mut key = [0; N];
        hex::decode_to_slice(self.identity[name].as_str().unwrap(), &mut key).unwrap();
        key
    }

    pub(crate) fn terminate(&self) {
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM).unwrap();
    }

    pub(crate) fn wait(&mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
