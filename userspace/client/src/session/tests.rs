//! The session against a model of a coordinator that changes, disconnects and forgets at random.

use std::collections::BTreeMap;

use ghostwire_proto::v1::coordinator_message::Message as Incoming;
use ghostwire_proto::v1::node_message::Message as Outgoing;
use proptest::prelude::*;

use super::*;
use crate::testing;

fn message(message: Incoming) -> Input {
    Input::Received(Box::new(pb::CoordinatorMessage { message: Some(message) }))
}

fn drain(session: &mut Session) -> Vec<Output> {
    std::iter::from_fn(|| session.poll_output()).collect()
}

fn opened(session: &mut Session, now: Instant) {
    session.handle(now, Input::Up);
    assert!(drain(session).iter().any(|output| matches!(output, Output::Connect)));
    session.handle(now, Input::Opened { coordinator: "c:8080".into() });
}

fn applied(session: &mut Session, now: Instant, outputs: &[Output]) -> Option<u64> {
    let desired = outputs.iter().find_map(|output| match output {
        Output::Apply(desired) => Some(desired.clone()),
        _ => None,
    })?;
    let enforced = desired.map.filter.as_ref().map_or(0, |filter| filter.generation);
    let report = Report { ticket: desired.ticket, complete: true, enforced, problems: Vec::new() };
    session.handle(now, Input::Applied(report));
    Some(desired.map.revision)
}

fn acks(outputs: &[Output]) -> Vec<u64> {
    let sent = outputs.iter().filter_map(|output| match output {
        Output::Send(message) => message.message.as_ref(),
        _ => None,
    });
    sent.filter_map(|message| match message {
        Outgoing::Ack(ack) => Some(ack.revision),
        _ => None,
    })
    .collect()
}

#[test]
fn a_revision_is_acknowledged_only_when_the_data_plane_has_it() {
    let now = Instant::now();
    let mut session = Session::new(None, false, 1);
    opened(&mut session, now);
    assert_eq!(session.state(), State::Connecting);
    session.handle(now, message(Incoming::Snapshot(testing::snapshot(4, &[1]))));
    let outputs = drain(&mut session);
    assert!(acks(&outputs).is_empty());
    assert!(outputs.iter().any(|output| matches!(output, Output::SaveMap(_))));
    assert_eq!(applied(&mut session, now, &outputs), Some(4));
    assert_eq!(acks(&drain(&mut session)), [4]);
    assert_eq!(session.state(), State::Running);
    assert_eq!(session.enforced(), 4);
}

#[test]
fn maps_that_arrive_while_one_is_applied_are_merged() {
    let now = Instant::now();
    let mut session = Session::new(None, false, 1);
    opened(&mut session, now);
    session.handle(now, message(Incoming::Snapshot(testing::snapshot(1, &[1]))));
    let first = drain(&mut session);
    for revision in 1..5 {
        let delta = pb::Delta {
            epoch: "first".into(),
            base_revision: revision,
            revision: revision + 1,
            changed: vec![testing::peer(revision + 10)],
            ..pb::Delta::default()
        };
        session.handle(now, message(Incoming::Delta(delta)));
        assert!(!drain(&mut session).iter().any(|output| matches!(output, Output::Apply(_))));
    }
    assert_eq!(applied(&mut session, now, &first), Some(1));
    let second = drain(&mut session);
    assert_eq!(acks(&second), [1]);
    assert_eq!(applied(&mut session, now, &second), Some(5));
    assert_eq!(acks(&drain(&mut session)), [5]);
}

