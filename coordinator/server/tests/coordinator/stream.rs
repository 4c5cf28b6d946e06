//! The node stream: snapshot, deltas, resuming, and who hears of what.

use std::collections::BTreeMap;
use std::sync::Arc;

use ghostwire_proto::join_key::JoinKey;
use ghostwire_proto::v1::coordinator_message::Message;
use ghostwire_proto::v1::node_service_client::NodeServiceClient;
use ghostwire_proto::v1::{self, goodbye::Reason, node_message};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

use crate::harness::{Machine, OPEN, Server, key_request};

fn endpoint(port: u32) -> v1::NodeUpdate {
    let endpoints = vec![v1::Endpoint { address: vec![192, 0, 2, 1], port, kind: 1 }];
    v1::NodeUpdate { endpoints, ..Default::default() }
}

/// Pairs of users who reach each other only.
const PAIRS: &str = r#"{"acls": [
    {"action": "accept", "src": ["a@x.com"], "dst": ["b@x.com:*"]},
    {"action": "accept", "src": ["c@x.com"], "dst": ["d@x.com:*"]},
]}"#;

#[tokio::test]
async fn a_snapshot_then_deltas_as_peers_come_change_and_go() {
    let server = Server::start();
    let mut admin = server.admin().await;
    let join_key = admin.reusable("alice@example.com").await;
    let mut first = Machine::new("one").join(&join_key).await;
    assert!(first.peers().is_empty());
    assert!(first.generation() >= 1);

    let machine = Machine::new("two");
    let second = machine.join(&join_key).await;
    first.until("two comes online", |map| map.peers.iter().any(|peer| peer.online)).await;
    assert_eq!(second.peers(), ["one"]);
    assert_eq!(first.peer("two").unwrap().node_key, machine.node_key);

    second.send(node_message::Message::Update(endpoint(51820)));
    let delta = first.delta().await;
    assert!(delta.changed.is_empty() && delta.filter.is_none(), "only a patch: {delta:?}");
    assert_eq!(delta.patched[0].endpoints.as_ref().unwrap().endpoints, endpoint(51820).endpoints);

    drop(second);
    first.until("two goes offline", |map| map.peers.iter().all(|peer| !peer.online)).await;
    admin.delete("two").await;
    let delta = first.delta().await;
    assert_eq!(delta.removed.len(), 1);
    assert!(first.peers().is_empty());
}

#[tokio::test]
async fn a_deleted_node_is_told_and_its_peers_at_once() {
    let server = Server::start();
    let mut admin = server.admin().await;
    let join_key = admin.reusable("alice@example.com").await;
    let mut one = Machine::new("one").join(&join_key).await;
    let machine = Machine::new("two");
    let mut two = machine.join(&join_key).await;
    one.until("two comes", |map| map.peers.len() == 1).await;
    admin.delete("two").await;
    assert_eq!(two.goodbye().await, Reason::Removed);
    one.until("two goes", |map| map.peers.is_empty()).await;
    assert_eq!(machine.connect(&join_key).await.unwrap().goodbye().await, Reason::Removed);
    // With a join key it may come back, as another node.
    machine.join(&join_key).await;
}

#[tokio::test]
async fn only_affected_nodes_hear_of_a_change() {
    let server = Server::start();
    let mut admin = server.admin().await;
    let mut keys = Vec::new();
    for user in ["a@x.com", "b@x.com", "c@x.com", "d@x.com"] {
        keys.push(admin.reusable(user).await);
    }
    admin.set_policy(PAIRS).await.unwrap();
    let mut a = Machine::new("a").join(&keys[0]).await;
    let b = Machine::new("b").join(&keys[1]).await;
    let mut c = Machine::new("c").join(&keys[2]).await;
    let mut d = Machine::new("d").join(&keys[3]).await;
    a.until("b is online", |map| map.peers.iter().any(|peer| peer.online)).await;
    c.until("d is online", |map| map.peers.iter().any(|peer| peer.online)).await;
    assert_eq!((a.peers(), b.peers(), c.peers(), d.peers()), (vec!["b"], vec!["a"], vec!["d"], vec!["c"]));

    // b moves, and its news reaches a; then d moves, and the first that c hears is about d.
    b.send(node_message::Message::Update(endpoint(1)));
    a.until("b's endpoint", |map| !map.peers[0].endpoints.is_empty()).await;
    d.send(node_message::Message::Update(endpoint(2)));
    let delta = c.delta().await;
    assert_eq!(delta.patched.iter().map(|patch| patch.id).collect::<Vec<_>>(), [c.peer("d").unwrap().id]);

    // A rule between c and d changes: a and b hear nothing, so the next thing that a hears is b's endpoint.
    let (a_generation, d_generation) = (a.generation(), d.generation());
    let edited = admin.set_policy(&PAIRS.replace("d@x.com:*", "d@x.com:22")).await.unwrap();
    assert_eq!(edited.nodes_affected, 2);
    d.until("the new filter", |map| map.filter.as_ref().is_some_and(|f| f.generation > d_generation)).await;
    b.send(node_message::Message::Update(endpoint(3)));
    let delta = a.delta().await;
    assert!(delta.filter.is_none() && delta.patched.len() == 1, "{delta:?}");
    assert_eq!(a.generation(), a_generation);
}

