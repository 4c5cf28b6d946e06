//! IPv6: RFC 8200, with a bounded walk over extension headers.

use crate::reader::{Bytes4, Reader};
use crate::transport::{self, Icmp, Place};
use crate::{Error, Family, Fragmentation, Packet, Part, Quoted, Transport, protocol};

/// IPv6.
#[derive(Clone, Copy, Debug)]
pub enum V6 {}

const HEADER: u32 = 40;
/// More extension headers than any sane packet has; RFC 9098 reports that most networks drop far fewer.
const MAX_EXTENSIONS: u32 = 8;
/// Bytes that all extension headers may have together.
const MAX_EXTENSION_BYTES: u32 = 1024;
/// Where they may start at most, so that an offset fits into twelve bits.
const MAX_START: u32 = 2048;

impl Family for V6 {
    /// The sixteen bytes as they lie in memory.
    type Addr = [u32; 4];
    const VERSION: u8 = 6;
    const ICMP: u8 = protocol::ICMPV6;

    #[inline(always)]
    fn parse<R: Reader>(reader: &R) -> Result<Packet<[u32; 4]>, Error> {
        let [first, second, s0, s1, s2, s3, d0, d1, d2, d3] =
            reader.near::<[u32; 10]>(0).ok_or(Error::Malformed)?;
        if u32::from_be(first) >> 28 != 6 {
            return Err(Error::Malformed);
        }
        let second = u32::from_be(second);
        let end = datagram_length(second >> 16, reader.length());
        if end > reader.length() {
            return Err(Error::Malformed);
        }
        let next = (second >> 8) as u8;
        let (src, dst) = ([s0, s1, s2, s3], [d0, d1, d2, d3]);
        if is_extension(next) {
            return parse_extended(reader, src, dst, next, end);
        }
        let place = Place { offset: HEADER, near: true };
        let transport =
            transport::parse(reader, place, end - HEADER, next, Self::ICMP, Part::Whole, Self::icmp)?;
        let fragmentation = Fragmentation { part: Part::Whole, id_be: 0, protocol: next };
        Ok(Packet { src, dst, protocol: next, fragmentation, transport, transport_offset: HEADER })
    }

    #[inline(always)]
    fn quoted<R: Reader>(reader: &R, offset: u32) -> Result<Quoted<[u32; 4]>, Error> {
        let [first, second, s0, s1, s2, s3, d0, d1, d2, d3] =
            reader.far::<[u32; 10]>(offset).ok_or(Error::Malformed)?;
        if u32::from_be(first) >> 28 != 6 {
            return Err(Error::Malformed);
        }
        let next = (u32::from_be(second) >> 8) as u8;
        let walked = Walked::unpack(reader.walk(next, offset + HEADER, u32::MAX))?;
        if matches!(walked.part, Part::Later) {
            return Err(Error::Unsupported);
        }
        let (src_port_be, dst_port_be, icmp) =
            transport::quoted(reader, walked.offset, walked.next, Self::ICMP, Self::icmp)?;
        Ok(Quoted {
            src: [s0, s1, s2, s3],
            dst: [d0, d1, d2, d3],
            protocol: walked.next,
            src_port_be,
            dst_port_be,
            icmp,
        })
    }

    #[inline(always)]
    fn is_carried(addr: [u32; 4]) -> bool {
        let [a, b, c, _] = addr;
        let first = u32::from_be(a);
        // ff00::/8, fe80::/10, and IPv4-mapped addresses, which are for sockets and must not be on a wire: they
        // would be taken for the IPv4 address wherever both families share a table.
        let mapped = a == 0 && b == 0 && c == 0x0000_ffff_u32.to_be();
        first >> 24 != 0xff && first >> 22 != 0xfe80 >> 6 && !mapped
    }

    #[inline(always)]
    fn mapped(addr: [u32; 4]) -> [u32; 4] {
        addr
    }

    #[inline(always)]
    fn icmp(message_type: u8) -> Icmp {
        match message_type {
            1..=4 => Icmp::Error,
            128 => Icmp::EchoRequest,
            129 => Icmp::EchoReply,
            _ => Icmp::Other,
        }
    }
}

/// Where the datagram ends. A payload length of 0 with more than 65,535 bytes behind it is a jumbogram
/// (RFC 2675), which is how the kernel marks its largest aggregates ("BIG TCP").
#[inline(always)]
fn datagram_length(payload: u32, packet: u32) -> u32 {
    if payload == 0 && packet > HEADER + 0xffff { packet } else { HEADER + payload }
}

#[inline(always)]
const fn is_extension(next: u8) -> bool {
    matches!(
        next,
        protocol::HOP_BY_HOP
            | protocol::ROUTING
            | protocol::FRAGMENT
            | protocol::AUTHENTICATION
            | protocol::DESTINATION_OPTIONS
    )
}

#[inline(always)]
fn parse_extended<R: Reader>(
    reader: &R,
    src: [u32; 4],
    dst: [u32; 4],
    next: u8,
    end: u32,
) -> Result<Packet<[u32; 4]>, Error> {
    let Walked { next, offset, part, id_be, fragment_protocol } =
        Walked::unpack(reader.walk(next, HEADER, end))?;
    let fragmentation = Fragmentation { part, id_be, protocol: fragment_protocol };
    let transport = if matches!(part, Part::Later) {
        Transport::NONE
    } else if offset > end {
        // The walk saw to that already, but the verifier does not know.
        return Err(Error::Malformed);
    } else {
        let place = Place { offset, near: false };
        transport::parse(reader, place, end - offset, next, V6::ICMP, part, V6::icmp)?
    };
    Ok(Packet { src, dst, protocol: next, fragmentation, transport, transport_offset: offset })
}

