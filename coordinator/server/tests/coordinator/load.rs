//! How long a policy edit takes to reach many nodes. Prints figures; asserts only that all get it.

use std::time::{Duration, Instant};

use ghostwire_proto::v1;
use tokio::task::JoinSet;

use crate::harness::{Machine, OPEN, Server, Stream, node_client};

/// Nodes that share one connection: files are limited, and the coordinator sees separate streams all the same.
const PER_CONNECTION: usize = 16;

fn count() -> usize {
    std::env::var("GHOSTWIRE_LOAD_NODES").ok().and_then(|count| count.parse().ok()).unwrap_or(100)
}

fn at(percent: usize, times: &[Duration]) -> Duration {
    times[(times.len() - 1) * percent / 100]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_edit_reaches_all_nodes() {
    let server = Server::start();
    let mut admin = server.admin().await;
    let join_key = admin.reusable("alice@example.com").await;
    admin.set_policy(OPEN).await.unwrap();

    let begun = Instant::now();
    let mut joining = JoinSet::new();
    for group in 0..count().div_ceil(PER_CONNECTION) {
        let join_key = join_key.clone();
        let members = PER_CONNECTION.min(count() - group * PER_CONNECTION);
        joining.spawn(async move {
            let mut client = node_client(&join_key).await;
            let mut streams: Vec<Stream> = Vec::new();
            for _ in 0..members {
                let machine = Machine::new("node");
                machine.enroll_over(&mut client, &join_key).await.unwrap();
                let mut stream =
                    machine.connect_over(&mut client, &join_key, v1::Hello::default()).await.unwrap();
                stream.snapshot().await;
                streams.push(stream);
            }
            streams
        });
    }
    let streams: Vec<Stream> = joining.join_all().await.into_iter().flatten().collect();
    let joined = begun.elapsed();

    let mut waiting = JoinSet::new();
    let total = streams.len();
    for mut stream in streams {
        waiting.spawn(async move {
            stream
                .until("all peers", |map| map.peers.iter().filter(|peer| peer.online).count() == total - 1)
                .await;
            stream
        });
    }
    let streams = waiting.join_all().await;
    let settled = begun.elapsed();

    let mut waiting = JoinSet::new();
    let edited = Instant::now();
    for mut stream in streams {
        let before = stream.generation();
        waiting.spawn(async move {
            stream.until("the edit", |map| map.filter.as_ref().is_some_and(|f| f.generation > before)).await;
            (edited.elapsed(), stream)
        });
    }
    let set = admin.set_policy(&OPEN.replace("*:*", "*:443")).await.unwrap();
    let answered = edited.elapsed();
    let (mut times, streams): (Vec<Duration>, Vec<Stream>) = waiting.join_all().await.into_iter().unzip();
    times.sort_unstable();
    assert_eq!(set.nodes_affected as usize, total);
    println!(
        "{total} nodes: joined in {joined:?}, all peers known after {settled:?}; policy edit: answered in \
         {answered:?}, reached half in {:?}, 99% in {:?}, all in {:?}",
        at(50, &times),
        at(99, &times),
        at(100, &times)
    );
    drop(streams);
}
