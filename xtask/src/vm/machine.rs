//! One run of a virtual machine: boot, jobs, exit codes. The guest reports between the lines of its jobs;
//! whatever is not reported (a panic, a hang, a machine that never boots) is a failure.

use std::fs;
use std::io::{BufRead as _, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, anyhow};

use super::{Content, Job, initramfs};
use crate::progress::seconds;
use crate::setup::{Kernel, Qemu};
use crate::workspace;

/// How many lines of the kernel's console a failure shows.
const CONSOLE_LINES: usize = 40;
/// The image of a machine is older than this only when its run was killed.
const LEFT_OVER: Duration = Duration::from_hours(2);
/// How long the emulator may take to exit after the last job.
const POWER_OFF: Duration = Duration::from_secs(30);

/// A machine to be booted.
#[derive(Debug)]
pub(crate) struct Machine<'a> {
    /// The emulator.
    pub(crate) qemu: &'a Qemu,
    /// The kernel.
    pub(crate) kernel: &'a Kernel,
    /// Programs and files that the jobs need.
    pub(crate) content: &'a [Content],
    /// What to run, one after the other.
    pub(crate) jobs: &'a [Job],
    /// How long boot and jobs may take together.
    pub(crate) timeout: Duration,
}

/// What a machine did.
#[derive(Debug)]
pub(crate) struct Report {
    /// From the start of the emulator to the first job.
    pub(crate) boot: Option<Duration>,
    /// One entry per job that began.
    pub(crate) jobs: Vec<JobReport>,
    /// Why the machine did not get to its end; `None`: it did.
    pub(crate) failure: Option<String>,
}

/// What a job did.
#[derive(Debug)]
pub(crate) struct JobReport {
    /// Everything it wrote, stdout and stderr.
    pub(crate) output: Vec<String>,
    /// Its exit code; `None`: it did not come to an end.
    pub(crate) exit: Option<i32>,
    /// How long it took.
    pub(crate) elapsed: Duration,
}

/// Something that happens while a machine runs, for live output.
#[derive(Debug)]
pub(crate) enum Event<'a> {
    /// The job with this number begins.
    Begin(usize),
    /// A line of the current job.
    Line(&'a str),
}

impl Machine<'_> {
    /// Boots the machine, runs the jobs and waits for its end.
    pub(crate) fn run(&self, mut watch: impl FnMut(Event<'_>)) -> Result<Report> {
        let scratch = workspace::scratch("vm")?;
        remove_left_over(&scratch);
        let mark = mark();
        let name = format!("{}-{mark}", self.kernel.name);
        let (image, console) =
            (scratch.join(format!("{name}.cpio")), scratch.join(format!("{name}.console")));
        let size = initramfs::build(self.kernel, self.content, self.jobs, &mark, &image)?;
        let started = Instant::now();
        let mut emulator = Emulator::start(self.qemu, self.kernel, &image, size, &console)?;
        let mut report = Report { boot: None, jobs: Vec::new(), failure: None };
        let ending = follow(&mut emulator, &mark, started, self.timeout, &mut report, &mut watch);
        let ending = ending.and_then(|()| emulator.wait(POWER_OFF));
        report.failure = ending.err().map(|reason| self.explain(&reason.to_string(), &report, &console));
        // Left over files cost disk space only; the console has been read.
        let _ = fs::remove_file(&image);
        let _ = fs::remove_file(&console);
        Ok(report)
    }

    fn explain(&self, reason: &str, report: &Report, console: &Path) -> String {
        let place = match (report.jobs.len().checked_sub(1), report.boot) {
            (Some(last), _) => {
                format!("while running \"{}\"", self.jobs.get(last).map_or("?", |job| &job.label))
            }
            (None, _) => "before its first job".to_owned(),
        };
        let text = fs::read(console).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
        let telling = telling_lines(&lines);
        let console = if telling.is_empty() {
            "  its console stayed empty".to_owned()
        } else {
            format!("  from its console:\n    {}", telling.join("\n    "))
        };
        format!("the machine with kernel {} {reason} {place}\n{console}", self.kernel.release)
    }
}

/// Removes the images of runs that were killed: nothing runs for hours.
fn remove_left_over(scratch: &Path) {
    let old = |path: &Path| {
        let age = path.metadata().and_then(|metadata| metadata.modified()).map(|time| time.elapsed());
        matches!(age, Ok(Ok(age)) if age > LEFT_OVER)
    };
    for entry in fs::read_dir(scratch).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_file() && old(&path) {
            // Of another run of this user, or gone by now; it costs disk space only.
            let _ = fs::remove_file(path);
        }
    }
}

/// The lines of a console that tell most: from the first sign of trouble on, or else the last ones.
fn telling_lines<'a>(lines: &'a [&'a str]) -> &'a [&'a str] {
    let trouble = ["Kernel panic", "BUG:", "Oops", "general protection", "RIP:"];
    let first = lines.iter().position(|line| trouble.iter().any(|sign| line.contains(sign)));
    let start = first.unwrap_or_else(|| lines.len().saturating_sub(CONSOLE_LINES));
    &lines[start..lines.len().min(start + CONSOLE_LINES)]
}

/// A word that no job prints by accident.
fn mark() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("@gw-{:x}-{:x}", std::process::id(), now.subsec_nanos())
}

/// What the guest says between the lines of its jobs.
#[derive(Debug, PartialEq, Eq)]
enum Mark {
    Begin(usize),
    End(usize, i32),
    Finished,
}

