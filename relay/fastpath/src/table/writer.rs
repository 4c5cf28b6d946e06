//! Changing the table.

use super::layout::{
    Header, Key, Line, MAGIC, MAX_LOCALS, MAX_LOG2_BUCKETS, MIN_LOG2_BUCKETS, Pair, Place, SLOTS, entry,
    entry_at, factors, head, local_at, other_bucket, tag_in, tags_at, with_tag,
};
use super::reader::{self, Lines};
use crate::Ip;

/// How many buckets are looked at to find a place for an entry. Enough for tables nine tenths full.
const SEARCH: usize = 256;

/// The table is too full, or its memory too small.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// The memory holds another table, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotThis;

/// The one who writes. It keeps nothing outside of the table.
#[derive(Debug)]
pub struct Writer<T> {
    table: T,
    header: Header,
    factors: [u64; 3],
}

/// Where an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Slot {
    bucket: u32,
    slot: u32,
}

/// A bucket on the way to a free slot.
#[derive(Clone, Copy, Default)]
struct Step {
    bucket: u32,
    /// The step before, and which of its slots holds the entry that may move here. The first two have none.
    from: Option<(usize, u32)>,
}

impl<T: Lines> Writer<T> {
    /// Makes an empty table in memory that nobody reads yet. [`Full`]: the memory is too small, or there are more
    /// than eight addresses.
    pub fn format(table: T, header: Header, locals: &[Ip]) -> Result<Self, Full> {
        let size = header.log2_buckets;
        if !(MIN_LOG2_BUCKETS..=MAX_LOG2_BUCKETS).contains(&size) || locals.len() > usize::from(MAX_LOCALS) {
            return Err(Full);
        }
        let last = entry_at(&header, header.mask(), SLOTS - 1);
        for index in 0..=last {
            let line = table.line(index).ok_or(Full)?;
            for word in 0..super::WORDS {
                line.store(word, 0);
            }
        }
        for (index, local) in (0..).zip(locals) {
            let (line, word) = local_at(index);
            let line = table.line(line).ok_or(Full)?;
            let [low, high] = local.words();
            line.store(word, low);
            line.store(word + 1, high);
        }
        let line = table.line(0).ok_or(Full)?;
        line.store(head::LOG2_BUCKETS, u64::from(header.log2_buckets));
        line.store(head::SEED, header.seed);
        line.store(head::PORTS, header.ports_word());
        let factors = factors(header.seed);
        for (word, factor) in head::FACTORS.into_iter().zip(factors) {
            line.store(word, factor);
        }
        line.store(head::MAGIC, MAGIC);
        Ok(Self { table, header, factors })
    }

    /// Goes on with a table that another writer has left, which must be gone: a relay that was restarted. What is
    /// read goes on without a break. [`NotThis`]: it is no table, or one for other ports, sizes or addresses; the
    /// seed may be any.
    pub fn adopt(table: T, header: &Header, locals: &[Ip]) -> Result<Self, NotThis> {
        let found = reader::header(&table).ok_or(NotThis)?;
        let wanted = Header { seed: found.seed, ..*header };
        let all_there = table.line(entry_at(&found, found.mask(), SLOTS - 1)).is_some();
        let same_locals =
            (0..MAX_LOCALS).all(|at| reader::local(&table, at) == locals.get(usize::from(at)).copied());
        if found != wanted || !all_there || !same_locals {
            return Err(NotThis);
        }
        let writer = Self { table, header: found, factors: factors(found.seed) };
        writer.tidy();
        Ok(writer)
    }

    /// Takes away what a writer that was killed left half done: entries half written, and the old one of two for
    /// the same key.
    fn tidy(&self) {
        for bucket in 0..=self.header.mask() {
            for slot in 0..SLOTS {
                let at = Slot { bucket, slot };
                if tag_in(self.tags(bucket), slot) == 0 {
                    continue;
                }
                let key = self.entry(at).and_then(reader::read).map(|(key, _)| key);
                let lookup = key.map(|key| self.find_words(&key));
                if lookup != Some(Some(at)) {
                    self.set_tag(at, 0);
                    self.count_move();
                }
            }
        }
    }

    /// All keys and where they lead, in no order.
    pub fn entries(&self) -> impl Iterator<Item = (Key, Pair)> {
        (0..=self.header.mask()).flat_map(move |bucket| {
            (0..SLOTS).filter_map(move |slot| {
                if tag_in(self.tags(bucket), slot) == 0 {
                    return None;
                }
                let (key, pair) = reader::read(self.entry(Slot { bucket, slot })?)?;
                Some((Key::from_words(key), Pair::from_words(pair)))
            })
        })
    }

    /// What the table was made with.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The table, to read.
    pub fn table(&self) -> &T {
        &self.table
    }

    /// What a key leads to.
    pub fn get(&self, key: &Key) -> Option<Pair> {
        let slot = self.find(key)?;
        let (_, pair) = reader::read(self.entry(slot)?)?;
        Some(Pair::from_words(pair))
    }

