//! The XDP program in the running kernel: frame by frame against the userspace path's decision, with all checksums
//! computed anew. Needs root.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that fails shall say where")]
#![expect(clippy::cast_possible_truncation, reason = "packets are made from numbers of any size")]
#![expect(clippy::cast_precision_loss, reason = "packets are counted by the thousand")]

mod differential;
mod frames;
mod model;
mod stun;
