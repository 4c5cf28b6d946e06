//! Auth keys: what admits a machine. Text form `<id>.<secret>`; the id is public, the secret is 32 random bytes.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use thiserror::Error;
use zeroize::Zeroize;

use crate::redact::REDACTED;

/// Longest id of an auth key.
pub const MAX_ID_LEN: usize = 32;

/// Why text is not an auth key. Never shows any of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("not an auth key: expected an id, a dot and 43 characters of secret")]
pub struct AuthKeyError;

/// An auth key with its secret, which it never prints.
#[derive(Clone)]
pub struct AuthKey {
    id: String,
    secret: [u8; 32],
}

/// What the coordinator stores of an auth key's secret.
#[derive(Clone, Copy)]
pub struct SecretHash([u8; 32]);

impl AuthKey {
    /// Puts an auth key together. The id is 1 to 32 lower-case letters and digits.
    pub fn new(id: impl Into<String>, secret: [u8; 32]) -> Result<Self, AuthKeyError> {
        let id = id.into();
        let well_formed = (1..=MAX_ID_LEN).contains(&id.len())
            && id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        if well_formed { Ok(Self { id, secret }) } else { Err(AuthKeyError) }
    }

    /// Reads the text form.
    pub fn parse(text: &str) -> Result<Self, AuthKeyError> {
        let (id, secret) = text.split_once('.').ok_or(AuthKeyError)?;
        if secret.len() != 43 {
            return Err(AuthKeyError);
        }
        let bytes = URL_SAFE_NO_PAD.decode(secret).map_err(|_| AuthKeyError)?;
        Self::new(id, bytes.try_into().map_err(|_| AuthKeyError)?)
    }

    /// The public part.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The secret part.
    pub(crate) fn secret(&self) -> &[u8; 32] {
        &self.secret
    }

    /// The text form, secret included.
    pub fn expose(&self) -> String {
        format!("{}.{}", self.id, URL_SAFE_NO_PAD.encode(self.secret))
    }

    /// What the coordinator stores instead of the secret. The secret is 256 random bits, so a fast hash without
    /// salt is enough.
    pub fn secret_hash(&self) -> SecretHash {
        SecretHash(Sha256::digest(self.secret).into())
    }
}

impl Drop for AuthKey {
    fn drop(&mut self) {
        self.secret.zeroize();
    }
}

impl fmt::Debug for AuthKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthKey").field("id", &self.id).field("secret", &REDACTED).finish()
    }
}

impl PartialEq for AuthKey {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id && bool::from(self.secret.ct_eq(&other.secret))
    }
}

impl Eq for AuthKey {}

impl SecretHash {
    /// Wraps a stored hash.
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes to store.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// In constant time.
impl PartialEq for SecretHash {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for SecretHash {}

impl fmt::Debug for SecretHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretHash({REDACTED})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_round_trips_and_debug_hides_the_secret() {
        let key = AuthKey::new("abc123", [7; 32]).unwrap();
        assert_eq!(AuthKey::parse(&key.expose()).unwrap(), key);
        let secret = key.expose().split_once('.').unwrap().1.to_owned();
        assert!(!format!("{key:?} {:?}", key.secret_hash()).contains(&secret));
    }

    #[test]
    fn malformed_text_is_refused() {
        let good = AuthKey::new("abc", [1; 32]).unwrap().expose();
        for bad in
            ["", ".", "abc", "abc.", &good[..good.len() - 1], &format!("{good}A"), &good.to_uppercase()]
        {
            assert_eq!(AuthKey::parse(bad), Err(AuthKeyError), "{bad}");
        }
        assert!(AuthKey::new("a".repeat(33), [0; 32]).is_err());
        assert!(AuthKey::new("A", [0; 32]).is_err());
    }
}
