//! Random packets: mostly sound, about addresses and ports that policies name; then damaged.

use std::net::IpAddr;

use rand::RngExt;
use rand::rngs::StdRng;

use crate::policies::{PORTS, PROTOCOLS, own, parse};

const REMOTES: [&str; 14] = [
    "100.64.0.3",
    "100.64.0.4",
    "100.64.0.5",
    "100.64.0.6",
    "100.64.1.255",
    "100.64.255.254",
    "10.1.2.3",
    "10.1.9.9",
    "203.0.113.9",
    "fd7a:1:2::3",
    "fd7a:1:2::5",
    "fd7a:1:2::1ff",
    "2001:db8:1:2::3",
    "2001:db8:2::1",
];

const LOCALS: [&str; 5] = ["192.168.5.7", "192.168.5.200", "192.168.6.6", "fd00:5::1:7", "fd00:5::9"];

const STRANGE: [&str; 10] = [
    "224.0.0.251",
    "169.254.1.1",
    "255.255.255.255",
    "0.0.0.0",
    "127.0.0.1",
    "ff02::fb",
    "fe80::1",
    "::ffff:10.1.2.3",
    "::",
    "::1",
];

fn pick<T: Copy>(rng: &mut StdRng, from: &[T]) -> T {
    from[rng.random_range(0..from.len())]
}

/// A conversation: two addresses of one family.
fn ends(rng: &mut StdRng) -> (IpAddr, IpAddr) {
    loop {
        let mut remote = parse(pick(rng, &REMOTES));
        let mut local = if rng.random_bool(0.7) { pick(rng, &own()) } else { parse(pick(rng, &LOCALS)) };
        if rng.random_bool(0.03) {
            remote = parse(pick(rng, &STRANGE));
        }
        if rng.random_bool(0.03) {
            local = parse(pick(rng, &STRANGE));
        }
        if remote.is_ipv4() == local.is_ipv4() {
            return (remote, local);
        }
    }
}

/// A packet that goes from the remote to this side, or back.
pub(crate) fn random(rng: &mut StdRng, inwards: bool, first_id: u16) -> Vec<u8> {
    let (remote, local) = ends(rng);
    let (src, dst) = if inwards { (remote, local) } else { (local, remote) };
    let mut packet = sound(rng, src, dst, first_id, 0);
    match rng.random_range(0..20) {
        0 => packet.truncate(rng.random_range(0..=packet.len())),
        1 => packet.extend((0..rng.random_range(1..40)).map(|_| 0_u8)),
        2 => {
            for _ in 0..rng.random_range(1..4) {
                let at = rng.random_range(0..packet.len().min(64));
                packet[at] = rng.random();
            }
        }
        _ => {}
    }
    packet
}

/// What may follow an earlier packet: its answer, which goes the other way, or another fragment or segment.
/// True: it goes the other way.
pub(crate) fn sequel(rng: &mut StdRng, earlier: &[u8]) -> Option<(Vec<u8>, bool)> {
    if earlier.len() < 44 {
        return None;
    }
    let mut packet = earlier.to_vec();
    let is_v4 = packet[0] >> 4 == 4;
    let (src, dst, length, transport, protocol) = if is_v4 {
        (12, 16, 4, usize::from(packet[0] & 15) * 4, packet[9])
    } else {
        (8, 24, 16, 40, packet[6])
    };
    if packet.len() < transport + 20 {
        return None;
    }
    if is_v4 && packet[6] & 0x20 != 0 && rng.random_bool(0.7) {
        packet[7] = rng.random_range(3..9);
        return Some((packet, false));
    }
    if protocol == 44 && rng.random_bool(0.7) {
        packet[43] |= rng.random_range(3..9) << 3;
        return Some((packet, false));
    }
    let flags = pick(rng, &[0x12, 0x12, 0x10, 0x10, 0x02, 0x11, 0x14, 0x04]);
    if protocol == 6 {
        packet[transport + 13] = flags;
    }
    if rng.random_bool(0.2) {
        return Some((packet, false));
    }
    for at in 0..length {
        packet.swap(src + at, dst + at);
    }
    match protocol {
        6 | 17 | 132 => {
            packet.swap(transport, transport + 2);
            packet.swap(transport + 1, transport + 3);
        }
        1 if packet[transport] == 8 => packet[transport] = 0,
        58 if packet[transport] == 128 => packet[transport] = 129,
        _ => {}
    }
    Some((packet, true))
}

/// A well-formed packet. `depth`: how many ICMP errors it is quoted in.
fn sound(rng: &mut StdRng, src: IpAddr, dst: IpAddr, first_id: u16, depth: u32) -> Vec<u8> {
    let icmp = if src.is_ipv4() { 1 } else { 58 };
    let mut protocol = pick(rng, &PROTOCOLS);
    if (protocol == 1 || protocol == 58) && rng.random_bool(0.9) {
        protocol = icmp;
    }
    let mut payload = transport(rng, src, dst, protocol, icmp, first_id, depth);
    let fragment = rng.random_bool(0.2).then(|| Fragment {
        id: first_id + rng.random_range(0..4),
        offset: if rng.random_bool(0.5) { 0 } else { rng.random_range(1..200) },
        more: rng.random_bool(0.6),
    });
    if fragment.as_ref().is_some_and(|fragment| fragment.more) {
        payload.resize(payload.len().next_multiple_of(8), 0);
    }
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            v4(rng, [src.octets(), dst.octets()].concat(), protocol, fragment.as_ref(), &payload)
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            v6(rng, [src.octets(), dst.octets()].concat(), protocol, fragment.as_ref(), &payload)
        }
        _ => unreachable!("one family"),
    }
}

