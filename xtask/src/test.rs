//! `cargo xtask test`: formatting, lints, one build, every test on this host, then the kernel matrix in
//! virtual machines. All stages run even when one fails; the table at the end shows each.

mod host;
mod matrix;
pub(crate) mod summary;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use self::summary::Summary;
use crate::cargo::{self, Executable};
use crate::command::{Step, explain};
use crate::progress::seconds;
use crate::setup::{self, KernelName, Part};
use crate::workspace;

/// Options of `cargo xtask test`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Leave out the virtual machines (and say so)
    #[arg(long)]
    quick: bool,
    /// Boot only this kernel: 6.1, 6.12 or newest (may be given more than once)
    #[arg(long = "kernel", conflicts_with = "quick")]
    kernels: Vec<KernelName>,
}

/// What came out of one stage.
#[derive(Debug)]
struct Stage {
    name: String,
    outcome: Outcome,
    elapsed: Duration,
}

#[derive(Debug)]
enum Outcome {
    /// Tests ran.
    Tests(Summary),
    /// A check that is no test held.
    Held,
    /// A check failed, or a stage could not run; the message has been printed.
    Failed,
    /// Left out on request.
    LeftOut,
}

/// `cargo xtask test`.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let started = Instant::now();
    if !workspace::is_root() {
        bail!(
            "the tests create network namespaces and load eBPF programs, which takes root\n  what to do: run as root \
             (sudo --preserve-env=PATH,HOME cargo xtask test)"
        );
    }
    setup::ensure(&[Part::Build, Part::Network])?;
    let mut stages = vec![check("formatting", formatting), check("lints", lints)];
    let built = Instant::now();
    let executables = build()?;
    stages.push(Stage { name: "build".into(), outcome: Outcome::Held, elapsed: built.elapsed() });
    stages.push(host::run(&executables)?);
    stages.push(tests("documentation", documentation));
    if arguments.quick {
        stages.push(Stage {
            name: "virtual machines".into(),
            outcome: Outcome::LeftOut,
            elapsed: Duration::ZERO,
        });
    } else {
        let kernels = if arguments.kernels.is_empty() { &KernelName::ALL[..] } else { &arguments.kernels };
        stages.extend(matrix::run(kernels, &executables)?);
    }
    Ok(conclude(&stages, started.elapsed()))
}

fn check(name: &str, check: impl Fn() -> Result<()>) -> Stage {
    let started = Instant::now();
    let outcome = match check() {
        Ok(()) => Outcome::Held,
        Err(error) => {
            eprintln!("{}", explain(&error));
            Outcome::Failed
        }
    };
    Stage { name: name.to_owned(), outcome, elapsed: started.elapsed() }
}

fn tests(name: &str, run: impl Fn() -> Result<Summary>) -> Stage {
    let started = Instant::now();
    let outcome = match run() {
        Ok(summary) => Outcome::Tests(summary),
        Err(error) => {
            eprintln!("{}", explain(&error));
            Outcome::Failed
        }
    };
    Stage { name: name.to_owned(), outcome, elapsed: started.elapsed() }
}

fn formatting() -> Result<()> {
    let mut all = cargo::command("fmt");
    all.args(["--all", "--check"]);
    Step::new("check the formatting", all).remedy("cargo fmt --all").run()?;
    // The eBPF programs are a workspace of their own.
    let manifest = "ebpf/programs/Cargo.toml";
    if workspace::root().join(manifest).is_file() {
        let mut programs = cargo::command("fmt");
        programs.args(["--manifest-path", manifest, "--check"]);
        let remedy = format!("cargo fmt --manifest-path {manifest}");
        Step::new("check the formatting of the eBPF programs", programs).remedy(remedy).run()?;
    }
    Ok(())
}

fn lints() -> Result<()> {
    let mut command = cargo::command("clippy");
    command.args(["--workspace", "--all-targets", "--", "--deny", "warnings"]);
    Step::new("check the lints", command).remedy("mend what clippy reports above").run()?;
    Ok(())
}

/// All test programs, and the binaries that the tests of the whole mesh start. One profile, one feature
/// set: nothing is compiled twice.
pub(crate) fn build() -> Result<Vec<Executable>> {
    let mut command = cargo::command("test");
    command.args(["--workspace", "--no-run"]);
    let mut executables = cargo::build("build the tests", command)?;
    executables.retain(|executable| executable.test);
    let mut command = cargo::command("build");
    command.args(["--workspace", "--bins"]);
    executables.extend(cargo::build("build the binaries", command)?);
    Ok(executables)
}

fn documentation() -> Result<Summary> {
    let mut command = cargo::command("test");
    command.args(["--workspace", "--doc"]);
    let output = Step::new("run the examples in the documentation", command).run()?;
    Ok(Summary::of_output(output.lines()))
}

/// Prints the table and the last line, and returns what the process should.
fn conclude(stages: &[Stage], elapsed: Duration) -> ExitCode {
    println!("\n{:<34} {:>7} {:>7}   time", "stage", "passed", "failed");
    for stage in stages {
        let (passed, failed) = match &stage.outcome {
            Outcome::Tests(summary) => (summary.passed.to_string(), summary.failed.to_string()),
            Outcome::Held => ("ok".to_owned(), String::new()),
            Outcome::Failed => (String::new(), "FAILED".to_owned()),
            Outcome::LeftOut => ("NOT RUN".to_owned(), String::new()),
        };
        println!("{:<34} {passed:>7} {failed:>7}   {}", stage.name, seconds(stage.elapsed));
    }
    println!("{:<34} {:>7} {:>7}   {}", "", "", "", seconds(elapsed));
    let left_out = stages.iter().filter(|stage| matches!(stage.outcome, Outcome::LeftOut));
    for stage in left_out {
        println!("NOT RUN, as asked for: {}", stage.name);
    }
    let mut total = Summary::default();
    for stage in stages {
        match &stage.outcome {
            Outcome::Tests(summary) => total = total + summary.clone(),
            Outcome::Failed => total.fail(format!("{}: the whole stage", stage.name)),
            Outcome::Held | Outcome::LeftOut => {}
        }
    }
    for name in &total.names {
        println!("failed: {name}");
    }
    println!("{total}");
    if total.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
