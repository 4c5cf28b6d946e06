//! Signals between nodes: who gets them, what is kept, and what a node that misbehaves can do.

use std::time::Duration;

use ghostwire_proto::MAX_SIGNAL_BYTES;
use ghostwire_proto::v1::coordinator_message::Message;
use ghostwire_proto::v1::{self, node_message};
use tonic::Code;

use crate::harness::{Machine, OPEN, Server, Stream};

fn signal(revision: u32) -> v1::Signal {
    let credentials =
        v1::Credentials { fragment: "frag".to_owned(), password: "not for the log, please".to_owned() };
    v1::Signal {
        protocol: 1,
        generation: 7,
        revision,
        credentials: Some(credentials),
        ..v1::Signal::default()
    }
}

fn id(stream: &Stream) -> u64 {
    stream.known.node.as_ref().unwrap().id
}

impl Stream {
    fn signal(&self, to: u64, revision: u32) {
        let message = v1::OutgoingSignal { to, signal: Some(signal(revision)) };
        self.send(node_message::Message::Signal(message));
    }

    /// The next signal; what else comes before it is applied.
    async fn next_signal(&mut self) -> (u64, v1::Signal) {
        loop {
            match self.next().await.unwrap() {
                Some(Message::Signal(signal)) => return (signal.from, signal.signal.unwrap()),
                Some(Message::Snapshot(_) | Message::Delta(_)) => {}
                other => panic!("waiting for a signal: {other:?}"),
            }
        }
    }
}

#[tokio::test]
async fn a_signal_reaches_its_peer_whole_and_nobody_else() {
    let server = Server::start();
    let mut admin = server.admin().await;
    let join_key = admin.reusable("alice@example.com").await;
    let mut one = Machine::new("one").join(&join_key).await;
    let mut two = Machine::new("two").join(&join_key).await;
    let mut three = Machine::new("three").join(&join_key).await;
    let (first, second, third) = (id(&one), id(&two), id(&three));
    one.signal(second, 1);
    assert_eq!(two.next_signal().await, (first, signal(1)));
    // The answer, and one for three: its first signal is the one that is meant for it.
    two.signal(first, 5);
    two.signal(third, 6);
    assert_eq!(one.next_signal().await, (second, signal(5)));
    assert_eq!(three.next_signal().await, (second, signal(6)));
}

#[tokio::test]
async fn a_signal_follows_the_news_of_its_sender() {
    let server = Server::start();
    let mut admin = server.admin().await;
    let join_key = admin.reusable("alice@example.com").await;
    let mut one = Machine::new("one").join(&join_key).await;
    for number in 0..20 {
        let new = Machine::new(&format!("new-{number}")).join(&join_key).await;
        new.signal(id(&one), 1);
        let (from, _) = one.next_signal().await;
        assert_eq!(from, id(&new));
        assert!(one.known.peers.iter().any(|peer| peer.id == from), "a signal from a stranger");
    }
}

