//! The frame around every file in the state directory.
//!
//! ```text
//! "ghostwire-state\n"  16 bytes
//! format version        1 byte
//! kind of content       1 byte
//! payload length        8 bytes, little-endian
//! SHA-256               32 bytes, over the 10 bytes above and the payload
//! payload
//! ```
//!
//! [`open`] is total: whatever the bytes are, the answer is the payload that was sealed, or why not.

use sha2::{Digest, Sha256};

/// First bytes of every file.
const MAGIC: &[u8; 16] = b"ghostwire-state\n";
/// The layout above.
const VERSION: u8 = 1;
/// Bytes before the payload.
pub const HEADER: usize = 16 + 1 + 1 + 8 + 32;

/// What a file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Keys, and where the node is enrolled.
    Identity = 1,
    /// What the user asked for.
    Settings = 2,
    /// The last network map.
    Map = 3,
    /// What peers and we have told each other.
    Peers = 4,
}

/// Why bytes are not a sealed file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// Shorter than the header, or than the header says.
    #[error("it is cut short: {have} bytes of {want}")]
    Truncated {
        /// Bytes there are.
        have: usize,
        /// Bytes there should be.
        want: usize,
    },
    /// Longer than the header says.
    #[error("there are {0} bytes after its end")]
    Trailing(usize),
    /// Another file altogether.
    #[error("it does not begin like a GhostWire state file")]
    Foreign,
    /// A newer format.
    #[error("it has format version {0}, and this program knows only {VERSION}")]
    Version(u8),
    /// A file of another kind under this name.
    #[error("it holds content of another kind ({0})")]
    Kind(u8),
    /// Bytes changed after writing.
    #[error("its checksum does not match its content")]
    Checksum,
}

/// Frames a payload.
pub fn seal(kind: Kind, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + payload.len());
    bytes.extend_from_slice(MAGIC);
    bytes.push(VERSION);
    bytes.push(kind as u8);
    bytes.extend_from_slice(&(payload.len() as u64).to_le_bytes());
    let sum = checksum(&bytes[MAGIC.len()..], payload);
    bytes.extend_from_slice(&sum);
    bytes.extend_from_slice(payload);
    bytes
}

/// Takes the payload out of its frame.
pub fn open(kind: Kind, bytes: &[u8]) -> Result<&[u8], Damage> {
    let Some((header, payload)) = bytes.split_at_checked(HEADER) else {
        return Err(Damage::Truncated { have: bytes.len(), want: HEADER });
    };
    let (magic, rest) = header.split_at(MAGIC.len());
    if magic != MAGIC {
        return Err(Damage::Foreign);
    }
    if rest[0] != VERSION {
        return Err(Damage::Version(rest[0]));
    }
    let (described, sum) = rest.split_at(10);
    let mut length = [0_u8; 8];
    length.copy_from_slice(&described[2..]);
    let length = usize::try_from(u64::from_le_bytes(length)).unwrap_or(usize::MAX);
    if payload.len() < length {
        return Err(Damage::Truncated { have: bytes.len(), want: HEADER.saturating_add(length) });
    }
    if payload.len() > length {
        return Err(Damage::Trailing(payload.len() - length));
    }
    if checksum(described, payload) != sum {
        return Err(Damage::Checksum);
    }
    if described[1] != kind as u8 {
        return Err(Damage::Kind(described[1]));
    }
    Ok(payload)
}

fn checksum(described: &[u8], payload: &[u8]) -> [u8; 32] {
    Sha256::new().chain_update(described).chain_update(payload).finalize().into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_flipped_bit_or_a_cut_anywhere_is_noticed() {
        let sealed = seal(Kind::Map, b"the map of a network");
        assert_eq!(open(Kind::Map, &sealed), Ok(&b"the map of a network"[..]));
        for at in 0..sealed.len() {
            assert!(open(Kind::Map, &sealed[..at]).is_err(), "cut at {at}");
            for bit in 0..8 {
                let mut bytes = sealed.clone();
                bytes[at] ^= 1 << bit;
                assert!(open(Kind::Map, &bytes).is_err(), "bit {bit} of byte {at}");
            }
        }
        let mut longer = sealed.clone();
        longer.push(0);
        assert_eq!(open(Kind::Map, &longer), Err(Damage::Trailing(1)));
        assert_eq!(open(Kind::Identity, &sealed), Err(Damage::Kind(3)));
    }

    proptest! {
        #[test]
        fn garbage_is_never_opened(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(open(Kind::Identity, &bytes).is_err());
        }

        #[test]
        fn what_was_sealed_comes_back(bytes in prop::collection::vec(any::<u8>(), 0..500)) {
            let sealed = seal(Kind::Settings, &bytes);
            prop_assert_eq!(open(Kind::Settings, &sealed).unwrap(), &bytes[..]);
        }
    }
}
