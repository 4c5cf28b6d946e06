//! Programs under test, started inside a namespace and ended by pid.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::netns::Netns;
use crate::wait;

/// The directory of the binaries under test: `GHOSTWIRE_BIN_DIR`, else where cargo put the running program.
pub fn bin_dir() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("GHOSTWIRE_BIN_DIR") {
        return Ok(dir.into());
    }
    let exe = std::env::current_exe().context("find the running program")?;
    exe.ancestors()
        .skip(1)
        .take(2)
        .find(|dir| dir.join("ghostwire-server").exists())
        .map(Path::to_path_buf)
        .with_context(|| {
            format!(
                "no ghostwire-server beside {}: build it first (cargo build), or set GHOSTWIRE_BIN_DIR",
                exe.display()
            )
        })
}

/// A command that will run inside `netns`.
pub fn command_in(netns: &Netns, program: impl AsRef<std::ffi::OsStr>) -> Result<Command> {
    let namespace = netns.open()?;
    let mut command = Command::new(program);
    // SAFETY: between fork and exec only setns(2) runs, which is async-signal-safe and allocates nothing.
    unsafe {
        command.pre_exec(move || {
            setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET).map_err(std::io::Error::from)
        });
    }
    Ok(command)
}

/// Runs a command to its end inside `netns`.
pub fn run_in(netns: &Netns, program: &str, args: &[&str]) -> Result<Output> {
    command_in(netns, program)?
        .args(args)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("run {program} {}", args.join(" ")))
}

/// Runs a command inside `netns` and fails, with what it said, if it fails.
pub fn check_in(netns: &Netns, program: &str, args: &[&str]) -> Result<String> {
    let output = run_in(netns, program, args)?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!(
            "{program} {}: {}\n{stdout}{}",
            args.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(stdout)
}

/// A long-running program, killed on drop.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Option<Child>,
    log: PathBuf,
}

impl Process {
    /// Starts `program` inside `netns` with its output appended to `log`.
    pub fn spawn(netns: &Netns, name: &str, program: &Path, args: &[&str], log: &Path) -> Result<Self> {
        let file = File::options().create(true).append(true).open(log)?;
        let child = command_in(netns, program)?
            .args(args)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("start {}", program.display()))?;
        Ok(Self { name: name.to_owned(), child: Some(child), log: log.to_owned() })
    }

    /// Stands for no process.
    pub fn absent() -> Self {
        Self { name: String::new(), child: None, log: PathBuf::new() }
    }

    /// Process id.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Everything it has printed.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Fails if it has ended.
    pub fn check_alive(&mut self) -> Result<()> {
        let Some(child) = &mut self.child else { bail!("{} is not running", self.name) };
        if let Some(status) = child.try_wait()? {
            bail!("{} ended: {status}\n{}", self.name, tail(&self.log(), 20));
        }
        Ok(())
    }

    /// `kill -9`, and waits for the end.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            let status = child.wait()?;
            if status.signal() != Some(9) {
                bail!("{} had ended before it was killed: {status}", self.name);
            }
        }
        Ok(())
    }

    /// Asks it to end (SIGTERM) and waits.
    pub fn terminate(&mut self, limit: Duration) -> Result<ExitStatus> {
        let Some(child) = &mut self.child else { bail!("{} is not running", self.name) };
        kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM)?;
        let status = wait::until(&format!("{} to end", self.name), limit, || {
            child.try_wait()?.context("still running")
        })?;
        self.child = None;
        Ok(status)
    }

    /// Lets it run on after this guard is gone.
    pub fn leak(mut self) {
        self.child = None;
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

/// The last lines of a text.
pub fn tail(text: &str, lines: usize) -> String {
    let all: Vec<_> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
