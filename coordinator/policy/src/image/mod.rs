//! The class image: a node's filter in the form that its eBPF programs read.
//!
//! [`compile`] turns addresses, protocols and ports into classes (`partition`), puts the classes of remotes and
//! of this side into two verdict matrices (`matrix`) and lays all of it out (`layout`).
//! [`ClassImage::verdict`] reads the words exactly as the kernel does (`read`). [`ClassImage::additions_to`] finds out
//! whether an image in force can be changed in place (`additions`).

mod additions;
mod compile;
mod layout;
mod matrix;
mod partition;
mod read;

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ghostwire_ebpf_abi::image as abi;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::filter::AddrSet;

pub use compile::compile;
pub use read::ImageVerdict;

/// Most prefixes that one network trie holds.
pub const MAX_NETS: usize = 65_536;

/// What the compiler knows about the node apart from its filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeContext {
    /// The node's overlay IPv4 address.
    pub own4: Option<Ipv4Addr>,
    /// The node's overlay IPv6 address.
    pub own6: Option<Ipv6Addr>,
    /// The /16 whose low bits index the table of remotes.
    pub overlay4: Option<Ipv4Net>,
    /// The /112 whose low bits index the table of remotes.
    pub overlay6: Option<Ipv6Net>,
    /// Policy generation, not 0.
    pub generation: u32,
    /// Pass what policy denies, and report it.
    pub shadow: bool,
    /// Which pair of network tries belongs to the image: 0 or 1.
    pub net_slot: u8,
    /// The addresses of all peers. Others are unknown whatever the rules say. `None`: every address that a rule
    /// names is known.
    pub peers: Option<Arc<AddrSet>>,
}

/// A compiled filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClassImage {
    /// The used part of the image.
    pub words: Vec<u64>,
    /// Entries of the remote trie, with packed cells.
    pub remote_nets: Vec<(IpNet, u32)>,
    /// Entries of the local trie, with packed cells.
    pub local_nets: Vec<(IpNet, u32)>,
}

/// Why a filter cannot be compiled. The image in force stays.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    /// Generation 0 means "no image".
    #[error("the policy generation must not be 0")]
    ZeroGeneration,
    /// The tables have 65,536 entries.
    #[error("the overlay prefix {net} must have {bits} bits, so that the rest of an address is an index")]
    OverlaySize {
        /// The prefix.
        net: IpNet,
        /// Its length as it should be.
        bits: u8,
    },
    /// There are two tries.
    #[error("there is no network slot {0}: slots are 0 and 1")]
    NetSlot(u8),
    /// The verdict matrices do not fit.
    #[error(
        "the policy is too large for one node: its verdicts need {words} words or more, and there is room for {room}. \
         Fewer distinct groups of peers or ports make it smaller"
    )]
    TooLarge {
        /// Words needed, or how many it was when it was clear that they are too many.
        words: u64,
        /// Words there are.
        room: u64,
    },
    /// A class number has 16 bits.
    #[error("the policy makes {count} different kinds of {what} for one node; {limit} are possible")]
    TooManyClasses {
        /// Of what.
        what: &'static str,
        /// How many.
        count: usize,
        /// How many are possible.
        limit: usize,
    },
    /// A network trie would overflow.
    #[error("the node needs more than the {MAX_NETS} {side} prefixes outside the overlay that are possible")]
    TooManyNets {
        /// "remote" or "local".
        side: &'static str,
    },
    /// Working out the classes would take too much memory or time.
    #[error("the policy is too intricate for one node: {sets} different lists of {what} overlap too much")]
    TooIntricate {
        /// Of what.
        what: &'static str,
        /// How many lists.
        sets: usize,
    },
}

impl ClassImage {
    /// Policy generation.
    pub fn generation(&self) -> u32 {
        u32::try_from(self.word(abi::header::GENERATION)).unwrap_or_default()
    }

    /// Bytes of the used part.
    pub fn size(&self) -> usize {
        self.words.len() * size_of::<u64>()
    }

    /// Number of remote classes in the inbound and in the outbound matrix, the unknown one included.
    pub fn remote_classes(&self) -> (usize, usize) {
        use abi::header::{IN_BASE, IN_LOCALS, IN_STRIDE, OUT_BASE, OUT_LOCALS, OUT_STRIDE, USED};
        let rows = |base: u32, end: u64, stride: u32, locals: u32| {
            let row = (self.word(stride) * self.word(locals)).max(1);
            usize::try_from((end - self.word(base)) / row).unwrap_or_default()
        };
        (
            rows(IN_BASE, self.word(OUT_BASE), IN_STRIDE, IN_LOCALS),
            rows(OUT_BASE, self.word(USED), OUT_STRIDE, OUT_LOCALS),
        )
    }

    fn word(&self, index: u32) -> u64 {
        usize::try_from(index).ok().and_then(|index| self.words.get(index)).copied().unwrap_or_default()
    }
}
