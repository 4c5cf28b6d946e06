//! Errors that point at the text.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How many errors one attempt reports at most.
const MAX_ERRORS: usize = 100;
/// How many words a typo is compared with at most.
const MOST_CANDIDATES: usize = 1_000;

/// One thing that is wrong with a policy, and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyError {
    /// Line, from 1; 0 where no place in the text is to blame.
    pub line: u32,
    /// Column in characters, from 1; 0 where no place in the text is to blame.
    pub column: u32,
    /// Where in the document, e.g. `acls[2].dst[0]`; empty for the document itself.
    pub path: String,
    /// The offending piece of text.
    pub snippet: String,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line > 0 {
            write!(f, "line {}, column {}", self.line, self.column)?;
            if !self.path.is_empty() {
                write!(f, " ({})", self.path)?;
            }
            f.write_str(": ")?;
        }
        f.write_str(&self.message)?;
        if !self.snippet.is_empty() && !self.message.contains(&self.snippet) {
            write!(f, "\n    | {}", self.snippet)?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "\n    hint: {hint}")?;
        }
        Ok(())
    }
}

/// Everything that is wrong with a policy, in the order of the text. `Display` is ready for a terminal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyErrors {
    /// At least one when returned as an error.
    pub errors: Vec<PolicyError>,
}

impl fmt::Display for PolicyErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.errors.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for PolicyErrors {}

impl From<PolicyError> for PolicyErrors {
    fn from(error: PolicyError) -> Self {
        Self { errors: vec![error] }
    }
}

/// A piece of the policy text, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// First byte.
    pub start: usize,
    /// Byte after the last.
    pub end: usize,
}

/// Turns byte offsets into lines and columns.
#[derive(Clone, Debug)]
pub struct Lines<'a> {
    text: &'a str,
    starts: Vec<usize>,
}

impl<'a> Lines<'a> {
    /// Indexes the text.
    pub fn new(text: &'a str) -> Self {
        let newlines = text.bytes().enumerate().filter(|&(_, byte)| byte == b'\n').map(|(at, _)| at + 1);
        Self { text, starts: std::iter::once(0).chain(newlines).collect() }
    }

    /// The line, from 1.
    pub fn line(&self, offset: usize) -> u32 {
        u32::try_from(self.index(offset)).unwrap_or(u32::MAX)
    }

    fn index(&self, offset: usize) -> usize {
        self.starts.partition_point(|&start| start <= offset).max(1)
    }

    /// Line and column, both from 1, the column in characters. Counts through the whole line.
    pub fn position(&self, offset: usize) -> (u32, u32) {
        let line = self.index(offset);
        let start = self.starts[line - 1];
        let column = self.text.get(start..offset.min(self.text.len())).map_or(0, |s| s.chars().count()) + 1;
        (u32::try_from(line).unwrap_or(u32::MAX), u32::try_from(column).unwrap_or(u32::MAX))
    }

    /// The piece of text, shortened to something that fits on a line.
    pub fn snippet(&self, span: Span) -> String {
        const LONGEST: usize = 80;
        let text = self.text.get(span.start..span.end).unwrap_or_default();
        let first_line = text.lines().next().unwrap_or_default();
        let cut: String = first_line.chars().take(LONGEST).collect();
        if cut.len() < text.len() { format!("{cut} …") } else { cut }
    }
}

/// Collects errors while a policy is read.
#[derive(Debug)]
pub(crate) struct Collector<'a> {
    pub(crate) lines: Lines<'a>,
    errors: Vec<PolicyError>,
    warnings: Vec<PolicyError>,
}

impl<'a> Collector<'a> {
    pub(crate) fn new(text: &'a str) -> Self {
        Self { lines: Lines::new(text), errors: Vec::new(), warnings: Vec::new() }
    }

    fn make(&self, span: Span, path: &str, message: String, hint: Option<String>) -> PolicyError {
        let (line, column) = self.lines.position(span.start);
        PolicyError { line, column, path: path.to_owned(), snippet: self.lines.snippet(span), message, hint }
    }

    pub(crate) fn error(&mut self, span: Span, path: &str, message: impl Into<String>, hint: Option<String>) {
        if self.errors.len() < MAX_ERRORS {
            let error = self.make(span, path, message.into(), hint);
            self.errors.push(error);
        }
    }

    pub(crate) fn warn(&mut self, span: Span, path: &str, message: impl Into<String>, hint: Option<String>) {
        if self.warnings.len() < MAX_ERRORS {
            let warning = self.make(span, path, message.into(), hint);
            self.warnings.push(warning);
        }
    }

    /// The candidate that a typo most likely stands for, as long as anybody will read about it.
    pub(crate) fn did_you_mean<'c>(
        &self,
        word: &str,
        candidates: impl IntoIterator<Item = &'c str>,
    ) -> Option<String> {
        if self.errors.len() < MAX_ERRORS { did_you_mean(word, candidates) } else { None }
    }

    /// The warnings, or the errors in the order of the text.
    pub(crate) fn finish(mut self) -> Result<Vec<PolicyError>, PolicyErrors> {
        if self.errors.is_empty() {
            return Ok(self.warnings);
        }
        self.errors.sort_by_key(|error| (error.line, error.column));
        Err(PolicyErrors { errors: self.errors })
    }
}

/// The candidate that a typo most likely stands for.
pub(crate) fn did_you_mean<'c>(word: &str, candidates: impl IntoIterator<Item = &'c str>) -> Option<String> {
    let word = word.to_lowercase();
    let length = word.chars().count();
    let limit = (length / 3).max(1);
    candidates
        .into_iter()
        .filter(|candidate| candidate.chars().count().abs_diff(length) <= limit)
        .take(MOST_CANDIDATES)
        .map(|candidate| (edit_distance(&word, &candidate.to_lowercase()), candidate))
        .filter(|&(distance, _)| distance <= limit)
        .min()
        .map(|(_, candidate)| format!("did you mean \"{candidate}\"?"))
}

/// Insertions, deletions, substitutions and swaps of neighbours that turn one word into the other.
fn edit_distance(left: &str, right: &str) -> usize {
    let left: Vec<char> = left.chars().take(64).collect();
    let right: Vec<char> = right.chars().take(64).collect();
    let mut rows = vec![vec![0; right.len() + 1]; left.len() + 1];
    for (index, row) in rows.iter_mut().enumerate() {
        row[0] = index;
    }
    for (index, cell) in rows[0].iter_mut().enumerate() {
        *cell = index;
    }
    for i in 1..=left.len() {
        for j in 1..=right.len() {
            let substitution = rows[i - 1][j - 1] + usize::from(left[i - 1] != right[j - 1]);
            let mut best = substitution.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && left[i - 1] == right[j - 2] && left[i - 2] == right[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = best;
        }
    }
    rows[left.len()][right.len()]
}
