//! The programs on a device, with no trace in the file system while a measurement runs.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use anyhow::{Context, Result};
use ghostwire_bench::acl::steps;
use ghostwire_dataplane::acl::{Acl, Options};
use ghostwire_ebpf_abi::event::Direction;

pub(crate) struct Lab {
    pub(crate) acl: Acl,
    /// On the same maps.
    pub(crate) steps: Vec<OwnedFd>,
}

impl Lab {
    /// Loads the programs, and detaches them: they are run by themselves, or attached for as long as a measurement
    /// lasts. Maps live as long as someone holds them. `l3_offset`: bytes in front of the packets' IP headers.
    pub(crate) fn new(interface: &str, l3_offset: u32) -> Result<Self> {
        let dir = PathBuf::from(format!("/sys/fs/bpf/ghostwire-bench-{}", std::process::id()));
        let options = Options { l3_offset, ..Options::default() };
        let opened =
            Acl::open_or_create(interface, &dir, &options).map_err(anyhow::Error::from).and_then(|acl| {
                let maps = fs::read_dir(dir.join(interface))?.filter_map(|entry| Some(entry.ok()?.path()));
                let maps = maps
                    .filter(|path| path.is_dir() && path.join("IMAGE").exists())
                    .last()
                    .context("the programs' maps are not where they used to be pinned")?;
                let steps = steps::load(&maps)?;
                Ok(Self { acl, steps })
            });
        Acl::remove(interface, &dir).with_context(|| format!("cleaning up {}", dir.display()))?;
        opened
    }

    pub(crate) fn program(&self, direction: Direction) -> Result<BorrowedFd<'_>> {
        Ok(self.acl.program(direction)?.fd()?.as_fd())
    }
}
