//! Numbers for nodes.
//!
//! A node's host part is 16 bits: the low half of its IPv4 address in 100.64.0.0/16 and of its IPv6 address in the
//! network's ULA prefix. 100.64.0.1 is the coordinator's; nodes have 100.64.0.2 to 100.64.255.254.

use std::collections::{BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ghostwire_proto::address::OverlayRanges;
use ipnet::{Ipv4Net, Ipv6Net};

/// First host part that a node can have.
pub const FIRST: u16 = 2;
/// Last host part that a node can have.
pub const LAST: u16 = 0xfffe;

/// The host part of a node's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPart(u16);

impl HostPart {
    /// A host part that a node can have.
    pub fn new(number: u16) -> Option<Self> {
        (FIRST..=LAST).contains(&number).then_some(Self(number))
    }

    /// The number.
    pub fn get(self) -> u16 {
        self.0
    }

    /// The node's IPv4 address.
    pub fn v4(self, overlay: &OverlayRanges) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(overlay.v4_nodes.network()) | u32::from(self.0))
    }

    /// The node's IPv6 address.
    pub fn v6(self, overlay: &OverlayRanges) -> Ipv6Addr {
        Ipv6Addr::from(u128::from(overlay.v6.network()) | u128::from(self.0))
    }

    /// Both addresses, IPv4 first.
    pub fn addresses(self, overlay: &OverlayRanges) -> [IpAddr; 2] {
        [self.v4(overlay).into(), self.v6(overlay).into()]
    }
}

/// The ranges of a new network, from 40 random bits (RFC 4193).
pub fn overlay_ranges(random: [u8; 5]) -> OverlayRanges {
    let mut octets = [0; 16];
    octets[0] = 0xfd;
    octets[1..6].copy_from_slice(&random);
    let v6 = Ipv6Addr::from(octets);
    OverlayRanges {
        v4: Ipv4Net::new_assert(Ipv4Addr::new(100, 64, 0, 0), 10),
        v4_nodes: Ipv4Net::new_assert(Ipv4Addr::new(100, 64, 0, 0), 16),
        v6: Ipv6Net::new_assert(v6, 48),
    }
}

/// Which host parts are taken, and which were given back.
///
/// The lowest number that was never used comes first. Numbers that were given back come last, the one that has
/// rested longest first: peers may still hold state about the node that had it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ipam {
    used: BTreeSet<HostPart>,
    freed: VecDeque<HostPart>,
    /// No number below this one is fresh.
    fresh_from: u16,
}

impl Ipam {
    /// Takes the next number, or `None` if all 65,533 are in use.
    pub fn allocate(&mut self) -> Option<HostPart> {
        let host = self.fresh().or_else(|| self.freed.pop_front())?;
        self.used.insert(host);
        Some(host)
    }

    fn fresh(&mut self) -> Option<HostPart> {
        for number in self.fresh_from.max(FIRST)..=LAST {
            let host = HostPart(number);
            if !self.used.contains(&host) && !self.freed.contains(&host) {
                self.fresh_from = number + 1;
                return Some(host);
            }
        }
        self.fresh_from = LAST + 1;
        None
    }

    /// Marks a number as taken, when loading.
    pub fn take(&mut self, host: HostPart) {
        self.freed.retain(|freed| *freed != host);
        self.used.insert(host);
    }

    /// Gives a number back.
    pub fn release(&mut self, host: HostPart) {
        if self.used.remove(&host) {
            self.freed.push_back(host);
        }
    }

    /// Adds a number that was given back earlier than those released from now on, when loading.
    pub fn rest(&mut self, host: HostPart) {
        if !self.used.contains(&host) && !self.freed.contains(&host) {
            self.freed.push_back(host);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_are_as_specified() {
        let overlay = overlay_ranges([1, 2, 3, 4, 5]);
        let mut ipam = Ipam::default();
        let first = ipam.allocate().unwrap();
        assert_eq!(first.v4(&overlay), Ipv4Addr::new(100, 64, 0, 2));
        assert_eq!(first.v6(&overlay).to_string(), "fd01:203:405::2");
        assert_eq!(HostPart::new(LAST).unwrap().v4(&overlay), Ipv4Addr::new(100, 64, 255, 254));
        assert!(HostPart::new(0).is_none() && HostPart::new(1).is_none() && HostPart::new(0xffff).is_none());
    }

    #[test]
    fn freed_numbers_come_last_and_the_longest_rested_first() {
        let mut ipam = Ipam::default();
        let hosts: Vec<HostPart> = (0..5).map(|_| ipam.allocate().unwrap()).collect();
        ipam.release(hosts[3]);
        ipam.release(hosts[1]);
        assert_eq!(ipam.allocate().unwrap().get(), 7);
        let mut last = ipam.allocate().unwrap();
        while last.get() != LAST {
            last = ipam.allocate().unwrap();
        }
        assert_eq!(ipam.allocate(), Some(hosts[3]));
        assert_eq!(ipam.allocate(), Some(hosts[1]));
        assert_eq!(ipam.allocate(), None);
    }

    proptest! {
        #[test]
        fn no_number_is_given_twice(steps in proptest::collection::vec(any::<Option<u8>>(), 0..200)) {
            let mut ipam = Ipam::default();
            let mut held: Vec<HostPart> = Vec::new();
            for step in steps {
                match step {
                    Some(index) if !held.is_empty() => {
                        let host = held.swap_remove(usize::from(index) % held.len());
                        ipam.release(host);
                    }
                    _ => {
                        let host = ipam.allocate().unwrap();
                        prop_assert!(!held.contains(&host));
                        held.push(host);
                    }
                }
                // What is loaded after a restart allocates as if nothing had happened.
                let mut loaded = Ipam::default();
                for host in &held {
                    loaded.take(*host);
                }
                for host in &ipam.freed {
                    loaded.rest(*host);
                }
                prop_assert_eq!(loaded.allocate(), ipam.clone().allocate());
            }
        }
    }
}
