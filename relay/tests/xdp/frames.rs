//! Frames, put together field by field, and checksums computed in full.

use std::net::{IpAddr, SocketAddr};

/// What a frame says. Each field can be wrong by itself.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    pub(crate) source: SocketAddr,
    pub(crate) destination: SocketAddr,
    pub(crate) vlan: Option<[u8; 4]>,
    pub(crate) hops: u8,
    pub(crate) tos: u8,
    pub(crate) id: u16,
    /// Flags and offset of IPv4.
    pub(crate) fragment: u16,
    /// IPv4 options, or an IPv6 extension header: words of four bytes.
    pub(crate) options: Vec<u8>,
    pub(crate) payload: Vec<u8>,
    /// No checksum in UDP.
    pub(crate) without_checksum: bool,
    /// What is added to the UDP length.
    pub(crate) longer: i16,
    /// Ethernet padding behind the packet.
    pub(crate) padding: usize,
}

pub(crate) const ROUTER: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub(crate) const RELAY: [u8; 6] = [2, 0, 0, 0, 0, 2];

impl Spec {
    pub(crate) fn new(source: SocketAddr, destination: SocketAddr, payload: Vec<u8>) -> Self {
        Self {
            source,
            destination,
            vlan: None,
            hops: 64,
            tos: 0,
            id: 0x1234,
            fragment: 0,
            options: Vec::new(),
            payload,
            without_checksum: false,
            longer: 0,
            padding: 0,
        }
    }

    /// The frame.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut frame = [RELAY, ROUTER].concat();
        if let Some(tag) = self.vlan {
            frame.extend(tag);
        }
        let udp = self.udp();
        match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                frame.extend([8, 0]);
                let words = 5 + self.options.len() / 4;
                let total = (words * 4 + udp.len()) as u16;
                let mut ip = vec![0x40 | words as u8, self.tos];
                ip.extend(total.to_be_bytes());
                ip.extend(self.id.to_be_bytes());
                ip.extend(self.fragment.to_be_bytes());
                ip.extend([self.hops, 17, 0, 0]);
                ip.extend(source.octets());
                ip.extend(destination.octets());
                ip.extend(&self.options);
                let checksum = !fold(sum(&ip));
                ip[10..12].copy_from_slice(&checksum.to_be_bytes());
                frame.extend(ip);
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                frame.extend([0x86, 0xDD]);
                frame.extend((6_u32 << 28 | u32::from(self.tos) << 20 | 0x5_4321).to_be_bytes());
                frame.extend(((self.options.len() + udp.len()) as u16).to_be_bytes());
                frame.extend([if self.options.is_empty() { 17 } else { 60 }, self.hops]);
                frame.extend(source.octets());
                frame.extend(destination.octets());
                frame.extend(&self.options);
            }
            _ => panic!("two families in one packet"),
        }
        frame.extend(udp);
        frame.extend(vec![0; self.padding]);
        frame
    }

    fn udp(&self) -> Vec<u8> {
        let len = (8 + self.payload.len()) as u16;
        let mut udp = self.source.port().to_be_bytes().to_vec();
        udp.extend(self.destination.port().to_be_bytes());
        udp.extend(len.wrapping_add_signed(self.longer).to_be_bytes());
        udp.extend([0, 0]);
        udp.extend(&self.payload);
        if !self.without_checksum {
            let checksum = udp_checksum(self.source.ip(), self.destination.ip(), &udp);
            udp[6..8].copy_from_slice(&checksum.to_be_bytes());
        }
        udp
    }
}

fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0))).sum()
}

fn fold(mut sum: u32) -> u16 {
    while sum >> 16 != 0 {
        sum = (sum & 0xFFFF) + (sum >> 16);
    }
    sum as u16
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// The checksum of a UDP datagram whose checksum field is zero.
fn udp_checksum(source: IpAddr, destination: IpAddr, udp: &[u8]) -> u16 {
    match !fold(sum(&octets(source)) + sum(&octets(destination)) + 17 + udp.len() as u32 + sum(udp)) {
        0 => 0xFFFF,
        checksum => checksum,
    }
}

/// Whether the sums of a whole packet are right, computed over every byte of it. etherparse takes it apart.
pub(crate) fn sums_are_right(frame: &[u8]) -> bool {
    let packet = etherparse::SlicedPacket::from_ethernet(frame).expect("a well-formed packet");
    let Some(etherparse::TransportSlice::Udp(udp)) = &packet.transport else { panic!("no UDP: {packet:?}") };
    match packet.net.expect("IP") {
        etherparse::NetSlice::Ipv4(ip) => {
            let header = ip.header().to_header();
            let sum = udp.to_header().checksum;
            let expected = udp.to_header().calc_checksum_ipv4(&header, udp.payload()).unwrap();
            header.header_checksum == header.calc_header_checksum() && (sum == 0 || sum == expected)
        }
        etherparse::NetSlice::Ipv6(ip) => {
            let header = ip.header().to_header();
            udp.to_header().checksum == udp.to_header().calc_checksum_ipv6(&header, udp.payload()).unwrap()
        }
        arp @ etherparse::NetSlice::Arp(_) => panic!("{arp:?}"),
    }
}
