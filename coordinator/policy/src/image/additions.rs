//! From one image to the next without a new one: single cells of the tables of remotes.

use std::collections::HashSet;
use std::ops::Range;

use ghostwire_ebpf_abi::image as abi;
use ghostwire_ebpf_abi::image::header;

use super::ClassImage;

impl ClassImage {
    /// What must be written into the tables of the image `old`, which is in force, to make it this one, if that only
    /// adds: a peer joins an existing class, or moves to one that may do all that its old one may and more. Words and
    /// their values, to be written in any order, each atomically; the generation is not among them.
    ///
    /// `None`: something else differs, or a permission is taken away. Then the image must be swapped: only a new
    /// generation at once with the new verdicts has everything judged again that the old ones admitted.
    ///
    /// A packet reads one cell of these tables for the far side of its flow, so between two writes each verdict is
    /// the old one or the new one.
    pub fn additions_to(&self, old: &Self) -> Option<Vec<(u32, u64)>> {
        let tables = index(abi::REMOTE4)..index(abi::MATRICES);
        if self.words.len() != old.words.len()
            || self.words.len() < tables.end
            || self.remote_nets != old.remote_nets
            || self.local_nets != old.local_nets
        {
            return None;
        }
        let generation = index(header::GENERATION);
        let same = |range: Range<usize>| self.words[range.clone()] == old.words[range];
        if !same(0..generation) || !same(generation + 1..tables.start) || !same(tables.end..self.words.len())
        {
            return None;
        }
        let mut writes = Vec::new();
        let mut moves = HashSet::new();
        for index in tables {
            let (new, was) = (self.words[index], old.words[index]);
            if new != was {
                moves.extend(halves(was).into_iter().zip(halves(new)));
                writes.push((u32::try_from(index).ok()?, new));
            }
        }
        moves.into_iter().all(|(was, new)| self.is_no_loss(was, new)).then_some(writes)
    }

    /// Whether a remote that moves from one cell to another keeps what it may do, and what may be done to it.
    fn is_no_loss(&self, was: u32, new: u32) -> bool {
        if was == new || was == 0 {
            return true;
        }
        // A remote that is not known any more: not even errors about its flows pass.
        if new == 0 {
            return false;
        }
        let inbound = self.covers(
            [header::IN_BASE, header::IN_STRIDE, header::IN_LOCALS],
            abi::inbound(was),
            abi::inbound(new),
        );
        let outbound = self.covers(
            [header::OUT_BASE, header::OUT_STRIDE, header::OUT_LOCALS],
            abi::outbound(was),
            abi::outbound(new),
        );
        inbound && outbound
    }

    /// Whether the rows of class `new` in a matrix, which is the same in both images, have every bit of those of
    /// class `was`. Class 0 has none.
    fn covers(&self, [base, stride, locals]: [u32; 3], was: u32, new: u32) -> bool {
        let (base, length) = (self.word(base), self.word(stride).saturating_mul(self.word(locals)));
        let rows = |class: u32| {
            let start = base.saturating_add(u64::from(class).saturating_mul(length));
            let range = usize::try_from(start).ok()?..usize::try_from(start.saturating_add(length)).ok()?;
            self.words.get(range)
        };
        if was == 0 || was == new {
            return true;
        }
        match (rows(was), rows(new)) {
            (Some(was), Some(_)) if new == 0 => was.iter().all(|&word| word == 0),
            (Some(was), Some(new)) => was.iter().zip(new).all(|(was, new)| was & !new == 0),
            _ => false,
        }
    }
}

fn index(word: u32) -> usize {
    word as usize
}

/// The two cells of a word.
fn halves(word: u64) -> [u32; 2] {
    [0, 32].map(|shift| u32::try_from(word >> shift & 0xffff_ffff).unwrap_or_default())
}
