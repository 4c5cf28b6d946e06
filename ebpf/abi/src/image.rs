//! The class image: the compiled policy of one node.
//!
//! Recursive flow classification (Gupta & McKeown, SIGCOMM 1999). Userspace resolves ranges, wildcards and
//! overlaps into *classes*; the kernel reads a handful of array words per packet, however many rules there are.
//!
//! ```text
//! ingress: remote (source)  ──class──┐            egress: remote (destination) ──class──┐
//!          local (destination)─class─┼─ row ─┐             local (source) ───────class──┼─ row ─┐
//!          service (protocol, destination port)─ bit       service (protocol, destination port)─ bit
//! ```
//!
//! The image is the **single element** of a mmapable `BPF_MAP_TYPE_ARRAY`, [`BYTES`] long and seen as [`WORDS`]
//! `u64` words, held in slot 0 of an array of maps. A program looks it up **once per packet**, so a packet sees
//! one generation; every further read is a plain load at a bounded offset. (One element per word would cost an
//! inlined look-up of eight instructions for each read.)
//!
//! All offsets and lengths below are in 64-bit words unless stated otherwise. `u32` cells are packed two to
//! a word, the even index in the low half.

/// Identifies an image that this version of the programs understands: "GWIMAGE" and the layout version.
pub const MAGIC: u64 = 0x4757_494d_4147_4503;

/// Size of every image. Constant, because inner maps must equal the template. A power of two.
pub const WORDS: u32 = 512 * 1024;

/// [`WORDS`] in bytes: 4 MiB, the largest array element that every supported kernel accepts
/// (`KMALLOC_MAX_SIZE` in `array_map_alloc_check`, kernel 6.1).
pub const BYTES: u32 = WORDS * 8;

/// Word indices of the header.
pub mod header {
    /// [`super::MAGIC`]; anything else: drop.
    pub const MAGIC: u32 = 0;
    /// Policy generation (`u32`), never 0.
    pub const GENERATION: u32 = 1;
    /// Bit set of [`super::flags`].
    pub const FLAGS: u32 = 2;
    /// Which of the two network tries (0 or 1) belongs to this image.
    pub const NET_SLOT: u32 = 3;
    /// This node's overlay IPv4 address as a big-endian number (`u32::from_be_bytes`), 0 if it has none.
    pub const OWN4: u32 = 4;
    /// The overlay's IPv4 prefix: its /16 as `u32::from_be_bytes(addr) >> 16`.
    pub const OVERLAY4: u32 = 5;
    /// This node's overlay IPv6 address, upper 64 bits as a big-endian number, then the lower 64 bits.
    pub const OWN6_HI: u32 = 6;
    /// See [`OWN6_HI`].
    pub const OWN6_LO: u32 = 7;
    /// The overlay's IPv6 prefix of 112 bits: upper 64 bits as a big-endian number.
    pub const OVERLAY6_HI: u32 = 8;
    /// The overlay's IPv6 prefix of 112 bits: lower 64 bits shifted right by 16.
    pub const OVERLAY6_LO: u32 = 9;
    /// Inbound verdict matrix: offset of its first word.
    pub const IN_BASE: u32 = 10;
    /// Inbound verdict matrix: words per row.
    pub const IN_STRIDE: u32 = 11;
    /// Inbound: number of local classes; row = remote class * this + local class.
    pub const IN_LOCALS: u32 = 12;
    /// Outbound verdict matrix: offset of its first word.
    pub const OUT_BASE: u32 = 13;
    /// Outbound verdict matrix: words per row.
    pub const OUT_STRIDE: u32 = 14;
    /// Outbound: number of local classes; row = remote class * this + local class.
    pub const OUT_LOCALS: u32 = 15;
    /// First word after the used part of the image.
    pub const USED: u32 = 16;
    /// Word offset of the table of IPv4 networks behind peers (see [`super::net4`]), 0: none. The loader builds it
    /// from the same list as the trie and puts it behind the used part; when there is no room, the trie answers.
    pub const REMOTE_NET4: u32 = 17;
    /// Word offset of the table of IPv4 networks that this node routes, 0: none.
    pub const LOCAL_NET4: u32 = 18;
    /// Word offset of the table of IPv6 networks behind peers (see [`super::net6`]), 0: none; as [`REMOTE_NET4`].
    pub const REMOTE_NET6: u32 = 19;
    /// Word offset of the table of IPv6 networks that this node routes, 0: none.
    pub const LOCAL_NET6: u32 = 20;
    /// First word of the *short cut*: what the common packet is compared with and judged by, a cache line for both
    /// matrices and IPv4, and one more for IPv6. The loader derives it from the words above when it has checked them, so
    /// that a packet need not look at those.
    pub const SHORT_CUT: u32 = 24;
    /// Short cut: upper half of the overlay's IPv4 addresses as they lie in a packet (`u16`). A larger value: it has no
    /// dense range.
    pub const SHORT_OVERLAY4: u32 = SHORT_CUT;
    /// Short cut: this node's overlay IPv4 address as it lies in a packet (`u32`). A larger value: there is no short cut
    /// for IPv4, because the node has no such address or because accepted packets are sampled.
    pub const SHORT_OWN4: u32 = SHORT_CUT + 1;
    /// Short cut: [`IN_BASE`] in bits.
    pub const SHORT_IN_BASE: u32 = SHORT_CUT + 2;
    /// Short cut: bits from one remote class to the next, [`IN_STRIDE`] times [`IN_LOCALS`] times 64.
    pub const SHORT_IN_ROWS: u32 = SHORT_CUT + 3;
    /// As [`SHORT_IN_BASE`], outbound.
    pub const SHORT_OUT_BASE: u32 = SHORT_CUT + 4;
    /// As [`SHORT_IN_ROWS`], outbound.
    pub const SHORT_OUT_ROWS: u32 = SHORT_CUT + 5;
    /// Short cut: bytes 8 to 13 of the overlay's IPv6 addresses as they lie in a packet. A larger value: there is no short
    /// cut for IPv6, for the reasons of [`SHORT_OWN4`] or because the overlay has no dense range.
    pub const SHORT_OVERLAY6_LO: u32 = SHORT_CUT + 8;
    /// Short cut: the upper 64 bits of the overlay's IPv6 addresses as they lie in a packet.
    pub const SHORT_OVERLAY6_HI: u32 = SHORT_CUT + 9;
    /// Short cut: this node's overlay IPv6 address, the upper 64 bits as they lie in a packet.
    pub const SHORT_OWN6_HI: u32 = SHORT_CUT + 10;
    /// As [`SHORT_OWN6_HI`], the lower 64 bits.
    pub const SHORT_OWN6_LO: u32 = SHORT_CUT + 11;
    /// Words reserved for the header.
    pub const WORDS: u32 = 64;
}

