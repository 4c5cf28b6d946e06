//! The kernel matrix: the test programs that touch the kernel, already built for the host, run again
//! inside a virtual machine per kernel, where WireGuard is the kernel's own.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use super::host::show_failure;
use super::summary::Summary;
use super::{Outcome, Stage};
use crate::cargo::Executable;
use crate::command::explain;
use crate::progress::{Details, Progress, seconds};
use crate::setup::{self, Kernel, KernelName, Machines};
use crate::vm::{self, Content, Event, Job, Machine};

/// The packages whose tests depend on the kernel.
const PACKAGES: [&str; 2] = ["ghostwire-dataplane", "ghostwire-tests"];
/// For the boot and all tests of one kernel.
const TIMEOUT: Duration = Duration::from_mins(30);
/// Emulation gains little from a machine's second CPU: two machines keep two cores busy.
const AT_ONCE: usize = 2;

/// Runs the matrix; every kernel is a stage.
pub(super) fn run(names: &[KernelName], executables: &[Executable]) -> Result<Vec<Stage>> {
    let started = Instant::now();
    let machines = match setup::ensure_machines(names) {
        Ok(machines) => machines,
        Err(error) => {
            eprintln!(
                "\n*** NO VIRTUAL MACHINE CAN RUN: kernel WireGuard stays untested ***\n{}",
                explain(&error)
            );
            eprintln!("  what to do: mend the above, or leave the machines out with --quick");
            let failed = Stage {
                name: "virtual machines".into(),
                outcome: Outcome::Failed,
                elapsed: started.elapsed(),
            };
            return Ok(vec![failed]);
        }
    };
    let tests: Vec<Executable> = executables
        .iter()
        .filter(|executable| executable.test && PACKAGES.contains(&executable.package.as_str()))
        .cloned()
        .collect();
    let mut content = vm::content_of(&tests)?;
    content.extend(vm::binaries(executables)?);
    let jobs: Vec<Job> = tests.iter().map(|test| Job::test(test, &[])).collect();
    let progress = Progress::start("tests in virtual machines");
    let board = Board::new(progress.details(), &machines.kernels);
    let waiting = Mutex::new(machines.kernels.iter());
    let finished = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE.min(machines.kernels.len()) {
            scope.spawn(|| {
                loop {
                    let next = waiting.lock().unwrap_or_else(PoisonError::into_inner).next();
                    let Some(kernel) = next else { return };
                    let stage = run_kernel(&machines, kernel, &content, &jobs, &board);
                    finished.lock().unwrap_or_else(PoisonError::into_inner).push((kernel.name, stage));
                }
            });
        }
    });
    let mut stages = finished.into_inner().unwrap_or_else(PoisonError::into_inner);
    stages.sort_by_key(|(name, _)| *name);
    progress.done();
    Ok(stages.into_iter().map(|(_, stage)| stage).collect())
}

fn run_kernel(
    machines: &Machines,
    kernel: &Kernel,
    content: &[Content],
    jobs: &[Job],
    board: &Board,
) -> Stage {
    let started = Instant::now();
    let machine = Machine { qemu: &machines.qemu, kernel, content, jobs, timeout: TIMEOUT };
    let outcome = machine.run(|event| {
        if let Event::Begin(number) = event {
            board.set(kernel, &format!("{} ({} of {})", jobs[number].label, number + 1, jobs.len()));
        }
    });
    let place = format!("kernel {}", kernel.release);
    let mut summary = Summary::default();
    let report = outcome.and_then(|report| {
        for (job, report) in jobs.iter().zip(&report.jobs) {
            let counted =
                Summary::of_job(&report.output, report.exit).within(&format!("{place}, {}", job.label));
            if counted.failed > 0 {
                show_failure(
                    &format!("{place}: {} ({})", job.label, seconds(report.elapsed)),
                    &report.output,
                );
            }
            summary = std::mem::take(&mut summary) + counted;
        }
        report.failure.map_or(Ok(()), |failure| Err(anyhow!(failure)))
    });
    if let Err(error) = report {
        eprintln!("\n✗ {}", explain(&error));
        summary.fail(format!("{place}: the machine itself"));
    }
    board.set(kernel, &format!("finished: {summary}"));
    eprintln!("  kernel {} ({}): {summary} ({})", kernel.name, kernel.release, seconds(started.elapsed()));
    Stage {
        name: format!("kernel {}", kernel.release),
        outcome: Outcome::Tests(summary),
        elapsed: started.elapsed(),
    }
}

/// One progress line for machines that run side by side.
struct Board {
    details: Details,
    lines: Mutex<Vec<(KernelName, String)>>,
}

impl Board {
    fn new(details: Details, kernels: &[Kernel]) -> Self {
        let lines = kernels.iter().map(|kernel| (kernel.name, "waiting".to_owned())).collect();
        Self { details, lines: Mutex::new(lines) }
    }

    fn set(&self, kernel: &Kernel, state: &str) {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, line) in lines.iter_mut() {
            if *name == kernel.name {
                state.clone_into(line);
            }
        }
        let text: Vec<String> = lines.iter().map(|(name, line)| format!("{name}: {line}")).collect();
        self.details.set(&text.join(" | "));
    }
}
