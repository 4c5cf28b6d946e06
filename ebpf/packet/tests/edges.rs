//! Packets that somebody made up to get past a parser, and some that only look like it.
#![expect(clippy::unwrap_used, reason = "a test that fails shall say where")]

use ghostwire_packet::transport::tcp;
use ghostwire_packet::{Error, Family, Icmp, Part, SliceReader, V4, V6, protocol};

fn v4(protocol: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
    let total = u16::try_from(20 + payload.len()).unwrap();
    let mut packet = vec![0x45, 0];
    packet.extend(total.to_be_bytes());
    packet.extend([0x12, 0x34]);
    packet.extend(fragment.to_be_bytes());
    packet.extend([64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    packet.extend(payload);
    packet
}

fn v6(next: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(u16::try_from(payload.len()).unwrap().to_be_bytes());
    packet.extend([next, 64]);
    packet.extend([0x20; 32]);
    packet.extend(payload);
    packet
}

fn tcp_header(flags: u8, words: u8) -> Vec<u8> {
    let mut header = vec![0, 80, 1, 187, 0, 0, 0, 0, 0, 0, 0, 0, words << 4, flags, 0, 0, 0, 0, 0, 0];
    header.resize(usize::from(words).max(5) * 4, 0);
    header
}

fn parse4(packet: &[u8]) -> Result<ghostwire_packet::Packet<u32>, Error> {
    V4::parse(&SliceReader::new(packet))
}

fn parse6(packet: &[u8]) -> Result<ghostwire_packet::Packet<[u32; 4]>, Error> {
    V6::parse(&SliceReader::new(packet))
}

#[test]
fn tiny_and_overlapping_first_fragments_are_refused() {
    // RFC 1858: a first fragment without the flags; RFC 3128: a second that would overwrite them.
    assert_eq!(parse4(&v4(protocol::TCP, 0x2000, &tcp_header(tcp::SYN, 5)[..8])), Err(Error::Malformed));
    for offset in 1..=2 {
        assert_eq!(parse4(&v4(protocol::TCP, offset, &[0; 16])), Err(Error::Malformed));
    }
    assert_eq!(parse4(&v4(protocol::TCP, 3, &[0; 16])).unwrap().fragmentation.part, Part::Later);
    assert_eq!(parse4(&v4(protocol::UDP, 1, &[0; 16])).unwrap().fragmentation.part, Part::Later);
}

#[test]
fn later_fragments_have_no_ports() {
    let later = parse4(&v4(protocol::UDP, 0x2064, &[0xff; 16])).unwrap();
    assert_eq!((later.transport.src_port_be, later.transport.dst_port_be), (0, 0));
    assert_eq!(u32::from_be(later.fragmentation.id_be), 0x1234);
}

#[test]
fn options_of_a_first_fragment_may_come_later() {
    let mut header = tcp_header(tcp::ACK, 10);
    header.truncate(24);
    assert_eq!(parse4(&v4(protocol::TCP, 0x2000, &header)).unwrap().fragmentation.part, Part::First);
    assert_eq!(parse4(&v4(protocol::TCP, 0, &header)), Err(Error::Malformed));
}

#[test]
fn contradictory_lengths_are_malformed() {
    let mut short = v4(protocol::UDP, 0, &[0, 1, 0, 2, 0, 7, 0, 0]);
    assert_eq!(parse4(&short), Err(Error::Malformed), "a datagram shorter than its header");
    short[0] = 0x44;
    assert_eq!(parse4(&short), Err(Error::Malformed), "an IP header of four words");
    let mut long = v4(protocol::UDP, 0, &[0, 1, 0, 2, 0, 8, 0, 0]);
    long[3] += 1;
    assert_eq!(parse4(&long), Err(Error::Malformed), "more bytes promised than there are");
    assert_eq!(parse4(&v4(protocol::TCP, 0, &tcp_header(tcp::SYN, 4))), Err(Error::Malformed));
}

#[test]
fn padding_behind_the_datagram_is_not_parsed() {
    // The transport header must lie within the datagram, whatever follows it.
    let mut packet = v4(protocol::UDP, 0, &[0, 1, 0, 2]);
    packet.extend([0, 8, 0, 0]);
    assert_eq!(parse4(&packet), Err(Error::Malformed));
}

#[test]
fn aggregates_beyond_the_length_field_are_whole() {
    let mut packet = v4(protocol::UDP, 0, &vec![0; 66_000 - 20][..0]);
    packet[2..4].copy_from_slice(&[0, 0]);
    packet.extend([0, 1, 0, 2, 0, 0, 0, 0]);
    packet.resize(70_000, 0);
    assert_eq!(parse4(&packet).unwrap().transport.dst_port_be, 2_u16.to_be());
}

#[test]
fn a_routing_header_with_segments_left_is_not_carried() {
    let mut payload = vec![protocol::UDP, 0, 0, 1, 0, 0, 0, 0];
    payload.extend([0, 1, 0, 2, 0, 8, 0, 0]);
    assert_eq!(parse6(&v6(protocol::ROUTING, &payload)), Err(Error::Unsupported));
    payload[3] = 0;
    assert_eq!(parse6(&v6(protocol::ROUTING, &payload)).unwrap().protocol, protocol::UDP);
}

#[test]
fn endless_extension_headers_end() {
    let mut payload = [protocol::DESTINATION_OPTIONS, 0, 0, 0, 0, 0, 0, 0].repeat(9);
    payload.extend([0; 8]);
    assert_eq!(parse6(&v6(protocol::DESTINATION_OPTIONS, &payload)), Err(Error::Malformed));
    let far = [protocol::UDP, 255].into_iter().chain([0; 2046]).collect::<Vec<u8>>();
    assert_eq!(parse6(&v6(protocol::HOP_BY_HOP, &far)), Err(Error::Malformed));
}

#[test]
fn an_atomic_fragment_is_a_whole_datagram() {
    let mut payload = vec![protocol::UDP, 0, 0, 0, 0, 0, 0, 9];
    payload.extend([0, 1, 0, 2, 0, 8, 0, 0]);
    let packet = parse6(&v6(protocol::FRAGMENT, &payload)).unwrap();
    assert_eq!((packet.fragmentation.part, packet.protocol), (Part::Whole, protocol::UDP));
}

#[test]
fn icmp_errors_quote_a_flow_only_once() {
    let quoted = v4(protocol::UDP, 0, &[0, 53, 0x9c, 0x40, 0, 8, 0, 0]);
    let mut error = vec![3, 3, 0, 0, 0, 0, 0, 0];
    error.extend(&quoted);
    let packet = v4(protocol::ICMP, 0, &error);
    let parsed = parse4(&packet).unwrap();
    assert_eq!(parsed.transport.icmp, Icmp::Error);
    let reader = SliceReader::new(&packet);
    let flow = V4::quoted(&reader, parsed.transport_offset + 8).unwrap();
    assert_eq!((flow.src_port_be, flow.dst_port_be), (53_u16.to_be(), 40_000_u16.to_be()));
    for length in 0..24 {
        let cut = SliceReader::new(&packet[..28 + length]);
        assert_eq!(V4::quoted(&cut, 28), Err(Error::Malformed), "{length} quoted bytes");
    }
    // An error about an error, and one about a later fragment, name no flow.
    let mut nested = vec![3, 3, 0, 0, 0, 0, 0, 0];
    nested.extend(&packet);
    let nested = v4(protocol::ICMP, 0, &nested);
    assert_eq!(V4::quoted(&SliceReader::new(&nested), 28), Err(Error::Unsupported));
    let mut later = vec![3, 3, 0, 0, 0, 0, 0, 0];
    later.extend(v4(protocol::UDP, 5, &[0; 8]));
    let later = v4(protocol::ICMP, 0, &later);
    assert_eq!(V4::quoted(&SliceReader::new(&later), 28), Err(Error::Unsupported));
}

#[test]
fn what_a_mesh_does_not_carry_is_known() {
    let v4 = |addr: [u8; 4]| V4::is_carried(u32::from_ne_bytes(addr));
    assert!(v4([100, 64, 0, 1]) && v4([10, 0, 0, 1]) && v4([169, 253, 0, 1]));
    assert!(!v4([224, 0, 0, 251]) && !v4([169, 254, 1, 1]) && !v4([255; 4]));
    let v6 = |text: &str| {
        let bytes = text.parse::<std::net::Ipv6Addr>().unwrap().octets();
        let word = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        V6::is_carried([word(0), word(4), word(8), word(12)])
    };
    assert!(v6("fd7a::1") && v6("2001:db8::1") && v6("fec0::1"));
    assert!(!v6("ff02::1") && !v6("fe80::1") && !v6("febf::1") && !v6("::ffff:10.0.0.1"));
}