fn parse_mark(line: &str, mark: &str) -> Option<Mark> {
    let mut words = line.strip_prefix(mark)?.split_whitespace();
    match (words.next()?, words.next(), words.next()) {
        ("begin", Some(number), None) => Some(Mark::Begin(number.parse().ok()?)),
        ("end", Some(number), Some(code)) => Some(Mark::End(number.parse().ok()?, code.parse().ok()?)),
        ("finished", None, None) => Some(Mark::Finished),
        _ => None,
    }
}

/// Reads the guest's lines until it has finished.
fn follow(
    emulator: &mut Emulator,
    mark: &str,
    started: Instant,
    timeout: Duration,
    report: &mut Report,
    watch: &mut impl FnMut(Event<'_>),
) -> Result<()> {
    let mut job_started = started;
    // Marks start on a line of their own: the empty line before one is not the job's.
    let mut held_back = None;
    loop {
        let left = timeout.saturating_sub(started.elapsed());
        let line = match emulator.lines.recv_timeout(left) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) => {
                emulator.kill();
                return Err(anyhow!("did not finish within {}, and was stopped,", seconds(timeout)));
            }
            Err(RecvTimeoutError::Disconnected) => return Err(anyhow!("died (a panic ends it too)")),
        };
        match parse_mark(&line, mark) {
            Some(Mark::Begin(number)) => {
                report.boot.get_or_insert_with(|| started.elapsed());
                job_started = Instant::now();
                report.jobs.push(JobReport { output: Vec::new(), exit: None, elapsed: Duration::ZERO });
                watch(Event::Begin(number));
                held_back = None;
            }
            Some(Mark::End(number, code)) => {
                held_back = None;
                if let Some(job) = report.jobs.get_mut(number) {
                    (job.exit, job.elapsed) = (Some(code), job_started.elapsed());
                }
            }
            Some(Mark::Finished) => return Ok(()),
            None => {
                let Some(job) = report.jobs.last_mut() else { continue };
                let empty = line.is_empty().then(|| line.clone());
                for line in held_back.take().into_iter().chain(Some(line).filter(|line| !line.is_empty())) {
                    watch(Event::Line(&line));
                    job.output.push(line);
                }
                held_back = empty;
            }
        }
    }
}

/// A QEMU process; dropping it ends it.
struct Emulator {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Emulator {
    fn start(qemu: &Qemu, kernel: &Kernel, image: &Path, image_size: u64, console: &Path) -> Result<Self> {
        // The image is in memory twice while the kernel unpacks it.
        let megabytes = 1024 + image_size / (1 << 20) * 5 / 2;
        // A machine must not outlive the xtask that started it, however that ends.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(&qemu.program);
        for directory in &qemu.firmware {
            command.arg("-L").arg(directory);
        }
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-machine", "q35"]);
        command.args(qemu.machine_flags());
        command.args(["-smp", "2", "-m", &format!("{megabytes}M"), "-serial"]);
        command.arg(format!("file:{}", console.display())).args(["-serial", "stdio"]);
        command.arg("-kernel").arg(&kernel.image).arg("-initrd").arg(image);
        command.args(["-append", "console=ttyS0 quiet panic=-1 oops=panic random.trust_cpu=on"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child =
            command.spawn().with_context(|| format!("cannot start {}", qemu.program.display()))?;
        let output = child.stdout.take().context("the emulator has no output pipe")?;
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || read_lines(output, &sender));
        Ok(Self { child, lines })
    }

    fn kill(&mut self) {
        // Both fail only when the process is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Waits for the guest to switch itself off.
    fn wait(&mut self, limit: Duration) -> Result<()> {
        let started = Instant::now();
        // The pipe closes when the emulator exits; until then nobody speaks.
        while started.elapsed() < limit {
            match self.lines.recv_timeout(limit.saturating_sub(started.elapsed())) {
                Ok(_) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    let status = self.child.wait().context("cannot wait for the emulator")?;
                    return if status.success() { Ok(()) } else { Err(anyhow!("ended with {status}")) };
                }
            }
        }
        self.kill();
        Err(anyhow!("finished its jobs but did not switch itself off"))
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        self.kill();
    }
}

fn read_lines(output: impl Read, sender: &mpsc::Sender<String>) {
    for line in BufReader::new(output).split(b'\n').map_while(std::io::Result::ok) {
        let line = String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned();
        if sender.send(line).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_shown_from_its_first_line() {
        let calls = ["  call"; 90];
        let lines = [&["booting", "[ 1.0] Kernel panic - not syncing"][..], &calls].concat();
        assert_eq!(telling_lines(&lines)[0], "[ 1.0] Kernel panic - not syncing");
        assert_eq!(telling_lines(&lines).len(), CONSOLE_LINES);
        assert_eq!(telling_lines(&lines[2..]).len(), CONSOLE_LINES);
        assert!(telling_lines(&[]).is_empty());
    }

    #[test]
    fn marks_are_told_from_what_jobs_print() {
        assert_eq!(parse_mark("@gw-1 begin 3", "@gw-1"), Some(Mark::Begin(3)));
        assert_eq!(parse_mark("@gw-1 end 3 101", "@gw-1"), Some(Mark::End(3, 101)));
        assert_eq!(parse_mark("@gw-1 finished", "@gw-1"), Some(Mark::Finished));
        assert_eq!(parse_mark("begin 3", "@gw-1"), None);
        assert_eq!(parse_mark("@gw-1 end 3", "@gw-1"), None);
    }
}
