//! Nonces for proofs: each works once, for a minute.
//!
//! A nonce carries the time and a tag that only this process can make, so handing one out costs no memory. Only
//! nonces that came back under a valid signature are remembered, until they are too old to work anyway. A restart
//! forgets the key, and with it every nonce.

use std::collections::{HashSet, VecDeque};
use std::sync::{Mutex, PoisonError};

use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use thiserror::Error;

use crate::model::UnixMs;

/// How long a nonce works.
pub const LIFETIME_MS: i64 = 60_000;
/// Most used nonces that are remembered. Beyond it, proofs are refused until old ones have expired.
const MOST_USED: usize = 1 << 18;
const TAG_FROM: usize = 16;

/// Why a nonce does not work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NonceError {
    /// Not from this process.
    #[error("the nonce is not this coordinator's; ask for a new one")]
    Foreign,
    /// Too old.
    #[error("the nonce is older than a minute; ask for a new one")]
    Expired,
    /// Used.
    #[error("the nonce was used before: this message is a replay")]
    Replayed,
    /// Too many proofs.
    #[error("too many proofs in one minute; try again later")]
    Busy,
}

/// Makes nonces and takes each back once.
pub struct Nonces {
    key: [u8; 32],
    used: Mutex<Used>,
}

#[derive(Default)]
struct Used {
    set: HashSet<[u8; 32]>,
    by_age: VecDeque<(UnixMs, [u8; 32])>,
}

impl Nonces {
    /// `key` is random.
    pub fn new(key: [u8; 32]) -> Self {
        Self { key, used: Mutex::default() }
    }

    /// A nonce of this moment.
    pub fn issue(&self, now: UnixMs, random: [u8; 8]) -> [u8; 32] {
        let mut nonce = [0; 32];
        nonce[..8].copy_from_slice(&now.to_be_bytes());
        nonce[8..TAG_FROM].copy_from_slice(&random);
        let tag = self.tag(&nonce);
        nonce[TAG_FROM..].copy_from_slice(&tag);
        nonce
    }

    /// SHA-256 of key and a prefix of fixed length, cut to 128 bits: lengths are fixed and the output is cut, so
    /// the hash cannot be extended to another message.
    fn tag(&self, nonce: &[u8; 32]) -> [u8; 16] {
        let digest: [u8; 32] =
            Sha256::new_with_prefix(self.key).chain_update(&nonce[..TAG_FROM]).finalize().into();
        let mut tag = [0; 16];
        tag.copy_from_slice(&digest[..16]);
        tag
    }

    /// Takes a nonce back from a message whose signature is valid.
    pub fn redeem(&self, nonce: &[u8; 32], now: UnixMs) -> Result<(), NonceError> {
        if !bool::from(self.tag(nonce).ct_eq(&nonce[TAG_FROM..])) {
            return Err(NonceError::Foreign);
        }
        let mut issued = [0; 8];
        issued.copy_from_slice(&nonce[..8]);
        let issued = UnixMs::from_be_bytes(issued);
        if now.saturating_sub(issued) > LIFETIME_MS {
            return Err(NonceError::Expired);
        }
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        while used.by_age.front().is_some_and(|(at, _)| now.saturating_sub(*at) > LIFETIME_MS) {
            if let Some((_, old)) = used.by_age.pop_front() {
                used.set.remove(&old);
            }
        }
        if used.set.contains(nonce) {
            return Err(NonceError::Replayed);
        }
        if used.set.len() >= MOST_USED {
            return Err(NonceError::Busy);
        }
        used.set.insert(*nonce);
        used.by_age.push_back((now.max(issued), *nonce));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nonce_works_once_and_for_a_minute() {
        let nonces = Nonces::new([1; 32]);
        let nonce = nonces.issue(1_000, [0; 8]);
        assert_eq!(nonces.redeem(&nonce, 2_000), Ok(()));
        assert_eq!(nonces.redeem(&nonce, 3_000), Err(NonceError::Replayed));
        assert_eq!(nonces.redeem(&nonce, 1_000 + LIFETIME_MS), Err(NonceError::Replayed));
        assert_eq!(nonces.redeem(&nonce, 200_000), Err(NonceError::Expired));
        let late = nonces.issue(1_000, [1; 8]);
        assert_eq!(nonces.redeem(&late, 1_001 + LIFETIME_MS), Err(NonceError::Expired));
    }

    #[test]
    fn nobody_else_can_make_one() {
        let nonces = Nonces::new([1; 32]);
        let other = Nonces::new([2; 32]).issue(1_000, [0; 8]);
        assert_eq!(nonces.redeem(&other, 1_000), Err(NonceError::Foreign));
        let mut later = nonces.issue(1_000, [0; 8]);
        later[6] ^= 1;
        assert_eq!(nonces.redeem(&later, 1_000), Err(NonceError::Foreign));
    }

    #[test]
    fn expired_ones_are_forgotten() {
        let nonces = Nonces::new([1; 32]);
        for n in 0..100u8 {
            let at = i64::from(n) * 10_000;
            nonces.redeem(&nonces.issue(at, [n; 8]), at).unwrap();
        }
        assert!(nonces.used.lock().unwrap().set.len() <= 8);
    }
}
