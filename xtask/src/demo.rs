//! `cargo xtask demo`: builds what a user installs and the program that shows it, and runs that program:
//! here, or in a virtual machine whose kernel has WireGuard.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::cargo;
use crate::progress::Progress;
use crate::setup::{self, KernelName, Part};
use crate::vm::{self, Content, Event, Job, Machine, exit_code};
use crate::workspace;

/// The program that shows everything, and what it starts.
const DEMO: (&str, &str) = ("ghostwire-tests", "ghostwire-demo");
const BINARIES: [(&str, &str); 3] =
    [("ghostwire-server", "ghostwire-server"), ("ghostwire-client", "ghostwire-client"), ("gwctl", "gwctl")];
const GUEST_DIRECTORY: &str = "/gw/bin";
const TIMEOUT: Duration = Duration::from_mins(20);

/// Options of `cargo xtask demo`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Leave the mesh running and print what to try
    #[arg(long)]
    keep: bool,
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
    let binaries = BINARIES
        .iter()
        .map(|(package, name)| Ok((*name, cargo::build_binary(package, name, false)?)))
        .collect::<Result<Vec<_>>>()?;
    let demo = cargo::build_binary(DEMO.0, DEMO.1, false)?;
    if arguments.kernel_wireguard && !host_has_wireguard() {
        if arguments.keep {
            bail!(
                "--keep leaves a mesh running on this machine, but this kernel has no WireGuard and a virtual machine \
                   ends with the demo\n  what to do: leave out --keep or --kernel-wireguard"
            );
        }
        return in_machine(&demo, &binaries);
    }
    let mut command = Command::new(&demo);
    command.env("GHOSTWIRE_BIN_DIR", demo.parent().unwrap_or(Path::new(".")));
    if arguments.keep {
        command.arg("--keep");
    }
    if arguments.kernel_wireguard {
        command.arg("--kernel-wireguard");
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

fn in_machine(demo: &Path, binaries: &[(&str, PathBuf)]) -> Result<ExitCode> {
    let machines = setup::ensure_machines(&[KernelName::Newest])?;
    let kernel = machines.kernels.first().context("setup returned no kernel")?;
    let mut content =
        vec![Content::Program { host: vm::stripped(demo)?, guest: format!("{GUEST_DIRECTORY}/{}", DEMO.1) }];
    for (name, path) in binaries {
        content
            .push(Content::Program { host: vm::stripped(path)?, guest: format!("{GUEST_DIRECTORY}/{name}") });
    }
    let mut job = Job::command(&[format!("{GUEST_DIRECTORY}/{}", DEMO.1), "--kernel-wireguard".to_owned()]);
    job.environment = [
        ("GHOSTWIRE_BIN_DIR", GUEST_DIRECTORY.to_owned()),
        ("GHOSTWIRE_TEST_SLOWDOWN", vm::SLOWDOWN.to_string()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into();
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
