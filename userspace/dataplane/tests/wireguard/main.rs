//! WireGuard devices on the running kernel, in namespaces of the tests' own.
//!
//! What both engines have to do is tested with each that is there: userspace always, the kernel's
//! where the kernel has WireGuard (in the virtual machines that run this same program).
//!
//! The process of a userspace device is this test program again: with the arguments of the hidden
//! subcommand, the "test" `helper_process` becomes it; `daemon_process` becomes a daemon to be killed.

#![expect(clippy::unwrap_used, reason = "the helpers of a test fail like the test")]

#[path = "../netns/mod.rs"]
mod netns;

mod lab;
mod lifecycle;
mod peers;
mod process;
mod tunnel;

use std::path::Path;

use ghostwire_dataplane::wireguard::{Choice, Device, Opened, SUBCOMMAND, run_userspace};

use crate::lab::options;

/// The argument after `mark`, if this program was started by one of its own tests.
fn argument_after(mark: &str) -> Option<String> {
    std::env::args().skip_while(|argument| argument != mark).nth(1)
}

#[test]
fn helper_process() {
    let (Some(name), Some(dir)) = (argument_after(SUBCOMMAND), argument_after("--uapi-dir")) else {
        return;
    };
    if let Err(error) = run_userspace(&name.parse().unwrap(), Path::new(&dir)) {
        eprintln!("{error}");
        std::process::exit(1);
    }
    std::process::exit(0);
}

#[test]
fn daemon_process() {
    let Some(dir) = argument_after("daemon-of") else { return };
    let (_device, opened) = Device::open(&options(Path::new(&dir), Choice::Userspace)).unwrap();
    assert_eq!(opened, Opened::Created);
    std::fs::write(Path::new(&dir).join("daemon-is-ready"), "").unwrap();
    loop {
        std::thread::park();
    }
}
