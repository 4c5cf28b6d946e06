//! The access control programs on a real kernel. Needs root and a BPF filesystem.
#![expect(clippy::unwrap_used, reason = "a test that fails shall say where")]

#[expect(dead_code, reason = "shared with other tests, which use all of it")]
#[path = "../netns/mod.rs"]
mod netns;

#[path = "../budget/mod.rs"]
mod budget;

mod additions;
mod differential;
mod lab;
mod lifecycle;
mod model;
mod packets;
mod policies;
mod swap;