/// Bits of the header word [`header::FLAGS`].
pub mod flags {
    /// A packet that policy denies passes and is reported as [`crate::event::Action::WouldDrop`].
    pub const SHADOW: u64 = 1 << 0;
    /// The overlay has an IPv4 prefix; [`super::header::OWN4`] and [`super::header::OVERLAY4`] are valid.
    pub const HAS_V4: u64 = 1 << 1;
    /// The overlay has an IPv6 prefix; the IPv6 header words are valid.
    pub const HAS_V6: u64 = 1 << 2;
    /// The network tries hold at least one remote prefix (peers route subnets, or we use an exit node).
    pub const REMOTE_NETS: u64 = 1 << 3;
    /// The network tries hold at least one local prefix (this node routes subnets or is an exit node).
    pub const LOCAL_NETS: u64 = 1 << 4;
    /// Report a sample of the accepted packets. Set by the loader from [`crate::config::Config::accept_sample`],
    /// not by the compiler: it is here because the programs have this word at hand and a sample costs nothing
    /// as long as it is off.
    pub const SAMPLE_ACCEPTS: u64 = 1 << 5;
}

/// Cells of the tables indexed by a 16-bit number.
pub const INDEX16: u32 = 65_536;

/// A `u32` cell: the class for the inbound matrix in the low half, for the outbound matrix in the high half.
#[inline(always)]
pub const fn pack(inbound: u16, outbound: u16) -> u32 {
    inbound as u32 | (outbound as u32) << 16
}

/// Inbound class of a packed cell.
#[inline(always)]
pub const fn inbound(cell: u32) -> u32 {
    cell & 0xffff
}

/// Outbound class of a packed cell.
#[inline(always)]
pub const fn outbound(cell: u32) -> u32 {
    cell >> 16
}

