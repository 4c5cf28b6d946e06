//! The real process, its real sockets, in a network namespace of its own. Needs root.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that fails shall say where")]
#![expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "packets are counted by the thousand"
)]

mod attacks;
mod derp;
mod kernel;
mod lab;
mod udp;
mod world;
