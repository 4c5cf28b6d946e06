//! When what is tried.
//!
//! Direct pairs are tried in rounds, since both sides have to send at the same time: the side that begins calls
//! the other by its [`Attempt`](crate::signal::Attempt), through the coordinator and in every check. Relays are
//! tried each by itself, with its own pauses: only the relay has to answer.

use std::time::{Duration, Instant};

use rand::RngExt;

use super::PathMachine;
use crate::io::{Output, Steer};
use crate::path::{Failure, Path, Phase, doubled};
use crate::route::{Class, PathId, Route};
use crate::timing::{
    HEAD_START, HEALTH, LINGER, MAX_SPARES, NOWHERE_MOST, RELAY_PATIENCE, RELAY_RETRY_MOST, RETRY_FIRST,
    RETRY_MOST, REVIEW, ROUND_GAP,
};

/// Why a round begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// Traffic after a pause.
    Traffic,
    /// The peer called.
    PeerAsked,
    /// The peer has other addresses, or we have.
    Candidates,
    /// Our uplinks or their addresses changed.
    Network,
    /// The path in use was lost.
    Lost,
    /// The node slept.
    Resumed,
    /// An operator's wish.
    Operator,
    /// The coordinator sees the peer again.
    PeerBack,
    /// No path works.
    Nowhere,
    /// The path in use is not direct.
    NotDirect,
    /// There may be a better direct path.
    Review,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Planned {
    pub(crate) at: Instant,
    pub(crate) cause: Cause,
    announce: bool,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Rounds {
    /// Pairs are being tried.
    pub(crate) running: bool,
    pub(crate) started: Option<Instant>,
    pub(crate) next: Option<Planned>,
    /// Of the last one.
    pub(crate) cause: Option<Cause>,
    /// Rounds in a row without a direct path.
    pub(crate) fruitless: u32,
}

impl Rounds {
    pub(super) fn stop(&mut self) {
        self.running = false;
        self.next = None;
    }
}

impl PathMachine {
    pub(super) fn call_round_if_awake(&mut self, now: Instant, cause: Cause) {
        if self.is_awake() {
            self.call_round(now, cause, true);
        }
    }

    /// A round begins as soon as the last one's beginning is [`ROUND_GAP`] ago. `announce`: the peer shall
    /// begin one too.
    pub(super) fn call_round(&mut self, now: Instant, cause: Cause, announce: bool) {
        let at = self.rounds.started.map_or(now, |started| now.max(started + ROUND_GAP));
        let sooner = self.rounds.next.filter(|next| next.at <= at);
        let announce = announce || sooner.is_some_and(|next| next.announce);
        let cause = sooner.map_or(cause, |next| next.cause);
        let at = sooner.map_or(at, |next| next.at);
        self.rounds.next = Some(Planned { at, cause, announce });
    }

    pub(super) fn rounds_due(&self, now: Instant) -> Option<Instant> {
        let most = self.relay_pause();
        let mut due: Vec<Instant> = self.rounds.next.iter().map(|next| next.at).collect();
        if let Some(started) = self.rounds.started
            && now < started + HEAD_START
            && self.is_quic_pending(now)
        {
            due.push(started + HEAD_START);
        }
        for path in &self.paths {
            due.extend(path.unwanted_since.map(|since| since + LINGER));
            if path.class().is_relayed() {
                match path.phase {
                    Phase::Failed { at } if !path.may_reopen(now, most) => due.push(path.reopen_at(at, most)),
                    Phase::Opening { since } | Phase::Checking { since } if now < since + RELAY_PATIENCE => {
                        due.push(since + RELAY_PATIENCE);
                    }
                    _ => {}
                }
            }
        }
        due.into_iter().min()
    }

    /// Decides what is tried from now on.
    pub(super) fn plan(&mut self, now: Instant) {
        if let Some(next) = self.rounds.next
            && now >= next.at
        {
            if !matches!(next.cause, Cause::NotDirect | Cause::Review | Cause::Nowhere) {
                // Something is new: relays that did not answer may now.
                self.paths.iter_mut().for_each(Path::forgive_opening);
            }
            self.rounds.cause = Some(next.cause);
            self.begin_round(now, next.announce);
        }
        self.plan_relays(now);
        self.plan_quic(now);
        if self.rounds.running && self.is_round_over(now) {
            self.end_round(now);
        }
        self.close_unwanted(now);
    }

    fn begin_round(&mut self, now: Instant, announce: bool) {
        self.rounds.next = None;
        self.rounds.running = true;
        self.rounds.started = Some(now);
        // Who is awake only because the peer asked does not ask back, or two idle sides would keep each other up.
        if announce && self.has_traffic(now) {
            self.attempt.number = self.attempt.number.max(self.called_before).saturating_add(1);
            self.attempt.birthday = false;
            self.telling.due = true;
        }
        for path in &mut self.paths {
            match path.class() {
                // Pairs that are being tried start again too: the peer may only have begun now.
                Class::Direct if !path.is_proven() => {
                    let _ = path.start(now);
                }
                Class::Quic if !path.open && !path.is_busy() => {
                    path.phase = Phase::Parked;
                    path.reached = false;
                }
                Class::Direct | Class::Quic | Class::RelayPort | Class::Derp => {}
            }
        }
    }

    fn is_round_over(&self, now: Instant) -> bool {
        let busy = |path: &Path| !path.class().is_relayed() && path.is_busy();
        let head_start = self.rounds.started.is_some_and(|started| now < started + HEAD_START);
        let quic_waits = head_start && self.is_quic_pending(now);
        !(quic_waits || self.paths.iter().any(busy))
    }

    /// Plans the next round.
    fn end_round(&mut self, now: Instant) {
        self.rounds.running = false;
        self.trim_spares();
        self.close_spare_auxiliary();
        let proven = |class: Class| self.paths.iter().any(|path| path.is_proven() && path.class() == class);
        let direct = proven(Class::Direct);
        let anything = self.paths.iter().any(Path::is_proven);
        let (pause, cause) = if direct {
            self.rounds.fruitless = 0;
            (REVIEW, Cause::Review)
        } else {
            let most = if anything { RETRY_MOST } else { NOWHERE_MOST };
            let cause = if anything { Cause::NotDirect } else { Cause::Nowhere };
            (doubled(RETRY_FIRST, self.rounds.fruitless, most), cause)
        };
        if !direct {
            self.rounds.fruitless = self.rounds.fruitless.saturating_add(1);
            if anything && self.rounds.fruitless >= 2 && self.has_traffic(now) {
                self.call_birthday(now);
            }
        }
        if self.rounds.next.is_none() {
            let at = now + self.jittered(pause);
            self.rounds.next = Some(Planned { at, cause, announce: true });
        }
    }

    /// A tenth more or less, so that many peers' rounds spread out.
    fn jittered(&mut self, pause: Duration) -> Duration {
        pause * self.rng.random_range(90..=110_u32) / 100
    }

    // QUIC

    fn wants_quic(&self, now: Instant) -> bool {
        self.is_quic_called_for() || !self.has_good(Class::Direct, now)
    }

    /// An operator asks for it here; the peer may know nothing of that.
    fn is_quic_called_for(&self) -> bool {
        match self.steer {
            Steer::Automatic => false,
            Steer::Prefer(filter) | Steer::Pin(filter) => filter.class == Some(Class::Quic),
        }
    }

    /// A path of this class works and is not suspected of failing soon.
    fn has_good(&self, class: Class, now: Instant) -> bool {
        let good = |path: &Path| {
            path.class() == class && path.is_proven() && !path.is_doubtful() && !path.penalty.holds(now)
        };
        self.paths.iter().any(good)
    }

    fn is_untried(&self, path: &Path) -> bool {
        path.phase == Phase::Parked
            && !path.reached
            && path.failure.is_none_or(|(_, at)| self.rounds.started.is_some_and(|started| at < started))
    }

    /// QUIC is to be tried in this round and was not yet.
    fn is_quic_pending(&self, now: Instant) -> bool {
        self.rounds.running
            && self.wants_quic(now)
            && !self.paths.iter().any(|path| path.class() == Class::Quic && path.is_proven())
            && self.paths.iter().any(|path| path.class() == Class::Quic && self.is_untried(path))
    }

    fn plan_quic(&mut self, now: Instant) {
        let head_start_over = self.rounds.started.is_some_and(|started| now >= started + HEAD_START);
        if head_start_over && self.is_quic_pending(now) {
            let untried: Vec<PathId> = self
                .paths
                .iter()
                .filter(|path| path.class() == Class::Quic && self.is_untried(path))
                .map(|path| path.id)
                .collect();
            for id in untried {
                if let Some(path) = self.path_mut(id) {
                    let _ = path.start(now);
                }
            }
        }
        self.connect_quic(now);
    }

    /// Of the QUIC pairs through which UDP passes, the controlling side connects one; the other side waits, unless an operator
    /// wants QUIC here.
    fn connect_quic(&mut self, now: Instant) {
        let has_one = self.paths.iter().any(|path| {
            path.class() == Class::Quic && (path.open || matches!(path.phase, Phase::Opening { .. }))
        });
        let mut best: Option<(u64, PathId)> = None;
        for path in &mut self.paths {
            if path.class() != Class::Quic || !path.reached || path.open {
                continue;
            }
            if matches!(path.phase, Phase::Checking { .. }) {
                path.phase = Phase::Parked;
                path.urgent = false;
            }
            if path.phase == Phase::Parked {
                best = best.max(Some((path.priority, path.id)));
            }
        }
        let Some((_, id)) = best else { return };
        let calls = self.controlling || self.is_quic_called_for();
        if has_one || !calls || !self.wants_quic(now) {
            return;
        }
        let Some(path) = self.path_mut(id) else { return };
        path.phase = Phase::Opening { since: now };
        path.reached = false;
        let open = Output::Open(path.id, path.route);
        self.outputs.push_back(open);
    }

    // Relays

    /// The longest pause before a failed relay is tried again.
    fn relay_pause(&self) -> Duration {
        if self.paths.iter().any(Path::is_proven) { RELAY_RETRY_MOST } else { NOWHERE_MOST }
    }

    fn plan_relays(&mut self, now: Instant) {
        let most = self.relay_pause();
        let wanted = self.wanted_relays(now);
        let mut opened = Vec::new();
        for path in &mut self.paths {
            if !path.class().is_relayed() {
                continue;
            }
            if !wanted.contains(&path.route) {
                if path.is_proven() || path.open || path.is_busy() {
                    path.unwanted_since.get_or_insert(now);
                }
                continue;
            }
            path.unwanted_since = None;
            let startable = match path.phase {
                Phase::Parked => true,
                Phase::Failed { .. } => path.may_reopen(now, most),
                Phase::Opening { .. } | Phase::Checking { .. } | Phase::Proven { .. } => false,
            };
            if startable && path.start(now) {
                opened.push(Output::Open(path.id, path.route));
            }
        }
        self.outputs.extend(opened);
    }

    /// What is to be up, or on its way. Nothing works yet: two relays' ways at a time, another one whenever
    /// [`RELAY_PATIENCE`] has passed. Something works: that, what would be better, and one standby at another
    /// relay if nothing is direct.
    fn wanted_relays(&self, now: Instant) -> Vec<Route> {
        let most = self.relay_pause();
        let in_hand = |route: &Route| self.paths.iter().find(|path| path.route == *route);
        let direct = self.has_good(Class::Direct, now) || self.has_good(Class::Quic, now);
        let works =
            |route: &&Route| in_hand(route).is_some_and(|path| path.is_proven() && !path.is_doubtful());
        // What the operator asks for, in any case.
        let wished = |route: &&Route| match self.steer {
            Steer::Automatic => false,
            Steer::Prefer(filter) | Steer::Pin(filter) => filter.matches(route),
        };
        let mut wanted: Vec<Route> = self.relay_order.iter().filter(wished).copied().collect();
        if let Some(first) = self.relay_order.iter().find(works) {
            wanted.extend(self.relay_order.iter().take_while(|route| *route != first));
            wanted.push(*first);
            if !direct {
                let alive = |route: &Route| {
                    in_hand(route).is_some_and(|path| !path.is_failed() || path.may_reopen(now, most))
                };
                let others = self.relay_order.iter().filter(|route| !wanted.contains(route) && alive(route));
                let others: Vec<Route> = others.copied().collect();
                let elsewhere = others.iter().find(|route| route.relay() != first.relay());
                let standby = elsewhere.or(others.first()).copied();
                wanted.extend(standby);
            }
            // What carries traffic is kept until something better does.
            wanted
                .extend(self.paths.iter().filter(|path| self.chosen.carries(path.id)).map(|path| path.route));
            return wanted;
        }
        let mut young = 0;
        let at_once = if direct { 1 } else { 2 };
        for route in self.relays_by_turns() {
            let Some(path) = in_hand(&route) else { continue };
            match path.phase {
                Phase::Opening { since } | Phase::Checking { since } => {
                    young += usize::from(now < since + RELAY_PATIENCE);
                }
                Phase::Proven { .. } => {}
                Phase::Failed { .. } if !path.may_reopen(now, most) => continue,
                Phase::Failed { .. } | Phase::Parked if young < at_once => young += 1,
                Phase::Failed { .. } | Phase::Parked => continue,
            }
            wanted.push(route);
        }
        wanted
    }

    /// First UDP, first TLS, second UDP, second TLS: what fails alike does not come one after the other.
    fn relays_by_turns(&self) -> Vec<Route> {
        let of = |class| self.relay_order.iter().filter(move |route| route.class() == class).copied();
        let (udp, tls): (Vec<Route>, Vec<Route>) =
            (of(Class::RelayPort).collect(), of(Class::Derp).collect());
        let longest = udp.len().max(tls.len());
        (0..longest).flat_map(|at| [udp.get(at).copied(), tls.get(at).copied()]).flatten().collect()
    }

    // Tidying up

    fn close_unwanted(&mut self, now: Instant) {
        let direct = self.has_good(Class::Direct, now);
        let mut closed = Vec::new();
        let mut obsolete = Vec::new();
        for path in &mut self.paths {
            if path.class() == Class::Quic {
                let idle = direct && path.open && !self.chosen.carries(path.id);
                path.unwanted_since = idle.then(|| path.unwanted_since.unwrap_or(now));
            }
            if path.unwanted_since.is_none_or(|since| now < since + LINGER) {
                continue;
            }
            path.unwanted_since = None;
            path.phase = Phase::Parked;
            path.open = false;
            path.reached = false;
            closed.push(Output::Close(path.id, path.route));
            if path.class().is_relayed() && !self.relay_order.contains(&path.route) {
                obsolete.push(path.id);
            }
        }
        self.outputs.extend(closed);
        for id in obsolete {
            self.remove_path(id);
        }
    }

    /// Keeps the cheapest of the direct paths that have no role proven, and lets go of the others and of
    /// unsuccessful guesses.
    fn trim_spares(&mut self) {
        let mut spares: Vec<(u64, PathId)> = self
            .paths
            .iter()
            .filter(|path| {
                path.class() == Class::Direct && path.is_proven() && !self.chosen.has_role(path.id)
            })
            .map(|path| (path.cost(), path.id))
            .collect();
        spares.sort_unstable();
        for (_, id) in spares.into_iter().skip(MAX_SPARES) {
            if let Some(path) = self.path_mut(id) {
                path.phase = Phase::Parked;
            }
        }
    }

    /// Gives up what has waited too long.
    pub(super) fn expire(&mut self, now: Instant) {
        if let Some(path) = self.path_of_mute_peer(now).and_then(|id| self.path_mut(id)) {
            path.grace = Some(now + HEALTH);
        }
        let expired = |path: &Path| path.expired(self.role_interval(path), now).map(|why| (path.id, why));
        let lost: Vec<(PathId, Failure)> = self.paths.iter().filter_map(expired).collect();
        for (id, why) in lost {
            self.fail_path(now, id, why);
        }
    }

    /// The path in use, if it would be given up now although the peer's packets keep coming and no other way has answered
    /// since it was asked in vain: the peer's daemon is away, and its kernel goes on with what it has. Whatever
    /// needs its daemon (streams, QUIC) would lead nowhere. That its packets are authentic is its consent.
    fn path_of_mute_peer(&self, now: Instant) -> Option<PathId> {
        let received = self.activity.last_received.is_some_and(|at| now < at + HEALTH);
        let path = self.path(self.chosen.primary?).filter(|_| received)?;
        let asked = path.last_proof? + HEALTH;
        let answers = |other: &Path| other.id != path.id && other.last_proof.is_some_and(|at| at >= asked);
        let carried_by_kernel = matches!(path.class(), Class::Direct | Class::RelayPort);
        let due = path.expired(self.role_interval(path), now).is_some();
        (due && path.is_proven() && carried_by_kernel && !self.paths.iter().any(answers)).then_some(path.id)
    }
}
