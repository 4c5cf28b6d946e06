//! Aggregates: datagrams of one flow that receive offload, or a sender on this host, has put together. All are as long as
//! the first one but the last, which may be shorter. The checks have WireGuard's flow, so that one aggregate may hold both.

use aya_ebpf::bindings::{__sk_buff, BPF_F_INGRESS};
use aya_ebpf::helpers::generated::bpf_clone_redirect;
use ghostwire_ebpf_abi::steer::COPY;
use ghostwire_packet::Reader;
use ghostwire_packet::payload::{self, Payload};

use crate::skb::{Skb, load};

/// Something of WireGuard's is in it.
const WIREGUARD: u32 = 1;
/// Something of the controller's is in it.
const CONTROL: u32 = 2;

/// The kernel puts together no more than 64 (`UDP_GRO_CNT_MAX`) and lets send no more than 128 (`UDP_MAX_SEGMENTS`, Linux
/// 6.9) at once. What lies behind is not looked at.
const MOST: u32 = 128;

/// Who has to get a packet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Concern {
    WireGuard,
    Controller,
    Both,
    Nobody,
}

/// Who has to get the datagram, or the datagrams, with `length` bytes of payload `at` bytes from the IP header on, which
/// is at `l3`.
#[inline(always)]
pub fn concern(context: *mut __sk_buff, skb: &Skb, l3: u32, at: u32, length: u32) -> Concern {
    // SAFETY: the context that the kernel passed.
    let found = if unsafe { (*context).gso_size } != 0 {
        look_through(context, l3 + at, length)
    } else {
        skb.near(at).map_or(0, |head| mark(head, length))
    };
    match found & (WIREGUARD | CONTROL) {
        0 => Concern::Nobody,
        WIREGUARD => Concern::WireGuard,
        CONTROL => Concern::Controller,
        _ => Concern::Both,
    }
}

#[inline(always)]
fn mark(head: [u32; 4], length: u32) -> u32 {
    match payload::classify(head, length) {
        Payload::WireGuard => WIREGUARD,
        Payload::Stun | Payload::Carried => CONTROL,
        Payload::Other => 0,
    }
}

/// What is in an aggregate with `length` bytes of payload at offset `at`. A global function: the verifier looks at the
/// loop once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn look_through(context: *mut __sk_buff, at: u32, length: u32) -> u32 {
    // SAFETY: the context that the kernel passed.
    let segment = unsafe { (*context).gso_size };
    let (mut found, mut offset) = (0, 0);
    for _ in 0..MOST {
        if offset >= length {
            break;
        }
        let rest = length - offset;
        let size = if rest < segment { rest } else { segment };
        // A datagram without so many bytes is nobody's.
        if let Some(head) = load(context, at + offset) {
            found |= mark(head, size);
        }
        offset += segment;
    }
    found
}

/// Lets a copy of a packet come in at its uplink once more, where it is known by its mark: for the controller, while the
/// packet itself goes to WireGuard. Both get all of it. WireGuard drops what is not its own, and so does the
/// controller, which gets the datagrams one by one.
#[inline(always)]
pub fn copy(context: *mut __sk_buff) {
    // SAFETY: the context that the kernel passed. Should there be no memory, there is no copy.
    unsafe {
        (*context).tc_index = COPY;
        bpf_clone_redirect(context, (*context).ifindex, u64::from(BPF_F_INGRESS));
        (*context).tc_index = 0;
    }
}

/// Whether a packet is such a copy. It is none any more afterwards.
#[inline(always)]
pub fn was_copied(context: *mut __sk_buff) -> bool {
    // SAFETY: the context that the kernel passed.
    unsafe {
        let is_copy = (*context).tc_index == COPY;
        if is_copy {
            (*context).tc_index = 0;
        }
        is_copy
    }
}
