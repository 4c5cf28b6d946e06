//! Answers to STUN's plain requests (RFC 8489 section 3): "from where do you see me?".
//!
//! Only requests that nothing has to be known for: no attributes but such as may be ignored, and a FINGERPRINT that is
//! right. All others go to userspace, which answers what is answered here in the same words.

use super::checksum::Sum;
use super::{Bytes, Frame, Neighbour, Packet, UDP, UDP_LEN, address, in_memory, v4, v6};

/// Binding request, and its success.
const REQUEST: u16 = 0x0001;
const SUCCESS: u16 = 0x0101_u16.to_be();

const COOKIE: u32 = 0x2112_A442;
const HEADER_WORDS: usize = 5;

const XOR_MAPPED_ADDRESS: u16 = 0x0020;
const FINGERPRINT: u16 = 0x8028;

/// Attributes from here on may be ignored (RFC 8489 section 14).
const OPTIONAL: u16 = 0x8000;

/// What FINGERPRINT is combined with (RFC 8489 section 14.7).
const FINGERPRINT_XOR: u32 = 0x5354_554E;

/// The longest request that is looked at, in words of four bytes.
const MAX_WORDS: usize = 32;

/// What answers are sent with, as Linux does.
const HOPS: u8 = 64;

/// Whether a datagram could be a request that is answered here.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "a small constant")]
pub fn is_request(packet: &Packet) -> bool {
    let [first, second, ..] = packet.datagram.head;
    u16::from_be_bytes([first, second]) == REQUEST
        && crate::decision::is_stun(&packet.datagram.head, packet.datagram.len)
        && packet.datagram.len.is_multiple_of(4)
        && packet.datagram.len <= 4 * MAX_WORDS as u32
}

/// What has been found in a request.
#[derive(Clone, Copy)]
struct Request {
    /// It has a FINGERPRINT, which is right.
    fingerprint: bool,
    transaction: [u32; 3],
}

/// Turns a request into its answer. `None`: it is not one that is answered here; the frame has not changed.
/// `Some(false)`: it has, and has to be dropped.
#[inline(always)]
pub fn answer<F: Frame>(frame: &mut F, packet: &Packet) -> Option<bool> {
    let request = if packet.v6 {
        read::<_, { v6::HEADER_LEN }>(frame, packet)
    } else {
        read::<_, { v4::HEADER_LEN }>(frame, packet)
    }?;
    let mapped_len = if packet.v6 { 24 } else { 12 };
    let len = 20 + mapped_len + if request.fingerprint { 8 } else { 0 };
    let headers = packet.l3 + if packet.v6 { v6::HEADER_LEN } else { v4::HEADER_LEN } + UDP_LEN;
    let wanted = i32::try_from(headers + len).ok()?;
    let by = wanted - i32::try_from(frame.len()).ok()?;
    if !frame.grow(by) {
        return None;
    }
    let written = match (packet.v6, packet.l3 == super::ETHERNET_LEN) {
        (false, true) => write4::<_, 14>(frame, packet, &request),
        (false, false) => write4::<_, 18>(frame, packet, &request),
        (true, true) => write6::<_, 14>(frame, packet, &request),
        (true, false) => write6::<_, 18>(frame, packet, &request),
    };
    Some(written.is_some())
}

