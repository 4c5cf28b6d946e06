//! The embedded object.

use std::path::Path;

use aya::Ebpf;
use ghostwire_ebpf_abi::event::Direction;
use ghostwire_ebpf_abi::image;

use super::{AclError, Options, Origin};
use crate::bpf::object::{self, Source};

/// The eBPF object, as the build made it from source.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("GHOSTWIRE_EBPF_OBJECT"));

/// Name of the program of a direction.
pub(super) const fn program_name(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "acl_ingress",
        Direction::Egress => "acl_egress",
    }
}

/// Number of the maps' layout.
pub(super) const LAYOUT: u64 = image::MAGIC & 0xff;

/// Loads the programs into the kernel, with pinned maps.
pub(super) fn load(dir: &Path, options: &Options) -> Result<(Ebpf, Origin), AclError> {
    let source = Source {
        object: OBJECT,
        programs: &[program_name(Direction::Ingress), program_name(Direction::Egress)],
        layout: LAYOUT,
        sizes: &[("CONN4", options.connections4), ("CONN6", options.connections6)],
        globals: &[("L3_OFFSET", options.l3_offset)],
    };
    Ok(object::load(dir, &source)?)
}