#[tokio::test]
async fn who_is_not_seen_cannot_signal() {
    let server = Server::start();
    let mut admin = server.admin().await;
    let (key_a, key_b) = (admin.reusable("a@x.com").await, admin.reusable("b@x.com").await);
    let key_c = admin.reusable("c@x.com").await;
    admin
        .set_policy(r#"{"acls": [{"action": "accept", "src": ["a@x.com"], "dst": ["b@x.com:*"]}]}"#)
        .await
        .unwrap();
    let a = Machine::new("a").join(&key_a).await;
    let mut b = Machine::new("b").join(&key_b).await;
    let c = Machine::new("c").join(&key_c).await;
    // c is heard by the server first: were it let through, b would get it first.
    c.signal(id(&b), 1);
    c.signal(u64::MAX, 1);
    c.send(node_message::Message::Update(v1::NodeUpdate {
        hostname: "sea".to_owned(),
        ..Default::default()
    }));
    loop {
        if admin.nodes().await.iter().any(|node| node.name == "sea") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    a.signal(id(&b), 2);
    assert_eq!(b.next_signal().await, (id(&a), signal(2)));
    // Permission that ends takes what was kept along: the next connection gets nothing from a.
    admin
        .set_policy(r#"{"acls": [{"action": "accept", "src": ["c@x.com"], "dst": ["b@x.com:*"]}]}"#)
        .await
        .unwrap();
    b.until("c is seen", |map| map.peers.iter().any(|peer| peer.name == "sea")).await;
    b.until("a is not", |map| map.peers.len() == 1).await;
    a.signal(id(&b), 3);
    c.signal(id(&b), 4);
    assert_eq!(b.next_signal().await, (id(&c), signal(4)));
}

#[tokio::test]
async fn the_latest_of_each_peer_waits_for_who_is_away() {
    let server = Server::start();
    let mut admin = server.admin().await;
    let join_key = admin.reusable("alice@example.com").await;
    let machine = Machine::new("away");
    let away = machine.join(&join_key).await;
    let (receiver, hello, known) = (id(&away), away.hello(), away.known.clone());
    let mut one = Machine::new("one").join(&join_key).await;
    let mut two = Machine::new("two").join(&join_key).await;
    drop(away);
    for stream in [&mut one, &mut two] {
        stream.until("it goes", |map| map.peers.iter().any(|peer| peer.id == receiver && !peer.online)).await;
    }
    for revision in 1..=5 {
        one.signal(receiver, revision);
    }
    two.signal(receiver, 9);
    // Both have been taken once their senders' later messages are answered.
    one.signal(id(&two), 1);
    two.signal(id(&one), 1);
    assert_eq!(two.next_signal().await.0, id(&one));
    assert_eq!(one.next_signal().await.0, id(&two));
    for _ in 0..2 {
        let mut back = machine.connect_from(&join_key, hello.clone()).await.unwrap();
        back.known = known.clone();
        let mut got = vec![back.next_signal().await, back.next_signal().await];
        got.sort_by_key(|(from, _)| *from);
        let mut wanted = vec![(id(&one), signal(5)), (id(&two), signal(9))];
        wanted.sort_by_key(|(from, _)| *from);
        assert_eq!(got, wanted);
    }
}

#[tokio::test]
async fn a_flood_of_signals_arrives_as_the_latest_and_costs_nobody_the_stream() {
    const LAST: u32 = 1_500;
    let server = Server::start();
    let mut admin = server.admin().await;
    let join_key = admin.reusable("alice@example.com").await;
    let mut one = Machine::new("one").join(&join_key).await;
    let mut two = Machine::new("two").join(&join_key).await;
    for revision in 1..=LAST {
        one.signal(id(&two), revision);
    }
    let mut seen = 0;
    while seen < LAST {
        let (_, signal) = two.next_signal().await;
        assert!(signal.revision > seen, "an older signal after a newer one");
        seen = signal.revision;
    }
    // Policy still reaches both at once.
    let (before_one, before_two) = (one.generation(), two.generation());
    let narrower = OPEN.replace("*:*", "*:22");
    admin.set_policy(&narrower).await.unwrap();
    one.until("the policy", |map| map.filter.as_ref().is_some_and(|f| f.generation > before_one)).await;
    two.until("the policy", |map| map.filter.as_ref().is_some_and(|f| f.generation > before_two)).await;
}

#[tokio::test]
async fn what_no_node_of_ours_would_say_ends_its_own_stream_only() {
    let server = Server::start();
    let mut admin = server.admin().await;
    let join_key = admin.reusable("alice@example.com").await;
    let mut two = Machine::new("two").join(&join_key).await;
    let mut large = signal(1);
    large.candidates =
        vec![v1::Candidate { address: vec![0; 16], ..Default::default() }; MAX_SIGNAL_BYTES / 16];
    for bad in [Some(large), None] {
        let mut one = Machine::new("one").join(&join_key).await;
        let message = v1::OutgoingSignal { to: id(&two), signal: bad };
        one.send(node_message::Message::Signal(message));
        let refused = loop {
            match one.next().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("ended without a reason"),
                Err(status) => break status,
            }
        };
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    }
    let one = Machine::new("three").join(&join_key).await;
    one.signal(id(&two), 3);
    assert_eq!(two.next_signal().await, (id(&one), signal(3)));
}