/// Looks at all of a request: attributes, FINGERPRINT and the datagram's checksum, which an answer with a checksum of
/// its own would hide.
#[inline(always)]
fn read<F: Frame, const IP_LEN: usize>(frame: &F, packet: &Packet) -> Option<Request> {
    let l3 = packet.l3;
    let udp_at = l3 + IP_LEN;
    let ip = frame.at(l3, IP_LEN + UDP_LEN + 20)?;
    // SAFETY: offsets are within what was asked for.
    let (mut sum, transaction, is_summed) = unsafe {
        if IP_LEN == v4::HEADER_LEN && header_sum4(ip).checksum() != 0 {
            return None;
        }
        let addresses = if IP_LEN == v4::HEADER_LEN {
            Sum::default().add(ip.load(12)).add(ip.load(16))
        } else {
            v6::sum(v6::load(ip, 8)).plus(v6::sum(v6::load(ip, 24)))
        };
        let pseudo = addresses.add(pseudo_header(packet.udp_len));
        let transaction =
            [ip.load(IP_LEN + UDP_LEN + 8), ip.load(IP_LEN + UDP_LEN + 12), ip.load(IP_LEN + UDP_LEN + 16)];
        (pseudo.add(ip.load(IP_LEN)).add(ip.load(IP_LEN + 4)), transaction, ip.load::<u16>(IP_LEN + 6) != 0)
    };
    let words = (packet.datagram.len / 4) as usize;
    let mut crc = !0;
    let mut attribute_at = HEADER_WORDS;
    let mut fingerprint = None;
    for at in 0..MAX_WORDS {
        if at == words {
            break;
        }
        // SAFETY: a word was asked for.
        let word: u32 = unsafe { frame.at(udp_at + UDP_LEN + 4 * at, 4)?.load(0) };
        sum = sum.add(word);
        if fingerprint.is_none() {
            if at == attribute_at {
                let (kind, len) = (u32::from_be(word) >> 16, u32::from_be(word) & 0xFFFF);
                if kind < u32::from(OPTIONAL) {
                    return None;
                }
                if kind == u32::from(FINGERPRINT) {
                    // It is the last attribute.
                    if len != 4 || at + 2 != words {
                        return None;
                    }
                    fingerprint = Some(!crc ^ FINGERPRINT_XOR);
                }
                attribute_at = at + 1 + (len as usize).div_ceil(4);
            }
            crc = crc_of(crc, word);
        } else if fingerprint != Some(u32::from_be(word)) {
            return None;
        }
    }
    let whole = attribute_at == words && (!is_summed || sum.checksum() == 0);
    whole.then_some(Request { fingerprint: fingerprint.is_some(), transaction })
}

/// The sum of an IPv4 header, its checksum included.
///
/// # Safety
///
/// `ip` was made for at least 20 bytes.
#[inline(always)]
unsafe fn header_sum4(ip: Bytes) -> Sum {
    // SAFETY: the caller's promise.
    unsafe {
        Sum::default().add(ip.load(0)).add(ip.load(4)).add(ip.load(8)).add(ip.load(12)).add(ip.load(16))
    }
}

/// Protocol and length of the pseudo-header.
#[inline(always)]
fn pseudo_header(udp_len: u16) -> u32 {
    in_memory(u16::from(UDP).to_be(), udp_len.to_be())
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "at most 52")]
fn write4<F: Frame, const L3: usize>(frame: &F, packet: &Packet, request: &Request) -> Option<()> {
    const UDP_AT: usize = v4::HEADER_LEN;
    let len = 32 + if request.fingerprint { 8 } else { 0 };
    let ethernet = frame.at(0, L3 + UDP_AT + UDP_LEN + 32)?;
    // SAFETY: offsets are within what was asked for.
    unsafe {
        address(ethernet, Neighbour::Same);
        let ip = Bytes::new(ethernet.0.add(L3));
        let (source, destination): (u32, u32) = (ip.load(12), ip.load(16));
        ip.store(0, in_memory(u16::from_ne_bytes([0x45, 0]), ((UDP_AT + UDP_LEN + len) as u16).to_be()));
        ip.store(6, 0_u16);
        ip.store(8, u16::from_ne_bytes([HOPS, UDP]));
        ip.store(10, 0_u16);
        ip.store(12, destination);
        ip.store(16, source);
        ip.store(10, header_sum4(ip).checksum());
        let port = packet.datagram.source.port;
        let mapped = mapped_head(8, 1, port);
        let address = source ^ COOKIE.to_be();
        let udp = Bytes::new(ip.0.add(UDP_AT));
        let sum = Sum::default().add(source).add(destination);
        let (sum, crc) = head(udp, packet, request, len as u16, sum);
        let sum = sum.add(mapped[0]).add(mapped[1]).add(address);
        let crc = crc_of(crc_of(crc_of(crc, mapped[0]), mapped[1]), address);
        udp.store(UDP_LEN + 20, mapped[0]);
        udp.store(UDP_LEN + 24, mapped[1]);
        udp.store(UDP_LEN + 28, address);
        tail(frame, L3 + UDP_AT, 32, request, sum, crc)
    }
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "at most 52")]
fn write6<F: Frame, const L3: usize>(frame: &F, packet: &Packet, request: &Request) -> Option<()> {
    const UDP_AT: usize = v6::HEADER_LEN;
    let len = 44 + if request.fingerprint { 8 } else { 0 };
    let ethernet = frame.at(0, L3 + UDP_AT + UDP_LEN + 44)?;
    // SAFETY: offsets are within what was asked for.
    unsafe {
        address(ethernet, Neighbour::Same);
        let ip = Bytes::new(ethernet.0.add(L3));
        let (source, destination) = (v6::load(ip, 8), v6::load(ip, 24));
        ip.store(0, (6_u32 << 28).to_be());
        ip.store(4, ((UDP_LEN + len) as u16).to_be());
        ip.store(6, u16::from_ne_bytes([UDP, HOPS]));
        v6::store(ip, 8, destination);
        v6::store(ip, 24, source);
        let port = packet.datagram.source.port;
        let mapped = mapped_head(20, 2, port);
        let (ip_words, transaction) = (source.0, request.transaction);
        let address = [
            ip_words[0] ^ COOKIE.to_be(),
            ip_words[1] ^ transaction[0],
            ip_words[2] ^ transaction[1],
            ip_words[3] ^ transaction[2],
        ];
        let udp = Bytes::new(ip.0.add(UDP_AT));
        let sum = v6::sum(source).plus(v6::sum(destination));
        let (mut sum, mut crc) = head(udp, packet, request, len as u16, sum);
        for (at, word) in mapped.into_iter().chain(address).enumerate() {
            udp.store(UDP_LEN + 20 + 4 * at, word);
            sum = sum.add(word);
            crc = crc_of(crc, word);
        }
        tail(frame, L3 + UDP_AT, 44, request, sum, crc)
    }
}

