//! Which of the proven paths is used.
//!
//! Class decides first (direct, QUIC, relay port, relay stream), unless the operator prefers otherwise. Within a
//! class the cheaper path wins, but only if it is clearly cheaper for a while, and after a pause that grows with
//! every such change. A path that failed while it was used is held down, longer each time. So the number of
//! changes is bounded whatever the network does: a change to a worse class takes a loss, and each loss makes the
//! pause before the next change to a better class longer.

use std::time::{Duration, Instant};

use super::PathMachine;
use crate::io::{InUse, Output, Steer};
use crate::path::{Path, Penalty, Phase, doubled};
use crate::route::{Class, PathId, Route};
use crate::timing::{
    BETTER_BY, BETTER_FOR, BETTER_PERCENT, FIRST_SAMPLES, FORGIVE, HEALTH, HOLD_MOST, LATENCY_HOLD, SPARE,
    STANDBY,
};

/// Why the path in use is the one in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Nothing has been proven yet: it may work.
    #[default]
    Hope,
    /// The first that worked.
    First,
    /// Better than what was used before.
    Better,
    /// Same kind, clearly lower latency.
    Faster,
    /// What was used before failed.
    Failover,
    /// The operator wants it.
    Operator,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Chosen {
    pub(crate) primary: Option<PathId>,
    pub(crate) also: Option<PathId>,
    pub(crate) standby: Vec<PathId>,
    pub(crate) reason: Reason,
    pub(crate) since: Option<Instant>,
    /// What the edge was told last.
    pub(crate) told: InUse,
    /// Changes for latency in a row.
    latency_changes: u32,
    last_latency_change: Option<Instant>,
    /// No change to a better class for now: paths in use were lost, and what takes down one way often takes
    /// down all of a kind.
    pub(crate) climb: Penalty,
    /// A proven path was used in this waking.
    settled: bool,
}

impl Chosen {
    pub(super) fn carries(&self, id: PathId) -> bool {
        self.primary == Some(id) || self.also == Some(id)
    }

    pub(super) fn has_role(&self, id: PathId) -> bool {
        self.carries(id) || self.standby.contains(&id)
    }

    pub(super) fn interval(&self, id: PathId) -> Duration {
        if self.carries(id) {
            HEALTH
        } else if self.standby.contains(&id) {
            STANDBY
        } else {
            SPARE
        }
    }

    pub(super) fn forget(&mut self, id: PathId) {
        if self.primary == Some(id) {
            self.primary = None;
        }
        if self.also == Some(id) {
            self.also = None;
        }
        self.standby.retain(|held| *held != id);
    }

    pub(super) fn calm_down(&mut self) {
        self.latency_changes = 0;
        self.last_latency_change = None;
        self.climb = Penalty::default();
    }

    fn latency_hold_until(&self) -> Option<Instant> {
        let last = self.last_latency_change?;
        Some(last + doubled(LATENCY_HOLD, self.latency_changes.saturating_sub(1), HOLD_MOST))
    }
}

/// What comes first, the smaller the better.
type Rank = (bool, bool, bool, Class, u64);

impl PathMachine {
    fn is_preferred(&self, path: &Path) -> bool {
        matches!(self.steer, Steer::Prefer(filter) if filter.matches(&path.route))
    }

    fn is_permitted(&self, path: &Path) -> bool {
        match self.steer {
            Steer::Pin(filter) => filter.matches(&path.route),
            Steer::Automatic | Steer::Prefer(_) => true,
        }
    }

    fn rank(&self, path: &Path, now: Instant) -> Rank {
        let held = path.penalty.holds(now);
        (path.is_doubtful(), held, !self.is_preferred(path), path.class(), path.cost())
    }

    /// Proven, permitted, best first.
    fn usable(&self, now: Instant) -> Vec<(Rank, PathId)> {
        let mut usable: Vec<(Rank, PathId)> = self
            .paths
            .iter()
            .filter(|path| path.is_proven() && self.is_permitted(path))
            .map(|path| (self.rank(path, now), path.id))
            .collect();
        usable.sort_unstable();
        usable
    }

    /// Times at which the choice may change by itself.
    pub(super) fn choose_due(&self, now: Instant) -> Option<Instant> {
        let hold = self.chosen.latency_hold_until().filter(|until| now < *until);
        let held = self.paths.iter().filter_map(|path| path.penalty.until).chain(self.chosen.climb.until);
        let held = held.filter(|until| now < *until);
        let cheaper = self.paths.iter().filter_map(|path| path.cheaper_since);
        let cheaper = cheaper.map(|since| since + BETTER_FOR).filter(|at| now < *at);
        hold.into_iter().chain(held).chain(cheaper).min()
    }

