//! One direction of an image: classes of services, remotes and this side, and the verdicts between them.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::sync::Arc;

use ghostwire_ebpf_abi::image as abi;

use super::CompileError;
use super::partition::{BitSet, Classes, Effort, Interval, bits};
use crate::filter::{AddrSet, FilterRule, PortRange, ProtocolSet};
use crate::service;

/// Most memory for the verdicts of single lists of remotes, in 64-bit words.
const MAX_WORK_WORDS: usize = 32 << 20;

/// Most pairs of a list of local networks and a class of them, which are kept in memory.
const MAX_LOCAL_PAIRS: usize = 16 << 20;

/// Which end of a rule is this side.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// Inbound: destinations are here.
    Destination,
    /// Outbound: sources are here.
    Source,
}

/// Intervals of one family, each with a class.
pub(super) struct Families {
    pub(super) v4: Vec<Interval<u32>>,
    pub(super) v6: Vec<Interval<u128>>,
}

/// One direction, compiled.
pub(super) struct Direction {
    /// Service classes: TCP, UDP, SCTP by port.
    pub(super) ports: [Vec<Interval<u32>>; 3],
    /// Service classes by protocol.
    pub(super) protocols: Vec<u32>,
    /// Remote classes, from 1.
    pub(super) remotes: Families,
    /// The remote class that may do nothing.
    pub(super) remote_denied: u32,
    pub(super) remote_count: usize,
    /// Local classes, from 1; 0 is the node itself.
    pub(super) locals: Families,
    /// The local class that may do nothing.
    pub(super) local_denied: u32,
    pub(super) local_count: usize,
    /// Words of a row.
    pub(super) stride: usize,
    /// The rows: remote class × local class.
    pub(super) rows: Vec<u64>,
}

/// The distinct things that rules are made of, by number.
struct Parts<'f> {
    remotes: Vec<&'f AddrSet>,
    locals: Vec<&'f AddrSet>,
    services: Vec<(ProtocolSet, &'f [PortRange])>,
    /// Remote, local, service.
    rules: Vec<(u32, u32, u32)>,
}

/// Numbers distinct values.
struct Numbers<K> {
    known: HashMap<K, u32>,
    values: Vec<K>,
}

impl<K: Hash + Eq + Copy> Numbers<K> {
    fn new() -> Self {
        Self { known: HashMap::new(), values: Vec::new() }
    }

    fn number(&mut self, value: K) -> u32 {
        let next = u32::try_from(self.values.len()).unwrap_or(u32::MAX);
        *self.known.entry(value).or_insert_with(|| {
            self.values.push(value);
            next
        })
    }
}

/// Numbers sets by value; sets that are shared are hashed once.
struct SetNumbers<'f> {
    by_pointer: HashMap<*const AddrSet, u32>,
    by_value: Numbers<&'f AddrSet>,
}

impl<'f> SetNumbers<'f> {
    fn new() -> Self {
        Self { by_pointer: HashMap::new(), by_value: Numbers::new() }
    }

    fn number(&mut self, set: &'f Arc<AddrSet>) -> u32 {
        let Self { by_pointer, by_value } = self;
        *by_pointer.entry(Arc::as_ptr(set)).or_insert_with(|| by_value.number(set))
    }
}

fn parts(rules: &[FilterRule], here: Side) -> Parts<'_> {
    let (mut remotes, mut locals) = (SetNumbers::new(), SetNumbers::new());
    let mut services = Numbers::new();
    let mut triples: Vec<(u32, u32, u32)> = Vec::with_capacity(rules.len());
    for rule in rules {
        let (remote, local) = match here {
            Side::Destination => (&rule.src, &rule.dst),
            Side::Source => (&rule.dst, &rule.src),
        };
        let service = services.number((rule.protocols, &*rule.ports));
        triples.push((remotes.number(remote), locals.number(local), service));
    }
    triples.sort_unstable();
    triples.dedup();
    Parts {
        remotes: remotes.by_value.values,
        locals: locals.by_value.values,
        services: services.values,
        rules: triples,
    }
}

