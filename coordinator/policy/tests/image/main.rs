//! The class image: compiled as the reference evaluator judges, and changed in place without a loss.
#![expect(clippy::unwrap_used, reason = "the helpers of a test are as much a test as the rest")]

mod additions;
mod reference;
mod rules;
