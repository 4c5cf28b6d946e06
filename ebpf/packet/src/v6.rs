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
/// The last byte that an extension header may reach.
const MAX_EXTENSION_BYTES: u32 = 1024;

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
        let mut walk = Walk::new((u32::from_be(second) >> 8) as u8, offset + HEADER);
        walk_extensions(reader, &mut walk, u32::MAX)?;
        if matches!(walk.part, Part::Later) {
            return Err(Error::Unsupported);
        }
        let (src_port_be, dst_port_be, icmp) =
            transport::quoted(reader, walk.offset, walk.next, Self::ICMP, Self::icmp)?;
        Ok(Quoted {
            src: [s0, s1, s2, s3],
            dst: [d0, d1, d2, d3],
            protocol: walk.next,
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

/// State of a walk over extension headers.
struct Walk {
    next: u8,
    offset: u32,
    part: Part,
    id_be: u32,
    /// Next header of the fragment header.
    fragment_protocol: u8,
}

impl Walk {
    #[inline(always)]
    const fn new(next: u8, offset: u32) -> Self {
        Self { next, offset, part: Part::Whole, id_be: 0, fragment_protocol: next }
    }
}

#[inline(always)]
fn parse_extended<R: Reader>(
    reader: &R,
    src: [u32; 4],
    dst: [u32; 4],
    next: u8,
    end: u32,
) -> Result<Packet<[u32; 4]>, Error> {
    let mut walk = Walk::new(next, HEADER);
    let fragment_offset = walk_extensions(reader, &mut walk, end)?;
    let Walk { next, offset, part, id_be, fragment_protocol } = walk;
    let fragmentation = Fragmentation { part, id_be, protocol: fragment_protocol };
    let transport = if matches!(part, Part::Later) {
        // As in IPv4: no fragment may reach into the TCP header of the first.
        if next == protocol::TCP && fragment_offset < 20 {
            return Err(Error::Malformed);
        }
        Transport::NONE
    } else {
        let place = Place { offset, near: false };
        transport::parse(reader, place, end - offset, next, V6::ICMP, part, V6::icmp)?
    };
    Ok(Packet { src, dst, protocol: next, fragmentation, transport, transport_offset: offset })
}

/// Walks to the transport header or to the end of the headers of a later fragment. Returns the fragment offset
/// in bytes.
#[inline(always)]
fn walk_extensions<R: Reader>(reader: &R, walk: &mut Walk, end: u32) -> Result<u32, Error> {
    let limit = walk.offset + MAX_EXTENSION_BYTES;
    let mut fragment_offset = 0;
    let mut headers = 0;
    while is_extension(walk.next) {
        headers += 1;
        if headers > MAX_EXTENSIONS {
            return Err(Error::Malformed);
        }
        let head = reader.far::<Bytes4>(walk.offset).ok_or(Error::Malformed)?;
        let kind = walk.next;
        walk.next = head.first();
        let length = u32::from(head.second());
        walk.offset += match kind {
            protocol::FRAGMENT => 8,
            protocol::AUTHENTICATION => (length + 2) << 2,
            _ => (length + 1) << 3,
        };
        if walk.offset > limit || walk.offset > end {
            return Err(Error::Malformed);
        }
        if kind == protocol::ROUTING && head.low16() as u8 != 0 {
            // Segments left: the destination address is not where the packet is going.
            return Err(Error::Unsupported);
        }
        if kind == protocol::FRAGMENT {
            if !matches!(walk.part, Part::Whole) {
                return Err(Error::Malformed);
            }
            let field = u32::from(head.low16());
            fragment_offset = field & 0xfff8;
            walk.fragment_protocol = walk.next;
            walk.id_be = reader.far::<Bytes4>(walk.offset - 4).ok_or(Error::Malformed)?.0;
            if fragment_offset != 0 {
                walk.part = Part::Later;
                return Ok(fragment_offset);
            }
            // Offset 0 and nothing to follow is an atomic fragment (RFC 6946): a whole datagram.
            if field & 1 != 0 {
                walk.part = Part::First;
            }
        }
    }
    Ok(fragment_offset)
}
