//! Where things are: the workspace, its build directory, and the cache outside the repository.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The root of the workspace, wherever `cargo xtask` was called from.
pub(crate) fn root() -> PathBuf {
    let manifest = env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    manifest.parent().map_or_else(|| manifest.clone(), Path::to_path_buf)
}

/// Cargo's build directory.
pub(crate) fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// Scratch space of xtask inside the build directory (logs, initramfs images).
pub(crate) fn scratch(name: &str) -> Result<PathBuf> {
    let directory = target().join("xtask").join(name);
    std::fs::create_dir_all(&directory)
        .with_context(|| format!("cannot create the directory {}", directory.display()))?;
    Ok(directory)
}

/// Downloads and tools shared by all clones on this machine: `$GHOSTWIRE_CACHE` or `~/.cache/ghostwire`.
pub(crate) fn cache() -> Result<PathBuf> {
    if let Some(directory) = env::var_os("GHOSTWIRE_CACHE") {
        return Ok(PathBuf::from(directory));
    }
    let home = env::var_os("HOME")
        .context("neither GHOSTWIRE_CACHE nor HOME is set: set GHOSTWIRE_CACHE to a writable directory")?;
    Ok(PathBuf::from(home).join(".cache/ghostwire"))
}

/// Whether this process may do what root may (install packages, create namespaces, load eBPF).
pub(crate) fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt as _;
    // The kernel makes a process's own /proc entry belong to its effective user.
    std::fs::metadata("/proc/self").is_ok_and(|entry| entry.uid() == 0)
}

/// The full path of a program, looked up in `PATH` and in the system directories that a plain user's
/// `PATH` leaves out.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/local/sbin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(PathBuf::from);
    env::split_paths(&path).chain(system).map(|directory| directory.join(name)).find(|file| file.is_file())
}
