//! Which machines get in, and which do not.

use ghostwire_proto::auth_key::AuthKey;
use ghostwire_proto::join_key::JoinKey;
use ghostwire_proto::{channel, proof, v1};
use tonic::Code;

use crate::harness::{Machine, Server, eventually, key_request, node_client, nonce};

#[tokio::test]
async fn a_single_use_key_admits_one_machine() {
    let server = Server::start();
    let mut admin = server.admin().await;
    admin.user("alice@example.com").await;
    let (join_key, _) = admin.key(key_request("alice@example.com")).await;
    let first = Machine::new("Web.example.com");
    let node = first.enroll(&join_key).await.unwrap();
    assert_eq!(node.name, "web");
    assert_eq!(node.user, "alice@example.com");
    assert_eq!(node.addresses[0].address, [100, 64, 0, 2]);
    assert_eq!((node.addresses[1].address[0], node.addresses[1].address[15]), (0xfd, 2));
    assert_eq!(node.overlay.unwrap().v4.unwrap().length, 10);

    // The answer may have been lost: the same machine may ask again and stays who it is.
    assert_eq!(first.enroll(&join_key).await.unwrap().id, node.id);
    let refused = Machine::new("db").enroll(&join_key).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert!(refused.message().contains("one machine"), "{refused}");
    assert_eq!(admin.nodes().await.len(), 1);
}

#[tokio::test]
async fn a_reusable_key_admits_many_with_names_and_addresses_of_their_own() {
    let server = Server::start();
    let mut admin = server.admin().await;
    let join_key = admin.reusable("alice@example.com").await;
    for number in 0..4 {
        Machine::new("web").enroll(&join_key).await.unwrap_or_else(|error| panic!("{number}: {error}"));
    }
    let nodes = admin.nodes().await;
    let names: Vec<&str> = nodes.iter().map(|node| node.name.as_str()).collect();
    assert_eq!(names, ["web", "web-2", "web-3", "web-4"]);
    let last: Vec<u8> = nodes.iter().map(|node| node.addresses[0].address[3]).collect();
    assert_eq!(last, [2, 3, 4, 5]);
}

#[tokio::test]
async fn a_tagged_key_makes_tagged_nodes() {
    let server = Server::start();
    let mut admin = server.admin().await;
    let tags = vec!["tag:server".to_owned()];
    let (join_key, _) = admin.key(v1::CreateAuthKeyRequest { tags, ..Default::default() }).await;
    let node = Machine::new("web").enroll(&join_key).await.unwrap();
    assert_eq!((node.tags, node.user), (vec!["tag:server".to_owned()], String::new()));

    // A tag that the key does not give and nobody owns.
    let mut client = node_client(&join_key).await;
    let machine = Machine::new("db");
    let mut request = machine.request(&join_key);
    request.requested_tags = vec!["tag:admin".to_owned()];
    let (key, _) = admin
        .key(v1::CreateAuthKeyRequest { tags: vec!["tag:server".to_owned()], ..Default::default() })
        .await;
    request.auth_key = key.auth_key.expose();
    request.proof =
        Some(proof::sign(&machine.key, &nonce(&mut client).await.unwrap(), &join_key.ca, &request));
    assert_eq!(client.enroll(request).await.unwrap_err().code(), Code::PermissionDenied);
}

#[tokio::test]
async fn expired_revoked_and_invented_keys_admit_nobody() {
    let server = Server::start();
    let mut admin = server.admin().await;
    admin.user("alice@example.com").await;
    let short =
        v1::CreateAuthKeyRequest { lifetime_seconds: 1, reusable: true, ..key_request("alice@example.com") };
    let (expiring, _) = admin.key(short).await;
    let (revoked, record) = admin.key(key_request("alice@example.com")).await;
    admin.0.revoke_auth_key(v1::RevokeAuthKeyRequest { id: record.id.clone() }).await.unwrap();

    let refused = Machine::new("a").enroll(&revoked).await.unwrap_err();
    assert!(refused.message().contains("revoked"), "{refused}");
    let right_id = AuthKey::new(record.id, [7; 32]).unwrap();
    for auth_key in [right_id, AuthKey::new("nosuchkey", [7; 32]).unwrap()] {
        let invented = JoinKey { auth_key, ..revoked.clone() };
        let refused = Machine::new("b").enroll(&invented).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated);
        assert!(refused.message().contains("not valid"), "{refused}");
    }
    let mut client = node_client(&revoked).await;
    let machine = Machine::new("c");
    let mut garbage = machine.request(&revoked);
    garbage.auth_key = "garbage \u{1F980}".to_owned();
    garbage.proof =
        Some(proof::sign(&machine.key, &nonce(&mut client).await.unwrap(), &revoked.ca, &garbage));
    assert_eq!(client.enroll(garbage).await.unwrap_err().code(), Code::Unauthenticated);

    eventually("the key expires", || async {
        match Machine::new("late").enroll(&expiring).await {
            Ok(_) => false,
            Err(refused) => {
                assert!(refused.message().contains("expired"), "{refused}");
                true
            }
        }
    })
    .await;
    assert!(admin.nodes().await.iter().all(|node| node.name.starts_with("late")));
}

