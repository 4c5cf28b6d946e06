//! The Internet checksum (RFC 1071), kept up to date while headers change (RFC 1624).
//!
//! One's complement sums do not depend on byte order, so words are added as they lie in memory.

/// A one's complement sum, not yet folded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum(u64);

impl Sum {
    /// Of nothing.
    pub const ZERO: Self = Self(0);

    /// With a word that was added.
    #[inline(always)]
    #[must_use]
    pub const fn plus(self, word: u32) -> Self {
        Self(self.0 + word as u64)
    }

    /// With a word that is gone.
    #[inline(always)]
    #[must_use]
    pub const fn minus(self, word: u32) -> Self {
        Self(self.0 + !word as u64)
    }

    /// With all words of an address or header added.
    #[inline(always)]
    #[must_use]
    pub fn plus_all<const N: usize>(self, words: [u32; N]) -> Self {
        words.into_iter().fold(self, Self::plus)
    }

    /// With all words of an address or header gone.
    #[inline(always)]
    #[must_use]
    pub fn minus_all<const N: usize>(self, words: [u32; N]) -> Self {
        words.into_iter().fold(self, Self::minus)
    }

    /// In 32 bits, as the kernel's helpers take a difference.
    #[inline(always)]
    pub const fn fold32(self) -> u32 {
        let once = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        ((once & 0xffff_ffff) + (once >> 32)) as u32
    }

    /// In 16 bits.
    #[inline(always)]
    pub const fn fold16(self) -> u16 {
        let wide = self.fold32();
        let once = (wide & 0xffff) + (wide >> 16);
        ((once & 0xffff) + (once >> 16)) as u16
    }
}

/// A checksum field after what it covers has changed: RFC 1624, equation 3.
#[inline(always)]
pub const fn update(check: u16, change: Sum) -> u16 {
    !change.plus((!check) as u32).fold16()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 1071, slowly.
    fn checksum(bytes: &[u8]) -> u16 {
        let mut sum = 0_u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(u16::from_ne_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    fn word(bytes: &[u8], at: usize) -> u32 {
        u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
    }

    proptest::proptest! {
        #[test]
        fn an_updated_checksum_is_the_one_of_the_new_bytes(
            old in proptest::array::uniform20(proptest::num::u8::ANY),
            new in proptest::array::uniform8(proptest::num::u8::ANY),
        ) {
            let mut changed = old;
            changed[12..].copy_from_slice(&new);
            let difference = Sum::ZERO
                .minus(word(&old, 12)).minus(word(&old, 16))
                .plus(word(&changed, 12)).plus(word(&changed, 16));
            let updated = update(checksum(&old), difference);
            let whole = checksum(&changed);
            // Zero has two representations; only a header of zeros has the other one.
            proptest::prop_assert!(updated == whole || (updated ^ whole == 0xffff && (whole == 0 || updated == 0)));
        }
    }

    #[test]
    fn the_example_of_rfc_1624() {
        // Section 4: 0xdd2f, 0x5555 becomes 0x3285, and the checksum must become 0x0000, not 0xffff.
        assert_eq!(update(0xdd2f, Sum::ZERO.minus(0x5555).plus(0x3285)), 0);
    }
}
