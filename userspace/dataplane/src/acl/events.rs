//! Events about single packets, from the ring buffer.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, RawFd};

use aya::maps::{MapData, RingBuf};
use ghostwire_ebpf_abi::event::{Action, Direction, Event as RawEvent, Reason};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::counters::unmapped;
use super::{Acl, AclError, object};
use crate::bpf::BpfError;
use crate::bpf::bpffs;

/// What happened to one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// `CLOCK_MONOTONIC` nanoseconds.
    pub time_ns: u64,
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// Source port; ICMP: the type; 0 where the protocol has none.
    pub src_port: u16,
    /// Destination port; ICMP: the code; 0 where the protocol has none.
    pub dst_port: u16,
    /// IANA protocol number.
    pub protocol: u8,
    /// TCP flags byte, else 0.
    pub tcp_flags: u8,
    /// 4 or 6; 0: neither, or too short to tell.
    pub family: u8,
    /// Direction as seen by this node.
    pub direction: Direction,
    /// What was done.
    pub action: Action,
    /// Why.
    pub reason: Reason,
    /// Generation of the policy that judged it, 0 without one.
    pub generation: u32,
    /// Bytes from the IP header on.
    pub length: u32,
    /// Remote, local and service class in the matrix of the direction.
    pub classes: [u16; 3],
    /// Events that the rate limit suppressed before this one, on its CPU.
    pub suppressed: u64,
}

/// Reads the events of one interface. One reader at a time: events are taken, not copied.
pub struct Events {
    ring: AsyncFd<Ring>,
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Events").finish_non_exhaustive()
    }
}

struct Ring(RingBuf<MapData>);

impl AsRawFd for Ring {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Acl {
    /// A reader of the events. Needs a tokio runtime.
    pub fn events(&self) -> Result<Events, AclError> {
        let map = MapData::from_pin(bpffs::map_dir(&self.dir, object::LAYOUT).join("EVENTS"))?;
        let ring = RingBuf::try_from(aya::maps::Map::RingBuf(map))?;
        // SAFETY: the ring owns its descriptor, and nothing replaces or closes it while it is registered.
        let ring =
            unsafe { AsyncFd::register_with_interest(Ring(ring), Interest::READABLE) }.map_err(|error| {
                BpfError::System { call: "epoll_ctl for the ring buffer", source: error.into() }
            })?;
        Ok(Events { ring })
    }
}

impl Events {
    /// The next event. Cancel-safe.
    pub async fn next(&mut self) -> io::Result<Event> {
        loop {
            let mut guard = self.ring.readable_mut().await?;
            while let Some(item) = guard.get_inner_mut().0.next() {
                if let Some(event) = decode(&item) {
                    return Ok(event);
                }
            }
            guard.clear_ready();
        }
    }

    /// An event that is already there.
    pub fn try_next(&mut self) -> Option<Event> {
        let ring = &mut self.ring.get_mut().0;
        loop {
            let item = ring.next()?;
            if let Some(event) = decode(&item) {
                return Some(event);
            }
        }
    }
}

/// `None`: it is not an event of this version.
fn decode(bytes: &[u8]) -> Option<Event> {
    if bytes.len() < size_of::<RawEvent>() {
        return None;
    }
    // SAFETY: long enough, and any bytes are a valid RawEvent, whose fields are integers.
    let raw = unsafe { bytes.as_ptr().cast::<RawEvent>().read_unaligned() };
    Some(Event {
        time_ns: raw.time_ns,
        src: unmapped(raw.src),
        dst: unmapped(raw.dst),
        src_port: u16::from_be(raw.src_port_be),
        dst_port: u16::from_be(raw.dst_port_be),
        protocol: raw.protocol,
        tcp_flags: raw.tcp_flags,
        family: raw.family,
        direction: if raw.direction == 0 { Direction::Ingress } else { Direction::Egress },
        action: match raw.action {
            0 => Action::Pass,
            1 => Action::Drop,
            _ => Action::WouldDrop,
        },
        reason: Reason::from_index(raw.reason)?,
        generation: raw.generation,
        length: raw.length,
        classes: [raw.remote_class, raw.local_class, raw.service_class],
        suppressed: raw.suppressed,
    })
}
