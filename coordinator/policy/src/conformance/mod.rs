//! Runs cases of the language's reference behaviour: a policy, a topology, and what each node must enforce and
//! see, or that the policy must be refused.
//!
//! Compares meaning, not text: rules by the (source, destination, protocol, port) tuples that they admit
//! ([`meaning`]), peers by name and allowed prefixes, refusals by the message being part of ours.
//!
//! A case leaves some things open, and no policy engine could tell them from what is in it:
//! - Which of several routers of a subnet is the primary one. It was elected by who came first, which a case does
//!   not say; it is whom the case shows as such, and one for the whole case.
//! - Whether a route that a node offers and the policy's `autoApprovers` approve, but that is not listed as approved,
//!   had reached a node when its view was captured. Views were captured one after the other; in one case some have
//!   the route and some do not, so each view may be from before or after.
//! - What a single IPv6 address in a rule meant where the nodes were renumbered after the capture (their addresses are
//!   then one small number in both families): it may be a node's now that was nobody's. One reading must explain
//!   the whole case.

mod case;
mod meaning;

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

pub use case::run_case;

/// How a run came out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Cases that came out as written.
    pub passed: usize,
    /// Cases that did not, or could not be read.
    pub failed: usize,
}

impl Summary {
    /// Whether there were cases, and all of them passed.
    pub fn is_success(self) -> bool {
        self.failed == 0 && self.passed > 0
    }
}

/// Runs every case file (`*.json`) in a folder and its subfolders. Prints failures, and as the last line
/// `N passed, N failed`.
pub fn run_dir(path: &Path, out: &mut dyn Write) -> io::Result<Summary> {
    let mut files = Vec::new();
    collect(path, &mut files)?;
    files.sort();
    let mut summary = Summary::default();
    for file in files {
        let result =
            fs::read_to_string(&file).map_err(|error| error.to_string()).and_then(|text| run_case(&text));
        match result {
            Ok(()) => summary.passed += 1,
            Err(difference) => {
                summary.failed += 1;
                writeln!(out, "FAILED {}", file.display())?;
                for line in difference.lines() {
                    writeln!(out, "    {line}")?;
                }
            }
        }
    }
    writeln!(out, "{} passed, {} failed", summary.passed, summary.failed)?;
    Ok(summary)
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "json") {
            files.push(path);
        }
    }
    Ok(())
}
