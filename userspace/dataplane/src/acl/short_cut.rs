//! The header words by which the programs judge the common packet, derived from those that the compiler sets.

use ghostwire_ebpf_abi::image::{flags, header};

/// A value that no address has: there is no short cut.
const NONE: u64 = u64::MAX;

/// Indices and values of the short cut's words for an image with the header `word`.
pub(super) fn words(word: impl Fn(u32) -> u64, sampling: bool) -> [(u32, u64); 10] {
    let in_bits = |words: u64| words.wrapping_mul(64);
    let rows = |stride: u32, locals: u32| in_bits(word(stride).wrapping_mul(word(locals)));
    let overlay4 = u16::try_from(word(header::OVERLAY4)).map_or(NONE, |prefix| u64::from(prefix.to_be()));
    let [own4, overlay6] = doors(&word, sampling);
    [
        (header::SHORT_OVERLAY4, overlay4),
        own4,
        (header::SHORT_IN_BASE, in_bits(word(header::IN_BASE))),
        (header::SHORT_IN_ROWS, rows(header::IN_STRIDE, header::IN_LOCALS)),
        (header::SHORT_OUT_BASE, in_bits(word(header::OUT_BASE))),
        (header::SHORT_OUT_ROWS, rows(header::OUT_STRIDE, header::OUT_LOCALS)),
        overlay6,
        (header::SHORT_OVERLAY6_HI, word(header::OVERLAY6_HI).to_be()),
        (header::SHORT_OWN6_HI, word(header::OWN6_HI).to_be()),
        (header::SHORT_OWN6_LO, word(header::OWN6_LO).to_be()),
    ]
}

/// Those of them, one for each family, that close the short cut: it does not report the packets that are sampled.
pub(super) fn doors(word: impl Fn(u32) -> u64, sampling: bool) -> [(u32, u64); 2] {
    let open = |family: u64| word(header::FLAGS) & family != 0 && !sampling;
    let own4 = match u32::try_from(word(header::OWN4)) {
        Ok(addr) if addr != 0 && open(flags::HAS_V4) => u64::from(addr.to_be()),
        _ => NONE,
    };
    // 48 bits: as they lie in memory, they are the upper ones of a word.
    let overlay6 = match word(header::OVERLAY6_LO) {
        prefix if prefix >> 48 == 0 && open(flags::HAS_V6) => (prefix << 16).to_be(),
        _ => NONE,
    };
    [(header::SHORT_OWN4, own4), (header::SHORT_OVERLAY6_LO, overlay6)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(index: u32) -> u64 {
        match index {
            header::FLAGS => flags::HAS_V4 | flags::HAS_V6,
            header::OWN4 => 0x6440_0002,
            header::OVERLAY4 => 0x6440,
            header::OVERLAY6_LO => 0x0102_0304_0506,
            _ => 0,
        }
    }

    fn value(words: &[(u32, u64)], index: u32) -> u64 {
        words.iter().find(|(found, _)| *found == index).unwrap().1
    }

    #[test]
    fn addresses_are_as_they_lie_in_a_packet() {
        let words = words(word, false);
        assert_eq!(value(&words, header::SHORT_OVERLAY4).to_ne_bytes()[..2], [100, 64]);
        assert_eq!(value(&words, header::SHORT_OWN4).to_ne_bytes()[..4], [100, 64, 0, 2]);
        assert_eq!(value(&words, header::SHORT_OVERLAY6_LO).to_ne_bytes(), [1, 2, 3, 4, 5, 6, 0, 0]);
    }

    #[test]
    fn sampling_and_a_missing_family_close_it() {
        assert_eq!(doors(word, true).map(|(_, value)| value), [NONE, NONE]);
        let without = |index| if index == header::FLAGS { 0 } else { word(index) };
        assert_eq!(doors(without, false).map(|(_, value)| value), [NONE, NONE]);
    }
}
