//! Addresses behind subnet routers, and behind this node where it routes subnets: tries, one pair per slot.

use core::ffi::c_void;
use core::ptr;

use aya_ebpf::helpers::bpf_map_lookup_elem;
use ghostwire_ebpf_abi::image::{NetKey, flags};
use ghostwire_packet::Family;

use crate::image::{Addressed, Ends, Image};
use crate::maps;

/// Longest match in one of two tries; 0: none.
#[inline(always)]
fn look_up<T>(tries: [&T; 2], slot: u64, addr: [u32; 4]) -> u32 {
    #[repr(C)]
    struct Key {
        prefix_len: u32,
        addr: [u32; 4],
    }
    const _: () = assert!(size_of::<Key>() == size_of::<NetKey>());
    let key = Key { prefix_len: 128, addr };
    let [zero, one] = tries;
    // Two calls, not one with a chosen map: the verifier wants to know the map of each call.
    // SAFETY: maps and key as the helper wants them; the value is a u32.
    unsafe {
        let found = if slot == 0 {
            bpf_map_lookup_elem(ptr::from_ref(zero).cast_mut().cast::<c_void>(), ptr::from_ref(&key).cast())
        } else {
            bpf_map_lookup_elem(ptr::from_ref(one).cast_mut().cast::<c_void>(), ptr::from_ref(&key).cast())
        };
        if found.is_null() { 0 } else { *found.cast::<u32>() }
    }
}

/// Packed remote classes of an address; 0: unknown.
#[inline(always)]
pub fn remote<F: Family>(image: Image, addr: F::Addr) -> u32 {
    if !image.has(flags::REMOTE_NETS) {
        return 0;
    }
    look_up([&maps::REMOTE_NETS_0, &maps::REMOTE_NETS_1], image.net_slot(), F::mapped(addr))
}

/// Packed local classes of an address; 0: not local.
#[inline(always)]
pub fn local<F: Family>(image: Image, addr: F::Addr) -> u32 {
    if !image.has(flags::LOCAL_NETS) {
        return 0;
    }
    look_up([&maps::LOCAL_NETS_0, &maps::LOCAL_NETS_1], image.net_slot(), F::mapped(addr))
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
