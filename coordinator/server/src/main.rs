//! The coordination server.

fn main() {}
