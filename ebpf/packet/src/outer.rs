//! The outside of a tunnel: is a packet a plain UDP datagram, and from where to where?
//!
//! Stricter than [`crate::Family::parse`]: what is steered has no options and is in one piece. What is not so, but would
//! reach a UDP socket all the same, is named, so that it can be kept from one.

use crate::reader::{Bytes4, Reader};
use crate::transport::halves_be;
use crate::{Family, Part, V6, protocol};

/// A UDP datagram right behind a bare IP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram<A> {
    /// Source address.
    pub src: A,
    /// Destination address.
    pub dst: A,
    /// Source and destination port as they lie in memory.
    pub ports: u32,
    /// The checksum as it lies in memory, 0: none.
    pub checksum: u16,
    /// Bytes of UDP payload.
    pub payload: u32,
    /// Bytes of the packet from the IP header on, as that says.
    pub total: u32,
    /// Traffic class.
    pub class: u8,
    /// Time to live, hop limit.
    pub ttl: u8,
}

impl<A> Datagram<A> {
    /// Source port in network byte order.
    #[inline(always)]
    pub const fn src_port_be(&self) -> u16 {
        halves_be(self.ports).0
    }

    /// Destination port in network byte order.
    #[inline(always)]
    pub const fn dst_port_be(&self) -> u16 {
        halves_be(self.ports).1
    }
}

/// What a packet is on the outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outer<A> {
    /// Plain.
    Datagram(Datagram<A>),
    /// UDP with options or extension headers, to this address and port (network byte order).
    Optional(A, u16),
    /// The first fragment of a datagram to this address and port (network byte order).
    Fragment(A, u16),
    /// Headers to this address that nobody can follow, with UDP perhaps behind them.
    Obscure(A),
    /// Not UDP, a later fragment, or so broken that no stack would take it for UDP.
    Other,
}

const MORE_FRAGMENTS: u32 = 0x2000;
const FRAGMENT_OFFSET: u32 = 0x1fff;
const HEADER4: u32 = 20;
const HEADER6: u32 = 40;
const UDP: u32 = 8;

/// A packet that starts with an IPv4 header.
#[inline(always)]
pub fn v4<R: Reader>(reader: &R) -> Outer<u32> {
    let Some([first, fragment, middle, src, dst]) = reader.near::<[u32; 5]>(0) else { return Outer::Other };
    let (first, fragment, middle) = (u32::from_be(first), u32::from_be(fragment), u32::from_be(middle));
    let header = (first >> 24 & 0xf) << 2;
    let total = first & 0xffff;
    if first >> 28 != 4
        || (middle >> 16) as u8 != protocol::UDP
        || fragment & FRAGMENT_OFFSET != 0
        || header < HEADER4
        || total < header + UDP
        || total > reader.length()
    {
        return Outer::Other;
    }
    if header > HEADER4 {
        return match reader.far::<Bytes4>(header) {
            Some(ports) => Outer::Optional(dst, halves_be(ports.0).1),
            None => Outer::Other,
        };
    }
    let Some([ports, rest]) = reader.near::<[u32; 2]>(HEADER4) else { return Outer::Other };
    if fragment & MORE_FRAGMENTS != 0 {
        return Outer::Fragment(dst, halves_be(ports).1);
    }
    let length = u32::from_be(rest) >> 16;
    if length < UDP || length > total - HEADER4 {
        return Outer::Other;
    }
    Outer::Datagram(Datagram {
        src,
        dst,
        ports,
        checksum: checksum(rest),
        payload: length - UDP,
        total,
        class: (first >> 16) as u8,
        ttl: (middle >> 24) as u8,
    })
}

/// A packet that starts with an IPv6 header.
#[inline(always)]
pub fn v6<R: Reader>(reader: &R) -> Outer<[u32; 4]> {
    let Some([first, second, s0, s1, s2, s3, d0, d1, d2, d3]) = reader.near::<[u32; 10]>(0) else {
        return Outer::Other;
    };
    let (first, second) = (u32::from_be(first), u32::from_be(second));
    let dst = [d0, d1, d2, d3];
    let total = HEADER6 + (second >> 16);
    let next = (second >> 8) as u8;
    if first >> 28 != 6 {
        return Outer::Other;
    }
    if next != protocol::UDP {
        return match next {
            protocol::HOP_BY_HOP
            | protocol::ROUTING
            | protocol::FRAGMENT
            | protocol::AUTHENTICATION
            | protocol::DESTINATION_OPTIONS => extended(reader, dst),
            _ => Outer::Other,
        };
    }
    if total < HEADER6 + UDP || total > reader.length() {
        return Outer::Other;
    }
    let Some([ports, rest]) = reader.near::<[u32; 2]>(HEADER6) else { return Outer::Other };
    // Stacks take a length of 0 for "as long as the packet" (RFC 2675 section 4).
    let length = match u32::from_be(rest) >> 16 {
        0 => total - HEADER6,
        length => length,
    };
    if length < UDP || length > total - HEADER6 {
        return Outer::Other;
    }
    Outer::Datagram(Datagram {
        src: [s0, s1, s2, s3],
        dst,
        ports,
        checksum: checksum(rest),
        payload: length - UDP,
        total,
        class: (first >> 20) as u8,
        ttl: second as u8,
    })
}

/// The second half of the word that the checksum is in, as it lies in memory.
#[inline(always)]
const fn checksum(word: u32) -> u16 {
    halves_be(word).1
}

/// A packet with extension headers.
#[inline(always)]
fn extended<R: Reader>(reader: &R, dst: [u32; 4]) -> Outer<[u32; 4]> {
    match V6::parse(reader) {
        Ok(packet) if packet.protocol != protocol::UDP => Outer::Other,
        Ok(packet) => match packet.fragmentation.part {
            Part::Whole => Outer::Optional(dst, packet.transport.dst_port_be),
            Part::First => Outer::Fragment(dst, packet.transport.dst_port_be),
            Part::Later => Outer::Other,
        },
        Err(crate::Error::Malformed) => Outer::Obscure(dst),
        Err(crate::Error::Unsupported) => Outer::Other,
    }
}
