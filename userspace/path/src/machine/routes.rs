//! Which paths there are.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::PathMachine;
use super::rounds::Cause;
use crate::io::Output;
use crate::path::{Failure, Path};
use crate::route::{Base, Class, PathId, RelayId, Route, can_pair, is_sane};
use crate::signal::{Candidate, CandidateKind, LocalCandidate, pair_priority, priority};
use crate::timing::{
    BIRTHDAY_PORTS, MAX_BASES, MAX_CANDIDATES, MAX_PATHS, MAX_REFLEXIVE, MAX_RELAYS, REFLEXIVE_WINDOW,
};

impl PathMachine {
    pub(super) fn set_local_candidates(&mut self, now: Instant, mut candidates: Vec<LocalCandidate>) {
        candidates.retain(|candidate| is_sane(candidate.address) && is_sane(candidate.base.address));
        candidates.truncate(MAX_BASES * 4);
        if candidates == self.here.candidates {
            return;
        }
        let before = self.bases();
        self.here.candidates = candidates;
        self.telling.due = true;
        let bases = self.bases();
        if before != bases {
            // Another network: its paths owe nothing to what happened in the old one.
            for path in &mut self.paths {
                path.penalty = crate::path::Penalty::default();
            }
            self.chosen.calm_down();
            let gone = |base: &Base| !bases.iter().any(|held| held.uplink == base.uplink);
            let lost: Vec<Base> = self.here.auxiliary.iter().copied().filter(gone).collect();
            self.here.auxiliary.retain(|base| !lost.contains(base));
            if !lost.is_empty() {
                self.outputs.push_back(Output::CloseAuxiliaryPorts(lost));
            }
        }
        self.sync_pairs();
        if self.is_awake() {
            self.rounds.fruitless = 0;
            if before != bases {
                self.ask_proven();
            }
            let cause = if before == bases { Cause::Candidates } else { Cause::Network };
            self.call_round(now, cause, true);
        }
    }

    /// Our bases in the edge's order, which is the order of preference of the uplinks.
    pub(crate) fn bases(&self) -> Vec<Base> {
        let mut bases = Vec::new();
        for candidate in &self.here.candidates {
            if !bases.contains(&candidate.base) && bases.len() < MAX_BASES {
                bases.push(candidate.base);
            }
        }
        bases
    }

    pub(super) fn candidates_to_tell(&self) -> Vec<Candidate> {
        let bases = self.bases();
        let mut told: Vec<Candidate> = Vec::new();
        let mut tell = |kind, base: Base, address: SocketAddr| {
            let position = bases.iter().position(|held| *held == base).unwrap_or(MAX_BASES);
            let priority = priority(kind, address, position);
            match told.iter_mut().find(|old| old.address == address && old.socket == base.socket) {
                Some(old) if old.priority >= priority => {}
                Some(old) => (old.kind, old.priority) = (kind, priority),
                None => told.push(Candidate { socket: base.socket, kind, address, priority }),
            }
        };
        for local in &self.here.candidates {
            tell(local.kind, local.base, local.address);
            // A hard NAT that keeps the port if it can will use our own.
            if local.kind == CandidateKind::ServerReflexive && self.here.nat.is_hard() {
                let guess = SocketAddr::new(local.address.ip(), local.base.address.port());
                tell(CandidateKind::Guessed, local.base, guess);
            }
        }
        told.sort_by_key(|candidate| std::cmp::Reverse(candidate.priority));
        told.truncate(MAX_CANDIDATES);
        told
    }

    /// Makes the pairs fit the candidates of both sides. What stays keeps its state.
    pub(super) fn sync_pairs(&mut self) {
        let bases = self.bases();
        let candidates: Vec<Candidate> =
            self.there.as_ref().map(|signal| signal.candidates.clone()).unwrap_or_default();
        let mut wanted: Vec<(Route, CandidateKind, u64)> = Vec::new();
        for (position, base) in bases.iter().enumerate() {
            for candidate in &candidates {
                let fits = candidate.socket == base.socket
                    && is_sane(candidate.address)
                    && can_pair(base.address.ip(), candidate.address.ip())
                    && !self.is_own(candidate.address);
                let route = Route::Pair { base: *base, remote: candidate.address };
                if fits && !wanted.iter().any(|(held, ..)| *held == route) {
                    let own = priority(CandidateKind::Host, base.address, position);
                    let rank = pair_priority(self.controlling, own, candidate.priority);
                    wanted.push((route, candidate.kind, rank));
                }
            }
        }
        wanted.sort_by_key(|(_, _, rank)| std::cmp::Reverse(*rank));
        wanted.truncate(MAX_PATHS - MAX_REFLEXIVE - 2 * MAX_RELAYS);
        let gone: Vec<PathId> = self
            .paths
            .iter()
            .filter(|path| path.route.base().is_some_and(|base| !self.may_stay(path, base, &bases, &wanted)))
            .map(|path| path.id)
            .collect();
        for id in gone {
            self.remove_path(id);
        }
        for (route, kind, rank) in wanted {
            if let Some(path) = self.paths.iter_mut().find(|path| path.route == route) {
                (path.kind, path.priority) = (Some(kind), rank);
            } else if let Some(id) = self.add_path(route, Some(kind), rank) {
                self.try_at_once(id);
            }
        }
    }

