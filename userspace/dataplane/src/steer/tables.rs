//! The maps of the programs, as memory where they are memory.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aya::Ebpf;
use aya::maps::{Array, HashMap, Map, MapData};
use ghostwire_ebpf_abi::steer::{Admitted, Config, Count, PORT_WORDS, Path, Remote4, Remote6, SLOTS, peers};

use super::address::{address, mapped, words};
use super::{PeerId, SteerError, object};
use crate::bpf::kernel::Mapping;
use crate::bpf::{BpfError, Wire};

/// All maps but the counters by reason.
pub(super) struct Tables {
    config: Array<MapData, Wire<Config>>,
    peers: Mapping,
    paths: Array<MapData, Wire<Path>>,
    traffic: Mapping,
    /// Of the counters in `traffic`.
    rows: u32,
    rev4: HashMap<MapData, Wire<Remote4>, Wire<Admitted>>,
    rev6: HashMap<MapData, Wire<Remote6>, Wire<Admitted>>,
    locals: HashMap<MapData, [u32; 4], u32>,
    ports: Mapping,
}

/// What went by one slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) packets: u64,
    pub(super) bytes: u64,
    /// `CLOCK_MONOTONIC` nanoseconds, 0: never.
    pub(super) last_ns: u64,
}

impl Seen {
    /// Both together.
    pub(super) fn and(self, other: Self) -> Self {
        Self {
            packets: self.packets + other.packets,
            bytes: self.bytes + other.bytes,
            last_ns: self.last_ns.max(other.last_ns),
        }
    }
}

const COUNT_WORDS: u32 = 4;

impl Tables {
    /// Takes the maps out of a loaded object.
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, SteerError> {
        let rows = object::rows();
        Ok(Self {
            config: Array::try_from(map(ebpf, "STEER_CONFIG")?)?,
            peers: mapping(ebpf, "PEERS", peers::COUNT as usize * 8)?,
            paths: Array::try_from(map(ebpf, "PATHS")?)?,
            traffic: mapping(ebpf, "TRAFFIC", (rows * SLOTS) as usize * size_of::<Count>())?,
            rows,
            rev4: HashMap::try_from(map(ebpf, "REV4")?)?,
            rev6: HashMap::try_from(map(ebpf, "REV6")?)?,
            locals: HashMap::try_from(map(ebpf, "LOCALS")?)?,
            ports: mapping(ebpf, "PORTS", PORT_WORDS as usize * 8)?,
        })
    }

    pub(super) fn config(&self) -> Result<Config, SteerError> {
        Ok(self.config.get(&0, 0)?.0)
    }

    pub(super) fn set_config(&mut self, config: Config) -> Result<(), SteerError> {
        Ok(self.config.set(0, Wire(config), 0)?)
    }

    /// The slots that a peer's packets take.
    pub(super) fn word(&self, peer: PeerId) -> u64 {
        self.peers.word(peer.0.into()).load(Ordering::Acquire)
    }

    /// The switch: one store.
    pub(super) fn set_word(&self, peer: PeerId, word: u64) {
        self.peers.word(peer.0.into()).store(word, Ordering::Release);
    }

    pub(super) fn path(&self, slot: u16) -> Result<Path, SteerError> {
        Ok(self.paths.get(&slot.into(), 0)?.0)
    }

    /// Fills a slot that nothing refers to, and sets its counters to 0.
    pub(super) fn fill(&mut self, slot: u16, path: &Path) -> Result<(), SteerError> {
        for row in 0..self.rows {
            (0..COUNT_WORDS).for_each(|word| self.count_word(row, slot, word).store(0, Ordering::Relaxed));
        }
        Ok(self.paths.set(slot.into(), Wire(*path), 0)?)
    }

    fn count_word(&self, row: u32, slot: u16, word: u32) -> &AtomicU64 {
        self.traffic.word((row * SLOTS + u32::from(slot)) * COUNT_WORDS + word)
    }

    /// What went by a slot, on all CPUs.
    pub(super) fn seen(&self, slot: u16) -> Seen {
        let mut total = Seen::default();
        for row in 0..self.rows {
            let [packets, bytes, last_ns] =
                [0, 1, 2].map(|word| self.count_word(row, slot, word).load(Ordering::Relaxed));
            total = total.and(Seen { packets, bytes, last_ns });
        }
        total
    }

