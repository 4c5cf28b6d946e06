//! Looking up.

use super::layout::{
    Header, Key, Line, MAGIC, MAX_LOCALS, MAX_LOG2_BUCKETS, Pair, Place, SLOTS, entry, entry_at, head,
    local_at, tag_in, tags_at,
};
use crate::Ip;

/// How often a lookup starts again because the table changed under it.
const ATTEMPTS: u32 = 3;

/// Where the lines are: a slice in userspace, a map in the kernel.
pub trait Lines {
    /// A line. `None`: beyond the table.
    fn line(&self, index: u32) -> Option<&Line>;
}

impl Lines for [Line] {
    fn line(&self, index: u32) -> Option<&Line> {
        self.get(index as usize)
    }
}

impl<T: Lines + ?Sized> Lines for &T {
    fn line(&self, index: u32) -> Option<&Line> {
        (**self).line(index)
    }
}

/// The table changed each time a lookup looked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Busy;

/// What a look at the two buckets gave.
enum Seen {
    Found(Pair),
    Missing,
    /// An entry was written while it was read.
    Torn,
}

/// The table's header. `None`: not a table of this layout.
#[inline(always)]
pub fn header<T: Lines + ?Sized>(table: &T) -> Option<Header> {
    let line = table.line(0)?;
    let log2_buckets = line.load(head::LOG2_BUCKETS);
    if line.load(head::MAGIC) != MAGIC || log2_buckets > u64::from(MAX_LOG2_BUCKETS) {
        return None;
    }
    Some(Header::from_words(log2_buckets, line.load(head::SEED), line.load(head::PORTS)))
}

/// Which of the relay's addresses it is. `None`: none.
#[inline(always)]
pub fn local_index<T: Lines + ?Sized>(table: &T, ip: Ip) -> Option<u8> {
    let wanted = ip.words();
    for index in 0..MAX_LOCALS {
        let (line, word) = local_at(u32::from(index));
        let line = table.line(line)?;
        if [line.load(word), line.load(word + 1)] == wanted {
            return Some(index);
        }
    }
    None
}

/// Looks a key up.
#[inline(always)]
pub fn lookup<T: Lines + ?Sized>(table: &T, key: &Key) -> Result<Option<Pair>, Busy> {
    let Some(header) = header(table) else { return Ok(None) };
    let words = key.words();
    let place = Place::of(&words, &header);
    for _ in 0..ATTEMPTS {
        let moves = moves(table);
        match look(table, &header, &place, &words) {
            Seen::Found(pair) => return Ok(Some(pair)),
            Seen::Missing if self::moves(table) == moves => return Ok(None),
            Seen::Missing | Seen::Torn => {}
        }
    }
    Err(Busy)
}

#[inline(always)]
fn moves<T: Lines + ?Sized>(table: &T) -> u64 {
    table.line(0).map_or(0, |line| line.load(head::MOVES))
}

#[inline(always)]
fn look<T: Lines + ?Sized>(table: &T, header: &Header, place: &Place, words: &[u64; 3]) -> Seen {
    let mut torn = false;
    for bucket in place.buckets {
        let (line, word) = tags_at(bucket);
        let tags = table.line(line).map_or(0, |line| line.load(word));
        for slot in 0..SLOTS {
            if tag_in(tags, slot) != place.tag {
                continue;
            }
            let Some(line) = table.line(entry_at(header, bucket, slot)) else { continue };
            match read(line) {
                Some((key, pair)) if key == *words => return Seen::Found(Pair::from_words(pair)),
                Some(_) => {}
                None => torn = true,
            }
        }
    }
    if torn { Seen::Torn } else { Seen::Missing }
}

/// Reads an entry. `None`: it was written meanwhile.
#[inline(always)]
pub(super) fn read(line: &Line) -> Option<([u64; 3], [u64; 4])> {
    let stamp = line.load(entry::STAMP);
    let key = [line.load(entry::KEY), line.load(entry::KEY + 1), line.load(entry::KEY + 2)];
    let pair = [
        line.load(entry::PAIR),
        line.load(entry::PAIR + 1),
        line.load(entry::PAIR + 2),
        line.load(entry::PAIR + 3),
    ];
    (stamp & 1 == 0 && line.load(entry::STAMP) == stamp).then_some((key, pair))
}
