//! Sending, receiving and answering connectivity checks.

use std::cmp::Reverse;
use std::time::{Duration, Instant};

use rand::RngExt;

use super::PathMachine;
use crate::io::{Check, Output, Transaction};
use crate::path::{Answered, Failure, Path, Phase};
use crate::route::{Class, Framing, PathId, Route};
use crate::signal::{CandidateKind, priority};
use crate::timing::{DATA_SILENT, LEAST_PATIENCE, MAX_BASES, PACE, SUSPECT, SUSPECT_GAP};

/// Who is next among the paths that are tried: relays and triggered ones, fewest tries, relays, priority.
type Turn = (bool, u32, bool, Reverse<u64>);

impl PathMachine {
    /// When a path needs attention: not before the pace allows it, if it is only a try.
    pub(super) fn path_due(&self, path: &Path, now: Instant) -> Option<Instant> {
        let due = path.due(self.role_interval(path), now)?;
        let slot = self.next_slot.filter(|_| matches!(path.phase, Phase::Checking { .. }));
        Some(slot.map_or(due, |slot| due.max(slot)))
    }

    /// Sends what is due: checks of proven paths at once, they are few and decide where data goes; others one
    /// in each slot.
    pub(super) fn transmit(&mut self, now: Instant) {
        let mut healthy = Vec::new();
        let mut first: Option<(Turn, PathId)> = None;
        for path in &self.paths {
            if path.due(self.role_interval(path), now).is_none_or(|due| now < due) {
                continue;
            }
            match path.phase {
                Phase::Proven { .. } => healthy.push(path.id),
                Phase::Checking { .. } => {
                    // Relays are few and carry the first packets; what the peer triggers must not starve them.
                    let relay = path.class().is_relayed();
                    let order = (!(path.urgent || relay), path.unanswered, !relay, Reverse(path.priority));
                    if first.is_none_or(|(best, _)| order < best) {
                        first = Some((order, path.id));
                    }
                }
                Phase::Parked | Phase::Opening { .. } | Phase::Failed { .. } => {}
            }
        }
        for id in healthy {
            if let Some(path) = self.path_mut(id)
                && path.is_overdue(now)
            {
                path.misses = path.misses.saturating_add(1);
                if path.misses == 1 && self.chosen.carries(id) {
                    self.doubt(now);
                }
            }
            self.send_check(now, id);
        }
        if let Some((_, id)) = first
            && self.next_slot.is_none_or(|slot| now >= slot)
        {
            self.next_slot = Some(now + PACE);
            self.send_check(now, id);
        }
    }

    fn send_check(&mut self, now: Instant, id: PathId) {
        let transaction = Transaction(self.rng.random());
        let Some(path) = self.path_mut(id) else { return };
        let (route, framing) = (path.route, path.framing());
        path.note_sent(now, transaction, framing);
        let check = self.check(route, framing, transaction, Some(id));
        self.outputs.push_back(Output::SendCheck(check));
    }

    pub(super) fn check(
        &self,
        route: Route,
        framing: Framing,
        transaction: Transaction,
        id: Option<PathId>,
    ) -> Check {
        let priority = route.base().map_or(0, |base| {
            let position = self.bases().iter().position(|held| *held == base).unwrap_or(MAX_BASES);
            priority(CandidateKind::PeerReflexive, base.address, position)
        });
        let nominate = self.controlling && id.is_some() && id == self.chosen.primary;
        Check { route, framing, transaction, priority, nominate, attempt: self.attempt.number }
    }

    pub(super) fn check_received(&mut self, now: Instant, check: Check) {
        let (route, framing, transaction) = (check.route, check.framing, check.transaction);
        let generation = self.there.as_ref().map(|signal| signal.generation).unwrap_or_default();
        self.heed(now, generation, check.attempt);
        let known = self.find(route).or_else(|| self.add_reflexive(route));
        if let Some(id) = known {
            self.admit(id);
        }
        // An answer promises that data is let in: none for a way that we do not know (a port that was closed).
        // A relay's stream belongs to the node and lets in everything.
        if known.is_some() || route.class() == Class::Derp {
            self.outputs.push_back(Output::Answer { route, framing, transaction });
        }
        let Some(id) = known else { return };
        if check.nominate && !self.controlling {
            for path in &mut self.paths {
                path.nominated = path.id == id;
            }
        }
        if self.is_awake() {
            self.trigger(now, id);
        }
    }

