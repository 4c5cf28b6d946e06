//! The common packet, in a straight line: whole, without options or extension headers, TCP or UDP, between
//! addresses that the image itself knows, allowed by it, with no state to keep. Whatever is not exactly that is left to
//! [`crate::acl`], which would come to the same verdict: this is a short cut, not a second opinion.
//!
//! Each field is loaded by itself and in its own width, and numbers have 64 bits: that is what makes few BPF
//! instructions. One comparison with the packet's end covers all loads of a family.

use aya_ebpf::bindings::__sk_buff;
use ghostwire_ebpf_abi::event::{Direction, Reason};
use ghostwire_ebpf_abi::image::{self, flags, header};
use ghostwire_packet::{Family, V4, V6, protocol};

use crate::image::{Addressed, Ends, Image, Matrix};
use crate::maps::{FirstKey, L3_OFFSET};
use crate::verdict;

/// The packet's linear part.
#[derive(Clone, Copy)]
struct Linear {
    start: usize,
    /// Bytes from the IP header on, linear or not.
    length: u64,
}

impl Linear {
    /// Loads a field.
    ///
    /// # Safety
    ///
    /// The packet's end has been compared with the end of the field.
    #[inline(always)]
    unsafe fn load<T: Copy>(self, offset: usize) -> T {
        // SAFETY: the caller's promise, which the verifier checks. Fields are aligned relative to the header, and the
        // header to four bytes (NET_IP_ALIGN).
        unsafe { *((self.start + offset) as *const T) }
    }
}

/// Whether the packet is common and passes by policy; then it has been counted.
#[inline(always)]
pub fn passes(context: *mut __sk_buff, direction: Direction) -> bool {
    // The image first: over its look-up only the context has to be kept.
    let key = FirstKey::new();
    let Some(image) = Image::unchecked(&key) else { return false };
    let l3_offset = L3_OFFSET.load();
    // SAFETY: the context that the kernel passed; the verifier rewrites these reads.
    let (data, end, length) =
        unsafe { ((*context).data as usize, (*context).data_end as usize, u64::from((*context).len)) };
    let packet = Linear { start: data + l3_offset as usize, length: length - u64::from(l3_offset) };
    // IPv4 with TCP, or with UDP and some payload.
    if packet.start + 40 > end {
        return false;
    }
    // SAFETY: forty bytes have been compared.
    let admitted = unsafe {
        match packet.load::<u8>(0) {
            0x45 => admits4(packet, image, direction),
            first if first >> 4 == 6 && packet.start + 60 <= end => admits6(packet, image, direction),
            _ => false,
        }
    };
    if admitted {
        verdict::count(&key, direction, Reason::Policy as u32, packet.length);
    }
    admitted
}

/// # Safety
///
/// Forty bytes have been compared with the packet's end.
#[inline(always)]
unsafe fn admits4(packet: Linear, image: Image, direction: Direction) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        let total = u64::from(u16::from_be(packet.load(2)));
        let fragment: u16 = packet.load(6);
        // From the smallest total length that is common to the packet's own: one comparison for both.
        if total.wrapping_sub(40) > packet.length.wrapping_sub(40) || fragment & 0x3fff_u16.to_be() != 0 {
            return false;
        }
        let Some(table) = service_table(packet, 20, packet.load(9), total - 20) else { return false };
        let (remote, local) = crate::acl::roles(direction, 12, 16);
        let overlay_be: u16 = packet.load(remote);
        let local_be: u32 = packet.load(local);
        if u64::from(overlay_be) == image.word(header::SHORT_OVERLAY4)
            && u64::from(local_be) == image.word(header::SHORT_OWN4)
        {
            let host = u16::from_be(packet.load(remote + 2));
            return allowed(ports(packet, 20), direction, |matrix, port| {
                let remote = image.class(image::REMOTE4, host, matrix);
                image.allows_self(matrix, remote, image.class(table, port, matrix))
            });
        }
        let addresses_be = u64::from(packet.load::<u32>(remote)) | u64::from(local_be) << 32;
        let ports_be: u32 = packet.load(20);
        match direction {
            Direction::Ingress => routed4_ingress(image.address(), addresses_be, ports_be, table),
            Direction::Egress => routed4_egress(image.address(), addresses_be, ports_be, table),
        }
    }
}