/// The first two words of XOR-MAPPED-ADDRESS.
#[inline(always)]
fn mapped_head(len: u16, family: u16, port: u16) -> [u32; 2] {
    let xor_port = port ^ (COOKIE >> 16) as u16;
    [in_memory(XOR_MAPPED_ADDRESS.to_be(), len.to_be()), in_memory(family.to_be(), xor_port.to_be())]
}

/// Writes the UDP header, without checksum, and STUN's header; gives the sum and the CRC so far.
///
/// # Safety
///
/// `udp` was made for at least 28 bytes.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "a small constant")]
unsafe fn head(udp: Bytes, packet: &Packet, request: &Request, len: u16, addresses: Sum) -> (Sum, u32) {
    let udp_len = len + UDP_LEN as u16;
    let ports = in_memory(packet.datagram.port.to_be(), packet.datagram.source.port.to_be());
    let length = in_memory(udp_len.to_be(), 0);
    let kind = in_memory(SUCCESS, (len - 20).to_be());
    let [x, y, z] = request.transaction;
    let mut sum = addresses.add(pseudo_header(udp_len)).add(ports).add(length);
    let mut crc = !0;
    for word in [kind, COOKIE.to_be(), x, y, z] {
        sum = sum.add(word);
        crc = crc_of(crc, word);
    }
    // SAFETY: the caller's promise.
    unsafe {
        udp.store(0, ports);
        udp.store(4, length);
        udp.store(UDP_LEN, kind);
        // Cookie and transaction are there already.
    }
    (sum, crc)
}

/// Writes FINGERPRINT, if the request had one, and the checksum.
#[inline(always)]
fn tail<F: Frame>(
    frame: &F,
    udp_at: usize,
    len: usize,
    request: &Request,
    mut sum: Sum,
    crc: u32,
) -> Option<()> {
    if request.fingerprint {
        let words = [in_memory(FINGERPRINT.to_be(), 4_u16.to_be()), (!crc ^ FINGERPRINT_XOR).to_be()];
        let place = frame.at(udp_at + UDP_LEN + len, 8)?;
        sum = sum.add(words[0]).add(words[1]);
        // SAFETY: eight bytes were asked for.
        unsafe {
            place.store(0, words[0]);
            place.store(4, words[1]);
        }
    }
    let udp = frame.at(udp_at, UDP_LEN)?;
    // SAFETY: within the eight bytes.
    unsafe { udp.store(6, sum.udp_checksum()) };
    Some(())
}

/// CRC-32 of IEEE 802.3, of which FINGERPRINT is made, byte by byte.
#[expect(clippy::cast_possible_truncation, reason = "counts to 256")]
static CRC: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 0 { crc >> 1 } else { crc >> 1 ^ 0xEDB8_8320 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

/// The CRC with four more bytes, given as they lie in memory.
#[inline(always)]
fn crc_of(mut crc: u32, word: u32) -> u32 {
    for byte in word.to_ne_bytes() {
        crc = crc >> 8 ^ CRC.get(((crc ^ u32::from(byte)) & 0xFF) as usize).copied().unwrap_or(0);
    }
    crc
}
