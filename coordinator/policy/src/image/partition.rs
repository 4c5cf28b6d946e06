//! Overlapping sets → disjoint classes: two points are of one class if the same sets contain them.

use std::collections::HashMap;

use super::CompileError;
use crate::addr_set::Bits;

/// Most memory for the signatures of classes, in 64-bit words.
const MAX_SIGNATURE_WORDS: usize = 16 << 20;

/// Most 64-bit words that any part of the compiler looks at: about a second. The largest policies that fit into an
/// image need a thousandth of it.
const MAX_STEPS: u64 = 1 << 31;

/// Counts what the compiler does, so that no filter keeps it busy for long.
pub(super) struct Effort {
    what: &'static str,
    sets: usize,
    left: u64,
}

impl Effort {
    /// For lists of something, so many of them.
    pub(super) fn new(what: &'static str, sets: usize) -> Self {
        Self { what, sets, left: MAX_STEPS }
    }

    /// So many words more.
    pub(super) fn spend(&mut self, words: usize) -> Result<(), CompileError> {
        let left = u64::try_from(words).ok().and_then(|words| self.left.checked_sub(words));
        self.left = left.ok_or_else(|| self.too_intricate())?;
        Ok(())
    }

    pub(super) fn too_intricate(&self) -> CompileError {
        CompileError::TooIntricate { what: self.what, sets: self.sets }
    }
}

/// A set of small numbers.
pub(super) type BitSet = Box<[u64]>;

/// The numbers in a bit set.
pub(super) fn bits(words: &[u64]) -> impl Iterator<Item = usize> {
    words.iter().enumerate().flat_map(|(index, &word)| {
        std::iter::successors(Some(word), |rest| Some(rest & rest.wrapping_sub(1)))
            .take_while(|&rest| rest != 0)
            .map(move |rest| index * 64 + rest.trailing_zeros() as usize)
    })
}

/// Classes by the sets that contain them. Class 0 is what no set contains.
pub(super) struct Classes {
    effort: Effort,
    /// Which sets are active at the sweep's place.
    active: BitSet,
    count: usize,
    /// Exclusive or of the active sets' hashes: the key under which a signature is looked up before it is
    /// compared.
    hash: u64,
    known: HashMap<u64, Vec<u32>>,
    pub(super) signatures: Vec<BitSet>,
}

impl Classes {
    pub(super) fn new(what: &'static str, sets: usize) -> Self {
        let nothing: BitSet = vec![0; sets.div_ceil(64)].into();
        Self {
            effort: Effort::new(what, sets),
            active: nothing.clone(),
            count: 0,
            hash: 0,
            known: HashMap::from([(0, vec![0])]),
            signatures: vec![nothing],
        }
    }

    /// A set begins or ends here.
    fn toggle(&mut self, set: usize) {
        let (word, bit) = (set / 64, 1 << (set % 64));
        self.active[word] ^= bit;
        if self.active[word] & bit == 0 {
            self.count -= 1;
        } else {
            self.count += 1;
        }
        self.hash ^= mix(set as u64 + 1);
    }

    /// The class of the sweep's place.
    fn current(&mut self) -> Result<u32, CompileError> {
        if self.count == 0 {
            return Ok(0);
        }
        self.effort.spend(self.active.len())?;
        let candidates = self.known.entry(self.hash).or_default();
        for &class in candidates.iter() {
            if self.signatures[class as usize] == self.active {
                return Ok(class);
            }
        }
        let words = (self.signatures.len() + 1) * self.active.len();
        let class = u32::try_from(self.signatures.len()).unwrap_or(u32::MAX);
        if words > MAX_SIGNATURE_WORDS || class == u32::MAX {
            return Err(self.effort.too_intricate());
        }
        candidates.push(class);
        self.signatures.push(self.active.clone());
        Ok(class)
    }

    /// Sweeps ranges, which belong to numbered sets, and names the class of each interval that is not empty.
    /// Intervals come in order; neighbours may have the same class.
    pub(super) fn sweep<T: Bits>(
        &mut self,
        ranges: impl Iterator<Item = (usize, (T, T))>,
    ) -> Result<Vec<Interval<T>>, CompileError> {
        // A set that ends at the last point there is has no end event.
        let mut events: Vec<(T, usize)> = Vec::new();
        let mut last_point = None;
        for (set, (first, last)) in ranges {
            events.push((first, set));
            match last.next() {
                Some(end) => events.push((end, set)),
                None => last_point = Some(last),
            }
        }
        events.sort_unstable();
        let mut intervals: Vec<Interval<T>> = Vec::new();
        let mut rest = events.as_slice();
        while let Some(&(at, _)) = rest.first() {
            let here = rest.iter().take_while(|&&(point, _)| point == at).count();
            for &(_, set) in &rest[..here] {
                self.toggle(set);
            }
            rest = &rest[here..];
            let end = match rest.first() {
                Some(&(next, _)) => next.previous(),
                None => last_point,
            };
            let class = self.current()?;
            if let Some(last) = end
                && class != 0
            {
                intervals.push(Interval { first: at, last, class });
            }
        }
        // Sets that reach to the last point are still active.
        let open: Vec<usize> = bits(&self.active).collect();
        for set in open {
            self.toggle(set);
        }
        Ok(intervals)
    }
}

/// A run of points of one class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Interval<T> {
    pub(super) first: T,
    pub(super) last: T,
    pub(super) class: u32,
}

/// SplitMix64's finaliser: spreads small numbers over 64 bits.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_of_a_class_are_in_the_same_sets() {
        let sets: [&[(u32, u32)]; 3] = [&[(0, 9), (20, u32::MAX)], &[(5, 25)], &[(u32::MAX, u32::MAX)]];
        let ranges =
            || sets.iter().enumerate().flat_map(|(set, ranges)| ranges.iter().map(move |&r| (set, r)));
        let mut classes = Classes::new("addresses", sets.len());
        let intervals = classes.sweep(ranges()).unwrap();
        for point in [0, 1, 4, 5, 9, 10, 19, 20, 25, 26, u32::MAX - 1, u32::MAX] {
            let wanted: Vec<usize> = (0..3)
                .filter(|&set| sets[set].iter().any(|&(first, last)| first <= point && point <= last))
                .collect();
            let class = intervals.iter().find(|i| i.first <= point && point <= i.last).map_or(0, |i| i.class);
            assert_eq!(bits(&classes.signatures[class as usize]).collect::<Vec<_>>(), wanted, "{point}");
        }
        assert_eq!(classes.sweep(ranges()).unwrap(), intervals, "a sweep leaves nothing behind");
    }
}
