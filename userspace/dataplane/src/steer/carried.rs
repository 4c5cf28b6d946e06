//! A connectivity check in the dress of WireGuard's traffic: what blocks one blocks the other.
//!
//! A transport message (type 4) whose receiver index is STUN's magic cookie and whose counter is 2^64 - 1, which
//! WireGuard never sends; then the STUN message, padded to 16 bytes as WireGuard pads.

use ghostwire_packet::payload::{Payload, STUN_COOKIE, classify};

const HEADER: usize = 16;
/// A WireGuard data message is no shorter.
const SHORTEST: usize = 32;

/// Dresses a STUN message.
pub fn wrap(stun: &[u8]) -> Vec<u8> {
    let mut datagram = vec![4, 0, 0, 0];
    datagram.extend(STUN_COOKIE.to_be_bytes());
    datagram.extend([0xff; 8]);
    datagram.extend(stun);
    datagram.resize(datagram.len().next_multiple_of(16).max(SHORTEST), 0);
    datagram
}

/// The STUN message of a dressed check, with the zeros that it was padded with. `None`: it is none.
pub fn unwrap(datagram: &[u8]) -> Option<&[u8]> {
    (kind(datagram) == Payload::Carried).then(|| datagram.get(HEADER..)).flatten()
}

/// What a payload is, as the programs see it.
pub(super) fn kind(payload: &[u8]) -> Payload {
    let mut head = [0_u32; 4];
    for (word, bytes) in head.iter_mut().zip(payload.chunks_exact(4)) {
        *word = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    }
    match u32::try_from(payload.len()) {
        Ok(length) if payload.len() >= HEADER => classify(head, length),
        _ => Payload::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_dressed_can_be_undressed() {
        for length in [0, 1, 20, 96, 500] {
            let stun: Vec<u8> = (0..=u8::MAX).cycle().take(length).collect();
            let datagram = wrap(&stun);
            assert_eq!(datagram.len() % 16, 0);
            assert!(unwrap(&datagram).unwrap().starts_with(&stun));
            for short in 0..SHORTEST {
                assert_eq!(unwrap(&datagram[..short]), None);
            }
        }
        assert_eq!(unwrap(&[4; 64]), None);
    }
}
