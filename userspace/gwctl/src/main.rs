//! The command line of GhostWire.

fn main() {}
