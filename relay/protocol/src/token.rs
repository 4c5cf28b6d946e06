//! Tokens: what the coordinator signs so that a relay can judge a request without asking anybody.
//!
//! A token names one node of one network, what it may do (have a relay port, or bind to one peer's port), on
//! which relay, until when. It also carries the public half of a session key (X25519) that the node made: whoever
//! uses the token has to hold the private half (see [`crate::control::IntegrityKey`]), so an eavesdropper who
//! copies a token from the wire gains nothing.
//!
//! ```text
//! offset  bytes  big-endian
//!      0      1  version, 1
//!      1      1  grant: 1 allocate, 2 bind
//!      2      2  number of the coordinator's signing key
//!      4      4  rate limit in kbit/s, 0: the relay's default
//!      8      8  network
//!     16      8  node
//!     24      8  peer; 0 for allocate
//!     32     16  relay
//!     48      8  issued, seconds since 1970
//!     56      8  expires, seconds since 1970
//!     64     32  session key, X25519
//!     96     64  Ed25519 signature over CONTEXT and bytes 0 to 95
//! ```

use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use thiserror::Error;

/// Length of an encoded token in bytes.
pub const TOKEN_LEN: usize = 160;

/// Length of the signed part.
const BODY_LEN: usize = 96;

const VERSION: u8 = 1;
const ALLOCATE: u8 = 1;
const BIND: u8 = 2;

/// Precedes the body in what is signed, so that the signature means nothing elsewhere.
const CONTEXT: &[u8] = b"ghostwire relay token v1\0";

/// How far the coordinator's clock may be ahead of the relay's, in seconds.
const CLOCK_SKEW_SECS: u64 = 300;

/// The longest life of a token in seconds: a day. Revoking a node takes effect on relays when its tokens end.
pub const MAX_LIFETIME_SECS: u64 = 24 * 3600;

/// Identifies a relay for the coordinator and in tokens. Random, made by the relay on its first start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RelayId(pub [u8; 16]);

/// A network of the coordinator's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetworkId(pub u64);

/// A node, unique in its network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u64);

/// Which of the coordinator's keys signed a token, so that keys can be replaced while old tokens live.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyNumber(pub u16);

/// What a token allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grant {
    /// To have a relay port.
    Allocate,
    /// To bind to the relay port of a peer.
    Bind {
        /// The peer.
        peer: NodeId,
    },
}

/// A token's contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    /// Which key signed it.
    pub key: KeyNumber,
    /// The network.
    pub network: NetworkId,
    /// The node that may use it.
    pub node: NodeId,
    /// What it may do.
    pub grant: Grant,
    /// The relay that it is for.
    pub relay: RelayId,
    /// The session's rate in kbit/s; `None`: the relay's default.
    pub rate_kbit: Option<u32>,
    /// When it was issued, in seconds since 1970.
    pub issued: u64,
    /// When it ends, in seconds since 1970.
    pub expires: u64,
    /// Public half of the session key, X25519.
    pub session_key: [u8; 32],
}

/// Why a token is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum TokenError {
    /// Not a token of a version that this relay knows.
    #[error("not a token of a known version")]
    Malformed,
    /// Signed by a key that the relay does not know.
    #[error("signed with a key that this relay does not know")]
    UnknownKey,
    /// The signature is wrong.
    #[error("the signature does not match")]
    Signature,
    /// For another relay.
    #[error("issued for another relay")]
    OtherRelay,
    /// Its time is over.
    #[error("expired")]
    Expired,
    /// Issued in the future, or for longer than a day.
    #[error("its times are not plausible; compare the clocks of coordinator and relay")]
    Implausible,
}

impl Token {
    /// Signs the token. The coordinator does this.
    pub fn sign(&self, key: &SigningKey) -> [u8; TOKEN_LEN] {
        let mut out = [0; TOKEN_LEN];
        out[..BODY_LEN].copy_from_slice(&self.body());
        let signature = key.sign(&signed_bytes(&self.body()));
        out[BODY_LEN..].copy_from_slice(&signature.to_bytes());
        out
    }

