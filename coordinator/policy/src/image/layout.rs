//! Classes and verdicts → words and trie entries.

use ghostwire_ebpf_abi::image as abi;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::matrix::Direction;
use super::partition::Interval;
use super::{ClassImage, CompileError, MAX_NETS, NodeContext};
use crate::addr_set::{Bits, v4_nets, v6_nets};
use crate::filter::AddrSet;

/// Length of the overlay's IPv4 prefix: the rest of an address is an index.
pub(super) const OVERLAY4_BITS: u8 = 16;
/// Length of the overlay's IPv6 prefix.
pub(super) const OVERLAY6_BITS: u8 = 112;

pub(super) struct Layout<'a> {
    pub(super) context: &'a NodeContext,
    pub(super) inbound: &'a Direction,
    pub(super) outbound: &'a Direction,
    /// The remotes that are known.
    pub(super) known: &'a AddrSet,
    /// What is on this side besides the node itself.
    pub(super) routed: &'a AddrSet,
}

/// An interval with a packed cell.
type Cells<T> = Vec<Interval<T>>;

fn at(index: u32) -> usize {
    index as usize
}

fn put(words: &mut [u64], table: u32, index: u32, value: u32) {
    let (word, upper) = abi::cell(table, index);
    words[at(word)] |= u64::from(value) << if upper { 32 } else { 0 };
}

/// A class in 16 bits; counts were checked before.
fn class(class: u32) -> u16 {
    u16::try_from(class).unwrap_or_default()
}

