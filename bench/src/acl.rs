//! What access control costs per packet.
//!
//! [`kernel`] measures programs by `BPF_PROG_TEST_RUN`, less an empty program; [`wire`] measures real datagrams
//! over a loopback device with nothing, with our ingress program, and with nftables at the same hook; [`policies`]
//! makes the policies that both enforce.

pub mod kernel;
pub mod policies;
pub mod wire;
