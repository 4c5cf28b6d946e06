//! GhostWire's policy language: HuJSON → resolved policy → per-node filter → class image.
//!
//! Pure: no I/O, no clock. The coordinator parses and resolves; each node compiles its own filter into the
//! image that its eBPF programs read.

pub mod filter;
pub mod topology;
