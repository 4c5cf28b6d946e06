//! The machine: takes inputs, keeps the state, says what is to be done. Its parts:
//! - `routes`: which paths there are, from candidates and relays;
//! - `rounds`: when what is tried;
//! - `checks`: sending, receiving and answering checks;
//! - `choose`: which proven path is used;
//! - `birthday`: guessing the ports of a hard NAT.

mod birthday;
mod checks;
pub(crate) mod choose;
pub(crate) mod rounds;
mod routes;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand::rngs::StdRng;

use self::birthday::Birthday;
use self::choose::Chosen;
use self::rounds::Rounds;
use crate::io::{InUse, Input, Output, Steer};
use crate::path::{Failure, Path};
use crate::route::{Base, Class, PathId, Route};
use crate::signal::{Attempt, Credentials, Generation, LocalCandidate, NatReport, RelayOffer, Signal};
use crate::timing::{
    ASKED_AWAKE, HEALTH, IDLE_AFTER, MAX_CANDIDATES, MAX_OFFERS, SIGNAL_GAP, SLEPT, TRUST_MARGIN,
};

/// What is fixed for the life of a machine.
#[derive(Clone, Debug)]
pub struct Config {
    /// The role of RFC 8445: true on the side whose WireGuard public key is the higher one. Both sides know
    /// both keys, so roles never conflict and no tie-breaker is needed.
    pub controlling: bool,
    /// This life's number, higher than that of any life before: the wall clock's milliseconds at the start.
    pub generation: Generation,
    /// Of the life before, so that a peer that cannot be told (the coordinator is away) still answers our
    /// checks. `None`: new ones.
    pub credentials: Option<Credentials>,
    /// Whether birthday probing is allowed. Some networks take it for a port scan.
    pub birthday: bool,
    /// 32 random bytes: for transaction identifiers, credentials and jitter.
    pub seed: [u8; 32],
}

/// What is known about this side.
#[derive(Clone, Debug, Default)]
pub(crate) struct Here {
    pub(crate) candidates: Vec<LocalCandidate>,
    pub(crate) auxiliary: Vec<Base>,
    pub(crate) relays: Vec<RelayOffer>,
    pub(crate) nat: NatReport,
}

/// Since when and until when there is something to do.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Activity {
    /// Asleep if `None`.
    pub(crate) awake_until: Option<Instant>,
    /// Data was sent since then and nothing received.
    pub(crate) unanswered_since: Option<Instant>,
    pub(crate) last_sent: Option<Instant>,
    pub(crate) last_received: Option<Instant>,
}

/// When the peer has to be told something.
#[derive(Clone, Copy, Debug, Default)]
struct Telling {
    due: bool,
    last: Option<Instant>,
    revision: u32,
}

/// The way to one peer. See the crate's first page.
#[derive(Debug)]
pub struct PathMachine {
    pub(crate) controlling: bool,
    birthday_allowed: bool,
    generation: Generation,
    credentials: Credentials,
    rng: StdRng,
    /// The latest time seen: time never runs backwards in here.
    now: Option<Instant>,
    asked_for: Option<Instant>,
    pub(crate) here: Here,
    pub(crate) there: Option<Signal>,
    pub(crate) online: Option<bool>,
    pub(crate) steer: Steer,
    pub(crate) activity: Activity,
    attempt: Attempt,
    /// Calls have higher numbers than this: those of a life before that the peer has heeded.
    called_before: u32,
    /// The peer's latest attempt that was heeded.
    heeded: (Generation, u32),
    telling: Telling,
    pub(crate) paths: Vec<Path>,
    next_path: u32,
    /// Peer-reflexive paths that were added since then.
    reflexive: Option<(Instant, usize)>,
    /// Relay routes, best first by kind, then by the sum of both sides' latencies.
    relay_order: Vec<Route>,
    pub(crate) rounds: Rounds,
    pub(crate) chosen: Chosen,
    pub(crate) birthday: Birthday,
    /// No ordinary check before this.
    next_slot: Option<Instant>,
    outputs: VecDeque<Output>,
}

