//! Finding or installing what everything else needs. Each part first looks whether it is there, by
//! looking at the very files it will use; only then does it install anything. A removed package or a
//! deleted cache directory is therefore noticed at the next command.

mod bpf_linker;
mod debian;
mod kernels;
mod packages;
mod qemu;
mod suite;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;

use crate::progress;

pub(crate) use kernels::{Kernel, KernelName};
pub(crate) use qemu::Qemu;

/// Options of `cargo xtask setup`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Leave out QEMU and the kernels for the virtual machines
    #[arg(long)]
    without_vms: bool,
    /// Look for newer kernels and QEMU than those in the cache
    #[arg(long, conflicts_with = "without_vms")]
    refresh: bool,
}

/// What a command needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// A C compiler, the eBPF toolchain and bpf-linker.
    Build,
    /// Tools that a node and the tests call or compare with: ip, nft, wg, iperf3, ...
    Network,
    /// A C++ compiler: libFuzzer is compiled from source.
    Fuzz,
    /// Programs that benchmarks compare us with: coturn.
    Rivals,
}

/// QEMU and the kernels that can be booted with it.
#[derive(Debug)]
pub(crate) struct Machines {
    /// The emulator.
    pub(crate) qemu: Qemu,
    /// The kernels, oldest first.
    pub(crate) kernels: Vec<Kernel>,
}

/// `cargo xtask setup`.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let started = Instant::now();
    ensure(&[Part::Build, Part::Network])?;
    if !arguments.without_vms {
        if arguments.refresh {
            kernels::forget()?;
            qemu::forget()?;
        }
        let machines = ensure_machines(&KernelName::ALL)?;
        eprintln!("  QEMU {}", machines.qemu.version);
        for kernel in &machines.kernels {
            eprintln!("  kernel {} for virtual machines: {}", kernel.name, kernel.release);
        }
    }
    eprintln!("everything is in place ({})", progress::seconds(started.elapsed()));
    Ok(ExitCode::SUCCESS)
}

/// Makes sure that the parts are there; takes some milliseconds when they are.
pub(crate) fn ensure(parts: &[Part]) -> Result<()> {
    let mut wanted = Vec::new();
    if parts.contains(&Part::Build) {
        wanted.extend_from_slice(packages::BUILD);
        if !packages::rustup_builds_ebpf() {
            wanted.extend_from_slice(packages::EBPF);
        }
        if !bpf_linker::is_there()? {
            wanted.extend_from_slice(packages::BPF_LINKER);
        }
    }
    if parts.contains(&Part::Network) {
        wanted.extend_from_slice(packages::NETWORK);
    }
    if parts.contains(&Part::Fuzz) {
        wanted.extend_from_slice(packages::FUZZ);
    }
    if parts.contains(&Part::Rivals) {
        wanted.extend_from_slice(packages::RIVALS);
    }
    packages::ensure(&wanted)?;
    if parts.contains(&Part::Build) {
        bpf_linker::ensure()?;
    }
    Ok(())
}

/// Makes sure that QEMU and the named kernels are there.
pub(crate) fn ensure_machines(names: &[KernelName]) -> Result<Machines> {
    let wanted: Vec<_> = packages::NETWORK.iter().chain(packages::MACHINES).copied().collect();
    packages::ensure(&wanted)?;
    let qemu = qemu::ensure()?;
    let kernels = names.iter().map(|&name| kernels::ensure(name)).collect::<Result<_>>()?;
    Ok(Machines { qemu, kernels })
}
