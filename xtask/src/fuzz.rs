//! `cargo xtask fuzz`: builds the targets of the `fuzz` workspace with coverage and AddressSanitizer and runs each
//! for a while. What they find to be new is kept in the build directory and is where the next run begins.
//!
//! The compiler is the workspace's own: coverage and sanitizers are switched on as `cargo fuzz` does it on a
//! nightly, which a release compiler allows when it is told to (`RUSTC_BOOTSTRAP`).

use std::collections::VecDeque;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::cargo;
use crate::command::{Step, describe};
use crate::progress::{Progress, seconds};
use crate::setup::{self, Part};
use crate::workspace;

/// Options of `cargo xtask fuzz`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Which targets; all of them without any
    targets: Vec<String>,
    /// How long each runs
    #[arg(long, default_value_t = 60, value_name = "N")]
    seconds: u32,
}

/// What makes an input a finding although nothing panicked: seconds for one input, and memory.
const LIMITS: [&str; 3] = ["-timeout=20", "-rss_limit_mb=3072", "-malloc_limit_mb=1024"];
/// As `cargo fuzz` does it: inline counters per edge, a table of places, and operands of comparisons.
const COVERAGE: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
     -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
     -Cllvm-args=-sanitizer-coverage-trace-compares";
/// How much of a failed target's output is shown.
const TAIL_LINES: usize = 60;

/// What came of one target.
struct Outcome {
    name: String,
    executions: u64,
    coverage: u64,
    finding: Option<Finding>,
}

/// Why a target failed.
struct Finding {
    status: ExitStatus,
    /// The file that libFuzzer wrote, if it came to that.
    input: Option<PathBuf>,
    tail: Vec<String>,
}

/// `cargo xtask fuzz`.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let known = names()?;
    if let Some(unknown) = arguments.targets.iter().find(|target| !known.contains(target)) {
        bail!("there is no fuzz target {unknown:?}\n  what to do: choose of {}", known.join(", "));
    }
    let targets = if arguments.targets.is_empty() { known } else { arguments.targets.clone() };
    setup::ensure(&[Part::Build, Part::Fuzz])?;
    let binaries = build(&targets)?;
    let mut outcomes = Vec::new();
    for (name, binary) in targets.iter().zip(&binaries) {
        let outcome = fuzz(name, binary, arguments.seconds)?;
        if let Some(finding) = &outcome.finding {
            show(name, binary, finding);
        }
        outcomes.push(outcome);
    }
    Ok(conclude(&outcomes, arguments.seconds))
}

/// The binaries of the fuzz workspace: `fuzz_targets/NAME.rs`.
fn names() -> Result<Vec<String>> {
    let directory = workspace::root().join("fuzz/fuzz_targets");
    let mut names = Vec::new();
    for entry in fs::read_dir(&directory).with_context(|| format!("cannot list {}", directory.display()))? {
        let path = entry.with_context(|| format!("cannot list {}", directory.display()))?.path();
        if let (true, Some(stem)) = (path.extension().is_some_and(|kind| kind == "rs"), path.file_stem()) {
            names.push(stem.to_string_lossy().into_owned());
        }
    }
    names.sort_unstable();
    Ok(names)
}

fn build(targets: &[String]) -> Result<Vec<PathBuf>> {
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let directory = workspace::target().join("fuzz");
    let mut command = cargo::command("build");
    command.args(["--release", "--manifest-path", "fuzz/Cargo.toml", "--target", &triple, "--target-dir"]);
    command.arg(&directory);
    for target in targets {
        command.args(["--bin", target]);
    }
    let mut flags = COVERAGE.to_owned();
    if has_address_sanitizer(&triple)? {
        flags.push_str(" -Zsanitizer=address");
    } else {
        eprintln!("  this toolchain has no AddressSanitizer: fuzzing without it");
    }
    command.env("RUSTC_BOOTSTRAP", "1").env("RUSTFLAGS", flags);
    Step::new("build the fuzz targets", command).remedy("mend what the compiler reports above").run()?;
    let directory = directory.join(triple).join("release");
    Ok(targets.iter().map(|target| directory.join(target)).collect())
}

/// Whether the compiler brings the sanitizer's runtime: not every distribution of it does.
fn has_address_sanitizer(triple: &str) -> Result<bool> {
    let mut command = Command::new("rustc");
    command.args(["--print", "target-libdir", "--target", triple]).current_dir(workspace::root());
    let libraries = PathBuf::from(Step::new("ask the compiler for its libraries", command).run()?.trim());
    let entries = fs::read_dir(&libraries).with_context(|| format!("cannot list {}", libraries.display()))?;
    let names = entries.filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()));
    Ok(names.into_iter().any(|name| name.ends_with("_rt.asan.a")))
}

