//! Set algebra on [`AddrSet`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::filter::AddrSet;

/// An address as a number.
pub(crate) trait Bits: Copy + Ord {
    fn next(self) -> Option<Self>;
    fn previous(self) -> Option<Self>;
}

impl Bits for u32 {
    fn next(self) -> Option<Self> {
        self.checked_add(1)
    }
    fn previous(self) -> Option<Self> {
        self.checked_sub(1)
    }
}

impl Bits for u128 {
    fn next(self) -> Option<Self> {
        self.checked_add(1)
    }
    fn previous(self) -> Option<Self> {
        self.checked_sub(1)
    }
}

/// Sorts, drops inverted ranges, joins overlapping and adjacent ones.
fn normalise<T: Bits>(ranges: &mut Vec<(T, T)>) {
    ranges.retain(|&(first, last)| first <= last);
    ranges.sort_unstable();
    let mut kept = 0;
    for index in 0..ranges.len() {
        let (first, last) = ranges[index];
        let joins = kept > 0 && ranges[kept - 1].1.next().is_none_or(|next| first <= next);
        if joins {
            ranges[kept - 1].1 = ranges[kept - 1].1.max(last);
        } else {
            ranges[kept] = (first, last);
            kept += 1;
        }
    }
    ranges.truncate(kept);
}

fn contains<T: Bits>(ranges: &[(T, T)], value: T) -> bool {
    let after = ranges.partition_point(|&(first, _)| first <= value);
    after > 0 && ranges[after - 1].1 >= value
}

/// Whether one range touches the set.
fn touches<T: Bits>(ranges: &[(T, T)], range: (T, T)) -> bool {
    let candidate = ranges.partition_point(|&(_, last)| last < range.0);
    candidate < ranges.len() && ranges[candidate].0 <= range.1
}

fn intersect<T: Bits>(left: &[(T, T)], right: &[(T, T)]) -> Vec<(T, T)> {
    // The short list drives binary searches in the long one: one node's addresses against thousands.
    let (short, long) = if left.len() <= right.len() { (left, right) } else { (right, left) };
    let mut result = Vec::new();
    for &(first, last) in short {
        let mut index = long.partition_point(|range| range.1 < first);
        while index < long.len() && long[index].0 <= last {
            result.push((first.max(long[index].0), last.min(long[index].1)));
            index += 1;
        }
    }
    result
}

fn overlaps<T: Bits>(left: &[(T, T)], right: &[(T, T)]) -> bool {
    let (short, long) = if left.len() <= right.len() { (left, right) } else { (right, left) };
    short.iter().any(|&range| touches(long, range))
}

fn subtract<T: Bits>(from: &[(T, T)], what: &[(T, T)]) -> Vec<(T, T)> {
    let mut result = Vec::new();
    for &(first, last) in from {
        let mut start = Some(first);
        let mut index = what.partition_point(|range| range.1 < first);
        while let Some(at) = start {
            if at > last {
                start = None;
            } else if index < what.len() && what[index].0 <= last {
                let (hole_first, hole_last) = what[index];
                if let Some(before) = hole_first.previous()
                    && before >= at
                {
                    result.push((at, before));
                }
                start = hole_last.next().filter(|&next| next <= last);
                index += 1;
            } else {
                result.push((at, last));
                start = None;
            }
        }
    }
    result
}

impl AddrSet {
    /// No address.
    pub const EMPTY: Self = Self { v4: Vec::new(), v6: Vec::new() };

    /// Every address of both families.
    pub fn everything() -> Self {
        Self { v4: vec![(0, u32::MAX)], v6: vec![(0, u128::MAX)] }
    }

    /// From ranges in any order, overlapping or not.
    pub fn from_ranges(mut v4: Vec<(u32, u32)>, mut v6: Vec<(u128, u128)>) -> Self {
        normalise(&mut v4);
        normalise(&mut v6);
        Self { v4, v6 }
    }

