//! Removes what a demonstration created, by the prefix of its names.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use ghostwire_tests::netns::{ip, reap};

fn namespaces(id: &str) -> Result<Vec<String>> {
    let prefix = format!("{id}-");
    Ok(ip(&["netns", "list"])?
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| name.starts_with(&prefix))
        .map(str::to_owned)
        .collect())
}

fn entries(parent: &str, prefix: &str) -> Vec<PathBuf> {
    let Ok(list) = std::fs::read_dir(parent) else { return Vec::new() };
    list.flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .map(|entry| entry.path())
        .collect()
}

/// Where the demonstration keeps its files, so that it can be found again.
pub(crate) fn marker(id: &str) -> PathBuf {
    Path::new("/run").join(format!("{id}.dir"))
}

/// Whether anything of a demonstration is there.
pub(crate) fn exists(id: &str) -> Result<bool> {
    Ok(!namespaces(id)?.is_empty())
}

/// Ends its processes, deletes its namespaces, pins and files.
pub(crate) fn everything(id: &str) -> Result<()> {
    for name in namespaces(id)? {
        reap(&name)?;
        ip(&["netns", "del", &name])?;
    }
    for pins in entries("/sys/fs/bpf", &format!("{id}-")) {
        std::fs::remove_dir_all(&pins).with_context(|| format!("remove {}", pins.display()))?;
    }
    if let Ok(dir) = std::fs::read_to_string(marker(id)) {
        if Path::new(&dir).exists() {
            std::fs::remove_dir_all(&dir).with_context(|| format!("remove {dir}"))?;
        }
        std::fs::remove_file(marker(id))?;
    }
    Ok(())
}
