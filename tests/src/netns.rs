//! Network namespaces that exist as long as their guard.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::Command;
use std::thread::JoinHandle;

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A named network namespace (`ip netns`), deleted on drop.
#[derive(Debug)]
pub struct Netns {
    name: String,
}

impl Netns {
    /// Creates the namespace and brings its loopback up.
    pub fn create(name: &str) -> Result<Self> {
        ip(&["netns", "add", name])?;
        let netns = Self { name: name.to_owned() };
        netns.ip(&["link", "set", "lo", "up"])?;
        Ok(netns)
    }

    /// Name under `/run/netns`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The namespace's file.
    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// Refers to it without guarding it.
    pub fn reference(&self) -> NetnsRef {
        NetnsRef { name: self.name.clone() }
    }

    /// Opens the namespace, for `setns`.
    pub fn open(&self) -> Result<File> {
        File::open(self.path()).with_context(|| format!("open network namespace {}", self.name))
    }

    /// Runs `ip` inside.
    pub fn ip(&self, args: &[&str]) -> Result<String> {
        let mut all = vec!["-n", self.name.as_str()];
        all.extend_from_slice(args);
        ip(&all)
    }

    /// Runs `work` on a thread of its own inside the namespace. Sockets it opens stay inside.
    pub fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<JoinHandle<Result<T>>> {
        let file = self.open()?;
        Ok(std::thread::spawn(move || {
            setns(file.as_fd(), CloneFlags::CLONE_NEWNET).context("enter network namespace")?;
            work()
        }))
    }

    /// Like [`Self::spawn`], and waits for the result.
    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
        join(self.spawn(work)?)
    }

    /// Leaves the namespace in place; somebody else will delete it.
    pub fn leak(mut self) {
        self.name.clear();
    }

    #[must_use]
    /// Takes the guard out, leaving one that guards nothing.
    pub fn take(&mut self) -> Self {
        Self { name: std::mem::take(&mut self.name) }
    }
}

/// The name of a namespace that somebody else guards.
#[derive(Clone, Debug)]
pub struct NetnsRef {
    name: String,
}

impl NetnsRef {
    /// Runs `ip` inside.
    pub fn ip(&self, args: &[&str]) -> Result<String> {
        let mut all = vec!["-n", self.name.as_str()];
        all.extend_from_slice(args);
        ip(&all)
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        if self.name.is_empty() {
            return;
        }
        if let Err(error) = reap(&self.name) {
            eprintln!("could not end the processes of network namespace {}: {error:#}", self.name);
        }
        if let Err(error) = ip(&["netns", "del", &self.name]) {
            eprintln!("could not delete network namespace {}: {error:#}", self.name);
        }
    }
}

/// Ends the processes inside a namespace: detached ones (userspace WireGuard) would keep it alive.
pub fn reap(name: &str) -> Result<()> {
    for pid in ip(&["netns", "pids", name])?.split_whitespace() {
        if let Ok(pid) = pid.parse() {
            // It may have ended by itself in between.
            let _gone = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
    Ok(())
}

/// The result of a thread, its panic as an error.
pub fn join<T>(handle: JoinHandle<Result<T>>) -> Result<T> {
    outcome(handle.join())
}

/// What a thread that has ended has returned, its panic as an error.
pub fn outcome<T>(ended: std::thread::Result<Result<T>>) -> Result<T> {
    match ended {
        Ok(result) => result,
        Err(panic) => {
            let text = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("unknown panic");
            bail!("thread panicked: {text}")
        }
    }
}

/// Runs `ip` and returns what it printed.
pub fn ip(args: &[&str]) -> Result<String> {
    let output = Command::new("ip").args(args).output().context("run ip (package iproute2)")?;
    if !output.status.success() {
        bail!("ip {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