    /// A new pair does not wait for the next round: the peer learns of it at about the same time.
    fn try_at_once(&mut self, id: PathId) {
        let (Some(now), true) = (self.now, self.is_awake()) else { return };
        if let Some(path) = self.path_mut(id).filter(|path| path.class() == Class::Direct) {
            let _ = path.start(now);
            self.rounds.running = true;
        }
    }

    /// Whether a pair survives a change of candidates: its base has to exist; if the peer names its address no
    /// more, it stays as long as it works.
    fn may_stay(
        &self,
        path: &Path,
        base: Base,
        bases: &[Base],
        wanted: &[(Route, CandidateKind, u64)],
    ) -> bool {
        if !bases.contains(&base) && !self.here.auxiliary.contains(&base) {
            return false;
        }
        wanted.iter().any(|(route, ..)| *route == path.route)
            || path.is_proven()
            || path.kind == Some(CandidateKind::PeerReflexive) && !path.is_failed()
    }

    fn is_own(&self, address: SocketAddr) -> bool {
        self.here.candidates.iter().any(|own| own.base.address == address)
    }

    pub(super) fn add_path(
        &mut self,
        route: Route,
        kind: Option<CandidateKind>,
        rank: u64,
    ) -> Option<PathId> {
        if self.paths.len() >= MAX_PATHS {
            return None;
        }
        let id = PathId(self.next_path);
        self.next_path = self.next_path.wrapping_add(1);
        self.paths.push(Path::new(id, route, kind, rank));
        Some(id)
    }

    /// A path to an address that only a check has shown. `None`: no such base, or too many already.
    pub(super) fn add_reflexive(&mut self, route: Route) -> Option<PathId> {
        let Route::Pair { base, remote } = route else { return None };
        let bases = self.bases();
        let position = bases.iter().position(|held| *held == base);
        let known = position.is_some() || self.here.auxiliary.contains(&base);
        if !known || !is_sane(remote) || self.is_own(remote) {
            return None;
        }
        if !self.may_add_reflexive() {
            return None;
        }
        let reflexive = |path: &&Path| path.kind == Some(CandidateKind::PeerReflexive);
        if self.paths.iter().filter(reflexive).count() >= MAX_REFLEXIVE {
            let spare = self.paths.iter().filter(reflexive).find(|path| !path.is_proven())?.id;
            self.remove_path(spare);
        }
        let own = priority(CandidateKind::Host, base.address, position.unwrap_or(MAX_BASES));
        let peers = priority(CandidateKind::PeerReflexive, remote, 0);
        let rank = pair_priority(self.controlling, own, peers);
        self.add_path(route, Some(CandidateKind::PeerReflexive), rank)
    }

    /// At most [`MAX_REFLEXIVE`] in each [`REFLEXIVE_WINDOW`]; counts this one.
    fn may_add_reflexive(&mut self) -> bool {
        let Some(now) = self.now else { return false };
        let (since, count) =
            self.reflexive.filter(|(since, _)| now < *since + REFLEXIVE_WINDOW).unwrap_or((now, 0));
        let may = count < MAX_REFLEXIVE;
        self.reflexive = Some((since, count + usize::from(may)));
        may
    }

    pub(super) fn remove_path(&mut self, id: PathId) {
        let Some(position) = self.paths.iter().position(|path| path.id == id) else { return };
        let path = self.paths.remove(position);
        if path.class().needs_opening() && (path.open || path.is_busy()) {
            self.outputs.push_back(Output::Close(path.id, path.route));
        }
        if path.admitted {
            self.outputs.push_back(Output::Dismiss(path.id, path.route));
        }
        self.chosen.forget(id);
    }

