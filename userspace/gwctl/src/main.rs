//! The command line of GhostWire.

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::Parser as _;
use gwctl::cli::Cli;
use gwctl::commands;
use gwctl::exit::Failure;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let json = cli.global.json;
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("gwctl: cannot start the asynchronous runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(commands::run(cli)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            report(&failure, json);
            ExitCode::from(failure.code as u8)
        }
    }
}

fn report(failure: &Failure, json: bool) {
    if failure.quiet {
        return;
    }
    if json {
        eprintln!("{}", failure.to_json());
        return;
    }
    let colour =
        std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let (red, end) = if colour { ("\x1b[31m", "\x1b[0m") } else { ("", "") };
    eprintln!("{red}gwctl:{end} {failure}");
    if let Some(hint) = &failure.hint {
        eprintln!("       {}", gwctl::output::plain(hint));
    }
}
