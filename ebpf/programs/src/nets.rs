//! Addresses behind subnet routers, and behind this node where it routes subnets: tries, one pair per slot.

use core::ffi::c_void;
use core::ptr;

use aya_ebpf::helpers::bpf_map_lookup_elem;
use ghostwire_ebpf_abi::image::{NetKey, flags};
use ghostwire_packet::Family;

use crate::image::{Addressed, Ends, Image};
use crate::maps;

/// Longest match in one of two tries; 0: none. The address is passed in two registers, as it lies in memory.
#[inline(always)]
fn look_up<T>(tries: [&T; 2], slot: u64, first: u64, second: u64) -> u64 {
    #[repr(C, packed(4))]
    struct Key {
        prefix_len: u32,
        addr: [u64; 2],
    }
    const _: () = assert!(size_of::<Key>() == size_of::<NetKey>());
    let key = Key { prefix_len: 128, addr: [first, second] };
    let [zero, one] = tries;
    // Two calls, not one with a chosen map: the verifier wants to know the map of each call.
    // SAFETY: maps and key as the helper wants them; the value is a u32.
    unsafe {
        let found = if slot == 0 {
            bpf_map_lookup_elem(ptr::from_ref(zero).cast_mut().cast::<c_void>(), ptr::from_ref(&key).cast())
        } else {
            bpf_map_lookup_elem(ptr::from_ref(one).cast_mut().cast::<c_void>(), ptr::from_ref(&key).cast())
        };
        if found.is_null() { 0 } else { u64::from(*found.cast::<u32>()) }
    }
}

/// Functions of their own, so that the key is not on the stack of their callers.
#[inline(never)]
fn look_up_remote(slot: u64, first: u64, second: u64) -> u64 {
    look_up([&maps::REMOTE_NETS_0, &maps::REMOTE_NETS_1], slot, first, second)
}

/// As [`look_up_remote`].
#[inline(never)]
fn look_up_local(slot: u64, first: u64, second: u64) -> u64 {
    look_up([&maps::LOCAL_NETS_0, &maps::LOCAL_NETS_1], slot, first, second)
}

/// An address in two registers.
#[inline(always)]
fn registers<F: Family>(addr: F::Addr) -> (u64, u64) {
    let [a, b, c, d] = F::mapped(addr);
    // Little endian, as the target's name says: bpfel.
    (u64::from(a) | u64::from(b) << 32, u64::from(c) | u64::from(d) << 32)
}

/// Packed remote classes of an address; 0: unknown.
#[inline(always)]
pub fn remote<F: Addressed>(image: Image, addr: F::Addr) -> u32 {
    if !image.has(flags::REMOTE_NETS) {
        return 0;
    }
    if let Some(cell) = F::net(image, F::NETS[0], addr) {
        return cell;
    }
    let (first, second) = registers::<F>(addr);
    look_up_remote(image.net_slot(), first, second) as u32
}

/// Packed local classes of an address; 0: not local.
#[inline(always)]
pub fn local<F: Addressed>(image: Image, addr: F::Addr) -> u32 {
    if !image.has(flags::LOCAL_NETS) {
        return 0;
    }
    if let Some(cell) = F::net(image, F::NETS[1], addr) {
        return cell;
    }
    let (first, second) = registers::<F>(addr);
    look_up_local(image.net_slot(), first, second) as u32
}

/// Classes of both ends, whatever they are. `None`: one of them is unknown.
#[inline(always)]
pub fn ends<F: Addressed>(image: Image, remote_addr: F::Addr, local_addr: F::Addr) -> Option<Ends> {
    let remote = match F::overlay(image, remote_addr) {
        Some(cell) => cell,
        None => remote::<F>(image, remote_addr),
    };
    if remote == 0 {
        return None;
    }
    if F::is_own(image, local_addr) {
        return Some(Ends { remote, local: 0 });
    }
    match local::<F>(image, local_addr) {
        0 => None,
        local => Some(Ends { remote, local }),
    }
}
