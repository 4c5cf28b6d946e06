//! The class image: bounded loads from the one map value that a packet looks at.

use core::ptr;

use ghostwire_ebpf_abi::image::{self, flags, header, net4, net6};
use ghostwire_packet::{V4, V6, protocol};

use crate::maps::{self, FirstKey, ImageWords};

/// The image in force when the packet arrived.
#[derive(Clone, Copy)]
pub struct Image {
    words: *const u64,
    /// Bit set of [`flags`].
    pub flags: u64,
}

/// One of the two verdict matrices.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Matrix {
    /// What may be opened to this node: the lower half of a cell.
    Inbound = 0,
    /// What this node may open: the upper half of a cell.
    Outbound = 1,
}

impl Matrix {
    /// Its class of a packed cell. (Not a function in a variable: BPF has no indirect calls.)
    #[inline(always)]
    pub fn class(self, cell: u32) -> u32 {
        match self {
            Self::Inbound => image::inbound(cell),
            Self::Outbound => image::outbound(cell),
        }
    }
}

/// The packed classes of the two ends of a flow.
#[derive(Clone, Copy)]
pub struct Ends {
    /// Remote classes.
    pub remote: u32,
    /// Local classes.
    pub local: u32,
}

impl Ends {
    /// In one register.
    #[inline(always)]
    pub const fn pack(self) -> u64 {
        self.remote as u64 | (self.local as u64) << 32
    }

    /// From [`Ends::pack`].
    #[inline(always)]
    pub const fn unpack(packed: u64) -> Self {
        Self { remote: packed as u32, local: (packed >> 32) as u32 }
    }
}

impl Image {
    /// Fetches it. `None`: there is none, or it has another layout.
    #[inline(always)]
    pub fn current() -> Option<Self> {
        Self::unchecked(&FirstKey::new())?.checked()
    }

    /// Fetches whatever lies in the slot, of which nothing is known, not even the flags.
    #[inline(always)]
    pub fn unchecked(key: &FirstKey) -> Option<Self> {
        // SAFETY: an array of maps, and one of its arrays; the verifier checks both.
        let words: *const u64 = unsafe {
            let map = maps::first(ptr::from_ref(&maps::IMAGE).cast(), key);
            if map.is_null() {
                return None;
            }
            maps::first(map, key).cast()
        };
        if words.is_null() { None } else { Some(Self { words, flags: 0 }) }
    }

    /// With its flags; `None`: it has another layout.
    #[inline(always)]
    pub fn checked(self) -> Option<Self> {
        if self.word(header::MAGIC) != image::MAGIC {
            return None;
        }
        Some(Self { words: self.words, flags: self.word(header::FLAGS) })
    }

    /// Word `index`, a constant.
    #[inline(always)]
    pub fn word(self, index: u32) -> u64 {
        self.word_at(u64::from(index))
    }

    /// Word `index`, which has been compared with [`image::WORDS`].
    #[inline(always)]
    pub fn word_at(self, index: u64) -> u64 {
        // SAFETY: the index is below WORDS, and the element is that long: the verifier checks it.
        unsafe { *self.words.add((index & u64::from(image::WORDS - 1)) as usize) }
    }

    /// A header word that holds a 32-bit number.
    #[inline(always)]
    fn short(self, index: u32) -> u32 {
        self.word(index) as u32
    }

    /// Cell `index` of the table at word offset `table`.
    #[inline(always)]
    pub fn cell(self, table: u32, index: u16) -> u32 {
        // SAFETY: all tables lie within the image, and a cell is half a word (little endian: even index first).
        unsafe { *self.words.cast::<u32>().add(table as usize * 2 + index as usize) }
    }

    /// Cell of an address (as a number) in the table of networks whose offset the header word `table` holds. `None`:
    /// there is no such table.
    #[inline(always)]
    pub fn net4(self, table: u32, addr: u32) -> Option<u32> {
        let table = self.word(table);
        if table == 0 {
            return None;
        }
        let mut entry = self.word_at(table + u64::from(addr >> 16));
        if entry & net4::POINTER != 0 {
            entry = self.word_at((entry & 0xffff_ffff) + u64::from(addr >> 8 & 0xff));
            if entry & net4::POINTER != 0 {
                entry = self.word_at((entry & 0xffff_ffff) + u64::from(addr & 0xff));
            }
        }
        Some(entry as u32)
    }

