//! The test programs on this host, one after the other, each in its package's directory as `cargo test`
//! does it. Their output goes to a log; of a failed one the end is shown.

use std::fs::{self, File};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result};

use super::summary::Summary;
use super::{Outcome, Stage};
use crate::cargo::Executable;
use crate::progress::Progress;
use crate::workspace;

/// A test program that takes longer hangs.
const TIMEOUT_SECONDS: u32 = 900;
/// How much of a failed program's output is shown.
const SHOWN_LINES: usize = 150;

/// Runs every test program.
pub(super) fn run(executables: &[Executable]) -> Result<Stage> {
    let started = Instant::now();
    let progress = Progress::start("tests on this host");
    let (details, mut total) = (progress.details(), Summary::default());
    for test in executables.iter().filter(|executable| executable.test) {
        details.set(&format!("{} {}", test.package, test.target));
        total = total + run_one(test)?;
    }
    progress.done_with(&total.to_string());
    Ok(Stage {
        name: "tests on this host".into(),
        outcome: Outcome::Tests(total),
        elapsed: started.elapsed(),
    })
}

fn run_one(test: &Executable) -> Result<Summary> {
    let name = format!("{} {}", test.package, test.target);
    let path = workspace::scratch("test")?.join(format!("{}.log", name.replace(' ', "-")));
    let log = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    let errors = log.try_clone().with_context(|| format!("cannot write {} twice", path.display()))?;
    // `timeout` puts the program into a process group of its own, so that what it started ends with it; and
    // it ends when xtask does, which a Ctrl-C would otherwise not achieve.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM", "--", "timeout", "--kill-after=10", &TIMEOUT_SECONDS.to_string()]);
    command.arg(&test.path);
    command.current_dir(&test.directory);
    command.env("CARGO_MANIFEST_DIR", &test.directory).env("RUST_BACKTRACE", "1");
    command.env("GHOSTWIRE_BIN_DIR", workspace::target().join("debug"));
    command.stdin(Stdio::null()).stdout(log).stderr(errors);
    let status = command.status().with_context(|| format!("cannot start {}", test.path.display()))?;
    let output = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let output: Vec<String> = String::from_utf8_lossy(&output).lines().map(str::to_owned).collect();
    let summary = Summary::of_job(&output, status.code()).within(&name);
    if summary.failed > 0 {
        show_failure(&name, &output);
        eprintln!("  all of it: {}", path.display());
    }
    Ok(summary)
}

/// Shows the end of a failed program's output.
pub(super) fn show_failure(name: &str, output: &[String]) {
    eprintln!("\n✗ {name}: the end of its output:");
    for line in &output[output.len().saturating_sub(SHOWN_LINES)..] {
        eprintln!("    {line}");
    }
}
