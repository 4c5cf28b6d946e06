//! Filters on the wire ([`v1::Filter`](crate::v1::Filter)) and in programs ([`NodeFilter`]).
//!
//! On the wire, rules refer to address sets by index: many rules share them, and so do the decoded ones.

use std::collections::HashMap;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;

use ghostwire_policy::filter::{
    AddrSet, FilterRule, NodeFilter, PortRange, ProtocolSet, RuleOrigin, Section,
};
use thiserror::Error;

use crate::address::{AddressError, ip_from_wire, ip_to_wire};
use crate::v1;

/// Why a filter on the wire is not one.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FilterError {
    /// Generation 0 stands for no filter.
    #[error("the filter has no generation")]
    Generation,
    /// A bad address.
    #[error("address set {set}: {source}")]
    Address {
        /// Index of the set.
        set: usize,
        /// What is wrong with it.
        source: AddressError,
    },
    /// A range that ends before it starts, or in the other family.
    #[error("address set {set}: {first} to {last} is not a range")]
    Range {
        /// Index of the set.
        set: usize,
        /// First address.
        first: IpAddr,
        /// Last address.
        last: IpAddr,
    },
    /// Ranges out of order, overlapping, or adjacent.
    #[error("address set {set}: ranges are not sorted and apart")]
    Order {
        /// Index of the set.
        set: usize,
    },
    /// A rule refers to a set that is not there.
    #[error("rule {rule}: there is no address set {set}")]
    NoSuchSet {
        /// Index of the rule in its direction.
        rule: usize,
        /// The index it refers to.
        set: u32,
    },
    /// Not a range of ports.
    #[error("rule {rule}: {first} to {last} is not a range of ports")]
    Ports {
        /// Index of the rule in its direction.
        rule: usize,
        /// First port.
        first: u32,
        /// Last port.
        last: u32,
    },
    /// Not 256 bits.
    #[error("rule {rule}: the protocol set has {got} bytes, not 32")]
    Protocols {
        /// Index of the rule in its direction.
        rule: usize,
        /// Bytes received.
        got: usize,
    },
    /// Not a section of the policy.
    #[error("rule {rule}: unknown section {got}")]
    Section {
        /// Index of the rule in its direction.
        rule: usize,
        /// What was received.
        got: i32,
    },
}

/// A filter as it goes on the wire.
pub fn to_wire(filter: &NodeFilter, generation: NonZeroU32) -> v1::Filter {
    let mut sets = Sets::default();
    let inbound = filter.inbound.iter().map(|rule| rule_to_wire(rule, &mut sets)).collect();
    let outbound = filter.outbound.iter().map(|rule| rule_to_wire(rule, &mut sets)).collect();
    v1::Filter { generation: generation.get(), sets: sets.wire, inbound, outbound }
}

/// Address sets collected so far, each once.
#[derive(Default)]
struct Sets<'a> {
    wire: Vec<v1::AddressSet>,
    by_value: HashMap<&'a AddrSet, u32>,
}

impl<'a> Sets<'a> {
    fn index(&mut self, set: &'a AddrSet) -> u32 {
        let wire = &mut self.wire;
        *self.by_value.entry(set).or_insert_with(|| {
            wire.push(set_to_wire(set));
            u32::try_from(wire.len() - 1).unwrap_or(u32::MAX)
        })
    }
}

fn set_to_wire(set: &AddrSet) -> v1::AddressSet {
    let range =
        |first: IpAddr, last: IpAddr| v1::AddressRange { first: ip_to_wire(first), last: ip_to_wire(last) };
    let v4 = set.v4.iter().map(|&(first, last)| range(IpAddr::V4(first.into()), IpAddr::V4(last.into())));
    let v6 = set.v6.iter().map(|&(first, last)| range(IpAddr::V6(first.into()), IpAddr::V6(last.into())));
    v1::AddressSet { ranges: v4.chain(v6).collect() }
}

