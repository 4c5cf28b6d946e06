//! Ethernet frames: what they say to a relay, and how they are rewritten. For XDP programs, and for tests on the host.
//!
//! ```text
//! frame ── Packet::parse ──► decide ──► Packet::forward ──► frame, rewritten in place
//!              │
//!              └── Pass: not for the relay, or for userspace
//! ```
//!
//! The rewritten headers are those that the userspace path's sockets would have sent; checksums are updated (RFC
//! 1624) and not computed anew, so that damage from before the relay is still seen behind it. The payload is never
//! touched.
//!
//! - `v4`, `v6`: the two families; `cross`: from one to the other.
//! - [`checksum`] adds up.
//! - [`stun`] answers STUN's plain requests.

pub mod checksum;
mod cross;
pub mod stun;
mod v4;
mod v6;

use crate::table::{self, Head, Lines};
use crate::{Datagram, Endpoint, Forward, Ip};

/// Length of an Ethernet header in bytes, without tag.
pub const ETHERNET_LEN: usize = 14;

/// Length of a VLAN tag (IEEE 802.1Q) in bytes.
const TAG_LEN: usize = 4;

/// Length of a UDP header in bytes.
pub const UDP_LEN: usize = 8;

const UDP: u8 = 17;

const ETHERTYPE_V4: u16 = 0x0800_u16.to_be();
const ETHERTYPE_V6: u16 = 0x86DD_u16.to_be();
const ETHERTYPE_TAG: u16 = 0x8100_u16.to_be();
const ETHERTYPE_SERVICE_TAG: u16 = 0x88A8_u16.to_be();

/// Integers that are read from frames as they lie in memory.
pub trait Word: Copy {}

impl Word for u8 {}
impl Word for u16 {}
impl Word for u32 {}
impl Word for u64 {}

/// A frame.
pub trait Frame {
    /// `bytes` bytes from `offset` on, to be read and written. `None`: there are not so many.
    fn at(&self, offset: usize, bytes: usize) -> Option<Bytes>;

    /// Length in bytes of what [`Frame::at`] reaches.
    fn len(&self) -> usize;

    /// Whether [`Frame::at`] reaches nothing.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether it has so many bytes, [`Frame::at`] reaching them or not.
    fn is_at_least(&self, len: usize) -> bool;

    /// Moves its start: bytes are cut off in front, or (negative) undefined ones added. All [`Bytes`] end. `false`:
    /// there is no room, and nothing has changed.
    fn move_start(&mut self, by: i32) -> bool;

    /// Moves its end: undefined bytes are added. All [`Bytes`] end. `false`: there is no room.
    fn grow(&mut self, by: i32) -> bool;
}

/// A part of a frame that can be accessed: as many bytes as [`Frame::at`] was asked for, until the frame's start or
/// end moves.
#[derive(Clone, Copy, Debug)]
pub struct Bytes(*mut u8);

impl Bytes {
    /// A part that starts here.
    ///
    /// # Safety
    ///
    /// As many bytes as are accessed through it can be read and written, and nobody else does meanwhile.
    #[inline(always)]
    pub const unsafe fn new(start: *mut u8) -> Self {
        Self(start)
    }

    /// Reads a word as it lies in memory.
    ///
    /// # Safety
    ///
    /// It lies within the bytes that the part was made for.
    #[inline(always)]
    pub unsafe fn load<T: Word>(self, offset: usize) -> T {
        // SAFETY: the caller's promise. The compiler would take an unaligned read apart into bytes for eBPF, whose
        // verifier decides by itself whether the machine reads such words.
        #[cfg(target_arch = "bpf")]
        unsafe {
            *self.0.add(offset).cast::<T>()
        }
        // SAFETY: the caller's promise.
        #[cfg(not(target_arch = "bpf"))]
        unsafe {
            self.0.add(offset).cast::<T>().read_unaligned()
        }
    }

