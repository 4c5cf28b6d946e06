//! IPv6 networks as hash tables by length of prefix, see [`ghostwire_ebpf_abi::image::net6`].

use std::collections::BTreeMap;
use std::net::Ipv6Addr;

use ghostwire_ebpf_abi::image::net6::{ENTRY, LENGTH, LENGTHS, USED, places};
use ipnet::{IpNet, Ipv6Net};

/// Networks that are moved to make room for one, before another seed is tried.
const MOVES: usize = 500;
/// Seeds that are tried before the table grows.
const SEEDS: u64 = 8;

/// The words of a table that will lie at word `start`, or none if there are no networks, if there are more lengths of
/// prefix than a table has, or if it would reach beyond word `limit`.
pub(super) fn build(nets: &[(IpNet, u32)], start: u32, limit: u32) -> Option<Vec<u64>> {
    if nets.is_empty() {
        return None;
    }
    // Two cells for one network: the later counts, as in the trie.
    let mut lengths: BTreeMap<u8, BTreeMap<[u64; 2], u32>> = BTreeMap::new();
    for (net, cell) in nets {
        if let IpNet::V6(net) = net {
            lengths.entry(net.prefix_len()).or_default().insert(words(net.network().octets()), *cell);
        }
    }
    if lengths.len() > LENGTHS as usize {
        return None;
    }
    let mut table = vec![0; (LENGTHS * LENGTH) as usize];
    for (number, (length, nets)) in lengths.iter().rev().enumerate() {
        // Entries do not lie in two cache lines.
        let at = (start as usize + table.len()).next_multiple_of(ENTRY as usize);
        let room = usize::try_from(limit).ok()?.checked_sub(at)?;
        let Hashed { entries, seed } = Hashed::new(nets, room)?;
        let mask = words(Ipv6Net::new(Ipv6Addr::UNSPECIFIED, *length).ok()?.netmask().octets());
        let count = entries.len() as u64 / u64::from(ENTRY);
        let described = [mask[0], mask[1], at as u64 | count << 32, seed];
        let first = number * LENGTH as usize;
        table.get_mut(first..first + LENGTH as usize)?.copy_from_slice(&described);
        table.resize(at - start as usize, 0);
        table.extend(entries);
    }
    (start as usize + table.len() <= limit as usize).then_some(table)
}

/// Two words as they lie in a packet.
fn words(octets: [u8; 16]) -> [u64; 2] {
    let address = u128::from_le_bytes(octets);
    #[expect(clippy::cast_possible_truncation, reason = "the two halves")]
    [address as u64, (address >> 64) as u64]
}

/// Networks of one length.
struct Hashed {
    entries: Vec<u64>,
    seed: u64,
}

impl Hashed {
    /// None: there is no room.
    fn new(nets: &BTreeMap<[u64; 2], u32>, room: usize) -> Option<Self> {
        // A little more than half of the places stays empty: else cuckoo hashing often fails.
        let mut places = nets.len() * 9 / 4 + 2;
        while places * ENTRY as usize <= room {
            // Seeds are no secret: networks come from administrators.
            for seed in (1..=SEEDS).map(|number| number.wrapping_mul(0xa076_1d64_78bd_642f)) {
                if let Some(entries) = fill(nets, places, seed) {
                    return Some(Self { entries, seed });
                }
            }
            places += places / 4;
        }
        None
    }
}

/// The entries, or none if some network finds no place.
fn fill(nets: &BTreeMap<[u64; 2], u32>, count: usize, seed: u64) -> Option<Vec<u64>> {
    let mut entries: Vec<Option<([u64; 2], u32)>> = vec![None; count];
    let both = |net: [u64; 2]| {
        places(net[0], net[1], count as u64, seed).map(|place| usize::try_from(place).unwrap_or_default())
    };
    for (net, cell) in nets {
        let mut homeless = Some((*net, *cell));
        let mut place = both(*net)[0];
        for _ in 0..MOVES {
            homeless = std::mem::replace(&mut entries[place], homeless);
            let Some((evicted, _)) = homeless else { break };
            let [one, other] = both(evicted);
            place = if place == one { other } else { one };
        }
        if homeless.is_some() {
            return None;
        }
    }
    let words = entries.into_iter().flat_map(|entry| match entry {
        Some(([first, second], cell)) => [first, second, USED | u64::from(cell), 0],
        None => [0; ENTRY as usize],
    });
    Some(words.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look_up(table: &[u64], start: u32, addr: &str) -> u64 {
        let addr = words(addr.parse::<Ipv6Addr>().unwrap().octets());
        for length in table[..(LENGTHS * LENGTH) as usize].chunks(LENGTH as usize) {
            let &[first, second, entries, seed] = length else { unreachable!() };
            if entries == 0 {
                break;
            }
            let masked = [addr[0] & first, addr[1] & second];
            for place in places(masked[0], masked[1], entries >> 32, seed) {
                let entry = (entries & 0xffff_ffff) - u64::from(start) + place * 4;
                let entry = &table[usize::try_from(entry).unwrap()..];
                if entry[..2] == masked && entry[2] & USED != 0 {
                    return entry[2] & !USED;
                }
            }
        }
        0
    }

    fn nets(nets: &[(&str, u32)]) -> Vec<(IpNet, u32)> {
        nets.iter().map(|(net, cell)| (net.parse().unwrap(), *cell)).collect()
    }

    #[test]
    fn the_longest_prefix_answers() {
        let nets = nets(&[
            ("::/0", 1),
            ("2001:db8::/32", 2),
            ("2001:db8:0:1::/64", 3),
            ("2001:db8::1:0:0:0:5/128", 4),
            ("10.0.0.0/8", 5),
        ]);
        let table = build(&nets, 1001, 200_000).unwrap();
        for (addr, cell) in [
            ("2001:db8::1:0:0:0:5", 4),
            ("2001:db8:0:1::6", 3),
            ("2001:db8:0:2::6", 2),
            ("fd00::1", 1),
            ("::", 1),
            ("::ffff:10.0.0.1", 1),
        ] {
            assert_eq!(look_up(&table, 1001, addr), cell, "{addr}");
        }
        assert_eq!(look_up(&build(&nets[1..4], 7, 200_000).unwrap(), 7, "::"), 0);
    }

    #[test]
    fn many_networks_are_all_found() {
        let many: Vec<(IpNet, u32)> = (0..20_000_u32)
            .map(|number| {
                let addr = 0x2001_0db8_u128 << 96 | u128::from(number) << 64;
                (Ipv6Net::new(addr.into(), if number % 2 == 0 { 64 } else { 80 }).unwrap().into(), number + 1)
            })
            .collect();
        let table = build(&many, 300_000, 524_288).unwrap();
        for (net, cell) in &many {
            assert_eq!(look_up(&table, 300_000, &net.addr().to_string()), u64::from(*cell));
        }
    }

    #[test]
    fn what_has_no_room_or_too_many_lengths_is_none() {
        let one = nets(&[("2001:db8::/32", 1)]);
        let length = u32::try_from(build(&one, 0, 1000).unwrap().len()).unwrap();
        assert!(build(&one, 0, length).is_some());
        assert!(build(&one, 0, length - 1).is_none());
        let lengths: Vec<(IpNet, u32)> =
            (40..49).map(|length| (Ipv6Net::new(Ipv6Addr::UNSPECIFIED, length).unwrap().into(), 1)).collect();
        assert!(build(&lengths[1..], 0, 10_000).is_some());
        assert!(build(&lengths, 0, 10_000).is_none());
        assert!(build(&[], 0, 10_000).is_none());
    }
}