/// Cell `index` of the table at word offset `table`: the word to read, and whether its upper half is meant.
#[inline(always)]
pub const fn cell(table: u32, index: u32) -> (u32, bool) {
    (table + index / 2, index % 2 == 1)
}

/// Service classes of TCP by port; [`INDEX16`] packed cells.
pub const TCP: u32 = header::WORDS;
/// Service classes of UDP by port.
pub const UDP: u32 = TCP + INDEX16 / 2;
/// Service classes of SCTP by port.
pub const SCTP: u32 = UDP + INDEX16 / 2;
/// Service classes of all other protocols, by protocol number; 256 packed cells. ICMP and ICMPv6 are here.
pub const PROTO: u32 = SCTP + INDEX16 / 2;
/// Remote classes of overlay IPv4 addresses by the lowest 16 bits of the address. A cell of 0 (both classes):
/// no such peer. Class 0 in one matrix only: a peer to which that direction allows nothing; its row is not read.
pub const REMOTE4: u32 = PROTO + 256 / 2;
/// Remote classes of overlay IPv6 addresses by the lowest 16 bits of the address, as [`REMOTE4`].
pub const REMOTE6: u32 = REMOTE4 + INDEX16 / 2;
/// The verdict matrices live from here to [`WORDS`].
pub const MATRICES: u32 = REMOTE6 + INDEX16 / 2;

/// IPv4 networks as a table of three levels, read by one to three loads where a trie walks and compares: by the upper
/// 16 bits of an address, then by 8, then by 8. An entry is a packed cell, or points to the block of the next level.
pub mod net4 {
    /// Entries of the first level.
    pub const FIRST: u32 = 65_536;
    /// Entries of the blocks of the second and third level.
    pub const BLOCK: u32 = 256;
    /// Set: the lower half is the word offset of a block, else it is a cell.
    pub const POINTER: u64 = 1 << 63;
}

/// IPv6 networks as one hash table for each length of prefix: 128 bits are too many for tables of levels, and the lengths
/// in use are few. The longest comes first. Cuckoo hashing (Pagh & Rodler 2001): a network lies in one of two places.
///
/// The table begins with [`LENGTH`](net6::LENGTH) words for each of [`LENGTHS`](net6::LENGTHS): the mask (two words), the
/// word offset of the first entry with the number of entries in the upper half (0: no more lengths), and the seed. An
/// entry is [`ENTRY`](net6::ENTRY) words: the network (two words), and its packed cell with [`USED`](net6::USED). Masks
/// and networks are words as they lie in a packet: little endian, the earlier byte is the lower one.
pub mod net6 {
    /// Most lengths of prefix that a table has.
    pub const LENGTHS: u32 = 8;
    /// Words that describe a length.
    pub const LENGTH: u32 = 4;
    /// Words of an entry; a power of two, so that none lies in two cache lines.
    pub const ENTRY: u32 = 4;
    /// Set in the third word of an entry that holds a network.
    pub const USED: u64 = 1 << 63;

    /// Numbers of the two entries of a network in a table with so many entries and this seed.
    #[inline(always)]
    pub const fn places(first: u64, second: u64, entries: u64, seed: u64) -> [u64; 2] {
        let sum = (first ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(second);
        let mixed = (sum ^ (sum >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
        let mixed = mixed ^ (mixed >> 32);
        [((mixed >> 32) * entries) >> 32, ((mixed & 0xffff_ffff) * entries) >> 32]
    }
}

/// Local class of this node's own overlay addresses.
pub const LOCAL_SELF: u32 = 0;

/// Key of the network tries (`BPF_MAP_TYPE_LPM_TRIE`): IPv4 prefixes are stored IPv4-mapped
/// (`::ffff:0:0/96`), so `prefix_len` is 96 more than the IPv4 prefix length.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetKey {
    /// Length of the prefix in bits, 0 to 128.
    pub prefix_len: u32,
    /// Address bytes in network order.
    pub addr: [u8; 16],
}

/// Value of the network tries: a packed cell (see [`pack`]). In the remote tries remote classes, where 0
/// denies; in the local tries local classes, where 0 is impossible ([`LOCAL_SELF`] has no prefix).
pub type NetValue = u32;

const _: () = {
    assert!(size_of::<NetKey>() == 20 && align_of::<NetKey>() == 4);
    assert!(MATRICES < WORDS);
    assert!(WORDS.is_power_of_two());
};
