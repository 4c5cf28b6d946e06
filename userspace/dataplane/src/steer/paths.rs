//! Which way a peer's packets take: slots of the path table, and the word that names them.
//!
//! A slot is filled while nothing refers to it, then named by one store. What is no longer named is kept for
//! [`QUIET`] before it is used again, because a packet may be on its way through it.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use ghostwire_ebpf_abi::steer::{self, SLOTS, kind, peers};

use super::address::{Class, address, check_remote, words};
use super::tables::{Seen, Tables};
use super::{PeerId, Steer, SteerError};
use crate::netlink::Netlink;

/// A program runs for microseconds; this is for a CPU that a hypervisor takes away meanwhile.
const QUIET: Duration = Duration::from_secs(2);

/// The way of a peer's packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Path {
    /// WireGuard's datagrams as they are. A relay's port is this too: its address is the remote.
    Wire {
        /// What it is counted as.
        class: Class,
        /// Index of the interface that they leave by.
        uplink: u32,
        /// Our address on it; the port is WireGuard's or an open one ([`Steer::open_port`]).
        local: SocketAddr,
        /// Where they go.
        remote: SocketAddr,
    },
    /// Packets come out of [`super::Carrier`].
    Carrier {
        /// What it is counted as.
        class: Class,
    },
}

/// A peer's paths in force, and what it has used.
#[derive(Debug, Default)]
pub(super) struct PeerState {
    primary: Option<(Path, u16)>,
    also: Option<(Path, u16)>,
    /// Counters of slots that are no longer this peer's.
    pub(super) past: [Seen; 4],
}

/// Which slots are in use.
#[derive(Debug)]
pub(super) struct Slots {
    free: Vec<u16>,
    resting: VecDeque<(Instant, u16)>,
}

impl Slots {
    /// All but those in use.
    pub(super) fn without(used: &[u16]) -> Self {
        let used: HashSet<u16> = used.iter().copied().collect();
        let last = u16::try_from(SLOTS - 1).unwrap_or(u16::MAX);
        // Slot 0 stands for none. The lowest come first.
        let free = (1..=last).rev().filter(|slot| !used.contains(slot)).collect();
        Self { free, resting: VecDeque::new() }
    }

    pub(super) fn take(&mut self) -> Result<u16, SteerError> {
        self.free.pop().ok_or(SteerError::Full { what: "path", limit: SLOTS - 1 })
    }

    pub(super) fn rest(&mut self, now: Instant, slot: u16) {
        self.resting.push_back((now + QUIET, slot));
    }

    /// Frees what has rested. Returns when the next one will have.
    pub(super) fn wake(&mut self, now: Instant) -> Option<Instant> {
        while let Some((until, slot)) = self.resting.front().copied() {
            if until > now {
                return Some(until);
            }
            self.resting.pop_front();
            self.free.push(slot);
        }
        None
    }
}

impl Steer {
    /// Chooses the way of a peer's packets, and the way of a copy of them while the first is in doubt. `None`: they are
    /// dropped. On an error the former paths stay.
    ///
    /// For the packets it is one store of 64 bits: each sees the old paths or the new ones.
    pub fn set_path(
        &mut self,
        peer: PeerId,
        primary: Option<&Path>,
        also: Option<&Path>,
    ) -> Result<(), SteerError> {
        if peer.0 == 0 {
            return Err(SteerError::NoPeer);
        }
        let (primary, also) = match (primary, also) {
            (None, second) => (second, None),
            (first, second) => (first, second.filter(|second| first != Some(second))),
        };
        let netlink = Netlink::open()?;
        let primary = primary.map(|path| self.place(&netlink, peer, path)).transpose()?;
        let also = match also.map(|path| self.place(&netlink, peer, path)).transpose() {
            Ok(also) => also,
            Err(error) => {
                self.unplace(peer, primary);
                return Err(error);
            }
        };
        self.name(peer, primary, also);
        Ok(())
    }

    /// The paths in force of a peer: the first, and that of the copies.
    pub fn path(&self, peer: PeerId) -> (Option<Path>, Option<Path>) {
        let Some(state) = self.peers.get(&peer) else { return (None, None) };
        (state.primary.map(|(path, _)| path), state.also.map(|(path, _)| path))
    }

    /// The peers that have a path.
    pub fn peers(&self) -> Vec<PeerId> {
        self.peers.iter().filter(|(_, state)| state.primary.is_some()).map(|(peer, _)| *peer).collect()
    }

    /// Looks whether there still is a way for every path, where routes or uplinks may have changed. Returns the peers that lost one;
    /// a peer whose first path is lost goes on with the other, if that is left.
    pub(super) fn refresh_paths(&mut self) -> Result<Vec<PeerId>, SteerError> {
        let netlink = Netlink::open()?;
        let mut lost = Vec::new();
        let all: Vec<PeerId> = self.peers.keys().copied().collect();
        for peer in all {
            let (first, second) = self.path(peer);
            let mut survivors = Vec::new();
            for path in [first, second].into_iter().flatten() {
                match self.place(&netlink, peer, &path) {
                    Ok(placed) => survivors.push(placed),
                    Err(SteerError::NoRoute { .. } | SteerError::NotAnUplink { .. }) => lost.push(peer),
                    Err(error) => return Err(error),
                }
            }
            self.name(peer, survivors.first().copied(), survivors.get(1).copied());
        }
        lost.dedup();
        Ok(lost)
    }