#[tokio::test]
async fn a_policy_edit_changes_filters_and_who_sees_whom() {
    let server = Server::start();
    let mut admin = server.admin().await;
    let (key_a, key_b) = (admin.reusable("a@x.com").await, admin.reusable("b@x.com").await);
    let mut a = Machine::new("a").join(&key_a).await;
    let b = Machine::new("b").join(&key_b).await;
    a.until("b comes online", |map| map.peers.iter().any(|peer| peer.online)).await;
    let before = a.generation();
    admin.set_policy(r#"{"acls": []}"#).await.unwrap();
    let delta = a.delta().await;
    assert_eq!(delta.removed, [b.known.node.as_ref().unwrap().id]);
    let (generation, filter) = ghostwire_proto::filter::from_wire(a.known.filter.as_ref().unwrap()).unwrap();
    assert_eq!(generation.get(), before + 1);
    assert!(filter.inbound.is_empty() && filter.outbound.is_empty());
    admin.set_policy(PAIRS).await.unwrap();
    a.until("b is seen again", |map| map.peers.len() == 1).await;
    let (generation, filter) = ghostwire_proto::filter::from_wire(a.known.filter.as_ref().unwrap()).unwrap();
    assert_eq!(generation.get(), before + 2);
    assert_eq!((filter.inbound.len(), filter.outbound.len()), (0, 1));
    assert_eq!(filter.outbound[0].origin.line, 2);
}

#[tokio::test]
async fn a_node_resumes_where_it_left() {
    let server = Server::start();
    let mut admin = server.admin().await;
    let join_key = admin.reusable("alice@example.com").await;
    let machine = Machine::new("one");
    let mut one = machine.join(&join_key).await;
    let mut two = Machine::new("two").join(&join_key).await;
    one.until("two comes online", |map| map.peers.iter().any(|peer| peer.online)).await;
    let (hello, known) = (one.hello(), one.known.clone());
    drop(one);
    two.until("one goes offline", |map| map.peers.iter().all(|peer| !peer.online)).await;
    two.send(node_message::Message::Update(endpoint(7)));
    Machine::new("three").join(&join_key).await;

    let mut one = machine.connect_from(&join_key, hello).await.unwrap();
    one.known = known;
    let delta = one.delta().await;
    assert_eq!(delta.changed.len(), 1, "three is new, and two only changed: {delta:?}");
    one.until("two's endpoint", |map| map.peers.iter().any(|peer| !peer.endpoints.is_empty())).await;
    assert_eq!(one.peers(), ["two", "three"]);
}

#[tokio::test]
async fn who_resumes_from_an_unknown_state_gets_a_snapshot() {
    let server = Server::start();
    let mut admin = server.admin().await;
    let join_key = admin.reusable("alice@example.com").await;
    let machine = Machine::new("one");
    let one = machine.join(&join_key).await;
    let good = one.hello();
    one.send(node_message::Message::KeepAlive(v1::KeepAlive::default()));
    for hello in [
        v1::Hello { epoch: "another".to_owned(), ..good.clone() },
        v1::Hello { revision: good.revision + 1_000_000, ..good.clone() },
    ] {
        machine.connect_from(&join_key, hello).await.unwrap().snapshot().await;
    }
    // A restarted coordinator keeps its epoch and never uses a revision again.
    let known = {
        let mut stream = machine.connect(&join_key).await.unwrap();
        stream.snapshot().await
    };
    let address = server.address;
    let files = server.terminate().await;
    let _server = Server::start_at(&files, address);
    let mut stream = machine
        .connect_from(
            &join_key,
            v1::Hello { epoch: known.epoch.clone(), revision: known.revision, ..Default::default() },
        )
        .await
        .unwrap();
    let fresh = stream.snapshot().await;
    assert_eq!(fresh.epoch, known.epoch);
    assert!(fresh.revision > known.revision);
    assert_eq!(fresh.filter, known.filter, "the filter and its generation survive");
}

#[tokio::test]
async fn the_same_node_from_elsewhere_replaces_the_old_stream() {
    let server = Server::start();
    let mut admin = server.admin().await;
    let join_key = admin.reusable("alice@example.com").await;
    let machine = Machine::new("one");
    let mut old = machine.join(&join_key).await;
    let mut new = machine.connect(&join_key).await.unwrap();
    new.snapshot().await;
    assert_eq!(old.goodbye().await, Reason::Replaced);
    assert!(admin.nodes().await[0].online);
}

fn generation(map: &v1::Snapshot) -> u32 {
    map.filter.as_ref().map(|filter| filter.generation).unwrap_or_default()
}

/// A connection whose receiver takes 64 KiB before it has to read.
async fn small_window(join_key: &JoinKey) -> NodeServiceClient<Channel> {
    let config = Arc::new(ghostwire_proto::tls::client_config(join_key.ca).unwrap());
    let (host, port) = (join_key.addresses[0].host().to_owned(), join_key.addresses[0].port());
    let connect = tower::service_fn(move |_: http::Uri| {
        let (config, host) = (config.clone(), host.clone());
        async move {
            let tcp = TcpStream::connect((host.as_str(), port)).await?;
            let name = rustls::pki_types::ServerName::try_from(host).unwrap();
            TlsConnector::from(config).connect(name, tcp).await.map(hyper_util::rt::TokioIo::new)
        }
    });
    let endpoint = Endpoint::from_static("http://ghostwire").initial_stream_window_size(65_535);
    NodeServiceClient::new(endpoint.connect_with_connector(connect).await.unwrap())
}

#[tokio::test]
async fn a_slow_consumer_disturbs_nobody_and_misses_nothing() {
    let server = Server::start();
    let mut admin = server.admin().await;
    let join_key = admin.reusable("alice@example.com").await;
    // Reads nothing, from before the flood to its end.
    let slow_machine = Machine::new("slow");
    slow_machine.enroll(&join_key).await.unwrap();
    let mut client = small_window(&join_key).await;
    let mut slow = slow_machine.connect_over(&mut client, &join_key, v1::Hello::default()).await.unwrap();
    slow.acknowledge = false;
    let mut quick = Machine::new("quick").join(&join_key).await;
    let rounds = 320;
    for round in 0..rounds {
        // Large filters fill the connection that is not read; small ones are enough to fall behind further.
        let rules = if round < 20 { 200 } else { 1 };
        let rule = |n: usize| {
            let (octet, port) = (n % 250, round * 200 + n);
            format!(r#"{{"action": "accept", "src": ["*"], "dst": ["10.0.{octet}.0/24:{port}"]}},"#)
        };
        let rules = (1..=rules).map(rule).collect::<Vec<_>>().concat();
        let everything = r#"{"action": "accept", "src": ["*"], "dst": ["*:*"]}"#;
        admin.set_policy(&format!(r#"{{"acls": [{rules}{everything}]}}"#)).await.unwrap();
    }
    admin.set_policy(OPEN).await.unwrap();
    let generations: BTreeMap<String, u32> =
        admin.nodes().await.into_iter().map(|node| (node.name, node.filter_generation)).collect();
    quick.until("the last policy", |map| generation(map) == generations["quick"]).await;

    // It reads at last: what waited in the connection, then one step to the present, a snapshot.
    let (mut messages, mut snapshots) = (0, 0);
    while generation(&slow.known) != generations["slow"] {
        let message = slow.next().await.unwrap().expect("a message");
        snapshots += usize::from(matches!(message, Message::Snapshot(_)));
        messages += 1;
    }
    assert!(messages < rounds / 2, "{messages} messages for {rounds} changes");
    assert!(snapshots >= 2, "a fresh snapshot after it had missed too much");
    assert_eq!(slow.peers(), ["quick"]);
}

#[tokio::test]
async fn routes_count_once_they_are_approved() {
    let server = Server::start();
    let mut admin = server.admin().await;
    let join_key = admin.reusable("alice@example.com").await;
    let mut one = Machine::new("one").join(&join_key).await;
    let mut router = Machine::new("router").join(&join_key).await;
    let subnet = v1::Prefix { address: vec![10, 9, 0, 0], length: 16 };
    let advertised_routes = vec![subnet.clone()];
    router.send(node_message::Message::Update(v1::NodeUpdate { advertised_routes, ..Default::default() }));
    crate::harness::eventually("the route is offered", || {
        let mut admin = admin.clone();
        async move { admin.nodes().await.iter().any(|node| !node.advertised_routes.is_empty()) }
    })
    .await;
    let update = v1::UpdateNodeRequest {
        node: "router".to_owned(),
        approved_routes: Some(v1::PrefixList { prefixes: vec![subnet.clone()] }),
        ..Default::default()
    };
    admin.0.update_node(update).await.unwrap();
    one.until("the route", |map| map.peers.iter().any(|peer| peer.allowed_prefixes.contains(&subnet))).await;
    router
        .until("its own route", |map| {
            map.node.as_ref().is_some_and(|node| node.approved_routes == [subnet.clone()])
        })
        .await;

    // The mesh's own addresses cannot be routed away.
    let own = v1::Prefix { address: vec![100, 64, 0, 0], length: 24 };
    router.send(node_message::Message::Update(v1::NodeUpdate {
        advertised_routes: vec![own],
        ..Default::default()
    }));
    let refused = loop {
        match router.next().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("no reason"),
            Err(status) => break status,
        }
    };
    assert_eq!(refused.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_shutdown_is_announced() {
    let server = Server::start();
    let mut admin = server.admin().await;
    admin.user("alice@example.com").await;
    let join_key = admin.key(key_request("alice@example.com")).await.0;
    let mut one = Machine::new("one").join(&join_key).await;
    drop(admin);
    let files = server.terminate().await;
    assert_eq!(one.goodbye().await, Reason::Shutdown);
    assert!(!files.socket().exists());
}
