//! Whether pinned maps are those that the programs expect: a map of another shape, reused unseen, would be a
//! policy or a path misread.

use std::path::Path;

use aya::maps::{MapInfo, MapType};
use aya_obj::generated::bpf_map_type;
use aya_obj::{EbpfSectionKind, Object};

use super::object::Source;
use super::{BpfError, Origin};

/// Shape of a map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) name: String,
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
}

/// Shapes of all maps that are pinned, from the object.
pub(crate) fn expected(source: &Source<'_>) -> Result<Vec<Shape>, BpfError> {
    let object = Object::parse(source.object).map_err(|error| BpfError::from(aya::EbpfError::from(error)))?;
    let mut shapes: Vec<Shape> = object
        .maps
        .iter()
        .filter(|(_, map)| matches!(map.section_kind(), EbpfSectionKind::BtfMaps | EbpfSectionKind::Maps))
        .map(|(name, map)| {
            let chosen = source.sizes.iter().find(|(sized, _)| sized == name).map(|(_, entries)| *entries);
            let is_ring = map.map_type() == bpf_map_type::BPF_MAP_TYPE_RINGBUF as u32;
            Shape {
                name: name.clone(),
                map_type: map.map_type(),
                key_size: map.key_size(),
                value_size: if is_ring { 0 } else { map.value_size() },
                max_entries: chosen.unwrap_or_else(|| map.max_entries()),
                flags: map.map_flags(),
            }
        })
        .collect();
    shapes.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(shapes)
}

/// Compares the pinned maps with the expected ones.
pub(crate) fn compare(dir: &Path, map_dir: &Path, expected: &[Shape]) -> Origin {
    if !map_dir.exists() {
        let others = std::fs::read_dir(dir).is_ok_and(|entries| {
            entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with("maps-"))
        });
        return if others {
            Origin::Replaced("they are of another version's layout".to_owned())
        } else {
            Origin::Created
        };
    }
    for shape in expected {
        if let Err(difference) = compare_one(&map_dir.join(&shape.name), shape) {
            return Origin::Replaced(format!("map {}: {difference}", shape.name));
        }
    }
    Origin::Adopted
}

fn compare_one(path: &Path, shape: &Shape) -> Result<(), String> {
    let found = MapInfo::from_pin(path).map_err(|error| format!("cannot be opened: {error}"))?;
    let expected_type =
        bpf_map_type::try_from(shape.map_type).ok().and_then(|kind| MapType::try_from(kind).ok());
    if found.map_type().ok() != expected_type {
        return Err("has another type".to_owned());
    }
    for (what, found, expected) in [
        ("key size", found.key_size(), shape.key_size),
        ("value size", found.value_size(), shape.value_size),
        ("capacity", found.max_entries(), shape.max_entries),
        ("flags", found.map_flags(), shape.flags),
    ] {
        if found != expected {
            return Err(format!("{what} is {found}, expected {expected}"));
        }
    }
    Ok(())
}
