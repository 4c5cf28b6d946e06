//! IPv4: RFC 791.

use crate::reader::Reader;
use crate::transport::{self, Icmp, Place};
use crate::{Error, Family, Fragmentation, Packet, Part, Quoted, Transport, protocol};

/// IPv4.
#[derive(Clone, Copy, Debug)]
pub enum V4 {}

const HEADER: u32 = 20;
const MORE_FRAGMENTS: u32 = 0x2000;
const FRAGMENT_OFFSET: u32 = 0x1fff;

impl Family for V4 {
    /// The four bytes as they lie in memory.
    type Addr = u32;
    const VERSION: u8 = 4;
    const ICMP: u8 = protocol::ICMP;

    #[inline(always)]
    fn parse<R: Reader>(reader: &R) -> Result<Packet<u32>, Error> {
        let [first, fragment, ttl_protocol, src, dst] = reader.near::<[u32; 5]>(0).ok_or(Error::Malformed)?;
        let first = u32::from_be(first);
        let header = (first >> 24 & 0xf) << 2;
        let total = datagram_length(first & 0xffff, reader.length());
        if first >> 28 != 4 || header < HEADER || total < header || total > reader.length() {
            return Err(Error::Malformed);
        }
        let protocol = (u32::from_be(ttl_protocol) >> 16) as u8;
        let fragment = u32::from_be(fragment);
        let fragmentation = fragmentation(fragment, protocol)?;
        let transport = if fragment & FRAGMENT_OFFSET != 0 {
            Transport::NONE
        } else if header == HEADER {
            let place = Place { offset: HEADER, near: true };
            transport::parse(
                reader,
                place,
                total - HEADER,
                protocol,
                Self::ICMP,
                fragmentation.part,
                Self::icmp,
            )?
        } else {
            let place = Place { offset: header, near: false };
            transport::parse(
                reader,
                place,
                total - header,
                protocol,
                Self::ICMP,
                fragmentation.part,
                Self::icmp,
            )?
        };
        Ok(Packet { src, dst, protocol, fragmentation, transport, transport_offset: header })
    }

    #[inline(always)]
    fn quoted<R: Reader>(reader: &R, offset: u32) -> Result<Quoted<u32>, Error> {
        let [first, fragment, ttl_protocol, src, dst] =
            reader.far::<[u32; 5]>(offset).ok_or(Error::Malformed)?;
        let first = u32::from_be(first);
        let header = (first >> 24 & 0xf) << 2;
        if first >> 28 != 4 || header < HEADER {
            return Err(Error::Malformed);
        }
        if u32::from_be(fragment) & FRAGMENT_OFFSET != 0 {
            return Err(Error::Unsupported);
        }
        let protocol = (u32::from_be(ttl_protocol) >> 16) as u8;
        let (src_port_be, dst_port_be, icmp) =
            transport::quoted(reader, offset + header, protocol, Self::ICMP, Self::icmp)?;
        Ok(Quoted { src, dst, protocol, src_port_be, dst_port_be, icmp })
    }

    #[inline(always)]
    fn is_carried(addr: u32) -> bool {
        let addr = u32::from_be(addr);
        // Multicast and class E with the limited broadcast address: 224.0.0.0/3. Link-local: 169.254.0.0/16.
        addr >> 29 != 0b111 && addr >> 16 != 0xa9fe
    }

    #[inline(always)]
    fn mapped(addr: u32) -> [u32; 4] {
        [0, 0, 0x0000_ffff_u32.to_be(), addr]
    }

    #[inline(always)]
    fn icmp(message_type: u8) -> Icmp {
        match message_type {
            0 => Icmp::EchoReply,
            8 => Icmp::EchoRequest,
            3 | 4 | 5 | 11 | 12 => Icmp::Error,
            _ => Icmp::Other,
        }
    }
}

/// The total length field; 0 in an aggregate of more than 65,535 bytes ("BIG TCP", kernel 6.3).
#[inline(always)]
fn datagram_length(total: u32, packet: u32) -> u32 {
    if total == 0 && packet > 0xffff { packet } else { total }
}

/// From the word that holds identification, flags and offset.
#[inline(always)]
fn fragmentation(word: u32, protocol: u8) -> Result<Fragmentation, Error> {
    let part = if word & (MORE_FRAGMENTS | FRAGMENT_OFFSET) == 0 {
        Part::Whole
    } else if word & FRAGMENT_OFFSET == 0 {
        Part::First
    } else {
        Part::Later
    };
    // A fragment at 8 or 16 could overwrite the TCP flags that the first one was judged by (RFC 3128).
    if protocol == protocol::TCP && matches!(word & FRAGMENT_OFFSET, 1 | 2) {
        return Err(Error::Malformed);
    }
    Ok(Fragmentation { part, id_be: (word >> 16).to_be(), protocol })
}
