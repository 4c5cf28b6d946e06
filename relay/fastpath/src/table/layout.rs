//! Where what lies.

use core::sync::atomic::AtomicU64;
#[cfg(not(target_arch = "bpf"))]
use core::sync::atomic::Ordering;

use crate::{Endpoint, Ip, Pace};

/// Words in a line.
pub const WORDS: usize = 8;

/// The most addresses that a relay has.
pub const MAX_LOCALS: u8 = 8;

/// Words of tags, one per bucket, in a line.
const BUCKETS_PER_LINE: u32 = 8;

/// Slots in a bucket.
pub(super) const SLOTS: u32 = 4;

/// Bits of a tag.
const TAG_BITS: u32 = 16;

/// First word of a table: a name and the layout's version.
pub(super) const MAGIC: u64 = 0x6777_7061_6972_0001;

/// The smallest table: its tags fill a line.
pub(super) const MIN_LOG2_BUCKETS: u32 = 3;

/// The largest table: 4 Gi lines would not be addressable by a map's index.
pub(super) const MAX_LOG2_BUCKETS: u32 = 24;

const LOCALS_LINE: u32 = 1;
const TAGS_LINE: u32 = 3;

/// Words of line 0.
pub(super) mod head {
    pub(in crate::table) const MAGIC: usize = 0;
    pub(in crate::table) const LOG2_BUCKETS: usize = 1;
    pub(in crate::table) const SEED: usize = 2;
    pub(in crate::table) const MOVES: usize = 3;
    pub(in crate::table) const PORTS: usize = 4;
    pub(in crate::table) const FACTORS: [usize; 3] = [5, 6, 7];
}

/// Words of an entry.
pub(super) mod entry {
    pub(in crate::table) const STAMP: usize = 0;
    pub(in crate::table) const KEY: usize = 1;
    pub(in crate::table) const PAIR: usize = 4;
}

/// 64 bytes of the table.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct Line([AtomicU64; WORDS]);

impl Line {
    /// Reads a word. Beyond the line: 0.
    #[inline(always)]
    pub fn load(&self, word: usize) -> u64 {
        self.0.get(word).map_or(0, load)
    }

    /// Writes a word. Beyond the line: nothing. Only userspace writes.
    #[cfg(not(target_arch = "bpf"))]
    pub(super) fn store(&self, word: usize, value: u64) {
        #[cfg(test)]
        super::interleaving::before_store();
        if let Some(word) = self.0.get(word) {
            word.store(value, Ordering::Release);
        }
    }
}

#[cfg(not(target_arch = "bpf"))]
#[inline(always)]
fn load(word: &AtomicU64) -> u64 {
    #[cfg(test)]
    super::interleaving::before_load();
    word.load(Ordering::Acquire)
}

#[cfg(target_arch = "bpf")]
#[inline(always)]
fn load(word: &AtomicU64) -> u64 {
    // SAFETY: the pointer comes from a reference; aligned 64-bit loads are single instructions in eBPF.
    unsafe { word.as_ptr().read_volatile() }
}

/// What the header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Logarithm of the number of buckets.
    pub log2_buckets: u32,
    /// What hashes come from; random and secret, so that nobody can choose addresses that collide.
    pub seed: u64,
    /// The main port, where STUN and Allocate are answered. Host byte order.
    pub main_port: u16,
    /// The first relay port. Host byte order.
    pub first_port: u16,
    /// The last relay port. Host byte order.
    pub last_port: u16,
}

impl Header {
    /// Whether a port is the relay's: the main port or a relay port.
    #[inline(always)]
    pub const fn is_ours(&self, port: u16) -> bool {
        port == self.main_port || self.is_relay_port(port)
    }

    /// Whether it is a relay port.
    #[inline(always)]
    pub const fn is_relay_port(&self, port: u16) -> bool {
        port >= self.first_port && port <= self.last_port
    }

    #[cfg(not(target_arch = "bpf"))]
    pub(super) fn ports_word(&self) -> u64 {
        u64::from(self.main_port) | u64::from(self.first_port) << 16 | u64::from(self.last_port) << 32
    }

    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "takes words apart")]
    pub(super) const fn from_words(log2_buckets: u64, seed: u64, ports: u64) -> Self {
        Self {
            log2_buckets: log2_buckets as u32,
            seed,
            main_port: ports as u16,
            first_port: (ports >> 16) as u16,
            last_port: (ports >> 32) as u16,
        }
    }

    #[inline(always)]
    pub(super) const fn mask(&self) -> u32 {
        (1 << (self.log2_buckets & 31)) - 1
    }
}

/// Who sends where: what is looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// Which of the relay's addresses.
    pub local: u8,
    /// The relay port. Host byte order.
    pub port: u16,
    /// The sender.
    pub source: Endpoint,
}

/// Where it goes: what is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Pair {
    /// From which of the relay's addresses.
    pub local: u8,
    /// From which port. Host byte order.
    pub port: u16,
    /// To whom.
    pub destination: Endpoint,
    /// Whose limits and counters.
    pub session: u32,
    /// Which version of the pair, for counters and logs.
    pub generation: u32,
    /// Both ends are behind the same neighbour of the relay: what came from it goes back to it.
    pub same_way: bool,
    /// How fast the session may send; see [`crate::pace`].
    pub pace: Pace,
}

#[inline(always)]
const fn ports_word(local: u8, port: u16, endpoint_port: u16) -> u64 {
    port as u64 | (endpoint_port as u64) << 16 | (local as u64) << 32
}

/// In the ports' word: [`Pair::same_way`].
const SAME_WAY: u64 = 1 << 39;

