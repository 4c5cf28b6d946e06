//! What is kept of a peer, so that both find each other after a restart while the coordinator is away.

use std::fmt;

use serde::{Deserialize, Serialize};
use zeroize::ZeroizeOnDrop;

/// One peer. Its secrets are never printed, and wiped when dropped.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ZeroizeOnDrop)]
#[serde(deny_unknown_fields)]
pub struct Acquaintance {
    /// Its number in the network map.
    pub id: u64,
    /// Its WireGuard key: the number may belong to another machine by now.
    #[serde(with = "hex::serde")]
    pub key: [u8; 32],
    /// The user name fragment that it puts into checks for us.
    pub fragment: String,
    /// The password that it signs them with. Secret.
    pub password: String,
    /// Its last signal (the protobuf message `Signal`), which holds its credentials. Empty: there was none. Secret.
    #[serde(with = "hex::serde")]
    pub signal: Vec<u8>,
}

impl fmt::Debug for Acquaintance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Acquaintance").field("id", &self.id).finish_non_exhaustive()
    }
}
