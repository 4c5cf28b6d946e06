//! Virtual machines with kernel WireGuard: an initramfs made from the host's tools (`initramfs`), one run
//! of QEMU with a list of jobs (`machine`), and the command `cargo xtask vm` on top. `cargo xtask test`
//! and `cargo xtask demo` use the same machinery.

mod archive;
mod closure;
mod initramfs;
mod machine;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::cargo::{self, Executable};
use crate::progress::{Progress, seconds};
use crate::setup::{self, KernelName, Part};
use crate::test::summary::Summary;
use crate::workspace;

pub(crate) use machine::{Event, Machine, Report};

/// Tests scale their time limits by this in a machine. Emulation computes 20 to 30 times slower than the
/// host, but most of what a test waits for is not computing.
pub(crate) const TIME_FACTOR: u32 = 8;
/// A test program that takes longer in a machine hangs.
const TEST_LIMIT: Duration = Duration::from_mins(40);
/// Where test programs lie in a machine.
const PROGRAMS: &str = "/gw/bin";

/// Something that a machine holds beside the standard tools.
#[derive(Clone, Debug)]
pub(crate) enum Content {
    /// A program; its shared libraries come along.
    Program {
        /// Where it is on the host.
        host: PathBuf,
        /// Where it goes.
        guest: String,
    },
    /// A file, or a directory with all that is in it.
    File {
        /// Where it is on the host.
        host: PathBuf,
        /// Where it goes.
        guest: String,
    },
}

/// A command to run in a machine.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    /// What to call it.
    pub(crate) label: String,
    /// The program and its arguments.
    pub(crate) command: Vec<String>,
    /// Where it runs.
    pub(crate) directory: String,
    /// Its environment.
    pub(crate) environment: Vec<(String, String)>,
    /// When it is ended, so that the jobs after it get their turn.
    pub(crate) limit: Option<Duration>,
}

/// Options of `cargo xtask vm`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Which kernel: 6.1, 6.12 or newest
    #[arg(long, default_value = "newest")]
    kernel: KernelName,
    /// Run the tests of this package in the machine (may be given more than once)
    #[arg(long = "tests", value_name = "PACKAGE")]
    tests: Vec<String>,
    /// Copy a host file or directory into the machine, to the same path or to GUEST
    #[arg(long = "file", value_name = "HOST[:GUEST]")]
    files: Vec<String>,
    /// Copy a host program and its libraries into the machine, to /usr/bin or to GUEST
    #[arg(long = "program", value_name = "HOST[:GUEST]")]
    programs: Vec<String>,
    /// Give up after this many seconds
    #[arg(long, default_value_t = 1800, value_name = "SECONDS")]
    timeout: u64,
    /// The command to run; with --tests: arguments for the test programs
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// `cargo xtask vm`.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    if arguments.command.is_empty() && arguments.tests.is_empty() {
        bail!(
            "nothing to run\n  what to do: cargo xtask vm -- uname -a, or cargo xtask vm --tests ghostwire-dataplane"
        );
    }
    let machines = setup::ensure_machines(&[arguments.kernel])?;
    let kernel = machines.kernels.first().context("setup returned no kernel")?;
    let mut content = extra_content(arguments)?;
    let jobs = if arguments.tests.is_empty() {
        vec![Job::command(&arguments.command)]
    } else {
        setup::ensure(&[Part::Build])?;
        let (tests, programs) = build_tests(&arguments.tests)?;
        content.extend(content_of(&tests)?);
        content.extend(binaries(&programs)?);
        tests.iter().map(|test| Job::test(test, &arguments.command)).collect()
    };
    let machine = Machine {
        qemu: &machines.qemu,
        kernel,
        content: &content,
        jobs: &jobs,
        timeout: Duration::from_secs(arguments.timeout),
    };
    let booting = Progress::start(format!("boot kernel {}", kernel.release));
    let mut booting = Some(booting);
    let report = machine.run(|event| match event {
        Event::Begin(number) => {
            if let Some(booting) = booting.take() {
                booting.done();
            }
            if let Some(job) = jobs.get(number).filter(|_| jobs.len() > 1) {
                eprintln!("-- {}", job.label);
            }
        }
        Event::Line(line) => println!("{line}"),
    })?;
    drop(booting);
    conclude(&report, &jobs)
}

