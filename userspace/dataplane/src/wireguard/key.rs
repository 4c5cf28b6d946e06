//! Key types that cannot be mixed up. Secrets are wiped when dropped, never printed, and compared in
//! constant time.

use std::{fmt, str::FromStr};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use subtle::ConstantTimeEq as _;
use zeroize::{Zeroize as _, ZeroizeOnDrop, Zeroizing};

/// Text that is not a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a WireGuard key: 32 bytes in base64 (44 characters) or hexadecimal (64 digits) are needed")]
pub struct InvalidKey;

/// Decodes base64 or hexadecimal into 32 bytes.
fn decode(text: &str) -> Result<Zeroizing<[u8; 32]>, InvalidKey> {
    let mut bytes = Zeroizing::new([0; 32]);
    if text.len() == 64 {
        hex::decode_to_slice(text, bytes.as_mut()).map_err(|_| InvalidKey)?;
        return Ok(bytes);
    }
    // The decoder wants room for whole groups of four characters: 33 bytes.
    let mut room = Zeroizing::new([0; 33]);
    match STANDARD.decode_slice(text, room.as_mut()) {
        Ok(32) => bytes.copy_from_slice(&room[..32]),
        _ => return Err(InvalidKey),
    }
    Ok(bytes)
}

/// The public half of a node's key: who a peer is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// From its 32 bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Its 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl FromStr for PublicKey {
    type Err = InvalidKey;

    fn from_str(text: &str) -> Result<Self, InvalidKey> {
        decode(text).map(|bytes| Self(*bytes))
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "PublicKey({self})")
    }
}

/// What both kinds of secret have in common.
macro_rules! secret {
    ($name:ident) => {
        impl $name {
            /// From its 32 bytes.
            pub const fn from_bytes(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }

            /// Its 32 bytes. Wipe copies of them.
            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidKey;

            fn from_str(text: &str) -> Result<Self, InvalidKey> {
                decode(text).map(|bytes| Self(*bytes))
            }
        }

        impl PartialEq for $name {
            fn eq(&self, other: &Self) -> bool {
                self.0.ct_eq(&other.0).into()
            }
        }

        impl Eq for $name {}

        impl Drop for $name {
            fn drop(&mut self) {
                self.0.zeroize();
            }
        }

        impl ZeroizeOnDrop for $name {}

        impl fmt::Debug for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(concat!(stringify!($name), "(redacted)"))
            }
        }
    };
}

/// The secret half of a node's key.
#[derive(Clone)]
pub struct PrivateKey([u8; 32]);

secret!(PrivateKey);

impl PrivateKey {
    /// A new random key.
    pub fn generate() -> Self {
        let mut bytes = [0; 32];
        rand::fill(&mut bytes);
        // Clamped (RFC 7748 section 5), as the kernel stores it: what is read back compares equal.
        bytes[0] &= 0xf8;
        bytes[31] = (bytes[31] & 0x7f) | 0x40;
        Self(bytes)
    }

    /// The public key that belongs to it.
    pub fn public_key(&self) -> PublicKey {
        let secret = x25519_dalek::StaticSecret::from(self.0);
        PublicKey(x25519_dalek::PublicKey::from(&secret).to_bytes())
    }
}

/// A secret that two peers share, mixed into their handshakes against quantum computers to come.
#[derive(Clone)]
pub struct PresharedKey([u8; 32]);

secret!(PresharedKey);

impl PresharedKey {
    /// The value that stands for none.
    pub const NONE: Self = Self([0; 32]);

    /// A new random key.
    pub fn generate() -> Self {
        let mut bytes = [0; 32];
        rand::fill(&mut bytes);
        Self(bytes)
    }

    /// Whether it stands for none.
    pub fn is_none(&self) -> bool {
        *self == Self::NONE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pair of keys as the `wg` tool makes them.
    const PRIVATE: &str = "8A811AbjTsDZKDaidX02mQq53R+YoqL7b/r17wWbDmU=";
    const PUBLIC: &str = "HiOxhzjJUIcl4FmZTZm54hMRtBW+rTyTUoPEHn1mhxY=";

    #[test]
    fn the_public_key_is_the_one_that_wg_computes() {
        let private: PrivateKey = PRIVATE.parse().unwrap();
        assert_eq!(private.public_key(), PUBLIC.parse().unwrap());
    }

    #[test]
    fn secrets_are_not_printed() {
        let private: PrivateKey = PRIVATE.parse().unwrap();
        assert_eq!(format!("{private:?}"), "PrivateKey(redacted)");
        assert_eq!(format!("{:?}", PresharedKey::generate()), "PresharedKey(redacted)");
    }

    #[test]
    fn public_keys_survive_both_notations() {
        let key = PrivateKey::generate().public_key();
        assert_eq!(key.to_string().parse(), Ok(key));
        assert_eq!(hex::encode(key.as_bytes()).parse(), Ok(key));
    }

    #[test]
    fn what_is_not_a_key_is_refused() {
        let good = PrivateKey::generate().public_key().to_string();
        for bad in ["", "AAAA", &good[1..], &format!("{good}="), &"g".repeat(64), &"A".repeat(10_000)] {
            assert_eq!(bad.parse::<PublicKey>(), Err(InvalidKey), "{bad}");
        }
    }

    #[test]
    fn generated_keys_differ_and_are_clamped() {
        let (one, two) = (PrivateKey::generate(), PrivateKey::generate());
        assert!(one != two);
        assert_eq!(one.as_bytes()[0] & 7, 0);
        assert_eq!(one.as_bytes()[31] & 0xc0, 0x40);
    }
}