#[test]
fn a_failed_image_is_told_and_tried_again_and_not_acknowledged() {
    let now = Instant::now();
    let mut session = Session::new(None, false, 1);
    opened(&mut session, now);
    session.handle(now, message(Incoming::Snapshot(testing::snapshot(3, &[1]))));
    drain(&mut session);
    let problems = vec!["the new policy is not in force: too large".to_owned()];
    session.handle(now, Input::Applied(Report { ticket: 1, complete: false, enforced: 2, problems }));
    let outputs = drain(&mut session);
    assert!(acks(&outputs).is_empty());
    let told = outputs.iter().any(|output| match output {
        Output::Send(message) => matches!(&message.message, Some(Outgoing::Status(status))
            if status.enforced_generation == 2 && status.problems.len() == 1),
        _ => false,
    });
    assert!(told, "{outputs:?}");
    let retry = session.poll_timeout().unwrap();
    session.handle(retry, Input::Tick);
    assert!(drain(&mut session).iter().any(|output| matches!(output, Output::Apply(_))));
}

#[test]
fn losing_the_coordinator_touches_nothing_and_comes_back_where_it_was() {
    let now = Instant::now();
    let mut session = Session::new(None, false, 1);
    opened(&mut session, now);
    session.handle(now, message(Incoming::Snapshot(testing::snapshot(7, &[1]))));
    let outputs = drain(&mut session);
    applied(&mut session, now, &outputs);
    drain(&mut session);
    session.handle(now, Input::Closed { why: "connection reset".into() });
    assert_eq!(session.state(), State::Offline);
    assert!(session.detail().contains("connection reset; working from the stored map"));
    assert!(drain(&mut session).is_empty());
    assert_eq!(session.resume(), ("first".to_owned(), 7));
    let retry = session.poll_timeout().unwrap();
    session.handle(retry, Input::Tick);
    assert!(drain(&mut session).iter().any(|output| matches!(output, Output::Connect)));
}

#[test]
fn a_stored_map_is_applied_before_the_coordinator_answers() {
    let now = Instant::now();
    let map = NetworkMap::from_snapshot(&testing::snapshot(9, &[1, 2])).unwrap();
    let mut session = Session::new(Some(map), false, 1);
    assert_eq!(session.state(), State::Stopped);
    session.handle(now, Input::Up);
    let outputs = drain(&mut session);
    assert!(matches!(&outputs[..], [Output::Connect, Output::Apply(desired)] if desired.map.revision == 9));
    assert_eq!(session.state(), State::Offline);
}

#[test]
fn a_removed_node_tears_down_and_forgets() {
    let now = Instant::now();
    let mut session = Session::new(None, false, 1);
    opened(&mut session, now);
    session.handle(now, message(Incoming::Snapshot(testing::snapshot(1, &[1]))));
    drain(&mut session);
    let goodbye = pb::Goodbye { reason: Reason::Removed.into(), detail: "by an administrator".into() };
    session.handle(now, message(Incoming::Goodbye(goodbye)));
    let outputs = drain(&mut session);
    assert!(
        matches!(&outputs[..], [Output::Disconnect, Output::TearDown, Output::ForgetNetwork]),
        "{outputs:?}"
    );
    assert_eq!(session.state(), State::Removed);
    assert!(
        session.detail().contains("by an administrator") && session.detail().contains("gwctl up JOIN_KEY")
    );
    assert_eq!(session.resume(), (String::new(), 0));
    // A report about what was torn down comes too late.
    session
        .handle(now, Input::Applied(Report { ticket: 1, complete: true, enforced: 1, problems: Vec::new() }));
    assert_eq!(session.enforced(), 0);
    assert!(session.poll_timeout().is_none());
}

#[test]
fn a_map_that_does_not_fit_is_fetched_anew() {
    let now = Instant::now();
    let mut session = Session::new(None, false, 1);
    opened(&mut session, now);
    session.handle(now, message(Incoming::Snapshot(testing::snapshot(5, &[1]))));
    drain(&mut session);
    let delta = pb::Delta { epoch: "first".into(), base_revision: 6, revision: 7, ..pb::Delta::default() };
    session.handle(now, message(Incoming::Delta(delta)));
    assert!(drain(&mut session).iter().any(|output| matches!(output, Output::Disconnect)));
    assert_eq!(session.resume(), (String::new(), 0));
    assert_eq!(session.map().unwrap().revision, 5);
    assert!(session.detail().contains("does not fit"), "{}", session.detail());
}