fn rule_to_wire<'a>(rule: &'a FilterRule, sets: &mut Sets<'a>) -> v1::FilterRule {
    let section = match rule.origin.section {
        Section::Acls => v1::RuleSection::Acls,
        Section::Grants => v1::RuleSection::Grants,
        Section::Default => v1::RuleSection::Default,
    };
    v1::FilterRule {
        src_set: sets.index(&rule.src),
        dst_set: sets.index(&rule.dst),
        ports: rule
            .ports
            .iter()
            .map(|range| v1::PortRange { first: range.first.into(), last: range.last.into() })
            .collect(),
        protocols: rule.protocols.0.iter().flat_map(|word| word.to_le_bytes()).collect(),
        section: section.into(),
        index: rule.origin.index,
        line: rule.origin.line,
    }
}

/// Reads a filter and its generation.
pub fn from_wire(filter: &v1::Filter) -> Result<(NonZeroU32, NodeFilter), FilterError> {
    let generation = NonZeroU32::new(filter.generation).ok_or(FilterError::Generation)?;
    let mut reader = Reader {
        sets: filter
            .sets
            .iter()
            .enumerate()
            .map(|(index, set)| set_from_wire(index, set).map(Arc::new))
            .collect::<Result<_, _>>()?,
        ports: HashMap::new(),
    };
    let inbound = reader.rules(&filter.inbound)?;
    let outbound = reader.rules(&filter.outbound)?;
    Ok((generation, NodeFilter { inbound, outbound }))
}

fn set_from_wire(set: usize, wire: &v1::AddressSet) -> Result<AddrSet, FilterError> {
    let mut result = AddrSet::default();
    for range in &wire.ranges {
        let address =
            |bytes: &[u8]| ip_from_wire(bytes).map_err(|source| FilterError::Address { set, source });
        let (first, last) = (address(&range.first)?, address(&range.last)?);
        let in_order = match (first, last) {
            (IpAddr::V4(first), IpAddr::V4(last)) if first <= last => {
                let after = result
                    .v4
                    .last()
                    .is_none_or(|&(_, end)| end.checked_add(1).is_some_and(|n| n < first.into()));
                result.v4.push((first.into(), last.into()));
                after && result.v6.is_empty()
            }
            (IpAddr::V6(first), IpAddr::V6(last)) if first <= last => {
                let after = result
                    .v6
                    .last()
                    .is_none_or(|&(_, end)| end.checked_add(1).is_some_and(|n| n < first.into()));
                result.v6.push((first.into(), last.into()));
                after
            }
            _ => return Err(FilterError::Range { set, first, last }),
        };
        if !in_order {
            return Err(FilterError::Order { set });
        }
    }
    Ok(result)
}

struct Reader<'a> {
    sets: Vec<Arc<AddrSet>>,
    ports: HashMap<&'a [v1::PortRange], Arc<[PortRange]>>,
}

impl<'a> Reader<'a> {
    fn rules(&mut self, rules: &'a [v1::FilterRule]) -> Result<Vec<FilterRule>, FilterError> {
        rules.iter().enumerate().map(|(index, rule)| self.rule(index, rule)).collect()
    }

    fn rule(&mut self, rule: usize, wire: &'a v1::FilterRule) -> Result<FilterRule, FilterError> {
        let section = match v1::RuleSection::try_from(wire.section) {
            Ok(v1::RuleSection::Acls) => Section::Acls,
            Ok(v1::RuleSection::Grants) => Section::Grants,
            Ok(v1::RuleSection::Default) => Section::Default,
            Ok(v1::RuleSection::Unspecified) | Err(_) => {
                return Err(FilterError::Section { rule, got: wire.section });
            }
        };
        Ok(FilterRule {
            src: self.set(rule, wire.src_set)?,
            dst: self.set(rule, wire.dst_set)?,
            protocols: protocols_from_wire(rule, &wire.protocols)?,
            ports: self.ports(rule, &wire.ports)?,
            origin: RuleOrigin { section, index: wire.index, line: wire.line },
        })
    }

