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
//! - [`abi`]: what userspace and the XDP program agree on besides the table.
//! - [`pace`]: how fast a session may send.
//! - [`frame`]: frames on the wire: to a [`Datagram`], and rewritten as a [`Forward`] says; for XDP programs.
#![cfg_attr(not(test), no_std)]

pub mod abi;
mod address;
mod decision;
pub mod frame;
pub mod pace;
pub mod table;
pub mod wireguard;

pub use address::{Endpoint, Ip};
pub use decision::{Datagram, Forward, Reason, Verdict, decide, decide_with};
pub use pace::Pace;