    /// The relays that both sides can use, best first: the least sum of both latencies; equal on both sides.
    pub(super) fn sync_relays(&mut self) {
        let there = self.there.as_ref().map(|signal| signal.relays.clone()).unwrap_or_default();
        let mut udp: Vec<(Duration, RelayId)> = Vec::new();
        let mut tls: Vec<(Duration, RelayId)> = Vec::new();
        for own in &self.here.relays {
            let Some(theirs) = there.iter().find(|offer| offer.relay == own.relay) else { continue };
            if let (Some(a), Some(b)) = (own.udp.latency(), theirs.udp.latency()) {
                udp.push((a.saturating_add(b), own.relay));
            }
            if let (Some(a), Some(b)) = (own.tls.latency(), theirs.tls.latency()) {
                tls.push((a.saturating_add(b), own.relay));
            }
        }
        let best = |mut relays: Vec<(Duration, RelayId)>| {
            relays.sort_unstable();
            relays.dedup_by_key(|(_, relay)| *relay);
            relays.truncate(MAX_RELAYS);
            relays.into_iter().map(|(_, relay)| relay)
        };
        let order: Vec<Route> = best(udp).map(Route::RelayPort).chain(best(tls).map(Route::Derp)).collect();
        let gone: Vec<PathId> = self
            .paths
            .iter()
            .filter(|path| path.class().is_relayed() && !order.contains(&path.route) && !path.is_proven())
            .map(|path| path.id)
            .collect();
        for id in gone {
            self.remove_path(id);
        }
        for route in &order {
            if self.find(*route).is_none() {
                self.make_room();
                self.add_path(*route, None, 0);
            }
        }
        self.relay_order = order;
    }

    /// A relay is worth more than the least promising pair.
    fn make_room(&mut self) {
        if self.paths.len() < MAX_PATHS {
            return;
        }
        let pairs = self.paths.iter().filter(|path| !path.class().is_relayed());
        let spare = pairs.min_by_key(|path| (path.is_proven(), path.priority)).map(|path| path.id);
        if let Some(id) = spare {
            self.remove_path(id);
        }
    }

    /// Whether the pair has a relay in common.
    pub(crate) fn has_relays(&self) -> bool {
        !self.relay_order.is_empty()
    }

    pub(super) fn fail_route(&mut self, now: Instant, route: Route, why: Failure) {
        if let Some(id) = self.find(route) {
            self.fail_path(now, id, why);
        }
    }

    /// Marks a path as failed and gives back what it held.
    pub(super) fn fail_path(&mut self, now: Instant, id: PathId, why: Failure) {
        let in_use = self.chosen.carries(id);
        let primary = self.chosen.primary == Some(id);
        let Some(path) = self.path_mut(id) else { return };
        let was_proven = path.is_proven();
        path.fail(now, why);
        if was_proven && in_use {
            path.punish(now);
        }
        if path.class().needs_opening() {
            path.open = false;
            let closed = Output::Close(path.id, path.route);
            self.outputs.push_back(closed);
        }
        if was_proven && primary {
            self.chosen.climb.add(now);
        }
        if was_proven && in_use {
            self.rounds.fruitless = 0;
            self.call_round_if_awake(now, Cause::Lost);
        }
        if !self.is_awake() {
            self.rest();
        }
    }

    pub(super) fn set_auxiliary(&mut self, now: Instant, mut bases: Vec<Base>) {
        bases.truncate(usize::from(BIRTHDAY_PORTS));
        self.here.auxiliary = bases;
        self.sync_pairs();
        self.auxiliary_ready(now);
    }

    /// Closes the auxiliary ports that nobody needs.
    pub(super) fn close_auxiliary(&mut self, needed: impl Fn(&Base) -> bool) {
        let (kept, closed): (Vec<Base>, Vec<Base>) =
            std::mem::take(&mut self.here.auxiliary).into_iter().partition(needed);
        self.here.auxiliary = kept;
        if closed.is_empty() {
            return;
        }
        let gone: Vec<PathId> = self
            .paths
            .iter()
            .filter(|path| path.route.base().is_some_and(|base| closed.contains(&base)))
            .map(|path| path.id)
            .collect();
        for id in gone {
            self.remove_path(id);
        }
        self.outputs.push_back(Output::CloseAuxiliaryPorts(closed));
    }
}
