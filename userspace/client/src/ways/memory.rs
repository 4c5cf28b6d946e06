//! What outlives a restart: our credentials for each peer, so that it answers our checks before it can be told new
//! ones, and what it has told us last. So two nodes find each other while the coordinator is away.
//!
//! A signal is kept without revision, call and echo: any that the peer sends afterwards is newer, and a call of the past
//! wakes nobody.

use std::collections::BTreeMap;
use std::time::Instant;

use ghostwire_path::{Credentials, Generation};
use ghostwire_proto::keys::NodeKey;
use prost::Message as _;

use super::{Ways, signal};
use crate::pb;
use crate::store::Acquaintance;

/// What is remembered of peers, and whether it has changed.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// Peers to come.
    earlier: BTreeMap<u64, Acquaintance>,
    pub(super) changed: bool,
}

/// What of a usable signal is kept: bounded in size, as its lists are.
fn lasting(wire: &pb::Signal) -> Option<pb::Signal> {
    let mut signal = signal::from_wire(wire).ok()?;
    (signal.revision, signal.attempt, signal.heard) = (0, ghostwire_path::Attempt::default(), None);
    let quic_key = if wire.quic_key.len() == 32 { wire.quic_key.clone() } else { Vec::new() };
    Some(pb::Signal { quic_key, ..signal::to_wire(&signal) })
}

impl Ways {
    /// What an earlier run has kept. To be called before the peers are set; what is not usable is left out.
    pub fn remember(&mut self, acquaintances: Vec<Acquaintance>) {
        self.memory.earlier = acquaintances.into_iter().map(|known| (known.id, known)).collect();
    }

    /// What is to be kept: at most one for each peer, of those that we have told or heard something.
    pub fn acquaintances(&self) -> Vec<Acquaintance> {
        let known = self.peers.iter().filter(|(_, peer)| peer.signal.is_some() || peer.is_known);
        let kept = known.map(|(id, peer)| {
            let own = peer.machine.credentials();
            Acquaintance {
                id: *id,
                key: *peer.key.as_bytes(),
                fragment: own.fragment.clone(),
                password: own.password.clone(),
                signal: peer.heard.as_ref().map(pb::Signal::encode_to_vec).unwrap_or_default(),
            }
        });
        kept.collect()
    }

    /// Whether [`Self::acquaintances`] has changed since this was asked last.
    pub fn take_acquaintances_changed(&mut self) -> bool {
        std::mem::take(&mut self.memory.changed)
    }

    /// Our credentials and the peer's signal of an earlier run.
    pub(super) fn recall(&mut self, id: u64, key: NodeKey) -> (Option<Credentials>, Option<pb::Signal>) {
        let Some(known) = self.memory.earlier.remove(&id).filter(|known| known.key == *key.as_bytes()) else {
            return (None, None);
        };
        let own = pb::Credentials { fragment: known.fragment.clone(), password: known.password.clone() };
        let own = signal::credentials_from_wire(&own).ok();
        let own = own.filter(|own| !self.fragments.contains_key(&own.fragment));
        let told = pb::Signal::decode(known.signal.as_slice()).ok().as_ref().and_then(lasting);
        if own.is_none() || (told.is_none() && !known.signal.is_empty()) {
            tracing::warn!(peer = id, "what was kept of the peer is not usable");
        }
        (own, told)
    }

    /// The peer's signal of an earlier run, as if it came now.
    pub(super) fn replay(&mut self, now: Instant, id: u64, told: &pb::Signal) {
        let Ok(signal) = signal::from_wire(told) else { return };
        self.note_quic_key(now, id, told);
        self.input(now, id, ghostwire_path::Input::Signal(Box::new(signal)));
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.heard = Some(told.clone());
        }
    }

    /// A signal of the peer has been taken.
    pub(super) fn note_heard(&mut self, from: u64, wire: &pb::Signal) {
        let Some(peer) = self.peers.get_mut(&from) else { return };
        // An old one that the machine has refused is not kept either.
        let held = peer.heard.as_ref().map(|held| Generation(held.generation));
        if held.is_some_and(|held| Generation(wire.generation) < held) {
            return;
        }
        let told = lasting(wire);
        if peer.heard != told {
            peer.heard = told;
            self.memory.changed = true;
        }
    }

    /// Peers that are not in the map are forgotten.
    pub(super) fn forget_strangers(&mut self) {
        self.memory.earlier.clear();
    }
}
