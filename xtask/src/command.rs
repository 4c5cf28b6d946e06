//! One external command as a named step: its output feeds the spinner, and a failure says which step it
//! was, which command ran, how its output ended, and what to do about it.

use std::collections::VecDeque;
use std::fmt;
use std::io::{BufRead as _, BufReader, Read};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result};

use crate::progress::{Details, Progress};

/// How many last lines of output a failure shows.
const TAIL_LINES: usize = 60;

/// A command to run, what it is for, and the remedy when it fails.
pub(crate) struct Step {
    label: String,
    command: Command,
    remedy: Option<String>,
}

/// Why a step failed, ready for a terminal.
#[derive(Debug)]
pub(crate) struct StepFailed {
    label: String,
    command: String,
    status: ExitStatus,
    tail: Vec<String>,
    remedy: Option<String>,
}

impl std::error::Error for StepFailed {}

impl fmt::Display for StepFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} failed ({})", self.label, self.status)?;
        writeln!(f, "  command: {}", self.command)?;
        if !self.tail.is_empty() {
            writeln!(f, "  the end of its output:")?;
            for line in &self.tail {
                writeln!(f, "    {line}")?;
            }
        }
        if let Some(remedy) = &self.remedy {
            writeln!(f, "  what to do: {remedy}")?;
        }
        Ok(())
    }
}

impl Step {
    /// A step with a label such as "install packages".
    pub(crate) fn new(label: impl Into<String>, command: Command) -> Self {
        Self { label: label.into(), command, remedy: None }
    }

    /// What the user should do when this step fails.
    pub(crate) fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    /// Runs the command to its end and returns what it wrote to stdout.
    pub(crate) fn run(self) -> Result<String> {
        let progress = Progress::start(self.label.clone());
        let stdout = self.run_under(&progress)?;
        progress.done();
        Ok(stdout)
    }

    /// Like [`Step::run`], reporting to a spinner that covers more than this command.
    pub(crate) fn run_under(mut self, progress: &Progress) -> Result<String> {
        let line = describe(&self.command);
        self.command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.command.spawn().with_context(|| {
            format!("{}: cannot start `{}`", self.label, self.command.get_program().display())
        })?;
        let tail = Mutex::new(VecDeque::new());
        let details = progress.details();
        let mut stdout = String::new();
        let (output, errors) = (child.stdout.take(), child.stderr.take());
        std::thread::scope(|scope| {
            if let Some(errors) = errors {
                scope.spawn(|| follow(errors, &tail, &details, None));
            }
            if let Some(output) = output {
                follow(output, &tail, &details, Some(&mut stdout));
            }
        });
        let status = child.wait().with_context(|| format!("{}: cannot wait for `{line}`", self.label))?;
        if status.success() {
            return Ok(stdout);
        }
        let tail = tail.into_inner().unwrap_or_else(PoisonError::into_inner);
        Err(StepFailed { label: self.label, command: line, status, tail: tail.into(), remedy: self.remedy }
            .into())
    }
}

/// Reads a pipe line by line; keeps the end for a failure report and, when asked, everything.
fn follow(
    pipe: impl Read,
    tail: &Mutex<VecDeque<String>>,
    details: &Details,
    mut everything: Option<&mut String>,
) {
    for line in BufReader::new(pipe).split(b'\n').map_while(std::io::Result::ok) {
        let line = String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned();
        if let Some(text) = everything.as_deref_mut() {
            text.push_str(&line);
            text.push('\n');
        }
        // Cargo's JSON messages are for programs: neither a detail nor worth a place in the tail.
        if line.starts_with("{\"") {
            continue;
        }
        details.set(&line);
        let mut tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
        if tail.len() == TAIL_LINES {
            tail.pop_front();
        }
        tail.push_back(line);
    }
}

/// An error and what led to it, without the backtrace that `RUST_BACKTRACE` would add: the reader is
/// someone whose machine lacks something, not someone who debugs xtask.
pub(crate) fn explain(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1) {
        text.push_str("\n  because: ");
        text.push_str(&cause.to_string());
    }
    text
}

/// A command the way one would type it.
pub(crate) fn describe(command: &Command) -> String {
    let environment = command.get_envs().filter_map(|(name, value)| {
        value.map(|value| format!("{}={}", name.display(), quote(&value.to_string_lossy())))
    });
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words = words.map(|word| quote(&word.to_string_lossy()));
    environment.chain(words).collect::<Vec<_>>().join(" ")
}

/// A word for a POSIX shell.
pub(crate) fn quote(word: &str) -> String {
    let plain = |character: char| character.is_ascii_alphanumeric() || "_-./=:,+@%^".contains(character);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_step_returns_its_stdout() {
        assert_eq!(Step::new("say", shell("echo one; echo two >&2")).run().unwrap(), "one\n");
    }

    #[test]
    fn a_failed_step_names_itself_its_command_its_output_and_the_remedy() {
        let failure = Step::new("brew", shell("echo 'no water' >&2; exit 3")).remedy("fill the tank").run();
        let text = failure.unwrap_err().to_string();
        for part in ["brew failed (exit status: 3)", "sh -c 'echo", "no water", "fill the tank"] {
            assert!(text.contains(part), "{part:?} is missing in:\n{text}");
        }
    }

    #[test]
    fn words_are_quoted_for_the_shell_only_where_needed() {
        assert_eq!(quote("--a=b/c"), "--a=b/c");
        assert_eq!(quote("it's"), r"'it'\''s'");
        assert_eq!(quote(""), "''");
    }
}
