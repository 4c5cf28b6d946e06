//! `cargo xtask dist`: what a user installs. Static binaries without symbols, shell completions and
//! checksums, each binary started once before it is called good.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};

use crate::cargo;
use crate::command::Step;
use crate::setup::{self, Part};
use crate::workspace;

const BINARIES: [&str; 4] = ["ghostwire-server", "ghostwire-client", "ghostwire-relay", "gwctl"];
/// Shells and what their completion files are called.
const SHELLS: [(&str, &str); 3] = [("bash", "gwctl.bash"), ("zsh", "_gwctl"), ("fish", "gwctl.fish")];
/// Naming the target keeps the static linking flag away from build scripts and procedural macros.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Options of `cargo xtask dist`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {}

/// `cargo xtask dist`.
pub(crate) fn run(_: &Arguments) -> Result<ExitCode> {
    setup::ensure(&[Part::Build])?;
    let directory = workspace::target().join("dist");
    if directory.exists() {
        fs::remove_dir_all(&directory).with_context(|| format!("cannot empty {}", directory.display()))?;
    }
    fs::create_dir_all(directory.join("completions"))
        .with_context(|| format!("cannot create {}", directory.display()))?;
    let built = build()?;
    for name in BINARIES {
        let program = built
            .iter()
            .find(|path| path.ends_with(name))
            .with_context(|| format!("cargo built no {name}"))?;
        let copy = directory.join(name);
        fs::copy(program, &copy)
            .with_context(|| format!("cannot copy {} to {}", program.display(), copy.display()))?;
        verify(&copy)?;
    }
    completions(&directory)?;
    for file in ["LICENSE-APACHE", "LICENSE-MIT"] {
        fs::copy(workspace::root().join(file), directory.join(file))
            .with_context(|| format!("cannot copy {file}"))?;
    }
    let sums = checksums(&directory)?;
    println!("{}:\n{sums}", directory.display());
    Ok(ExitCode::SUCCESS)
}

fn build() -> Result<Vec<PathBuf>> {
    let mut command = cargo::command("build");
    command.args(["--release", "--target", TARGET]);
    for name in BINARIES {
        command.args(["--bin", name]);
    }
    command.env("CARGO_PROFILE_RELEASE_STRIP", "symbols");
    command.env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS", "-C target-feature=+crt-static");
    Ok(cargo::build("build the release binaries", command)?
        .into_iter()
        .map(|executable| executable.path)
        .collect())
}

/// A binary is good when it needs no shared library and starts.
fn verify(program: &Path) -> Result<()> {
    let output = Command::new("ldd").arg(program).output().context("cannot start ldd")?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    if !said.contains("statically linked") && !said.contains("not a dynamic executable") {
        bail!("{} is not static:\n{said}", program.display());
    }
    let mut start = Command::new(program);
    start.arg("--version");
    Step::new(format!("start {}", program.display()), start).run()?;
    Ok(())
}

fn completions(directory: &Path) -> Result<()> {
    for (shell, file) in SHELLS {
        let mut command = Command::new(directory.join("gwctl"));
        command.args(["completions", shell]);
        let text = Step::new(format!("make the completions for {shell}"), command).run()?;
        let path = directory.join("completions").join(file);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn checksums(directory: &Path) -> Result<String> {
    let mut command = Command::new("sha256sum");
    command.args(BINARIES).current_dir(directory);
    let sums = Step::new("make the checksums", command).run()?;
    let path = directory.join("SHA256SUMS");
    fs::write(&path, &sums).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(sums)
}
