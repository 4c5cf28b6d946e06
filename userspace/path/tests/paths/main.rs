//! The path machine against simulated networks.

mod grid;
mod hostile;
mod properties;
mod scenarios;
mod sim;
