//! What a datagram on WireGuard's port is, from its first sixteen bytes.

/// Bytes that have to be known.
pub const HEAD: u32 = 16;

/// STUN's magic cookie (RFC 8489 section 5).
pub const STUN_COOKIE: u32 = 0x2112_a442;

/// Kinds of payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payload {
    /// One of WireGuard's messages.
    WireGuard,
    /// A STUN message.
    Stun,
    /// A STUN message in the dress of a WireGuard transport message: for a receiver index that is STUN's cookie, with a
    /// counter that WireGuard never sends (it ends a session long before 2^64 - 1).
    Carried,
    /// Neither.
    Other,
}

/// Shortest message of each of WireGuard's types: initiation, response, cookie reply, data. No upper bound: an aggregate
/// may be longer than any of its datagrams.
const SHORTEST: [u32; 4] = [148, 92, 64, 32];

/// Tells what a payload of `length` bytes is. `head`: its first bytes as they lie in memory.
#[inline(always)]
pub const fn classify(head: [u32; 4], length: u32) -> Payload {
    let [first, second, third, fourth] = head;
    let cookie = second == STUN_COOKIE.to_be();
    // WireGuard's type is a byte, followed by three reserved ones: a little-endian number.
    let shortest = match u32::from_le(first) {
        1 => SHORTEST[0],
        2 => SHORTEST[1],
        3 => SHORTEST[2],
        4 => {
            if cookie && third == u32::MAX && fourth == u32::MAX {
                return if length >= SHORTEST[3] { Payload::Carried } else { Payload::Other };
            }
            SHORTEST[3]
        }
        // RFC 8489 section 5: the two upper bits are zero.
        _ if cookie && u32::from_be(first) >> 30 == 0 => return Payload::Stun,
        _ => return Payload::Other,
    };
    if length >= shortest { Payload::WireGuard } else { Payload::Other }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(head: &[u8], length: u32) -> Payload {
        let mut bytes = [0; 16];
        bytes[..head.len()].copy_from_slice(head);
        let word = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        classify([word(0), word(4), word(8), word(12)], length)
    }

    #[test]
    fn wireguard_is_told_by_type_and_length() {
        for (message, shortest) in [(1, 148), (2, 92), (3, 64), (4, 32)] {
            assert_eq!(kind(&[message, 0, 0, 0], shortest), Payload::WireGuard);
            assert_eq!(kind(&[message, 0, 0, 0], shortest - 1), Payload::Other);
            assert_eq!(kind(&[message, 0, 0, 1], 1000), Payload::Other, "reserved bytes are zero");
        }
        assert_eq!(kind(&[0, 0, 0, 0], 1000), Payload::Other);
        assert_eq!(kind(&[5, 0, 0, 0], 1000), Payload::Other);
    }

    #[test]
    fn a_wireguard_index_may_be_the_cookie_of_stun() {
        let cookie = [0x21, 0x12, 0xa4, 0x42];
        assert_eq!(kind(&[&[0, 1, 0, 0], &cookie[..]].concat(), 20), Payload::Stun);
        assert_eq!(kind(&[&[1, 1, 0, 12], &cookie[..]].concat(), 32), Payload::Stun);
        assert_eq!(kind(&[&[4, 0, 0, 0], &cookie[..]].concat(), 128), Payload::WireGuard);
        assert_eq!(kind(&[&[2, 0, 0, 0], &cookie[..]].concat(), 92), Payload::WireGuard);
        assert_eq!(kind(&[&[0x40, 1, 0, 0], &cookie[..]].concat(), 20), Payload::Other, "the upper bits");
        assert_eq!(kind(&[0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x43], 20), Payload::Other);
    }

    #[test]
    fn a_check_in_wireguards_dress_needs_the_cookie_and_the_last_counter() {
        let dressed = [&[4, 0, 0, 0, 0x21, 0x12, 0xa4, 0x42][..], &[0xff; 8]].concat();
        assert_eq!(kind(&dressed, 96), Payload::Carried);
        assert_eq!(kind(&dressed, 31), Payload::Other);
        for at in 4..16 {
            let mut other = dressed.clone();
            other[at] ^= 1;
            assert_eq!(kind(&other, 96), Payload::WireGuard, "byte {at}");
        }
    }
}
