//! The session against a coordinator that changes, disconnects and forgets, a wire that repeats, reorders and
//! loses, a data plane and a disk that fail, and a user who changes her mind: all at random, all at any moment.

use std::collections::BTreeMap;

use ghostwire_proto::v1::coordinator_message::Message as Incoming;
use ghostwire_proto::v1::node_message::Message as Outgoing;
use proptest::prelude::*;

use super::*;
use crate::testing;

/// What the coordinator knows at one revision.
#[derive(Clone, Debug, Default)]
struct Facts {
    peers: BTreeMap<u64, pb::Peer>,
    generation: u32,
}

/// The coordinator as it should be.
struct Coordinator {
    epoch: u64,
    /// Every revision that it could resume a node from, the newest last.
    history: Vec<(u64, Facts)>,
}

#[derive(Clone, Debug)]
enum Change {
    Put(u64),
    Remove(u64),
    Presence(u64, bool),
    Filter,
}

impl Coordinator {
    fn new() -> Self {
        Self { epoch: 1, history: vec![(1, Facts { generation: 1, ..Facts::default() })] }
    }

    fn now(&self) -> &(u64, Facts) {
        self.history.last().unwrap()
    }

    fn revision(&self) -> u64 {
        self.now().0
    }

    fn change(&mut self, change: &Change) {
        let (revision, mut facts) = self.now().clone();
        match change {
            Change::Put(id) => drop(facts.peers.insert(*id, testing::peer(*id))),
            Change::Remove(id) => drop(facts.peers.remove(id)),
            Change::Presence(id, online) => {
                if let Some(peer) = facts.peers.get_mut(id) {
                    peer.online = *online;
                }
            }
            Change::Filter => facts.generation += 1,
        }
        self.history.push((revision + 1, facts));
    }

    fn snapshot(&self) -> pb::Snapshot {
        let (revision, facts) = self.now();
        pb::Snapshot {
            epoch: self.epoch.to_string(),
            revision: *revision,
            node: Some(testing::own()),
            peers: facts.peers.values().cloned().collect(),
            filter: Some(testing::filter(facts.generation)),
        }
    }

    /// What leads from one revision to another, as the difference of what was known.
    fn delta(&self, from: usize, to: usize) -> pb::Delta {
        let ((base_revision, old), (revision, new)) = (&self.history[from], &self.history[to]);
        let mut delta = pb::Delta {
            epoch: self.epoch.to_string(),
            base_revision: *base_revision,
            revision: *revision,
            removed: old.peers.keys().filter(|id| !new.peers.contains_key(id)).copied().collect(),
            filter: (old.generation != new.generation).then(|| testing::filter(new.generation)),
            ..pb::Delta::default()
        };
        for (id, peer) in &new.peers {
            match old.peers.get(id) {
                Some(before) if before == peer => {}
                Some(_) => delta.patched.push(pb::PeerPatch {
                    id: *id,
                    online: Some(peer.online),
                    ..pb::PeerPatch::default()
                }),
                None => delta.changed.push(peer.clone()),
            }
        }
        delta
    }

    /// What it says to a node that knows `revision`: each step, or all in one.
    fn news(&self, epoch: &str, revision: u64, merged: bool) -> Vec<Incoming> {
        let known = self.history.iter().position(|(known, _)| *known == revision);
        let Some(from) = known.filter(|_| epoch == self.epoch.to_string()) else {
            return vec![Incoming::Snapshot(self.snapshot())];
        };
        let last = self.history.len() - 1;
        match merged {
            true if from < last => vec![Incoming::Delta(self.delta(from, last))],
            true => Vec::new(),
            false => (from..last).map(|at| Incoming::Delta(self.delta(at, at + 1))).collect(),
        }
    }
}

