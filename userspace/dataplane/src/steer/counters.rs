//! What the programs counted.

use std::time::Duration;

use aya::maps::PerCpuArray;
use ghostwire_ebpf_abi::event::Counter;
use ghostwire_ebpf_abi::steer::Reason;

use super::tables::{Seen, now_ns};
use super::{PeerId, Steer, SteerError};
use crate::bpf::{BpfError, Wire};

type Raw = ghostwire_ebpf_abi::steer::Counters;

/// Packets of one peer by one class of path in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Datagrams; an aggregate counts as one.
    pub packets: u64,
    /// Bytes of UDP payload.
    pub bytes: u64,
    /// Time since the last one, to some milliseconds.
    pub last: Option<Duration>,
}

/// Traffic of one peer, by number of the class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// From WireGuard to the peer; copies count.
    pub sent: [Count; 4],
    /// From the peer to WireGuard.
    pub received: [Count; 4],
}

impl Traffic {
    /// By all classes.
    pub fn sent_total(&self) -> Count {
        total(&self.sent)
    }

    /// By all classes.
    pub fn received_total(&self) -> Count {
        total(&self.received)
    }
}

fn total(counts: &[Count; 4]) -> Count {
    Count {
        packets: counts.iter().map(|count| count.packets).sum(),
        bytes: counts.iter().map(|count| count.bytes).sum(),
        last: counts.iter().filter_map(|count| count.last).min(),
    }
}

/// Packets and bytes by reason, summed over all CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counters(Raw);

impl Counters {
    /// One counter. Bytes include the headers, and of packets at uplinks the Ethernet header.
    pub fn get(&self, reason: Reason) -> Counter {
        self.0[reason as usize]
    }
}

impl Steer {
    /// What went to a peer and came from it, since it is known here. Plain reads of memory.
    pub fn traffic(&self, peer: PeerId) -> Traffic {
        let now = now_ns();
        let count = |seen: Seen| Count {
            packets: seen.packets,
            bytes: seen.bytes,
            last: (seen.last_ns != 0).then(|| Duration::from_nanos(now.saturating_sub(seen.last_ns))),
        };
        let sent = self.peers.get(&peer).map_or([Seen::default(); 4], |state| self.sent(state));
        let mut received = self.received(peer);
        for (total, delivered) in received.iter_mut().zip(self.carrier.delivered(peer)) {
            *total = total.and(delivered);
        }
        Traffic { sent: sent.map(count), received: received.map(count) }
    }

    /// What did not just take its path, since the maps were made.
    pub fn counters(&self) -> Result<Counters, SteerError> {
        let name = "STEER_COUNTERS";
        let map = self.ebpf.map(name).ok_or(BpfError::Object { what: name })?;
        let map: PerCpuArray<_, Wire<Raw>> = PerCpuArray::try_from(map)?;
        let mut sum: Raw = [Counter::default(); Reason::COUNT as usize];
        for Wire(cpu) in &*map.get(&0, 0)? {
            for (total, counter) in sum.iter_mut().zip(cpu) {
                total.packets += counter.packets;
                total.bytes += counter.bytes;
            }
        }
        Ok(Counters(sum))
    }
}
