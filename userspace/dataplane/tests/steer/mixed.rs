//! Aggregates that hold both WireGuard's datagrams and checks, as generic receive offload makes them on a shared port: all
//! of a flow, equally long but for a shorter last one.

use std::io::{ErrorKind, IoSlice};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use ghostwire_dataplane::steer::{Class, Family, Kind, Reason, Steer, carried};
use ghostwire_dataplane::wireguard::Choice;
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, sendmsg};

use crate::lab::{NEIGHBOURS4, NEIGHBOURS6, Pair, counted, remote};
use crate::netns::eventually;

/// Longer than the controller takes to read.
const QUEUED: Duration = Duration::from_millis(1100);

/// A datagram that looks like data of WireGuard's.
fn data(number: u8, length: usize) -> Vec<u8> {
    let mut datagram = vec![4, 0, 0, 0];
    datagram.resize(length, number);
    datagram
}

/// A STUN message with an attribute that fills it up.
fn stun(number: u8, length: usize) -> Vec<u8> {
    let mut message = vec![0, 1, 0, u8::try_from(length - 20).unwrap(), 0x21, 0x12, 0xa4, 0x42];
    message.resize(length, number);
    message
}

fn junk(number: u8, length: usize) -> Vec<u8> {
    vec![number | 0x80; length]
}

/// What is sent at once.
fn aggregates() -> Vec<(&'static str, Vec<Vec<u8>>)> {
    vec![
        ("nothing but data", vec![data(1, 96), data(2, 96), data(3, 40)]),
        ("nothing but checks", vec![stun(1, 96), stun(2, 96), stun(3, 40)]),
        ("a check at the end", vec![data(1, 96), data(2, 96), stun(3, 28)]),
        ("a check at the beginning", vec![stun(1, 96), data(2, 96), data(3, 32)]),
        ("checks in between", vec![data(1, 96), stun(2, 96), data(3, 96), stun(4, 96), data(5, 96)]),
        ("a check in disguise", vec![data(1, 96), carried::wrap(&stun(2, 80)), data(3, 96)]),
        ("something else first", vec![junk(1, 96), data(2, 96), stun(3, 96), junk(4, 5)]),
        ("as many as there can be", {
            let mut many: Vec<_> = (0..63).map(|number| data(number, 64)).collect();
            many.push(stun(63, 64));
            many
        }),
    ]
}

/// Node 1 without steering, so that a socket can send what it likes, and node 2 with sockets in WireGuard's place.
struct Bench {
    pair: Pair,
    steer: Steer,
    wireguard: UdpSocket,
}

impl Bench {
    fn on(pair: Pair) -> Self {
        pair.b.netns.command("nft flush ruleset");
        pair.b.netns.command("ethtool -K eth0 gro on rx-udp-gro-forwarding on");
        let mut steer = pair.b.steer();
        pair.b.set_uplinks(&mut steer);
        let wireguard = pair.b.netns.run(|| UdpSocket::bind(("::", pair.b.port())).unwrap());
        wireguard.set_nonblocking(true).unwrap();
        Self { pair, steer, wireguard }
    }

    /// Sends datagrams as one aggregate.
    fn send(&self, network: [&str; 2], datagrams: &[Vec<u8>]) {
        let [from, to]: [SocketAddr; 2] = [
            remote(network[0], self.pair.a.port()).parse().unwrap(),
            remote(network[1], self.pair.b.port()).parse().unwrap(),
        ];
        let socket = self.pair.a.netns.run(|| UdpSocket::bind(from).unwrap());
        let segment = u16::try_from(datagrams[0].len()).unwrap();
        assert!(datagrams[..datagrams.len() - 1].iter().all(|datagram| datagram.len() == segment.into()));
        let payload = datagrams.concat();
        let sent = sendmsg(
            socket.as_raw_fd(),
            &[IoSlice::new(&payload)],
            &[ControlMessage::UdpGsoSegments(&segment)],
            MsgFlags::empty(),
            Some(&SockaddrStorage::from(to)),
        );
        assert_eq!(sent, Ok(payload.len()));
    }

