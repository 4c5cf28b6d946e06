//! What relaying costs: frames through a pair of veth devices, both with XDP in the driver's mode.
//!
//! ```text
//! generator ── client device ═══ relay device: XDP program, or sockets behind it
//!              client device ◄══ relay device
//!              sink: counts and drops
//! ```
//!
//! - [`program`]: the small programs around what is measured, instruction by instruction.
//! - [`lab`]: namespaces and devices.
//! - [`turn`]: enough of TURN (RFC 8656) to have coturn relay.

pub mod lab;
pub mod program;
pub mod turn;