/// One of the addresses is behind a router: functions of their own, so that the registers they need are not saved for
/// every packet. Remote and local address, source and destination port as they lie in memory, the first one lower.
#[inline(never)]
fn routed4_ingress(image: *const u64, addresses_be: u64, ports_be: u32, table: u32) -> bool {
    routed4(Image::at(image), addresses_be, ports_be, table, Direction::Ingress)
}

/// As [`routed4_ingress`].
#[inline(never)]
fn routed4_egress(image: *const u64, addresses_be: u64, ports_be: u32, table: u32) -> bool {
    routed4(Image::at(image), addresses_be, ports_be, table, Direction::Egress)
}

#[inline(always)]
fn routed4(image: Image, addresses_be: u64, ports_be: u32, table: u32, direction: Direction) -> bool {
    let (remote_be, local_be) = (addresses_be as u32, (addresses_be >> 32) as u32);
    let (from, to) = (u16::from_be(ports_be as u16), u16::from_be((ports_be >> 16) as u16));
    let ports = match direction {
        Direction::Ingress => (from, to),
        // By way of the stack, because it is used late: before Linux 6.17 or so the verifier does not know that a number
        // whose two bytes were swapped has two bytes, while the compiler does and drops what would show it.
        Direction::Egress => (core::hint::black_box(from), to),
    };
    if u64::from(local_be) == image.word(header::SHORT_OWN4) {
        let Some(remote) = remote_net4(image, remote_be) else { return false };
        return allowed(ports, direction, |matrix, port| {
            image.allows_self(matrix, u64::from(matrix.class(remote)), image.class(table, port, matrix))
        });
    }
    let Some(ends) = ends4(image, remote_be, local_be) else { return false };
    allowed(ports, direction, |matrix, port| image.allows(matrix, ends, image.cell(table, port)))
}

/// Classes of an address behind a peer.
#[inline(always)]
fn remote_net4(image: Image, addr_be: u32) -> Option<u32> {
    image.net4(header::REMOTE_NET4, u32::from_be(addr_be)).filter(|_| V4::is_carried(addr_be))
}

/// Classes of a peer's address and of one behind this node.
#[inline(always)]
fn ends4(image: Image, remote_be: u32, local_be: u32) -> Option<Ends> {
    let image = image.checked()?;
    if image.flags & (flags::HAS_V4 | flags::SAMPLE_ACCEPTS) != flags::HAS_V4 {
        return None;
    }
    let remote = u32::from_be(remote_be);
    let remote = if u64::from(remote >> 16) == image.word(header::OVERLAY4) {
        image.cell(image::REMOTE4, remote as u16)
    } else {
        remote_net4(image, remote_be)?
    };
    let local = image.net4(header::LOCAL_NET4, u32::from_be(local_be))?;
    (local != 0 && V4::is_carried(local_be)).then_some(Ends { remote, local })
}

/// # Safety
///
/// Sixty bytes have been compared with the packet's end.
#[inline(always)]
unsafe fn admits6(packet: Linear, image: Image, direction: Direction) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        let payload = u64::from(u16::from_be(packet.load(4)));
        if payload < 20 || payload + 40 > packet.length {
            return false;
        }
        let Some(table) = service_table(packet, 40, packet.load(6), payload) else { return false };
        let (remote, local) = crate::acl::roles(direction, 8, 24);
        let low =
            u64::from(packet.load::<u32>(remote + 8)) | u64::from(packet.load::<u16>(remote + 12)) << 32;
        if low != image.word(header::SHORT_OVERLAY6_LO)
            || half(packet, remote) != image.word(header::SHORT_OVERLAY6_HI)
            || half(packet, local) != image.word(header::SHORT_OWN6_HI)
            || half(packet, local + 8) != image.word(header::SHORT_OWN6_LO)
        {
            return match direction {
                Direction::Ingress => routed6_ingress(image.address(), packet.start, table),
                Direction::Egress => routed6_egress(image.address(), packet.start, table),
            };
        }
        let host = u16::from_be(packet.load(remote + 14));
        allowed(ports(packet, 40), direction, |matrix, port| {
            let remote = image.class(image::REMOTE6, host, matrix);
            image.allows_self(matrix, remote, image.class(table, port, matrix))
        })
    }
}