    /// Writes a word as it is to lie in memory.
    ///
    /// # Safety
    ///
    /// It lies within the bytes that the part was made for.
    #[inline(always)]
    pub unsafe fn store<T: Word>(self, offset: usize, value: T) {
        // SAFETY: as for reading.
        #[cfg(target_arch = "bpf")]
        unsafe {
            *self.0.add(offset).cast::<T>() = value;
        }
        // SAFETY: the caller's promise.
        #[cfg(not(target_arch = "bpf"))]
        unsafe {
            self.0.add(offset).cast::<T>().write_unaligned(value);
        }
    }
}

/// Why a frame goes to the kernel's network stack, and if it is for the relay, on to the userspace path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pass {
    /// Not for the relay's addresses and ports.
    NotOurs,
    /// A part of a datagram. The kernel puts them together.
    Fragment,
    /// With IP options or extension headers, or with lengths that do not agree.
    Unusual,
}

/// A datagram for one of the relay's ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// What is decided about.
    pub datagram: Datagram,
    /// Where the IP header starts.
    pub l3: usize,
    /// Whether it is IPv6.
    pub v6: bool,
    /// Its UDP length field, header included.
    pub udp_len: u16,
}

/// Ethernet addresses of a frame that is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Neighbour {
    /// The one that it came from.
    Same,
    /// Another one: its address, and that of the interface, as they lie in the header.
    Other([u16; 6]),
}

/// Why a frame could not be rewritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotSent {
    /// Nothing has changed; userspace can send it: a checksum that IPv6 needs is missing, or there is no room.
    Untouched,
    /// It has changed, and only dropping it is left.
    Spoilt,
}

impl Packet {
    /// Reads a frame.
    #[inline(always)]
    pub fn parse<F: Frame, T: Lines + ?Sized>(frame: &F, head: &Head<'_>, table: &T) -> Result<Self, Pass> {
        let ethernet = frame.at(0, ETHERNET_LEN).ok_or(Pass::NotOurs)?;
        // SAFETY: within the 14 bytes.
        match unsafe { ethernet.load::<u16>(12) } {
            ETHERTYPE_V4 => v4::parse(frame, ETHERNET_LEN, head, table),
            ETHERTYPE_V6 => v6::parse(frame, ETHERNET_LEN, head, table),
            ETHERTYPE_TAG | ETHERTYPE_SERVICE_TAG => Self::parse_tagged(frame, head, table),
            _ => Err(Pass::NotOurs),
        }
    }

    #[inline(always)]
    fn parse_tagged<F: Frame, T: Lines + ?Sized>(
        frame: &F,
        head: &Head<'_>,
        table: &T,
    ) -> Result<Self, Pass> {
        const L3: usize = ETHERNET_LEN + TAG_LEN;
        let ethernet = frame.at(0, L3).ok_or(Pass::NotOurs)?;
        // SAFETY: within the 18 bytes.
        match unsafe { ethernet.load::<u16>(16) } {
            ETHERTYPE_V4 => v4::parse(frame, L3, head, table),
            ETHERTYPE_V6 => v6::parse(frame, L3, head, table),
            _ => Err(Pass::NotOurs),
        }
    }

    /// Rewrites the frame: to whom and from where `forward` says.
    #[inline(always)]
    pub fn forward<F: Frame, T: Lines + ?Sized>(
        &self,
        frame: &mut F,
        table: &T,
        forward: &Forward,
        neighbour: Neighbour,
    ) -> Result<(), NotSent> {
        let from = table::local(table, forward.local).ok_or(NotSent::Untouched)?;
        let tagged = self.l3 != ETHERNET_LEN;
        let ends = Ends { from, from_port: forward.port.to_be(), to: forward.destination };
        match (self.v6, ends.v4()) {
            (false, Some(ends)) if tagged => {
                v4::rewrite::<_, { ETHERNET_LEN + TAG_LEN }>(frame, forward, ends, neighbour)
            }
            (false, Some(ends)) => v4::rewrite::<_, ETHERNET_LEN>(frame, forward, ends, neighbour),
            (true, None) if tagged => {
                v6::rewrite::<_, { ETHERNET_LEN + TAG_LEN }>(frame, forward, &ends, neighbour)
            }
            (true, None) => v6::rewrite::<_, ETHERNET_LEN>(frame, forward, &ends, neighbour),
            (false, None) if tagged => {
                cross::to_v6::<_, { ETHERNET_LEN + TAG_LEN }>(frame, forward, &ends, neighbour)
            }
            (false, None) => cross::to_v6::<_, ETHERNET_LEN>(frame, forward, &ends, neighbour),
            (true, Some(ends)) if tagged => {
                cross::to_v4::<_, { ETHERNET_LEN + TAG_LEN }>(frame, forward, ends, neighbour)
            }
            (true, Some(ends)) => cross::to_v4::<_, ETHERNET_LEN>(frame, forward, ends, neighbour),
        }
    }
}

