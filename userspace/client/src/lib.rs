//! GhostWire's node daemon: makes this machine a node of the mesh and keeps it one.
//!
//! ```text
//! coordinator ◀─stream─▶ coordinator ─┐                                   ┌─▶ plane ─▶ WireGuard, ACL, routes
//! gwctl ◀──unix socket──▶ api ────────┼─▶ daemon ─▶ session (what to do) ─┤
//! kernel's links, events, time ───────┘        └──▶ ways (by which way)   └─▶ store (keys, map)
//! ```
//!
//! - [`session`]: the state machine: messages, requests and time in, things to do out; no I/O.
//! - [`ways`]: by which way to each peer, where packets can be steered; no I/O.
//! - [`path`]: the same where they cannot: one endpoint for WireGuard at a time.
//! - [`portmap`]: asks routers to forward a port.
//! - [`plane`]: makes the kernel what the session wants, in the order that never opens a gap.
//! - [`store`]: what a node remembers, and how it survives crashes.
//! - [`coordinator`]: enrolment and the node stream over pinned TLS.
//! - [`api`]: the local API; [`probe`]: round-trip times; [`naming`]: packets named to rules of the policy.
//! - [`daemon`]: the loop in which these meet.
//!
//! What must not depend on this process does not: packets, encryption and policy are the kernel's (or, where
//! the kernel has no WireGuard, another process's). Kill the daemon and nothing changes; start it and it
//! adopts what is there.

pub mod api;
pub mod coordinator;
pub mod daemon;
pub mod naming;
pub mod path;
pub mod plane;
pub mod portmap;
pub mod probe;
pub mod session;
pub mod single;
pub mod store;
#[cfg(test)]
mod testing;
pub mod ways;

pub(crate) use ghostwire_proto::{local, v1 as pb};

/// This program's version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
