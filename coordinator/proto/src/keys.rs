//! Public keys and fingerprints, as types that cannot be mixed up.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};
use thiserror::Error;

/// Why bytes or text are not a key.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum KeyError {
    /// Wrong number of bytes.
    #[error("{what}: expected 32 bytes, got {got}")]
    Length {
        /// Which key.
        what: &'static str,
        /// Bytes received.
        got: usize,
    },
    /// A public key of all zeros, with which every shared secret is known.
    #[error("{what} is all zeros")]
    Zero {
        /// Which key.
        what: &'static str,
    },
    /// Text that is not 64 hexadecimal digits.
    #[error("{what}: not 64 hexadecimal digits")]
    Text {
        /// Which key.
        what: &'static str,
    },
}

macro_rules! key {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; 32]);

        impl $name {
            /// Wraps 32 bytes as they are.
            pub const fn new(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }

            /// The 32 bytes.
            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }
        }

        impl TryFrom<&[u8]> for $name {
            type Error = KeyError;

            fn try_from(bytes: &[u8]) -> Result<Self, KeyError> {
                let bytes: [u8; 32] =
                    bytes.try_into().map_err(|_| KeyError::Length { what: $what, got: bytes.len() })?;
                if bytes == [0; 32] {
                    return Err(KeyError::Zero { what: $what });
                }
                Ok(Self(bytes))
            }
        }

        impl FromStr for $name {
            type Err = KeyError;

            fn from_str(text: &str) -> Result<Self, KeyError> {
                let mut bytes = [0; 32];
                hex::decode_to_slice(text, &mut bytes).map_err(|_| KeyError::Text { what: $what })?;
                Self::try_from(&bytes[..])
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), hex::encode(&self.0[..8]))
            }
        }
    };
}

key!(
    /// A machine's identity: an Ed25519 public key.
    MachineKey,
    "machine key"
);
key!(
    /// A node's WireGuard key: an X25519 public key.
    NodeKey,
    "node key"
);
key!(
    /// SHA-256 of a DER certificate.
    Fingerprint,
    "certificate fingerprint"
);

impl Fingerprint {
    /// The fingerprint of a DER certificate.
    pub fn of(certificate: &[u8]) -> Self {
        Self(Sha256::digest(certificate).into())
    }
}

/// A node key in WireGuard's own notation: base64.
pub fn wireguard_text(key: &NodeKey) -> String {
    STANDARD.encode(key.as_bytes())
}
