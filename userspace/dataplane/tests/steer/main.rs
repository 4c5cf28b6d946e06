//! Steering on the running kernel: nodes in namespaces of the tests' own, with real WireGuard, real links, address
//! translation and firewalls.
//!
//! The process of a userspace WireGuard device is this test program again, as in the WireGuard tests; so is the daemon
//! that is killed.

#![expect(clippy::unwrap_used, reason = "the helpers of a test fail like the test")]

mod aggregates;
#[path = "../budget/mod.rs"]
mod budget;
mod carriers;
mod changes;
mod controller;
mod lab;
mod lifecycle;
mod mixed;
#[path = "../netns/mod.rs"]
mod netns;
mod numbered;
mod packets;
mod strangers;
mod switches;
mod throughput;
mod units;

use std::path::Path;

use ghostwire_dataplane::wireguard::{SUBCOMMAND, run_userspace};

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
fn the_verifier_budget_is_kept() {
    let node = lab::Node::new(ghostwire_dataplane::wireguard::Choice::Userspace, 1);
    let steer = node.steer();
    let programs =
        ghostwire_dataplane::steer::PROGRAMS.map(|name| (name, steer.program(name).unwrap().info().unwrap()));
    budget::check(&programs, ghostwire_dataplane::steer::OBJECT);
}
