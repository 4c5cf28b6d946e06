//! `cargo xtask bench NAME`: builds and runs one binary of the bench crate. A table goes to stdout and,
//! as its last line, one JSON object; everything about building goes to stderr.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};

use crate::cargo;
use crate::setup::{self, Part};
use crate::vm::exit_code;
use crate::workspace;

/// Benchmarks that start coordinators and nodes.
const WITH_MESH: [&str; 2] = ["paths", "quic"];

/// Options of `cargo xtask bench`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Which benchmark; without it the names are listed
    name: Option<String>,
    /// Arguments for the benchmark
    #[arg(last = true)]
    arguments: Vec<String>,
}

/// `cargo xtask bench`.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let known = names()?;
    let Some(name) = &arguments.name else {
        println!("{}", known.join("\n"));
        return Ok(ExitCode::SUCCESS);
    };
    if !known.contains(name) {
        bail!("there is no benchmark {name:?}\n  what to do: choose one of {}", known.join(", "));
    }
    setup::ensure(&[Part::Build, Part::Network, Part::Rivals])?;
    let program = build(name)?;
    let status = std::process::Command::new(&program)
        .args(&arguments.arguments)
        .current_dir(workspace::root())
        .status()
        .with_context(|| format!("cannot start {}", program.display()))?;
    Ok(exit_code(status.code()))
}

/// A benchmark of the whole mesh finds the daemons beside itself.
fn build(name: &str) -> Result<PathBuf> {
    let bench = ("ghostwire-bench", name);
    if !WITH_MESH.contains(&name) {
        let [program] = cargo::build_binaries([bench], true)?;
        return Ok(program);
    }
    let [server, client, relay, gwctl] = cargo::BINARIES;
    let [program, ..] = cargo::build_binaries([bench, server, client, relay, gwctl], true)?;
    Ok(program)
}

/// The binaries of the bench crate: `src/bin/NAME.rs` and `src/bin/NAME/main.rs`.
fn names() -> Result<Vec<String>> {
    let directory = workspace::root().join("bench/src/bin");
    let mut names = Vec::new();
    for entry in fs::read_dir(&directory).with_context(|| format!("cannot list {}", directory.display()))? {
        let path = entry.with_context(|| format!("cannot list {}", directory.display()))?.path();
        let is_source = path.extension().is_some_and(|extension| extension == "rs");
        if let (true, Some(stem)) = (is_source || path.join("main.rs").is_file(), path.file_stem()) {
            names.push(stem.to_string_lossy().into_owned());
        }
    }
    names.sort_unstable();
    Ok(names)
}
