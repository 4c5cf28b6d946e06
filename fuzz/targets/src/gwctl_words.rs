//! What people type behind `gwctl`.

use clap::Parser as _;
use gwctl::cli::Cli;
use gwctl::output::units;
use gwctl::service;

/// The words of a command line, one a line. True if they are one, or the first is a destination.
pub fn run(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let words = std::iter::once("gwctl").chain(text.lines());
    let command = Cli::try_parse_from(words);
    let target = service::parse(text.lines().next().unwrap_or_default());
    if let Ok(target) = &target {
        assert!(!target.host.is_empty());
        let _name = units::protocol(target.protocol.into());
    }
    command.is_ok() || target.is_ok()
}
