//! Who is let in as which peer.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use ghostwire_ebpf_abi::steer::{Admitted, Path, SLOTS, kind};

use super::address::{Class, check_remote};
use super::tables::{Seen, Tables};
use super::{PeerId, Steer, SteerError};

/// How long packets of a remote that was dismissed are still let in: what is on its way when the far side switches.
const GRACE: Duration = Duration::from_secs(10);

/// One remote.
#[derive(Clone, Copy, Debug)]
pub(super) struct Admission {
    pub(super) peer: PeerId,
    pub(super) class: Class,
    slot: u16,
    /// When it ends, if it was dismissed.
    ends: Option<Instant>,
}

impl Steer {
    /// Lets packets from a remote in as a peer's. It has to have proven that it is the peer: WireGuard will drop what is
    /// not, but traffic of the peer that this remote really is would go there too. Returns the peer that had it before.
    pub fn admit(
        &mut self,
        remote: SocketAddr,
        peer: PeerId,
        class: Class,
    ) -> Result<Option<PeerId>, SteerError> {
        if peer.0 == 0 {
            return Err(SteerError::NoPeer);
        }
        check_remote(remote)?;
        if let Some(known) = self.admissions.get_mut(&remote)
            && known.peer == peer
            && known.class == class
        {
            known.ends = None;
            return Ok(None);
        }
        let slot = self.slots.take()?;
        let entry = Path { kind: kind::ADMISSION, peer: peer.0, class: class as u16, ..Path::default() };
        let admitted = Admitted { peer: peer.0, slot };
        if let Err(error) = self.tables.fill(slot, &entry).and_then(|()| self.tables.admit(remote, admitted))
        {
            self.slots.rest(Instant::now(), slot);
            return Err(match error {
                SteerError::Bpf(_) if self.admissions.len() + 1 >= SLOTS as usize => {
                    SteerError::Full { what: "admitted remote", limit: SLOTS }
                }
                error => error,
            });
        }
        self.controller.admit(remote);
        let former = self.admissions.insert(remote, Admission { peer, class, slot, ends: None });
        let Some(former) = former else { return Ok(None) };
        self.retire(&former);
        Ok((former.peer != peer).then_some(former.peer))
    }

    /// Ends that after a grace period, see [`Steer::housekeep`]. Nothing happens if the remote is not the peer's.
    pub fn dismiss(&mut self, remote: SocketAddr, peer: PeerId) {
        if let Some(known) = self.admissions.get_mut(&remote)
            && known.peer == peer
        {
            known.ends.get_or_insert_with(|| Instant::now() + GRACE);
        }
    }

    /// Everybody who is let in, but for those that are dismissed.
    pub fn admissions(&self) -> Vec<(SocketAddr, PeerId, Class)> {
        let lasting = self.admissions.iter().filter(|(_, known)| known.ends.is_none());
        lasting.map(|(remote, known)| (*remote, known.peer, known.class)).collect()
    }

    /// Ends what was dismissed long enough ago. Returns when there is more to do.
    pub(super) fn end_admissions(&mut self, now: Instant) -> Result<Option<Instant>, SteerError> {
        let over: Vec<SocketAddr> = self
            .admissions
            .iter()
            .filter(|(_, known)| known.ends.is_some_and(|ends| ends <= now))
            .map(|(remote, _)| *remote)
            .collect();
        for remote in over {
            self.shut_out(remote)?;
        }
        Ok(self.admissions.values().filter_map(|known| known.ends).min())
    }

    /// Lets nothing more in from a remote.
    pub(super) fn shut_out(&mut self, remote: SocketAddr) -> Result<(), SteerError> {
        self.tables.dismiss(remote)?;
        self.controller.shut_out(remote);
        if let Some(former) = self.admissions.remove(&remote) {
            self.retire(&former);
        }
        Ok(())
    }

    /// Keeps the counters of an admission that is over, and lets its slot rest.
    fn retire(&mut self, former: &Admission) {
        let past = &mut self.received.entry(former.peer).or_default()[former.class as usize];
        *past = past.and(self.tables.seen(former.slot));
        self.slots.rest(Instant::now(), former.slot);
    }

    /// Counters of what came in from a peer's remotes.
    pub(super) fn received(&self, peer: PeerId) -> [Seen; 4] {
        let mut received = self.received.get(&peer).copied().unwrap_or_default();
        for known in self.admissions.values().filter(|known| known.peer == peer) {
            let total = &mut received[known.class as usize];
            *total = total.and(self.tables.seen(known.slot));
        }
        received
    }
}

/// Who was let in by an earlier process, and the slots that this takes.
pub(super) fn adopt(tables: &Tables) -> Result<(BTreeMap<SocketAddr, Admission>, Vec<u16>), SteerError> {
    let mut found = BTreeMap::new();
    let mut used = Vec::new();
    for (remote, admitted) in tables.admitted() {
        let class = Class::from_number(tables.path(admitted.slot)?.class);
        used.push(admitted.slot);
        let peer = PeerId(admitted.peer);
        found.insert(remote, Admission { peer, class, slot: admitted.slot, ends: None });
    }
    Ok((found, used))
}