impl PathMachine {
    /// A peer of which nothing is known and to which nothing has been sent: it sleeps.
    pub fn new(config: Config) -> Self {
        let mut rng = StdRng::from_seed(config.seed);
        // A peer that cannot be told of this life compares our calls with those of the life before. There are fewer than
        // one in a second, so that the seconds since 1970 are above them all.
        let called_before = match &config.credentials {
            Some(_) => u32::try_from(config.generation.0 / 1_000).unwrap_or_default(),
            None => 0,
        };
        let credentials = config.credentials.unwrap_or_else(|| Credentials::generate(&mut rng));
        Self {
            controlling: config.controlling,
            birthday_allowed: config.birthday,
            generation: config.generation,
            credentials,
            rng,
            now: None,
            asked_for: None,
            here: Here::default(),
            there: None,
            online: None,
            steer: Steer::Automatic,
            activity: Activity::default(),
            attempt: Attempt::default(),
            called_before,
            heeded: (Generation::default(), 0),
            telling: Telling { due: true, ..Telling::default() },
            paths: Vec::new(),
            next_path: 0,
            reflexive: None,
            relay_order: Vec::new(),
            rounds: Rounds::default(),
            chosen: Chosen::default(),
            birthday: Birthday::default(),
            next_slot: None,
            outputs: VecDeque::new(),
        }
    }

    /// Our credentials: the edge verifies the checks of the peer with them, and stores them for the next life.
    pub fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    /// The peer's credentials: the edge signs our checks and verifies the answers with them.
    pub fn peer_credentials(&self) -> Option<&Credentials> {
        self.there.as_ref().map(|signal| &signal.credentials)
    }

    /// The paths that carry the traffic.
    pub fn in_use(&self) -> InUse {
        self.chosen.told
    }

    /// Whether the path that carries the traffic is shown to work; else there is none, or it is hope.
    pub fn is_proven(&self) -> bool {
        self.chosen.primary.and_then(|id| self.path(id)).is_some_and(Path::is_proven)
    }

    /// Whether anything is done for the peer now.
    pub fn is_awake(&self) -> bool {
        self.activity.awake_until.is_some()
    }

    /// How many paths the machine keeps; never more than [`MAX_PATHS`](crate::timing::MAX_PATHS).
    pub fn path_count(&self) -> usize {
        self.paths.len()
    }

    /// Something happened, or the time asked for has come. Afterwards take all outputs, then ask for the time
    /// of the next call. `now` is monotonic; if it is behind an earlier one, the earlier one counts.
    pub fn handle_input(&mut self, now: Instant, input: Input) {
        let now = self.now.map_or(now, |before| before.max(now));
        let slept = self.asked_for.is_some_and(|due| now.saturating_duration_since(due) >= SLEPT);
        self.now = Some(now);
        if slept {
            self.distrust_all(now);
        }
        // What comes often and changes nothing: traffic while awake. Suspicion is all that can follow from it.
        let routine = matches!(input, Input::Sent | Input::Received) && !slept && self.is_awake();
        if routine && self.asked_for.is_some_and(|due| now < due) {
            self.take(now, input);
            self.asked_for = self.asked_for.into_iter().chain(self.suspect_due()).min();
            return;
        }
        self.take(now, input);
        self.run(now);
        self.asked_for = self.next_due(now);
    }

