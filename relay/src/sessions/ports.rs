//! The relay ports, and other numbers that are given out.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::Owner;

/// Numbers that look random, from a seed. Not for secrets: whoever sees some can compute the others.
#[derive(Debug)]
struct Scramble(u64);

impl Scramble {
    /// The next number (splitmix64).
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        value ^ (value >> 31)
    }
}

/// What becomes of a port.
#[derive(Clone, Copy, Debug)]
enum Port {
    Free,
    /// Cannot be used: another program has it.
    Retired,
    Owned {
        owner: Owner,
        /// When something about it was last reported.
        reported: Option<Duration>,
    },
}

/// The relay ports.
#[derive(Debug)]
pub(super) struct Ports {
    first: u16,
    each: Vec<Port>,
    random: Scramble,
}

impl Ports {
    pub(super) fn new(range: &RangeInclusive<u16>, seed: u64) -> Self {
        Self { first: *range.start(), each: vec![Port::Free; range.len()], random: Scramble(seed) }
    }

    /// Gives a free port to a node: the first one after a random place, so that ports tell nothing about when
    /// they were given. `None`: all are taken.
    pub(super) fn take(&mut self, owner: Owner) -> Option<u16> {
        let count = self.each.len();
        let start = usize::try_from(self.random.next() % u64::try_from(count).ok()?).ok()?;
        let free =
            (start..count).chain(0..start).find(|at| matches!(self.each.get(*at), Some(Port::Free)))?;
        *self.each.get_mut(free)? = Port::Owned { owner, reported: None };
        u16::try_from(free).ok()?.checked_add(self.first)
    }

    /// Gives a certain port to a node. `false`: it is another one's.
    pub(super) fn claim(&mut self, port: u16, owner: Owner) -> bool {
        match self.slot(port) {
            Some(slot @ Port::Free) => {
                *slot = Port::Owned { owner, reported: None };
                true
            }
            Some(Port::Owned { owner: already, .. }) => *already == owner,
            Some(Port::Retired) | None => false,
        }
    }

    /// Takes a port back.
    pub(super) fn give_back(&mut self, port: u16) {
        if let Some(slot @ Port::Owned { .. }) = self.slot(port) {
            *slot = Port::Free;
        }
    }

    /// Never gives a port out again.
    pub(super) fn retire(&mut self, port: u16) {
        if let Some(slot) = self.slot(port) {
            *slot = Port::Retired;
        }
    }

    /// Whose port it is.
    pub(super) fn owner(&self, port: u16) -> Option<Owner> {
        let at = usize::from(port.checked_sub(self.first)?);
        match self.each.get(at)? {
            Port::Owned { owner, .. } => Some(*owner),
            Port::Free | Port::Retired => None,
        }
    }

    /// Whether the last report about the port is long ago.
    pub(super) fn may_report(&mut self, port: u16, now: Duration, interval: Duration) -> bool {
        match self.slot(port) {
            Some(Port::Owned { reported, .. }) => reported.is_none_or(|last| now >= last + interval),
            _ => false,
        }
    }

    /// Remembers a report.
    pub(super) fn reported(&mut self, port: u16, now: Duration) {
        if let Some(Port::Owned { reported, .. }) = self.slot(port) {
            *reported = Some(now);
        }
    }

    fn slot(&mut self, port: u16) -> Option<&mut Port> {
        let at = usize::from(port.checked_sub(self.first)?);
        self.each.get_mut(at)
    }
}

/// Numbers below a limit, given out and taken back.
#[derive(Debug)]
pub(super) struct Numbers {
    free: BTreeSet<u32>,
    next: u32,
    limit: u32,
}

impl Numbers {
    pub(super) fn new(limit: u32) -> Self {
        Self { free: BTreeSet::new(), next: 0, limit }
    }

    pub(super) fn take(&mut self) -> Option<u32> {
        if let Some(number) = self.free.pop_first() {
            return Some(number);
        }
        let number = self.next;
        (number < self.limit).then(|| {
            self.next += 1;
            number
        })
    }

    /// Takes a certain number. `false`: it is taken, or beyond the limit.
    pub(super) fn claim(&mut self, number: u32) -> bool {
        if number >= self.limit {
            return false;
        }
        self.free.extend(self.next..=number);
        self.next = self.next.max(number + 1);
        self.free.remove(&number)
    }

    pub(super) fn give_back(&mut self, number: u32) {
        self.free.insert(number);
    }
}
