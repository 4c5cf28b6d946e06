//! What a node does about what it hears: a state machine without sockets, clock or disk.
//!
//! In go [`Input`]s with the time they happened; out come [`Output`]s, in the order they are to be done:
//!
//! ```text
//! user (up, down) ───────┐                ┌── Connect, Disconnect, Send      → coordinator stream
//! coordinator's messages ┼──▶ Session ────┼── Apply, TearDown                → data plane
//! data plane's reports ──┤                ├── SaveMap, ForgetMap             → disk
//! time ──────────────────┘                └── snapshot of itself for `gwctl status`
//! ```
//!
//! Rules it keeps, whatever the order of events (`simulation` drives it with random ones):
//! - a delta is applied to exactly the revision that it was made for; anything else fetches a snapshot;
//! - one [`Output::Apply`] is under way at a time, always of the newest map: maps are whole, so the ones
//!   between may be skipped, and are never applied late;
//! - a revision is acknowledged when the data plane has it, never before;
//! - losing the coordinator changes nothing in the data plane.

pub mod backoff;
mod events;
pub mod map;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ghostwire_proto::v1::coordinator_message::Message as Incoming;
use ghostwire_proto::v1::goodbye::Reason;
use ghostwire_proto::v1::node_message::Message as Outgoing;

use self::backoff::Backoff;
pub use self::events::{Desired, Input, Output, Report, State};
use self::map::{NetworkMap, Weight};
use crate::pb;

/// Both sides send one in this time.
pub const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// A stream that is silent for so long is dead.
pub const SILENCE: Duration = Duration::from_secs(45);
/// Presence of peers may be lost in a crash; it is written this much later at most.
pub const LAZY_SAVE: Duration = Duration::from_secs(30);
/// The data plane is compared with the map this often, in case somebody changed it.
pub const RECONCILE: Duration = Duration::from_mins(1);
/// After `REPLACED` or `EXPIRED`, coming back at once would only repeat it.
pub const UNWANTED: Duration = Duration::from_mins(2);

/// Where the stream is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Stream {
    /// None wanted.
    Idle,
    /// Waiting before the next attempt.
    Waiting { until: Instant },
    /// Being opened.
    Opening,
    /// Open.
    Open { last_received: Instant, next_keep_alive: Instant },
}

/// See the module.
#[derive(Debug)]
pub struct Session {
    up: bool,
    removed: bool,
    shadow: bool,
    stream: Stream,
    backoff: Backoff,
    coordinator: String,
    /// Why there is no stream.
    trouble: String,
    /// The next hello asks for a snapshot.
    start_over: bool,
    map: Option<Arc<NetworkMap>>,
    about: Option<pb::NodeUpdate>,
    apply: Applying,
    save: Saving,
    outputs: VecDeque<Output>,
}

/// The data plane's side.
#[derive(Debug)]
struct Applying {
    ticket: u64,
    under_way: Option<(u64, Arc<NetworkMap>)>,
    /// Something changed since the last [`Output::Apply`].
    stale: bool,
    /// The next comparison, or the next attempt after a failure.
    next: Option<Instant>,
    backoff: Backoff,
    enforced: u32,
    problems: Vec<String>,
    /// Last told to the coordinator on this stream.
    told: Option<pb::ReportedStatus>,
    /// Last acknowledged on this stream.
    acked: Option<u64>,
}

/// The disk's side.
#[derive(Debug, Default)]
struct Saving {
    due: Option<Instant>,
    under_way: bool,
    trouble: Option<String>,
}

impl Session {
    /// A node that may know a map from its last run. `seed` spreads the reconnects of many nodes.
    pub fn new(map: Option<NetworkMap>, shadow: bool, seed: u64) -> Self {
        Self {
            up: false,
            removed: false,
            shadow,
            stream: Stream::Idle,
            backoff: Backoff::new(Duration::from_millis(500), Duration::from_secs(30), seed),
            coordinator: String::new(),
            trouble: String::new(),
            start_over: false,
            map: map.map(Arc::new),
            about: None,
            apply: Applying {
                ticket: 0,
                under_way: None,
                stale: false,
                next: None,
                backoff: Backoff::new(Duration::from_secs(1), Duration::from_mins(1), !seed),
                enforced: 0,
                problems: Vec::new(),
                told: None,
                acked: None,
            },
            save: Saving::default(),
            outputs: VecDeque::new(),
        }
    }

