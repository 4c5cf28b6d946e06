//! The pair table: `(relay address, relay port, source)` to `(relay address, port, destination)`.
//!
//! One writer, any number of readers that take no lock and write nothing, among them programs in the kernel. The
//! table is a flat array of 64-byte [`Line`]s, so that it fits a BPF array map and an entry fits a cache line:
//!
//! ```text
//! line 0           header: magic, size, seed, moves, ports, factors of the hash
//! lines 1, 2       the relay's own addresses, as the index `local` counts them
//! lines 3..        one word of tags per bucket: four tags of 16 bits, 0: the slot is free
//! then             four lines per bucket: the entries
//! ```
//!
//! It is a cuckoo hash table with buckets of four: a key lives in one of two buckets, so a reader looks at two words
//! of tags and, as good as always, one entry. Tables fill to more than nine tenths.
//!
//! # What a reader sees
//!
//! Of each key the old or the new value, never a mixture, and never nothing while there is one:
//!
//! - An entry is written while its tag is not there, and published by one store of the bucket's word of tags.
//!   A change writes a new entry and switches the tags, in one store if the bucket has a free slot.
//! - A reader that was stopped for long could read an entry that has been given to another key meanwhile. Each
//!   entry begins with a stamp that is odd while it is written and differs after every write; the reader
//!   compares it before and after.
//! - A key that moves is published in its new place before it leaves the old one. A reader that looked at the new
//!   place too early and the old one too late sees that `moves` was counted up meanwhile, and looks again.
//!
//! # Memory order
//!
//! Stores are releases and loads are acquires, so each reader sees the writer's stores in their order. In eBPF,
//! loads are volatile: on x86 the processor keeps their order anyway; a machine that does not (arm64) needs
//! load-acquire instructions (Linux 6.15) in the program.

#[cfg(test)]
mod interleaving;
mod layout;
mod reader;
#[cfg(not(target_arch = "bpf"))]
mod writer;

pub use layout::{Header, Key, Line, MAX_LOCALS, Pair, WORDS, lines_needed};
pub use reader::{Busy, Head, Lines, header, local, local_index, lookup};
#[cfg(not(target_arch = "bpf"))]
pub use writer::{Full, NotThis, Writer};
