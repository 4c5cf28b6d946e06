//! What steering costs: TCP through the tunnel beside the same without it, turn by turn. The ratio is printed, not judged:
//! other programs share the processors.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use ghostwire_dataplane::steer::Steer;

use crate::lab::{NEIGHBOURS4, NEIGHBOURS6, Node, Pair, WireGuard, engines, remote};

/// Seconds of each run; `GHOSTWIRE_STEER_SECONDS` chooses another number.
const SECONDS: u64 = 1;
const TURNS: u32 = 3;

/// Bytes per second of one TCP connection.
#[expect(clippy::cast_precision_loss, reason = "a figure to print")]
fn throughput(from: &Node, to: &Node, length: Duration) -> f64 {
    let target = (to.overlay(), 7000);
    let listener = to.netns.run(|| TcpListener::bind((target.0.as_str(), target.1)).unwrap());
    let mut sender = from.netns.run(|| TcpStream::connect((target.0.as_str(), target.1)).unwrap());
    let mut receiver = listener.accept().unwrap().0;
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let (started, block) = (Instant::now(), vec![0x5a; 65_536]);
            while started.elapsed() < length {
                match sender.write_all(&block) {
                    Err(error) if error.kind() == ErrorKind::ConnectionReset => break,
                    other => other.unwrap(),
                }
            }
        });
        let (started, mut block, mut bytes) = (Instant::now(), vec![0; 1 << 18], 0_u64);
        loop {
            match receiver.read(&mut block).unwrap() {
                0 => break,
                length => bytes += length as u64,
            }
        }
        bytes as f64 / started.elapsed().as_secs_f64()
    })
}

/// Stable endpoints by a network, or the real ones without any of our programs on the uplinks.
fn choose(
    pair: &Pair,
    (at_a, at_b): (&mut Steer, &mut Steer),
    wg: (&WireGuard<'_>, &WireGuard<'_>),
    steered: Option<[&str; 2]>,
) {
    if let Some(network) = steered {
        pair.a.set_uplinks(at_a);
        pair.b.set_uplinks(at_b);
        pair.use_network(at_a, at_b, network);
        wg.0.set_endpoint(&pair.b, at_a.stable_endpoint(pair.b.id()));
        wg.1.set_endpoint(&pair.a, at_b.stable_endpoint(pair.a.id()));
    } else {
        pair.a.netns.run(|| at_a.set_uplinks(&[])).unwrap();
        pair.b.netns.run(|| at_b.set_uplinks(&[])).unwrap();
        let address = |node: &Node, index: usize| -> SocketAddr {
            remote(NEIGHBOURS4[index], node.port()).parse().unwrap()
        };
        wg.0.set_endpoint(&pair.b, address(&pair.b, 1));
        wg.1.set_endpoint(&pair.a, address(&pair.a, 0));
    }
    pair.a.ping(&pair.b);
}

#[test]
fn steered_and_plain_throughput_side_by_side() {
    let seconds =
        std::env::var("GHOSTWIRE_STEER_SECONDS").map_or(SECONDS, |seconds| seconds.parse().unwrap());
    let length = Duration::from_secs(seconds);
    for choice in engines() {
        let pair = Pair::new(choice);
        for node in [&pair.a, &pair.b] {
            node.netns.command("nft flush ruleset");
        }
        let (mut at_a, mut at_b) = pair.steer();
        let (wg_a, wg_b) = (pair.a.wireguard(&[&pair.b]), pair.b.wireguard(&[&pair.a]));
        for (name, network) in [("IPv4", NEIGHBOURS4), ("IPv6", NEIGHBOURS6)] {
            let mut ratios = Vec::new();
            for _ in 0..TURNS {
                let [plain, steered] = [None, Some(network)].map(|steered| {
                    choose(&pair, (&mut at_a, &mut at_b), (&wg_a, &wg_b), steered);
                    let before = at_a.traffic(pair.b.id()).sent_total().bytes;
                    let speed = throughput(&pair.a, &pair.b, length);
                    let moved = at_a.traffic(pair.b.id()).sent_total().bytes - before;
                    assert_eq!(moved > 100_000, steered.is_some(), "{moved} bytes were steered");
                    speed
                });
                ratios.push(steered / plain);
                println!(
                    "{choice:?}, TCP over {name}: plain {:.0} Mbit/s (IPv4), steered {:.0} Mbit/s, ratio {:.2}",
                    plain * 8e-6,
                    steered * 8e-6,
                    steered / plain
                );
            }
            let mean = ratios.iter().sum::<f64>() / f64::from(TURNS);
            println!("{choice:?}, TCP over {name}: steered / plain = {mean:.2}");
        }
    }
}