    fn set(&self, rule: usize, index: u32) -> Result<Arc<AddrSet>, FilterError> {
        let set = usize::try_from(index).ok().and_then(|index| self.sets.get(index));
        set.cloned().ok_or(FilterError::NoSuchSet { rule, set: index })
    }

    fn ports(&mut self, rule: usize, wire: &'a [v1::PortRange]) -> Result<Arc<[PortRange]>, FilterError> {
        if let Some(known) = self.ports.get(wire) {
            return Ok(known.clone());
        }
        let range = |range: &v1::PortRange| match (u16::try_from(range.first), u16::try_from(range.last)) {
            (Ok(first), Ok(last)) if first <= last => Ok(PortRange { first, last }),
            _ => Err(FilterError::Ports { rule, first: range.first, last: range.last }),
        };
        let ports: Arc<[PortRange]> = wire.iter().map(range).collect::<Result<_, _>>()?;
        self.ports.insert(wire, ports.clone());
        Ok(ports)
    }
}

fn protocols_from_wire(rule: usize, bytes: &[u8]) -> Result<ProtocolSet, FilterError> {
    let mut words = [0; 4];
    if bytes.len() != 32 {
        return Err(FilterError::Protocols { rule, got: bytes.len() });
    }
    for (word, bytes) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
        *word = u64::from_le_bytes(*bytes);
    }
    Ok(ProtocolSet(words))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn addr_set() -> impl Strategy<Value = Arc<AddrSet>> {
        let v4 = proptest::collection::btree_set(any::<u32>(), 0..8);
        let v6 = proptest::collection::btree_set(any::<u128>(), 0..8);
        (v4, v6).prop_map(|(v4, v6)| {
            let v4: Vec<u32> = v4.into_iter().collect();
            let v6: Vec<u128> = v6.into_iter().collect();
            // Random numbers are hardly ever adjacent; those that are would make one range.
            let apart4 = v4.windows(2).all(|w| w[0] + 1 < w[1]);
            let apart6 = v6.windows(2).all(|w| w[0] + 1 < w[1]);
            Arc::new(AddrSet {
                v4: if apart4 { v4.chunks_exact(2).map(|c| (c[0], c[1])).collect() } else { vec![] },
                v6: if apart6 { v6.chunks_exact(2).map(|c| (c[0], c[1])).collect() } else { vec![] },
            })
        })
    }

    fn rule() -> impl Strategy<Value = FilterRule> {
        let ports = proptest::collection::vec((any::<u16>(), any::<u16>()), 0..4);
        let section = prop_oneof![Just(Section::Acls), Just(Section::Grants), Just(Section::Default)];
        (addr_set(), addr_set(), any::<[u64; 4]>(), ports, section, any::<u32>(), any::<u32>()).prop_map(
            |(src, dst, protocols, ports, section, index, line)| FilterRule {
                src,
                dst,
                protocols: ProtocolSet(protocols),
                ports: ports
                    .into_iter()
                    .map(|(a, b)| PortRange { first: a.min(b), last: a.max(b) })
                    .collect(),
                origin: RuleOrigin { section, index, line },
            },
        )
    }

    fn node_filter() -> impl Strategy<Value = NodeFilter> {
        let rules = || proptest::collection::vec(rule(), 0..6);
        (rules(), rules()).prop_map(|(inbound, outbound)| NodeFilter { inbound, outbound })
    }

    /// A change to a wire filter, by numbers.
    fn damage(filter: &mut v1::Filter, what: u8, place: usize, value: u32) {
        let set = Some(filter.sets.len()).filter(|n| *n > 0).map(|n| place % n);
        let rule = Some(filter.inbound.len()).filter(|n| *n > 0).map(|n| place % n);
        match (what % 7, set, rule) {
            (0, Some(set), _) => {
                filter.sets[set]
                    .ranges
                    .push(v1::AddressRange { first: vec![0; place % 20], last: vec![1; place % 20] });
            }
            (1, Some(set), _) => filter.sets[set].ranges.reverse(),
            (2, _, Some(rule)) => filter.inbound[rule].src_set = value,
            (3, _, Some(rule)) => filter.inbound[rule].protocols.truncate(place % 33),
            (4, _, Some(rule)) => filter.inbound[rule].ports.push(v1::PortRange { first: value, last: 80 }),
            (5, _, Some(rule)) => filter.inbound[rule].section = value.cast_signed(),
            _ => filter.generation = 0,
        }
    }

    proptest! {
        #[test]
        fn filters_survive_the_wire(filter in node_filter(), generation in 1u32..) {
            let generation = NonZeroU32::new(generation).unwrap();
            let wire = to_wire(&filter, generation);
            prop_assert_eq!(from_wire(&wire).unwrap(), (generation, filter));
        }

        #[test]
        fn a_damaged_filter_is_an_error_or_a_valid_filter(
            filter in node_filter(), what in any::<u8>(), place in any::<usize>(), value in any::<u32>(),
        ) {
            let mut wire = to_wire(&filter, NonZeroU32::MIN);
            damage(&mut wire, what, place, value);
            if let Ok((generation, filter)) = from_wire(&wire) {
                prop_assert_eq!(from_wire(&to_wire(&filter, generation)).unwrap().1, filter);
            }
        }
    }

    #[test]
    fn rules_share_sets() {
        let set = Arc::new(AddrSet { v4: vec![(1, 2)], v6: vec![] });
        let rule = FilterRule {
            src: set.clone(),
            dst: set.clone(),
            protocols: ProtocolSet::default(),
            ports: Arc::new([PortRange { first: 1, last: 2 }]),
            origin: RuleOrigin { section: Section::Acls, index: 0, line: 1 },
        };
        let filter = NodeFilter { inbound: vec![rule.clone(), rule.clone()], outbound: vec![rule] };
        let wire = to_wire(&filter, NonZeroU32::MIN);
        assert_eq!(wire.sets.len(), 1);
        let (_, read) = from_wire(&wire).unwrap();
        assert!(Arc::ptr_eq(&read.inbound[0].src, &read.outbound[0].dst));
        assert!(Arc::ptr_eq(&read.inbound[0].ports, &read.outbound[0].ports));
    }

    #[test]
    fn adjacent_overlapping_and_mixed_ranges_are_refused() {
        let range =
            |first: &[u8], last: &[u8]| v1::AddressRange { first: first.to_vec(), last: last.to_vec() };
        let filter = |ranges| v1::Filter {
            generation: 1,
            sets: vec![v1::AddressSet { ranges }],
            ..Default::default()
        };
        let read = |ranges| from_wire(&filter(ranges)).map(|_| ()).unwrap_err();
        let order = FilterError::Order { set: 0 };
        assert_eq!(
            read(vec![range(&[0, 0, 0, 1], &[0, 0, 0, 2]), range(&[0, 0, 0, 3], &[0, 0, 0, 4])]),
            order
        );
        assert_eq!(read(vec![range(&[0, 0, 0, 1], &[255; 4]), range(&[255; 4], &[255; 4])]), order);
        assert_eq!(read(vec![range(&[0; 16], &[0; 16]), range(&[0; 4], &[0; 4])]), order);
        assert!(matches!(read(vec![range(&[2; 4], &[1; 4])]), FilterError::Range { .. }));
        assert!(matches!(read(vec![range(&[2; 4], &[2; 16])]), FilterError::Range { .. }));
        assert!(matches!(read(vec![range(&[2; 5], &[2; 5])]), FilterError::Address { .. }));
    }
}
