//! The embedded object: loaded, with the maps of an earlier process where they fit.

use std::path::Path;

use aya::programs::SchedClassifier;
use aya::{Ebpf, EbpfLoader};
use ghostwire_ebpf_abi::event::Direction;

use super::{AclError, Options, Origin, bpffs, layout};

/// The eBPF object, as the build made it from source.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("GHOSTWIRE_EBPF_OBJECT"));

/// Name of the program of a direction.
pub(super) const fn program_name(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "acl_ingress",
        Direction::Egress => "acl_egress",
    }
}

/// Sizes that the options choose.
pub(super) fn sizes(options: &Options) -> [(&'static str, u32); 2] {
    [("CONN4", options.connections4), ("CONN6", options.connections6)]
}

/// Loads the programs into the kernel, with pinned maps.
pub(super) fn load(dir: &Path, options: &Options) -> Result<(Ebpf, Origin), AclError> {
    let expected = layout::expected(options)?;
    let map_dir = bpffs::map_dir(dir);
    let origin = layout::compare(dir, &map_dir, &expected);
    if origin != Origin::Adopted {
        if let Origin::Replaced(reason) = &origin {
            tracing::warn!(dir = %dir.display(), reason, "replacing eBPF maps: everything is dropped until a policy is installed");
        }
        bpffs::remove_maps(dir)?;
        bpffs::create(&map_dir)?;
    }
    let mut loader = EbpfLoader::new();
    loader.override_global("L3_OFFSET", &options.l3_offset, true);
    for (name, entries) in sizes(options) {
        loader.map_max_entries(name, entries);
    }
    for map in &expected {
        loader.map_pin_path(&map.name, map_dir.join(&map.name));
    }
    let mut ebpf = loader.load(OBJECT)?;
    for direction in [Direction::Ingress, Direction::Egress] {
        let name = program_name(direction);
        let program = ebpf.program_mut(name).ok_or(AclError::Object { what: name })?;
        let program: &mut SchedClassifier = program.try_into()?;
        program.load()?;
    }
    Ok((ebpf, origin))
}