    /// Reads and verifies a token: signature first, so that nothing in it is believed before. `keys` finds the
    /// coordinator's public keys, `now` is in seconds since 1970.
    pub fn verify(
        bytes: &[u8; TOKEN_LEN],
        relay: RelayId,
        now: u64,
        keys: impl Fn(KeyNumber) -> Option<VerifyingKey>,
    ) -> Result<Self, TokenError> {
        let (body, signature) = bytes.split_first_chunk::<BODY_LEN>().ok_or(TokenError::Malformed)?;
        let signature = Signature::from_slice(signature).map_err(|_| TokenError::Malformed)?;
        let key = keys(KeyNumber(u16::from_be_bytes([body[2], body[3]]))).ok_or(TokenError::UnknownKey)?;
        key.verify_strict(&signed_bytes(body), &signature).map_err(|_| TokenError::Signature)?;
        let token = Self::from_body(body)?;
        if token.relay != relay {
            return Err(TokenError::OtherRelay);
        }
        if token.expires <= now {
            return Err(TokenError::Expired);
        }
        let too_long = token.expires.saturating_sub(token.issued) > MAX_LIFETIME_SECS;
        if token.issued > now.saturating_add(CLOCK_SKEW_SECS) || too_long {
            return Err(TokenError::Implausible);
        }
        Ok(token)
    }

    fn body(&self) -> [u8; BODY_LEN] {
        let (grant, peer) = match self.grant {
            Grant::Allocate => (ALLOCATE, 0),
            Grant::Bind { peer } => (BIND, peer.0),
        };
        let mut out = [0; BODY_LEN];
        out[0] = VERSION;
        out[1] = grant;
        out[2..4].copy_from_slice(&self.key.0.to_be_bytes());
        out[4..8].copy_from_slice(&self.rate_kbit.unwrap_or(0).to_be_bytes());
        out[8..16].copy_from_slice(&self.network.0.to_be_bytes());
        out[16..24].copy_from_slice(&self.node.0.to_be_bytes());
        out[24..32].copy_from_slice(&peer.to_be_bytes());
        out[32..48].copy_from_slice(&self.relay.0);
        out[48..56].copy_from_slice(&self.issued.to_be_bytes());
        out[56..64].copy_from_slice(&self.expires.to_be_bytes());
        out[64..96].copy_from_slice(&self.session_key);
        out
    }

    fn from_body(body: &[u8; BODY_LEN]) -> Result<Self, TokenError> {
        let u64_at = |at: usize| {
            let bytes = body.get(at..at + 8).and_then(|bytes| bytes.first_chunk::<8>());
            bytes.copied().map(u64::from_be_bytes).ok_or(TokenError::Malformed)
        };
        let peer = u64_at(24)?;
        let grant = match (body[0], body[1], peer) {
            (VERSION, ALLOCATE, 0) => Grant::Allocate,
            (VERSION, BIND, _) => Grant::Bind { peer: NodeId(peer) },
            _ => return Err(TokenError::Malformed),
        };
        let rate = u32::from_be_bytes([body[4], body[5], body[6], body[7]]);
        let mut relay = RelayId([0; 16]);
        relay.0.copy_from_slice(&body[32..48]);
        let mut session_key = [0; 32];
        session_key.copy_from_slice(&body[64..96]);
        Ok(Self {
            key: KeyNumber(u16::from_be_bytes([body[2], body[3]])),
            network: NetworkId(u64_at(8)?),
            node: NodeId(u64_at(16)?),
            grant,
            relay,
            rate_kbit: (rate != 0).then_some(rate),
            issued: u64_at(48)?,
            expires: u64_at(56)?,
            session_key,
        })
    }
}

fn signed_bytes(body: &[u8; BODY_LEN]) -> Vec<u8> {
    [CONTEXT, body].concat()
}