/// Where a walk over extension headers came to: the transport header, or the end of the headers of a later fragment.
#[derive(Clone, Copy)]
struct Walked {
    next: u8,
    offset: u32,
    part: Part,
    id_be: u32,
    /// Next header of the fragment header.
    fragment_protocol: u8,
}

/// Places in a packed [`Walked`]: identification in the low half, then 12 bits of offset, and so on.
mod packed {
    pub(super) const OFFSET: u32 = 32;
    pub(super) const OFFSET_MASK: u64 = 0xfff;
    pub(super) const NEXT: u32 = 44;
    pub(super) const FRAGMENT_PROTOCOL: u32 = 52;
    pub(super) const PART: u32 = 60;
    pub(super) const STATUS: u32 = 62;
    pub(super) const MALFORMED: u64 = 1 << STATUS;
    pub(super) const UNSUPPORTED: u64 = 2 << STATUS;
}

impl Walked {
    #[inline(always)]
    fn pack(self) -> u64 {
        u64::from(self.id_be)
            | u64::from(self.offset) << packed::OFFSET
            | u64::from(self.next) << packed::NEXT
            | u64::from(self.fragment_protocol) << packed::FRAGMENT_PROTOCOL
            | (self.part as u64) << packed::PART
    }

    #[inline(always)]
    fn unpack(packed: u64) -> Result<Self, Error> {
        match packed >> packed::STATUS {
            0 => {}
            1 => return Err(Error::Malformed),
            _ => return Err(Error::Unsupported),
        }
        Ok(Self {
            next: (packed >> packed::NEXT) as u8,
            offset: (packed >> packed::OFFSET & packed::OFFSET_MASK) as u32,
            part: match packed >> packed::PART & 3 {
                0 => Part::Whole,
                1 => Part::First,
                _ => Part::Later,
            },
            id_be: packed as u32,
            fragment_protocol: (packed >> packed::FRAGMENT_PROTOCOL) as u8,
        })
    }
}

/// Walks over the extension headers from `offset` on, of which the first is `next`; none may reach beyond `end`. The
/// result is packed into one number, because that is what a BPF function returns.
#[inline(always)]
pub fn walk<R: Reader>(reader: &R, next: u8, offset: u32, end: u32) -> u64 {
    let limit = if offset < MAX_START { offset + MAX_EXTENSION_BYTES } else { return packed::MALFORMED };
    let end = if limit < end { limit } else { end };
    let mut walked = Walked { next, offset, part: Part::Whole, id_be: 0, fragment_protocol: next };
    // Not a loop: where the compiler puts a loop's back edge, the verifier of Linux 6.1 may refuse it.
    macro_rules! steps {
        ($($number:literal)*) => {$(
            const _: () = assert!($number <= MAX_EXTENSIONS);
            match step(reader, &mut walked, end) {
                Step::Next => {}
                Step::Arrived => return walked.pack(),
                Step::Malformed => return packed::MALFORMED,
                Step::Unsupported => return packed::UNSUPPORTED,
            }
        )*};
    }
    steps!(1 2 3 4 5 6 7 8);
    if is_extension(walked.next) { packed::MALFORMED } else { walked.pack() }
}

/// What one step of the walk came to.
#[repr(u32)]
enum Step {
    Next = 0,
    Arrived = 1,
    Malformed = 2,
    Unsupported = 3,
}

/// Walks over one extension header. Not inlined: it is called several times in a row.
#[inline(never)]
fn step<R: Reader>(reader: &R, walked: &mut Walked, end: u32) -> Step {
    if !is_extension(walked.next) {
        return Step::Arrived;
    }
    let Some(head) = reader.far::<Bytes4>(walked.offset) else { return Step::Malformed };
    let kind = walked.next;
    walked.next = head.first();
    let length = u32::from(head.second());
    walked.offset += match kind {
        protocol::FRAGMENT => 8,
        protocol::AUTHENTICATION => (length + 2) << 2,
        _ => (length + 1) << 3,
    };
    if walked.offset > end {
        return Step::Malformed;
    }
    if kind == protocol::ROUTING && head.low16() as u8 != 0 {
        // Segments left: the destination address is not where the packet is going.
        return Step::Unsupported;
    }
    if kind != protocol::FRAGMENT {
        return Step::Next;
    }
    if !matches!(walked.part, Part::Whole) {
        return Step::Malformed;
    }
    let Some(id) = reader.far::<Bytes4>(walked.offset - 4) else { return Step::Malformed };
    let field = u32::from(head.low16());
    let fragment_offset = field & 0xfff8;
    walked.fragment_protocol = walked.next;
    walked.id_be = id.0;
    if fragment_offset != 0 {
        // As in IPv4: no fragment may reach into the TCP header of the first.
        if walked.next == protocol::TCP && fragment_offset < 20 {
            return Step::Malformed;
        }
        walked.part = Part::Later;
        return Step::Arrived;
    }
    // Offset 0 and nothing to follow is an atomic fragment (RFC 6946): a whole datagram.
    if field & 1 != 0 {
        walked.part = Part::First;
    }
    Step::Next
}