    /// What has reached WireGuard, and the controller, and as what.
    fn arrived(&self, at_wireguard: &mut Vec<Vec<u8>>, at_controller: &mut Vec<(Kind, Vec<u8>)>) {
        let mut buffer = [0; 2048];
        loop {
            match self.wireguard.recv_from(&mut buffer) {
                Ok((length, _)) => at_wireguard.push(buffer[..length].to_vec()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("{error}"),
            }
        }
        while let Ok(arrival) = self.steer.controller().try_recv(&mut buffer) {
            at_controller.push((arrival.kind, buffer[..arrival.length].to_vec()));
        }
    }
}

fn is_data(datagram: &[u8]) -> bool {
    datagram.starts_with(&[4, 0, 0, 0]) && !is_check(datagram)
}

fn is_check(datagram: &[u8]) -> bool {
    datagram.get(4..8) == Some(&[0x21, 0x12, 0xa4, 0x42])
}

/// Sends each of the aggregates by a network, and compares what arrives where.
fn try_all(bench: &mut Bench, network: [&str; 2], admitted: bool) {
    for (name, datagrams) in aggregates() {
        println!("{network:?}: {name}");
        let select = |choose: fn(&[u8]) -> bool| -> Vec<Vec<u8>> {
            datagrams.iter().filter(|datagram| choose(datagram)).cloned().collect()
        };
        let (for_wireguard, checks) = (select(is_data), select(is_check));
        bench.send(network, &datagrams);
        let (mut at_wireguard, mut at_controller) = (Vec::new(), Vec::new());
        let wanted = if admitted { for_wireguard.clone() } else { Vec::new() };
        eventually(name, || {
            bench.arrived(&mut at_wireguard, &mut at_controller);
            at_wireguard.iter().filter(|datagram| is_data(datagram)).count() >= wanted.len()
                && at_controller.iter().filter(|(kind, _)| *kind != Kind::Unknown).count() >= checks.len()
        });
        // What must not come has had a little time to come.
        std::thread::sleep(Duration::from_millis(20));
        bench.arrived(&mut at_wireguard, &mut at_controller);
        if !admitted {
            assert!(at_wireguard.is_empty(), "{name}: nothing of a stranger's reaches WireGuard");
        }
        at_wireguard.retain(|datagram| is_data(datagram));
        assert_eq!(at_wireguard, wanted, "{name}: WireGuard gets its own in their order");
        let (unknown, known): (Vec<_>, Vec<_>) =
            at_controller.into_iter().partition(|(kind, _)| *kind == Kind::Unknown);
        let known: Vec<_> = known.into_iter().map(|(_, datagram)| datagram).collect();
        assert_eq!(known, checks, "{name}: the controller gets all checks, once");
        if admitted {
            assert_eq!(unknown, [], "{name}: whoever is admitted is not unknown");
        } else if checks.is_empty() {
            assert_eq!(unknown.len(), for_wireguard.len(), "{name}");
        }
    }
}

#[test]
fn checks_in_an_aggregate_of_data_reach_the_controller_and_the_data_wireguard() {
    for family in [Family::V4, Family::V6] {
        let mut bench = Bench::on(Pair::with(Choice::Userspace, family));
        for offload in ["on", "off"] {
            // Without it, the sender's kernel takes the aggregate apart, and offload on reception puts it together again.
            bench.pair.a.netns.command(&format!("ethtool -K eth0 tx-udp-segmentation {offload}"));
            for network in [NEIGHBOURS4, NEIGHBOURS6] {
                let from = remote(network[0], bench.pair.a.port()).parse().unwrap();
                let peer = bench.pair.a.id();
                try_all(&mut bench, network, false);
                bench.steer.admit(from, peer, Class::Direct).unwrap();
                // What came before that, and has not been read yet, would be reported.
                std::thread::sleep(QUEUED);
                try_all(&mut bench, network, true);
                bench.steer.forget_peer(peer).unwrap();
            }
        }
        for reason in [Reason::Failed, Reason::ControlLimited, Reason::Malformed] {
            assert_eq!(counted(&bench.steer, reason), 0, "{reason:?}");
        }
    }
}

#[test]
fn an_aggregate_counts_as_many_where_the_rate_is_limited() {
    let mut pair = Pair::new(Choice::Userspace);
    pair.b.options.unknown_per_second = 10;
    let bench = Bench::on(pair);
    let many: Vec<_> = (0..64).map(|number| data(number, 64)).collect();
    let started = Instant::now();
    let sent: u64 = 50;
    for _ in 0..sent {
        bench.send(NEIGHBOURS4, &many);
    }
    let [passed, dropped] = [Reason::UnknownReported, Reason::UnknownSource];
    eventually("all are counted", || counted(&bench.steer, passed) + counted(&bench.steer, dropped) == sent);
    // One in each second that began meanwhile, on each processor.
    let processors = std::thread::available_parallelism().unwrap().get() as u64;
    let most = (started.elapsed().as_secs() + 2) * processors;
    assert!((1..=most).contains(&counted(&bench.steer, passed)), "{}", counted(&bench.steer, passed));
}
