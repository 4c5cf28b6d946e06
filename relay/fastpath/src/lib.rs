//! What a relay does with each datagram on its relay ports. No I/O, no allocation, no state of its own: eBPF
//! programs link this crate, and so does the userspace path, which is the reference for them.
//!
//! ```text
//! datagram ── wireguard::classify ──► decide ──► Forward, Control, Drop
//!                                       │
//!                               table::lookup   the pair table: read here, laid out by table::Writer
//! ```
//!
//! - [`wireguard`]: which payloads pass at all.
//! - [`table`]: who may send where, in a flat array that a BPF map can hold.
//! - [`decide`]: the decision, one function.
#![cfg_attr(not(test), no_std)]

mod address;
mod decision;
pub mod table;
pub mod wireguard;

pub use address::{Endpoint, Ip};
pub use decision::{Datagram, Forward, Reason, Verdict, decide};