fn conclude(report: &Report, jobs: &[Job]) -> Result<ExitCode> {
    if let Some(failure) = &report.failure {
        bail!(
            "{failure}\n  what to do: read the console above; --timeout SECONDS gives a slow host more time"
        );
    }
    if let ([job], [_]) = (report.jobs.as_slice(), jobs) {
        return Ok(exit_code(job.exit));
    }
    let summary: Summary = report.jobs.iter().map(|job| Summary::of_job(&job.output, job.exit)).sum();
    let elapsed = report.jobs.iter().map(|job| job.elapsed).sum();
    println!("{summary} ({})", seconds(elapsed));
    Ok(if summary.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The guest's exit code as ours.
pub(crate) fn exit_code(code: Option<i32>) -> ExitCode {
    code.and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from)
}

fn extra_content(arguments: &Arguments) -> Result<Vec<Content>> {
    let split = |text: &str| match text.split_once(':') {
        Some((host, guest)) => (PathBuf::from(host), Some(guest.to_owned())),
        None => (PathBuf::from(text), None),
    };
    let there =
        |host: PathBuf| host.canonicalize().with_context(|| format!("there is no {}", host.display()));
    let mut content = Vec::new();
    for text in &arguments.files {
        let (host, guest) = split(text);
        let host = there(host)?;
        let guest = guest.unwrap_or_else(|| host.display().to_string());
        content.push(Content::File { host, guest });
    }
    for text in &arguments.programs {
        let (host, guest) = split(text);
        let host = there(host)?;
        let name = host.file_name().unwrap_or_default().display();
        let guest = guest.unwrap_or_else(|| format!("/usr/bin/{name}"));
        content.push(Content::Program { host, guest });
    }
    Ok(content)
}

/// The tests of these packages, and the binaries that they start; built as `cargo xtask test` does it, since
/// another selection of packages has other features, and would compile dependencies again.
fn build_tests(packages: &[String]) -> Result<(Vec<Executable>, Vec<Executable>)> {
    let executables = crate::test::build()?;
    let (mut tests, binaries): (Vec<_>, Vec<_>) =
        executables.into_iter().partition(|executable| executable.test);
    tests.retain(|test| packages.contains(&test.package));
    if tests.is_empty() {
        bail!("{} have no tests", packages.join(", "));
    }
    Ok((tests, binaries))
}

/// What test programs need in a machine: themselves without debug information (it would be most of the
/// image), and the files of their packages at the very paths that `env!("CARGO_MANIFEST_DIR")` names.
pub(crate) fn content_of(tests: &[Executable]) -> Result<Vec<Content>> {
    let mut content = Vec::new();
    let mut directories: Vec<&Path> = Vec::new();
    for test in tests {
        content.push(Content::Program { host: stripped(&test.path)?, guest: guest_path(test) });
        if !directories.contains(&test.directory.as_path()) {
            directories.push(&test.directory);
            content.push(Content::File {
                host: test.directory.clone(),
                guest: test.directory.display().to_string(),
            });
        }
    }
    Ok(content)
}

/// A copy of a program without debug information, made again when the program changes.
pub(crate) fn stripped(program: &Path) -> Result<PathBuf> {
    let name = program.file_name().with_context(|| format!("{} is no file", program.display()))?;
    let copy = workspace::scratch("vm/stripped")?.join(name);
    let age = |path: &Path| path.metadata().and_then(|metadata| metadata.modified());
    let current = matches!((age(program), age(&copy)), (Ok(program), Ok(copy)) if copy >= program);
    if !current {
        let mut strip = std::process::Command::new("strip");
        strip.arg("--strip-debug").arg("-o").arg(&copy).arg(program);
        crate::command::Step::new(format!("strip {}", name.display()), strip).run()?;
    }
    Ok(copy)
}

/// What the tests of the whole mesh start: our own programs, in the directory that `GHOSTWIRE_BIN_DIR` names.
pub(crate) fn binaries(executables: &[Executable]) -> Result<Vec<Content>> {
    let content = cargo::BINARIES.map(|(_, name)| {
        let binary = executables.iter().find(|executable| !executable.test && executable.target == name);
        let binary = binary.with_context(|| format!("the build made no {name}"))?;
        Ok(Content::Program { host: stripped(&binary.path)?, guest: format!("{PROGRAMS}/{name}") })
    });
    content.into_iter().collect()
}

fn guest_path(test: &Executable) -> String {
    format!("{PROGRAMS}/{}", test.path.file_name().unwrap_or_default().display())
}

impl Job {
    /// A command as typed.
    pub(crate) fn command(words: &[String]) -> Self {
        Self {
            label: words.join(" "),
            command: words.to_vec(),
            directory: "/root".to_owned(),
            environment: Vec::new(),
            limit: None,
        }
    }

    /// A test program, run the way `cargo test` runs it.
    pub(crate) fn test(test: &Executable, arguments: &[String]) -> Self {
        let directory = test.directory.display().to_string();
        let variables = [
            ("CARGO_MANIFEST_DIR", directory.clone()),
            ("RUST_BACKTRACE", "1".to_owned()),
            ("GHOSTWIRE_BIN_DIR", PROGRAMS.to_owned()),
            ("GHOSTWIRE_TEST_TIME_FACTOR", TIME_FACTOR.to_string()),
        ];
        // What tests are asked for on the host, they are asked for in the machine.
        let passed_on = ["GHOSTWIRE_RECORD_BUDGET", "GHOSTWIRE_STEER_SECONDS", "GHOSTWIRE_TEST_SEED"]
            .into_iter()
            .filter_map(|name| Some((name, std::env::var(name).ok()?)));
        Self {
            label: format!("{} {}", test.package, test.target),
            command: std::iter::once(guest_path(test)).chain(arguments.iter().cloned()).collect(),
            directory,
            environment: variables
                .into_iter()
                .chain(passed_on)
                .map(|(name, value)| (name.to_owned(), value))
                .collect(),
            limit: Some(TEST_LIMIT),
        }
    }
}
