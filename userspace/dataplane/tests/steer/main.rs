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
#[path = "../helper/mod.rs"]
mod helper;
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

#[test]
fn helper_process() {
    helper::become_wireguard();
}

#[test]
fn the_verifier_budget_is_kept() {
    let node = lab::Node::new(ghostwire_dataplane::wireguard::Choice::Userspace, 1);
    let steer = node.steer();
    let programs =
        ghostwire_dataplane::steer::PROGRAMS.map(|name| (name, steer.program(name).unwrap().info().unwrap()));
    budget::check(&programs, ghostwire_dataplane::steer::OBJECT);
}
