//! The relay ports in userspace: the path where no XDP program is, and the reference for it.
//!
//! One UDP socket per relay port and address, made when the port is given out. A node has one port, so a relay
//! full of nodes has as many sockets as ports; in exchange the kernel answers for ports that nobody has, no
//! privilege is needed, and nothing here parses IP headers. Datagrams move in batches (`recvmmsg`, `sendmmsg`).
//! Fragments are put together by the kernel before they come here, and cut again where they have to be.
//!
//! - `socket`: sockets with their control messages; the only unsafe code.
//! - `plane`: from a batch received to batches sent; drives the session table and feeds an XDP program, if there is one.
//! - `journal`: the file by which a restarted relay knows whose ports and pairs it finds.

mod journal;
mod plane;
mod socket;

pub use plane::{Counters, Kernel, Observer, Plane, StartError};