impl Layout<'_> {
    pub(super) fn build(self) -> Result<ClassImage, CompileError> {
        let (inbound, outbound) = (self.inbound, self.outbound);
        for direction in [inbound, outbound] {
            let (count, limit) = (direction.remote_count, 1 << 16);
            if count > limit {
                return Err(CompileError::TooManyClasses { what: "remotes", count, limit });
            }
        }
        let used = u64::from(abi::MATRICES) + inbound.rows.len() as u64 + outbound.rows.len() as u64;
        if used > u64::from(abi::WORDS) {
            let base = u64::from(abi::MATRICES);
            return Err(CompileError::TooLarge { words: used - base, room: u64::from(abi::WORDS) - base });
        }
        let mut words = vec![0; at(abi::MATRICES)];
        self.services(&mut words);
        let remote_nets = self.remotes(&mut words)?;
        let local_nets = self.locals()?;
        self.header(&mut words, used, !remote_nets.is_empty(), !local_nets.is_empty());
        words.extend_from_slice(&inbound.rows);
        words.extend_from_slice(&outbound.rows);
        Ok(ClassImage { words, remote_nets, local_nets })
    }

    fn header(&self, words: &mut [u64], used: u64, remote_nets: bool, local_nets: bool) {
        use abi::{flags, header};
        let context = self.context;
        let mut set = |index: u32, value: u64| words[at(index)] = value;
        let mut bits = 0;
        set(header::MAGIC, abi::MAGIC);
        set(header::GENERATION, u64::from(context.generation));
        set(header::NET_SLOT, u64::from(context.net_slot));
        if context.own4.is_some() || context.overlay4.is_some() {
            bits |= flags::HAS_V4;
            set(header::OWN4, context.own4.map_or(0, |addr| u64::from(u32::from(addr))));
            // Without a dense range, a value that no address has.
            let overlay = context.overlay4.map(|net| u64::from(u32::from(net.network()) >> OVERLAY4_BITS));
            set(header::OVERLAY4, overlay.unwrap_or(u64::MAX));
        }
        if context.own6.is_some() || context.overlay6.is_some() {
            bits |= flags::HAS_V6;
            let (high, low) = halves(context.own6.map_or(0, u128::from));
            set(header::OWN6_HI, high);
            set(header::OWN6_LO, low);
            let overlay = context.overlay6.map(|net| halves(u128::from(net.network())));
            set(header::OVERLAY6_HI, overlay.map_or(u64::MAX, |(high, _)| high));
            set(header::OVERLAY6_LO, overlay.map_or(u64::MAX, |(_, low)| low >> 16));
        }
        for (wanted, flag) in [
            (context.shadow, flags::SHADOW),
            (remote_nets, flags::REMOTE_NETS),
            (local_nets, flags::LOCAL_NETS),
        ] {
            if wanted {
                bits |= flag;
            }
        }
        set(header::FLAGS, bits);
        let out_base = u64::from(abi::MATRICES) + self.inbound.rows.len() as u64;
        set(header::IN_BASE, u64::from(abi::MATRICES));
        set(header::IN_STRIDE, self.inbound.stride as u64);
        set(header::IN_LOCALS, self.inbound.local_count as u64);
        set(header::OUT_BASE, out_base);
        set(header::OUT_STRIDE, self.outbound.stride as u64);
        set(header::OUT_LOCALS, self.outbound.local_count as u64);
        set(header::USED, used);
    }

    fn services(&self, words: &mut [u64]) {
        for (index, table) in [abi::TCP, abi::UDP, abi::SCTP].into_iter().enumerate() {
            let halves = [(&self.inbound.ports[index], 0), (&self.outbound.ports[index], 16)];
            for (intervals, shift) in halves {
                for interval in intervals {
                    for port in interval.first..=interval.last {
                        put(words, table, port, u32::from(class(interval.class)) << shift);
                    }
                }
            }
        }
        let protocols = self.inbound.protocols.iter().zip(&self.outbound.protocols);
        for (protocol, (&inbound, &outbound)) in (0..).zip(protocols) {
            put(words, abi::PROTO, protocol, abi::pack(class(inbound), class(outbound)));
        }
    }

    fn remotes(&self, words: &mut [u64]) -> Result<Vec<(IpNet, u32)>, CompileError> {
        let denied = abi::pack(class(self.inbound.remote_denied), class(self.outbound.remote_denied));
        let v4 = join(&self.known.v4, &self.inbound.remotes.v4, &self.outbound.remotes.v4, denied);
        let v6 = join(&self.known.v6, &self.inbound.remotes.v6, &self.outbound.remotes.v6, denied);
        let dense4 = self.context.overlay4.map(|net| (u32::from(net.network()), u32::from(net.broadcast())));
        let dense6 =
            self.context.overlay6.map(|net| (u128::from(net.network()), u128::from(net.broadcast())));
        let (inside, v4) = split(v4, dense4);
        for interval in inside {
            for addr in interval.first..=interval.last {
                put(words, abi::REMOTE4, addr & 0xffff, interval.class);
            }
        }
        let (inside, v6) = split(v6, dense6);
        for interval in inside {
            for addr in interval.first..=interval.last {
                put(words, abi::REMOTE6, u32::try_from(addr & 0xffff).unwrap_or_default(), interval.class);
            }
        }
        nets("remote", v4, v6)
    }

    fn locals(&self) -> Result<Vec<(IpNet, u32)>, CompileError> {
        let denied = abi::pack(class(self.inbound.local_denied), class(self.outbound.local_denied));
        let v4 = join(&self.routed.v4, &self.inbound.locals.v4, &self.outbound.locals.v4, denied);
        let v6 = join(&self.routed.v6, &self.inbound.locals.v6, &self.outbound.locals.v6, denied);
        nets("local", v4, v6)
    }
}

fn halves(addr: u128) -> (u64, u64) {
    let low = u64::try_from(addr & u128::from(u64::MAX)).unwrap_or_default();
    (u64::try_from(addr >> 64).unwrap_or_default(), low)
}

