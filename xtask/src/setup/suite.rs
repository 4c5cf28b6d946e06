//! Packages of a Debian suite that is not the host's: own package lists in the cache directory, downloads
//! that are unpacked there and never installed. The host's apt state is not touched; root is not needed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::debian::Archive;
use crate::command::Step;
use crate::progress::Progress;
use crate::workspace;

/// A suite whose package lists are at hand.
#[derive(Debug)]
pub(super) struct Suite {
    name: String,
    /// `None`: the host's own apt configuration, which also knows security updates.
    state: Option<State>,
}

#[derive(Debug)]
struct State {
    source: PathBuf,
    directory: PathBuf,
}

/// What a package says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Control {
    /// Its name.
    pub(super) package: String,
    /// Its version.
    pub(super) version: String,
    /// The names of the packages that it depends on; of alternatives, the first.
    pub(super) depends: Vec<String>,
}

impl Suite {
    /// Opens a suite and fetches its package lists.
    pub(super) fn open(name: &str, progress: &Progress) -> Result<Self> {
        let archive = Archive::of_host()?;
        if archive.codename == name {
            let own = Self { name: name.to_owned(), state: None };
            // A container image may come without any lists; then the suite gets its own, below.
            if own.show("linux-image-cloud-amd64").is_ok() {
                return Ok(own);
            }
        }
        let directory = workspace::cache()?.join("apt").join(name);
        fs::create_dir_all(directory.join("lists/partial"))
            .and_then(|()| fs::create_dir_all(directory.join("cache/archives/partial")))
            .with_context(|| format!("cannot create {}", directory.display()))?;
        let (extension, text) = archive.source_for(name);
        let source = directory.join("suite").with_extension(extension);
        fs::write(&source, text).with_context(|| format!("cannot write {}", source.display()))?;
        let suite = Self { name: name.to_owned(), state: Some(State { source, directory }) };
        let mut update = suite.apt("apt-get");
        update.args(["--quiet", "update"]);
        Step::new(format!("fetch the package lists of {name}"), update)
            .remedy("check that the Debian mirror in apt's sources can be reached and carries this suite")
            .run_under(progress)?;
        Ok(suite)
    }

    /// The newest version of a package.
    pub(super) fn show(&self, package: &str) -> Result<Control> {
        let output =
            self.apt("apt-cache").args(["show", package]).output().context("cannot start apt-cache")?;
        let text = String::from_utf8_lossy(&output.stdout);
        let versions = text.split("\n\n").filter_map(Control::parse);
        match versions
            .reduce(|newest, other| if is_newer(&other.version, &newest.version) { other } else { newest })
        {
            Some(control) => Ok(control),
            None => bail!("the suite {} has no package {package}", self.name),
        }
    }

    /// Downloads packages and unpacks them into `directory`.
    pub(super) fn unpack(&self, packages: &[String], directory: &Path, progress: &Progress) -> Result<()> {
        let downloads = directory.with_extension("downloads");
        recreate(&downloads)?;
        recreate(directory)?;
        let mut download = self.apt("apt-get");
        download.args(["--quiet", "download"]).args(packages).current_dir(&downloads);
        Step::new(format!("download {} from {}", packages.join(" "), self.name), download)
            .remedy("check that the Debian mirror in apt's sources can be reached")
            .run_under(progress)?;
        for entry in fs::read_dir(&downloads).context("cannot list the downloads")? {
            let file = entry.context("cannot list the downloads")?.path();
            let mut unpack = Command::new("dpkg-deb");
            unpack.arg("--extract").arg(&file).arg(directory);
            Step::new(format!("unpack {}", file.display()), unpack).run_under(progress)?;
        }
        fs::remove_dir_all(&downloads).with_context(|| format!("cannot remove {}", downloads.display()))
    }

    fn apt(&self, tool: &str) -> Command {
        let mut command = Command::new(tool);
        if let Some(State { source, directory }) = &self.state {
            let option = |name: &str, path: &Path| format!("{name}={}", path.display());
            command.arg("--option").arg(option("Dir::Etc::sourcelist", source));
            command.args(["--option", "Dir::Etc::sourceparts=-"]);
            command.arg("--option").arg(option("Dir::State::Lists", &directory.join("lists")));
            command.arg("--option").arg(option("Dir::Cache", &directory.join("cache")));
        }
        command
    }
}

/// Whether one Debian version is newer than another.
pub(super) fn is_newer(version: &str, than: &str) -> bool {
    let status = Command::new("dpkg").args(["--compare-versions", version, "gt", than]).status();
    status.is_ok_and(|status| status.success())
}

fn recreate(directory: &Path) -> Result<()> {
    if directory.exists() {
        fs::remove_dir_all(directory).with_context(|| format!("cannot remove {}", directory.display()))?;
    }
    fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))
}

impl Control {
    fn parse(stanza: &str) -> Option<Self> {
        let field = |name: &str| {
            stanza.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).map(str::to_owned)
        };
        let depends = field("Depends").unwrap_or_default();
        let names = depends.split(',').filter_map(|dependency| dependency.split_whitespace().next());
        Some(Self {
            package: field("Package")?,
            version: field("Version")?,
            depends: names.map(str::to_owned).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_stanzas_yield_the_names_of_dependencies() {
        let text = "Package: a\nVersion: 1:2-3\nDepends: b (= 1), c | d, e\nSize: 3";
        let control = Control::parse(text).unwrap();
        assert_eq!(control.version, "1:2-3");
        assert_eq!(control.depends, ["b", "c", "e"]);
    }
}
