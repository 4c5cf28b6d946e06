//! Filling and reading the network tries of one slot.

use std::net::{IpAddr, Ipv6Addr};

use aya::Ebpf;
use aya::maps::MapData;
use aya::maps::lpm_trie::{Key, LpmTrie};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{AclError, Image};
use crate::bpf::BpfError;

type Trie<'a> = LpmTrie<&'a mut MapData, [u8; 16], u32>;

/// Replaces what the tries of a slot hold. The slot must not be in use.
pub(super) fn fill(ebpf: &mut Ebpf, slot: u64, image: &Image) -> Result<(), AclError> {
    let [remote, local] = names(slot);
    fill_one(ebpf, remote, &image.remote_nets)?;
    fill_one(ebpf, local, &image.local_nets)
}

/// Networks with packed cells.
pub(super) type Nets = Vec<(IpNet, u32)>;

/// Remote and local networks of a slot, in order.
pub(super) fn read(ebpf: &Ebpf, slot: u64) -> Result<(Nets, Nets), AclError> {
    let [remote, local] = names(slot);
    Ok((read_one(ebpf, remote)?, read_one(ebpf, local)?))
}

fn read_one(ebpf: &Ebpf, name: &'static str) -> Result<Nets, AclError> {
    let map = ebpf.map(name).ok_or(BpfError::Object { what: name })?;
    let trie: LpmTrie<&MapData, [u8; 16], u32> = LpmTrie::try_from(map)?;
    let mut nets = Nets::new();
    for entry in &trie {
        let (key, cell) = entry?;
        nets.push((net(&key), cell));
    }
    nets.sort_unstable();
    Ok(nets)
}

fn names(slot: u64) -> [&'static str; 2] {
    if slot == 0 { ["REMOTE_NETS_0", "LOCAL_NETS_0"] } else { ["REMOTE_NETS_1", "LOCAL_NETS_1"] }
}

fn fill_one(ebpf: &mut Ebpf, name: &'static str, nets: &[(IpNet, u32)]) -> Result<(), AclError> {
    let map = ebpf.map_mut(name).ok_or(BpfError::Object { what: name })?;
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

/// The network of a key that [`key`] made.
fn net(key: &Key<[u8; 16]>) -> IpNet {
    let (addr, length) = (Ipv6Addr::from(key.data()), key.prefix_len());
    let v4 = length
        .checked_sub(96)
        .and_then(|length| Ipv4Net::new(addr.to_ipv4_mapped()?, u8::try_from(length).ok()?).ok());
    // A trie has no prefix that is longer than an address.
    let v6 = || Ipv6Net::new_assert(addr, u8::try_from(length).unwrap_or(u8::MAX).min(128));
    v4.map_or_else(|| IpNet::V6(v6()), IpNet::V4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_read_as_it_was_written() {
        for text in
            ["0.0.0.0/0", "10.1.0.0/16", "192.0.2.1/32", "::/0", "2001:db8::/48", "fd00::1/128", "::/96"]
        {
            let written: IpNet = text.parse().unwrap();
            assert_eq!(net(&key(&written)), written);
        }
    }
}