/// The cells of a set of addresses, from the classes of both directions. Where a direction names no class, its
/// denied one stands: 0 would mean an unknown remote, or the node itself.
fn join<T: Bits>(set: &[(T, T)], inbound: &[Interval<T>], outbound: &[Interval<T>], denied: u32) -> Cells<T> {
    let mut cells: Cells<T> = Vec::new();
    let (mut inbound, mut outbound) = (inbound, outbound);
    for &(first, last) in set {
        let mut from = Some(first);
        while let Some(at) = from.filter(|&at| at <= last) {
            inbound = &inbound[inbound.partition_point(|interval| interval.last < at)..];
            outbound = &outbound[outbound.partition_point(|interval| interval.last < at)..];
            let (in_class, in_end) = class_at(inbound, at);
            let (out_class, out_end) = class_at(outbound, at);
            let end = [in_end, out_end].into_iter().flatten().fold(last, T::min);
            let cell = abi::pack(
                class(in_class.unwrap_or_else(|| abi::inbound(denied))),
                class(out_class.unwrap_or_else(|| abi::outbound(denied))),
            );
            match cells.last_mut() {
                Some(previous) if previous.class == cell && previous.last.next() == Some(at) => {
                    previous.last = end;
                }
                _ => cells.push(Interval { first: at, last: end, class: cell }),
            }
            from = end.next();
        }
    }
    cells
}

/// The class at a point, and the last point up to which it holds.
fn class_at<T: Bits>(intervals: &[Interval<T>], at: T) -> (Option<u32>, Option<T>) {
    match intervals.first() {
        Some(interval) if interval.first <= at => (Some(interval.class), Some(interval.last)),
        Some(interval) => (None, interval.first.previous()),
        None => (None, None),
    }
}

/// Inside the dense range, and outside. What lies outside may run across the range, whose addresses are never
/// looked up there: that makes fewer prefixes.
fn split<T: Bits>(cells: Cells<T>, dense: Option<(T, T)>) -> (Cells<T>, Cells<T>) {
    let Some((low, high)) = dense else { return (Vec::new(), cells) };
    let (mut inside, mut outside) = (Vec::new(), Cells::new());
    for cell in cells {
        let (first, last) = (cell.first.max(low), cell.last.min(high));
        if first <= last {
            inside.push(Interval { first, last, ..cell });
        }
        if cell.first < low
            && let Some(before) = low.previous()
        {
            outside.push(Interval { last: cell.last.min(before), ..cell });
        }
        if cell.last > high
            && let Some(after) = high.next()
        {
            let rest = Interval { first: cell.first.max(after), ..cell };
            match outside.last_mut() {
                Some(left)
                    if left.class == rest.class && left.last.next() == Some(low) && rest.first == after =>
                {
                    left.last = rest.last;
                }
                _ => outside.push(rest),
            }
        }
    }
    (inside, outside)
}

/// Disjoint intervals as prefixes.
fn nets(side: &'static str, v4: Cells<u32>, v6: Cells<u128>) -> Result<Vec<(IpNet, u32)>, CompileError> {
    // A range is up to 62 prefixes, or 254: they are counted while they are made.
    let mut nets: Vec<(IpNet, u32)> = Vec::new();
    let full = |count: usize| if count > MAX_NETS { Err(CompileError::TooManyNets { side }) } else { Ok(()) };
    for cell in v4 {
        nets.extend(v4_nets(cell.first, cell.last).map(|net| (IpNet::V4(net), cell.class)));
        full(nets.len())?;
    }
    let v4_default = IpNet::V4(Ipv4Net::default());
    let has_v4_default = nets.iter().any(|&(net, _)| net == v4_default);
    let before = nets.len();
    for cell in v6 {
        nets.extend(v6_nets(cell.first, cell.last).map(|net| (IpNet::V6(net), cell.class)));
        full(nets.len())?;
    }
    // The trie holds IPv4 as ::ffff:0:0/96. An IPv6 prefix around that must not answer for IPv4.
    let mapped = Ipv6Net::new_assert(std::net::Ipv4Addr::UNSPECIFIED.to_ipv6_mapped(), 96);
    let around = nets[before..].iter().any(|(net, _)| matches!(net, IpNet::V6(net) if net.contains(&mapped)));
    if around && !has_v4_default {
        nets.push((v4_default, 0));
    }
    full(nets.len())?;
    Ok(nets)
}
