//! Sets of node ids as sparse bit maps: a network of 10,000 nodes in 2.5 KB.

use crate::model::NodeId;

/// A set of node ids.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdSet {
    /// (id / 64, bits), ascending; no word is empty.
    words: Vec<(u64, u64)>,
}

impl FromIterator<NodeId> for IdSet {
    fn from_iter<I: IntoIterator<Item = NodeId>>(ids: I) -> Self {
        let mut set = Self::default();
        for id in ids {
            set.insert(id);
        }
        set
    }
}

impl IdSet {
    /// Adds an id. Cheap if ids come in ascending order.
    pub fn insert(&mut self, id: NodeId) {
        let (word, bit) = (id.0 / 64, 1 << (id.0 % 64));
        match self.words.last_mut() {
            Some(last) if last.0 == word => last.1 |= bit,
            Some(last) if last.0 > word => match self.words.binary_search_by_key(&word, |entry| entry.0) {
                Ok(index) => self.words[index].1 |= bit,
                Err(index) => self.words.insert(index, (word, bit)),
            },
            _ => self.words.push((word, bit)),
        }
    }

    /// Whether the id is in the set.
    pub fn contains(&self, id: NodeId) -> bool {
        self.word(id.0 / 64) & 1 << (id.0 % 64) != 0
    }

    fn word(&self, word: u64) -> u64 {
        self.words.binary_search_by_key(&word, |entry| entry.0).map_or(0, |index| self.words[index].1)
    }

    /// The ids, ascending.
    pub fn iter(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.words.iter().flat_map(|&(word, bits)| ids(word, bits))
    }

    /// The ids that are not in `other`, ascending.
    pub fn difference<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = NodeId> + 'a {
        self.words.iter().flat_map(|&(word, bits)| ids(word, bits & !other.word(word)))
    }
}

fn ids(word: u64, bits: u64) -> impl Iterator<Item = NodeId> {
    (0..64).filter(move |bit| bits & 1 << bit != 0).map(move |bit| NodeId(word * 64 + bit))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_set(a in proptest::collection::vec(0u64..500, 0..80), b in proptest::collection::vec(0u64..500, 0..80)) {
            let (set_a, set_b): (IdSet, IdSet) =
                (a.iter().copied().map(NodeId).collect(), b.iter().copied().map(NodeId).collect());
            let (a, b): (BTreeSet<u64>, BTreeSet<u64>) = (a.into_iter().collect(), b.into_iter().collect());
            prop_assert_eq!(set_a.iter().map(|id| id.0).collect::<Vec<_>>(), a.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!(
                set_a.difference(&set_b).map(|id| id.0).collect::<Vec<_>>(),
                a.difference(&b).copied().collect::<Vec<_>>()
            );
            for id in 0..500 {
                prop_assert_eq!(set_a.contains(NodeId(id)), a.contains(&id));
            }
        }
    }
}