/// Compiles one direction. `own` is the node itself; `known` the remotes that are known; `routed` what else is on
/// this side in either direction.
pub(super) fn direction(
    rules: &[FilterRule],
    here: Side,
    own: &AddrSet,
    known: &AddrSet,
    routed: &AddrSet,
) -> Result<Direction, CompileError> {
    let parts = parts(rules, here);
    let services = services(&parts)?;
    let locals = locals(&parts.locals, own, routed)?;
    let verdicts = Verdicts::new(&parts, &services, &locals)?;
    let mut remotes = Classes::new("addresses", parts.remotes.len());
    let v4 = remotes.sweep(ranges(&parts.remotes, |set| &set.v4))?;
    let v6 = remotes.sweep(ranges(&parts.remotes, |set| &set.v6))?;
    // A class of both families has different verdicts in each, so rows are looked up by class and family.
    let mut rows = Rows::new(&verdicts);
    let mut v4: Vec<Interval<u32>> = rows.rename(&v4, &remotes.signatures, Family::V4)?;
    let mut v6: Vec<Interval<u128>> = rows.rename(&v6, &remotes.signatures, Family::V6)?;
    clip(&mut v4, &known.v4);
    clip(&mut v6, &known.v6);
    let (order, remote_count, matrix) = rows.finish();
    for interval in &mut v4 {
        interval.class = order[interval.class as usize];
    }
    for interval in &mut v6 {
        interval.class = order[interval.class as usize];
    }
    Ok(Direction {
        ports: services.ports,
        protocols: services.protocols,
        remotes: Families { v4, v6 },
        remote_denied: order[0],
        remote_count,
        locals: locals.families,
        local_denied: locals.denied,
        local_count: locals.count,
        stride: verdicts.stride,
        rows: matrix,
    })
}

fn ranges<'s, T: Copy + 's>(
    sets: &'s [&'s AddrSet],
    family: impl Fn(&'s AddrSet) -> &'s Vec<(T, T)> + 's,
) -> impl Iterator<Item = (usize, (T, T))> + 's {
    sets.iter()
        .enumerate()
        .flat_map(move |(number, set)| family(set).iter().map(move |&range| (number, range)))
}

/// Cuts intervals down to a set.
fn clip<T: Copy + Ord>(intervals: &mut Vec<Interval<T>>, set: &[(T, T)]) {
    let mut clipped = Vec::with_capacity(intervals.len());
    for &Interval { first, last, class } in intervals.iter() {
        let start = set.partition_point(|range| range.1 < first);
        for &(from, to) in set[start..].iter().take_while(|range| range.0 <= last) {
            clipped.push(Interval { first: first.max(from), last: last.min(to), class });
        }
    }
    *intervals = clipped;
}

struct Services {
    ports: [Vec<Interval<u32>>; 3],
    protocols: Vec<u32>,
    /// Service → its classes.
    masks: Vec<BitSet>,
    stride: usize,
}

/// The same ports as disjoint ranges in order: a sweep takes a range that begins inside another of its own set
/// for that one's end.
fn merged(ports: &[PortRange]) -> Vec<(u32, u32)> {
    let mut ranges: Vec<(u32, u32)> =
        ports.iter().map(|range| (u32::from(range.first), u32::from(range.last))).collect();
    ranges.sort_unstable();
    ranges.dedup_by(|next, kept| {
        let touches = next.0 <= kept.1.saturating_add(1);
        if touches {
            kept.1 = kept.1.max(next.1);
        }
        touches
    });
    ranges
}

fn services(parts: &Parts<'_>) -> Result<Services, CompileError> {
    let mut classes = Classes::new("ports", parts.services.len());
    let mut table = |protocol: u8| {
        let with = parts.services.iter().enumerate().filter(move |(_, service)| service.0.contains(protocol));
        classes.sweep(
            with.flat_map(|(number, (_, ports))| merged(ports).into_iter().map(move |range| (number, range))),
        )
    };
    let ports = [table(service::TCP)?, table(service::UDP)?, table(service::SCTP)?];
    let mut protocols = Vec::with_capacity(256);
    for protocol in 0..=u8::MAX {
        let applies = |&(set, ports): &(ProtocolSet, &[PortRange])| {
            let by_ports = match protocol {
                service::ICMP | service::ICMPV6 => true,
                _ => ports.contains(&PortRange::ALL),
            };
            set.contains(protocol) && by_ports
        };
        let with = parts.services.iter().enumerate().filter(|(_, service)| applies(service));
        // The protocol is the one point that its services contain.
        let point =
            classes.sweep(with.map(|(number, _)| (number, (u32::from(protocol), u32::from(protocol)))))?;
        protocols.push(point.first().map_or(0, |interval| interval.class));
    }
    let count = classes.signatures.len();
    check_count("services", count)?;
    let stride = count.div_ceil(64);
    let mut masks: Vec<BitSet> = vec![vec![0; stride].into(); parts.services.len()];
    for (class, signature) in classes.signatures.iter().enumerate() {
        for service in bits(signature) {
            masks[service][class / 64] |= 1 << (class % 64);
        }
    }
    Ok(Services { ports, protocols, masks, stride })
}

