//! The kernel matrix: the test programs that touch the kernel, already built for the host, run again
//! inside a virtual machine per kernel, where WireGuard is the kernel's own.

use std::collections::BTreeMap;
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

/// The packages whose tests depend on the kernel, the longest first. Each has a machine of its own per
/// kernel: machines of half a kernel's length keep both cores busy until the end.
const PACKAGES: [&str; 2] = ["ghostwire-dataplane", "ghostwire-tests"];
/// Tests of those packages for the host alone: they are about decisions of the daemon, which no kernel changes. The
/// grid runs everywhere, with fewer networks, which are further away and lose packets.
const HOST_ONLY: [&str; 2] = ["paths", "quic"];
/// Takes a quarter of an hour on an emulated processor. The newest kernel has the hooks of the host's and the WireGuard of
/// the middle one; it loads and uses the same programs in the mesh and the grid.
const NOT_ON_NEWEST: &str = "steer";
/// For the boot and all tests of one machine.
const TIMEOUT: Duration = Duration::from_hours(1);
/// Emulation gains little from a machine's second CPU: two machines keep two cores busy.
const AT_ONCE: usize = 2;

/// The tests of one package under one kernel.
struct Shift<'a> {
    kernel: &'a Kernel,
    package: &'static str,
    content: &'a [Content],
    jobs: Vec<Job>,
}

impl Shift<'_> {
    /// What the progress line calls it.
    fn label(&self) -> String {
        format!("{} {}", self.kernel.name, self.package.trim_start_matches("ghostwire-"))
    }
}

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
    let mut packages = Vec::new();
    for package in PACKAGES {
        let tests: Vec<Executable> = executables
            .iter()
            .filter(|executable| executable.test && executable.package == package)
            .filter(|executable| !HOST_ONLY.contains(&executable.target.as_str()))
            .cloned()
            .collect();
        let mut content = vm::content_of(&tests)?;
        content.extend(vm::binaries(executables)?);
        packages.push((package, content, tests));
    }
    let mut shifts = Vec::new();
    for (package, content, tests) in &packages {
        shifts.extend(machines.kernels.iter().map(|kernel| {
            let newest = kernel.name == KernelName::Newest;
            let here = tests.iter().filter(|test| !(newest && test.target == NOT_ON_NEWEST));
            let jobs = here.map(|test| Job::test(test, &[])).collect();
            Shift { kernel, package, content, jobs }
        }));
    }
    let progress = Progress::start("tests in virtual machines");
    let finished = work_through(&machines, &shifts, &Board::new(progress.details()));
    progress.done();
    Ok(machines.kernels.iter().map(|kernel| stage_of(kernel, &finished)).collect())
}

/// Runs the shifts, as many at once as there are cores for.
fn work_through(machines: &Machines, shifts: &[Shift<'_>], board: &Board) -> Vec<(KernelName, Finished)> {
    let waiting = Mutex::new(shifts.iter());
    let finished = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE.min(shifts.len()) {
            scope.spawn(|| {
                loop {
                    let next = waiting.lock().unwrap_or_else(PoisonError::into_inner).next();
                    let Some(shift) = next else { return };
                    let ended = run_shift(machines, shift, board);
                    finished.lock().unwrap_or_else(PoisonError::into_inner).push((shift.kernel.name, ended));
                }
            });
        }
    });
    finished.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// What came out of a machine.
struct Finished {
    summary: Summary,
    elapsed: Duration,
}

fn stage_of(kernel: &Kernel, finished: &[(KernelName, Finished)]) -> Stage {
    let own = || finished.iter().filter(|(name, _)| *name == kernel.name).map(|(_, ended)| ended);
    Stage {
        name: format!("kernel {}", kernel.release),
        outcome: Outcome::Tests(own().map(|ended| ended.summary.clone()).sum()),
        elapsed: own().map(|ended| ended.elapsed).sum(),
    }
}

fn run_shift(machines: &Machines, shift: &Shift<'_>, board: &Board) -> Finished {
    let started = Instant::now();
    let Shift { kernel, content, ref jobs, .. } = *shift;
    let machine = Machine { qemu: &machines.qemu, kernel, content, jobs, timeout: TIMEOUT };
    let outcome = machine.run(|event| {
        if let Event::Begin(number) = event {
            board.set(shift, &format!("{} ({} of {})", jobs[number].label, number + 1, jobs.len()));
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
    board.clear(shift);
    let elapsed = started.elapsed();
    eprintln!("  {} on kernel {}: {summary} ({})", shift.package, kernel.release, seconds(elapsed));
    Finished { summary, elapsed }
}

/// One progress line for machines that run side by side.
struct Board {
    details: Details,
    running: Mutex<BTreeMap<String, String>>,
}

impl Board {
    fn new(details: Details) -> Self {
        Self { details, running: Mutex::new(BTreeMap::new()) }
    }

    fn set(&self, shift: &Shift<'_>, state: &str) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.insert(shift.label(), state.to_owned());
        self.show(&running);
    }

    fn clear(&self, shift: &Shift<'_>) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.remove(&shift.label());
        self.show(&running);
    }

    fn show(&self, running: &BTreeMap<String, String>) {
        let text: Vec<String> =
            running.iter().map(|(machine, state)| format!("{machine}: {state}")).collect();
        self.details.set(&text.join(" | "));
    }
}