    /// Adds a key, or gives it another value. On [`Full`] nothing has changed.
    pub fn insert(&mut self, key: &Key, pair: &Pair) -> Result<(), Full> {
        let words = key.words();
        let place = Place::of(&words, &self.header, &self.factors);
        let mut old = self.find(key);
        // A free slot in the old one's bucket first: then one store switches from old to new.
        let near = old.and_then(|old| self.free_in(old.bucket));
        let near = near.or_else(|| place.buckets.into_iter().find_map(|bucket| self.free_in(bucket)));
        let free = if let Some(free) = near {
            free
        } else {
            let made = self.make_room(&place);
            // It may have been moved for the room.
            old = self.find(key);
            // Where there is none, the old one is written over: readers that come along meanwhile see the odd stamp
            // and look again.
            made.or(old).ok_or(Full)?
        };
        self.write(free, &words, &pair.words());
        match old {
            None => self.set_tag(free, place.tag),
            Some(old) if old == free => {}
            Some(old) if old.bucket == free.bucket => {
                let tags = with_tag(self.tags(old.bucket), old.slot, 0);
                self.store_tags(old.bucket, with_tag(tags, free.slot, place.tag));
                self.count_move();
            }
            Some(old) => {
                self.set_tag(free, place.tag);
                self.count_move();
                self.set_tag(old, 0);
            }
        }
        Ok(())
    }

    /// Removes a key; gives what it led to.
    pub fn remove(&mut self, key: &Key) -> Option<Pair> {
        let pair = self.get(key)?;
        let slot = self.find(key)?;
        self.set_tag(slot, 0);
        self.count_move();
        Some(pair)
    }

    fn entry(&self, at: Slot) -> Option<&Line> {
        self.table.line(entry_at(&self.header, at.bucket, at.slot))
    }

    fn tags(&self, bucket: u32) -> u64 {
        let (line, word) = tags_at(bucket);
        self.table.line(line).map_or(0, |line| line.load(word))
    }

    fn store_tags(&self, bucket: u32, tags: u64) {
        let (line, word) = tags_at(bucket);
        if let Some(line) = self.table.line(line) {
            line.store(word, tags);
        }
    }

    fn set_tag(&self, at: Slot, tag: u16) {
        self.store_tags(at.bucket, with_tag(self.tags(at.bucket), at.slot, tag));
    }

    /// Tells readers that something may have left a place where they have looked.
    fn count_move(&self) {
        if let Some(line) = self.table.line(0) {
            line.store(head::MOVES, line.load(head::MOVES).wrapping_add(1));
        }
    }

    fn find(&self, key: &Key) -> Option<Slot> {
        self.find_words(&key.words())
    }

    fn find_words(&self, words: &[u64; 3]) -> Option<Slot> {
        let place = Place::of(words, &self.header, &self.factors);
        place.buckets.into_iter().find_map(|bucket| {
            let tags = self.tags(bucket);
            (0..SLOTS).map(|slot| Slot { bucket, slot }).find(|at| {
                let entry = || self.entry(*at).and_then(reader::read);
                tag_in(tags, at.slot) == place.tag && entry().is_some_and(|(key, _)| key == *words)
            })
        })
    }

    fn free_in(&self, bucket: u32) -> Option<Slot> {
        let tags = self.tags(bucket);
        (0..SLOTS).find(|slot| tag_in(tags, *slot) == 0).map(|slot| Slot { bucket, slot })
    }

    /// Writes an entry: odd stamp, contents, even stamp.
    fn write(&self, at: Slot, key: &[u64; 3], pair: &[u64; 4]) {
        let Some(line) = self.entry(at) else { return };
        let stamp = line.load(entry::STAMP) | 1;
        line.store(entry::STAMP, stamp);
        for (word, value) in (entry::KEY..).zip(key) {
            line.store(word, *value);
        }
        for (word, value) in (entry::PAIR..).zip(pair) {
            line.store(word, *value);
        }
        line.store(entry::STAMP, stamp.wrapping_add(1));
    }

    /// Moves entries to their other buckets until one of the two buckets has a free slot. `None`: too full.
    fn make_room(&self, place: &Place) -> Option<Slot> {
        let mut steps = [Step::default(); SEARCH];
        let mut known = 0;
        for bucket in place.buckets {
            steps[known].bucket = bucket;
            known += 1;
        }
        let mut at = 0;
        while at < known {
            let bucket = steps[at].bucket;
            let tags = self.tags(bucket);
            for slot in 0..SLOTS {
                let next = other_bucket(bucket, tag_in(tags, slot), &self.header);
                if let Some(free) = self.free_in(next) {
                    return self.shift(&steps, at, slot, free);
                }
                // A bucket twice on one way would move an entry that has moved already.
                if known < SEARCH && !on_the_way(&steps, at, next) {
                    steps[known] = Step { bucket: next, from: Some((at, slot)) };
                    known += 1;
                }
            }
            at += 1;
        }
        None
    }

    /// Moves the entries of a way, the last one first. Gives the slot that is free then.
    fn shift(&self, steps: &[Step; SEARCH], last: usize, slot: u32, free: Slot) -> Option<Slot> {
        let (mut at, mut slot, mut free) = (last, slot, free);
        loop {
            let from = Slot { bucket: steps[at].bucket, slot };
            self.relocate(from, free)?;
            free = from;
            match steps[at].from {
                Some((before, its_slot)) => (at, slot) = (before, its_slot),
                None => return Some(free),
            }
        }
    }

    /// Copies an entry, publishes the copy, and only then takes the original away.
    fn relocate(&self, from: Slot, to: Slot) -> Option<()> {
        let tag = tag_in(self.tags(from.bucket), from.slot);
        let (key, pair) = reader::read(self.entry(from)?)?;
        self.write(to, &key, &pair);
        self.set_tag(to, tag);
        self.count_move();
        self.set_tag(from, 0);
        Some(())
    }
}

fn on_the_way(steps: &[Step; SEARCH], mut at: usize, bucket: u32) -> bool {
    loop {
        if steps[at].bucket == bucket {
            return true;
        }
        match steps[at].from {
            Some((before, _)) => at = before,
            None => return false,
        }
    }
}
