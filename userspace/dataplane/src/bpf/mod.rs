//! What access control and steering share: loading programs whose maps outlive the process, and attaching them.
//!
//! `bpffs`: the BPF filesystem. `layout`: whether pinned maps are ours. `object`: loading with them. `attach`: tcx links
//! where pins last, else clsact filters. `qdisc`, `kernel`: netlink and system calls that the eBPF library does not offer.

pub(crate) mod attach;
pub(crate) mod bpffs;
mod error;
pub(crate) mod kernel;
pub(crate) mod layout;
pub(crate) mod object;
pub(crate) mod qdisc;

pub use attach::{Attach, Attachment};
pub use bpffs::Pins;
pub use error::BpfError;
pub use object::Origin;

/// A value that crosses the kernel boundary.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Wire<T>(pub(crate) T);

// SAFETY: used with the repr(C), padding-free types of ghostwire-ebpf-abi only, which have no invalid values
// (enums cross as integers).
unsafe impl<T: Copy + 'static> aya::Pod for Wire<T> {}