/// Eight bytes as they lie in the packet, which is aligned to four: the earlier byte is the lower one.
///
/// # Safety
///
/// They have been compared with the packet's end.
#[inline(always)]
unsafe fn half(packet: Linear, at: usize) -> u64 {
    // SAFETY: the caller's promise.
    unsafe { u64::from(packet.load::<u32>(at)) | u64::from(packet.load::<u32>(at + 4)) << 32 }
}

/// As [`routed4_ingress`], for a packet whose first sixty bytes have been compared with its end.
#[inline(never)]
fn routed6_ingress(image: *const u64, start: usize, table: u32) -> bool {
    routed6(Image::at(image), Linear { start, length: 0 }, table, Direction::Ingress).unwrap_or(false)
}

/// As [`routed6_ingress`].
#[inline(never)]
fn routed6_egress(image: *const u64, start: usize, table: u32) -> bool {
    routed6(Image::at(image), Linear { start, length: 0 }, table, Direction::Egress).unwrap_or(false)
}

#[inline(always)]
fn routed6(image: Image, packet: Linear, table: u32, direction: Direction) -> Option<bool> {
    let image = image.checked()?;
    if image.flags & (flags::HAS_V6 | flags::SAMPLE_ACCEPTS) != flags::HAS_V6 {
        return None;
    }
    let (remote, local) = crate::acl::roles(direction, 8, 24);
    // SAFETY: sixty bytes have been compared.
    let (remote, local, ports) = unsafe {
        let words = |at: usize| [0, 4, 8, 12].map(|offset| packet.load::<u32>(at + offset));
        (words(remote), words(local), ports(packet, 40))
    };
    // By way of the stack, as in [`routed4`].
    let ports = (core::hint::black_box(ports.0), core::hint::black_box(ports.1));
    let remote = match V6::overlay(image, remote) {
        Some(cell) => cell,
        None => V6::net(image, header::REMOTE_NET6, remote).filter(|_| V6::is_carried(remote))?,
    };
    let local = if V6::is_own(image, local) {
        image::LOCAL_SELF
    } else {
        let cell = V6::net(image, header::LOCAL_NET6, local)?;
        if cell == 0 || !V6::is_carried(local) {
            return None;
        }
        cell
    };
    Some(allowed(ports, direction, |matrix, port| {
        image.allows(matrix, Ends { remote, local }, image.cell(table, port))
    }))
}

/// The table of the packet's services, if its transport header at `at` is one that the parser accepts. `available`:
/// bytes from it on, at least 20.
///
/// # Safety
///
/// Twenty bytes from `at` on have been compared with the packet's end.
#[inline(always)]
unsafe fn service_table(packet: Linear, at: usize, protocol: u8, available: u64) -> Option<u32> {
    // SAFETY: the caller's promise.
    unsafe {
        match protocol {
            protocol::UDP if u16::from_be(packet.load(at + 4)) >= 8 => Some(image::UDP),
            protocol::TCP => {
                let header = u64::from(packet.load::<u8>(at + 12) >> 4) << 2;
                (header >= 20 && header <= available).then_some(image::TCP)
            }
            _ => None,
        }
    }
}

/// Source and destination port.
///
/// # Safety
///
/// As [`service_table`].
#[inline(always)]
unsafe fn ports(packet: Linear, at: usize) -> (u16, u16) {
    // SAFETY: the caller's promise.
    unsafe { (u16::from_be(packet.load(at)), u16::from_be(packet.load(at + 2))) }
}

/// Whether the image allows it, and needs no state for it. `allows` is asked about a matrix and the port that stands for
/// the service there.
#[inline(always)]
fn allowed((from, to): (u16, u16), direction: Direction, allows: impl Fn(Matrix, u16) -> bool) -> bool {
    match direction {
        Direction::Ingress => allows(Matrix::Inbound, to),
        // Passing by policy takes both: else there is state to keep, or it is a reply.
        Direction::Egress => allows(Matrix::Outbound, to) && allows(Matrix::Inbound, from),
    }
}
