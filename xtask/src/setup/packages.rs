//! Debian packages. Whether one is installed is judged by a file of it that is really used, so that the
//! check costs a `stat` and also holds on hosts that provide the same file some other way.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::command::{Step, describe, explain};
use crate::workspace;

/// A package and how to see that it is there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Package {
    name: &'static str,
    probe: Probe,
}

#[derive(Clone, Copy, Debug)]
enum Probe {
    /// A program of this name can be found.
    Program(&'static str),
    /// This path exists.
    Path(&'static str),
}

const fn program(name: &'static str, program: &'static str) -> Package {
    Package { name, probe: Probe::Program(program) }
}

const fn path(name: &'static str, path: &'static str) -> Package {
    Package { name, probe: Probe::Path(path) }
}

/// What the host build needs beside Rust: SQLite and ring are compiled from C.
pub(super) const BUILD: &[Package] = &[
    program("gcc", "cc"),
    path("libc6-dev", "/usr/include/stdio.h"),
    program("binutils", "strip"),
    program("ca-certificates", "update-ca-certificates"),
];

/// The eBPF programs' compiler: Debian's rustc with its prebuilt core for the BPF targets.
pub(super) const EBPF: &[Package] = &[
    path("rustc-web", "/usr/bin/rustc"),
    path("cargo-web", "/usr/bin/cargo"),
    path("libstd-rust-web-dev", "/usr/lib/rustlib/x86_64-unknown-linux-gnu"),
    path("libstd-rust-web-dev-bpf", "/usr/lib/rustlib/bpfel-unknown-none"),
];

/// What compiling bpf-linker needs; of these, the LLVM library is needed to run it too.
pub(super) const BPF_LINKER: &[Package] = &[
    program("g++", "c++"),
    path("llvm-22-dev", "/usr/lib/llvm-22/lib/libLLVMCore.a"),
    path("libpolly-22-dev", "/usr/lib/llvm-22/lib/libPolly.a"),
    path("zlib1g-dev", "/usr/include/zlib.h"),
    path("libzstd-dev", "/usr/include/zstd.h"),
    path("libxml2-dev", "/usr/include/libxml2"),
];

/// What compiling libFuzzer needs.
pub(super) const FUZZ: &[Package] = &[program("g++", "c++")];

/// What benchmarks compare us with.
pub(super) const RIVALS: &[Package] = &[program("coturn", "turnserver"), program("util-linux", "taskset")];

/// What nodes, tests and the demo call, inside the virtual machines too.
pub(super) const NETWORK: &[Package] = &[
    program("ethtool", "ethtool"),
    program("iproute2", "ip"),
    program("nftables", "nft"),
    program("miniupnpd-nftables", "miniupnpd"),
    program("wireguard-tools", "wg"),
    program("iperf3", "iperf3"),
    program("iputils-ping", "ping"),
    program("tcpdump", "tcpdump"),
    program("bpftool", "bpftool"),
    program("procps", "sysctl"),
    program("util-linux", "nsenter"),
    program("python3-minimal", "python3"),
];

/// What the virtual machines are made of, beside QEMU and the kernels.
pub(super) const MACHINES: &[Package] = &[
    program("busybox-static", "busybox"),
    program("dash", "dash"),
    program("kmod", "depmod"),
    program("dpkg", "dpkg-deb"),
    program("xz-utils", "xz"),
    program("libc-bin", "ldd"),
];

/// Installs those of the packages that are not there.
pub(super) fn ensure(packages: &[Package]) -> Result<()> {
    let mut missing: Vec<&str> =
        packages.iter().filter(|package| !package.is_there()).map(|package| package.name).collect();
    missing.sort_unstable();
    missing.dedup();
    if missing.is_empty() { Ok(()) } else { install(&missing) }
}

/// Installs packages by name, or says how to when this process may not.
pub(super) fn install(names: &[&str]) -> Result<()> {
    if workspace::find_program("apt-get").is_none() {
        bail!(
            "these Debian packages (or what this system calls them) are missing: {}\n  what to do: install them; \
             this system has no apt-get that could do it",
            names.join(" ")
        );
    }
    let mut install = apt_get("install");
    install.args(["--yes", "--no-install-recommends"]).args(names);
    if !workspace::is_root() {
        bail!(
            "Debian packages are missing, and only root can install them: {}\n  what to do: run\n    sudo apt-get \
             update && sudo {}",
            names.join(" "),
            describe(&install)
        );
    }
    // One unreachable repository that has nothing to do with us must not end this: if it mattered, the
    // installation itself fails and says so.
    if let Err(error) = Step::new("update the package lists", apt_get("update")).run() {
        eprintln!("  not every package list could be updated:\n{}", explain(&error));
    }
    Step::new(format!("install {} packages ({})", names.len(), names.join(" ")), install)
        .remedy(
            "see the end of apt's output; the packages are in Debian bookworm (main, updates and security), so \
             check that all three are among apt's sources and can be reached",
        )
        .run()?;
    Ok(())
}

fn apt_get(subcommand: &str) -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive");
    // Another installation that is just running is waited for.
    command.args(["--quiet", "--option", "DPkg::Lock::Timeout=300", subcommand]);
    command
}

/// Whether rustup has a nightly toolchain that can build `core` for BPF and whose bitcode our bpf-linker
/// (built with LLVM 22) can read. Then Debian's compiler is not needed.
pub(super) fn rustup_builds_ebpf() -> bool {
    let output = |arguments: &[&str]| {
        let output =
            Command::new("rustup").args(arguments).output().ok().filter(|output| output.status.success())?;
        String::from_utf8(output.stdout).ok()
    };
    let Some(sysroot) = output(&["run", "nightly", "rustc", "--print", "sysroot"]) else { return false };
    if !Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core").is_dir() {
        return false;
    }
    let version = output(&["run", "nightly", "rustc", "--version", "--verbose"]).unwrap_or_default();
    llvm_major(&version).is_some_and(|major| major <= 22)
}

fn llvm_major(version: &str) -> Option<u32> {
    let line = version.lines().find_map(|line| line.strip_prefix("LLVM version: "))?;
    line.split('.').next()?.trim().parse().ok()
}

impl Package {
    fn is_there(&self) -> bool {
        match self.probe {
            Probe::Program(name) => workspace::find_program(name).is_some(),
            Probe::Path(path) => Path::new(path).exists(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_llvm_version_is_read_from_rustc() {
        assert_eq!(llvm_major("rustc 1.97.0-nightly\nrelease: 1.97.0\nLLVM version: 22.1.2\n"), Some(22));
        assert_eq!(llvm_major("rustc 1.97.0-nightly"), None);
    }

    #[test]
    fn a_missing_program_and_a_missing_path_are_noticed() {
        assert!(program("coreutils", "ls").is_there());
        assert!(!program("nothing", "no-such-program-anywhere").is_there());
        assert!(!path("nothing", "/no/such/path").is_there());
    }
}