    pub(super) fn choose(&mut self, now: Instant) {
        let usable = self.usable(now);
        let Some(&(best_rank, best)) = usable.first() else {
            self.hope();
            return;
        };
        let current = self
            .chosen
            .primary
            .filter(|id| self.chosen.reason != Reason::Hope && usable.iter().any(|(_, held)| held == id));
        let next = match current {
            None => Some((best, self.reason_for_first(best))),
            Some(current) => self.improvement(now, current, best_rank, best, &usable),
        };
        if let Some((id, reason)) = next {
            self.change(now, id, reason);
        }
        self.chosen.settled = true;
        self.assign_roles(now, &usable);
    }

    fn reason_for_first(&self, id: PathId) -> Reason {
        let wished = self.steer != Steer::Automatic
            && self
                .path(id)
                .is_some_and(|path| self.is_preferred(path) || matches!(self.steer, Steer::Pin(_)));
        match (wished, self.chosen.settled) {
            (true, _) => Reason::Operator,
            (false, true) => Reason::Failover,
            (false, false) => Reason::First,
        }
    }

    /// Whether to leave a path that is trusted still, and for which.
    fn improvement(
        &mut self,
        now: Instant,
        current: PathId,
        best_rank: Rank,
        best: PathId,
        usable: &[(Rank, PathId)],
    ) -> Option<(PathId, Reason)> {
        let &(rank, _) = usable.iter().find(|(_, id)| *id == current)?;
        let (best_doubtful, best_held, best_other, best_class, _) = best_rank;
        let (_, _, other, class, _) = rank;
        // The path in use keeps its place while it is only in doubt: the copy goes elsewhere.
        let possible = best != current && !best_doubtful && !best_held;
        if possible && !best_other && other {
            return Some((best, Reason::Operator));
        }
        if possible && best_other == other && best_class < class && !self.chosen.climb.holds(now) {
            return Some((best, Reason::Better));
        }
        self.faster(now, current).map(|id| (id, Reason::Faster))
    }

    /// A path of the same class that has been clearly cheaper for long enough.
    fn faster(&mut self, now: Instant, current: PathId) -> Option<PathId> {
        let path = self.path(current)?;
        let (class, cost, samples) = (path.class(), path.cost(), path.round_trip.samples);
        let preferred = self.is_preferred(path);
        let limit = (cost * BETTER_PERCENT / 100)
            .min(cost.saturating_sub(u64::try_from(BETTER_BY.as_micros()).unwrap_or(u64::MAX)));
        let permitted: Vec<PathId> = self
            .paths
            .iter()
            .filter(|path| self.is_permitted(path) && self.is_preferred(path) == preferred)
            .map(|path| path.id)
            .collect();
        let mut best: Option<(u64, PathId)> = None;
        for path in &mut self.paths {
            let cheaper = path.id != current
                && path.class() == class
                && path.is_proven()
                && !path.is_doubtful()
                && !path.penalty.holds(now)
                && permitted.contains(&path.id)
                && path.round_trip.samples >= FIRST_SAMPLES
                && samples >= FIRST_SAMPLES
                && path.cost() < limit;
            if !cheaper {
                path.cheaper_since = None;
                continue;
            }
            let since = *path.cheaper_since.get_or_insert(now);
            if now >= since + BETTER_FOR {
                let challenger = (path.cost(), path.id);
                best = Some(best.map_or(challenger, |best| best.min(challenger)));
            }
        }
        let (_, id) = best.filter(|_| self.chosen.latency_hold_until().is_none_or(|until| now >= until))?;
        let calm =
            self.chosen.last_latency_change.is_none_or(|last| now.saturating_duration_since(last) >= FORGIVE);
        self.chosen.latency_changes = if calm { 1 } else { self.chosen.latency_changes.saturating_add(1) };
        self.chosen.last_latency_change = Some(now);
        Some(id)
    }

    fn change(&mut self, now: Instant, id: PathId, reason: Reason) {
        self.chosen.primary = Some(id);
        self.chosen.reason = reason;
        self.chosen.since = Some(now);
        for path in &mut self.paths {
            path.cheaper_since = None;
        }
        if let Some(path) = self.path_mut(id) {
            path.promote(now);
        }
    }

