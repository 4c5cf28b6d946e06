//! The maps. Userspace finds them by these names; sizes that it may choose are its to override.

use core::ffi::c_void;
use core::ptr;

use aya_ebpf::Global;
use aya_ebpf::bindings::BPF_F_MMAPABLE;
use aya_ebpf::btf_maps::{Array, ArrayOfMaps, LpmTrie, LruHashMap, LruPerCpuHashMap, PerCpuArray, RingBuf};
use aya_ebpf::helpers::bpf_map_lookup_elem;
use aya_ebpf::macros::btf_map;
use ghostwire_ebpf_abi::config::Config;
use ghostwire_ebpf_abi::conntrack::{Bucket, Conn, ConnKey4, ConnKey6, Fragment, FragmentKey};
use ghostwire_ebpf_abi::event::{Counter, Counters, Event, Limiter};
use ghostwire_ebpf_abi::image;

/// Bytes in front of the IP header: 0 on the layer 3 devices that the programs are made for. `BPF_PROG_TEST_RUN`
/// insists on an Ethernet header, so tests load with 14.
#[unsafe(no_mangle)]
pub static L3_OFFSET: Global<u32> = Global::new(0);

/// Looks up the first element of an array, or of an array of maps; null: there is none. The key of these look-ups, which
/// the kernel inlines, is the same for all: a program that makes several keeps it on its stack once.
///
/// # Safety
///
/// `map` is a map with keys of four bytes.
#[inline(always)]
pub unsafe fn first(map: *const c_void, key: &FirstKey) -> *mut c_void {
    // SAFETY: the caller's promise.
    unsafe { bpf_map_lookup_elem(map.cast_mut(), ptr::from_ref(&key.0).cast()) }
}

/// The key of the first element.
pub struct FirstKey(u32);

impl FirstKey {
    /// Puts it on the stack.
    #[inline(always)]
    pub fn new() -> Self {
        Self(0)
    }
}

/// The words of an image.
pub type ImageWords = [u64; image::WORDS as usize];

/// Slot 0: the image in force, see [`ghostwire_ebpf_abi::image`].
#[btf_map]
pub static IMAGE: ArrayOfMaps<Array<ImageWords, 1, { BPF_F_MMAPABLE as usize }>, 1> = ArrayOfMaps::new();

/// Networks behind peers, slot 0. Key: `NetKey`, value: packed remote classes.
#[btf_map]
pub static REMOTE_NETS_0: LpmTrie<[u8; 16], u32, 65_536> = LpmTrie::new();

/// Networks behind peers, slot 1.
#[btf_map]
pub static REMOTE_NETS_1: LpmTrie<[u8; 16], u32, 65_536> = LpmTrie::new();

/// Networks that this node routes, slot 0. Key: `NetKey`, value: packed local classes.
#[btf_map]
pub static LOCAL_NETS_0: LpmTrie<[u8; 16], u32, 65_536> = LpmTrie::new();

/// Networks that this node routes, slot 1.
#[btf_map]
pub static LOCAL_NETS_1: LpmTrie<[u8; 16], u32, 65_536> = LpmTrie::new();

/// IPv4 connections.
#[btf_map]
pub static CONN4: LruHashMap<ConnKey4, Conn, 131_072> = LruHashMap::new();

/// IPv6 connections.
#[btf_map]
pub static CONN6: LruHashMap<ConnKey6, Conn, 65_536> = LruHashMap::new();

/// Datagrams whose first fragment was admitted.
#[btf_map]
pub static FRAGMENTS: LruHashMap<FragmentKey, Fragment, 8_192> = LruHashMap::new();

/// Token buckets for creating state, by source address.
#[btf_map]
pub static BUCKETS: LruHashMap<[u32; 4], Bucket, 16_384> = LruHashMap::new();

/// Knobs that are not policy.
#[btf_map]
pub static CONFIG: Array<Config, 1> = Array::new();

/// Packets and bytes by direction and reason.
#[btf_map]
pub static COUNTERS: PerCpuArray<Counters, 1> = PerCpuArray::new();

/// Dropped packets by the address on the far side.
#[btf_map]
pub static REMOTE_DROPS: LruPerCpuHashMap<[u32; 4], Counter, 4_096> = LruPerCpuHashMap::new();

/// Rate limit of the events.
#[btf_map]
pub static LIMITER: PerCpuArray<Limiter, 1> = PerCpuArray::new();

/// Events about single packets.
#[btf_map]
pub static EVENTS: RingBuf<Event, 262_144> = RingBuf::new();
