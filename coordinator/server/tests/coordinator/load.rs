//! How long a policy edit takes to reach many nodes. Prints figures; asserts only that all get it.
//! `GHOSTWIRE_LOAD_NODES=1000` says how many nodes; without it there are few.

use std::time::{Duration, Instant};

use ghostwire_proto::join_key::JoinKey;
use ghostwire_proto::v1::{self, node_message};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::harness::{Machine, OPEN, Server, Stream, node_client};

/// Nodes that share one connection: files are limited, and the coordinator sees separate streams all the same.
const PER_CONNECTION: usize = 16;
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// What a node knows by now.
#[derive(Clone, Copy, Default)]
struct Known {
    online: usize,
    generation: u32,
}

/// Reads a stream and keeps it alive for as long as somebody watches.
async fn live(mut stream: Stream, known: watch::Sender<Known>) {
    let out = stream.out.clone();
    let alive = tokio::spawn(async move {
        let message =
            || v1::NodeMessage { message: Some(node_message::Message::KeepAlive(v1::KeepAlive::default())) };
        while out.send(message()).is_ok() {
            tokio::time::sleep(KEEP_ALIVE).await;
        }
    });
    while let Ok(Some(_)) = stream.next().await {
        let online = stream.known.peers.iter().filter(|peer| peer.online).count();
        if known.send(Known { online, generation: stream.generation() }).is_err() {
            break;
        }
    }
    alive.abort();
}

async fn join(join_key: JoinKey, members: usize) -> Vec<watch::Receiver<Known>> {
    let mut client = node_client(&join_key).await;
    let mut nodes = Vec::new();
    for _ in 0..members {
        let machine = Machine::new("node");
        machine.enroll_over(&mut client, &join_key).await.unwrap();
        let stream = machine.connect_over(&mut client, &join_key, v1::Hello::default()).await.unwrap();
        let (sender, receiver) = watch::channel(Known::default());
        tokio::spawn(live(stream, sender));
        nodes.push(receiver);
    }
    nodes
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_edit_reaches_all_nodes() {
    let count: usize =
        std::env::var("GHOSTWIRE_LOAD_NODES").ok().and_then(|count| count.parse().ok()).unwrap_or(48);
    let server = Server::start();
    let mut admin = server.admin().await;
    let join_key = admin.reusable("alice@example.com").await;
    admin.set_policy(OPEN).await.unwrap();

    let begun = Instant::now();
    let mut joining = JoinSet::new();
    for first in (0..count).step_by(PER_CONNECTION) {
        joining.spawn(join(join_key.clone(), PER_CONNECTION.min(count - first)));
    }
    let mut nodes: Vec<watch::Receiver<Known>> = joining.join_all().await.into_iter().flatten().collect();
    let joined = begun.elapsed();
    for node in &mut nodes {
        node.wait_for(|known| known.online == count - 1).await.unwrap();
    }
    let settled = begun.elapsed();

    let edited = Instant::now();
    let mut waiting = JoinSet::new();
    for mut node in nodes {
        let before = node.borrow().generation;
        waiting.spawn(async move {
            node.wait_for(|known| known.generation > before).await.unwrap();
            (edited.elapsed(), node)
        });
    }
    let set = admin.set_policy(&OPEN.replace("*:*", "*:443")).await.unwrap();
    let answered = edited.elapsed();
    let (mut times, nodes): (Vec<Duration>, Vec<_>) = waiting.join_all().await.into_iter().unzip();
    times.sort_unstable();
    assert_eq!(set.nodes_affected as usize, nodes.len());
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    println!(
        "{count} nodes: joined in {joined:?}, all peers known after {settled:?}; policy edit answered in \
         {answered:?}, reached half in {:?}, 99% in {:?}, all in {:?}",
        at(50),
        at(99),
        at(100)
    );
}
