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
    #[inline(always)]
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

/// The table's first line, fetched once for each datagram.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    line: &'a Line,
    header: Header,
}

impl<'a> Head<'a> {
    /// Reads it. `None`: not a table of this layout.
    #[inline(always)]
    pub fn of<T: Lines + ?Sized>(table: &'a T) -> Option<Self> {
        let line = table.line(0)?;
        let log2_buckets = line.load(head::LOG2_BUCKETS);
        if line.load(head::MAGIC) != MAGIC || log2_buckets > u64::from(MAX_LOG2_BUCKETS) {
            return None;
        }
        let header = Header::from_words(log2_buckets, line.load(head::SEED), line.load(head::PORTS));
        Some(Self { line, header })
    }

    /// What it says.
    #[inline(always)]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Looks a key up.
    #[inline(always)]
    pub fn lookup<T: Lines + ?Sized>(&self, table: &T, key: &Key) -> Result<Option<Pair>, Busy> {
        let words = key.words();
        let place = Place::of(&words, &self.header, &head::FACTORS.map(|word| self.line.load(word)));
        for _ in 0..ATTEMPTS {
            let moves = self.line.load(head::MOVES);
            match look(table, &self.header, &place, &words) {
                Seen::Found(pair) => return Ok(Some(pair)),
                Seen::Missing if self.line.load(head::MOVES) == moves => return Ok(None),
                Seen::Missing | Seen::Torn => {}
            }
        }
        Err(Busy)
    }
}

/// The table's header. `None`: not a table of this layout.
#[inline(always)]
pub fn header<T: Lines + ?Sized>(table: &T) -> Option<Header> {
    Head::of(table).map(|head| head.header)
}

/// Which of the relay's addresses it is. `None`: none.
#[inline(always)]
pub fn local_index<T: Lines + ?Sized>(table: &T, ip: Ip) -> Option<u8> {
    let wanted = ip.words();
    // Places that no address has hold zeros.
    if wanted[0] | wanted[1] == 0 {
        return None;
    }
    let mut index = 0;
    while index < MAX_LOCALS {
        // Four addresses to a line.
        let (line, _) = local_at(u32::from(index));
        let line = table.line(line)?;
        for within in 0..4 {
            let (_, word) = local_at(u32::from(within));
            if line.load(word) == wanted[0] && line.load(word + 1) == wanted[1] {
                return Some(index + within);
            }
        }
        index += 4;
    }
    None
}

/// One of the relay's addresses. `None`: there are not so many.
#[inline(always)]
pub fn local<T: Lines + ?Sized>(table: &T, index: u8) -> Option<Ip> {
    if index >= MAX_LOCALS {
        return None;
    }
    let (line, word) = local_at(u32::from(index));
    let line = table.line(line)?;
    let words = [line.load(word), line.load(word + 1)];
    (words[0] | words[1] != 0).then_some(Ip::from_words(words))
}

/// Looks a key up.
#[inline(always)]
pub fn lookup<T: Lines + ?Sized>(table: &T, key: &Key) -> Result<Option<Pair>, Busy> {
    Head::of(table).map_or(Ok(None), |head| head.lookup(table, key))
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
                Some((key, pair)) if same(&key, words) => return Seen::Found(Pair::from_words(pair)),
                Some(_) => {}
                None => torn = true,
            }
        }
    }
    if torn { Seen::Torn } else { Seen::Missing }
}

/// Word by word: comparing arrays is a function call in eBPF.
#[inline(always)]
fn same(one: &[u64; 3], other: &[u64; 3]) -> bool {
    one[0] == other[0] && one[1] == other[1] && one[2] == other[2]
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
