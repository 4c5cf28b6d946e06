//! Header parsing for the eBPF programs and the host.
//!
//! The same code reads a socket buffer in the kernel and a byte slice in a test: it goes through [`Reader`],
//! which knows where the packet lies. A packet starts at its IP header, as on every layer 3 device.
//!
//! ```text
//! Reader ── V4::parse / V6::parse ──> Packet (addresses, protocol, ports or ICMP message, part of a fragment)
//!        └─ V4::quoted / V6::quoted ─> Quoted (what an ICMP error complains about)
//! ```
//!
//! - [`reader`]: where bytes come from, and the types that may be read.
//! - [`v4`], [`v6`]: the two families, one [`Family`] each.
//! - [`transport`]: TCP, UDP, SCTP, ICMP.
//! - [`outer`]: plain UDP datagrams, which WireGuard's are on the outside; [`payload`]: which of them are WireGuard's.
//! - [`translate`], [`checksum`]: other headers for the same datagram.
//!
//! Total: every input gives a value or an [`Error`]; there is no indexing, no panic and no unbounded loop, so
//! the verifier can follow it. Lengths are taken from the IP header and compared with the packet's: the linear
//! part of a socket buffer may be shorter than the packet, and a GRO aggregate longer than any MTU.
#![cfg_attr(not(test), no_std)]
#![expect(clippy::cast_possible_truncation, reason = "fields are cut out of wider words")]

pub mod checksum;
pub mod outer;
pub mod payload;
pub mod reader;
pub mod translate;
pub mod transport;
pub mod v4;
pub mod v6;

pub use reader::{Reader, SliceReader};
pub use transport::{Icmp, Transport};
pub use v4::V4;
pub use v6::V6;

/// IANA protocol numbers that the parser knows.
pub mod protocol {
    /// IPv6 hop-by-hop options.
    pub const HOP_BY_HOP: u8 = 0;
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// IPv6 routing header.
    pub const ROUTING: u8 = 43;
    /// IPv6 fragment header.
    pub const FRAGMENT: u8 = 44;
    /// Authentication header.
    pub const AUTHENTICATION: u8 = 51;
    /// ICMPv6.
    pub const ICMPV6: u8 = 58;
    /// IPv6 destination options.
    pub const DESTINATION_OPTIONS: u8 = 60;
    /// SCTP.
    pub const SCTP: u8 = 132;
}

/// Why a packet cannot be judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// Truncated or contradictory headers.
    Malformed,
    /// Not IPv4 or IPv6, or something that a mesh does not carry.
    Unsupported,
}

/// Which part of a datagram a packet holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Part {
    /// All of it.
    Whole = 0,
    /// The first fragment, which has the transport header.
    First = 1,
    /// A later fragment: no transport header, ports are 0.
    Later = 2,
}

/// What a fragment header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragmentation {
    /// Which part this is.
    pub part: Part,
    /// Identification, zero-extended for IPv4. Network byte order.
    pub id_be: u32,
    /// Protocol of the datagram as each of its fragments carries it. It differs from the transport protocol
    /// where IPv6 extension headers follow the fragment header.
    pub protocol: u8,
}

/// The headers of one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<A> {
    /// Source address.
    pub src: A,
    /// Destination address.
    pub dst: A,
    /// IANA number of the transport protocol.
    pub protocol: u8,
    /// Fragmentation.
    pub fragmentation: Fragmentation,
    /// Transport header; all zero for later fragments and protocols that have none.
    pub transport: Transport,
    /// Offset of the transport header.
    pub transport_offset: u32,
}

/// The packet that an ICMP error quotes: as much as is needed to name its flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quoted<A> {
    /// Source address.
    pub src: A,
    /// Destination address.
    pub dst: A,
    /// IANA number of the transport protocol.
    pub protocol: u8,
    /// Source port, 0 where the protocol has none. Network byte order.
    pub src_port_be: u16,
    /// Destination port, 0 where the protocol has none. Network byte order.
    pub dst_port_be: u16,
    /// What kind of ICMP message it was; [`Icmp::None`] for other protocols.
    pub icmp: Icmp,
}

/// An address family.
pub trait Family {
    /// An address as it lies in the packet.
    type Addr: Copy + Eq;
    /// IP version.
    const VERSION: u8;
    /// This family's ICMP.
    const ICMP: u8;

    /// Parses a packet that starts with this family's header.
    fn parse<R: Reader>(reader: &R) -> Result<Packet<Self::Addr>, Error>;

    /// Parses the packet that an ICMP error quotes at `offset`. [`Error::Unsupported`]: it names no flow
    /// (a later fragment, an error about an error).
    fn quoted<R: Reader>(reader: &R, offset: u32) -> Result<Quoted<Self::Addr>, Error>;

    /// Whether a mesh carries packets from or to the address: not multicast, broadcast or link-local.
    fn is_carried(addr: Self::Addr) -> bool;

    /// The address as the 16 bytes of an IPv6 address, in four words as they lie in memory.
    fn mapped(addr: Self::Addr) -> [u32; 4];

    /// What an ICMP message of this family is.
    fn icmp(message_type: u8) -> Icmp;
}

/// IP version of the packet, from the first nibble.
#[inline(always)]
pub fn version<R: Reader>(reader: &R) -> Result<u8, Error> {
    let word = reader.near::<reader::Bytes4>(0).or_else(|| reader.far::<reader::Bytes4>(0));
    word.map(|word| word.first() >> 4).ok_or(Error::Malformed)
}
