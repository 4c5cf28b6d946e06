//! What people and programs see.
//!
//! Every command has two faces: tables and sentences for people, JSON for programs. The JSON of a command is
//! the serialized form of one struct in [`json`]; fields are added, never renamed or removed.

pub mod json;
pub mod table;
pub mod units;

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
        if self.colour { format!("\x1b[{}m{text}\x1b[0m", style.code()) } else { text.to_owned() }
    }
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
