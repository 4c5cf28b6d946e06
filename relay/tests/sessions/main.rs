//! The session table: what nodes can do, and what attackers cannot.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that fails shall say where")]

mod attacks;
mod client;
mod life;
mod model;
mod resume;
mod world;
