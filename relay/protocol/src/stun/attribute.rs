//! Attribute types and the attributes' values.

use std::net::SocketAddr;

use super::{TransactionId, address};

/// An attribute's type (RFC 8489 section 18.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Kind(pub u16);

impl Kind {
    /// USERNAME. Read over: nothing here authenticates by user name.
    pub const USERNAME: Self = Self(0x0006);
    /// MESSAGE-INTEGRITY, with SHA-1. Read over.
    pub const MESSAGE_INTEGRITY: Self = Self(0x0008);
    /// ERROR-CODE.
    pub const ERROR_CODE: Self = Self(0x0009);
    /// UNKNOWN-ATTRIBUTES.
    pub const UNKNOWN_ATTRIBUTES: Self = Self(0x000A);
    /// REALM. Read over.
    pub const REALM: Self = Self(0x0014);
    /// NONCE of RFC 8489, quoted text. Read over.
    pub const NONCE: Self = Self(0x0015);
    /// MESSAGE-INTEGRITY-SHA256.
    pub const MESSAGE_INTEGRITY_SHA256: Self = Self(0x001C);
    /// XOR-MAPPED-ADDRESS.
    pub const XOR_MAPPED_ADDRESS: Self = Self(0x0020);
    /// SOFTWARE.
    pub const SOFTWARE: Self = Self(0x8022);
    /// FINGERPRINT.
    pub const FINGERPRINT: Self = Self(0x8028);

    /// Whether a receiver that does not know the attribute has to refuse the message.
    pub const fn is_comprehension_required(self) -> bool {
        self.0 < 0x8000
    }
}

/// One attribute of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attribute<'a> {
    /// Its type.
    pub kind: Kind,
    /// Its value, without padding.
    pub value: &'a [u8],
}

impl Attribute<'_> {
    /// The value as an address in the form of XOR-MAPPED-ADDRESS. `None`: not such a value.
    pub fn xor_address(&self, transaction: TransactionId) -> Option<SocketAddr> {
        address::decode(self.value, transaction)
    }

    /// The value as the code of ERROR-CODE, 300 to 699. `None`: not such a value.
    pub fn error_code(&self) -> Option<u16> {
        let [_, _, class, number] = *self.value.first_chunk::<4>()?;
        let class = class & 0x07;
        ((3..=6).contains(&class) && number < 100).then(|| u16::from(class) * 100 + u16::from(number))
    }

    /// The value as a big-endian integer. `None`: not four bytes.
    pub fn u32(&self) -> Option<u32> {
        self.value.try_into().ok().map(u32::from_be_bytes)
    }

    /// The value as a big-endian integer. `None`: not eight bytes.
    pub fn u64(&self) -> Option<u64> {
        self.value.try_into().ok().map(u64::from_be_bytes)
    }
}
