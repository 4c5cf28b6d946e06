//! The common packet, in a straight line: whole, without options or extension headers, TCP or UDP, between
//! addresses that the image itself knows, allowed by it, with no state to keep. Whatever is not exactly that is left to
//! [`crate::acl`], which would come to the same verdict: this is a short cut, not a second opinion.
//!
//! Each field is loaded by itself and in its own width, and numbers have 64 bits: that is what makes few BPF
//! instructions. One comparison with the packet's end covers all loads of a family.

use aya_ebpf::bindings::__sk_buff;
use ghostwire_ebpf_abi::event::{Direction, Reason};
use ghostwire_ebpf_abi::image::{self, flags, header};
use ghostwire_packet::{Family, V4, protocol};

use crate::image::{Ends, Image, Matrix};
use crate::maps::L3_OFFSET;
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
    let l3_offset = L3_OFFSET.load();
    // SAFETY: the context that the kernel passed; the verifier rewrites these reads.
    let (data, end, length) =
        unsafe { ((*context).data as usize, (*context).data_end as usize, u64::from((*context).len)) };
    let packet = Linear { start: data + l3_offset as usize, length: length - u64::from(l3_offset) };
    // IPv4 with TCP, or with UDP and some payload.
    if packet.start + 40 > end {
        return false;
    }
    let Some(image) = Image::current() else { return false };
    // SAFETY: forty bytes have been compared.
    let admitted = unsafe {
        match packet.load::<u8>(0) {
            0x45 => admits4(packet, image, direction),
            first if first >> 4 == 6 && packet.start + 60 <= end => admits6(packet, image, direction),
            _ => false,
        }
    };
    if admitted {
        verdict::count(direction, Reason::Policy as u32, packet.length as u32);
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
        if total > packet.length
            || fragment & 0x3fff_u16.to_be() != 0
            || image.flags & (flags::HAS_V4 | flags::SAMPLE_ACCEPTS) != flags::HAS_V4
        {
            return false;
        }
        let protocol: u8 = packet.load(9);
        if total < 40 || !sound(packet, 20, protocol, total - 20) {
            return false;
        }
        let (src, dst) = (u32::from_be(packet.load(12)), u32::from_be(packet.load(16)));
        let (remote, local) = crate::acl::roles(direction, src, dst);
        let remote = if u64::from(remote >> 16) == image.word(header::OVERLAY4) {
            image.cell(image::REMOTE4, remote as u16)
        } else {
            match image.net4(header::REMOTE_NET4, remote) {
                Some(cell) if V4::is_carried(remote.to_be()) => cell,
                _ => return false,
            }
        };
        let local = if u64::from(local) == image.word(header::OWN4) {
            image::LOCAL_SELF
        } else {
            match image.net4(header::LOCAL_NET4, local) {
                Some(cell) if cell != 0 && V4::is_carried(local.to_be()) => cell,
                _ => return false,
            }
        };
        allowed(packet, 20, image, direction, Ends { remote, local }, protocol)
    }
}

/// # Safety
///
/// Sixty bytes have been compared with the packet's end.
#[inline(always)]
unsafe fn admits6(packet: Linear, image: Image, direction: Direction) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        let payload = u64::from(u16::from_be(packet.load(4)));
        if payload + 40 > packet.length
            || image.flags & (flags::HAS_V6 | flags::SAMPLE_ACCEPTS) != flags::HAS_V6
        {
            return false;
        }
        let protocol: u8 = packet.load(6);
        if payload < 20 || !sound(packet, 40, protocol, payload) {
            return false;
        }
        let half = |at: usize| {
            let (high, low): (u32, u32) = (packet.load(at), packet.load(at + 4));
            u64::from(u32::from_be(high)) << 32 | u64::from(u32::from_be(low))
        };
        let (remote, local) = crate::acl::roles(direction, 8, 24);
        let low = half(remote + 8);
        if half(local) != image.word(header::OWN6_HI)
            || half(local + 8) != image.word(header::OWN6_LO)
            || half(remote) != image.word(header::OVERLAY6_HI)
            || low >> 16 != image.word(header::OVERLAY6_LO)
        {
            return false;
        }
        let remote = image.cell(image::REMOTE6, low as u16);
        allowed(packet, 40, image, direction, Ends { remote, local: image::LOCAL_SELF }, protocol)
    }
}

/// Whether the transport header is one that the parser accepts. `available`: bytes from it on, at least 20.
///
/// # Safety
///
/// Twenty bytes from `at` on have been compared with the packet's end.
#[inline(always)]
unsafe fn sound(packet: Linear, at: usize, protocol: u8, available: u64) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        match protocol {
            protocol::UDP => u16::from_be(packet.load(at + 4)) >= 8,
            protocol::TCP => {
                let header = u64::from(packet.load::<u8>(at + 12) >> 4) << 2;
                header >= 20 && header <= available
            }
            _ => false,
        }
    }
}

/// Whether the image allows it, and needs no state for it.
///
/// # Safety
///
/// As [`sound`].
#[inline(always)]
unsafe fn allowed(
    packet: Linear,
    at: usize,
    image: Image,
    direction: Direction,
    ends: Ends,
    protocol: u8,
) -> bool {
    let table = if protocol == protocol::TCP { image::TCP } else { image::UDP };
    // SAFETY: the caller's promise.
    let to: u16 = unsafe { packet.load(at + 2) };
    let to = image.cell(table, u16::from_be(to));
    match direction {
        Direction::Ingress => image.allows(Matrix::Inbound, ends, to),
        // Passing by policy takes both: else there is state to keep, or it is a reply.
        Direction::Egress => {
            // SAFETY: as above.
            let from: u16 = unsafe { packet.load(at) };
            let from = image.cell(table, u16::from_be(from));
            image.allows(Matrix::Outbound, ends, to) && image.allows(Matrix::Inbound, ends, from)
        }
    }
}
