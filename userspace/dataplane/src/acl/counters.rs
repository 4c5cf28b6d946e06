//! Counters, summed over all CPUs.

use std::net::{IpAddr, Ipv6Addr};

use aya::maps::{PerCpuArray, PerCpuHashMap};
use ghostwire_ebpf_abi::event::{Counter, Direction, Reason};

use super::{Acl, AclError, Wire};

type Raw = ghostwire_ebpf_abi::event::Counters;

/// Packets and bytes by direction and reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counters(Raw);

impl Counters {
    /// One counter.
    pub fn get(&self, direction: Direction, reason: Reason) -> Counter {
        self.0[direction as usize * Reason::COUNT as usize + reason as usize]
    }

    /// All packets of a direction.
    pub fn packets(&self, direction: Direction) -> u64 {
        let first = direction as usize * Reason::COUNT as usize;
        self.0[first..first + Reason::COUNT as usize].iter().map(|counter| counter.packets).sum()
    }
}

impl Acl {
    /// Packets and bytes by direction and reason, since the maps were created.
    pub fn counters(&self) -> Result<Counters, AclError> {
        let map: PerCpuArray<_, Wire<Raw>> = PerCpuArray::try_from(self.map("COUNTERS")?)?;
        let mut sum: Raw = [Counter::default(); 2 * Reason::COUNT as usize];
        for Wire(cpu) in &*map.get(&0, 0)? {
            for (total, counter) in sum.iter_mut().zip(cpu) {
                add(total, *counter);
            }
        }
        Ok(Counters(sum))
    }

    /// Dropped packets by the address on the far side; the least recently seen addresses are forgotten.
    pub fn drops_by_remote(&self) -> Result<Vec<(IpAddr, Counter)>, AclError> {
        let map: PerCpuHashMap<_, [u8; 16], Wire<Counter>> =
            PerCpuHashMap::try_from(self.map("REMOTE_DROPS")?)?;
        let mut drops = Vec::new();
        for entry in &map {
            // An entry may be forgotten while we walk.
            let Ok((addr, values)) = entry else { continue };
            let mut total = Counter::default();
            values.iter().for_each(|Wire(counter)| add(&mut total, *counter));
            drops.push((unmapped(addr), total));
        }
        Ok(drops)
    }
}

fn add(total: &mut Counter, counter: Counter) {
    total.packets += counter.packets;
    total.bytes += counter.bytes;
}

/// An address from its 16 bytes, where IPv4 is IPv4-mapped.
pub(super) fn unmapped(addr: [u8; 16]) -> IpAddr {
    Ipv6Addr::from(addr).to_canonical()
}
