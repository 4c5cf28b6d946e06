//! An embedded object: loaded, with the maps of an earlier process where they fit.

use std::path::Path;

use aya::programs::SchedClassifier;
use aya::{Ebpf, EbpfLoader};

use super::{BpfError, bpffs, layout};

/// What was found of an earlier process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nothing: everything is new and empty.
    Created,
    /// Its maps, with all that is in them.
    Adopted,
    /// Maps that do not fit these programs, with the reason. They were replaced by empty ones.
    Replaced(String),
}

/// An object, and how to load it.
pub(crate) struct Source<'a> {
    /// The ELF file.
    pub(crate) object: &'static [u8],
    /// Its programs.
    pub(crate) programs: &'a [&'static str],
    /// Number of the maps' layout.
    pub(crate) layout: u64,
    /// Maps whose size is not the object's.
    pub(crate) sizes: &'a [(&'static str, u32)],
    /// Constants.
    pub(crate) globals: &'a [(&'static str, u32)],
}

/// Loads the programs into the kernel, with maps pinned in a folder.
pub(crate) fn load(dir: &Path, source: &Source<'_>) -> Result<(Ebpf, Origin), BpfError> {
    let expected = layout::expected(source)?;
    let map_dir = bpffs::map_dir(dir, source.layout);
    let origin = layout::compare(dir, &map_dir, &expected);
    if origin != Origin::Adopted {
        if let Origin::Replaced(reason) = &origin {
            tracing::warn!(dir = %dir.display(), reason, "replacing eBPF maps: what was in them is gone, and nothing passes until they are filled");
        }
        bpffs::remove_maps(dir)?;
        bpffs::create(&map_dir)?;
    }
    let mut loader = EbpfLoader::new();
    for (name, value) in source.globals {
        loader.override_global(name, value, true);
    }
    for (name, entries) in source.sizes {
        loader.map_max_entries(name, *entries);
    }
    for map in &expected {
        loader.map_pin_path(&map.name, map_dir.join(&map.name));
    }
    let mut ebpf = loader.load(source.object)?;
    for name in source.programs {
        program(&mut ebpf, name)?.load()?;
    }
    Ok((ebpf, origin))
}

/// A program of a loaded object.
pub(crate) fn program<'a>(
    ebpf: &'a mut Ebpf,
    name: &'static str,
) -> Result<&'a mut SchedClassifier, BpfError> {
    let program = ebpf.program_mut(name).ok_or(BpfError::Object { what: name })?;
    Ok(program.try_into()?)
}
