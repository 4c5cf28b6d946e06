//! `cargo xtask demo`: builds what a user installs and the program that shows it, and runs that program:
//! here, or in a virtual machine whose kernel has WireGuard.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::cargo;
use crate::progress::Progress;
use crate::setup::{self, KernelName, Part};
use crate::vm::{self, Content, Event, Job, Machine, exit_code};
use crate::workspace;

/// The program that shows everything (first), and what it starts.
const BINARIES: [(&str, &str); 5] = {
    let [server, client, relay, gwctl] = cargo::BINARIES;
    [("ghostwire-tests", "ghostwire-demo"), server, client, relay, gwctl]
};
const GUEST_DIRECTORY: &str = "/gw/bin";
const TIMEOUT: Duration = Duration::from_mins(20);

/// Options of `cargo xtask demo`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Leave the mesh running and print what to try
    #[arg(long, conflicts_with = "clean")]
    keep: bool,
    /// Remove a mesh that `--keep` left running, and do nothing else
    #[arg(long, conflicts_with = "kernel_wireguard")]
    clean: bool,
    /// Use the kernel's WireGuard, in a virtual machine when this kernel has none
    #[arg(long)]
    kernel_wireguard: bool,
}

/// `cargo xtask demo`.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    if !workspace::is_root() {
        bail!(
            "the demo creates network namespaces and loads eBPF programs, which takes root\n  what to do: run as root \
             (sudo --preserve-env=PATH,HOME cargo xtask demo)"
        );
    }
    setup::ensure(&[Part::Build, Part::Network])?;
    let binaries = cargo::build_binaries(BINARIES, false)?;
    if arguments.kernel_wireguard && !host_has_wireguard() {
        if arguments.keep {
            bail!(
                "--keep leaves a mesh running on this machine, but this kernel has no WireGuard and a virtual machine \
                   ends with the demo\n  what to do: leave out --keep or --kernel-wireguard"
            );
        }
        return in_machine(&binaries);
    }
    let demo = &binaries[0];
    let mut command = Command::new(demo);
    command.env("GHOSTWIRE_BIN_DIR", demo.parent().unwrap_or(Path::new(".")));
    for (wanted, option) in [(arguments.keep, "--keep"), (arguments.clean, "--clean")] {
        if wanted {
            command.arg(option);
        }
    }
    let status = command.status().with_context(|| format!("cannot start {}", demo.display()))?;
    Ok(exit_code(status.code()))
}

/// Tries it: a WireGuard device in a network namespace that exists only for this question.
fn host_has_wireguard() -> bool {
    let mut command = Command::new("unshare");
    command.args(["--net", "ip", "link", "add", "gwprobe", "type", "wireguard"]);
    command.output().is_ok_and(|output| output.status.success())
}

fn in_machine(binaries: &[PathBuf; 5]) -> Result<ExitCode> {
    let machines = setup::ensure_machines(&[KernelName::Newest])?;
    let kernel = machines.kernels.first().context("setup returned no kernel")?;
    let guest = |(_, name): (&str, &str)| format!("{GUEST_DIRECTORY}/{name}");
    let mut content = Vec::new();
    for (path, binary) in binaries.iter().zip(BINARIES) {
        content.push(Content::Program { host: vm::stripped(path)?, guest: guest(binary) });
    }
    let mut job = Job::command(&[guest(BINARIES[0])]);
    job.environment = [
        ("GHOSTWIRE_BIN_DIR", GUEST_DIRECTORY.to_owned()),
        ("GHOSTWIRE_TEST_TIME_FACTOR", vm::TIME_FACTOR.to_string()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into();
    if !std::io::stdout().is_terminal() {
        // The guest's console is a terminal, whatever this output goes to.
        job.environment.push(("NO_COLOR".to_owned(), "1".to_owned()));
    }
    eprintln!("this kernel has no WireGuard: running in a virtual machine with kernel {}", kernel.release);
    let jobs = [job];
    let machine = Machine { qemu: &machines.qemu, kernel, content: &content, jobs: &jobs, timeout: TIMEOUT };
    let mut booting = Some(Progress::start(format!("boot kernel {}", kernel.release)));
    let report = machine.run(|event| match event {
        Event::Begin(_) => booting.take().map(Progress::done).unwrap_or_default(),
        Event::Line(line) => println!("{line}"),
    })?;
    drop(booting);
    match (report.failure, report.jobs.first()) {
        (None, Some(job)) => Ok(exit_code(job.exit)),
        (failure, _) => bail!(failure.unwrap_or_else(|| "the machine ran no job".to_owned())),
    }
}