#[tokio::test]
async fn ephemeral_nodes_go_after_they_disconnect() {
    let server = Server::start_in(&crate::harness::Files::new(), &["--ephemeral-grace", "1"]);
    let mut admin = server.admin().await;
    admin.user("alice@example.com").await;
    let request =
        v1::CreateAuthKeyRequest { ephemeral: true, reusable: true, ..key_request("alice@example.com") };
    let (join_key, _) = admin.key(request).await;
    let watcher_key = admin.key(key_request("alice@example.com")).await.0;
    let mut watcher = Machine::new("watcher").join(&watcher_key).await;
    let machine = Machine::new("runner");
    let stream = machine.join(&join_key).await;
    watcher.until("the runner comes", |map| map.peers.iter().any(|peer| peer.online)).await;
    drop(stream);
    watcher.until("the runner goes", |map| map.peers.is_empty()).await;
    let mut admin_view = admin.nodes().await;
    assert_eq!(admin_view.len(), 1);
    assert_eq!(admin_view.remove(0).name, "watcher");
    // It is told when it comes back.
    let mut back = machine.connect(&join_key).await.unwrap();
    assert_eq!(back.goodbye().await, v1::goodbye::Reason::Removed);
}

#[tokio::test]
async fn only_the_holder_of_the_machine_key_gets_in() {
    let server = Server::start();
    let mut admin = server.admin().await;
    let join_key = admin.reusable("alice@example.com").await;
    let machine = Machine::new("web");
    let mut client = node_client(&join_key).await;

    // Signed by another key than the one shown.
    let mut request = machine.request(&join_key);
    let nonce_bytes = nonce(&mut client).await.unwrap();
    let other = Machine::new("x").key;
    let mut forged = proof::sign(&other, &nonce_bytes, &join_key.ca, &request);
    forged.machine_key = machine.key.verifying_key().to_bytes().to_vec();
    request.proof = Some(forged);
    assert_eq!(client.enroll(request).await.unwrap_err().code(), Code::Unauthenticated);

    // No proof, a made-up nonce, a proof for another coordinator.
    let request = machine.request(&join_key);
    assert_eq!(client.enroll(request.clone()).await.unwrap_err().code(), Code::Unauthenticated);
    let mut invented = request.clone();
    invented.proof = Some(proof::sign(&machine.key, &[9; 32], &join_key.ca, &request));
    assert_eq!(client.enroll(invented).await.unwrap_err().code(), Code::Unauthenticated);
    let elsewhere = ghostwire_proto::keys::Fingerprint::new([1; 32]);
    let mut for_another = request.clone();
    for_another.proof =
        Some(proof::sign(&machine.key, &nonce(&mut client).await.unwrap(), &elsewhere, &request));
    assert_eq!(client.enroll(for_another).await.unwrap_err().code(), Code::Unauthenticated);
    assert!(admin.nodes().await.is_empty());
}

#[tokio::test]
async fn a_recorded_registration_does_not_work_again() {
    let server = Server::start();
    let mut admin = server.admin().await;
    let join_key = admin.reusable("alice@example.com").await;
    let mut client = node_client(&join_key).await;
    let machine = Machine::new("web");
    let mut request = machine.request(&join_key);
    let nonce_bytes = nonce(&mut client).await.unwrap();
    request.proof = Some(proof::sign(&machine.key, &nonce_bytes, &join_key.ca, &request));
    client.enroll(request.clone()).await.unwrap();
    admin.delete("web").await;

    let replay = client.enroll(request).await.unwrap_err();
    assert_eq!(replay.code(), Code::Unauthenticated);
    assert!(replay.message().contains("replay"), "{replay}");
    assert!(admin.nodes().await.is_empty());
    // The nonce does not work in another message either.
    let mut hello = v1::Hello { node_key: machine.node_key.to_vec(), ..Default::default() };
    hello.proof = Some(proof::sign(&machine.key, &nonce_bytes, &join_key.ca, &hello));
    let message = v1::NodeMessage { message: Some(v1::node_message::Message::Hello(hello)) };
    let replay = client.sync(tokio_stream::once(message)).await.unwrap_err();
    assert!(replay.message().contains("replay"), "{replay}");
}

#[tokio::test]
async fn a_stranger_and_a_copied_node_key_are_refused() {
    let server = Server::start();
    let mut admin = server.admin().await;
    let join_key = admin.reusable("alice@example.com").await;
    let stranger = Machine::new("stranger").connect(&join_key).await.err().unwrap();
    assert_eq!(stranger.code(), Code::NotFound);
    let machine = Machine::new("web");
    machine.enroll(&join_key).await.unwrap();
    let copy = Machine { node_key: machine.node_key, ..Machine::new("copy") };
    assert_eq!(copy.enroll(&join_key).await.unwrap_err().code(), Code::AlreadyExists);
    let other_key = Machine { node_key: rand::random(), ..machine };
    assert_eq!(other_key.connect(&join_key).await.err().unwrap().code(), Code::FailedPrecondition);
}

#[tokio::test]
async fn another_server_is_not_mistaken_for_the_right_one() {
    let (server, impostor) = (Server::start(), Server::start());
    let join_key = server.admin().await.reusable("alice@example.com").await;
    let address = impostor.address.into();
    let error = channel::coordinator(&address, join_key.ca).await.unwrap_err();
    assert!(error.to_string().contains("UnknownIssuer"), "{error}");
    assert!(channel::coordinator(&join_key.addresses[0], join_key.ca).await.is_ok());
}
