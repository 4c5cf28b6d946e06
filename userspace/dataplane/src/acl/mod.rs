//! Access control in the kernel: the two programs on the WireGuard device, and their maps.
//!
//! ```text
//! open_or_create ── crate::bpf (folder, pinned maps of an earlier process) ─> object
//!                └─ attach (tcx link or clsact filter: new, or replaced atomically)
//! install ───────── image (mmapped inner map, swap of one slot) + nets (tries of the other slot)
//! counters, drops_by_remote, connections, events ── what the programs tell
//! is_attached, attach_again ── somebody may detach the programs
//! detach ────────── every trace removed
//! ```
//!
//! Links and maps are pinned below `<bpf_dir>/<interface>/`, so that they outlive this process: a daemon that
//! is killed leaves its policy in force, and the next one adopts it. Where pins would not last ([`Pins`]) the
//! programs are attached so that they stay without. Programs without an image drop everything; at no moment is the
//! device open.

mod attach;
mod connections;
mod counters;
mod error;
mod events;
mod image;
mod net4;
mod net6;
mod nets;
mod object;
mod short_cut;

use std::path::{Path, PathBuf};

use aya::Ebpf;
use aya::maps::{Array, ArrayOfMaps, Map, MapData};
use aya::programs::{SchedClassifier, TestRun, TestRunOptions, TestRunResult};
use ghostwire_ebpf_abi::config::Config;
use ghostwire_ebpf_abi::event::Direction;

use crate::bpf::{Wire, bpffs};

pub use crate::bpf::{Attach, Attachment, BpfError, Origin, Pins};
pub use connections::Connection;
pub use counters::Counters;
pub use error::AclError;
pub use events::{Event, Events};
pub use image::{Image, InstallTimings};
pub use object::OBJECT;

/// How to load the programs.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How to attach them.
    pub attach: Attach,
    /// IPv4 connections that are remembered; the least recently used make room.
    pub connections4: u32,
    /// IPv6 connections that are remembered.
    pub connections6: u32,
    /// Bytes in front of the IP header. 0 but for `BPF_PROG_TEST_RUN`, which insists on an Ethernet header.
    pub l3_offset: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self { attach: Attach::Auto, connections4: 131_072, connections6: 65_536, l3_offset: 0 }
    }
}

/// The access control of one interface.
pub struct Acl {
    interface: String,
    dir: PathBuf,
    origin: Origin,
    attachment: Attachment,
    /// Numbers of the programs of both directions.
    programs: [u32; 2],
    pins: Pins,
    ebpf: Ebpf,
    images: image::Images,
    config: Array<MapData, Wire<Config>>,
}

impl std::fmt::Debug for Acl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Acl")
            .field("interface", &self.interface)
            .field("dir", &self.dir)
            .field("origin", &self.origin)
            .field("attachment", &self.attachment)
            .finish_non_exhaustive()
    }
}

impl Acl {
    /// Loads the programs and attaches them to an interface, or adopts what an earlier process left. Programs
    /// already attached are replaced atomically.
    pub fn open_or_create(interface: &str, bpf_dir: &Path, options: &Options) -> Result<Self, AclError> {
        bpffs::ensure_mounted(bpf_dir)?;
        let dir = bpffs::interface_dir(bpf_dir, interface)?;
        attach::refuse_others(interface, &dir)?;
        let (mut ebpf, origin) = object::load(&dir, options)?;
        let pins = bpffs::pins(&dir);
        let (attachment, programs) = attach::attach(&mut ebpf, interface, &dir, options.attach, &pins)?;
        let images = ArrayOfMaps::try_from(take(&mut ebpf, "IMAGE")?)?;
        let config = Array::try_from(take(&mut ebpf, "CONFIG")?)?;
        let interface = interface.to_owned();
        let mut acl = Self { interface, dir, origin, attachment, programs, pins, ebpf, images, config };
        if acl.origin != Origin::Adopted {
            acl.set_config(&Config::DEFAULT)?;
        }
        tracing::debug!(interface = %acl.interface, origin = ?acl.origin, attachment = ?acl.attachment, "access control is in place");
        Ok(acl)
    }

    /// What was found.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// How the programs are attached.
    pub fn attachment(&self) -> Attachment {
        self.attachment
    }

    /// Whether pins outlive this process. If not, the programs stay attached all the same, but the next process makes
    /// its maps anew.
    pub fn pins(&self) -> &Pins {
        &self.pins
    }

    /// Whether the programs are where they were attached. Asks the calling thread's network namespace; a few system
    /// calls.
    pub fn is_attached(&self) -> Result<bool, AclError> {
        attach::are_attached(&self.interface, self.attachment, self.programs)
    }

    /// Attaches again what somebody has detached. What passed meanwhile was not judged; what passes from now on is,
    /// whether it belongs to something that began meanwhile or not.
    pub fn attach_again(&mut self) -> Result<(), AclError> {
        let wanted = match self.attachment {
            Attachment::Tcx => Attach::Auto,
            Attachment::Clsact => Attach::Clsact,
        };
        // The folder may be gone with the pins.
        bpffs::ensure_mounted(&self.dir)?;
        bpffs::create(&self.dir)?;
        (self.attachment, self.programs) =
            attach::attach(&mut self.ebpf, &self.interface, &self.dir, wanted, &self.pins)?;
        Ok(())
    }

    /// The knobs in force.
    pub fn config(&self) -> Result<Config, AclError> {
        Ok(self.config.get(&0, 0)?.0)
    }

    /// Changes the knobs.
    pub fn set_config(&mut self, config: &Config) -> Result<(), AclError> {
        self.config.set(0, Wire(*config), 0)?;
        image::set_sampling(&self.images, config.accept_sample != 0)
    }

    /// Removes every trace of the programs from an interface: links, filters, pins, folders. Without them the
    /// device passes everything: bring it down first.
    pub fn detach(self) -> Result<(), AclError> {
        let Self { interface, dir, .. } = self;
        Self::remove_from(&interface, &dir)
    }

    /// [`Acl::detach`] for what another process left, without loading anything. Nothing there is no error, and what
    /// serves an interface of another network namespace stays.
    pub fn remove(interface: &str, bpf_dir: &Path) -> Result<(), AclError> {
        Self::remove_from(interface, &bpf_dir.join(bpffs::folder_name(interface)))
    }

    fn remove_from(interface: &str, dir: &Path) -> Result<(), AclError> {
        attach::detach(interface, dir)
    }

    /// Runs a program on a packet (with an Ethernet header in front, see [`Options::l3_offset`]).
    pub fn test_run(
        &self,
        direction: Direction,
        options: TestRunOptions<'_>,
    ) -> Result<TestRunResult, AclError> {
        Ok(self.program(direction)?.test_run(options)?)
    }

    /// The program of a direction.
    pub fn program(&self, direction: Direction) -> Result<&SchedClassifier, AclError> {
        let name = object::program_name(direction);
        let program = self.ebpf.program(name).ok_or(BpfError::Object { what: name })?;
        Ok(program.try_into()?)
    }

    fn map(&self, name: &'static str) -> Result<&Map, AclError> {
        Ok(self.ebpf.map(name).ok_or(BpfError::Object { what: name })?)
    }
}

fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<Map, AclError> {
    Ok(ebpf.take_map(name).ok_or(BpfError::Object { what: name })?)
}
