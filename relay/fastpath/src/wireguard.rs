//! WireGuard's message types, told by their first four bytes and their length.
//!
//! This keeps a relay from being an open UDP proxy: nothing passes that could not be WireGuard. It proves no
//! more than that; who may send is decided by the pair table.

/// A WireGuard message's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// First message of a handshake: 148 bytes.
    Initiation,
    /// Second message of a handshake: 92 bytes.
    Response,
    /// Cookie reply: 64 bytes.
    Cookie,
    /// Encrypted packet or keepalive: at least 32 bytes. Usually a multiple of 16, but the kernel stops padding
    /// at the MTU.
    Data,
}

impl Message {
    /// Whether it costs the receiver public-key cryptography. Such messages have a limit of their own.
    pub const fn is_handshake(self) -> bool {
        matches!(self, Self::Initiation | Self::Response)
    }
}

/// The type of a payload of `len` bytes that begins with `head`. `None`: not WireGuard.
#[inline(always)]
pub const fn classify(head: [u8; 4], len: u32) -> Option<Message> {
    match (head, len) {
        ([1, 0, 0, 0], 148) => Some(Message::Initiation),
        ([2, 0, 0, 0], 92) => Some(Message::Response),
        ([3, 0, 0, 0], 64) => Some(Message::Cookie),
        ([4, 0, 0, 0], 32..) => Some(Message::Data),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_type_has_its_length() {
        for (kind, right, message) in [
            (1, 148, Message::Initiation),
            (2, 92, Message::Response),
            (3, 64, Message::Cookie),
            (4, 32, Message::Data),
        ] {
            assert_eq!(classify([kind, 0, 0, 0], right), Some(message));
            assert_eq!(classify([kind, 0, 0, 0], right - 1), None);
            assert_eq!(classify([kind, 0, 0, 1], right), None, "reserved bytes are zero");
        }
        assert_eq!(classify([4, 0, 0, 0], 1452), Some(Message::Data));
        assert_eq!(classify([1, 0, 0, 0], 149), None);
        assert_eq!(classify([0, 0, 0, 0], 148), None);
        assert_eq!(classify([5, 0, 0, 0], 148), None);
    }
}
