//! The BPF filesystem: mounted, with one folder for each interface.
//!
//! ```text
//! <bpf_dir>/<interface>/ingress, egress   links of access control (tcx)
//!                       clsact            folder: the clsact qdisc is of our making
//!                       maps-<layout>/    maps; the version of their layout is in the name
//!                       steer/            the same for steering: out, <uplink>-in, <uplink>-out, clsact-<uplink>
//! ```

use std::fs;
use std::io;
use std::os::linux::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sys::stat::{major, minor};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::BpfError;

const STANDARD: &str = "/sys/fs/bpf";

/// Mounts the BPF filesystem at its standard place if the folder is to be there and nothing is mounted.
pub(crate) fn ensure_mounted(bpf_dir: &Path) -> Result<(), BpfError> {
    if on_bpffs(bpf_dir) {
        return Ok(());
    }
    if !bpf_dir.starts_with(STANDARD) {
        return Err(BpfError::NotBpffs { path: bpf_dir.to_owned() });
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("bpf"), STANDARD, Some("bpf"), flags, Some("mode=0700"))
        .map_err(|errno| BpfError::Mount { path: STANDARD.into(), source: errno.into() })?;
    if on_bpffs(bpf_dir) { Ok(()) } else { Err(BpfError::NotBpffs { path: bpf_dir.to_owned() }) }
}

/// Whether pins outlive this process whatever ends it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pins {
    /// They are on a BPF filesystem that the first process of the machine has mounted, too.
    Lasting,
    /// They may vanish with the mount namespace of this process, and links with them. A sentence that says why.
    Passing(String),
}

/// The mounts of the machine's first process, whose mount namespace lasts as long as the machine runs.
const MOUNTS_OF_THE_MACHINE: &str = "/proc/1/mountinfo";

/// The namespace file of a process in the machine's own process namespace (`PROC_PID_INIT_INO` in
/// include/linux/proc_ns.h; the number is part of the kernel's interface).
const PROCESSES_OF_THE_MACHINE: &str = "pid:[4026531836]";

/// Whether pins below a folder last. A BPF filesystem goes with its last mount, so it has to be one that is mounted
/// where mounts last. In a container that cannot be told: its first process ends with it, while the network
/// namespace, with the interface in it, may be the host's or a pod's. When in doubt they do not last.
pub(crate) fn pins(dir: &Path) -> Pins {
    match fs::read_link("/proc/self/ns/pid") {
        Ok(namespace) if namespace.as_os_str() == PROCESSES_OF_THE_MACHINE => {}
        Ok(_) => {
            return Pins::Passing(
                "this process runs in a container, and its mounts may end before the network interface does"
                    .to_owned(),
            );
        }
        Err(error) => return Pins::Passing(format!("/proc/self/ns/pid cannot be read: {error}")),
    }
    let device = match fs::metadata(dir) {
        Ok(found) => found.st_dev(),
        Err(error) => return Pins::Passing(format!("{} cannot be read: {error}", dir.display())),
    };
    match fs::read(MOUNTS_OF_THE_MACHINE) {
        Ok(mounts) if is_mounted(&String::from_utf8_lossy(&mounts), device) => Pins::Lasting,
        Ok(_) => Pins::Passing(format!(
            "the BPF filesystem at {} is mounted only in the mount namespace of this process (`ip netns exec` makes such \
             a namespace)",
            dir.display()
        )),
        Err(error) => Pins::Passing(format!("{MOUNTS_OF_THE_MACHINE} cannot be read: {error}")),
    }
}

/// Whether a mountinfo file (proc_pid_mountinfo(5)) names a BPF filesystem on this device.
fn is_mounted(mountinfo: &str, device: u64) -> bool {
    let wanted = format!("{}:{}", major(device), minor(device));
    mountinfo.lines().any(|line| {
        let mut fields = line.split(' ');
        let device = fields.nth(2);
        // Optional fields end with a hyphen; the type follows.
        let kind = fields.skip_while(|field| *field != "-").nth(1);
        device == Some(wanted.as_str()) && kind == Some("bpf")
    })
}

/// Whether the folder, or the nearest one above it that exists, is on a BPF filesystem.
fn on_bpffs(path: &Path) -> bool {
    path.ancestors()
        .find_map(|folder| statfs(folder).ok())
        .is_some_and(|found| found.filesystem_type() == BPF_FS_MAGIC)
}

/// Name of an interface's folder. The BPF filesystem allows no dots in names; interface names may have them,
/// but never a colon.
pub(crate) fn folder_name(interface: &str) -> String {
    interface.replace('.', ":")
}

/// Creates the folder of an interface.
pub(crate) fn interface_dir(bpf_dir: &Path, interface: &str) -> Result<PathBuf, BpfError> {
    let dir = bpf_dir.join(folder_name(interface));
    create(&dir)?;
    Ok(dir)
}

/// Creates a folder, and those above it.
pub(crate) fn create(dir: &Path) -> Result<(), BpfError> {
    fs::create_dir_all(dir).map_err(|source| BpfError::Pin {
        action: "create the folder",
        path: dir.to_owned(),
        source,
    })
}

/// Folder of the maps, named by the layout that they have.
pub(crate) fn map_dir(dir: &Path, layout: u64) -> PathBuf {
    dir.join(format!("maps-{layout}"))
}

/// Removes a pin; that there is none is no error.
pub(crate) fn unpin(path: &Path) -> Result<(), BpfError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(BpfError::Pin { action: "remove the pin", path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// Removes all maps of an interface, of whatever layout.
pub(crate) fn remove_maps(dir: &Path) -> Result<(), BpfError> {
    for entry in read_dir(dir)? {
        if entry.file_name().to_string_lossy().starts_with("maps-") {
            remove_tree(&entry.path())?;
        }
    }
    Ok(())
}

/// Removes a folder, and those above it that are empty then.
pub(crate) fn remove(dir: &Path) -> Result<(), BpfError> {
    if dir.exists() {
        remove_tree(dir)?;
    }
    for parent in dir.ancestors().skip(1).take_while(|parent| *parent != Path::new(STANDARD)) {
        // Others may have their folders there.
        if fs::remove_dir(parent).is_err() {
            break;
        }
    }
    Ok(())
}

fn read_dir(dir: &Path) -> Result<Vec<fs::DirEntry>, BpfError> {
    fs::read_dir(dir).and_then(Iterator::collect).map_err(|source| BpfError::Pin {
        action: "read the folder",
        path: dir.to_owned(),
        source,
    })
}

fn remove_tree(dir: &Path) -> Result<(), BpfError> {
    fs::remove_dir_all(dir).map_err(|source| BpfError::Pin { action: "remove", path: dir.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use nix::sys::stat::makedev;

    use super::*;

    const MOUNTS: &str = "\
22 29 0:20 / /proc rw,nosuid shared:12 - proc proc rw
42 23 0:39 / /sys/fs/bpf rw,nosuid,nodev,noexec,relatime - bpf bpf rw,mode=700
43 23 0:40 / /mnt/a\\040-\\040bpf rw shared:1 master:2 - tmpfs none rw
44 23 0:41 / /mnt/b rw shared:1 master:2 - bpf bpf rw
45 23 0:42 /
";

    #[test]
    fn a_bpf_filesystem_is_found_by_its_device() {
        for (minor, found) in [(39, true), (41, true), (20, false), (40, false), (42, false), (3, false)] {
            assert_eq!(is_mounted(MOUNTS, makedev(0, minor)), found, "{minor}");
        }
        assert!(!is_mounted("", makedev(0, 39)));
    }
}