#[derive(Clone, Debug)]
enum Event {
    Change(Change),
    /// The coordinator tells what is new since it spoke last, step by step or in one delta.
    Tell {
        merged: bool,
    },
    /// The coordinator sends a snapshot in the middle of the stream.
    Reconcile,
    Deliver(u8),
    /// The wire repeats a delta that it carried at any time before, on this stream or another.
    Repeat(prop::sample::Index),
    /// Two deltas change places. (A snapshot out of order would be believed: it is the coordinator's last word.)
    Reorder(prop::sample::Index, prop::sample::Index),
    Lose(prop::sample::Index),
    Garbage(u8),
    Goodbye(Reason),
    /// The stream that is being opened opens, or does not.
    Answer {
        accepts: bool,
    },
    Cut,
    NewEpoch {
        forgets_numbers: bool,
    },
    ForgetHistory,
    Applied {
        complete: bool,
    },
    /// A report about something that was given up.
    StaleReport,
    Saved {
        good: bool,
    },
    Restart,
    Down,
    Up,
    Shadow(bool),
    Wait(u32),
}

fn event() -> impl Strategy<Value = Event> {
    let index = any::<prop::sample::Index>;
    let goodbye =
        prop::sample::select(vec![Reason::Removed, Reason::Expired, Reason::Replaced, Reason::Shutdown]);
    prop_oneof![
        6 => (1_u64..6).prop_map(|id| Event::Change(Change::Put(id))),
        3 => (1_u64..6).prop_map(|id| Event::Change(Change::Remove(id))),
        3 => (1_u64..6, any::<bool>()).prop_map(|(id, online)| Event::Change(Change::Presence(id, online))),
        3 => Just(Event::Change(Change::Filter)),
        8 => any::<bool>().prop_map(|merged| Event::Tell { merged }),
        1 => Just(Event::Reconcile),
        10 => (1_u8..5).prop_map(Event::Deliver),
        2 => index().prop_map(Event::Repeat),
        1 => (index(), index()).prop_map(|(a, b)| Event::Reorder(a, b)),
        1 => index().prop_map(Event::Lose),
        1 => (0_u8..4).prop_map(Event::Garbage),
        1 => goodbye.prop_map(Event::Goodbye),
        8 => prop::bool::weighted(0.8).prop_map(|accepts| Event::Answer { accepts }),
        2 => Just(Event::Cut),
        1 => any::<bool>().prop_map(|forgets_numbers| Event::NewEpoch { forgets_numbers }),
        1 => Just(Event::ForgetHistory),
        8 => prop::bool::weighted(0.8).prop_map(|complete| Event::Applied { complete }),
        1 => Just(Event::StaleReport),
        4 => prop::bool::weighted(0.8).prop_map(|good| Event::Saved { good }),
        1 => Just(Event::Restart),
        1 => Just(Event::Down),
        2 => Just(Event::Up),
        1 => any::<bool>().prop_map(Event::Shadow),
        4 => prop_oneof![3 => 0_u32..20_000, 1 => 20_000_u32..200_000].prop_map(Event::Wait),
    ]
}

/// Epoch and revision.
type Place = (String, u64);

fn place(map: &NetworkMap) -> Place {
    (map.epoch.clone(), map.revision)
}

/// Where the stream is, as the coordinator sees it.
#[derive(Debug, PartialEq)]
enum Line {
    Closed,
    Asked,
    Open,
}

