//! The maps. Userspace finds them by these names.

use aya_ebpf::Global;
use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC};
use aya_ebpf::btf_maps::{Array, HashMap, PerCpuArray};
use aya_ebpf::macros::btf_map;
use ghostwire_ebpf_abi::steer::{
    Admitted, Config, Count, Counters, Limiter, MAX_ROWS, PORT_WORDS, Path, Remote4, Remote6, SLOTS, peers,
};

/// Bytes in front of the IP header of what `steer_out` sees: 0 on the device that it is made for. `BPF_PROG_TEST_RUN`
/// insists on an Ethernet header, so tests load with 14.
#[unsafe(no_mangle)]
pub static L3_OFFSET: Global<u32> = Global::new(0);

const MMAPABLE: usize = BPF_F_MMAPABLE as usize;
const SPARSE: usize = BPF_F_NO_PREALLOC as usize;

/// What does not change from packet to packet.
#[btf_map]
pub static STEER_CONFIG: Array<Config, 1> = Array::new();

/// One word for each peer, see [`ghostwire_ebpf_abi::steer::peers`].
#[btf_map]
pub static PEERS: Array<u64, { peers::COUNT as usize }, MMAPABLE> = Array::new();

/// The paths that words name.
#[btf_map]
pub static PATHS: Array<Path, { SLOTS as usize }> = Array::new();

/// Number of rows of [`TRAFFIC`], less one.
#[unsafe(no_mangle)]
pub static ROW_MASK: Global<u32> = Global::new(0);

/// What went by each slot, in rows: see [`ghostwire_ebpf_abi::steer::MAX_ROWS`].
#[btf_map]
pub static TRAFFIC: Array<Count, { (SLOTS * MAX_ROWS) as usize }, MMAPABLE> = Array::new();

/// Admitted IPv4 remotes.
#[btf_map]
pub static REV4: HashMap<Remote4, Admitted, { SLOTS as usize }, SPARSE> = HashMap::new();

/// Admitted IPv6 remotes.
#[btf_map]
pub static REV6: HashMap<Remote6, Admitted, { SLOTS as usize }, SPARSE> = HashMap::new();

/// Addresses of the uplinks, IPv4 as IPv4-mapped.
#[btf_map]
pub static LOCALS: HashMap<[u32; 4], u32, 1024, SPARSE> = HashMap::new();

/// Bitmap of ports that are treated like WireGuard's, but belong to sockets of their own.
#[btf_map]
pub static PORTS: Array<u64, { PORT_WORDS as usize }, MMAPABLE> = Array::new();

/// Packets and bytes by reason.
#[btf_map]
pub static STEER_COUNTERS: PerCpuArray<Counters, 1> = PerCpuArray::new();

/// How much reached the controller in this second.
#[btf_map]
pub static STEER_LIMITER: PerCpuArray<Limiter, 1> = PerCpuArray::new();
