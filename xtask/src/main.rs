//! Set up, build, demonstrate, test, measure and package GhostWire.

fn main() {}
