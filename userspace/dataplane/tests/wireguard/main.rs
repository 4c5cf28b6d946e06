//! WireGuard devices on the running kernel, in namespaces of the tests' own.
//!
//! What both engines have to do is tested with each that is there: userspace always, the kernel's
//! where the kernel has WireGuard (in the virtual machines that run this same program).
//!
//! The process of a userspace device is this test program again: with the arguments of the hidden
//! subcommand, the "test" `helper_process` becomes it; `daemon_process` becomes a daemon to be killed.

#![expect(clippy::unwrap_used, reason = "the helpers of a test fail like the test")]

#[path = "../helper/mod.rs"]
mod helper;
#[path = "../netns/mod.rs"]
mod netns;

mod lab;
mod lifecycle;
mod peers;
mod process;
mod tunnel;

use std::path::Path;

use ghostwire_dataplane::wireguard::{Choice, Device, Opened};

use crate::lab::options;

#[test]
fn helper_process() {
    helper::become_wireguard();
}

#[test]
fn daemon_process() {
    let Some(dir) = helper::argument_after("daemon-of") else { return };
    let (_device, opened) = Device::open(&options(Path::new(&dir), Choice::Userspace)).unwrap();
    assert_eq!(opened, Opened::Created);
    std::fs::write(Path::new(&dir).join("daemon-is-ready"), "").unwrap();
    loop {
        std::thread::park();
    }
}
