//! Our parser against etherparse's, on sound packets of all shapes.
#![expect(clippy::unwrap_used, reason = "a test that fails shall say where")]

use etherparse::{IpFragOffset, Ipv6FragmentHeader, NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use ghostwire_packet::{Error, Family, Icmp, Packet, Part, SliceReader, V4, V6};
use proptest::prelude::*;

/// A transport header and its payload, behind an IP header.
#[derive(Clone, Debug)]
enum Body {
    Tcp { src: u16, dst: u16, flags: u8 },
    Udp { src: u16, dst: u16 },
    Echo { id: u16, reply: bool },
}

fn body() -> impl Strategy<Value = Body> {
    prop_oneof![
        (any::<u16>(), any::<u16>(), 0..64_u8).prop_map(|(src, dst, flags)| Body::Tcp { src, dst, flags }),
        (any::<u16>(), any::<u16>()).prop_map(|(src, dst)| Body::Udp { src, dst }),
        (any::<u16>(), any::<bool>()).prop_map(|(id, reply)| Body::Echo { id, reply }),
    ]
}

fn build(v6: bool, src: [u8; 16], dst: [u8; 16], body: &Body, payload: &[u8]) -> Vec<u8> {
    let narrow = |addr: [u8; 16]| [addr[0], addr[1], addr[2], addr[3]];
    let ip = if v6 {
        PacketBuilder::ipv6(src, dst, 64)
    } else {
        PacketBuilder::ipv4(narrow(src), narrow(dst), 64)
    };
    let mut packet = Vec::new();
    match *body {
        Body::Tcp { src, dst, flags } => {
            let mut step = ip.tcp(src, dst, 1, 1024);
            for (bit, set) in (0..6).map(|bit| (bit, flags >> bit & 1 == 1)) {
                step = match (bit, set) {
                    (0, true) => step.fin(),
                    (1, true) => step.syn(),
                    (2, true) => step.rst(),
                    (3, true) => step.psh(),
                    (4, true) => step.ack(9),
                    (5, true) => step.urg(0),
                    _ => step,
                };
            }
            step.write(&mut packet, payload).unwrap();
        }
        Body::Udp { src, dst } => ip.udp(src, dst).write(&mut packet, payload).unwrap(),
        Body::Echo { id, reply } => match (v6, reply) {
            (false, false) => ip.icmpv4_echo_request(id, 1).write(&mut packet, payload).unwrap(),
            (false, true) => ip.icmpv4_echo_reply(id, 1).write(&mut packet, payload).unwrap(),
            (true, false) => ip.icmpv6_echo_request(id, 1).write(&mut packet, payload).unwrap(),
            (true, true) => ip.icmpv6_echo_reply(id, 1).write(&mut packet, payload).unwrap(),
        },
    }
    packet
}

fn check<F: Family>(bytes: &[u8], body: &Body, src: &[u8], dst: &[u8]) -> Result<(), TestCaseError> {
    let theirs = SlicedPacket::from_ip(bytes).unwrap();
    let ours: Packet<F::Addr> = F::parse(&SliceReader::new(bytes)).unwrap();
    let address = |addr: F::Addr| -> Vec<u8> {
        let words = F::mapped(addr);
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        bytes[if F::VERSION == 4 { 12 } else { 0 }..].to_vec()
    };
    prop_assert_eq!(address(ours.src), src);
    prop_assert_eq!(address(ours.dst), dst);
    prop_assert_eq!(ours.fragmentation.part, Part::Whole);
    let header = match &theirs.net {
        Some(NetSlice::Ipv4(ip)) => ip.header().slice().len(),
        Some(NetSlice::Ipv6(ip)) => ip.header().slice().len() + ip.extensions().slice().len(),
        _ => panic!("not IP"),
    };
    prop_assert_eq!(ours.transport_offset as usize, header);
    let (src_port, dst_port) =
        (u16::from_be(ours.transport.src_port_be), u16::from_be(ours.transport.dst_port_be));
    match (theirs.transport, body) {
        (Some(TransportSlice::Tcp(tcp)), Body::Tcp { flags, .. }) => {
            prop_assert_eq!((src_port, dst_port), (tcp.source_port(), tcp.destination_port()));
            prop_assert_eq!(ours.transport.tcp_flags, *flags);
        }
        (Some(TransportSlice::Udp(udp)), Body::Udp { .. }) => {
            prop_assert_eq!((src_port, dst_port), (udp.source_port(), udp.destination_port()));
        }
        (Some(TransportSlice::Icmpv4(_) | TransportSlice::Icmpv6(_)), Body::Echo { id, reply }) => {
            prop_assert_eq!(src_port, *id);
            prop_assert_eq!(ours.transport.icmp, if *reply { Icmp::EchoReply } else { Icmp::EchoRequest });
        }
        (theirs, body) => panic!("{body:?} became {theirs:?}"),
    }
    Ok(())
}

/// Puts IPv4 options into a packet.
fn with_options(mut packet: Vec<u8>, words: u8) -> Vec<u8> {
    packet[0] += words;
    let total = u16::from_be_bytes([packet[2], packet[3]]) + u16::from(words) * 4;
    packet[2..4].copy_from_slice(&total.to_be_bytes());
    packet.splice(20..20, vec![1; usize::from(words) * 4]);
    packet
}

/// Puts IPv6 extension headers into a packet.
fn with_extensions(mut packet: Vec<u8>, kinds: &[u8]) -> Vec<u8> {
    let last = packet[6];
    let mut headers = Vec::new();
    for (index, _) in kinds.iter().enumerate() {
        headers.extend([kinds.get(index + 1).copied().unwrap_or(last), 0, 1, 4, 0, 0, 0, 0]);
    }
    if let Some(first) = kinds.first() {
        packet[6] = *first;
    }
    let payload = u16::from_be_bytes([packet[4], packet[5]]) + u16::try_from(headers.len()).unwrap();
    packet[4..6].copy_from_slice(&payload.to_be_bytes());
    packet.splice(40..40, headers);
    packet
}

proptest! {
    #[test]
    fn ipv4_is_read_alike(
        src: [u8; 4], dst: [u8; 4], body in body(), payload: [u8; 13], options in 0..=10_u8,
    ) {
        let wide = |addr: [u8; 4]| { let mut wide = [0; 16]; wide[..4].copy_from_slice(&addr); wide };
        let packet = with_options(build(false, wide(src), wide(dst), &body, &payload), options);
        check::<V4>(&packet, &body, &src, &dst)?;
        every_truncation::<V4>(&packet)?;
    }

    #[test]
    fn ipv6_is_read_alike(
        src: [u8; 16], dst: [u8; 16], body in body(), payload: [u8; 13], extensions in 0..=3_usize,
    ) {
        let packet = with_extensions(build(true, src, dst, &body, &payload), &vec![60; extensions]);
        check::<V6>(&packet, &body, &src, &dst)?;
        every_truncation::<V6>(&packet)?;
    }

    #[test]
    fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let reader = SliceReader::new(&bytes);
        let _v4 = V4::parse(&reader);
        let _v6 = V6::parse(&reader);
        for offset in 0..64 {
            let _v4 = V4::quoted(&reader, offset);
            let _v6 = V6::quoted(&reader, offset);
        }
    }

    #[test]
    fn ipv6_fragment_headers_are_read_alike(id: u32, offset in 0..0x1fff_u16, more: bool) {
        let header = Ipv6FragmentHeader::new(etherparse::ip_number::UDP, IpFragOffset::try_new(offset).unwrap(), more, id);
        let mut packet = build(true, [0x20; 16], [0x21; 16], &Body::Udp { src: 1, dst: 2 }, &[0; 8]);
        packet[6] = 44;
        packet[5] += 8;
        packet.splice(40..40, header.to_bytes());
        let ours = V6::parse(&SliceReader::new(&packet)).unwrap();
        let part = match (offset, more) { (0, false) => Part::Whole, (0, true) => Part::First, _ => Part::Later };
        prop_assert_eq!(ours.fragmentation.part, part);
        prop_assert_eq!(u32::from_be(ours.fragmentation.id_be), id);
        prop_assert_eq!(ours.transport.dst_port_be == 2_u16.to_be(), offset == 0);
    }
}

/// Each prefix of a packet is malformed: its IP header promises more.
fn every_truncation<F: Family>(packet: &[u8]) -> Result<(), TestCaseError> {
    for length in 0..packet.len() {
        let parsed = F::parse(&SliceReader::new(&packet[..length])).map(|_| ());
        prop_assert_eq!(parsed, Err(Error::Malformed), "{} of {}", length, packet.len());
    }
    Ok(())
}
