//! Prints the demonstration: numbered steps, the commands and what they said, and each claim with its proof.

use std::io::IsTerminal;
use std::time::Instant;

use anyhow::{Result, bail};

/// The teller of the story.
#[derive(Debug)]
pub(crate) struct Narrator {
    colour: bool,
    start: Instant,
    steps: usize,
    observed: Vec<String>,
    failure: Option<String>,
}

impl Narrator {
    pub(crate) fn new() -> Self {
        let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self { colour, start: Instant::now(), steps: 0, observed: Vec::new(), failure: None }
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// A new chapter.
    pub(crate) fn step(&mut self, title: &str) {
        self.steps += 1;
        let head = format!("{}. {title}", self.steps);
        let time = format!("{:>5.1} s", self.start.elapsed().as_secs_f64());
        println!("\n{}  {}", self.paint("1;36", &head), self.paint("2", &time));
    }

    /// A sentence.
    pub(crate) fn say(&self, text: &str) {
        println!("   {}", self.paint("0", text));
    }

    /// A command and what it printed.
    pub(crate) fn shell(&self, host: &str, command: &str, output: &str) {
        println!("   {}{} {command}", self.paint("2", host), self.paint("2", "#"));
        for line in output.trim_end().lines() {
            println!("   {} {line}", self.paint("2", "│"));
        }
    }

    /// A claim that was seen to be true.
    pub(crate) fn seen(&mut self, claim: impl Into<String>) {
        let claim = claim.into();
        println!("   {} {claim}", self.paint("1;32", "✓"));
        self.observed.push(claim);
    }

    /// A claim and whether it is true; the story ends where it is not.
    pub(crate) fn claim(&mut self, claim: impl Into<String>, holds: bool) -> Result<()> {
        let claim = claim.into();
        if !holds {
            println!("   {} {claim}", self.paint("1;31", "✗"));
            bail!("not observed: {claim}");
        }
        self.seen(claim);
        Ok(())
    }

    /// The story could not be told to its end.
    pub(crate) fn failed(&mut self, error: &anyhow::Error) {
        self.failure = Some(format!("{error:#}"));
    }

    /// The last lines; whether all went well.
    pub(crate) fn summary(&self) -> bool {
        let seconds = self.start.elapsed().as_secs_f64();
        println!();
        match &self.failure {
            None => {
                let line =
                    format!("{} of {} observed in {seconds:.0} s", self.observed.len(), self.observed.len());
                println!("{}", self.paint("1;32", &line));
            }
            Some(error) => {
                println!("{}", self.paint("1;31", "The demonstration failed:"));
                println!("   {error}");
            }
        }
        self.failure.is_none()
    }
}
