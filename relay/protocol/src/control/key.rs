//! The key of MESSAGE-INTEGRITY-SHA256.

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

use crate::token::RelayId;

const CONTEXT: &[u8] = b"ghostwire relay control v1\0";

/// What only the holder of the session key and the relay can compute.
pub struct IntegrityKey(Zeroizing<[u8; 32]>);

impl std::fmt::Debug for IntegrityKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("IntegrityKey")
    }
}

impl IntegrityKey {
    /// The node's side: its session's private key and the relay's public key.
    pub fn for_node(session: &StaticSecret, relay: RelayId, relay_key: &[u8; 32]) -> Option<Self> {
        let session_public = PublicKey::from(session);
        Self::derive(session, relay_key, relay, relay_key, session_public.as_bytes())
    }

    /// The relay's side: its private key and the session key of the token.
    pub fn for_relay(relay_secret: &StaticSecret, relay: RelayId, session_key: &[u8; 32]) -> Option<Self> {
        let relay_public = PublicKey::from(relay_secret);
        Self::derive(relay_secret, session_key, relay, relay_public.as_bytes(), session_key)
    }

    /// `None`: the other side's key is one that makes the secret public (a point of small order).
    fn derive(
        mine: &StaticSecret,
        theirs: &[u8; 32],
        relay: RelayId,
        relay_key: &[u8; 32],
        session_key: &[u8; 32],
    ) -> Option<Self> {
        let shared = mine.diffie_hellman(&PublicKey::from(*theirs));
        if !shared.was_contributory() {
            return None;
        }
        let mut mac = Hmac::<Sha256>::new_from_slice(shared.as_bytes()).ok()?;
        mac.update(CONTEXT);
        mac.update(&relay.0);
        mac.update(relay_key);
        mac.update(session_key);
        Some(Self(Zeroizing::new(mac.finalize().into_bytes().into())))
    }

    /// The bytes, for [`crate::stun`].
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_slice()
    }
}
