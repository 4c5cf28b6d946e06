//! bpf-linker, built once with Debian's LLVM into the cache directory, where the eBPF build looks for it.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, bail};

use crate::cargo;
use crate::command::Step;
use crate::workspace;

/// The version that the eBPF programs are known to link with.
const VERSION: &str = "0.13.0";

fn root() -> Result<PathBuf> {
    Ok(workspace::cache()?.join("bpf-linker"))
}

/// Whether the right version is installed and starts.
pub(super) fn is_there() -> Result<bool> {
    let output = Command::new(root()?.join("bin/bpf-linker")).arg("--version").output();
    Ok(output.is_ok_and(|output| {
        output.status.success() && String::from_utf8_lossy(&output.stdout).trim().ends_with(VERSION)
    }))
}

/// Builds and installs it when it is not there (about a minute).
pub(super) fn ensure() -> Result<()> {
    if is_there()? {
        return Ok(());
    }
    let root = root()?;
    let mut install = cargo::command("install");
    install.args(["bpf-linker", "--version", VERSION, "--locked", "--force", "--no-default-features"]);
    install.args(["--features", "llvm-22", "--root"]).arg(&root);
    let mut path = std::ffi::OsString::from("/usr/lib/llvm-22/bin:");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    install.env("LLVM_PREFIX", "/usr/lib/llvm-22").env("PATH", path);
    Step::new(format!("build bpf-linker {VERSION}"), install)
        .remedy("it needs the crates registry and the packages llvm-22-dev and libpolly-22-dev")
        .run()?;
    if !is_there()? {
        bail!("bpf-linker was installed under {} but does not start as version {VERSION}", root.display());
    }
    Ok(())
}
