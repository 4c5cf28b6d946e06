//! The relay's folder in the BPF filesystem: the maps by their names, and one link for each interface, `native-NAME` or
//! `generic-NAME`, since a link does not tell how its program runs.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::XdpError;

const STANDARD: &str = "/sys/fs/bpf";
const NATIVE: &str = "native-";
const GENERIC: &str = "generic-";

/// Makes the folder, and mounts the BPF filesystem at its standard place if the folder is to be there and nothing is.
pub(super) fn prepare(dir: &Path) -> Result<(), XdpError> {
    if !on_bpffs(dir) && dir.starts_with(STANDARD) {
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some("bpf"), STANDARD, Some("bpf"), flags, Some("mode=0700"))
            .map_err(|errno| pin_error("mount the BPF filesystem at", Path::new(STANDARD), errno.into()))?;
    }
    if !on_bpffs(dir) {
        return Err(XdpError::NotBpffs { path: dir.to_owned() });
    }
    fs::create_dir_all(dir).map_err(|source| pin_error("create", dir, source))
}

fn on_bpffs(path: &Path) -> bool {
    let there = path.ancestors().find_map(|folder| statfs(folder).ok());
    there.is_some_and(|found| found.filesystem_type() == BPF_FS_MAGIC)
}

/// A pinned link.
#[derive(Clone, Debug)]
pub(super) struct Link {
    pub(super) interface: String,
    pub(super) native: bool,
    pub(super) path: PathBuf,
}

impl Link {
    /// Where an interface's link is pinned. The BPF filesystem allows no dots in names; interface names have no
    /// colons.
    pub(super) fn new(dir: &Path, interface: &str, native: bool) -> Self {
        let kind = if native { NATIVE } else { GENERIC };
        let path = dir.join(format!("{kind}{}", interface.replace('.', ":")));
        Self { interface: interface.to_owned(), native, path }
    }

    fn from_path(path: PathBuf) -> Option<Self> {
        let name = path.file_name()?.to_string_lossy().into_owned();
        let native = name.strip_prefix(NATIVE).map(|interface| (interface, true));
        let (interface, native) =
            native.or_else(|| name.strip_prefix(GENERIC).map(|interface| (interface, false)))?;
        Some(Self { interface: interface.replace(':', "."), native, path })
    }
}

/// The pinned links.
pub(super) fn links(dir: &Path) -> Result<Vec<Link>, XdpError> {
    Ok(entries(dir)?.into_iter().filter_map(Link::from_path).collect())
}

/// Removes all pins of maps, so that new maps are made.
pub(super) fn remove_maps(dir: &Path) -> Result<(), XdpError> {
    for path in entries(dir)? {
        if Link::from_path(path.clone()).is_none() {
            remove(&path)?;
        }
    }
    Ok(())
}

/// Removes a pin.
pub(super) fn remove(path: &Path) -> Result<(), XdpError> {
    fs::remove_file(path).map_err(|source| pin_error("remove", path, source))
}

/// Removes the folder, and the one above if it is empty then.
pub(super) fn remove_folder(dir: &Path) -> Result<(), XdpError> {
    fs::remove_dir_all(dir).map_err(|source| pin_error("remove", dir, source))?;
    if let Some(parent) = dir.parent().filter(|parent| *parent != Path::new(STANDARD)) {
        // A node's data plane may have its folder there.
        let _in_use = fs::remove_dir(parent);
    }
    Ok(())
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>, XdpError> {
    match fs::read_dir(dir) {
        Ok(found) => found
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<Result<_, _>>()
            .map_err(|source| pin_error("list", dir, source)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(pin_error("list", dir, source)),
    }
}

pub(super) fn pin_error(action: &'static str, path: &Path, source: io::Error) -> XdpError {
    XdpError::Pin { action, path: path.to_owned(), source }
}
