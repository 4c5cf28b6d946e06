//! One path: where it stands, what was sent over it, how long its round trip is, how often it failed us.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::io::{CarrierFailure, Transaction};
use crate::route::{Class, Framing, PathId, Route, is_private};
use crate::signal::CandidateKind;
use crate::timing::{
    FIRST_PATIENCE, FIRST_SAMPLES, FORGIVE, HEALTH, HOLD_FIRST, HOLD_MOST, LEAST_PATIENCE, MEASURE,
    MOST_PATIENCE, OPEN_TIMEOUT, RELAY_PATIENCE, REMEMBERED, TRIES, TRUST_MARGIN,
};

/// Why a path does not work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Failure {
    /// No check was ever answered.
    NoAnswer,
    /// It worked and fell silent.
    Silent,
    /// Plain STUN passes, WireGuard-shaped packets do not.
    WireGuardBlocked,
    /// Checks pass, WireGuard's data brings no reply.
    DataSilent,
    /// The relay or the QUIC connection did not come up in time.
    OpenTimeout,
    /// The edge could not open it, or lost it.
    Carrier(CarrierFailure),
}

/// Where a path stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Not tried for now.
    Parked,
    /// The edge is opening it.
    Opening { since: Instant },
    /// Checks are on their way, none has shown yet that it carries WireGuard.
    Checking { since: Instant },
    /// It carries WireGuard.
    Proven { since: Instant },
    /// It does not.
    Failed { at: Instant },
}

/// Smoothed round trip time (RFC 6298).
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RoundTrip {
    smoothed: Duration,
    variation: Duration,
    pub(crate) samples: u32,
}

impl RoundTrip {
    fn add(&mut self, sample: Duration) {
        if self.samples == 0 {
            self.smoothed = sample;
            self.variation = sample / 2;
        } else {
            self.variation = (self.variation * 3 + self.smoothed.abs_diff(sample)) / 4;
            self.smoothed = (self.smoothed * 7 + sample) / 8;
        }
        self.samples = self.samples.saturating_add(1);
    }

    pub(crate) fn get(&self) -> Option<Duration> {
        (self.samples > 0).then_some(self.smoothed)
    }

    fn patience(&self, unanswered: u32) -> Duration {
        let first = match self.get() {
            None => FIRST_PATIENCE,
            Some(smoothed) => smoothed + self.variation * 4,
        };
        // Half as long again each time, so that a slow path is waited for in the end.
        let grown = (1..unanswered.min(8)).fold(first, |patience, _| patience * 3 / 2);
        grown.clamp(LEAST_PATIENCE, MOST_PATIENCE.max(first))
    }
}

/// How often a path let us down while it was used, and until when that counts.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Penalty {
    count: u32,
    pub(crate) until: Option<Instant>,
}

impl Penalty {
    pub(crate) fn add(&mut self, now: Instant) {
        let forgiven = self.until.is_some_and(|until| now.saturating_duration_since(until) >= FORGIVE);
        self.count = if forgiven { 1 } else { self.count.saturating_add(1) };
        self.until = Some(now + doubled(HOLD_FIRST, self.count - 1, HOLD_MOST));
    }

    pub(crate) fn holds(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }
}

/// `first` doubled so many times, at most `most`.
pub(crate) fn doubled(first: Duration, times: u32, most: Duration) -> Duration {
    first.saturating_mul(1_u32 << times.min(20)).min(most)
}

#[derive(Clone, Copy, Debug)]
struct Sent {
    transaction: Transaction,
    framing: Framing,
    at: Instant,
}

/// What an answer did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answered {
    /// UDP passes; that it carries WireGuard has to be shown yet.
    Reached,
    /// It carries WireGuard, for the first time or again.
    Proven,
}

#[derive(Clone, Debug)]
pub(crate) struct Path {
    pub(crate) id: PathId,
    pub(crate) route: Route,
    /// Of the remote candidate; `None` for relays.
    pub(crate) kind: Option<CandidateKind>,
    pub(crate) priority: u64,
    pub(crate) phase: Phase,
    /// The relay or connection is up.
    pub(crate) open: bool,
    pub(crate) admitted: bool,
    /// A plain check was answered in this round.
    pub(crate) reached: bool,
    pub(crate) round_trip: RoundTrip,
    pub(crate) last_proof: Option<Instant>,
    pub(crate) last_sent: Option<Instant>,
    sent: VecDeque<Sent>,
    /// Checks since the last answer (or since checking began).
    pub(crate) unanswered: u32,
    /// So many of them were given up.
    pub(crate) misses: u32,
    /// Trusted until then whatever the last proof: it was just given a stricter role.
    pub(crate) grace: Option<Instant>,
    /// Ask now.
    pub(crate) urgent: bool,
    pub(crate) failure: Option<(Failure, Instant)>,
    pub(crate) penalty: Penalty,
    /// Failures in a row.
    open_failures: u32,
    /// The controlling side said that it uses this path.
    pub(crate) nominated: bool,
    pub(crate) unwanted_since: Option<Instant>,
    /// Cheaper than the path in use since then.
    pub(crate) cheaper_since: Option<Instant>,
}

