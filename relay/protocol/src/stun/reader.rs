//! Reading messages.

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use subtle::ConstantTimeEq as _;
use thiserror::Error;

use super::{
    ATTRIBUTE_HEADER_LEN, Attribute, Class, FINGERPRINT_LEN, HEADER_LEN, Kind, MAGIC_COOKIE, Method,
    TransactionId, fingerprint_of, split_type,
};

/// The most attributes that a message may have. Ours have ten; ICE's fewer.
const MAX_ATTRIBUTES: usize = 32;

/// Why bytes are not a STUN message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ParseError {
    /// Shorter than the header, or another protocol's first bits or cookie.
    #[error("not STUN")]
    NotStun,
    /// The length in the header is not the datagram's, or not a multiple of four.
    #[error("the message's length does not fit its datagram")]
    Length,
    /// An attribute reaches beyond the message.
    #[error("an attribute is cut off")]
    Attribute,
    /// More than 32 attributes.
    #[error("too many attributes")]
    TooMany,
    /// Something follows FINGERPRINT.
    #[error("FINGERPRINT is not the last attribute")]
    AfterFingerprint,
}

/// A well-formed message.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    bytes: &'a [u8],
    class: Class,
    method: Method,
    transaction: TransactionId,
    /// Where MESSAGE-INTEGRITY-SHA256 starts.
    integrity: Option<usize>,
    /// Where FINGERPRINT starts.
    fingerprint: Option<usize>,
}

/// What FINGERPRINT says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fingerprint {
    /// There is none.
    Absent,
    /// It is right: this is STUN indeed.
    Valid,
    /// It is wrong: another protocol, or damage.
    Invalid,
}

/// What MESSAGE-INTEGRITY-SHA256 says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Integrity {
    /// There is none.
    Absent,
    /// The sender has the key and what came before the attribute is what it sent.
    Valid,
    /// It is not.
    Invalid,
}

