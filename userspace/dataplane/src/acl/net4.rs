//! IPv4 networks as a table of three levels, see [`ghostwire_ebpf_abi::image::net4`].

use ghostwire_ebpf_abi::image::net4::{BLOCK, FIRST, POINTER};
use ipnet::{IpNet, Ipv4Net};

/// The entries of a table that will lie at word `start`, or none if there are no IPv4 networks or the table would reach
/// beyond word `limit`.
pub(super) fn build(nets: &[(IpNet, u32)], start: u32, limit: u32) -> Option<Vec<u64>> {
    let mut v4: Vec<(Ipv4Net, u32)> = nets
        .iter()
        .filter_map(|(net, cell)| match net {
            IpNet::V4(net) => Some((*net, *cell)),
            IpNet::V6(_) => None,
        })
        .collect();
    if nets.is_empty() {
        return None;
    }
    // Longer prefixes paint over shorter ones.
    v4.sort_by_key(|(net, _)| net.prefix_len());
    let mut table = Table { entries: vec![0; FIRST as usize], start, limit };
    for (net, cell) in v4 {
        table.paint(net, cell)?;
    }
    (start + table.len() <= limit).then_some(table.entries)
}

struct Table {
    entries: Vec<u64>,
    start: u32,
    limit: u32,
}

impl Table {
    fn len(&self) -> u32 {
        u32::try_from(self.entries.len()).unwrap_or(u32::MAX)
    }

    fn paint(&mut self, net: Ipv4Net, cell: u32) -> Option<()> {
        let addr = u32::from(net.network());
        let length = u32::from(net.prefix_len());
        let (mut level, mut bits) = (0, 16);
        let mut index = addr >> 16;
        while length > bits {
            level = self.block_behind(level + index)?;
            bits += 8;
            index = addr >> (32 - bits) & (BLOCK - 1);
        }
        let first = (level + index) as usize;
        self.entries.get_mut(first..first + (1 << (bits - length)))?.fill(u64::from(cell));
        Some(())
    }

    /// Index of the block that the entry at `index` points to; makes one that says what the entry said.
    fn block_behind(&mut self, index: u32) -> Option<u32> {
        let entry = *self.entries.get(index as usize)?;
        if entry & POINTER != 0 {
            return Some(u32::try_from(entry & !POINTER).ok()? - self.start);
        }
        let block = self.len();
        if self.start + block + BLOCK > self.limit {
            return None;
        }
        self.entries.extend(std::iter::repeat_n(entry, BLOCK as usize));
        *self.entries.get_mut(index as usize)? = POINTER | u64::from(self.start + block);
        Some(block)
    }
}

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "cells and offsets are the lower half of an entry")]
mod tests {
    use super::*;

    fn look_up(table: &[u64], start: u32, addr: [u8; 4]) -> u32 {
        let addr = u32::from_be_bytes(addr);
        let mut entry = table[(addr >> 16) as usize];
        for index in [addr >> 8 & 0xff, addr & 0xff] {
            if entry & POINTER != 0 {
                entry = table[(entry as u32 - start + index) as usize];
            }
        }
        entry as u32
    }

    #[test]
    fn the_longest_prefix_answers() {
        let nets: Vec<(IpNet, u32)> =
            [("10.1.2.3/32", 4), ("0.0.0.0/0", 1), ("10.1.0.0/16", 2), ("10.1.2.0/23", 3)]
                .map(|(net, cell)| (net.parse().unwrap(), cell))
                .to_vec();
        let table = build(&nets, 1000, 200_000).unwrap();
        for (addr, cell) in
            [([10, 1, 2, 3], 4), ([10, 1, 3, 3], 3), ([10, 1, 4, 3], 2), ([10, 2, 0, 0], 1), ([255; 4], 1)]
        {
            assert_eq!(look_up(&table, 1000, addr), cell, "{addr:?}");
        }
    }

    #[test]
    fn a_table_without_room_is_none() {
        let nets = [("10.1.2.3/32".parse().unwrap(), 4)];
        assert!(build(&nets, 0, FIRST + 2 * BLOCK).is_some());
        assert!(build(&nets, 0, FIRST + 2 * BLOCK - 1).is_none());
        assert!(build(&[], 0, u32::MAX).is_none());
    }
}