    /// A slot that holds a path: one that the peer has, or a new one that nothing names yet.
    fn place(&mut self, netlink: &Netlink, peer: PeerId, path: &Path) -> Result<(Path, u16), SteerError> {
        let entry = self.resolve(netlink, peer, path)?;
        if let Some(state) = self.peers.get(&peer) {
            for (known, slot) in [state.primary, state.also].into_iter().flatten() {
                if known == *path && self.tables.path(slot)? == entry {
                    return Ok((*path, slot));
                }
            }
        }
        let slot = self.slots.take()?;
        self.tables.fill(slot, &entry)?;
        Ok((*path, slot))
    }

    /// Gives back a slot that was placed and is not named.
    fn unplace(&mut self, peer: PeerId, placed: Option<(Path, u16)>) {
        let Some((_, slot)) = placed else { return };
        let named = self.peers.get(&peer).is_some_and(|state| state.holds(slot));
        if !named {
            self.slots.rest(Instant::now(), slot);
        }
    }

    /// Puts paths in force, and lets those rest that no longer are.
    fn name(&mut self, peer: PeerId, primary: Option<(Path, u16)>, also: Option<(Path, u16)>) {
        let slot = |placed: Option<(Path, u16)>| placed.map_or(0, |(_, slot)| slot);
        self.tables.set_word(peer, peers::word(slot(primary), slot(also)));
        let state = self.peers.entry(peer).or_default();
        let former = [state.primary, state.also];
        (state.primary, state.also) = (primary, also);
        for (path, slot) in former.into_iter().flatten() {
            if !state.holds(slot) {
                let past = &mut state.past[path.class() as usize];
                *past = past.and(self.tables.seen(slot));
                self.slots.rest(Instant::now(), slot);
            }
        }
    }

    /// A path as the programs have it.
    fn resolve(&self, netlink: &Netlink, peer: PeerId, path: &Path) -> Result<steer::Path, SteerError> {
        let (class, uplink, local, remote) = match *path {
            Path::Carrier { class } => {
                let class = class as u16;
                return Ok(steer::Path {
                    kind: kind::CARRIER,
                    peer: peer.0,
                    class,
                    ..steer::Path::default()
                });
            }
            Path::Wire { class, uplink, local, remote } => (class, uplink, local, remote),
        };
        check_remote(remote)?;
        if local.is_ipv4() != remote.is_ipv4() {
            return Err(SteerError::Families { local, remote });
        }
        let unknown = || SteerError::NotAnUplink { uplink, local: local.ip() };
        let link = self.uplinks.get(&uplink).ok_or_else(unknown)?;
        if !link.addresses.contains(&local.ip()) {
            return Err(unknown());
        }
        if self.uplinks.values().any(|link| link.addresses.contains(&remote.ip())) {
            return Err(SteerError::Loop { remote, reason: "this host" });
        }
        // The kernel finds the next hop of each packet; where there is none, it would make one up.
        if !netlink.has_route(remote.ip(), local.ip(), uplink, self.options.fwmark)? {
            return Err(SteerError::NoRoute { remote: remote.ip(), local: local.ip(), uplink });
        }
        Ok(steer::Path {
            kind: if remote.is_ipv4() { kind::WIRE4 } else { kind::WIRE6 },
            uplink,
            mtu: link.mtu,
            layer3: link.layer3.into(),
            local: words(local.ip()),
            remote: words(remote.ip()),
            ports: u32::from(local.port().to_be()) | u32::from(remote.port().to_be()) << 16,
            peer: peer.0,
            class: class as u16,
        })
    }

    /// Counters of the slots that a peer's packets take.
    pub(super) fn sent(&self, state: &PeerState) -> [Seen; 4] {
        let mut sent = state.past;
        for (path, slot) in [state.primary, state.also].into_iter().flatten() {
            let total = &mut sent[path.class() as usize];
            *total = total.and(self.tables.seen(slot));
        }
        sent
    }
}

impl PeerState {
    fn holds(&self, slot: u16) -> bool {
        [self.primary, self.also].into_iter().flatten().any(|(_, held)| held == slot)
    }
}

impl Path {
    /// What it is counted as.
    pub fn class(&self) -> Class {
        match self {
            Self::Wire { class, .. } | Self::Carrier { class } => *class,
        }
    }

    /// From a slot. `None`: it holds no path out.
    fn of_entry(entry: &steer::Path) -> Option<Self> {
        let class = Class::from_number(entry.class);
        let is_ipv4 = match entry.kind {
            kind::CARRIER => return Some(Self::Carrier { class }),
            kind::WIRE4 => true,
            kind::WIRE6 => false,
            _ => return None,
        };
        let [low, high] = [entry.ports & 0xffff, entry.ports >> 16]
            .map(|port_be| u16::from_be(u16::try_from(port_be).unwrap_or(0)));
        Some(Self::Wire {
            class,
            uplink: entry.uplink,
            local: SocketAddr::new(address(entry.local, is_ipv4), low),
            remote: SocketAddr::new(address(entry.remote, is_ipv4), high),
        })
    }
}

/// The paths that an earlier process left, and the slots that they take.
pub(super) fn adopt(tables: &Tables) -> Result<(BTreeMap<PeerId, PeerState>, Vec<u16>), SteerError> {
    let mut found = BTreeMap::new();
    let mut used = Vec::new();
    for number in 1..=u16::MAX {
        let peer = PeerId(number);
        let word = tables.word(peer);
        if word == 0 {
            continue;
        }
        let mut paths = [None; 2];
        for (path, slot) in paths.iter_mut().zip([peers::primary(word), peers::also(word)]) {
            if slot != 0 {
                used.push(slot);
                *path = Path::of_entry(&tables.path(slot)?).map(|path| (path, slot));
            }
        }
        let [primary, also] = paths;
        found.insert(peer, PeerState { primary, also, past: [Seen::default(); 4] });
    }
    Ok((found, used))
}