/// In the ports' word: where [`Pair::pace`] begins.
const PACE_SHIFT: u32 = 40;

impl Key {
    #[inline(always)]
    pub(super) const fn words(&self) -> [u64; 3] {
        let [low, high] = self.source.ip.words();
        [ports_word(self.local, self.port, self.source.port), low, high]
    }

    #[cfg(not(target_arch = "bpf"))]
    #[expect(clippy::cast_possible_truncation, reason = "takes words apart")]
    pub(super) const fn from_words([ports, low, high]: [u64; 3]) -> Self {
        Self {
            local: (ports >> 32) as u8,
            port: ports as u16,
            source: Endpoint { ip: Ip::from_words([low, high]), port: (ports >> 16) as u16 },
        }
    }
}

impl Pair {
    #[cfg(not(target_arch = "bpf"))]
    pub(super) const fn words(&self) -> [u64; 4] {
        let [low, high] = self.destination.ip.words();
        let last = self.session as u64 | (self.generation as u64) << 32;
        let same_way = if self.same_way { SAME_WAY } else { 0 };
        let ports = ports_word(self.local & 0x7F, self.port, self.destination.port);
        [ports | same_way | (self.pace.0 as u64) << PACE_SHIFT, low, high, last]
    }

    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "takes words apart")]
    pub(super) const fn from_words([ports, low, high, last]: [u64; 4]) -> Self {
        Self {
            local: (ports >> 32) as u8 & 0x7F,
            port: ports as u16,
            destination: Endpoint { ip: Ip::from_words([low, high]), port: (ports >> 16) as u16 },
            session: last as u32,
            generation: (last >> 32) as u32,
            same_way: ports & SAME_WAY != 0,
            pace: Pace((ports >> PACE_SHIFT) as u32),
        }
    }
}

/// The two buckets of a key, and its tag.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) tag: u16,
    pub(super) buckets: [u32; 2],
}

impl Place {
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "takes a hash apart")]
    pub(super) const fn of(key: &[u64; 3], header: &Header, factors: &[u64; 3]) -> Self {
        // The three products do not wait for each other. Who does not know the factors cannot choose keys whose
        // sums collide.
        let sum = key[0]
            .wrapping_mul(factors[0])
            .wrapping_add(key[1].wrapping_mul(factors[1]))
            .wrapping_add(key[2].wrapping_mul(factors[2]));
        let hash = mix(sum ^ header.seed);
        let tag = (hash >> 48) as u16;
        let tag = if tag == 0 { 1 } else { tag };
        let first = hash as u32 & header.mask();
        Self { tag, buckets: [first, other_bucket(first, tag, header)] }
    }
}

/// The other bucket of an entry: from either one to the other, and never the same.
#[inline(always)]
pub(super) const fn other_bucket(bucket: u32, tag: u16, header: &Header) -> u32 {
    let step = ((tag as u32).wrapping_mul(0x9E37_79B1) >> 8) & header.mask();
    bucket ^ if step == 0 { 1 } else { step }
}

/// What the words of keys are multiplied by: odd numbers that follow from the seed.
#[cfg(not(target_arch = "bpf"))]
pub(super) const fn factors(seed: u64) -> [u64; 3] {
    [mix(seed ^ 1) | 1, mix(seed ^ 2) | 1, mix(seed ^ 3) | 1]
}

/// A bijection of 64 bits in which each input bit reaches all output bits.
#[inline(always)]
const fn mix(mut value: u64) -> u64 {
    value ^= value >> 32;
    value = value.wrapping_mul(0xD6E8_FEB8_6659_FD93);
    value ^= value >> 32;
    value = value.wrapping_mul(0xD6E8_FEB8_6659_FD93);
    value ^ (value >> 32)
}

/// A slot's tag in a bucket's word.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "takes words apart")]
pub(super) const fn tag_in(tags: u64, slot: u32) -> u16 {
    (tags >> (slot * TAG_BITS)) as u16
}

/// A bucket's word with another tag in a slot.
#[cfg(not(target_arch = "bpf"))]
pub(super) const fn with_tag(tags: u64, slot: u32, tag: u16) -> u64 {
    let shift = slot * TAG_BITS;
    tags & !(0xFFFF << shift) | (tag as u64) << shift
}

/// Line and word of a bucket's tags.
#[inline(always)]
pub(super) const fn tags_at(bucket: u32) -> (u32, usize) {
    (TAGS_LINE + bucket / BUCKETS_PER_LINE, (bucket % BUCKETS_PER_LINE) as usize)
}

/// Line of an entry.
#[inline(always)]
pub(super) const fn entry_at(header: &Header, bucket: u32, slot: u32) -> u32 {
    let entries = TAGS_LINE + (header.mask() + 1) / BUCKETS_PER_LINE;
    entries + bucket * SLOTS + slot
}

/// Line and word of a local address.
#[inline(always)]
pub(super) const fn local_at(index: u32) -> (u32, usize) {
    (LOCALS_LINE + index / 4, (index % 4) as usize * 2)
}

/// How many lines a table with room for `entries` takes, and the logarithm of its buckets. A table never has to
/// fill beyond nine tenths for that. `None`: more than a table can hold.
pub const fn lines_needed(entries: u32) -> Option<(u32, u32)> {
    let mut log2_buckets = MIN_LOG2_BUCKETS;
    while (SLOTS << log2_buckets) as u64 * 9 / 10 < entries as u64 {
        log2_buckets += 1;
        if log2_buckets > MAX_LOG2_BUCKETS {
            return None;
        }
    }
    let buckets = 1 << log2_buckets;
    Some((TAGS_LINE + buckets / BUCKETS_PER_LINE + buckets * SLOTS, log2_buckets))
}
