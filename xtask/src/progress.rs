//! Signs of life while a step runs: a spinner with the elapsed time and the newest line of output on a
//! terminal, a line at the start and then one every few seconds elsewhere. All of it goes to stderr, so
//! that stdout stays what the command was asked for.

use std::io::{IsTerminal as _, Write as _, stderr};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const FRAMES: [&str; 10] = ["⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏"];
/// Steps shorter than this leave no trace.
const QUIET_FOR: Duration = Duration::from_millis(700);
/// How often a running step reports when stderr is not a terminal.
const PLAIN_INTERVAL: Duration = Duration::from_secs(15);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    detail: String,
    finished: bool,
}

/// A running step. Dropping it without [`Progress::done`] marks the step as failed.
pub(crate) struct Progress {
    label: String,
    started: Instant,
    shared: Arc<Shared>,
    ticker: Option<JoinHandle<()>>,
}

impl Progress {
    /// Starts to report on a step.
    pub(crate) fn start(label: impl Into<String>) -> Self {
        let label = label.into();
        let shared = Arc::new(Shared::default());
        let started = Instant::now();
        let ticker = {
            let (label, shared) = (label.clone(), Arc::clone(&shared));
            std::thread::spawn(move || tick(&label, started, &shared))
        };
        Self { label, started, shared, ticker: Some(ticker) }
    }

    /// A handle for other threads to report details through.
    pub(crate) fn details(&self) -> Details {
        Details(Arc::clone(&self.shared))
    }

    /// Ends the step well.
    pub(crate) fn done(mut self) {
        self.finish("✓", "");
    }

    /// Ends the step well, with a remark.
    pub(crate) fn done_with(mut self, remark: &str) {
        self.finish("✓", remark);
    }

    fn finish(&mut self, mark: &str, remark: &str) {
        let Some(ticker) = self.ticker.take() else { return };
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner).finished = true;
        self.shared.changed.notify_all();
        // The ticker only prints; if it panicked there is nothing to tell the user about.
        let _ = ticker.join();
        let elapsed = self.started.elapsed();
        if elapsed < QUIET_FOR && remark.is_empty() && mark == "✓" {
            return;
        }
        let remark = if remark.is_empty() { String::new() } else { format!(": {remark}") };
        eprintln!("{mark} {}{remark} ({})", self.label, seconds(elapsed));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.finish("✗", "");
    }
}

/// Feeds the newest line of a step's output into its spinner.
#[derive(Clone)]
pub(crate) struct Details(Arc<Shared>);

impl Details {
    /// Shows `line` behind the step's label.
    pub(crate) fn set(&self, line: &str) {
        let line = line.trim();
        if !line.is_empty() {
            line.clone_into(&mut self.0.state.lock().unwrap_or_else(PoisonError::into_inner).detail);
        }
    }
}

fn tick(label: &str, started: Instant, shared: &Shared) {
    let terminal = stderr().is_terminal();
    let (interval, mut frame) = (if terminal { Duration::from_millis(100) } else { PLAIN_INTERVAL }, 0);
    let mut next = QUIET_FOR;
    let mut state = shared.state.lock().unwrap_or_else(PoisonError::into_inner);
    let mut drawn = false;
    while !state.finished {
        let wait = next.saturating_sub(started.elapsed());
        if !wait.is_zero() {
            let waited = shared.changed.wait_timeout(state, wait);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            continue;
        }
        let elapsed = seconds(started.elapsed());
        if terminal {
            let text =
                shorten(&format!("{} {label} ({elapsed}) {}", FRAMES[frame % FRAMES.len()], state.detail));
            eprint!("\r\x1b[2K{text}");
            // A spinner that cannot be drawn is no reason to fail.
            let _ = stderr().flush();
            drawn = true;
        } else if drawn {
            eprintln!("  … {label} ({elapsed}) {}", state.detail);
        } else {
            eprintln!("  … {label}");
            drawn = true;
        }
        frame += 1;
        next = started.elapsed() + interval;
    }
    if terminal && drawn {
        eprint!("\r\x1b[2K");
        let _ = stderr().flush();
    }
}

/// Cuts a line to what surely fits, so that the spinner never wraps.
fn shorten(line: &str) -> String {
    let columns = std::env::var("COLUMNS").ok().and_then(|text| text.parse().ok()).unwrap_or(79_usize);
    line.chars().filter(|character| !character.is_control()).take(columns).collect()
}

/// A duration for people: `0.8 s`, `42 s`, `3 min 07 s`.
pub(crate) fn seconds(duration: Duration) -> String {
    match duration.as_secs() {
        0..10 => format!("{:.1} s", duration.as_secs_f64()),
        whole @ 10..60 => format!("{whole} s"),
        whole => format!("{} min {:02} s", whole / 60, whole % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_like_a_person_would_say_them() {
        assert_eq!(seconds(Duration::from_millis(840)), "0.8 s");
        assert_eq!(seconds(Duration::from_secs(42)), "42 s");
        assert_eq!(seconds(Duration::from_secs(187)), "3 min 07 s");
    }

    #[test]
    fn a_spinner_line_holds_no_control_characters() {
        assert_eq!(shorten("a\tb\x1b[1mc"), "ab[1mc");
    }
}
