//! Requests.

use super::{
    ALLOCATE, BIND, CHALLENGE, CHALLENGE_LEN, IntegrityKey, LOOKUP, MIN_REQUEST_LEN, PADDING, REFRESH,
    RELEASE, SEQUENCE, TOKEN,
};
use crate::stun::{Class, Fingerprint, Full, Kind, Message, Method, TransactionId, Writer};
use crate::token::TOKEN_LEN;

/// FINGERPRINT and MESSAGE-INTEGRITY-SHA256 together, in bytes.
const TRAILER_LEN: usize = 36 + 8;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// [`ALLOCATE`]
    Allocate,
    /// [`BIND`]
    Bind,
    /// [`REFRESH`]
    Refresh,
    /// [`RELEASE`]
    Release,
    /// [`LOOKUP`]
    Lookup,
}

impl Action {
    /// The action of a method. `None`: not one of ours.
    pub fn of(method: Method) -> Option<Self> {
        match method {
            ALLOCATE => Some(Self::Allocate),
            BIND => Some(Self::Bind),
            REFRESH => Some(Self::Refresh),
            RELEASE => Some(Self::Release),
            LOOKUP => Some(Self::Lookup),
            _ => None,
        }
    }

    /// Its method.
    pub fn method(self) -> Method {
        match self {
            Self::Allocate => ALLOCATE,
            Self::Bind => BIND,
            Self::Refresh => REFRESH,
            Self::Release => RELEASE,
            Self::Lookup => LOOKUP,
        }
    }
}

/// A request whose contents nobody has vouched for yet.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// What is asked for.
    pub action: Action,
    /// The message, for its integrity.
    pub message: Message<'a>,
    /// The token, not verified.
    pub token: &'a [u8; TOKEN_LEN],
    /// The echoed challenge.
    pub challenge: Option<&'a [u8; CHALLENGE_LEN]>,
    /// The sequence number.
    pub sequence: u64,
}

/// Why a message is not a request of ours, and what follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bad {
    /// Too short to be answered, no request of ours, or no valid FINGERPRINT: say nothing.
    Silent,
    /// An attribute is missing or has the wrong length: answer 400.
    Request,
    /// It has attributes that must be understood and are not: answer 420.
    Unknown,
}

fn is_known(kind: Kind) -> bool {
    [TOKEN, CHALLENGE, SEQUENCE].contains(&kind)
}

impl<'a> Request<'a> {
    /// Reads a request.
    pub fn parse(message: Message<'a>) -> Result<Self, Bad> {
        if message.class() != Class::Request || message.len() < MIN_REQUEST_LEN {
            return Err(Bad::Silent);
        }
        let action = Action::of(message.method()).ok_or(Bad::Silent)?;
        if message.fingerprint() != Fingerprint::Valid {
            return Err(Bad::Silent);
        }
        if message.unknown_required(is_known).next().is_some() {
            return Err(Bad::Unknown);
        }
        let token = message.attribute(TOKEN).and_then(|token| token.value.try_into().ok());
        let challenge = match message.attribute(CHALLENGE) {
            Some(challenge) => Some(challenge.value.try_into().map_err(|_| Bad::Request)?),
            None => None,
        };
        let sequence = message.attribute(SEQUENCE).and_then(|sequence| sequence.u64());
        Ok(Self {
            action,
            message,
            token: token.ok_or(Bad::Request)?,
            challenge,
            sequence: sequence.ok_or(Bad::Request)?,
        })
    }

    /// The attributes that would have to be understood, for [`Bad::Unknown`].
    pub fn unknown(message: &Message<'a>) -> impl Iterator<Item = Kind> {
        message.unknown_required(is_known)
    }
}

/// Writes a request of [`MIN_REQUEST_LEN`] bytes.
pub fn write_request<'a>(
    buffer: &'a mut [u8],
    action: Action,
    transaction: TransactionId,
    token: &[u8; TOKEN_LEN],
    challenge: Option<&[u8; CHALLENGE_LEN]>,
    sequence: u64,
    key: &IntegrityKey,
) -> Result<&'a [u8], Full> {
    const ZEROS: [u8; MIN_REQUEST_LEN] = [0; MIN_REQUEST_LEN];
    let mut writer = Writer::new(buffer, Class::Request, action.method(), transaction)?;
    writer.attribute(TOKEN, token)?.attribute(SEQUENCE, &sequence.to_be_bytes())?;
    if let Some(challenge) = challenge {
        writer.attribute(CHALLENGE, challenge)?;
    }
    let padding = MIN_REQUEST_LEN.saturating_sub(writer.len() + TRAILER_LEN + 4);
    writer.attribute(PADDING, ZEROS.get(..padding).unwrap_or_default())?;
    writer.integrity(key.as_bytes())?.fingerprint()?;
    Ok(writer.finish())
}