impl<'a> Message<'a> {
    /// Reads a datagram that holds one message.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ParseError> {
        let head = bytes.first_chunk::<HEADER_LEN>().ok_or(ParseError::NotStun)?;
        if head[0] & 0xC0 != 0 || head[4..8] != MAGIC_COOKIE.to_be_bytes() {
            return Err(ParseError::NotStun);
        }
        let length = usize::from(u16::from_be_bytes([head[2], head[3]]));
        if length % 4 != 0 || length + HEADER_LEN != bytes.len() {
            return Err(ParseError::Length);
        }
        let (class, method) = split_type(u16::from_be_bytes([head[0], head[1]]));
        let mut transaction = [0; 12];
        transaction.copy_from_slice(&head[8..]);
        let mut message = Self {
            bytes,
            class,
            method,
            transaction: TransactionId(transaction),
            integrity: None,
            fingerprint: None,
        };
        message.check_attributes()?;
        Ok(message)
    }

    /// Walks over all attributes once, so that later walks cannot fail.
    fn check_attributes(&mut self) -> Result<(), ParseError> {
        let mut at = HEADER_LEN;
        let mut count = 0;
        while at < self.bytes.len() {
            if self.fingerprint.is_some() {
                return Err(ParseError::AfterFingerprint);
            }
            count += 1;
            if count > MAX_ATTRIBUTES {
                return Err(ParseError::TooMany);
            }
            let (attribute, next) = attribute_at(self.bytes, at).ok_or(ParseError::Attribute)?;
            match attribute.kind {
                Kind::FINGERPRINT => self.fingerprint = Some(at),
                Kind::MESSAGE_INTEGRITY_SHA256 if self.integrity.is_none() => self.integrity = Some(at),
                _ => {}
            }
            at = next;
        }
        Ok(())
    }

    /// The message's class.
    pub fn class(&self) -> Class {
        self.class
    }

    /// The message's method.
    pub fn method(&self) -> Method {
        self.method
    }

    /// Its transaction.
    pub fn transaction(&self) -> TransactionId {
        self.transaction
    }

    /// Its length in bytes, header included.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Never: a message has a header.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The attributes that count: what follows MESSAGE-INTEGRITY-SHA256 is not covered by it and is left out
    /// (RFC 8489 section 14.6), but for FINGERPRINT.
    pub fn attributes(&self) -> Attributes<'a> {
        Attributes { bytes: self.bytes, at: HEADER_LEN, covered_to: self.integrity }
    }

    /// The first attribute of a type (RFC 8489 section 14: only the first counts).
    pub fn attribute(&self, kind: Kind) -> Option<Attribute<'a>> {
        self.attributes().find(|attribute| attribute.kind == kind)
    }

    /// The attributes that `known` does not know although the sender wants them understood, in order. RFC 8489
    /// section 6.3.1: such a request is answered with error 420 that lists them.
    pub fn unknown_required(&self, known: impl Fn(Kind) -> bool) -> impl Iterator<Item = Kind> {
        let required = self.attributes().map(|attribute| attribute.kind);
        required.filter(move |kind| {
            kind.is_comprehension_required() && *kind != Kind::MESSAGE_INTEGRITY_SHA256 && !known(*kind)
        })
    }

    /// Compares FINGERPRINT with the message.
    pub fn fingerprint(&self) -> Fingerprint {
        let Some(at) = self.fingerprint else { return Fingerprint::Absent };
        let Some((attribute, _)) = attribute_at(self.bytes, at) else { return Fingerprint::Invalid };
        match attribute.u32() {
            // FINGERPRINT is the last attribute, so the length in the header counts it, as section 14.7 wants.
            Some(value) if value == fingerprint_of(&[self.bytes.get(..at).unwrap_or_default()]) => {
                Fingerprint::Valid
            }
            _ => Fingerprint::Invalid,
        }
    }

    /// Compares MESSAGE-INTEGRITY-SHA256 with the message, in constant time. A truncated value is refused:
    /// section 14.6 leaves that to the usage, and ours never truncates.
    pub fn integrity(&self, key: &[u8]) -> Integrity {
        let Some(at) = self.integrity else { return Integrity::Absent };
        let Some((attribute, next)) = attribute_at(self.bytes, at) else { return Integrity::Invalid };
        // The length in the header is taken as if the message ended with this attribute.
        let Ok(length) = u16::try_from(next - HEADER_LEN) else { return Integrity::Invalid };
        let Some(covered) = self.bytes.get(4..at) else { return Integrity::Invalid };
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else { return Integrity::Invalid };
        mac.update(&self.bytes[..2]);
        mac.update(&length.to_be_bytes());
        mac.update(covered);
        if bool::from(mac.finalize().into_bytes().as_slice().ct_eq(attribute.value)) {
            Integrity::Valid
        } else {
            Integrity::Invalid
        }
    }
}

/// The attribute at an offset, and where the next one starts.
fn attribute_at(bytes: &[u8], at: usize) -> Option<(Attribute<'_>, usize)> {
    let (head, rest) = bytes.get(at..)?.split_first_chunk::<ATTRIBUTE_HEADER_LEN>()?;
    let kind = Kind(u16::from_be_bytes([head[0], head[1]]));
    let length = usize::from(u16::from_be_bytes([head[2], head[3]]));
    let padded = length.next_multiple_of(4);
    if padded > rest.len() || (kind == Kind::FINGERPRINT && length + ATTRIBUTE_HEADER_LEN != FINGERPRINT_LEN)
    {
        return None;
    }
    Some((Attribute { kind, value: rest.get(..length)? }, at + ATTRIBUTE_HEADER_LEN + padded))
}

/// Iterator over a message's attributes.
#[derive(Clone, Debug)]
pub struct Attributes<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Where MESSAGE-INTEGRITY-SHA256 starts; what follows is not covered.
    covered_to: Option<usize>,
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Attribute<'a>;

    fn next(&mut self) -> Option<Attribute<'a>> {
        loop {
            let (attribute, next) = attribute_at(self.bytes, self.at)?;
            let covered = self.covered_to.is_none_or(|end| self.at <= end);
            self.at = next;
            if covered || attribute.kind == Kind::FINGERPRINT {
                return Some(attribute);
            }
        }
    }
}