    pub(super) fn admit(&mut self, remote: SocketAddr, admitted: Admitted) -> Result<(), SteerError> {
        let inserted = match key(remote) {
            Key::V4(key) => self.rev4.insert(Wire(key), Wire(admitted), 0),
            Key::V6(key) => self.rev6.insert(Wire(key), Wire(admitted), 0),
        };
        Ok(inserted?)
    }

    pub(super) fn dismiss(&mut self, remote: SocketAddr) -> Result<(), SteerError> {
        let removed = match key(remote) {
            Key::V4(key) => self.rev4.remove(&Wire(key)),
            Key::V6(key) => self.rev6.remove(&Wire(key)),
        };
        absent_is_fine(removed)
    }

    /// Everybody who is let in.
    pub(super) fn admitted(&self) -> Vec<(SocketAddr, Admitted)> {
        let v4 = self.rev4.iter().flatten().map(|(Wire(remote), Wire(admitted))| {
            let ip = address([remote.addr, 0, 0, 0], true);
            (SocketAddr::new(ip, u16::from_be(remote.port_be)), admitted)
        });
        let v6 = self.rev6.iter().flatten().map(|(Wire(remote), Wire(admitted))| {
            (SocketAddr::new(address(remote.addr, false), u16::from_be(remote.port_be)), admitted)
        });
        v4.chain(v6).collect()
    }

    /// Makes `wanted` the addresses that are ours.
    pub(super) fn set_locals(&mut self, wanted: &[(IpAddr, u32)]) -> Result<(), SteerError> {
        let wanted: Vec<([u32; 4], u32)> =
            wanted.iter().map(|(address, uplink)| (mapped(*address), *uplink)).collect();
        let present: Vec<[u32; 4]> = self.locals.keys().flatten().collect();
        for (address, uplink) in &wanted {
            self.locals.insert(address, uplink, 0)?;
        }
        for address in present.iter().filter(|address| !wanted.iter().any(|(kept, _)| kept == *address)) {
            absent_is_fine(self.locals.remove(address))?;
        }
        Ok(())
    }

    /// Whether a port is treated like WireGuard's.
    pub(super) fn set_port(&self, port: u16, open: bool) {
        let word = self.ports.word(u32::from(port) / 64);
        let bit = 1 << (port % 64);
        if open {
            word.fetch_or(bit, Ordering::Relaxed)
        } else {
            word.fetch_and(!bit, Ordering::Relaxed)
        };
    }

    /// Closes all of them.
    pub(super) fn close_ports(&self) {
        (0..PORT_WORDS).for_each(|word| self.ports.word(word).store(0, Ordering::Relaxed));
    }
}

enum Key {
    V4(Remote4),
    V6(Remote6),
}

fn key(remote: SocketAddr) -> Key {
    let (addr, port_be) = (words(remote.ip()), remote.port().to_be());
    if remote.is_ipv4() {
        Key::V4(Remote4 { addr: addr[0], port_be, pad: 0 })
    } else {
        Key::V6(Remote6 { addr, port_be, pad: 0 })
    }
}

fn absent_is_fine(result: Result<(), aya::maps::MapError>) -> Result<(), SteerError> {
    match result {
        Err(aya::maps::MapError::KeyNotFound) | Ok(()) => Ok(()),
        Err(aya::maps::MapError::SyscallError(error))
            if error.io_error.raw_os_error() == Some(libc::ENOENT) =>
        {
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}

fn map(ebpf: &mut Ebpf, name: &'static str) -> Result<Map, SteerError> {
    Ok(ebpf.take_map(name).ok_or(BpfError::Object { what: name })?)
}

fn mapping(ebpf: &mut Ebpf, name: &'static str, bytes: usize) -> Result<Mapping, SteerError> {
    let map = map(ebpf, name)?;
    let Map::Array(data) = &map else { return Err(BpfError::Object { what: name }.into()) };
    // The mapping keeps the map.
    Ok(Mapping::new(data.fd().as_fd(), bytes)?)
}

/// `CLOCK_MONOTONIC` nanoseconds.
pub(super) fn now_ns() -> u64 {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
        .map_or(0, |now| u64::try_from(Duration::from(now).as_nanos()).unwrap_or(u64::MAX))
}
