//! The two boxes of the handshake: NaCl crypto_box (X25519, XSalsa20-Poly1305), nonce in front.

use crypto_box::SalsaBox;
use crypto_box::aead::Aead as _;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use thiserror::Error;

use super::{MAX_INFO_LEN, PublicKey, VERSION};

/// Length of a nonce in bytes.
pub const NONCE_LEN: usize = 24;

/// A private key, wiped when dropped.
#[derive(Clone)]
pub struct SecretKey(crypto_box::SecretKey);

impl std::fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SecretKey")
    }
}

impl SecretKey {
    /// A key from 32 random bytes.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes.into())
    }

    /// Its public half.
    pub fn public(&self) -> PublicKey {
        PublicKey(*self.0.public_key().as_bytes())
    }

    fn with(&self, other: PublicKey) -> SalsaBox {
        SalsaBox::new(&other.0.into(), &self.0)
    }
}

/// What a client says about itself. Fields of later versions are ignored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClientInfo {
    /// The secret of servers that mesh, 64 hex digits.
    #[serde(rename = "meshKey", skip_serializing_if = "String::is_empty")]
    pub mesh_key: String,
    /// Version of the protocol.
    pub version: u32,
    /// It answers pings.
    #[serde(rename = "CanAckPings")]
    pub can_ack_pings: bool,
    /// It only measures.
    #[serde(rename = "IsProber")]
    pub is_prober: bool,
}

impl ClientInfo {
    /// What our own client says.
    pub fn new() -> Self {
        Self { version: VERSION, can_ack_pings: true, ..Self::default() }
    }
}

/// What the server says about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServerInfo {
    /// Version of the protocol.
    pub version: u32,
    /// What a client may send on average, in bytes per second; 0: not limited.
    #[serde(rename = "TokenBucketBytesPerSecond", skip_serializing_if = "is_zero")]
    pub bytes_per_second: u64,
    /// And at once, in bytes.
    #[serde(rename = "TokenBucketBytesBurst", skip_serializing_if = "is_zero")]
    pub burst_bytes: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
fn is_zero(value: &u64) -> bool {
    *value == 0
}

/// Why a box is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum HandshakeError {
    /// Too long to be honest, or too short to hold anything.
    #[error("the message's length is not plausible")]
    Length,
    /// Not sealed by the holder of the key, or not for us.
    #[error("the box does not open")]
    Sealed,
    /// The box does not hold what it should.
    #[error("the contents are not the JSON object that is expected")]
    Contents,
}

/// Seals a message for `to`, with 24 random bytes that are used once.
pub fn seal<T: Serialize>(
    message: &T,
    from: &SecretKey,
    to: PublicKey,
    nonce: [u8; NONCE_LEN],
) -> Result<Vec<u8>, HandshakeError> {
    let json = serde_json::to_vec(message).map_err(|_| HandshakeError::Contents)?;
    let sealed = from.with(to).encrypt(&nonce.into(), json.as_slice());
    let sealed = sealed.map_err(|_| HandshakeError::Sealed)?;
    Ok([nonce.as_slice(), &sealed].concat())
}

/// Opens what [`seal`] sealed.
pub fn open<T: DeserializeOwned>(
    sealed: &[u8],
    to: &SecretKey,
    from: PublicKey,
) -> Result<T, HandshakeError> {
    if sealed.len() > MAX_INFO_LEN {
        return Err(HandshakeError::Length);
    }
    let (nonce, sealed) = sealed.split_first_chunk::<NONCE_LEN>().ok_or(HandshakeError::Length)?;
    let json = to.with(from).decrypt(&(*nonce).into(), sealed).map_err(|_| HandshakeError::Sealed)?;
    serde_json::from_slice(&json).map_err(|_| HandshakeError::Contents)
}