    /// The copy while in doubt, and the standbys: the best other pair, and the best relay; for a relayed pair
    /// a way through another relay.
    fn assign_roles(&mut self, now: Instant, usable: &[(Rank, PathId)]) {
        let Some(primary) = self.chosen.primary.and_then(|id| self.path(id)) else { return };
        let (id, doubtful, relay) = (primary.id, primary.is_doubtful(), primary.route.relay());
        let others = || usable.iter().map(|(_, other)| *other).filter(move |other| *other != id);
        let relayed = |other: &PathId| self.path(*other).is_some_and(|path| path.class().is_relayed());
        let elsewhere = |other: &PathId| self.path(*other).is_some_and(|path| path.route.relay() != relay);
        let mut standby: Vec<PathId> = others().find(|other| !relayed(other)).into_iter().collect();
        let at_relay = others().filter(relayed).find(elsewhere).or_else(|| others().find(relayed));
        standby.extend(at_relay);
        let also = if doubtful { others().next().or_else(|| self.hopeful(Some(id))) } else { None };
        let newcomers: Vec<PathId> =
            standby.iter().copied().chain(also).filter(|other| !self.chosen.has_role(*other)).collect();
        let risen = also.filter(|other| !self.chosen.carries(*other));
        for other in newcomers.into_iter().chain(risen) {
            if let Some(path) = self.path_mut(other).filter(|path| path.is_proven()) {
                path.promote(now);
            }
        }
        self.chosen.also = also;
        self.chosen.standby = standby;
    }

    /// Nothing is proven. What was used last may come back, an open relay may lead to the peer already.
    fn hope(&mut self) {
        let last = self.chosen.primary.filter(|id| {
            self.path(*id)
                .is_some_and(|path| path.is_passable() && !path.is_failed() && self.is_permitted(path))
        });
        let first = last.or_else(|| self.hopeful(None));
        if first != self.chosen.primary || first.is_none() {
            self.chosen.primary = first;
            self.chosen.since = self.now;
        }
        self.chosen.reason = Reason::Hope;
        self.chosen.also = self.hopeful(first);
        self.chosen.standby.clear();
    }

    /// The most likely path that is not proven: relays that are open, a pair through which UDP passes, what
    /// worked last.
    fn hopeful(&self, except: Option<PathId>) -> Option<PathId> {
        let likely = |path: &&Path| {
            Some(path.id) != except && !path.is_proven() && self.is_permitted(path) && path.is_passable()
        };
        let worth = |path: &Path| {
            let relay = path.class().is_relayed() && !path.is_failed();
            (
                relay,
                path.reached,
                matches!(path.phase, Phase::Checking { .. }),
                path.last_proof,
                path.priority,
            )
        };
        let worked = |path: &&Path| path.class().needs_opening() || path.reached || path.last_proof.is_some();
        self.paths.iter().filter(likely).filter(worked).max_by_key(|path| worth(path)).map(|path| path.id)
    }

    /// The path in use missed an answer: everything that could replace it is asked now, and relays
    /// that failed get their chance sooner.
    pub(super) fn doubt(&mut self, now: Instant) {
        for path in &mut self.paths {
            let recent = path.last_sent.is_some_and(|sent| now < sent + HEALTH / 3);
            if path.is_proven() && !self.chosen.carries(path.id) && path.unanswered == 0 && !recent {
                path.urgent = true;
            }
            if path.is_failed() {
                path.forgive_opening();
            }
        }
    }

    /// All proven paths are asked at once: the network may have changed under them.
    pub(super) fn ask_proven(&mut self) {
        for path in &mut self.paths {
            if path.is_proven() && path.unanswered == 0 {
                path.urgent = true;
            }
        }
    }

    /// Going to sleep: the first packet after it goes by the last path and through the relay whose stream
    /// stays, so that it arrives though nobody has looked after either.
    pub(super) fn rest(&mut self) {
        let resting = |path: &&Path| match path.class() {
            Class::Direct => path.last_proof.is_some() && !path.is_failed(),
            Class::Derp => path.open,
            Class::Quic | Class::RelayPort => false,
        };
        let permitted: Vec<&Path> =
            self.paths.iter().filter(resting).filter(|path| self.is_permitted(path)).collect();
        let last = permitted.iter().find(|path| Some(path.id) == self.chosen.primary);
        let derp = permitted.iter().find(|path| path.class() == Class::Derp);
        let primary = last.or(derp).map(|path| path.id);
        let also = derp.map(|path| path.id).filter(|id| Some(*id) != primary);
        (self.chosen.primary, self.chosen.also) = (primary, also);
        self.chosen.standby.clear();
        self.chosen.reason = Reason::Hope;
        self.chosen.settled = false;
    }

    pub(super) fn tell_use(&mut self) {
        let named = |id: Option<PathId>| -> Option<(PathId, Route)> {
            id.and_then(|id| self.path(id)).map(|path| (path.id, path.route))
        };
        let told = InUse { primary: named(self.chosen.primary), also: named(self.chosen.also) };
        if told != self.chosen.told {
            self.chosen.told = told;
            self.outputs.push_back(Output::Use(told));
        }
    }
}
