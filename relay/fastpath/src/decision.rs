//! The decision about one datagram.

use crate::table::{self, Busy, Key, Lines};
use crate::{Endpoint, Pace, wireguard};

/// The cookie of STUN, RFC 8489 section 5.
const STUN_COOKIE: u32 = 0x2112_A442;

/// Length of STUN's header in bytes.
const STUN_HEADER_LEN: u32 = 20;

/// What the decision needs to know of a datagram. Fragments never come here: their callers count and drop them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// Which of the relay's addresses it came to: its index in the table's header.
    pub local: u8,
    /// The port it came to.
    pub port: u16,
    /// Who sent it.
    pub source: Endpoint,
    /// Time to live or hop limit, as received.
    pub hops: u8,
    /// Length of the UDP payload in bytes.
    pub len: u32,
    /// The payload's first bytes, zero where it is shorter.
    pub head: [u8; 8],
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Send it on.
    Forward(Forward),
    /// STUN: the control protocol answers.
    Control,
    /// Drop and count it.
    Drop(Reason),
}

/// How a datagram is sent on. The payload stays as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forward {
    /// From which of the relay's addresses: its index in the table's header.
    pub local: u8,
    /// From which port: the sender's own relay port, where the receiver answers.
    pub port: u16,
    /// To whom.
    pub destination: Endpoint,
    /// With which time to live or hop limit.
    pub hops: u8,
    /// Whose limits apply.
    pub session: u32,
    /// Whether the limit of handshakes applies.
    pub handshake: bool,
    /// It goes back to the neighbour that it came from.
    pub same_way: bool,
    /// How fast the session may send.
    pub pace: Pace,
}

/// Why a datagram is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Reason {
    /// Neither WireGuard nor STUN.
    NotWireGuard = 0,
    /// Nobody who may send to this port. Somebody whose address changed, or a stranger: userspace reports it, at
    /// a limited rate, and nothing learns from it.
    UnknownSource = 1,
    /// It has passed too many routers, or goes in a circle.
    HopLimit = 2,
    /// The table changed each time it was read.
    Busy = 3,
}

/// Decides about a datagram that came to a relay port.
#[inline(always)]
pub fn decide<T: Lines + ?Sized>(table: &T, datagram: &Datagram) -> Verdict {
    match table::Head::of(table) {
        Some(head) => decide_with(&head, table, datagram),
        None => Verdict::Drop(Reason::UnknownSource),
    }
}

/// [`decide`], for who has read the table's head already.
#[inline(always)]
pub fn decide_with<T: Lines + ?Sized>(head: &table::Head<'_>, table: &T, datagram: &Datagram) -> Verdict {
    if is_stun(&datagram.head, datagram.len) {
        return Verdict::Control;
    }
    let [a, b, c, d, ..] = datagram.head;
    let Some(message) = wireguard::classify([a, b, c, d], datagram.len) else {
        return Verdict::Drop(Reason::NotWireGuard);
    };
    let key = Key { local: datagram.local, port: datagram.port, source: datagram.source };
    let pair = match head.lookup(table, &key) {
        Ok(Some(pair)) => pair,
        Ok(None) => return Verdict::Drop(Reason::UnknownSource),
        Err(Busy) => return Verdict::Drop(Reason::Busy),
    };
    if datagram.hops <= 1 {
        return Verdict::Drop(Reason::HopLimit);
    }
    Verdict::Forward(Forward {
        local: pair.local,
        port: pair.port,
        destination: pair.destination,
        hops: datagram.hops - 1,
        session: pair.session,
        handshake: message.is_handshake(),
        same_way: pair.same_way,
        pace: pair.pace,
    })
}

/// Whether a payload is STUN. Its length has to fit too: a WireGuard message whose index happens to be the cookie
/// would claim a STUN message without attributes, which is shorter than any WireGuard message.
#[inline(always)]
pub(crate) fn is_stun(head: &[u8; 8], len: u32) -> bool {
    let [first, _, high, low, c0, c1, c2, c3] = *head;
    first & 0xC0 == 0
        && u32::from_be_bytes([c0, c1, c2, c3]) == STUN_COOKIE
        && u32::from(u16::from_be_bytes([high, low])) + STUN_HEADER_LEN == len
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_wireguard_message_is_taken_for_stun() {
        for (kind, len) in [(1, 148), (2, 92), (3, 64), (4, 32), (4, 1452)] {
            let head = [kind, 0, 0, 0, 0x21, 0x12, 0xA4, 0x42];
            assert!(!is_stun(&head, len));
        }
        assert!(is_stun(&[0, 1, 0, 0, 0x21, 0x12, 0xA4, 0x42], 20));
        assert!(is_stun(&[0x20, 2, 1, 0x2C, 0x21, 0x12, 0xA4, 0x42], 320));
    }
}