impl Path {
    pub(crate) fn new(id: PathId, route: Route, kind: Option<CandidateKind>, priority: u64) -> Self {
        Self {
            id,
            route,
            kind,
            priority,
            phase: Phase::Parked,
            open: false,
            admitted: false,
            reached: false,
            round_trip: RoundTrip::default(),
            last_proof: None,
            last_sent: None,
            sent: VecDeque::new(),
            unanswered: 0,
            misses: 0,
            grace: None,
            urgent: false,
            failure: None,
            penalty: Penalty::default(),
            open_failures: 0,
            nominated: false,
            unwanted_since: None,
            cheaper_since: None,
        }
    }

    pub(crate) fn class(&self) -> Class {
        self.route.class()
    }

    pub(crate) fn is_proven(&self) -> bool {
        matches!(self.phase, Phase::Proven { .. })
    }

    pub(crate) fn is_failed(&self) -> bool {
        matches!(self.phase, Phase::Failed { .. })
    }

    /// Being tried: opening or checking.
    pub(crate) fn is_busy(&self) -> bool {
        matches!(self.phase, Phase::Opening { .. } | Phase::Checking { .. })
    }

    /// A check is overdue.
    pub(crate) fn is_doubtful(&self) -> bool {
        self.misses > 0
    }

    /// Data can be sent, though nothing may be proven.
    pub(crate) fn is_passable(&self) -> bool {
        self.class() == Class::Direct || self.open
    }

    /// Lower is better, within a class: microseconds of round trip, corrected.
    pub(crate) fn cost(&self) -> u64 {
        let Some(round_trip) = self.round_trip.get() else { return u64::MAX / 200 };
        let mut cost = u64::try_from(round_trip.as_micros()).unwrap_or(u64::MAX / 200);
        if let Some(remote) = self.route.remote() {
            if remote.is_ipv6() {
                cost = cost * 90 / 100;
            }
            // Two ways that differ by nothing but the router's detour: stay in the house.
            if is_private(remote.ip()) {
                cost = cost * 80 / 100;
            }
        }
        if self.nominated { cost * 85 / 100 } else { cost }
    }

    /// Starts checks from the beginning, opening it first where that is needed. True: the edge has to open it.
    #[must_use]
    pub(crate) fn start(&mut self, now: Instant) -> bool {
        self.unanswered = 0;
        self.misses = 0;
        self.reached = false;
        self.urgent = false;
        self.unwanted_since = None;
        self.cheaper_since = None;
        if self.class().is_relayed() && !self.open {
            self.phase = Phase::Opening { since: now };
            return true;
        }
        self.phase = Phase::Checking { since: now };
        false
    }

    pub(crate) fn opened(&mut self, now: Instant) {
        self.open = true;
        if !self.is_proven() {
            let _ = self.start(now);
        }
    }

    pub(crate) fn fail(&mut self, now: Instant, why: Failure) {
        self.phase = Phase::Failed { at: now };
        self.failure = Some((why, now));
        self.misses = 0;
        self.unanswered = 0;
        self.urgent = false;
        self.reached = false;
        self.nominated = false;
        self.cheaper_since = None;
        if self.class().needs_opening() {
            self.open_failures = self.open_failures.saturating_add(1);
        }
    }

    /// It was used when it failed.
    pub(crate) fn punish(&mut self, now: Instant) {
        self.penalty.add(now);
    }

    /// Proofs of before mean nothing any more: the node slept, or nobody looked.
    pub(crate) fn distrust(&mut self, now: Instant) {
        self.sent.clear();
        self.unanswered = 0;
        self.misses = 0;
        self.reached = false;
        self.cheaper_since = None;
        self.nominated = false;
        if self.is_proven() {
            self.phase = Phase::Checking { since: now };
        }
    }

    /// It gets a role in which it is trusted for a shorter time: ask now, and wait for the answer.
    pub(crate) fn promote(&mut self, now: Instant) {
        if self.last_proof.is_none_or(|proof| now.saturating_duration_since(proof) > HEALTH) {
            self.urgent = true;
        }
        self.grace = Some(now + TRUST_MARGIN);
    }