    /// Takes note of what happened.
    pub fn handle(&mut self, now: Instant, input: Input) {
        match input {
            Input::Up => self.on_up(now),
            Input::Down => self.on_down(),
            Input::Shadow(shadow) => {
                self.shadow = shadow;
                self.apply.stale = true;
            }
            Input::Opened { coordinator } => self.on_opened(now, coordinator),
            Input::Received(message) => self.on_message(now, *message),
            Input::Closed { why } => self.on_closed(now, why),
            Input::Applied(report) => self.on_applied(now, report),
            Input::Saved => {
                self.save.under_way = false;
                self.save.trouble = None;
            }
            Input::NotSaved { why } => {
                self.save = Saving { due: Some(now + LAZY_SAVE), under_way: false, trouble: Some(why) };
            }
            Input::About(about) => self.on_about(*about),
            Input::Disturbed => self.apply.stale = true,
            Input::Tick => {}
        }
        self.on_time(now);
        self.apply_if_due(now);
        self.save_if_due(now);
        self.tell_status();
    }

    /// What is to be done next.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to come back with [`Input::Tick`] at the latest.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let stream = match &self.stream {
            Stream::Waiting { until } => Some(*until),
            Stream::Open { last_received, next_keep_alive } => {
                Some((*last_received + SILENCE).min(*next_keep_alive))
            }
            Stream::Idle | Stream::Opening => None,
        };
        let apply = self.apply.next.filter(|_| self.apply.under_way.is_none());
        let save = self.save.due.filter(|_| !self.save.under_way);
        [stream, apply, save].into_iter().flatten().min()
    }

    /// Epoch and revision for the hello.
    pub fn resume(&self) -> (String, u64) {
        match &self.map {
            Some(map) if !self.start_over => (map.epoch.clone(), map.revision),
            _ => (String::new(), 0),
        }
    }

    /// The newest map.
    pub fn map(&self) -> Option<&Arc<NetworkMap>> {
        self.map.as_ref()
    }

    /// The generation that the kernel enforces, 0: none.
    pub fn enforced(&self) -> u32 {
        self.apply.enforced
    }

    /// Whether policy only reports.
    pub fn shadow(&self) -> bool {
        self.shadow
    }

    /// Whether the user wants the node up.
    pub fn is_up(&self) -> bool {
        self.up
    }

    /// Whether the data plane has the newest map.
    pub fn is_settled(&self) -> bool {
        self.map.is_some() && self.apply.under_way.is_none() && !self.apply.stale
    }

    /// Whether a stream is open.
    pub fn is_connected(&self) -> bool {
        matches!(self.stream, Stream::Open { .. })
    }

    /// The coordinator that answered last.
    pub fn coordinator(&self) -> &str {
        &self.coordinator
    }

    /// In a word.
    pub fn state(&self) -> State {
        match () {
            () if self.removed => State::Removed,
            () if !self.up => State::Stopped,
            () if self.map.is_none() => State::Connecting,
            () if self.is_connected() => State::Running,
            () => State::Offline,
        }
    }

    /// In a sentence, if there is something to say.
    pub fn detail(&self) -> String {
        match self.state() {
            State::Running => String::new(),
            State::Stopped => "run `gwctl up` to connect".to_owned(),
            State::Removed | State::Connecting => self.trouble.clone(),
            State::Offline if self.trouble.is_empty() => {
                "connecting to the coordinator; working from the stored map".to_owned()
            }
            State::Offline => format!("{}; working from the stored map", self.trouble),
        }
    }

    /// What is wrong, why, what to do.
    pub fn problems(&self) -> Vec<String> {
        let saving = self.save.trouble.iter().map(|why| format!("the network map is not on disk: {why}"));
        self.apply.problems.iter().cloned().chain(saving).collect()
    }

    fn on_up(&mut self, now: Instant) {
        self.removed = false;
        if !self.up {
            self.up = true;
            self.apply.stale = self.map.is_some();
        }
        // Also wakes a node that waits for its next attempt: the user is looking.
        if matches!(self.stream, Stream::Idle | Stream::Waiting { .. }) {
            self.backoff.reset();
            self.stream = Stream::Waiting { until: now };
        }
    }

    fn on_down(&mut self) {
        self.up = false;
        self.trouble.clear();
        self.hang_up();
        self.stop_data_plane();
    }

    fn stop_data_plane(&mut self) {
        self.apply.under_way = None;
        self.apply.stale = false;
        self.apply.next = None;
        self.apply.enforced = 0;
        self.apply.problems.clear();
        self.outputs.push_back(Output::TearDown);
    }

    fn hang_up(&mut self) {
        if matches!(self.stream, Stream::Opening | Stream::Open { .. }) {
            self.outputs.push_back(Output::Disconnect);
        }
        self.stream = Stream::Idle;
    }

    fn on_opened(&mut self, now: Instant, coordinator: String) {
        if self.stream != Stream::Opening {
            return;
        }
        self.coordinator = coordinator;
        self.trouble.clear();
        self.apply.told = None;
        self.apply.acked = None;
        self.stream = Stream::Open { last_received: now, next_keep_alive: now + KEEP_ALIVE };
    }

    fn on_closed(&mut self, now: Instant, why: String) {
        if matches!(self.stream, Stream::Opening | Stream::Open { .. }) {
            self.trouble = why;
            let wait = self.backoff.after_failure();
            self.stream = Stream::Waiting { until: now + wait };
        }
    }

    fn on_message(&mut self, now: Instant, message: pb::CoordinatorMessage) {
        // The shell may still deliver what was under way when we hung up.
        let Stream::Open { last_received, .. } = &mut self.stream else { return };
        *last_received = now;
        match message.message {
            Some(Incoming::Snapshot(snapshot)) => {
                let checked = NetworkMap::from_snapshot(&snapshot).map(|map| (map, Weight::Membership));
                self.on_map(now, checked.map_err(|error| error.to_string()));
            }
            Some(Incoming::Delta(delta)) => {
                let next = match &self.map {
                    Some(map) if !self.start_over => map.with(&delta).map_err(|error| error.to_string()),
                    _ => Err("a delta came before a snapshot".to_owned()),
                };
                self.on_map(now, next);
            }
            Some(Incoming::Goodbye(goodbye)) => self.on_goodbye(now, &goodbye),
            Some(Incoming::KeepAlive(_)) => self.backoff.reset(),
            Some(Incoming::Signal(signal)) => self.outputs.push_back(Output::Signal(Box::new(signal))),
            Some(Incoming::Relays(list)) => self.outputs.push_back(Output::Relays(list.relays)),
            Some(Incoming::RelayTokens(tokens)) => {
                self.outputs.push_back(Output::RelayTokens(Box::new(tokens)));
            }
            Some(Incoming::RelayRebind(rebind)) => {
                self.outputs.push_back(Output::RelayRebind(rebind.relay));
            }
            // A newer coordinator may have more to say.
            None => {}
        }
    }

    fn on_map(&mut self, now: Instant, next: Result<(NetworkMap, Weight), String>) {
        match next {
            Ok((map, weight)) => {
                self.start_over = false;
                self.backoff.reset();
                self.map = Some(Arc::new(map));
                self.apply.stale = true;
                let due = match weight {
                    Weight::Membership => now,
                    Weight::Presence => now + LAZY_SAVE,
                };
                self.save.due = Some(self.save.due.map_or(due, |earlier| earlier.min(due)));
            }
            Err(why) => {
                self.start_over = true;
                self.outputs.push_back(Output::Disconnect);
                self.on_closed(now, format!("the coordinator sent a map that does not fit ({why})"));
            }
        }
    }

    fn on_goodbye(&mut self, now: Instant, goodbye: &pb::Goodbye) {
        let detail = if goodbye.detail.is_empty() { String::new() } else { format!(": {}", goodbye.detail) };
        self.outputs.push_back(Output::Disconnect);
        match goodbye.reason() {
            Reason::Removed => {
                self.stream = Stream::Idle;
                self.up = false;
                self.removed = true;
                self.map = None;
                self.save = Saving::default();
                self.trouble = format!(
                    "the coordinator removed this node{detail}; to come back, enrol again with `gwctl up JOIN_KEY`"
                );
                self.stop_data_plane();
                self.outputs.push_back(Output::ForgetNetwork);
            }
            Reason::Expired => {
                self.on_closed(
                    now,
                    format!("this node's key has expired{detail}; renew it with `gwctl up JOIN_KEY`"),
                );
                self.stream = Stream::Waiting { until: now + UNWANTED };
            }
            Reason::Replaced => {
                self.on_closed(
                    now,
                    format!(
                        "another machine connected with this node's keys{detail}; if its state directory was copied, \
                         remove the copy and enrol that machine by itself"
                    ),
                );
                self.stream = Stream::Waiting { until: now + UNWANTED };
            }
            Reason::Shutdown | Reason::Unspecified => {
                self.on_closed(now, format!("the coordinator is going down{detail}"));
            }
        }
    }

    fn on_applied(&mut self, now: Instant, report: Report) {
        let Some((ticket, map)) = self.apply.under_way.take() else { return };
        if ticket != report.ticket {
            self.apply.under_way = Some((ticket, map));
            return;
        }
        self.apply.enforced = report.enforced;
        self.apply.problems = report.problems;
        if report.complete {
            self.apply.backoff.reset();
            self.apply.next = Some(now + RECONCILE);
            self.acknowledge(&map);
        } else {
            self.apply.next = Some(now + self.apply.backoff.after_failure());
        }
    }

    fn acknowledge(&mut self, applied: &NetworkMap) {
        // A coordinator with another state counts from elsewhere.
        let current = self.map.as_ref().is_some_and(|map| map.epoch == applied.epoch) && !self.start_over;
        if current && self.is_connected() && self.apply.acked != Some(applied.revision) {
            self.apply.acked = Some(applied.revision);
            self.send(Outgoing::Ack(pb::Ack { revision: applied.revision }));
        }
    }

    fn on_about(&mut self, about: pb::NodeUpdate) {
        if self.about.as_ref() == Some(&about) {
            return;
        }
        if self.is_connected() {
            self.send(Outgoing::Update(about.clone()));
        }
        self.about = Some(about);
    }

    fn on_time(&mut self, now: Instant) {
        match &mut self.stream {
            Stream::Waiting { until } if *until <= now => {
                self.stream = Stream::Opening;
                self.outputs.push_back(Output::Connect);
            }
            Stream::Open { last_received, .. } if now >= *last_received + SILENCE => {
                self.outputs.push_back(Output::Disconnect);
                let why = format!("the coordinator has been silent for {} s", SILENCE.as_secs());
                self.on_closed(now, why);
            }
            Stream::Open { next_keep_alive, .. } if now >= *next_keep_alive => {
                *next_keep_alive = now + KEEP_ALIVE;
                self.send(Outgoing::KeepAlive(pb::KeepAlive::default()));
            }
            _ => {}
        }
    }

    fn apply_if_due(&mut self, now: Instant) {
        let due = self.apply.stale || self.apply.next.is_some_and(|next| next <= now);
        let Some(map) = self.map.clone().filter(|_| self.up && due && self.apply.under_way.is_none()) else {
            return;
        };
        self.apply.ticket += 1;
        self.apply.stale = false;
        self.apply.next = None;
        self.apply.under_way = Some((self.apply.ticket, map.clone()));
        self.outputs.push_back(Output::Apply(Desired {
            ticket: self.apply.ticket,
            map,
            shadow: self.shadow,
        }));
    }

    fn save_if_due(&mut self, now: Instant) {
        if self.save.under_way || self.save.due.is_none_or(|due| due > now) {
            return;
        }
        self.save.due = None;
        if let Some(map) = self.map.clone() {
            self.save.under_way = true;
            self.outputs.push_back(Output::SaveMap(map));
        }
    }

    /// Tells the coordinator what is enforced and what is wrong, once per change and stream.
    fn tell_status(&mut self) {
        if !self.is_connected() || self.apply.under_way.is_some() || self.apply.ticket == 0 {
            return;
        }
        let problems: BTreeSet<String> = self.problems().into_iter().collect();
        let status = pb::ReportedStatus {
            enforced_generation: self.apply.enforced,
            problems: problems.into_iter().collect(),
        };
        if self.apply.told.as_ref() != Some(&status) {
            self.send(Outgoing::Status(status.clone()));
            self.apply.told = Some(status);
        }
    }

    fn send(&mut self, message: Outgoing) {
        self.outputs.push_back(Output::Send(Box::new(pb::NodeMessage { message: Some(message) })));
    }
}
