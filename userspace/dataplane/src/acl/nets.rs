//! Filling the network tries of one slot.

use std::net::IpAddr;

use aya::Ebpf;
use aya::maps::MapData;
use aya::maps::lpm_trie::{Key, LpmTrie};
use ipnet::IpNet;

use super::{AclError, Image};

type Trie<'a> = LpmTrie<&'a mut MapData, [u8; 16], u32>;

/// Replaces what the tries of a slot hold. The slot must not be in use.
pub(super) fn fill(ebpf: &mut Ebpf, slot: u64, image: &Image) -> Result<(), AclError> {
    let [remote, local] =
        if slot == 0 { ["REMOTE_NETS_0", "LOCAL_NETS_0"] } else { ["REMOTE_NETS_1", "LOCAL_NETS_1"] };
    fill_one(ebpf, remote, &image.remote_nets)?;
    fill_one(ebpf, local, &image.local_nets)
}

fn fill_one(ebpf: &mut Ebpf, name: &'static str, nets: &[(IpNet, u32)]) -> Result<(), AclError> {
    let map = ebpf.map_mut(name).ok_or(AclError::Object { what: name })?;
    let mut trie: Trie<'_> = LpmTrie::try_from(map)?;
    let limit = CAPACITY;
    if nets.len() > limit {
        return Err(AclError::TooManyNets { count: nets.len(), limit });
    }
    let old: Vec<Key<[u8; 16]>> = trie.keys().collect::<Result<_, _>>()?;
    for key in &old {
        trie.remove(key)?;
    }
    for (net, cell) in nets {
        trie.insert(&key(net), cell, 0)?;
    }
    Ok(())
}

/// As the programs declare the tries.
const CAPACITY: usize = 65_536;

/// IPv4 networks are stored IPv4-mapped.
fn key(net: &IpNet) -> Key<[u8; 16]> {
    let (bits, addr) = match net.network() {
        IpAddr::V4(addr) => (96, addr.to_ipv6_mapped()),
        IpAddr::V6(addr) => (0, addr),
    };
    Key::new(bits + u32::from(net.prefix_len()), addr.octets())
}