/// Everything outside the session.
struct World {
    now: Instant,
    session: Session,
    coordinator: Coordinator,
    line: Line,
    wire: VecDeque<Incoming>,
    /// All deltas that any stream ever carried.
    carried: Vec<Incoming>,
    /// What this stream's node has been told.
    told: Place,
    up: bool,
    under_way: Option<Desired>,
    /// The last ticket that was given up or reported.
    stale_ticket: u64,
    /// What the data plane has, and since the session began: maps do not go back.
    applied: Option<Place>,
    /// Acknowledged on this stream.
    acked: Option<Place>,
    saving: Option<Arc<NetworkMap>>,
    disk: Option<Arc<NetworkMap>>,
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            now: Instant::now(),
            session: Session::new(None, false, 42),
            coordinator: Coordinator::new(),
            line: Line::Closed,
            wire: VecDeque::new(),
            carried: Vec::new(),
            told: Place::default(),
            up: false,
            under_way: None,
            stale_ticket: 0,
            applied: None,
            acked: None,
            saving: None,
            disk: None,
        };
        world.event(&Event::Up);
        world
    }

    fn input(&mut self, input: Input) {
        self.session.handle(self.now, input);
        while let Some(output) = self.session.poll_output() {
            self.output(output);
        }
        let idle = self.up && self.line == Line::Closed;
        assert!(!idle || self.session.poll_timeout().is_some(), "up, not connected, and waiting for nothing");
        let waits = self.session.poll_timeout();
        assert!(waits.is_none_or(|at| at > self.now), "wants to be woken at once, again and again");
    }

    fn output(&mut self, output: Output) {
        match output {
            Output::Connect => {
                assert!(self.up && self.line == Line::Closed, "connects while {:?}", self.line);
                self.line = Line::Asked;
            }
            Output::Disconnect => {
                self.line = Line::Closed;
                self.wire.clear();
            }
            Output::Apply(desired) => {
                assert!(self.up, "changes the data plane of a node that is down");
                assert!(self.under_way.is_none(), "two at a time");
                let next = place(&desired.map);
                if let Some(last) = &self.applied {
                    assert!(next.0 != last.0 || next.1 >= last.1, "{next:?} after {last:?}");
                }
                self.under_way = Some(desired);
            }
            Output::Send(message) => {
                assert_eq!(self.line, Line::Open, "sent into nothing");
                if let Some(Outgoing::Ack(ack)) = message.message {
                    self.acknowledged(ack.revision);
                }
            }
            Output::SaveMap(map) => {
                assert!(self.saving.is_none(), "two at a time");
                self.saving = Some(map);
            }
            Output::TearDown => self.give_up_apply(),
            Output::ForgetNetwork => (self.disk, self.saving) = (None, None),
            // The simulated coordinator passes on nothing of others.
            Output::Signal(_) | Output::Relays(_) | Output::RelayTokens(_) | Output::RelayRebind(_) => {}
        }
    }

    fn acknowledged(&mut self, revision: u64) {
        let applied = self.applied.clone().expect("acknowledged before anything was applied");
        assert_eq!(revision, applied.1, "acknowledged what is not applied");
        if let Some(before) = self.acked.replace(applied.clone()) {
            assert!(before.0 != applied.0 || before.1 < revision, "acknowledged twice or back");
        }
    }

    fn give_up_apply(&mut self) {
        if let Some(desired) = self.under_way.take() {
            self.stale_ticket = desired.ticket;
        }
        self.applied = None;
    }

    fn receive(&mut self, message: Incoming) {
        self.input(Input::Received(Box::new(pb::CoordinatorMessage { message: Some(message) })));
    }

    fn push(&mut self, messages: Vec<Incoming>) {
        self.told = (self.coordinator.epoch.to_string(), self.coordinator.revision());
        let deltas = messages.iter().filter(|message| matches!(message, Incoming::Delta(_)));
        self.carried.extend(deltas.cloned());
        self.wire.extend(messages);
    }

    fn close(&mut self, why: &str) {
        if self.line != Line::Closed {
            self.line = Line::Closed;
            self.wire.clear();
            self.input(Input::Closed { why: why.to_owned() });
        }
    }

    fn finish_apply(&mut self, complete: bool) {
        let Some(desired) = self.under_way.take() else { return };
        self.stale_ticket = desired.ticket;
        if complete {
            self.applied = Some(place(&desired.map));
        }
        let enforced = desired.map.filter.as_ref().map_or(0, |filter| filter.generation);
        let report = Report { ticket: desired.ticket, complete, enforced, problems: Vec::new() };
        self.input(Input::Applied(report));
    }

    fn finish_save(&mut self, good: bool) {
        let Some(map) = self.saving.take() else { return };
        if good {
            self.disk = Some(map);
            self.input(Input::Saved);
        } else {
            self.input(Input::NotSaved { why: "no space left on device".to_owned() });
        }
    }

    fn answer(&mut self, accepts: bool, merged: bool) {
        if self.line != Line::Asked {
            return;
        }
        if !accepts {
            return self.close("connection refused");
        }
        self.line = Line::Open;
        self.acked = None;
        let (epoch, revision) = self.session.resume();
        self.push(self.coordinator.news(&epoch, revision, merged));
        self.input(Input::Opened { coordinator: "c".to_owned() });
    }

    fn goodbye(&mut self, reason: Reason) {
        if self.line == Line::Open {
            let removed = reason == Reason::Removed;
            self.up = !removed;
            self.receive(Incoming::Goodbye(pb::Goodbye { reason: reason.into(), detail: String::new() }));
            assert_eq!(self.line, Line::Closed, "stays on a stream that is over");
            assert!(!removed || self.session.map().is_none() && self.disk.is_none(), "remembers the network");
        }
    }

    fn restart(&mut self) {
        self.line = Line::Closed;
        self.wire.clear();
        (self.under_way, self.saving, self.applied, self.stale_ticket) = (None, None, None, 0);
        let stored = self.disk.as_ref().map(|map| NetworkMap::from_snapshot(&map.to_snapshot()).unwrap());
        self.session = Session::new(stored, self.session.shadow(), 43);
        if std::mem::take(&mut self.up) {
            self.event(&Event::Up);
        }
    }

    fn event(&mut self, event: &Event) {
        match event {
            Event::Change(change) => self.coordinator.change(change),
            Event::Tell { merged } if self.line == Line::Open => {
                let (epoch, revision) = self.told.clone();
                self.push(self.coordinator.news(&epoch, revision, *merged));
            }
            Event::Reconcile if self.line == Line::Open => {
                self.coordinator.change(&Change::Presence(0, true));
                self.push(vec![Incoming::Snapshot(self.coordinator.snapshot())]);
            }
            Event::Deliver(count) => {
                for _ in 0..*count {
                    if let Some(next) = self.wire.pop_front() {
                        self.receive(next);
                    }
                }
            }
            Event::Repeat(which) if self.line == Line::Open && !self.carried.is_empty() => {
                self.receive(which.get(&self.carried).clone());
            }
            Event::Reorder(one, other) if !self.wire.is_empty() => {
                let (one, other) = (one.index(self.wire.len()), other.index(self.wire.len()));
                let delta = |at: usize| matches!(self.wire.get(at), Some(Incoming::Delta(_)));
                if delta(one) && delta(other) {
                    self.wire.swap(one, other);
                }
            }
            Event::Lose(which) if !self.wire.is_empty() => {
                drop(self.wire.remove(which.index(self.wire.len())));
            }
            Event::Garbage(kind) if self.line == Line::Open => self.garbage(*kind),
            Event::Goodbye(reason) => self.goodbye(*reason),
            Event::Answer { accepts } => self.answer(*accepts, true),
            Event::Cut => self.close("cut"),
            Event::NewEpoch { forgets_numbers } => {
                self.close("the coordinator was restored from a backup");
                let (revision, facts) = self.coordinator.now().clone();
                let revision = if *forgets_numbers { 1 } else { revision };
                self.coordinator =
                    Coordinator { epoch: self.coordinator.epoch + 1, history: vec![(revision, facts)] };
            }
            Event::ForgetHistory => {
                drop(self.coordinator.history.drain(..self.coordinator.history.len() - 1));
            }
            Event::Applied { complete } => self.finish_apply(*complete),
            Event::StaleReport => {
                let report =
                    Report { ticket: self.stale_ticket, complete: true, enforced: 99, ..Report::default() };
                self.input(Input::Applied(report));
                assert_ne!(self.session.enforced(), 99, "believes a report about something else");
            }
            Event::Saved { good } => self.finish_save(*good),
            Event::Restart => self.restart(),
            Event::Down => {
                self.up = false;
                self.input(Input::Down);
                assert_eq!(self.line, Line::Closed, "down and connected");
                assert_eq!(self.session.enforced(), 0);
            }
            Event::Up => {
                self.up = true;
                self.input(Input::Up);
            }
            Event::Shadow(shadow) => self.input(Input::Shadow(*shadow)),
            Event::Wait(milliseconds) => {
                self.now += Duration::from_millis((*milliseconds).into());
                self.input(Input::Tick);
            }
            // Not possible now.
            _ => {}
        }
    }

    /// What no coordinator should send. The map that the node has stays what it is.
    fn garbage(&mut self, kind: u8) {
        let before = self.session.map().cloned();
        let mut snapshot = self.coordinator.snapshot();
        match kind {
            0 => snapshot.node = None,
            1 => snapshot.peers.push(pb::Peer::default()),
            2 => snapshot.filter = Some(pb::Filter::default()),
            _ => snapshot.peers = vec![testing::peer(1), pb::Peer { id: 2, ..testing::peer(1) }],
        }
        self.receive(Incoming::Snapshot(snapshot));
        assert_eq!(self.line, Line::Closed, "goes on with a coordinator that sends nonsense");
        assert_eq!(before.as_deref(), self.session.map().map(|map| &**map));
    }

    /// With nothing in the way any more, the node must come to have what the coordinator has.
    fn settle(&mut self) {
        self.event(&Event::Up);
        for _ in 0..100 {
            self.answer(true, false);
            self.event(&Event::Tell { merged: false });
            while let Some(next) = self.wire.pop_front() {
                self.receive(next);
            }
            while self.under_way.is_some() {
                self.finish_apply(true);
            }
            let goal = (self.coordinator.epoch.to_string(), self.coordinator.revision());
            let there = self.session.map().map(|map| place(map)) == Some(goal.clone());
            let applied = self.applied.as_ref() == Some(&goal) && self.acked == self.applied;
            if there && applied && self.session.is_settled() && self.line == Line::Open {
                return self.settle_disk();
            }
            // Long enough for every backoff; short enough for the stream not to fall silent.
            let wait = if self.line == Line::Open { Duration::from_secs(10) } else { UNWANTED };
            self.now += wait;
            self.input(Input::Tick);
            if self.line == Line::Open {
                self.receive(Incoming::KeepAlive(pb::KeepAlive::default()));
            }
            // A message that was lost shows at the next delta only.
            self.coordinator.change(&Change::Filter);
        }
        panic!("never settled");
    }

    /// The disk comes to hold what the node has.
    fn settle_disk(&mut self) {
        for _ in 0..4 {
            self.finish_save(true);
            // The coordinator is heard all the time.
            self.receive(Incoming::KeepAlive(pb::KeepAlive::default()));
            self.now += LAZY_SAVE;
            self.input(Input::Tick);
            while self.under_way.is_some() {
                self.finish_apply(true);
            }
        }
        assert_eq!(self.disk.as_deref(), self.session.map().map(|map| &**map), "the disk is behind");
    }

    fn check(&self) -> Result<(), TestCaseError> {
        let map = self.session.map().unwrap();
        prop_assert_eq!(map.to_snapshot(), self.coordinator.snapshot());
        prop_assert_eq!(self.session.enforced(), self.coordinator.now().1.generation);
        prop_assert_eq!(self.session.state(), State::Running);
        prop_assert!(self.session.problems().is_empty());
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]
    #[test]
    fn whatever_happens_on_the_way_the_node_ends_where_the_coordinator_is(
        events in prop::collection::vec(event(), 0..120)
    ) {
        let mut world = World::new();
        for event in &events {
            world.event(event);
        }
        world.settle();
        world.check()?;
    }
}

