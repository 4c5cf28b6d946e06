//! `cargo xtask conformance DIR`: policy case files against the policy engine. The work is done by a
//! binary of the policy crate, so that xtask itself stays quick to build.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};

use crate::cargo;
use crate::vm::exit_code;

/// Options of `cargo xtask conformance`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// A folder with case files, searched with its subfolders
    directory: PathBuf,
}

/// `cargo xtask conformance`.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let directory = arguments.directory.canonicalize().with_context(|| {
        format!(
            "cannot open the folder {}\n  what to do: give a folder with case files",
            arguments.directory.display()
        )
    })?;
    let [program] = cargo::build_binaries([("ghostwire-policy", "conformance")], false)?;
    let status = std::process::Command::new(&program)
        .arg(directory)
        .status()
        .with_context(|| format!("cannot start {}", program.display()))?;
    Ok(exit_code(status.code()))
}
