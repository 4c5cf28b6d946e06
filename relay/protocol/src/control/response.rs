//! Responses.

use std::net::SocketAddr;

use thiserror::Error;

use super::{CHALLENGE, CHALLENGE_LEN, IntegrityKey, LEASE, STATE, XOR_RELAYED_ADDRESS, code};
use crate::stun::{Class, Full, Integrity, Kind, Message, Method, TransactionId, Writer};

/// STATE: the peer has bound too, so the pair carries traffic.
const PEER_BOUND: u32 = 1;
/// STATE: the relay is about to stop.
const DRAINING: u32 = 2;

/// What was granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The node's address as the relay sees it.
    pub mapped: SocketAddr,
    /// The relay port that the request was about, at the address that the world sees.
    pub relayed: SocketAddr,
    /// How long it lasts without a refresh, in seconds; 0 after a release.
    pub seconds: u32,
    /// The peer has bound too, so the pair carries traffic.
    pub peer_bound: bool,
    /// The relay is about to stop: move to another one.
    pub draining: bool,
}

/// A response as a node reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Response {
    /// Done.
    Granted(Lease),
    /// Repeat the request with this challenge.
    Challenge([u8; CHALLENGE_LEN]),
    /// Refused; see [`code`].
    Refused {
        /// The error code.
        code: u16,
        /// Whether the relay signed the refusal. If not, anybody on the way may have written it: believe it only
        /// as far as a lost packet.
        signed: bool,
    },
}

/// Why a message is not the response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ResponseError {
    /// Not a response, or to another request.
    #[error("not the response to this request")]
    Other,
    /// An attribute is missing or malformed.
    #[error("the response is malformed")]
    Malformed,
    /// It claims success, but whoever wrote it does not have the key.
    #[error("the response's integrity is wrong")]
    Integrity,
}

impl Response {
    /// Reads the response to a request of this method and transaction.
    pub fn parse(
        message: &Message<'_>,
        method: Method,
        transaction: TransactionId,
        key: &IntegrityKey,
    ) -> Result<Self, ResponseError> {
        if message.method() != method || message.transaction() != transaction {
            return Err(ResponseError::Other);
        }
        let integrity = message.integrity(key.as_bytes());
        match (message.class(), integrity) {
            (Class::Success, Integrity::Valid) => Self::granted(message).ok_or(ResponseError::Malformed),
            (Class::Success, _) | (Class::Error, Integrity::Invalid) => Err(ResponseError::Integrity),
            (Class::Error, _) => {
                Self::refused(message, integrity == Integrity::Valid).ok_or(ResponseError::Malformed)
            }
            (Class::Request | Class::Indication, _) => Err(ResponseError::Other),
        }
    }

    fn granted(message: &Message<'_>) -> Option<Self> {
        let address = |kind| message.attribute(kind)?.xor_address(message.transaction());
        let state = message.attribute(STATE)?.u32()?;
        Some(Self::Granted(Lease {
            mapped: address(Kind::XOR_MAPPED_ADDRESS)?,
            relayed: address(XOR_RELAYED_ADDRESS)?,
            seconds: message.attribute(LEASE)?.u32()?,
            peer_bound: state & PEER_BOUND != 0,
            draining: state & DRAINING != 0,
        }))
    }

    fn refused(message: &Message<'_>, signed: bool) -> Option<Self> {
        let code = message.attribute(Kind::ERROR_CODE)?.error_code()?;
        if code == code::UNAUTHENTICATED || code == code::STALE_CHALLENGE {
            let challenge = message.attribute(CHALLENGE)?.value.try_into().ok()?;
            return Some(Self::Challenge(challenge));
        }
        Some(Self::Refused { code, signed })
    }
}

/// Writes a success.
pub fn write_success<'a>(
    buffer: &'a mut [u8],
    method: Method,
    transaction: TransactionId,
    lease: &Lease,
    key: &IntegrityKey,
) -> Result<&'a [u8], Full> {
    let flag = |set, bit| if set { bit } else { 0 };
    let state = flag(lease.peer_bound, PEER_BOUND) | flag(lease.draining, DRAINING);
    let mut writer = Writer::new(buffer, Class::Success, method, transaction)?;
    writer.xor_address(Kind::XOR_MAPPED_ADDRESS, lease.mapped)?;
    writer.xor_address(XOR_RELAYED_ADDRESS, lease.relayed)?;
    writer.attribute(LEASE, &lease.seconds.to_be_bytes())?.attribute(STATE, &state.to_be_bytes())?;
    writer.integrity(key.as_bytes())?.fingerprint()?;
    Ok(writer.finish())
}

/// Writes an error that asks for the request again, with a challenge.
pub fn write_challenge<'a>(
    buffer: &'a mut [u8],
    method: Method,
    transaction: TransactionId,
    code: u16,
    challenge: &[u8; CHALLENGE_LEN],
) -> Result<&'a [u8], Full> {
    let mut writer = Writer::new(buffer, Class::Error, method, transaction)?;
    writer.error_code(code)?.attribute(CHALLENGE, challenge)?.fingerprint()?;
    Ok(writer.finish())
}

/// Writes an error; signed, once the key is known. `unknown` are the attributes of error 420.
pub fn write_error<'a>(
    buffer: &'a mut [u8],
    method: Method,
    transaction: TransactionId,
    code: u16,
    unknown: impl Iterator<Item = Kind>,
    key: Option<&IntegrityKey>,
) -> Result<&'a [u8], Full> {
    let mut writer = Writer::new(buffer, Class::Error, method, transaction)?;
    writer.error_code(code)?;
    if code == code::UNKNOWN_ATTRIBUTE {
        writer.unknown_attributes(unknown)?;
    }
    if let Some(key) = key {
        writer.integrity(key.as_bytes())?;
    }
    writer.fingerprint()?;
    Ok(writer.finish())
}
