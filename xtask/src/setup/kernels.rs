//! Debian's packaged kernels, unpacked into the cache directory. Versions disappear from the archive, so
//! each is found through the meta-package of its suite; the newest is the newest among several suites.

use std::fmt;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

use anyhow::{Context as _, Error, Result, bail};

use super::suite::{Control, Suite, is_newer};
use crate::command::Step;
use crate::progress::Progress;
use crate::workspace;

/// The flavour without drivers for real hardware: everything we need, a third of the size.
const META_PACKAGE: &str = "linux-image-cloud-amd64";

/// A kernel of the test matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum KernelName {
    /// The oldest supported: clsact instead of tcx.
    V6_1,
    /// The first long-term kernel with tcx.
    V6_12,
    /// The newest that Debian packages.
    Newest,
}

/// An unpacked kernel.
#[derive(Clone, Debug)]
pub(crate) struct Kernel {
    /// Its place in the matrix.
    pub(crate) name: KernelName,
    /// What `uname -r` says in it.
    pub(crate) release: String,
    /// The directory that holds `lib/modules/RELEASE`.
    pub(crate) root: PathBuf,
    /// The image to boot.
    pub(crate) image: PathBuf,
}

impl KernelName {
    /// The whole matrix, oldest first.
    pub(crate) const ALL: [Self; 3] = [Self::V6_1, Self::V6_12, Self::Newest];

    fn suites(self) -> &'static [&'static str] {
        match self {
            Self::V6_1 => &["bookworm"],
            Self::V6_12 => &["bookworm-backports"],
            Self::Newest => &["trixie-backports", "sid"],
        }
    }
}

impl fmt::Display for KernelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
            Self::Newest => "newest",
        })
    }
}

impl FromStr for KernelName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match Self::ALL.into_iter().find(|name| name.to_string() == text) {
            Some(name) => Ok(name),
            None => bail!("no such kernel: the matrix has 6.1, 6.12 and newest"),
        }
    }
}

fn home(name: KernelName) -> Result<PathBuf> {
    Ok(workspace::cache()?.join("kernels").join(name.to_string()))
}

/// Lets the next [`ensure`] look for the current versions.
pub(super) fn forget() -> Result<()> {
    let directory = workspace::cache()?.join("kernels");
    match fs::remove_dir_all(&directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", directory.display()))
        }
        _ => Ok(()),
    }
}

/// Returns the kernel, fetching it when it is not there or not whole.
pub(super) fn ensure(name: KernelName) -> Result<Kernel> {
    if let Some(kernel) = installed(name)? {
        return Ok(kernel);
    }
    let progress = Progress::start(format!("fetch kernel {name} for virtual machines"));
    fetch(name, &progress).with_context(|| format!("cannot get kernel {name} for virtual machines"))?;
    match installed(name)? {
        Some(kernel) => {
            progress.done_with(&kernel.release);
            Ok(kernel)
        }
        None => bail!(
            "the packages of kernel {name} do not hold a kernel image and a WireGuard module where expected"
        ),
    }
}

/// The kernel in the cache, when everything of it that we use is there.
fn installed(name: KernelName) -> Result<Option<Kernel>> {
    let root = home(name)?;
    let modules = root.join("lib/modules");
    let releases = fs::read_dir(&modules)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    for release in releases {
        let tree = modules.join(&release);
        // Until 6.x the image is in /boot; from 7.x it lies beside the modules.
        let images = [root.join("boot").join(format!("vmlinuz-{release}")), tree.join("vmlinuz")];
        let image = images.into_iter().find(|image| image.is_file());
        let whole =
            ["modules.dep.bin", "kernel/drivers/net/wireguard"].iter().all(|part| tree.join(part).exists());
        if let (Some(image), true) = (image, whole) {
            return Ok(Some(Kernel { name, release, root, image }));
        }
    }
    Ok(None)
}

fn fetch(name: KernelName, progress: &Progress) -> Result<()> {
    let (suite, meta) = newest_of(name.suites(), progress)?;
    let packages = parts(&suite, &meta)?;
    let root = home(name)?;
    suite.unpack(&packages, &root, progress)?;
    if !root.join("lib").exists() {
        symlink("usr/lib", root.join("lib"))
            .with_context(|| format!("cannot link {}/lib", root.display()))?;
    }
    let modules = root.join("lib/modules");
    let entries =
        fs::read_dir(&modules).with_context(|| format!("no modules under {}", modules.display()))?;
    for entry in entries {
        let release = entry.with_context(|| format!("cannot list {}", modules.display()))?.file_name();
        depmod(&root, &release.to_string_lossy(), progress)?;
    }
    Ok(())
}

/// Indexes the modules under `root`.
fn depmod(root: &Path, release: &str, progress: &Progress) -> Result<()> {
    let mut command = Command::new(workspace::find_program("depmod").unwrap_or_else(|| "depmod".into()));
    command.arg("-b").arg(root).arg(release);
    Step::new(format!("index the modules of {release}"), command).run_under(progress)?;
    Ok(())
}

/// The suite with the newest kernel; one that cannot be reached only matters when none can.
fn newest_of(names: &[&str], progress: &Progress) -> Result<(Suite, Control)> {
    let mut best: Option<(Suite, Control)> = None;
    let mut last_error = None;
    for name in names {
        match Suite::open(name, progress).and_then(|suite| Ok((suite.show(META_PACKAGE)?, suite))) {
            Ok((meta, suite)) => {
                if best.as_ref().is_none_or(|(_, other)| is_newer(&meta.version, &other.version)) {
                    best = Some((suite, meta));
                }
            }
            Err(error) => last_error = Some(error),
        }
    }
    best.ok_or_else(|| last_error.unwrap_or_else(|| Error::msg("no suite to look in")))
}

/// The packages behind a kernel meta-package that hold files: image, and from 7.x binary, modules, base.
fn parts(suite: &Suite, meta: &Control) -> Result<Vec<String>> {
    let mut found: Vec<String> = Vec::new();
    let mut waiting = meta.depends.clone();
    while let Some(package) = waiting.pop() {
        let ours = ["linux-image-", "linux-binary-", "linux-modules-", "linux-base-"];
        if !ours.iter().any(|prefix| package.starts_with(prefix)) || found.contains(&package) {
            continue;
        }
        waiting.extend(suite.show(&package)?.depends);
        found.push(package);
    }
    found.sort_unstable();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_named_as_on_the_command_line() {
        assert_eq!("6.12".parse::<KernelName>().unwrap(), KernelName::V6_12);
        assert!("5.4".parse::<KernelName>().is_err());
    }
}