/// Runs one target. Inputs that are new to it are kept.
fn fuzz(name: &str, binary: &Path, seconds: u32) -> Result<Outcome> {
    let findings = workspace::target().join("fuzz/findings").join(name);
    let corpus = workspace::target().join("fuzz/corpus").join(name);
    for directory in [&findings, &corpus] {
        fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
    }
    let mut command = Command::new(binary);
    command.arg(format!("-max_total_time={seconds}")).args(LIMITS).arg("-print_final_stats=1");
    command.arg(format!("-artifact_prefix={}/", findings.display()));
    let dictionary = workspace::root().join("fuzz/dictionaries").join(format!("{name}.dict"));
    if dictionary.is_file() {
        command.arg(format!("-dict={}", dictionary.display()));
    }
    command.arg(&corpus);
    for checked_in in ["seeds", "regressions"] {
        let folder = workspace::root().join("fuzz").join(checked_in).join(name);
        if folder.is_dir() {
            command.arg(folder);
        }
    }
    command.current_dir(workspace::root()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let progress =
        Progress::start(format!("fuzz {name} for {}", self::seconds(Duration::from_secs(seconds.into()))));
    let mut child = command.spawn().with_context(|| format!("cannot start `{}`", describe(&command)))?;
    let mut outcome = Outcome { name: name.to_owned(), executions: 0, coverage: 0, finding: None };
    let (tail, input) = follow(&mut child, &progress, &mut outcome);
    let status = child.wait().with_context(|| format!("cannot wait for {}", binary.display()))?;
    if status.success() {
        progress.done_with(&format!("{} executions", outcome.executions));
    } else {
        outcome.finding = Some(Finding { status, input, tail });
    }
    Ok(outcome)
}

/// Reads libFuzzer's output: counts, the name of the input that it wrote, and its last lines.
fn follow(child: &mut Child, progress: &Progress, outcome: &mut Outcome) -> (Vec<String>, Option<PathBuf>) {
    let (mut tail, mut input) = (VecDeque::new(), None);
    let details = progress.details();
    let lines = child.stderr.take().map(|errors| BufReader::new(errors).split(b'\n'));
    for line in lines.into_iter().flatten().map_while(std::io::Result::ok) {
        let line = String::from_utf8_lossy(&line).into_owned();
        if let Some((executions, coverage)) = parse_pulse(&line) {
            (outcome.executions, outcome.coverage) = (executions, coverage);
            details.set(&line);
            continue;
        }
        if let Some(executions) = line.strip_prefix("stat::number_of_executed_units:") {
            outcome.executions = executions.trim().parse().unwrap_or(outcome.executions);
        }
        if let Some((_, path)) = line.split_once("Test unit written to ") {
            input = Some(PathBuf::from(path.trim()));
        }
        if tail.len() == TAIL_LINES {
            tail.pop_front();
        }
        tail.push_back(line);
    }
    (tail.into(), input)
}

/// `#4194304 pulse  cov: 612 ft: 1841 corp: 160/9410b lim: 1440 exec/s: 524288 rss: 71Mb`: executions, coverage.
fn parse_pulse(line: &str) -> Option<(u64, u64)> {
    let executions = line.strip_prefix('#')?.split_whitespace().next()?.parse().ok()?;
    let coverage = line.split_once("cov: ")?.1.split_whitespace().next()?.parse().ok()?;
    Some((executions, coverage))
}

/// Says what failed, on which input, and how to see it again.
fn show(name: &str, binary: &Path, finding: &Finding) {
    eprintln!("\n✗ {name} failed ({}): the end of its output:", finding.status);
    for line in &finding.tail {
        eprintln!("    {line}");
    }
    let Some(input) = &finding.input else { return };
    eprintln!("  the input: {}", input.display());
    eprintln!("  again:     {} {}", binary.display(), input.display());
    eprintln!(
        "  when it is mended, keep it as fuzz/regressions/{name}/WHAT-IT-WAS: the tests replay it from then on\n"
    );
}

/// Prints the table and the last line, and returns what the process should.
fn conclude(outcomes: &[Outcome], seconds: u32) -> ExitCode {
    println!("\n{:<18} {:>12} {:>10} {:>9}", "target", "executions", "per second", "coverage");
    for outcome in outcomes {
        let per_second = outcome.executions / u64::from(seconds.max(1));
        let failed = if outcome.finding.is_some() { "   FAILED" } else { "" };
        let Outcome { name, executions, coverage, .. } = outcome;
        println!("{name:<18} {executions:>12} {per_second:>10} {coverage:>9}{failed}");
    }
    let failed = outcomes.iter().filter(|outcome| outcome.finding.is_some()).count();
    println!("{} passed, {failed} failed", outcomes.len() - failed);
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read_from_libfuzzers_lines() {
        let line = "#4194304\tpulse  cov: 612 ft: 1841 corp: 160/9410b lim: 1440 exec/s: 524288 rss: 71Mb";
        assert_eq!(parse_pulse(line), Some((4_194_304, 612)));
        assert_eq!(parse_pulse("INFO: seed corpus: files: 3"), None);
        assert_eq!(parse_pulse("#0\tREAD units: 3"), None);
    }
}
