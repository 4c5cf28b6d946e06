//! The node stream: a snapshot first, then only what changed and only if it concerns the node.
//!
//! - [`delta`]: pure: what to say to a node that knows a certain state.
//! - [`history`]: which states a node may come back with.
//! - [`session`]: one open stream.
//! - [`service`]: the gRPC service: proofs, limits, enrolment.

pub mod delta;
pub mod history;
pub mod service;
pub mod session;