fn check_count(what: &'static str, count: usize) -> Result<(), CompileError> {
    const LIMIT: usize = 1 << 16;
    if count > LIMIT {
        return Err(CompileError::TooManyClasses { what, count, limit: LIMIT });
    }
    Ok(())
}

#[derive(Clone, Copy)]
enum Family {
    V4,
    V6,
}

struct Locals {
    families: Families,
    denied: u32,
    count: usize,
    /// Local set → its classes, per family.
    classes: [Vec<Vec<u32>>; 2],
}

fn locals(sets: &[&AddrSet], own: &AddrSet, routed: &AddrSet) -> Result<Locals, CompileError> {
    let nets: Vec<AddrSet> = sets.iter().map(|set| set.difference(own)).collect();
    let nets: Vec<&AddrSet> = nets.iter().collect();
    let mut classes = [vec![Vec::new(); sets.len()], vec![Vec::new(); sets.len()]];
    let own_v4 = AddrSet { v4: own.v4.clone(), v6: Vec::new() };
    let own_v6 = AddrSet { v4: Vec::new(), v6: own.v6.clone() };
    for (number, set) in sets.iter().enumerate() {
        for (family, own) in [&own_v4, &own_v6].into_iter().enumerate() {
            if set.overlaps(own) {
                classes[family][number].push(0);
            }
        }
    }
    // Families apart: no flow has one end in each.
    let mut of_v4 = Classes::new("addresses", sets.len());
    let mut v4 = of_v4.sweep(ranges(&nets, |set| &set.v4))?;
    let mut of_v6 = Classes::new("addresses", sets.len());
    let mut v6 = of_v6.sweep(ranges(&nets, |set| &set.v6))?;
    // 0: self, 1: nothing allowed, then the classes of IPv4 and of IPv6.
    let first_v4 = 1;
    let first_v6 = first_v4 + u32::try_from(of_v4.signatures.len()).unwrap_or(u32::MAX) - 1;
    for interval in &mut v4 {
        interval.class += first_v4;
    }
    for interval in &mut v6 {
        interval.class += first_v6;
    }
    let mut pairs = 0;
    for (family, (known, first)) in [(&of_v4, first_v4), (&of_v6, first_v6)].into_iter().enumerate() {
        for (class, signature) in known.signatures.iter().enumerate().skip(1) {
            let class = u32::try_from(class).unwrap_or(u32::MAX) + first;
            for set in bits(signature) {
                classes[family][set].push(class);
                pairs += 1;
                if pairs > MAX_LOCAL_PAIRS {
                    return Err(CompileError::TooIntricate { what: "local networks", sets: sets.len() });
                }
            }
        }
    }
    // A node that routes nothing needs its own row only. One that routes something in the other direction needs
    // the row that allows nothing.
    let nets = of_v4.signatures.len() + of_v6.signatures.len() - 2;
    let count = if routed.is_empty() { 1 } else { 2 + nets };
    check_count("local networks", count)?;
    Ok(Locals { families: Families { v4, v6 }, denied: 1, count, classes })
}

/// What each list of remotes may do: per family a block of rows, one row for each local class.
struct Verdicts {
    stride: usize,
    block: usize,
    by_set: [HashMap<u32, BitSet>; 2],
}

