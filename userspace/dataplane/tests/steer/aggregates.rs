//! Packets that the kernel has put together: generic receive offload on the uplinks, TCP through the tunnel.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};

use ghostwire_dataplane::steer::{Path, Reason};

use crate::lab::{NEIGHBOURS4, NEIGHBOURS6, Node, Pair, counted, engines};
use crate::netns::eventually;

const LENGTH: usize = 16 << 20;

/// Sends bytes from one node to the other through the tunnel and checks each of them.
fn transfer(from: &Node, to: &Node) {
    let target = (to.overlay(), 7000);
    let listener = to.netns.run(|| TcpListener::bind((target.0.as_str(), target.1)).unwrap());
    let expected: Vec<u8> = (0..=250_u8).cycle().take(LENGTH).collect();
    let sent = expected.clone();
    let mut stream = from.netns.run(|| TcpStream::connect((target.0.as_str(), target.1)).unwrap());
    let sender = std::thread::spawn(move || stream.write_all(&sent).unwrap());
    let mut received = Vec::new();
    listener.accept().unwrap().0.read_to_end(&mut received).unwrap();
    sender.join().unwrap();
    assert!(received == expected, "{} of {LENGTH} bytes, or other bytes", received.len());
}

#[test]
fn aggregates_pass_whole_and_checks_between_them_are_not_lost() {
    for choice in engines() {
        let pair = Pair::new(choice);
        for node in [&pair.a, &pair.b] {
            node.netns.command("ethtool -K eth0 gro on rx-udp-gro-forwarding on");
        }
        let (mut at_a, mut at_b) = pair.steer();
        pair.use_network(&mut at_a, &mut at_b, NEIGHBOURS4);
        let (wg_a, wg_b) = (pair.a.wireguard(&[&pair.b]), pair.b.wireguard(&[&pair.a]));
        pair.meet();
        for network in [NEIGHBOURS4, NEIGHBOURS6] {
            pair.use_network(&mut at_a, &mut at_b, network);
            transfer(&pair.a, &pair.b);
            transfer(&pair.b, &pair.a);
            let received = at_b.traffic(pair.a.id()).received_total();
            println!(
                "{} datagrams of {} bytes on average",
                received.packets,
                received.bytes / received.packets.max(1)
            );
        }
        checks_arrive_under_load(&pair, &at_a, &at_b);
        assert_eq!(wg_a.endpoints(), [Some(at_a.stable_endpoint(pair.b.id()))]);
        assert_eq!(wg_b.endpoints(), [Some(at_b.stable_endpoint(pair.a.id()))]);
        for reason in [Reason::Failed, Reason::TooBig, Reason::NotWireGuard, Reason::Malformed] {
            assert_eq!((counted(&at_a, reason), counted(&at_b, reason)), (0, 0), "{reason:?}");
        }
    }
}

/// Checks between data of the same flow: shorter than the data, they could end an aggregate and be taken for its tail.
fn checks_arrive_under_load(
    pair: &Pair,
    at_a: &ghostwire_dataplane::steer::Steer,
    at_b: &ghostwire_dataplane::steer::Steer,
) {
    let Path::Wire { uplink, local, remote, .. } = pair.path_from_a(NEIGHBOURS6) else { panic!("no wire") };
    let Path::Wire { uplink: back, local: there, remote: here, .. } = pair.path_from_b(NEIGHBOURS6) else {
        panic!("no wire")
    };
    let stun = |number: u32| {
        let mut message = vec![0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42];
        message.extend([0; 8]);
        message.extend(number.to_be_bytes());
        message
    };
    // The firewall of the other side lets in answers only.
    pair.b.netns.run(|| at_b.controller().try_send(back, there.ip(), here, &stun(0))).unwrap();
    let total = 200;
    std::thread::scope(|scope| {
        let load = scope.spawn(|| transfer(&pair.a, &pair.b));
        let (mut sent, mut seen) = (0, 0);
        let mut buffer = [0; 2048];
        while !load.is_finished() && sent < total {
            pair.a.netns.run(|| at_a.controller().try_send(uplink, local.ip(), remote, &stun(sent))).unwrap();
            sent += 1;
            while at_b.controller().try_recv(&mut buffer).is_ok() {
                seen += 1;
            }
        }
        load.join().unwrap();
        eventually(&format!("all {sent} checks arrive"), || {
            while at_b.controller().try_recv(&mut buffer).is_ok() {
                seen += 1;
            }
            seen == sent
        });
        assert!(sent > 20, "{sent}");
    });
}
