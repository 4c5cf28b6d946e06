//! What access control costs per packet.
//!
//! ```text
//! policies ─> images ─┬─> kernel   nanoseconds per packet by BPF_PROG_TEST_RUN, over an empty program
//!                     │    └─ steps  the same for the parts that every packet needs
//!                     └─> wire     real datagrams over a loopback device: with nothing, with our program,
//!                          └─ nft    and with nftables
//! samples: a neighbour on the machine slows everything by the same factor, so everything is paired
//! bpf: the system calls
//! ```

pub mod bpf;
pub mod kernel;
pub mod nft;
pub mod policies;
pub mod samples;
pub mod steps;
pub mod wire;
