//! What people and programs see.
//!
//! Every command has two faces: tables and sentences for people, JSON for programs. The JSON of a command is
//! the serialized form of one struct in [`json`]; fields are added, never renamed or removed.

pub mod json;
pub mod table;
pub mod units;

use std::borrow::Cow;
use std::io::{IsTerminal, Write};

use serde::Serialize;

use crate::exit::{Failure, Outcome};

/// Where output goes, and what it may contain.
#[derive(Clone, Debug)]
pub struct Output {
    /// JSON instead of text.
    pub json: bool,
    /// Colours and emphasis.
    pub colour: bool,
    /// Columns to fit into, if there is a limit.
    pub width: Option<u16>,
}

impl Output {
    /// Standard output: colours only on a terminal without `NO_COLOR`, as wide as the terminal (or `COLUMNS`).
    pub fn standard(json: bool) -> Self {
        let terminal = std::io::stdout().is_terminal();
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || std::env::var_os("TERM").is_some_and(|value| value == "dumb");
        let columns = std::env::var("COLUMNS").ok().and_then(|text| text.parse().ok());
        let width = columns.or_else(|| if terminal { comfy_table::Table::new().width() } else { None });
        Self { json, colour: terminal && !plain, width }
    }

    /// Prints a line, or several.
    pub fn line(&self, text: impl AsRef<str>) -> Outcome {
        let mut out = std::io::stdout().lock();
        match writeln!(out, "{}", text.as_ref()).and_then(|()| out.flush()) {
            Ok(()) => Ok(()),
            // `gwctl acl watch | head` has seen enough.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
            Err(error) => Err(Failure::failed(format!("cannot write to standard output: {error}"))),
        }
    }

    /// Prints one JSON document.
    pub fn document(&self, value: &impl Serialize) -> Outcome {
        let text = serde_json::to_string_pretty(value)
            .map_err(|error| Failure::failed(format!("cannot print JSON: {error}")))?;
        self.line(text)
    }

    /// Prints one JSON document on one line, for commands that watch.
    pub fn record(&self, value: &impl Serialize) -> Outcome {
        let text = serde_json::to_string(value)
            .map_err(|error| Failure::failed(format!("cannot print JSON: {error}")))?;
        self.line(text)
    }

    /// JSON or text.
    pub fn either(&self, value: &impl Serialize, text: impl FnOnce() -> String) -> Outcome {
        if self.json {
            return self.document(value);
        }
        let text = text();
        self.line(text.trim_end())
    }

    /// Emphasised for people.
    pub fn paint(&self, style: Style, text: &str) -> String {
        let text = plain(text);
        if self.colour { format!("\x1b[{}m{text}\x1b[0m", style.code()) } else { text.into_owned() }
    }
}

/// Text as a terminal may see it. Much of what is shown was chosen by other machines (names, versions, what they
/// say is wrong), and none of it may command the terminal of who looks: control characters become spaces.
pub fn plain(text: &str) -> Cow<'_, str> {
    let commands = |character: char| character.is_control() && character != '\n';
    if text.contains(commands) { Cow::Owned(text.replace(commands, " ")) } else { Cow::Borrowed(text) }
}

/// Kinds of emphasis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Names and headings.
    Bold,
    /// Of less importance.
    Dim,
    /// As it should be.
    Good,
    /// Worth a look.
    Warning,
    /// Wrong.
    Bad,
}

impl Style {
    fn code(self) -> &'static str {
        match self {
            Self::Bold => "1",
            Self::Dim => "2",
            Self::Good => "32",
            Self::Warning => "33",
            Self::Bad => "31",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_other_machines_say_does_not_command_the_terminal() {
        assert_eq!(plain("one line\nand two"), "one line\nand two");
        assert_eq!(plain("\x1b]0;owned\x07 \u{9b}31m\ttab"), " ]0;owned   31m tab");
        let output = Output { json: false, colour: false, width: None };
        assert_eq!(output.paint(Style::Bold, "a\x1b[2Jb"), "a [2Jb");
        let mut table = table::Table::new(&output, &[table::text("NAME")]);
        table.row(["a\x1b[2Jb"]);
        assert!(!table.render("").contains('\x1b'));
        let mut facts = table::Facts::new(&output);
        assert!(!facts.add("os", "linux\x1b[2J").render().contains('\x1b'));
        let failure = Failure::failed("cannot: \x1b[2J");
        assert!(!failure.to_string().contains('\x1b'));
    }
}