    /// Cell of an address, in two words as they lie in a packet, in the table of networks whose offset the header word
    /// `table` holds. `None`: there is no such table.
    #[inline(always)]
    pub fn net6(self, table: u32, first: u64, second: u64) -> Option<u32> {
        let table = self.word(table);
        if table == 0 {
            return None;
        }
        for number in 0..u64::from(net6::LENGTHS) {
            let length = table + number * u64::from(net6::LENGTH);
            let (entries, seed) = (self.word_at(length + 2), self.word_at(length + 3));
            // Not compared with the number of lengths: the compiler would count down to it, of which the verifier of
            // Linux 6.1 sees no end.
            if entries == 0 {
                break;
            }
            let (first, second) = (first & self.word_at(length), second & self.word_at(length + 1));
            let [one, other] = net6::places(first, second, entries >> 32, seed)
                .map(|place| self.cell_of(entries + place * u64::from(net6::ENTRY), first, second));
            if one | other != 0 {
                return Some((one | other) as u32);
            }
        }
        Some(0)
    }

    /// Third word of the entry at a word offset if it holds this network, else 0: so [`Self::net6`] decides once for both
    /// places.
    #[inline(always)]
    fn cell_of(self, entry: u64, first: u64, second: u64) -> u64 {
        let entry = entry & 0xffff_ffff;
        let cell = self.word_at(entry + 2);
        let difference =
            (self.word_at(entry) ^ first) | (self.word_at(entry + 1) ^ second) | (!cell & net6::USED);
        cell & ((difference | difference.wrapping_neg()) >> 63).wrapping_sub(1)
    }

    /// Generation of the policy.
    #[inline(always)]
    pub fn generation(self) -> u32 {
        self.short(header::GENERATION)
    }

    /// Which network tries belong to this image.
    #[inline(always)]
    pub fn net_slot(self) -> u64 {
        self.word(header::NET_SLOT)
    }

    /// Whether a flag is set.
    #[inline(always)]
    pub fn has(self, flag: u64) -> bool {
        self.flags & flag != 0
    }

    /// Packed classes of a service. `port_be` counts for protocols with ports.
    #[inline(always)]
    pub fn service(self, protocol: u8, port_be: u16) -> u32 {
        let table = match protocol {
            protocol::TCP => image::TCP,
            protocol::UDP => image::UDP,
            protocol::SCTP => image::SCTP,
            other => return self.cell(image::PROTO, u16::from(other)),
        };
        self.cell(table, u16::from_be(port_be))
    }

    /// Whether a matrix has the bit.
    #[inline(always)]
    pub fn allows(self, matrix: Matrix, ends: Ends, service: u32) -> bool {
        let (base, stride, locals) = match matrix {
            Matrix::Inbound => (header::IN_BASE, header::IN_STRIDE, header::IN_LOCALS),
            Matrix::Outbound => (header::OUT_BASE, header::OUT_STRIDE, header::OUT_LOCALS),
        };
        let (remote, local, service) =
            (matrix.class(ends.remote), matrix.class(ends.local), matrix.class(service));
        if remote == 0 {
            return false;
        }
        let row = u64::from(remote).wrapping_mul(self.word(locals)).wrapping_add(u64::from(local));
        let index = self
            .word(base)
            .wrapping_add(row.wrapping_mul(self.word(stride)))
            .wrapping_add(u64::from(service >> 6));
        index < u64::from(image::WORDS) && self.word_at(index) >> (service & 63) & 1 != 0
    }
}

/// The short cut of the common packet, see [`header::SHORT_CUT`].
impl Image {
    /// A matrix's class of cell `index` of the table at word offset `table`: half a cell, little endian.
    #[inline(always)]
    pub fn class(self, table: u32, index: u16, matrix: Matrix) -> u64 {
        let half = u64::from(table) * 4 + u64::from(index) * 2 + matrix as u64;
        // SAFETY: all tables lie within the image.
        u64::from(unsafe { *self.words.cast::<u16>().add(half as usize) })
    }

    /// Whether a matrix has the bit for a class of remotes, this node itself and a class of services.
    #[inline(always)]
    pub fn allows_self(self, matrix: Matrix, remote: u64, service: u64) -> bool {
        let (base, rows) = match matrix {
            Matrix::Inbound => (header::SHORT_IN_BASE, header::SHORT_IN_ROWS),
            Matrix::Outbound => (header::SHORT_OUT_BASE, header::SHORT_OUT_ROWS),
        };
        let bit = self.word(base).wrapping_add(remote.wrapping_mul(self.word(rows))).wrapping_add(service);
        if remote == 0 || bit >= u64::from(image::BYTES) * 8 {
            return false;
        }
        // SAFETY: just compared. Bits are numbered within a word from the lowest, so they are within bytes too.
        let byte = u64::from(unsafe { *self.words.cast::<u8>().add((bit >> 3) as usize) });
        byte >> (bit & 7) & 1 != 0
    }
}

