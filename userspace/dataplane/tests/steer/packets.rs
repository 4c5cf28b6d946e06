//! Packets, made and checked byte by byte: nothing here is shared with what is tested.

use std::net::{IpAddr, SocketAddr};

/// Bytes of an Ethernet header.
pub(crate) const ETHERNET: usize = 14;

/// A UDP datagram with its IP header and right checksums.
pub(crate) fn udp(src: SocketAddr, dst: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + payload.len()).unwrap();
    let mut packet = match (src.ip(), dst.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let mut header = vec![0x45, 0x28];
            header.extend((20 + length).to_be_bytes());
            header.extend([0x12, 0x34, 0, 0, 63, 17, 0, 0]);
            header.extend(from.octets());
            header.extend(to.octets());
            let sum = !sum(&header);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            header
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let mut header = vec![0x62, 0x81, 0x23, 0x45];
            header.extend(length.to_be_bytes());
            header.extend([17, 63]);
            header.extend(from.octets());
            header.extend(to.octets());
            header
        }
        _ => panic!("two families"),
    };
    let at = packet.len();
    packet.extend(src.port().to_be_bytes());
    packet.extend(dst.port().to_be_bytes());
    packet.extend(length.to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(payload);
    let check = match !transport_sum(&packet, at) {
        0 => u16::MAX,
        check => check,
    };
    packet[at + 6..at + 8].copy_from_slice(&check.to_be_bytes());
    packet
}

/// The same without a UDP checksum.
pub(crate) fn without_checksum(mut packet: Vec<u8>) -> Vec<u8> {
    let at = header(&packet);
    packet[at + 6..at + 8].copy_from_slice(&[0, 0]);
    packet
}

/// With an Ethernet header in front.
pub(crate) fn frame(packet: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; 12];
    let is_ipv6 = packet.first().is_some_and(|first| first >> 4 == 6);
    frame.extend(if is_ipv6 { [0x86, 0xdd] } else { [8, 0] });
    frame.extend(packet);
    frame
}

/// What a packet says. Fails if a checksum or a length is wrong.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Read<'a> {
    pub(crate) src: SocketAddr,
    pub(crate) dst: SocketAddr,
    pub(crate) class: u8,
    pub(crate) hops: u8,
    pub(crate) payload: &'a [u8],
}

/// Reads a datagram; `has_checksum`: whether UDP is to have one.
pub(crate) fn read(packet: &[u8], has_checksum: bool) -> Read<'_> {
    let at = header(packet);
    let (src, dst, class, hops) = if at == 20 {
        assert_eq!(sum(&packet[..20]), 0xffff, "the IPv4 checksum of {:x?}", &packet[..20]);
        assert_eq!(usize::from(number(packet, 2)), packet.len());
        let ip = |at: usize| IpAddr::from(<[u8; 4]>::try_from(&packet[at..at + 4]).unwrap());
        (ip(12), ip(16), packet[1], packet[8])
    } else {
        assert_eq!(usize::from(number(packet, 4)), packet.len() - 40);
        let ip = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&packet[at..at + 16]).unwrap());
        (ip(8), ip(24), packet[0] << 4 | packet[1] >> 4, packet[7])
    };
    if has_checksum {
        assert_ne!(number(packet, at + 6), 0);
        assert_eq!(transport_sum(packet, at), 0xffff, "the UDP checksum");
    } else {
        assert_eq!(number(packet, at + 6), 0);
    }
    assert_eq!(usize::from(number(packet, at + 4)), packet.len() - at);
    Read {
        src: SocketAddr::new(src, number(packet, at)),
        dst: SocketAddr::new(dst, number(packet, at + 2)),
        class,
        hops,
        payload: &packet[at + 8..],
    }
}

fn header(packet: &[u8]) -> usize {
    if packet[0] >> 4 == 4 { 20 } else { 40 }
}

fn number(packet: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([packet[at], packet[at + 1]])
}

/// The sum of RFC 1071 over everything that UDP's checksum covers.
fn transport_sum(packet: &[u8], at: usize) -> u16 {
    let addresses = if at == 20 { &packet[12..20] } else { &packet[8..40] };
    let length = u16::try_from(packet.len() - at).unwrap().to_be_bytes();
    sum(&[addresses, &[0, 17], &length, &packet[at..]].concat())
}

fn sum(bytes: &[u8]) -> u16 {
    let mut sum = 0_u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap()
}
