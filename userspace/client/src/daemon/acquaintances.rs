//! Keeps on disk what peers and we have told each other.

use std::time::{Duration, Instant};

use super::{Daemon, Happening};
use crate::store::Acquaintance;

/// Changes that come close together are written together.
const SETTLE: Duration = Duration::from_secs(5);

impl Daemon {
    /// What an earlier run has kept. Damage costs only what would be kept: the coordinator brings it again.
    pub(super) fn acquaintances(&mut self) -> Vec<Acquaintance> {
        match self.store.acquaintances() {
            Ok(kept) => kept,
            Err(error) => {
                tracing::warn!(%error, "peers are not remembered");
                Vec::new()
            }
        }
    }

    /// When there is something to write.
    pub(super) fn keep_acquaintances_if_due(&mut self, now: Instant) {
        let Some(steering) = &mut self.steering else { return };
        if steering.ways.take_acquaintances_changed() {
            self.keep_at.get_or_insert(now + SETTLE);
        }
        if self.keep_at.is_none_or(|at| at > now) {
            return;
        }
        self.keep_at = None;
        self.kept += 1;
        let (number, acquaintances, store) = (self.kept, steering.ways.acquaintances(), self.store.clone());
        self.spawn_blocking(move || Happening::Kept(store.save_acquaintances(number, &acquaintances)));
    }

    /// Before steering or the daemon ends.
    pub(super) fn keep_acquaintances_now(&mut self) {
        let Some(steering) = &mut self.steering else { return };
        let changed = steering.ways.take_acquaintances_changed() || self.keep_at.take().is_some();
        if !changed || self.identity.membership.is_none() {
            return;
        }
        self.kept += 1;
        let kept = self.store.save_acquaintances(self.kept, &steering.ways.acquaintances());
        self.note("peers", kept.err().map(|error| error.to_string()));
    }
}
