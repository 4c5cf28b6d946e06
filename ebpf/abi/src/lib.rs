//! The only vocabulary shared by GhostWire's eBPF programs and userspace.
//!
//! Every map key, map value and constant that crosses the kernel boundary is defined here, `no_std`,
//! `repr(C)`, free of padding, with its layout asserted at compile time.
//!
//! - [`image`]: the class image, the compiled policy of one node, as an array of 64-bit words.
//! - [`conntrack`]: keys and values of the connection and fragment tables.
//! - [`event`]: what the programs tell userspace about single packets, and the reasons they count.
//! - [`config`]: run-time knobs that are not policy.
//! - [`steer`]: stable endpoints: paths, admitted remotes, and the synthetic addresses.
//!
//! Multi-byte fields are in host byte order unless the name ends in `_be`. Addresses are byte arrays in
//! network order.
#![no_std]

pub mod config;
pub mod conntrack;
pub mod event;
pub mod image;
pub mod steer;
