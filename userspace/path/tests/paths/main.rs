//! The path machine against simulated networks.

#![expect(clippy::unwrap_used, reason = "a simulation that cannot be set up fails its test")]

mod grid;
mod hostile;
mod properties;
mod scenarios;
mod sim;