    /// From prefixes; host bits are ignored.
    pub fn from_nets<I: IntoIterator<Item = IpNet>>(nets: I) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for net in nets {
            match net {
                IpNet::V4(net) => v4.push((u32::from(net.network()), u32::from(net.broadcast()))),
                IpNet::V6(net) => v6.push((u128::from(net.network()), u128::from(net.broadcast()))),
            }
        }
        Self::from_ranges(v4, v6)
    }

    /// From single addresses.
    pub fn from_addrs<I: IntoIterator<Item = IpAddr>>(addrs: I) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for addr in addrs {
            match addr {
                IpAddr::V4(addr) => v4.push((u32::from(addr), u32::from(addr))),
                IpAddr::V6(addr) => v6.push((u128::from(addr), u128::from(addr))),
            }
        }
        Self::from_ranges(v4, v6)
    }

    /// One inclusive range; both ends of the same family, else `None`.
    pub fn from_range(first: IpAddr, last: IpAddr) -> Option<Self> {
        match (first, last) {
            (IpAddr::V4(first), IpAddr::V4(last)) => {
                Some(Self::from_ranges(vec![(first.into(), last.into())], Vec::new()))
            }
            (IpAddr::V6(first), IpAddr::V6(last)) => {
                Some(Self::from_ranges(Vec::new(), vec![(first.into(), last.into())]))
            }
            _ => None,
        }
    }

    /// The union of any number of sets.
    pub fn union_of<'a, I: IntoIterator<Item = &'a AddrSet>>(sets: I) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for set in sets {
            v4.extend_from_slice(&set.v4);
            v6.extend_from_slice(&set.v6);
        }
        Self::from_ranges(v4, v6)
    }

    /// Whether there is no address in it.
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    /// Whether the address is in it.
    pub fn contains(&self, addr: IpAddr) -> bool {
        match addr {
            IpAddr::V4(addr) => contains(&self.v4, u32::from(addr)),
            IpAddr::V6(addr) => contains(&self.v6, u128::from(addr)),
        }
    }

    /// Addresses in either.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        Self::union_of([self, other])
    }

    /// Addresses in both.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        Self { v4: intersect(&self.v4, &other.v4), v6: intersect(&self.v6, &other.v6) }
    }

    /// Addresses in this one only.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        Self { v4: subtract(&self.v4, &other.v4), v6: subtract(&self.v6, &other.v6) }
    }

    /// Whether they share an address.
    pub fn overlaps(&self, other: &Self) -> bool {
        overlaps(&self.v4, &other.v4) || overlaps(&self.v6, &other.v6)
    }

    /// Whether the set has an address of the prefix.
    pub fn overlaps_net(&self, net: IpNet) -> bool {
        match net {
            IpNet::V4(net) => touches(&self.v4, (net.network().into(), net.broadcast().into())),
            IpNet::V6(net) => touches(&self.v6, (net.network().into(), net.broadcast().into())),
        }
    }

    /// Whether every address of the other set is in this one.
    pub fn is_superset(&self, other: &Self) -> bool {
        other.difference(self).is_empty()
    }

    /// The fewest prefixes that make up the set, in order.
    pub fn to_nets(&self) -> Vec<IpNet> {
        let mut nets = Vec::new();
        for &(first, last) in &self.v4 {
            nets.extend(v4_nets(first, last).map(IpNet::V4));
        }
        for &(first, last) in &self.v6 {
            nets.extend(v6_nets(first, last).map(IpNet::V6));
        }
        nets
    }
}

/// The fewest prefixes that make up an inclusive range.
pub(crate) fn v4_nets(first: u32, last: u32) -> impl Iterator<Item = Ipv4Net> {
    ipnet::Ipv4Subnets::new(Ipv4Addr::from(first), Ipv4Addr::from(last), 0)
}

/// The fewest prefixes that make up an inclusive range.
pub(crate) fn v6_nets(first: u128, last: u128) -> impl Iterator<Item = Ipv6Net> {
    ipnet::Ipv6Subnets::new(Ipv6Addr::from(first), Ipv6Addr::from(last), 0)
}

impl std::fmt::Display for AddrSet {
    /// Prefixes, ranges where they are shorter, comma-separated.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let v4 = self.v4.iter().map(|&(first, last)| {
            (IpAddr::V4(first.into()), IpAddr::V4(last.into()), v4_nets(first, last).map(IpNet::V4).collect())
        });
        let v6 = self.v6.iter().map(|&(first, last)| {
            (IpAddr::V6(first.into()), IpAddr::V6(last.into()), v6_nets(first, last).map(IpNet::V6).collect())
        });
        let mut comma = "";
        for (first, last, nets) in v4.chain(v6) {
            let nets: Vec<IpNet> = nets;
            f.write_str(comma)?;
            comma = ", ";
            match nets.as_slice() {
                _ if first == last => write!(f, "{first}")?,
                [net] => write!(f, "{net}")?,
                _ => write!(f, "{first}-{last}")?,
            }
        }
        Ok(())
    }
}