    /// How it is dressed next. A direct path alternates until UDP is shown to pass, since a middlebox may let
    /// through only one of both; from then on only what carries counts.
    pub(crate) fn framing(&self) -> Framing {
        let plain = match self.class() {
            Class::Direct => !self.is_proven() && !self.reached && self.unanswered.is_multiple_of(2),
            Class::Quic => !self.open,
            Class::RelayPort | Class::Derp => false,
        };
        if plain { Framing::Stun } else { Framing::Carried }
    }

    pub(crate) fn note_sent(&mut self, now: Instant, transaction: Transaction, framing: Framing) {
        if self.sent.len() == REMEMBERED {
            self.sent.pop_front();
        }
        self.sent.push_back(Sent { transaction, framing, at: now });
        self.unanswered = self.unanswered.saturating_add(1);
        self.last_sent = Some(now);
        self.urgent = false;
    }

    /// Whether the transaction is one of ours, and what its answer means.
    pub(crate) fn answer(&mut self, now: Instant, transaction: Transaction) -> Option<Answered> {
        let at = self.sent.iter().position(|sent| sent.transaction == transaction)?;
        let sent = self.sent.remove(at)?;
        let round_trip = now.saturating_duration_since(sent.at);
        if sent.framing == Framing::Stun {
            let first = !std::mem::replace(&mut self.reached, true);
            if first && !self.is_proven() {
                self.unanswered = 0;
                self.misses = 0;
                self.urgent = true;
            }
            return Some(Answered::Reached);
        }
        if self.class().needs_opening() && !self.open {
            return None;
        }
        self.round_trip.add(round_trip);
        self.last_proof = Some(now);
        self.unanswered = 0;
        self.misses = 0;
        self.urgent = false;
        self.open_failures = 0;
        if !self.is_proven() {
            self.phase = Phase::Proven { since: now };
        }
        Some(Answered::Proven)
    }

    pub(crate) fn patience(&self) -> Duration {
        self.round_trip.patience(self.unanswered)
    }

    /// When a failed relay may be tried again.
    pub(crate) fn reopen_at(&self, failed: Instant, most: Duration) -> Instant {
        failed + doubled(RELAY_PATIENCE, self.open_failures.saturating_sub(1), most)
    }

    /// Whether that time has come.
    pub(crate) fn may_reopen(&self, now: Instant, most: Duration) -> bool {
        matches!(self.phase, Phase::Failed { at } if now >= self.reopen_at(at, most))
    }

    /// Pauses start from the beginning.
    pub(crate) fn forgive_opening(&mut self) {
        self.open_failures = 0;
    }

    /// The interval between checks while nothing is wrong.
    pub(crate) fn interval(&self, role: Duration) -> Duration {
        if self.round_trip.samples < FIRST_SAMPLES { MEASURE } else { role }
    }

    /// Until when the last proof counts.
    pub(crate) fn trusted_until(&self, role: Duration) -> Option<Instant> {
        self.last_proof.map(|proof| proof + role + TRUST_MARGIN).max(self.grace)
    }

    /// When something has to be done about this path, if nothing happens before.
    pub(crate) fn due(&self, role: Duration, now: Instant) -> Option<Instant> {
        match self.phase {
            Phase::Parked | Phase::Failed { .. } => None,
            Phase::Opening { since } => Some(since + OPEN_TIMEOUT),
            Phase::Checking { .. } if self.urgent || self.unanswered == 0 => Some(now),
            Phase::Checking { .. } => self.last_sent.map(|sent| sent + self.patience()),
            Phase::Proven { .. } if self.urgent => Some(now),
            Phase::Proven { since } => {
                let trusted = self.trusted_until(role).unwrap_or(since);
                let next = if self.unanswered == 0 {
                    self.last_proof.unwrap_or(since) + self.interval(role)
                } else {
                    self.last_sent.unwrap_or(since) + self.patience()
                };
                Some(next.min(trusted))
            }
        }
    }

    /// Whether it has waited in vain for long enough, and for what.
    pub(crate) fn expired(&self, role: Duration, now: Instant) -> Option<Failure> {
        match self.phase {
            Phase::Opening { since } if now >= since + OPEN_TIMEOUT => Some(Failure::OpenTimeout),
            Phase::Checking { .. } if self.unanswered >= TRIES && self.is_overdue(now) => {
                Some(match (self.class(), self.reached, self.last_proof) {
                    (Class::Direct, true, _) => Failure::WireGuardBlocked,
                    (_, _, Some(_)) => Failure::Silent,
                    (_, _, None) => Failure::NoAnswer,
                })
            }
            Phase::Proven { since } if now >= self.trusted_until(role).unwrap_or(since) => {
                Some(Failure::Silent)
            }
            _ => None,
        }
    }

    pub(crate) fn is_overdue(&self, now: Instant) -> bool {
        self.unanswered > 0 && self.last_sent.is_some_and(|sent| now >= sent + self.patience())
    }
}