/// What an address means to an image.
pub trait Addressed: ghostwire_packet::Family {
    /// The header words with the tables of networks behind peers, and behind this node.
    const NETS: [u32; 2];
    /// Whether the address is this node's own.
    fn is_own(image: Image, addr: Self::Addr) -> bool;

    /// Packed remote classes of an overlay address; `None`: the address is not in the overlay's dense range.
    fn overlay(image: Image, addr: Self::Addr) -> Option<u32>;

    /// Packed classes from the image's table of networks; `None`: ask the trie.
    fn net(image: Image, table: u32, addr: Self::Addr) -> Option<u32>;
}

impl Addressed for V4 {
    const NETS: [u32; 2] = [header::REMOTE_NET4, header::LOCAL_NET4];

    #[inline(always)]
    fn is_own(image: Image, addr: u32) -> bool {
        u64::from(u32::from_be(addr)) == image.word(header::OWN4) && image.has(flags::HAS_V4)
    }

    #[inline(always)]
    fn overlay(image: Image, addr: u32) -> Option<u32> {
        let addr = u32::from_be(addr);
        if u64::from(addr >> 16) != image.word(header::OVERLAY4) || !image.has(flags::HAS_V4) {
            return None;
        }
        Some(image.cell(image::REMOTE4, addr as u16))
    }

    #[inline(always)]
    fn net(image: Image, table: u32, addr: u32) -> Option<u32> {
        image.net4(table, u32::from_be(addr))
    }
}

/// [`Image::net6`] for one of its two tables.
#[inline(always)]
pub fn net6(image: Image, table: u32, first: u64, second: u64) -> Option<u32> {
    let words = image.address().cast();
    let found = if table == header::REMOTE_NET6 {
        remote_net6(words, first, second)
    } else {
        local_net6(words, first, second)
    };
    u32::try_from(found).ok()
}

/// More than any cell: there is no table.
const NO_TABLE: u64 = u64::MAX;

/// Global functions, which the verifier looks at once and not again for every caller.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn remote_net6(image: *const ImageWords, first: u64, second: u64) -> u64 {
    net6_or_no_table(image, header::REMOTE_NET6, first, second)
}

/// As [`remote_net6`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn local_net6(image: *const ImageWords, first: u64, second: u64) -> u64 {
    net6_or_no_table(image, header::LOCAL_NET6, first, second)
}

#[inline(always)]
fn net6_or_no_table(image: *const ImageWords, table: u32, first: u64, second: u64) -> u64 {
    if image.is_null() {
        return NO_TABLE;
    }
    Image::at(image.cast()).net6(table, first, second).map_or(NO_TABLE, u64::from)
}

/// The upper and lower 64 bits as numbers.
#[inline(always)]
fn halves([a, b, c, d]: [u32; 4]) -> (u64, u64) {
    let join = |high: u32, low: u32| u64::from(u32::from_be(high)) << 32 | u64::from(u32::from_be(low));
    (join(a, b), join(c, d))
}

impl Addressed for V6 {
    const NETS: [u32; 2] = [header::REMOTE_NET6, header::LOCAL_NET6];

    #[inline(always)]
    fn is_own(image: Image, addr: [u32; 4]) -> bool {
        let (high, low) = halves(addr);
        high == image.word(header::OWN6_HI) && low == image.word(header::OWN6_LO) && image.has(flags::HAS_V6)
    }

    #[inline(always)]
    fn overlay(image: Image, addr: [u32; 4]) -> Option<u32> {
        let (high, low) = halves(addr);
        if high != image.word(header::OVERLAY6_HI)
            || low >> 16 != image.word(header::OVERLAY6_LO)
            || !image.has(flags::HAS_V6)
        {
            return None;
        }
        Some(image.cell(image::REMOTE6, low as u16))
    }

    #[inline(always)]
    fn net(image: Image, table: u32, addr: [u32; 4]) -> Option<u32> {
        let [a, b, c, d] = addr.map(u64::from);
        net6(image, table, a | b << 32, c | d << 32)
    }
}

/// For handing the image to a function that is not inlined.
impl Image {
    /// Its address.
    #[inline(always)]
    pub fn address(self) -> *const u64 {
        self.words
    }

    /// From [`Image::address`].
    #[inline(always)]
    pub fn at(words: *const u64) -> Self {
        let image = Self { words, flags: 0 };
        Self { words, flags: image.word(header::FLAGS) }
    }
}
