//! kill -9 at any moment loses nothing that was acknowledged.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ghostwire_proto::join_key::JoinKey;
use ghostwire_proto::v1;

use crate::harness::{Admin, Machine, Server, node_client};

const ROUNDS: usize = 8;

/// What the coordinator said yes to.
#[derive(Default)]
struct Acknowledged {
    /// Node id and first address by machine key.
    nodes: BTreeMap<Vec<u8>, (u64, Vec<u8>)>,
    users: Vec<String>,
    policies: BTreeMap<u32, String>,
    generations: BTreeMap<u64, u32>,
}

type Book = Arc<Mutex<Acknowledged>>;

async fn enroll_forever(join_key: JoinKey, book: Book) {
    let mut client = node_client(&join_key).await;
    loop {
        let machine = Machine::new("node");
        let Ok(node) = machine.enroll_over(&mut client, &join_key).await else { return };
        let key = machine.key.verifying_key().to_bytes().to_vec();
        book.lock().unwrap().nodes.insert(key, (node.id, node.addresses[0].address.clone()));
    }
}

async fn edit_forever(mut admin: Admin, book: Book) {
    for number in 0.. {
        let mark = rand::random::<u64>();
        let content = format!(
            r#"{{"acls": [{{"action": "accept", "src": ["*"], "dst": ["*:{}"]}}]}} // {mark}"#,
            number % 60_000 + 1
        );
        let Ok(set) = admin.set_policy(&content).await else { return };
        book.lock().unwrap().policies.insert(set.version, content);
        let email = format!("user{mark}@example.com");
        let request = v1::CreateUserRequest { email: email.clone(), ..Default::default() };
        if admin.0.create_user(request).await.is_err() {
            return;
        }
        book.lock().unwrap().users.push(email);
        let Ok(nodes) = admin.0.list_nodes(v1::ListNodesRequest {}).await else { return };
        let generations = nodes.into_inner().nodes.into_iter().map(|node| (node.id, node.filter_generation));
        book.lock().unwrap().generations.extend(generations);
    }
}

async fn check(admin: &mut Admin, book: &Book) {
    let nodes = admin.nodes().await;
    let users = admin.0.list_users(v1::ListUsersRequest {}).await.unwrap().into_inner().users;
    let policies: BTreeMap<u32, String> = book.lock().unwrap().policies.clone();
    {
        let book = book.lock().unwrap();
        let stored: BTreeMap<&[u8], &v1::Node> =
            nodes.iter().map(|node| (&node.machine_key[..], node)).collect();
        for (key, (id, address)) in &book.nodes {
            let node = stored.get(&key[..]).expect("an acknowledged node");
            assert_eq!((node.id, &node.addresses[0].address), (*id, address));
        }
        for email in &book.users {
            assert!(users.iter().any(|user| user.email == *email), "{email}");
        }
        for (id, generation) in &book.generations {
            let node = nodes.iter().find(|node| node.id == *id).expect("a listed node");
            assert!(node.filter_generation >= *generation, "a generation went back");
        }
    }
    for (version, content) in &policies {
        let stored =
            admin.0.get_policy(v1::GetPolicyRequest { version: *version }).await.unwrap().into_inner();
        assert_eq!(stored.content, *content);
    }
    let in_force = admin.0.get_policy(v1::GetPolicyRequest::default()).await.unwrap().into_inner().version;
    assert!(policies.keys().all(|version| *version <= in_force));
    let mut addresses: Vec<&[u8]> = nodes.iter().map(|node| &node.addresses[0].address[..]).collect();
    addresses.sort_unstable();
    addresses.dedup();
    assert_eq!(addresses.len(), nodes.len(), "two nodes have one address");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_when_the_server_is_killed() {
    let mut server = Server::start();
    let address = server.address;
    let join_key = {
        let mut admin = server.admin().await;
        admin.user("alice@example.com").await;
        let request = v1::CreateAuthKeyRequest {
            user: "alice@example.com".to_owned(),
            reusable: true,
            lifetime_seconds: -1,
            ..Default::default()
        };
        admin.key(request).await.0
    };
    let book = Book::default();
    for round in 0..ROUNDS {
        let mut work = tokio::task::JoinSet::new();
        work.spawn(enroll_forever(join_key.clone(), book.clone()));
        work.spawn(enroll_forever(join_key.clone(), book.clone()));
        work.spawn(edit_forever(server.admin().await, book.clone()));
        // The moment of the kill is random on purpose; nothing is waited for.
        tokio::time::sleep(Duration::from_millis(rand::random_range(20..600))).await;
        let files = server.kill();
        work.join_all().await;
        server = Server::start_at(&files, address);
        check(&mut server.admin().await, &book).await;
        println!("round {round}: {} nodes acknowledged so far", book.lock().unwrap().nodes.len());
    }
    let book = book.lock().unwrap();
    assert!(!book.nodes.is_empty() && !book.policies.is_empty(), "something was acknowledged");
}