/// A node that has applied any of a coordinator's revisions, cut off anywhere, comes back from there.
#[test]
fn a_node_resumes_from_every_revision() {
    let changes = [
        Change::Put(1),
        Change::Put(2),
        Change::Presence(1, false),
        Change::Filter,
        Change::Remove(1),
        Change::Put(1),
        Change::Presence(2, false),
        Change::Remove(2),
    ];
    for known in 0..=changes.len() {
        for merged in [false, true] {
            for forgotten in 0..=known {
                let mut world = World::new();
                world.answer(true, false);
                for (number, change) in changes.iter().enumerate() {
                    world.event(&Event::Change(change.clone()));
                    world.event(&Event::Tell { merged: false });
                    if number < known {
                        world.event(&Event::Deliver(4));
                        world.finish_apply(true);
                    }
                }
                world.event(&Event::Cut);
                world.coordinator.history.drain(..forgotten);
                let knew = world.session.resume();
                world.event(&Event::Wait(60_000));
                world.answer(true, merged);
                let snapshots = world.wire.iter().filter(|message| matches!(message, Incoming::Snapshot(_)));
                let kept = world.coordinator.history.iter().any(|(revision, _)| *revision == knew.1);
                assert_eq!(snapshots.count(), usize::from(!kept), "a snapshot only where no delta will do");
                world.settle();
                world.check().unwrap();
            }
        }
    }
}
