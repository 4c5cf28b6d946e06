//! STUN among QUIC on one port (RFC 9443): QUIC's datagrams have the second bit set, which we do not grease.

/// Length of STUN's header.
const HEADER: usize = 20;
const MAGIC_COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];

/// Whether a datagram is STUN.
pub fn is_stun(datagram: &[u8]) -> bool {
    datagram.len() >= HEADER
        && datagram.first().is_some_and(|first| first & 0xc0 == 0)
        && datagram.get(4..8) == Some(&MAGIC_COOKIE)
}

/// Takes STUN out of a received aggregate: datagrams of `stride` bytes, the last perhaps shorter. `take` gets each; the
/// others move together. How many bytes are left.
pub fn take_out(buffer: &mut [u8], stride: usize, mut take: impl FnMut(&[u8])) -> usize {
    let stride = stride.max(1);
    let (mut from, mut kept) = (0, 0);
    while from < buffer.len() {
        let end = buffer.len().min(from + stride);
        let Some(datagram) = buffer.get(from..end) else { break };
        if is_stun(datagram) {
            take(datagram);
        } else {
            if kept != from {
                buffer.copy_within(from..end, kept);
            }
            kept += end - from;
        }
        from = end;
    }
    kept
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stun(length: usize) -> Vec<u8> {
        let mut bytes = vec![0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42];
        bytes.resize(length, 0xee);
        bytes
    }

    #[test]
    fn stun_is_told_from_quic_and_wireguard() {
        assert!(is_stun(&stun(20)));
        assert!(!is_stun(&stun(19)));
        for first in [0x40, 0x7f, 0xc3, 0xff, 0x80] {
            let mut quic = stun(1_200);
            quic[0] = first;
            assert!(!is_stun(&quic));
        }
        assert!(!is_stun(&[4, 0, 0, 0, 9, 9, 9, 9, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4]));
    }

    proptest! {
        #[test]
        fn everything_is_either_taken_or_left(
            stride in 0..80_usize,
            kinds in prop::collection::vec(any::<bool>(), 0..12),
            last in 1..80_usize,
        ) {
            let length = stride.max(20);
            let mut datagrams: Vec<Vec<u8>> =
                kinds.iter().map(|is| if *is { stun(length) } else { vec![0x4a; length] }).collect();
            datagrams.push(vec![0x4b; last.min(length)]);
            let mut buffer = datagrams.concat();
            let mut taken = 0;
            let left = take_out(&mut buffer, length, |datagram| {
                assert!(is_stun(datagram));
                taken += 1;
            });
            prop_assert_eq!(taken, kinds.iter().filter(|is| **is).count());
            let others: Vec<Vec<u8>> = datagrams.into_iter().filter(|datagram| !is_stun(datagram)).collect();
            prop_assert_eq!(&buffer[..left], &others.concat()[..]);
        }

        #[test]
        fn taking_out_is_total(mut buffer in prop::collection::vec(any::<u8>(), 0..300), stride in 0..400_usize) {
            let length = buffer.len();
            prop_assert!(take_out(&mut buffer, stride, |_| ()) <= length);
        }
    }
}
