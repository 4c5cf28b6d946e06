//! What a program or a kernel module needs beside itself: shared libraries (`ldd`) and other modules
//! (`modprobe --show-depends`).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::setup::Kernel;
use crate::workspace;

/// The shared libraries and the loader of these programs. Static programs need none.
pub(super) fn libraries(programs: &[PathBuf]) -> Result<BTreeSet<PathBuf>> {
    if programs.is_empty() {
        return Ok(BTreeSet::new());
    }
    // ldd's exit code is 1 as soon as one of the programs is static.
    let output = Command::new("ldd").args(programs).output().context("cannot start ldd")?;
    let text = String::from_utf8_lossy(&output.stdout);
    parse_ldd(&text).with_context(|| format!("cannot copy {} into a virtual machine", list(programs)))
}

fn list(programs: &[PathBuf]) -> String {
    programs.iter().map(|program| program.display().to_string()).collect::<Vec<_>>().join(", ")
}

fn parse_ldd(text: &str) -> Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    for line in text.lines().filter(|line| line.starts_with('\t')) {
        let line = line.trim();
        let path = match line.split_once(" => ") {
            Some((name, "not found")) => bail!("the shared library {name} is not installed on this host"),
            Some((_, path)) => path,
            None => line,
        };
        let path = path.split(" (").next().unwrap_or(path);
        if path.starts_with('/') {
            found.insert(PathBuf::from(path));
        }
    }
    Ok(found)
}

/// The files of kernel modules and of those that they depend on, in loading order. Modules that are
/// built in, or that this kernel does not have, are left out.
pub(super) fn modules(kernel: &Kernel, names: &[&str]) -> Result<Vec<PathBuf>> {
    let modprobe = workspace::find_program("modprobe").context("modprobe is missing (package kmod)")?;
    let mut found = Vec::new();
    for name in names {
        let output = Command::new(&modprobe)
            .arg("-d")
            .arg(&kernel.root)
            .args(["-S", &kernel.release, "--show-depends", name])
            .output()
            .context("cannot start modprobe")?;
        for path in parse_modprobe(&String::from_utf8_lossy(&output.stdout)) {
            if !found.contains(&path) {
                found.push(path);
            }
        }
    }
    Ok(found)
}

fn parse_modprobe(text: &str) -> impl Iterator<Item = PathBuf> {
    let files = text.lines().filter_map(|line| line.strip_prefix("insmod ")?.split_whitespace().next());
    files.map(|path| Path::new(path).to_path_buf())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_and_the_loader_are_found_in_ldds_output() {
        let text = "/usr/bin/a:\n\tlinux-vdso.so.1 (0x00007ffe)\n\tlibc.so.6 => /lib/x/libc.so.6 (0x00007f)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n/usr/bin/b:\n\tnot a dynamic executable\n";
        let found = parse_ldd(text).unwrap();
        assert_eq!(
            found.into_iter().collect::<Vec<_>>(),
            [PathBuf::from("/lib/x/libc.so.6"), PathBuf::from("/lib64/ld-linux-x86-64.so.2")]
        );
        assert!(parse_ldd("a:\n\tlibz.so.1 => not found\n").is_err());
    }

    #[test]
    fn built_in_modules_need_no_file() {
        let text = "builtin tun\ninsmod /k/lib/modules/1/a.ko \ninsmod /k/lib/modules/1/b.ko.xz opt=1\n";
        let files: Vec<_> = parse_modprobe(text).collect();
        assert_eq!(
            files,
            [PathBuf::from("/k/lib/modules/1/a.ko"), PathBuf::from("/k/lib/modules/1/b.ko.xz")]
        );
    }
}