/// Addresses and ports of a datagram that is sent, ports as they lie in the header.
#[derive(Clone, Copy)]
struct Ends {
    from: Ip,
    from_port: u16,
    to: Endpoint,
}

/// The same of an IPv4 datagram.
#[derive(Clone, Copy)]
struct Ends4 {
    from: u32,
    to: u32,
    /// Source and destination port as they lie in the header.
    ports: u32,
}

impl Ends {
    #[inline(always)]
    fn v4(&self) -> Option<Ends4> {
        match (self.from.v4_word(), self.to.ip.v4_word()) {
            (Some(from), Some(to)) => Some(Ends4 { from, to, ports: self.ports() }),
            _ => None,
        }
    }

    #[inline(always)]
    fn ports(&self) -> u32 {
        in_memory(self.from_port, self.to.port.to_be())
    }
}

/// Two words of 16 bits, the first one at the lower address, as one.
#[inline(always)]
const fn in_memory(first: u16, second: u16) -> u32 {
    if cfg!(target_endian = "little") {
        first as u32 | (second as u32) << 16
    } else {
        (first as u32) << 16 | second as u32
    }
}

/// Source and destination port, host byte order, of a word as it lies in the header.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "takes a word apart")]
const fn ports_of(word: u32) -> (u16, u16) {
    if cfg!(target_endian = "little") {
        (u16::from_be(word as u16), u16::from_be((word >> 16) as u16))
    } else {
        (u16::from_be((word >> 16) as u16), u16::from_be(word as u16))
    }
}

/// Writes the Ethernet addresses.
///
/// # Safety
///
/// `ethernet` was made for at least 12 bytes.
#[inline(always)]
unsafe fn address(ethernet: Bytes, neighbour: Neighbour) {
    // SAFETY: the caller's promise.
    unsafe {
        match neighbour {
            Neighbour::Same => {
                let (to, to_rest) = (ethernet.load::<u32>(0), ethernet.load::<u16>(4));
                let (from, from_rest) = (ethernet.load::<u32>(6), ethernet.load::<u16>(10));
                ethernet.store(0, from);
                ethernet.store(4, from_rest);
                ethernet.store(6, to);
                ethernet.store(10, to_rest);
            }
            Neighbour::Other(words) => {
                ethernet.store(0, words[0]);
                ethernet.store(2, words[1]);
                ethernet.store(4, words[2]);
                ethernet.store(6, words[3]);
                ethernet.store(8, words[4]);
                ethernet.store(10, words[5]);
            }
        }
    }
}

/// What is common to both families: the UDP header, and what is decided about.
///
/// # Safety
///
/// `udp` was made for 16 bytes.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "a small constant")]
unsafe fn datagram(udp: Bytes, udp_len: u16, local: u8, source: Ip, hops: u8) -> Datagram {
    // SAFETY: the caller's promise.
    let (ports, head) = unsafe { (udp.load::<u32>(0), udp.load::<[u8; 8]>(UDP_LEN)) };
    let (source_port, port) = ports_of(ports);
    Datagram {
        local,
        port,
        source: Endpoint { ip: source, port: source_port },
        hops,
        len: u32::from(udp_len) - UDP_LEN as u32,
        head,
    }
}

impl Word for [u8; 8] {}
