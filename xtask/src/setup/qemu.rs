//! QEMU. Version 7.2, which bookworm has, makes newer kernels panic now and then under emulation, so
//! version 10 from bookworm-backports is unpacked into the cache; the shared libraries that it needs come
//! with the host's own qemu-system-x86. If that fails, the host's QEMU is used, with flags that avoid
//! what goes wrong in 7.2.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::packages;
use super::suite::Suite;
use crate::command::explain;
use crate::progress::Progress;
use crate::workspace;

/// From this version on, multi-threaded emulation is sound.
const SOUND_SINCE: u32 = 9;
const PACKAGES: [&str; 4] = ["qemu-system-x86", "qemu-system-common", "qemu-system-data", "seabios"];

/// An emulator that starts.
#[derive(Clone, Debug)]
pub(crate) struct Qemu {
    /// The program.
    pub(crate) program: PathBuf,
    /// Where its firmware is, when it is not installed in the system.
    pub(crate) firmware: Vec<PathBuf>,
    /// Its version, such as `10.0.2`.
    pub(crate) version: String,
}

impl Qemu {
    /// The accelerator and CPU flags that boot reliably with this version.
    pub(crate) fn machine_flags(&self) -> [&'static str; 4] {
        if major(&self.version) >= SOUND_SINCE {
            // Not `max`: its emulated SIMD makes veth three to five times slower.
            ["-accel", "tcg,thread=multi", "-cpu", "qemu64,+rdrand"]
        } else {
            // 7.2 oopses when static keys flip under several threads, and panics with cx16.
            ["-accel", "tcg,thread=single", "-cpu", "qemu64,-cx16,+rdrand"]
        }
    }

    fn starting_from(program: PathBuf, firmware: Vec<PathBuf>) -> Option<Self> {
        let output =
            Command::new(&program).arg("--version").output().ok().filter(|output| output.status.success())?;
        let version = version(&String::from_utf8_lossy(&output.stdout))?;
        Some(Self { program, firmware, version })
    }
}

fn version(text: &str) -> Option<String> {
    let rest = text.split_once("version ")?.1;
    Some(rest.split([' ', '\n']).next()?.to_owned())
}

fn major(version: &str) -> u32 {
    version.split('.').next().and_then(|major| major.parse().ok()).unwrap_or(0)
}

fn home() -> Result<PathBuf> {
    Ok(workspace::cache()?.join("qemu"))
}

/// Lets the next [`ensure`] look for the current version.
pub(super) fn forget() -> Result<()> {
    let directory = home()?;
    match fs::remove_dir_all(&directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", directory.display()))
        }
        _ => Ok(()),
    }
}

/// Returns an emulator, fetching it when there is none that is sound.
pub(super) fn ensure() -> Result<Qemu> {
    let home = home()?;
    if let Some(qemu) = unpacked(&home) {
        return Ok(qemu);
    }
    let own = match installed() {
        None => {
            packages::install(&["qemu-system-x86"])?;
            installed()
        }
        found => found,
    };
    if let Some(qemu) = own.as_ref().filter(|qemu| major(&qemu.version) >= SOUND_SINCE) {
        return Ok(qemu.clone());
    }
    let progress = Progress::start("fetch QEMU 10 for virtual machines");
    match fetch(&home, &progress) {
        Ok(qemu) => {
            progress.done_with(&qemu.version);
            Ok(qemu)
        }
        Err(error) => match own {
            Some(qemu) => {
                drop(progress);
                eprintln!(
                    "{}\n  using the installed QEMU {} with its slower, safe flags",
                    explain(&error),
                    qemu.version
                );
                Ok(qemu)
            }
            None => Err(error),
        },
    }
}

fn installed() -> Option<Qemu> {
    workspace::find_program("qemu-system-x86_64").and_then(|program| Qemu::starting_from(program, Vec::new()))
}

fn unpacked(home: &Path) -> Option<Qemu> {
    let firmware = ["usr/share/seabios", "usr/share/qemu"].map(|part| home.join(part));
    if !firmware.iter().all(|directory| directory.is_dir()) {
        return None;
    }
    Qemu::starting_from(home.join("usr/bin/qemu-system-x86_64"), firmware.into())
}

fn fetch(home: &Path, progress: &Progress) -> Result<Qemu> {
    let suite = Suite::open("bookworm-backports", progress)?;
    suite.unpack(&PACKAGES.map(str::to_owned), home, progress)?;
    match unpacked(home) {
        Some(qemu) => Ok(qemu),
        None => bail!(
            "the unpacked QEMU under {} does not start (are its shared libraries there?)",
            home.display()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_decides_about_the_flags() {
        let text = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)\nCopyright (c)";
        let version = version(text).unwrap();
        assert_eq!(version, "7.2.22");
        let qemu = Qemu { program: "q".into(), firmware: vec![], version };
        assert!(qemu.machine_flags().contains(&"tcg,thread=single"));
        let qemu = Qemu { version: "10.0.2".into(), ..qemu };
        assert!(qemu.machine_flags().contains(&"tcg,thread=multi"));
    }
}