struct Fragment {
    id: u16,
    offset: u16,
    more: bool,
}

fn v4(
    rng: &mut StdRng,
    addrs: Vec<u8>,
    protocol: u8,
    fragment: Option<&Fragment>,
    payload: &[u8],
) -> Vec<u8> {
    let words = if rng.random_bool(0.15) { rng.random_range(1..=10) } else { 0_u8 };
    let total = u16::try_from(20 + usize::from(words) * 4 + payload.len()).unwrap();
    let (id, field) = fragment.map_or((0, 0x4000), |fragment| {
        (fragment.id, fragment.offset | if fragment.more { 0x2000 } else { 0 })
    });
    let mut packet = vec![0x45 + words, 0];
    packet.extend(total.to_be_bytes());
    packet.extend(id.to_be_bytes());
    packet.extend(field.to_be_bytes());
    packet.extend([64, protocol, 0, 0]);
    packet.extend(addrs);
    packet.extend(std::iter::repeat_n(1, usize::from(words) * 4));
    packet.extend(payload);
    packet
}

fn v6(
    rng: &mut StdRng,
    addrs: Vec<u8>,
    protocol: u8,
    fragment: Option<&Fragment>,
    payload: &[u8],
) -> Vec<u8> {
    let mut kinds: Vec<u8> = Vec::new();
    while kinds.len() < 10 && rng.random_bool(0.12) {
        kinds.push(pick(rng, &[0, 43, 51, 60]));
    }
    if fragment.is_some() {
        kinds.insert(rng.random_range(0..=kinds.len()), 44);
    }
    let mut headers: Vec<u8> = Vec::new();
    for (index, kind) in kinds.iter().enumerate() {
        let next = kinds.get(index + 1).copied().unwrap_or(protocol);
        let length = rng.random_range(0..3_u8);
        match (kind, fragment) {
            (44, Some(fragment)) => {
                headers.extend([next, 0]);
                headers.extend((fragment.offset << 3 | u16::from(fragment.more)).to_be_bytes());
                headers.extend([0, 0]);
                headers.extend(fragment.id.to_be_bytes());
            }
            (51, _) => {
                headers.extend([next, 1 + 2 * length]);
                headers.extend(vec![0; usize::from(1 + 2 * length + 2) * 4 - 2]);
            }
            _ => {
                let left = u8::from(*kind == 43 && rng.random_bool(0.2));
                headers.extend([next, length, 0, left]);
                headers.extend(vec![0; usize::from(length + 1) * 8 - 4]);
            }
        }
    }
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(u16::try_from(headers.len() + payload.len()).unwrap().to_be_bytes());
    packet.extend([kinds.first().copied().unwrap_or(protocol), 64]);
    packet.extend(addrs);
    packet.extend(headers);
    packet.extend(payload);
    packet
}

fn transport(
    rng: &mut StdRng,
    src: IpAddr,
    dst: IpAddr,
    protocol: u8,
    icmp: u8,
    first_id: u16,
    depth: u32,
) -> Vec<u8> {
    let ports = [pick(rng, &PORTS).to_be_bytes(), pick(rng, &PORTS).to_be_bytes()].concat();
    let mut bytes = Vec::new();
    match protocol {
        6 => {
            let flags = pick(rng, &[0x02, 0x12, 0x10, 0x18, 0x11, 0x04, 0x14, 0x01, 0x00, 0x06]);
            let words = pick(rng, &[5, 5, 5, 8, 15, 4]);
            bytes.extend(ports);
            bytes.extend([0; 8]);
            bytes.extend([words << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
            bytes.extend(std::iter::repeat_n(1, (usize::from(words) * 4).saturating_sub(20)));
        }
        17 => {
            bytes.extend(ports);
            bytes.extend([0, pick(rng, &[8, 8, 16, 7, 0]), 0, 0]);
        }
        132 => {
            bytes.extend(ports);
            bytes.extend([0; 8]);
        }
        _ if protocol == icmp => {
            let types: &[u8] =
                if icmp == 1 { &[8, 0, 3, 4, 5, 11, 12, 13, 14] } else { &[128, 129, 1, 2, 3, 4, 133, 140] };
            let kind = pick(rng, types);
            let quotes = if icmp == 1 { matches!(kind, 3 | 4 | 5 | 11 | 12) } else { kind <= 4 };
            bytes.extend([kind, 0, 0, 0]);
            bytes.extend(pick(rng, &PORTS).to_be_bytes());
            bytes.extend([0, 0]);
            if quotes && depth < 2 {
                // The quoted packet went the other way, or somewhere else.
                let (from, to) = if rng.random_bool(0.9) { (dst, src) } else { (src, dst) };
                let mut quoted = sound(rng, from, to, first_id, depth + 1);
                if rng.random_bool(0.2) {
                    quoted.truncate(rng.random_range(0..=quoted.len()));
                }
                bytes.extend(quoted);
            }
        }
        _ => {}
    }
    bytes.extend(vec![0xab; rng.random_range(0..24)]);
    bytes
}
