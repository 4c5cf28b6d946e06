//! Writing messages.

use std::net::SocketAddr;

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use thiserror::Error;

use super::{
    ATTRIBUTE_HEADER_LEN, Class, FINGERPRINT_LEN, HEADER_LEN, INTEGRITY_LEN, Kind, MAGIC_COOKIE, Method,
    TransactionId, address, fingerprint_of, message_type,
};

/// The buffer cannot take what was to be written. The message is left as it was before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the message is longer than its buffer")]
pub struct Full;

/// Writes one message into a buffer. The header is complete after every call.
#[derive(Debug)]
pub struct Writer<'a> {
    buffer: &'a mut [u8],
    len: usize,
    transaction: TransactionId,
}

impl<'a> Writer<'a> {
    /// Starts a message. It never grows beyond `buffer`.
    pub fn new(
        buffer: &'a mut [u8],
        class: Class,
        method: Method,
        transaction: TransactionId,
    ) -> Result<Self, Full> {
        let head = buffer.first_chunk_mut::<HEADER_LEN>().ok_or(Full)?;
        head[..2].copy_from_slice(&message_type(class, method).to_be_bytes());
        head[2..4].fill(0);
        head[4..8].copy_from_slice(&MAGIC_COOKIE.to_be_bytes());
        head[8..].copy_from_slice(&transaction.0);
        Ok(Self { buffer, len: HEADER_LEN, transaction })
    }

    /// Bytes written so far.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never: a message has a header.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends an attribute, padded with zeros.
    pub fn attribute(&mut self, kind: Kind, value: &[u8]) -> Result<&mut Self, Full> {
        let length = u16::try_from(value.len()).map_err(|_| Full)?;
        let end = self.len + ATTRIBUTE_HEADER_LEN + value.len().next_multiple_of(4);
        let body = u16::try_from(end - HEADER_LEN).map_err(|_| Full)?;
        let out = self.buffer.get_mut(self.len..end).ok_or(Full)?;
        out[..2].copy_from_slice(&kind.0.to_be_bytes());
        out[2..4].copy_from_slice(&length.to_be_bytes());
        out[4..4 + value.len()].copy_from_slice(value);
        out[4 + value.len()..].fill(0);
        self.len = end;
        self.buffer[2..4].copy_from_slice(&body.to_be_bytes());
        Ok(self)
    }

    /// Appends an address in the form of XOR-MAPPED-ADDRESS.
    pub fn xor_address(&mut self, kind: Kind, address: SocketAddr) -> Result<&mut Self, Full> {
        let (bytes, len) = address::encode(address, self.transaction);
        self.attribute(kind, &bytes[..len])
    }

    /// Appends ERROR-CODE with an empty reason phrase: the code says it, and short answers do not amplify.
    /// `code` must be 300 to 699.
    pub fn error_code(&mut self, code: u16) -> Result<&mut Self, Full> {
        debug_assert!((300..700).contains(&code), "an error code of STUN has three digits");
        let [_, class] = (code / 100).to_be_bytes();
        let [_, number] = (code % 100).to_be_bytes();
        self.attribute(Kind::ERROR_CODE, &[0, 0, class, number])
    }

    /// Appends UNKNOWN-ATTRIBUTES with at most eight of `kinds`.
    pub fn unknown_attributes(&mut self, kinds: impl Iterator<Item = Kind>) -> Result<&mut Self, Full> {
        let mut value = [0; 16];
        let mut len = 0;
        for (slot, kind) in value.chunks_exact_mut(2).zip(kinds) {
            slot.copy_from_slice(&kind.0.to_be_bytes());
            len += 2;
        }
        self.attribute(Kind::UNKNOWN_ATTRIBUTES, &value[..len])
    }

    /// Appends MESSAGE-INTEGRITY-SHA256 over everything before it.
    pub fn integrity(&mut self, key: &[u8]) -> Result<&mut Self, Full> {
        let length = u16::try_from(self.len + INTEGRITY_LEN - HEADER_LEN).map_err(|_| Full)?;
        let mut mac = Hmac::<Sha256>::new_from_slice(key).map_err(|_| Full)?;
        mac.update(&self.buffer[..2]);
        mac.update(&length.to_be_bytes());
        mac.update(&self.buffer[4..self.len]);
        self.attribute(Kind::MESSAGE_INTEGRITY_SHA256, mac.finalize().into_bytes().as_slice())
    }

    /// Appends FINGERPRINT; nothing may follow.
    pub fn fingerprint(&mut self) -> Result<&mut Self, Full> {
        let length = u16::try_from(self.len + FINGERPRINT_LEN - HEADER_LEN).map_err(|_| Full)?;
        let crc = fingerprint_of(&[&self.buffer[..2], &length.to_be_bytes(), &self.buffer[4..self.len]]);
        self.attribute(Kind::FINGERPRINT, &crc.to_be_bytes())
    }

    /// The finished message.
    pub fn finish(self) -> &'a [u8] {
        self.buffer.get(..self.len).unwrap_or_default()
    }
}
