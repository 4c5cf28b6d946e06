//! A test program that is started again by its own tests, to be another process.

use std::path::Path;

use ghostwire_dataplane::wireguard::{SUBCOMMAND, run_userspace};

/// The argument after `mark`, if this program was started by one of its own tests.
pub(crate) fn argument_after(mark: &str) -> Option<String> {
    std::env::args().skip_while(|argument| argument != mark).nth(1)
}

/// Becomes the process of a userspace WireGuard device, if that is asked for.
pub(crate) fn become_wireguard() {
    let (Some(name), Some(dir)) = (argument_after(SUBCOMMAND), argument_after("--uapi-dir")) else {
        return;
    };
    if let Err(error) = run_userspace(&name.parse().unwrap(), Path::new(&dir)) {
        eprintln!("{error}");
        std::process::exit(1);
    }
    std::process::exit(0);
}
