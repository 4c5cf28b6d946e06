//! The real process, its real sockets, in a network namespace of its own. Needs root.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that fails shall say where")]

mod derp;
mod kernel;
mod lab;
mod udp;
