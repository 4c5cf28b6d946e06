//! Runs a folder of policy case files and says how many pass.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut stdout = std::io::stdout().lock();
    let Some(directory) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("usage: conformance DIRECTORY");
        return ExitCode::from(2);
    };
    let result = ghostwire_policy::conformance::run_dir(&directory, &mut stdout);
    let flushed = stdout.flush();
    match (result, flushed) {
        (Ok(summary), Ok(())) if summary.is_success() => ExitCode::SUCCESS,
        (Ok(_), Ok(())) => ExitCode::FAILURE,
        (Err(error), _) | (_, Err(error)) => {
            eprintln!("cannot run the cases in {}: {error}", directory.display());
            ExitCode::FAILURE
        }
    }
}