    /// What has to be done, in order. To be called until there is nothing left.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to call [`handle_input`](Self::handle_input) with [`Input::Tick`] at the latest. `None`: only when
    /// something happens.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.asked_for
    }

    fn take(&mut self, now: Instant, input: Input) {
        match input {
            Input::Tick => {}
            Input::LocalCandidates(candidates) => self.set_local_candidates(now, candidates),
            Input::Relays(mut relays) => {
                relays.truncate(MAX_OFFERS);
                if relays != self.here.relays {
                    self.here.relays = relays;
                    self.telling.due = true;
                    self.sync_relays();
                }
            }
            Input::Nat(report) => {
                if report != self.here.nat {
                    self.here.nat = report;
                    self.telling.due = true;
                }
            }
            Input::AuxiliaryPorts(bases) => self.set_auxiliary(now, bases),
            Input::Signal(signal) => self.take_signal(now, *signal),
            Input::PeerOnline(online) => {
                let came = online && self.online == Some(false);
                self.online = Some(online);
                if came && self.is_awake() {
                    self.rounds.fruitless = 0;
                    self.call_round(now, rounds::Cause::PeerBack, true);
                }
            }
            Input::CheckReceived(check) => self.check_received(now, check),
            Input::CheckAnswered { transaction, route } => self.check_answered(now, transaction, route),
            Input::CarrierUp(route) => self.carrier_up(now, route),
            Input::CarrierDown(route, why) => self.fail_route(now, route, Failure::Carrier(why)),
            Input::Sent => {
                self.activity.last_sent = Some(now);
                self.activity.unanswered_since.get_or_insert(now);
                self.stay_awake(now, IDLE_AFTER, rounds::Cause::Traffic);
            }
            Input::Received => {
                self.activity.last_received = Some(now);
                self.activity.unanswered_since = None;
                self.stay_awake(now, IDLE_AFTER, rounds::Cause::Traffic);
            }
            Input::Steer(steer) => {
                self.steer = steer;
                self.call_round_if_awake(now, rounds::Cause::Operator);
            }
            Input::TryNow => {
                self.rounds.fruitless = 0;
                self.birthday.last = None;
                self.call_round_if_awake(now, rounds::Cause::Operator);
            }
            Input::Resumed => self.distrust_all(now),
        }
    }

    /// Brings everything up to date. The order matters: what has failed is known before it is decided what to
    /// try, and a check that went unanswered before it is decided what to use. A choice that makes another
    /// check urgent asks to be called again at once.
    fn run(&mut self, now: Instant) {
        if self.activity.awake_until.is_some_and(|until| now >= until) {
            self.fall_asleep();
        }
        if self.is_awake() {
            self.suspect(now);
            self.expire(now);
            self.plan(now);
            self.transmit(now);
            self.choose(now);
            self.run_birthday(now);
        }
        self.tell_use();
        self.tell_peer(now);
    }

    fn next_due(&self, now: Instant) -> Option<Instant> {
        let until = self.activity.awake_until?;
        let mut due = vec![until];
        due.extend(self.paths.iter().filter_map(|path| self.path_due(path, now)));
        due.extend(self.suspect_due());
        due.extend(self.rounds_due(now));
        due.extend(self.choose_due(now));
        due.extend(self.birthday_due());
        due.extend(self.tell_due());
        due.into_iter().min()
    }

    // Awake and asleep

    fn stay_awake(&mut self, now: Instant, how_long: Duration, cause: rounds::Cause) {
        let was_asleep = !self.is_awake();
        self.activity.awake_until = self.activity.awake_until.max(Some(now + how_long));
        if was_asleep {
            for path in &mut self.paths {
                let fresh = path.last_proof.is_some_and(|proof| now < proof + HEALTH + TRUST_MARGIN);
                if fresh {
                    path.grace = Some(now + TRUST_MARGIN);
                    path.urgent = true;
                } else {
                    path.distrust(now);
                }
            }
            self.rounds.fruitless = 0;
            let announce = cause != rounds::Cause::PeerAsked;
            self.call_round(now, cause, announce);
        }
    }

    /// Whether there was any traffic lately.
    fn has_traffic(&self, now: Instant) -> bool {
        let last = self.activity.last_sent.max(self.activity.last_received);
        last.is_some_and(|last| now < last + IDLE_AFTER)
    }

    /// Nothing is sent from here on. What costs something elsewhere is given back.
    fn fall_asleep(&mut self) {
        self.activity = Activity::default();
        self.rounds.stop();
        self.close_auxiliary(|_| false);
        for path in &mut self.paths {
            if matches!(path.class(), Class::Quic | Class::RelayPort) && (path.open || path.is_busy()) {
                path.open = false;
                path.phase = crate::path::Phase::Parked;
                self.outputs.push_back(Output::Close(path.id, path.route));
            } else if path.is_busy() {
                path.phase = crate::path::Phase::Parked;
                if path.class() == Class::Derp && !path.open {
                    self.outputs.push_back(Output::Close(path.id, path.route));
                }
            }
        }
        self.rest();
    }

    /// The node slept or its clock jumped: what was proven may be long gone.
    fn distrust_all(&mut self, now: Instant) {
        self.activity.unanswered_since = None;
        for path in &mut self.paths {
            path.distrust(now);
        }
        if self.is_awake() {
            // There was no time for traffic: being idle begins now.
            self.activity.awake_until = Some(now + IDLE_AFTER);
            self.rounds.fruitless = 0;
            self.call_round(now, rounds::Cause::Resumed, true);
        }
    }

    // The coordinator's stream

    fn take_signal(&mut self, now: Instant, mut signal: Signal) {
        if self.there.as_ref().is_some_and(|held| !signal.is_newer_than(held)) {
            return;
        }
        signal.candidates.truncate(MAX_CANDIDATES);
        signal.relays.truncate(MAX_OFFERS);
        if let Some(heard) = signal.heard
            && heard > self.generation
        {
            // The peer remembers a later life of ours: our clock was set back.
            self.generation = Generation(heard.0.saturating_add(1));
            self.telling.due = true;
        }
        self.telling.due |= signal.heard != Some(self.generation);
        let (generation, attempt) = (signal.generation, signal.attempt);
        let before = self.there.replace(signal);
        self.sync_pairs();
        self.sync_relays();
        let there = self.there.as_ref();
        let changed = match (&before, there) {
            (Some(before), Some(there)) => {
                before.candidates != there.candidates || before.generation != there.generation
            }
            _ => true,
        };
        if changed && self.is_awake() {
            self.ask_proven();
            self.rounds.fruitless = 0;
            self.call_round(now, rounds::Cause::Candidates, false);
        }
        // The signal decides; a check of the peer's life before may have named a higher number.
        if attempt.number > 0 && (generation, attempt.number) != self.heeded {
            self.follow(now, generation, attempt);
        }
    }

    /// A check names an attempt: with the coordinator away that is how the peer calls.
    fn heed(&mut self, now: Instant, generation: Generation, number: u32) {
        if (generation, number) > self.heeded {
            self.follow(now, generation, Attempt { number, birthday: false });
        }
    }

    fn follow(&mut self, now: Instant, generation: Generation, attempt: Attempt) {
        self.heeded = (generation, attempt.number);
        self.stay_awake(now, ASKED_AWAKE, rounds::Cause::PeerAsked);
        self.call_round(now, rounds::Cause::PeerAsked, false);
        if attempt.birthday {
            self.begin_birthday(now);
        }
    }

    fn tell_due(&self) -> Option<Instant> {
        let last = self.telling.last?;
        self.telling.due.then_some(last + SIGNAL_GAP)
    }

    fn tell_peer(&mut self, now: Instant) {
        let waits = self.telling.last.is_some_and(|last| now < last + SIGNAL_GAP);
        if !self.telling.due || waits || !self.is_awake() {
            return;
        }
        self.telling.due = false;
        self.telling.last = Some(now);
        self.telling.revision = self.telling.revision.saturating_add(1);
        let signal = Signal {
            generation: self.generation,
            revision: self.telling.revision,
            credentials: self.credentials.clone(),
            candidates: self.candidates_to_tell(),
            relays: self.here.relays.clone(),
            nat: self.here.nat,
            attempt: self.attempt,
            heard: self.there.as_ref().map(|signal| signal.generation),
        };
        self.outputs.push_back(Output::Signal(Box::new(signal)));
    }

    // Finding paths

    pub(crate) fn path(&self, id: PathId) -> Option<&Path> {
        self.paths.iter().find(|path| path.id == id)
    }

    fn path_mut(&mut self, id: PathId) -> Option<&mut Path> {
        self.paths.iter_mut().find(|path| path.id == id)
    }

    fn find(&self, route: Route) -> Option<PathId> {
        self.paths.iter().find(|path| path.route == route).map(|path| path.id)
    }
}
