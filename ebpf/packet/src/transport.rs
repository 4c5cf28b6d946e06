//! Transport headers.

use crate::reader::{Bytes4, Field, Reader};
use crate::{Error, Part, protocol};

/// TCP flags, as the 14th byte of the header has them.
pub mod tcp {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Synchronise sequence numbers.
    pub const SYN: u8 = 0x02;
    /// Reset.
    pub const RST: u8 = 0x04;
    /// The acknowledgement field counts.
    pub const ACK: u8 = 0x10;
}

/// What a policy needs to know of an ICMP message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Icmp {
    /// The packet is not ICMP, or a later fragment.
    None = 0,
    /// An echo request.
    EchoRequest = 1,
    /// An echo reply.
    EchoReply = 2,
    /// An error about another packet, which it quotes.
    Error = 3,
    /// Anything else.
    Other = 4,
}

/// The transport header, as far as a policy needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transport {
    /// Source port; ICMP echo: the identifier; otherwise 0. Network byte order.
    pub src_port_be: u16,
    /// Destination port; ICMP echo: the identifier; otherwise 0. Network byte order.
    pub dst_port_be: u16,
    /// TCP flags, else 0.
    pub tcp_flags: u8,
    /// ICMP: the type, else 0.
    pub icmp_type: u8,
    /// ICMP: the code, else 0.
    pub icmp_code: u8,
    /// What an ICMP message is.
    pub icmp: Icmp,
}

impl Transport {
    /// Of a packet without one.
    pub const NONE: Self =
        Self { src_port_be: 0, dst_port_be: 0, tcp_flags: 0, icmp_type: 0, icmp_code: 0, icmp: Icmp::None };
}

/// Reads at a place that is a constant (`near`) or a variable of the program.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    pub(crate) offset: u32,
    pub(crate) near: bool,
}

impl Place {
    #[inline(always)]
    fn read<R: Reader, T: Field>(self, reader: &R, at: u32) -> Option<T> {
        if self.near { reader.near(self.offset + at) } else { reader.far(self.offset + at) }
    }
}

/// Splits four bytes into two 16-bit numbers as they lie in memory.
#[inline(always)]
pub(crate) const fn halves_be(word: u32) -> (u16, u16) {
    let word = u32::from_be(word);
    (((word >> 16) as u16).to_be(), (word as u16).to_be())
}

const TCP_HEADER: u32 = 20;

/// Parses the transport header. `available`: bytes of the packet from `place` on.
#[inline(always)]
pub(crate) fn parse<R: Reader>(
    reader: &R,
    place: Place,
    available: u32,
    protocol: u8,
    icmp_protocol: u8,
    part: Part,
    icmp: impl Fn(u8) -> Icmp,
) -> Result<Transport, Error> {
    match protocol {
        protocol::TCP => {
            if available < TCP_HEADER {
                return Err(Error::Malformed);
            }
            let [ports, _, _, control] = place.read::<R, [u32; 4]>(reader, 0).ok_or(Error::Malformed)?;
            let control = u32::from_be(control);
            let header = control >> 28 << 2;
            // The options of a first fragment may be in the next one; the ports and flags may not (RFC 1858).
            if header < TCP_HEADER || (header > available && matches!(part, Part::Whole)) {
                return Err(Error::Malformed);
            }
            let (src_port_be, dst_port_be) = halves_be(ports);
            Ok(Transport { src_port_be, dst_port_be, tcp_flags: (control >> 16) as u8, ..Transport::NONE })
        }
        protocol::UDP => {
            let [ports, length] = place.read::<R, [u32; 2]>(reader, 0).ok_or(Error::Malformed)?;
            // A length of 0 is a jumbogram's (RFC 2675 section 4). No upper bound: offloads leave it to others.
            let length = u32::from_be(length) >> 16;
            if available < 8 || (length < 8 && length != 0) {
                return Err(Error::Malformed);
            }
            let (src_port_be, dst_port_be) = halves_be(ports);
            Ok(Transport { src_port_be, dst_port_be, ..Transport::NONE })
        }
        protocol::SCTP => {
            let [ports, _, _] = place.read::<R, [u32; 3]>(reader, 0).ok_or(Error::Malformed)?;
            if available < 12 {
                return Err(Error::Malformed);
            }
            let (src_port_be, dst_port_be) = halves_be(ports);
            Ok(Transport { src_port_be, dst_port_be, ..Transport::NONE })
        }
        other if other == icmp_protocol => {
            let [head, rest] = place.read::<R, [u32; 2]>(reader, 0).ok_or(Error::Malformed)?;
            if available < 8 {
                return Err(Error::Malformed);
            }
            let icmp_type = Bytes4(head).first();
            let icmp = icmp(icmp_type);
            let identifier_be =
                if matches!(icmp, Icmp::EchoRequest | Icmp::EchoReply) { halves_be(rest).0 } else { 0 };
            Ok(Transport {
                src_port_be: identifier_be,
                dst_port_be: identifier_be,
                tcp_flags: 0,
                icmp_type,
                icmp_code: Bytes4(head).second(),
                icmp,
            })
        }
        _ => Ok(Transport::NONE),
    }
}

/// Ports and ICMP kind of a quoted packet, of which eight bytes of transport header are promised (RFC 792).
#[inline(always)]
pub(crate) fn quoted<R: Reader>(
    reader: &R,
    offset: u32,
    protocol: u8,
    icmp_protocol: u8,
    icmp: impl Fn(u8) -> Icmp,
) -> Result<(u16, u16, Icmp), Error> {
    let is_icmp = protocol == icmp_protocol;
    if !is_icmp && !matches!(protocol, protocol::TCP | protocol::UDP | protocol::SCTP) {
        return Ok((0, 0, Icmp::None));
    }
    let word = reader.far::<Bytes4>(offset).ok_or(Error::Malformed)?;
    if !is_icmp {
        let (src_port_be, dst_port_be) = halves_be(word.0);
        return Ok((src_port_be, dst_port_be, Icmp::None));
    }
    match icmp(word.first()) {
        // RFC 1122 section 3.2.2 and RFC 4443 section 2.4 (e): no errors about errors.
        Icmp::Error => Err(Error::Unsupported),
        kind => Ok((0, 0, kind)),
    }
}
