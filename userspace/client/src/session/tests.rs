//! One rule of the session each. All of them at once, under random events: `simulation`.

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

proptest! {
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