impl Verdicts {
    fn new(parts: &Parts<'_>, services: &Services, locals: &Locals) -> Result<Self, CompileError> {
        let stride = services.stride;
        let block = stride * locals.count;
        if block.saturating_mul(parts.remotes.len()) > MAX_WORK_WORDS {
            return Err(CompileError::TooIntricate { what: "addresses", sets: parts.remotes.len() });
        }
        let mut effort = Effort::new("rules", parts.rules.len());
        let mut by_set = [HashMap::new(), HashMap::new()];
        for &(remote, local, service) in &parts.rules {
            for (family, by_set) in by_set.iter_mut().enumerate() {
                let classes = &locals.classes[family][local as usize];
                if classes.is_empty() {
                    continue;
                }
                effort.spend(classes.len().saturating_mul(stride))?;
                let rows: &mut BitSet = by_set.entry(remote).or_insert_with(|| vec![0; block].into());
                for &class in classes {
                    let row = &mut rows[class as usize * stride..][..stride];
                    for (word, mask) in row.iter_mut().zip(&services.masks[service as usize]) {
                        *word |= mask;
                    }
                }
            }
        }
        Ok(Self { stride, block, by_set })
    }

    /// The block of a class of remotes.
    fn block(&self, signature: &[u64], family: Family, effort: &mut Effort) -> Result<BitSet, CompileError> {
        let by_set = &self.by_set[family as usize];
        let mut block: BitSet = vec![0; self.block].into();
        for set in bits(signature) {
            let Some(rows) = u32::try_from(set).ok().and_then(|set| by_set.get(&set)) else { continue };
            effort.spend(self.block)?;
            for (word, verdicts) in block.iter_mut().zip(rows) {
                *word |= verdicts;
            }
        }
        Ok(block)
    }
}

/// Distinct blocks of rows. Number 0 is the block that allows nothing.
struct Rows<'v> {
    verdicts: &'v Verdicts,
    effort: Effort,
    blocks: BTreeMap<BitSet, u32>,
}

impl<'v> Rows<'v> {
    fn new(verdicts: &'v Verdicts) -> Self {
        let nothing: BitSet = vec![0; verdicts.block].into();
        let effort = Effort::new("addresses", verdicts.by_set.iter().map(HashMap::len).sum());
        Self { verdicts, effort, blocks: BTreeMap::from([(nothing, 0)]) }
    }

    /// Replaces classes by the numbers of their blocks: classes with equal verdicts become one.
    fn rename<T: Copy>(
        &mut self,
        intervals: &[Interval<T>],
        signatures: &[BitSet],
        family: Family,
    ) -> Result<Vec<Interval<T>>, CompileError> {
        let mut numbers: Vec<Option<u32>> = vec![None; signatures.len()];
        let mut renamed = Vec::with_capacity(intervals.len());
        for &Interval { first, last, class } in intervals {
            let index = class as usize;
            let number = match numbers[index] {
                Some(number) => number,
                None => self.number(&signatures[index], family)?,
            };
            numbers[index] = Some(number);
            renamed.push(Interval { first, last, class: number });
        }
        Ok(renamed)
    }

    fn number(&mut self, signature: &[u64], family: Family) -> Result<u32, CompileError> {
        let block = self.verdicts.block(signature, family, &mut self.effort)?;
        let next = u32::try_from(self.blocks.len()).unwrap_or(u32::MAX);
        let number = *self.blocks.entry(block).or_insert(next);
        // What no image holds need not be worked out to its end.
        let words = self.blocks.len().saturating_mul(self.verdicts.block) as u64;
        let room = u64::from(abi::WORDS) - u64::from(abi::MATRICES);
        if words > room { Err(CompileError::TooLarge { words, room }) } else { Ok(number) }
    }

    /// The final class of each number, the number of classes, and the matrix. Classes are in the order of their
    /// verdicts, so that a peer which joins an existing class changes no other number.
    fn finish(self) -> (Vec<u32>, usize, Vec<u64>) {
        let count = self.blocks.len() + 1;
        let mut order = vec![0; self.blocks.len()];
        let mut matrix = vec![0; self.verdicts.block];
        for (class, (block, number)) in (1..).zip(self.blocks) {
            order[number as usize] = class;
            matrix.extend_from_slice(&block);
        }
        (order, count, matrix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_one_rule_that_overlap_or_touch_are_one() {
        let range = |first, last| PortRange { first, last };
        let ports = [range(40_000, 65_535), range(81, 40_000), range(10, 20), range(21, 21), range(12, 15)];
        assert_eq!(merged(&ports), [(10, 21), (81, 65_535)]);
    }
}
