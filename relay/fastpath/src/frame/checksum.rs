//! The internet checksum: one's complement sums of 16-bit words (RFC 1071) and their update (RFC 1624).
//!
//! Words are summed as they lie in memory: the sum of swapped words is the swapped sum. Wider words are summed as they
//! are, too: 2^16 is 1 in this arithmetic.

/// A sum that is being made. What is taken away is added inverted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum(u64);

impl Sum {
    /// The sum that a checksum stands for.
    #[inline(always)]
    pub const fn of_checksum(checksum: u16) -> Self {
        Self(!checksum as u64)
    }

    /// With a word more.
    #[inline(always)]
    #[must_use]
    pub const fn add(self, word: u32) -> Self {
        Self(self.0 + word as u64)
    }

    /// With a word less.
    #[inline(always)]
    #[must_use]
    pub const fn sub(self, word: u32) -> Self {
        Self(self.0 + !word as u64)
    }

    /// With another sum.
    #[inline(always)]
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// The checksum. Of at most 2^31 words.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "folded into 16 bits before")]
    pub const fn checksum(self) -> u16 {
        let mut sum = (self.0 & 0xFFFF_FFFF) + (self.0 >> 32);
        sum = (sum & 0xFFFF) + (sum >> 16);
        sum = (sum & 0xFFFF) + (sum >> 16);
        sum = (sum & 0xFFFF) + (sum >> 16);
        !(sum as u16)
    }

    /// The checksum of a UDP datagram, in which zero says that there is none (RFC 768).
    #[inline(always)]
    pub const fn udp_checksum(self) -> u16 {
        match self.checksum() {
            0 => 0xFFFF,
            checksum => checksum,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full(words: &[u32]) -> u16 {
        let mut sum = 0_u64;
        for word in words {
            sum += u64::from(word & 0xFFFF) + u64::from(word >> 16);
        }
        while sum >> 16 != 0 {
            sum = (sum & 0xFFFF) + (sum >> 16);
        }
        !u16::try_from(sum).unwrap()
    }

    proptest::proptest! {
        #[test]
        fn an_updated_checksum_is_the_one_computed_anew(before: [u32; 9], after: [u32; 9], stays: [u32; 5]) {
            let old = full(&[&before[..], &stays].concat());
            let mut sum = Sum::of_checksum(old);
            for (before, after) in before.into_iter().zip(after) {
                sum = sum.sub(before).add(after);
            }
            let new = full(&[&after[..], &stays].concat());
            // Zero has two forms; only a sum of nothing but zeros is the other one.
            proptest::prop_assert!(sum.checksum() == new || (new == 0xFFFF && sum.checksum() == 0));
        }
    }
}