#[test]
fn a_silent_stream_is_dead() {
    let now = Instant::now();
    let mut session = Session::new(None, false, 1);
    opened(&mut session, now);
    let mut kept_alive = 0;
    let mut time = now;
    while session.is_connected() {
        time = session.poll_timeout().unwrap();
        session.handle(time, Input::Tick);
        kept_alive += drain(&mut session).iter().filter(|output| matches!(output, Output::Send(_))).count();
    }
    assert_eq!(time, now + SILENCE);
    assert_eq!(kept_alive, 2);
}

#[test]
fn presence_is_written_lazily_and_a_full_disk_is_said() {
    let now = Instant::now();
    let mut session = Session::new(None, false, 1);
    opened(&mut session, now);
    session.handle(now, message(Incoming::Snapshot(testing::snapshot(1, &[1]))));
    drain(&mut session);
    session.handle(now, Input::NotSaved { why: "no space left on device".into() });
    assert!(session.problems()[0].contains("no space left"));
    session.handle(now + LAZY_SAVE, Input::Tick);
    assert!(drain(&mut session).iter().any(|output| matches!(output, Output::SaveMap(_))));
    session.handle(now + LAZY_SAVE, Input::Saved);
    assert!(session.problems().is_empty());
    let patch = pb::PeerPatch { id: 1, online: Some(false), ..pb::PeerPatch::default() };
    let delta = pb::Delta {
        epoch: "first".into(),
        base_revision: 1,
        revision: 2,
        patched: vec![patch],
        ..pb::Delta::default()
    };
    session.handle(now + LAZY_SAVE, message(Incoming::Delta(delta)));
    assert!(!drain(&mut session).iter().any(|output| matches!(output, Output::SaveMap(_))));
    session.handle(now + 2 * LAZY_SAVE, Input::Tick);
    assert!(drain(&mut session).iter().any(|output| matches!(output, Output::SaveMap(_))));
}

/// The coordinator as it should be, and the two ends of a stream.
struct Model {
    epoch: u64,
    revision: u64,
    peers: BTreeMap<u64, pb::Peer>,
    generation: u32,
    log: Vec<pb::Delta>,
}

impl Model {
    fn new() -> Self {
        Self { epoch: 1, revision: 1, peers: BTreeMap::new(), generation: 1, log: Vec::new() }
    }

    fn snapshot(&self) -> pb::Snapshot {
        pb::Snapshot {
            epoch: self.epoch.to_string(),
            revision: self.revision,
            node: Some(testing::own()),
            peers: self.peers.values().cloned().collect(),
            filter: Some(testing::filter(self.generation)),
        }
    }

    fn change(&mut self, change: &Change) {
        let mut delta = pb::Delta {
            epoch: self.epoch.to_string(),
            base_revision: self.revision,
            revision: self.revision + 1,
            ..pb::Delta::default()
        };
        match change {
            Change::Put(id) => {
                self.peers.insert(*id, testing::peer(*id));
                delta.changed.push(testing::peer(*id));
            }
            Change::Remove(id) => {
                self.peers.remove(id);
                delta.removed.push(*id);
            }
            Change::Presence(id, online) => {
                if let Some(peer) = self.peers.get_mut(id) {
                    peer.online = *online;
                    delta.patched.push(pb::PeerPatch {
                        id: *id,
                        online: Some(*online),
                        ..Default::default()
                    });
                }
            }
            Change::Filter => {
                self.generation += 1;
                delta.filter = Some(testing::filter(self.generation));
            }
        }
        self.revision += 1;
        self.log.push(delta);
    }

    /// What a coordinator sends after this hello.
    fn answer(&self, (epoch, revision): (String, u64)) -> Vec<Incoming> {
        let from = self.log.iter().position(|delta| delta.base_revision == revision);
        if epoch != self.epoch.to_string() || (from.is_none() && revision != self.revision) {
            return vec![Incoming::Snapshot(self.snapshot())];
        }
        let from = from.unwrap_or(self.log.len());
        self.log[from..].iter().cloned().map(Incoming::Delta).collect()
    }
}

