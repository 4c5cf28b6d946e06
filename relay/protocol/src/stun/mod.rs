//! STUN messages (RFC 8489).
//!
//! [`Message`] reads without copying, [`Writer`] writes into a buffer that the caller bounds. MESSAGE-INTEGRITY
//! with SHA-1 is not spoken: the relay's own methods use MESSAGE-INTEGRITY-SHA256, and plain Binding needs none.

mod address;
mod attribute;
mod reader;
mod writer;

pub use attribute::{Attribute, Kind};
pub use reader::{Attributes, Fingerprint, Integrity, Message, ParseError};
pub use writer::{Full, Writer};

/// The value that tells STUN from everything else on a port (RFC 8489 section 5).
pub const MAGIC_COOKIE: u32 = 0x2112_A442;

/// Length of the header in bytes.
pub const HEADER_LEN: usize = 20;

/// XORed with the CRC-32 in FINGERPRINT (RFC 8489 section 14.7).
const FINGERPRINT_XOR: u32 = 0x5354_554E;

/// Length of an attribute's header in bytes.
const ATTRIBUTE_HEADER_LEN: usize = 4;

/// A whole FINGERPRINT attribute in bytes.
const FINGERPRINT_LEN: usize = 8;

/// A whole MESSAGE-INTEGRITY-SHA256 attribute, not truncated, in bytes.
const INTEGRITY_LEN: usize = 36;

/// Identifies a request and its response: 96 random bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TransactionId(pub [u8; 12]);

/// What kind of message it is (RFC 8489 section 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Wants a response.
    Request,
    /// Wants none.
    Indication,
    /// The request was carried out.
    Success,
    /// The request was refused.
    Error,
}

/// What a request is for. 12 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Method(u16);

impl Method {
    /// Asks for the sender's address as the server sees it (RFC 8489 section 3).
    pub const BINDING: Self = Self(0x001);

    /// A method by its number. `None`: more than 12 bits.
    pub const fn new(number: u16) -> Option<Self> {
        if number < 1 << 12 { Some(Self(number)) } else { None }
    }

    /// A method that this crate defines; the number is checked while compiling.
    pub(crate) const fn own(number: u16) -> Self {
        assert!(number < 1 << 12, "a STUN method has 12 bits");
        Self(number)
    }

    /// The method's number.
    pub const fn number(self) -> u16 {
        self.0
    }
}

/// Interleaves class and method as RFC 8489 figure 3 shows.
const fn message_type(class: Class, method: Method) -> u16 {
    let m = method.0;
    let bits = (m & 0x00F) | ((m & 0x070) << 1) | ((m & 0xF80) << 2);
    bits | match class {
        Class::Request => 0x000,
        Class::Indication => 0x010,
        Class::Success => 0x100,
        Class::Error => 0x110,
    }
}

/// The inverse of [`message_type`]; the two top bits must be zero.
const fn split_type(value: u16) -> (Class, Method) {
    let class = match (value & 0x100 != 0, value & 0x010 != 0) {
        (false, false) => Class::Request,
        (false, true) => Class::Indication,
        (true, false) => Class::Success,
        (true, true) => Class::Error,
    };
    let method = (value & 0x00F) | ((value >> 1) & 0x070) | ((value >> 2) & 0xF80);
    (class, Method(method))
}

/// Whether a datagram is STUN and nothing else that shares the port: two zero bits, the cookie, a length that
/// fits. Cheap; [`Message::parse`] says whether it is well-formed.
pub fn looks_like_stun(datagram: &[u8]) -> bool {
    let Some(head) = datagram.first_chunk::<HEADER_LEN>() else { return false };
    head[0] & 0xC0 == 0 && head[4..8] == MAGIC_COOKIE.to_be_bytes()
}

/// The CRC that FINGERPRINT carries, over the parts of a message in order.
fn fingerprint_of(parts: &[&[u8]]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    for part in parts {
        crc.update(part);
    }
    crc.finalize() ^ FINGERPRINT_XOR
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_interleave_as_the_rfc_draws_them() {
        assert_eq!(message_type(Class::Request, Method::BINDING), 0x0001);
        assert_eq!(message_type(Class::Success, Method::BINDING), 0x0101);
        assert_eq!(message_type(Class::Error, Method::BINDING), 0x0111);
        assert_eq!(message_type(Class::Indication, Method::own(0x006)), 0x0016);
        for number in 0..1 << 12 {
            for class in [Class::Request, Class::Indication, Class::Success, Class::Error] {
                let method = Method::own(number);
                assert_eq!(split_type(message_type(class, method)), (class, method));
                assert_eq!(message_type(class, method) >> 14, 0);
            }
        }
    }
}
