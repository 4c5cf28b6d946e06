//! Wire types of GhostWire's control plane, and everything that both of its ends must agree on.
//!
//! - [`v1`]: nodes and administrators talk to the coordinator (`proto/{network,node,signal,admin}.proto`).
//! - [`local`]: `gwctl` talks to the node daemon (`proto/local.proto`).
//! - [`join_key`]: the token that an administrator hands to a new machine. It carries the coordinator's
//!   addresses and the fingerprint of its CA, so a machine joins securely without a domain.
//! - [`tls`] and [`channel`]: connections that trust exactly that CA.
//! - [`proof`]: a machine proves that it holds its key.
//! - [`filter`] and [`address`]: generated types to the types that programs work with. These conversions are
//!   total: bytes from the network become a valid value or an error.

pub mod address;
pub mod auth_key;
pub mod channel;
pub mod filter;
pub mod join_key;
pub mod keys;
pub mod proof;
mod redact;
pub mod tls;

/// The largest message that either side of the control plane accepts: a snapshot of 10,000 peers with room to
/// spare.
pub const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// The largest message that a coordinator accepts from a node.
pub const MAX_NODE_MESSAGE_BYTES: usize = 64 << 10;

/// The largest signal that the coordinator passes on: 16 candidates and 16 relays take half of it.
pub const MAX_SIGNAL_BYTES: usize = 2 << 10;

/// The packages as the compiler of `.proto` files nests them.
#[expect(
    missing_docs,
    clippy::pedantic,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    reason = "generated; the .proto files carry the documentation"
)]
mod generated {
    pub mod v1 {
        tonic::include_proto!("ghostwire.v1");
    }
    pub(crate) mod local {
        pub mod v1 {
            tonic::include_proto!("ghostwire.local.v1");
        }
    }
}

/// Messages between `gwctl` and the node daemon.
pub use generated::local::v1 as local;
/// Messages between nodes, administrators and the coordinator.
pub use generated::v1;
