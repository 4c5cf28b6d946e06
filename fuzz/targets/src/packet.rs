//! The packet parser of the eBPF programs: no panic, nothing read beyond the packet, and where it and etherparse
//! both accept a packet, they read the same.

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use ghostwire_packet::{Error, Family, Icmp, Packet, Part, SliceReader, Transport, V4, V6, version};

/// Truncations beyond this add nothing: all headers are over.
const MOST_TRUNCATIONS: usize = 160;

/// A packet from its IP header on. True if it is one of either family.
pub fn run(data: &[u8]) -> bool {
    let _version = version(&SliceReader::new(data));
    let (v4, v6) = (family::<V4>(data), family::<V6>(data));
    for length in 0..data.len().min(MOST_TRUNCATIONS) {
        let _v4 = V4::parse(&SliceReader::new(&data[..length]));
        let _v6 = V6::parse(&SliceReader::new(&data[..length]));
    }
    v4 || v6
}

fn family<F: Family>(data: &[u8]) -> bool {
    let reader = SliceReader::new(data);
    for offset in [0, 8, 20, 28, 40, 48, 2047, 2048, u32::MAX - 40] {
        if let Some(end) = offset.checked_add(40) {
            let _quoted = F::quoted(&reader, offset.min(end));
        }
    }
    let packet = match F::parse(&reader) {
        Ok(packet) => packet,
        Err(Error::Malformed | Error::Unsupported) => return false,
    };
    assert!(packet.transport_offset as usize <= data.len(), "the transport header is behind the packet");
    if packet.fragmentation.part == Part::Later {
        assert_eq!(packet.transport, Transport::NONE, "a later fragment has no transport header");
    }
    let _carried = (F::is_carried(packet.src), F::is_carried(packet.dst));
    if packet.transport.icmp == Icmp::Error {
        let _quoted = F::quoted(&reader, packet.transport_offset + 8);
    }
    agrees_with_etherparse::<F>(data, &packet);
    true
}

fn agrees_with_etherparse<F: Family>(data: &[u8], ours: &Packet<F::Addr>) {
    let Ok(theirs) = SlicedPacket::from_ip(data) else { return };
    let address = |addr: F::Addr| F::mapped(addr).map(u32::to_ne_bytes).concat();
    let (src, dst, fragmented) = match &theirs.net {
        Some(NetSlice::Ipv4(ip)) => {
            let header = ip.header();
            let mapped = |addr: std::net::Ipv4Addr| addr.to_ipv6_mapped().octets();
            assert_eq!(ours.protocol, header.protocol().0);
            (mapped(header.source_addr()), mapped(header.destination_addr()), ip.is_payload_fragmented())
        }
        Some(NetSlice::Ipv6(ip)) => {
            (ip.header().source(), ip.header().destination(), ip.is_payload_fragmented())
        }
        _ => return,
    };
    assert_eq!(address(ours.src), src);
    assert_eq!(address(ours.dst), dst);
    assert_eq!(ours.fragmentation.part != Part::Whole, fragmented, "part of a fragment, or not");
    if fragmented {
        return;
    }
    let ports = (u16::from_be(ours.transport.src_port_be), u16::from_be(ours.transport.dst_port_be));
    match theirs.transport {
        Some(TransportSlice::Tcp(tcp)) => {
            assert_eq!(ours.protocol, ghostwire_packet::protocol::TCP);
            assert_eq!(ports, (tcp.source_port(), tcp.destination_port()));
            assert_eq!(ours.transport.tcp_flags & 1 != 0, tcp.fin());
            assert_eq!(ours.transport.tcp_flags & 2 != 0, tcp.syn());
            assert_eq!(ours.transport.tcp_flags & 4 != 0, tcp.rst());
            assert_eq!(ours.transport.tcp_flags & 16 != 0, tcp.ack());
        }
        Some(TransportSlice::Udp(udp)) => {
            assert_eq!(ours.protocol, ghostwire_packet::protocol::UDP);
            assert_eq!(ports, (udp.source_port(), udp.destination_port()));
        }
        Some(TransportSlice::Icmpv4(icmp)) => {
            assert_eq!((ours.protocol, ours.transport.icmp_type), (1, icmp.type_u8()));
        }
        Some(TransportSlice::Icmpv6(icmp)) => {
            assert_eq!((ours.protocol, ours.transport.icmp_type), (58, icmp.type_u8()));
        }
        Some(TransportSlice::Igmp(_)) | None => {}
    }
}
