//! Benchmarks: what is measured, and how its inputs are made. The binaries print tables and end with one line of
//! JSON.

pub mod acl;
mod instruction;
pub mod policy;
pub mod relay;