    /// RFC 8445 section 7.3.1.4: what comes from the peer gets through, perhaps ours does too by now.
    fn trigger(&mut self, now: Instant, id: PathId) {
        let Some(path) = self.path_mut(id) else { return };
        match path.phase {
            Phase::Proven { .. } => path.urgent |= path.is_doubtful(),
            // Not at once again: ours triggers the peer's next one.
            Phase::Checking { .. } => {
                path.urgent |= path.last_sent.is_none_or(|sent| now >= sent + LEAST_PATIENCE);
            }
            Phase::Parked | Phase::Failed { .. } if path.class() == Class::Direct => {
                let _ = path.start(now);
                path.urgent = true;
            }
            Phase::Parked | Phase::Failed { .. } | Phase::Opening { .. } => {}
        }
    }

    pub(super) fn check_answered(&mut self, now: Instant, transaction: Transaction, route: Route) {
        // RFC 8445 section 7.2.5.2.1: only an answer by the same way counts.
        let Some(id) = self.find(route) else {
            self.birthday_answered(now, transaction, route);
            return;
        };
        let Some(path) = self.path_mut(id) else { return };
        let Some(answered) = path.answer(now, transaction) else {
            self.birthday_answered(now, transaction, route);
            return;
        };
        if answered == Answered::Proven {
            self.admit(id);
        }
    }

    fn admit(&mut self, id: PathId) {
        let Some(path) = self.path_mut(id) else { return };
        if !path.admitted {
            path.admitted = true;
            let admit = Output::Admit(path.id, path.route);
            self.outputs.push_back(admit);
        }
    }

    pub(super) fn carrier_up(&mut self, now: Instant, route: Route) {
        let Some(id) = self.find(route).or_else(|| self.add_reflexive(route)) else { return };
        let awake = self.is_awake();
        let Some(path) = self.path_mut(id) else { return };
        if !path.class().needs_opening() {
            return;
        }
        path.opened(now);
        if !awake {
            // The peer connected; whether the connection is needed shows when there is traffic.
            path.phase = Phase::Parked;
        }
    }

    // Suspicion: what the traffic says between two checks

    pub(super) fn suspect_due(&self) -> Option<Instant> {
        let since = self.activity.unanswered_since?;
        let path = self.path(self.chosen.primary?).filter(|path| path.is_proven())?;
        let early = match path.last_sent {
            _ if path.unanswered > 0 => None,
            Some(sent) => Some((since + SUSPECT).max(sent + SUSPECT_GAP)),
            None => Some(since + SUSPECT),
        };
        // Only while sending goes on: a single packet that needs no reply is nothing to worry about.
        let last = self.activity.last_sent?;
        early.filter(|due| *due <= last + 2 * SUSPECT_GAP)
    }

    /// Data was sent and nothing came back: ask at once; if checks pass all the same, try another path.
    pub(super) fn suspect(&mut self, now: Instant) {
        if let (Some(due), Some(id)) = (self.suspect_due(), self.chosen.primary)
            && now >= due
            && let Some(path) = self.path_mut(id)
        {
            path.urgent = true;
        }
        let silent = self.activity.unanswered_since.is_some_and(|since| now >= since + DATA_SILENT);
        let sending = self.activity.last_sent.is_some_and(|sent| now < sent + DATA_SILENT / 3);
        if !silent || !sending {
            return;
        }
        let Some(primary) = self.chosen.primary else { return };
        let alternative = |path: &Path| {
            path.id != primary && path.is_proven() && !path.is_doubtful() && !path.penalty.holds(now)
        };
        if self.paths.iter().any(alternative) && self.path(primary).is_some_and(Path::is_proven) {
            self.activity.unanswered_since = Some(now);
            self.fail_path(now, primary, Failure::DataSilent);
        }
    }

    /// The interval at which a path is checked follows from what it is for.
    pub(super) fn role_interval(&self, path: &Path) -> Duration {
        self.chosen.interval(path.id)
    }
}
