//! The BPF filesystem: mounted, with one folder for each interface.
//!
//! ```text
//! <bpf_dir>/<interface>/ingress, egress   links (tcx)
//!                       clsact            folder: the clsact qdisc is of our making
//!                       maps-<layout>/    maps; the layout version of the class image is in the name
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use ghostwire_ebpf_abi::image;
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::AclError;

const STANDARD: &str = "/sys/fs/bpf";

/// Mounts the BPF filesystem at its standard place if the folder is to be there and nothing is mounted.
pub(super) fn ensure_mounted(bpf_dir: &Path) -> Result<(), AclError> {
    if on_bpffs(bpf_dir) {
        return Ok(());
    }
    if !bpf_dir.starts_with(STANDARD) {
        return Err(AclError::NotBpffs { path: bpf_dir.to_owned() });
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("bpf"), STANDARD, Some("bpf"), flags, Some("mode=0700"))
        .map_err(|errno| AclError::Mount { path: STANDARD.into(), source: errno.into() })?;
    if on_bpffs(bpf_dir) { Ok(()) } else { Err(AclError::NotBpffs { path: bpf_dir.to_owned() }) }
}

/// Whether the folder, or the nearest one above it that exists, is on a BPF filesystem.
fn on_bpffs(path: &Path) -> bool {
    path.ancestors()
        .find_map(|folder| statfs(folder).ok())
        .is_some_and(|found| found.filesystem_type() == BPF_FS_MAGIC)
}

/// Name of an interface's folder. The BPF filesystem allows no dots in names; interface names may have them,
/// but never a colon.
pub(super) fn folder_name(interface: &str) -> String {
    interface.replace('.', ":")
}

/// Creates the folder of an interface.
pub(super) fn interface_dir(bpf_dir: &Path, interface: &str) -> Result<PathBuf, AclError> {
    let dir = bpf_dir.join(folder_name(interface));
    fs::create_dir_all(&dir).map_err(|source| AclError::Pin {
        action: "create the folder",
        path: dir.clone(),
        source,
    })?;
    Ok(dir)
}

/// Folder of the maps, named by the layout that they have.
pub(super) fn map_dir(dir: &Path) -> PathBuf {
    dir.join(format!("maps-{}", image::MAGIC & 0xff))
}

/// Removes a pin; that there is none is no error.
pub(super) fn unpin(path: &Path) -> Result<(), AclError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(AclError::Pin { action: "remove the pin", path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// Removes all maps of an interface, of whatever layout.
pub(super) fn remove_maps(dir: &Path) -> Result<(), AclError> {
    for entry in read_dir(dir)? {
        if entry.file_name().to_string_lossy().starts_with("maps-") {
            remove_tree(&entry.path())?;
        }
    }
    Ok(())
}

/// Removes the folder of an interface, and the one above if it is empty then.
pub(super) fn remove(dir: &Path) -> Result<(), AclError> {
    if !dir.exists() {
        return Ok(());
    }
    remove_tree(dir)?;
    if let Some(parent) = dir.parent().filter(|parent| *parent != Path::new(STANDARD)) {
        // Other interfaces may have their folders there.
        let _in_use = fs::remove_dir(parent);
    }
    Ok(())
}

fn read_dir(dir: &Path) -> Result<Vec<fs::DirEntry>, AclError> {
    fs::read_dir(dir).and_then(Iterator::collect).map_err(|source| AclError::Pin {
        action: "read the folder",
        path: dir.to_owned(),
        source,
    })
}

fn remove_tree(dir: &Path) -> Result<(), AclError> {
    fs::remove_dir_all(dir).map_err(|source| AclError::Pin { action: "remove", path: dir.to_owned(), source })
}