#[derive(Clone, Debug)]
enum Change {
    Put(u64),
    Remove(u64),
    Presence(u64, bool),
    Filter,
}

#[derive(Clone, Debug)]
enum Event {
    Change(Change),
    Deliver(u8),
    Duplicate,
    Lose,
    Cut,
    NewEpoch,
    ForgetLog,
    Apply { complete: bool },
    Wait(u16),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (1_u64..6).prop_map(|id| Event::Change(Change::Put(id))),
        2 => (1_u64..6).prop_map(|id| Event::Change(Change::Remove(id))),
        2 => (1_u64..6, any::<bool>()).prop_map(|(id, online)| Event::Change(Change::Presence(id, online))),
        2 => Just(Event::Change(Change::Filter)),
        6 => (1_u8..5).prop_map(Event::Deliver),
        1 => Just(Event::Duplicate),
        1 => Just(Event::Lose),
        1 => Just(Event::Cut),
        1 => Just(Event::NewEpoch),
        1 => Just(Event::ForgetLog),
        6 => prop::bool::weighted(0.8).prop_map(|complete| Event::Apply { complete }),
        3 => (0_u16..20_000).prop_map(Event::Wait),
    ]
}

/// Everything outside the session.
struct World {
    now: Instant,
    session: Session,
    model: Model,
    wire: VecDeque<Incoming>,
    /// Deltas of the log that are already on the wire of this stream.
    sent_to: u64,
    connected: bool,
    under_way: Option<Desired>,
    last_applied: Option<(String, u64)>,
    acked_high: Option<(String, u64)>,
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            now: Instant::now(),
            session: Session::new(None, false, 42),
            model: Model::new(),
            wire: VecDeque::new(),
            sent_to: 0,
            connected: false,
            under_way: None,
            last_applied: None,
            acked_high: None,
        };
        world.input(Input::Up);
        world
    }

    fn input(&mut self, input: Input) {
        self.session.handle(self.now, input);
        while let Some(output) = self.session.poll_output() {
            match output {
                Output::Connect => {
                    let hello = self.session.resume();
                    self.connected = true;
                    self.wire = self.model.answer(hello).into();
                    self.sent_to = self.model.revision;
                    self.acked_high = None;
                    self.session.handle(self.now, Input::Opened { coordinator: "c".into() });
                }
                Output::Disconnect => {
                    self.connected = false;
                    self.wire.clear();
                }
                Output::Apply(desired) => {
                    assert!(self.under_way.is_none(), "two at a time");
                    let next = (desired.map.epoch.clone(), desired.map.revision);
                    if let Some(last) = &self.last_applied {
                        assert!(next.0 != last.0 || next.1 >= last.1, "{next:?} after {last:?}");
                    }
                    self.under_way = Some(desired);
                }
                Output::Send(message) => {
                    assert!(self.connected, "sent into nothing");
                    if let Some(Outgoing::Ack(ack)) = message.message {
                        let last =
                            self.last_applied.clone().expect("acknowledged before anything was applied");
                        assert_eq!(ack.revision, last.1, "acknowledged what is not applied");
                        if let Some(before) = &self.acked_high {
                            assert!(
                                before.0 != last.0 || before.1 < ack.revision,
                                "acknowledged twice or back"
                            );
                        }
                        self.acked_high = Some(last);
                    }
                }
                Output::SaveMap(_) => self.session.handle(self.now, Input::Saved),
                Output::TearDown | Output::ForgetNetwork => panic!("nobody asked for that"),
            }
        }
    }

    fn send_new(&mut self) {
        if self.connected {
            let fresh = self.model.log.iter().filter(|delta| delta.base_revision >= self.sent_to);
            self.wire.extend(fresh.cloned().map(Incoming::Delta));
            self.sent_to = self.model.revision;
        }
    }

    fn finish_apply(&mut self, complete: bool) {
        let Some(desired) = self.under_way.take() else { return };
        if complete {
            self.last_applied = Some((desired.map.epoch.clone(), desired.map.revision));
        }
        let enforced = desired.map.filter.as_ref().map_or(0, |filter| filter.generation);
        self.input(Input::Applied(Report {
            ticket: desired.ticket,
            complete,
            enforced,
            problems: Vec::new(),
        }));
    }

    fn event(&mut self, event: &Event) {
        match event {
            Event::Change(change) => {
                self.model.change(change);
                self.send_new();
            }
            Event::Deliver(count) => {
                for _ in 0..*count {
                    if let Some(next) = self.wire.pop_front() {
                        self.input(message(next));
                    }
                }
            }
            Event::Duplicate => {
                if let Some(next) = self.wire.front().cloned() {
                    self.input(message(next));
                }
            }
            Event::Lose => drop(self.wire.pop_front()),
            Event::Cut => {
                self.connected = false;
                self.wire.clear();
                self.input(Input::Closed { why: "cut".into() });
            }
            Event::NewEpoch => {
                self.model.epoch += 1;
                self.model.revision = 1;
                self.model.log.clear();
                self.event(&Event::Cut);
            }
            Event::ForgetLog => {
                self.send_new();
                self.model.log.clear();
            }
            Event::Apply { complete } => self.finish_apply(*complete),
            Event::Wait(milliseconds) => {
                self.now += Duration::from_millis((*milliseconds).into());
                self.input(Input::Tick);
            }
        }
    }

    /// With nothing in the way any more, the node must come to have what the coordinator has.
    fn settle(&mut self) {
        for _ in 0..200 {
            self.send_new();
            while let Some(next) = self.wire.pop_front() {
                self.input(message(next));
            }
            while self.under_way.is_some() {
                self.finish_apply(true);
            }
            let there = self.session.map().map(|map| (map.epoch.clone(), map.revision))
                == Some((self.model.epoch.to_string(), self.model.revision));
            let applied = self.last_applied == Some((self.model.epoch.to_string(), self.model.revision));
            if there && applied && self.session.is_settled() && self.connected {
                return;
            }
            self.now += Duration::from_secs(5);
            self.input(Input::Tick);
            if self.connected {
                self.input(message(Incoming::KeepAlive(pb::KeepAlive::default())));
            }
            // A message that was lost shows at the next delta only.
            self.model.change(&Change::Filter);
        }
        panic!("never settled");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn whatever_happens_on_the_way_the_node_ends_where_the_coordinator_is(
        events in prop::collection::vec(event(), 0..80)
    ) {
        let mut world = World::new();
        for event in &events {
            world.event(event);
        }
        world.settle();
        let map = world.session.map().unwrap().to_snapshot();
        prop_assert_eq!(map, world.model.snapshot());
        let last = world.last_applied.clone().unwrap();
        prop_assert_eq!(last, (world.model.epoch.to_string(), world.model.revision));
        prop_assert_eq!(world.session.enforced(), world.model.generation);
        prop_assert_eq!(world.session.state(), State::Running);
    }

    #[test]
    fn garbage_in_a_map_is_an_error_or_a_map(
        address in prop::collection::vec(any::<u8>(), 0..20), length in 0_u32..200,
        key in prop::collection::vec(any::<u8>(), 30..34), port in 0_u32..70_000,
    ) {
        let mut snapshot = testing::snapshot(1, &[1, 2]);
        snapshot.peers[0].allowed_prefixes.push(pb::Prefix { address: address.clone(), length });
        snapshot.peers[0].node_key = key;
        snapshot.peers[1].endpoints.push(pb::Endpoint { address, port, kind: 1 });
        if let Ok(map) = NetworkMap::from_snapshot(&snapshot) {
            prop_assert_eq!(NetworkMap::from_snapshot(&map.to_snapshot()), Ok(map));
        }
    }
}
