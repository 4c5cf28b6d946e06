//! Calls of cargo: the one that runs xtask, in this workspace, and what its JSON messages tell.

use std::collections::BTreeMap;
use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::command::Step;
use crate::workspace;

/// `cargo SUBCOMMAND` in the workspace root. What `cargo run` told xtask about its own package is not passed on:
/// build scripts that watch these variables would run again whenever a build inside xtask follows one outside.
pub(crate) fn command(subcommand: &str) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.arg(subcommand).current_dir(workspace::root());
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(describes_a_package) {
            command.env_remove(name);
        }
    }
    command
}

fn describes_a_package(variable: &str) -> bool {
    ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|prefix| variable.starts_with(prefix))
}

/// What a user runs, as (package, binary).
pub(crate) const BINARIES: [(&str, &str); 4] = [
    ("ghostwire-server", "ghostwire-server"),
    ("ghostwire-client", "ghostwire-client"),
    ("ghostwire-relay", "ghostwire-relay"),
    ("gwctl", "gwctl"),
];

/// An executable that cargo built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Executable {
    /// The package that it belongs to.
    pub(crate) package: String,
    /// The directory of that package's manifest; cargo runs tests there.
    pub(crate) directory: PathBuf,
    /// The target's name: a crate, a test file or a binary.
    pub(crate) target: String,
    /// Whether it is a test harness.
    pub(crate) test: bool,
    /// The file.
    pub(crate) path: PathBuf,
}

/// Runs a cargo command that builds, and returns the executables it made or found fresh.
pub(crate) fn build(label: &str, mut command: Command) -> Result<Vec<Executable>> {
    command.arg("--message-format=json-render-diagnostics");
    let messages = Step::new(label, command).remedy("mend what the compiler reports above").run()?;
    executables(&messages)
}

/// Builds binaries, given as (package, name), and returns their paths in the same order. The whole workspace
/// is selected, which decides the features of dependencies: they are shared with the tests' build.
pub(crate) fn build_binaries<const N: usize>(
    binaries: [(&str, &str); N],
    release: bool,
) -> Result<[PathBuf; N]> {
    let mut build_command = command("build");
    build_command.arg("--workspace");
    for (_, name) in binaries {
        build_command.args(["--bin", name]);
    }
    if release {
        build_command.arg("--release");
    }
    let built = build(&format!("build {}", binaries.map(|(_, name)| name).join(", ")), build_command)?;
    let mut paths = binaries.map(|_| PathBuf::new());
    for (path, (package, name)) in paths.iter_mut().zip(binaries) {
        match built.iter().find(|executable| executable.target == name) {
            Some(executable) => path.clone_from(&executable.path),
            None => bail!("cargo built the package {package} but reported no executable named {name}"),
        }
    }
    Ok(paths)
}

fn executables(messages: &str) -> Result<Vec<Executable>> {
    let mut found = BTreeMap::new();
    for line in messages.lines().filter(|line| line.starts_with('{')) {
        let message: Value = serde_json::from_str(line).context("cargo printed a message that is no JSON")?;
        if message["reason"] != "compiler-artifact" {
            continue;
        }
        let (Some(path), Some(manifest), Some(target)) = (
            message["executable"].as_str(),
            message["manifest_path"].as_str(),
            message["target"]["name"].as_str(),
        ) else {
            continue;
        };
        let directory = Path::new(manifest).parent().unwrap_or_else(|| Path::new(".")).to_path_buf();
        let executable = Executable {
            package: package_name(message["package_id"].as_str().unwrap_or_default()),
            directory,
            target: target.to_owned(),
            test: message["profile"]["test"].as_bool().unwrap_or(false),
            path: PathBuf::from(path),
        };
        found.insert((executable.package.clone(), executable.test, path.to_owned()), executable);
    }
    Ok(found.into_values().collect())
}

/// The name in a package id such as `path+file:///x/gwctl#0.1.0` or `path+file:///x/server#name@0.1.0`.
fn package_name(id: &str) -> String {
    let (source, fragment) = id.rsplit_once('#').unwrap_or(("", id));
    match fragment.split_once('@') {
        Some((name, _)) => name.to_owned(),
        None => source.rsplit('/').next().unwrap_or(fragment).to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn package_ids_yield_names_in_both_spellings() {
        assert_eq!(package_name("path+file:///x/userspace/gwctl#0.1.0"), "gwctl");
        assert_eq!(
            package_name("path+file:///x/coordinator/server#ghostwire-server@0.1.0"),
            "ghostwire-server"
        );
    }

    #[test]
    fn only_executables_are_taken_from_the_messages() {
        let messages = concat!(
            r#"{"reason":"compiler-artifact","package_id":"path+file:///x/a#0.1.0","manifest_path":"/x/a/Cargo.toml","target":{"name":"a"},"profile":{"test":true},"executable":"/t/a-1"}"#,
            "\n",
            r#"{"reason":"compiler-artifact","package_id":"path+file:///x/a#0.1.0","manifest_path":"/x/a/Cargo.toml","target":{"name":"a"},"profile":{"test":false},"executable":null}"#,
            "\n",
            r#"{"reason":"build-finished","success":true}"#,
            "\n",
        );
        let expected = Executable {
            package: "a".into(),
            directory: "/x/a".into(),
            target: "a".into(),
            test: true,
            path: "/t/a-1".into(),
        };
        assert_eq!(executables(messages).unwrap(), [expected]);
    }
}
