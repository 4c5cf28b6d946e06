//! The arithmetic of address sets, against sets of single numbers.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ghostwire_policy::filter::AddrSet;
use proptest::prelude::*;

/// Ranges close to both ends of the address space, where overflow would show.
fn ranges() -> impl Strategy<Value = Vec<(u8, u8)>> {
    proptest::collection::vec((0_u8..64, 0_u8..8), 0..8).prop_map(|ranges| {
        ranges.into_iter().map(|(at, length)| (at, at.saturating_add(length).min(63))).collect()
    })
}

/// The lower half of 64 points is the bottom of the address space, the upper half its top.
fn v4(point: u8) -> u32 {
    if point < 32 { point.into() } else { u32::MAX - 63 + u32::from(point) }
}

fn v6(point: u8) -> u128 {
    if point < 32 { point.into() } else { u128::MAX - 63 + u128::from(point) }
}

fn set(ranges: &[(u8, u8)]) -> AddrSet {
    // A range from the bottom to the top would have a hole in the middle: split it.
    let parts: Vec<(u8, u8)> =
        ranges
            .iter()
            .flat_map(|&(first, last)| {
                if first < 32 && last >= 32 { vec![(first, 31), (32, last)] } else { vec![(first, last)] }
            })
            .collect();
    AddrSet::from_ranges(
        parts.iter().map(|&(first, last)| (v4(first), v4(last))).collect(),
        parts.iter().map(|&(first, last)| (v6(first), v6(last))).collect(),
    )
}

fn points(set: &AddrSet) -> BTreeSet<u8> {
    let both: Vec<u8> = (0..64)
        .filter(|&point| {
            let in_v4 = set.contains(IpAddr::V4(Ipv4Addr::from(v4(point))));
            let in_v6 = set.contains(IpAddr::V6(Ipv6Addr::from(v6(point))));
            assert_eq!(in_v4, in_v6);
            in_v4
        })
        .collect();
    both.into_iter().collect()
}

fn is_normal(set: &AddrSet) -> bool {
    set.v4.iter().all(|&(first, last)| first <= last)
        && set.v4.windows(2).all(|pair| u64::from(pair[0].1) + 1 < u64::from(pair[1].0))
        && set.v6.windows(2).all(|pair| pair[0].1 < u128::MAX && pair[0].1 + 1 < pair[1].0)
}

proptest! {
    #[test]
    fn algebra_agrees_with_sets_of_points(left in ranges(), right in ranges()) {
        let (a, b) = (set(&left), set(&right));
        let (p, q) = (points(&a), points(&b));
        for (result, wanted) in [
            (a.union(&b), &p | &q),
            (a.intersection(&b), &p & &q),
            (a.difference(&b), &p - &q),
        ] {
            prop_assert_eq!(points(&result), wanted);
            prop_assert!(is_normal(&result));
        }
        prop_assert_eq!(a.overlaps(&b), !p.is_disjoint(&q));
        prop_assert_eq!(a.is_superset(&b), p.is_superset(&q));
        prop_assert_eq!(a.is_empty(), p.is_empty());
        prop_assert_eq!(AddrSet::from_nets(a.to_nets()), a.clone());
        for net in b.to_nets() {
            prop_assert_eq!(a.overlaps_net(net), a.overlaps(&AddrSet::from_nets([net])));
        }
        let everything = AddrSet::everything();
        prop_assert_eq!(everything.difference(&everything.difference(&a)), a);
    }
}
