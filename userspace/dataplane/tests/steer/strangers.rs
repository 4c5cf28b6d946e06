//! Who is not admitted stays outside.

use std::net::UdpSocket;

use ghostwire_dataplane::steer::{Class, Kind, Reason};
use ghostwire_dataplane::wireguard::Choice;

use crate::lab::{NEIGHBOURS4, NEIGHBOURS6, Pair, ROUTED4, counted, engines, remote};
use crate::netns::eventually;

/// Something that looks like WireGuard's.
fn initiation() -> Vec<u8> {
    [&[1, 0, 0, 0][..], &[0x5a; 144]].concat()
}

#[test]
fn an_authentic_packet_from_elsewhere_does_not_move_the_endpoint() {
    for choice in engines() {
        let pair = Pair::new(choice);
        let (mut at_a, mut at_b) = pair.steer();
        pair.use_network(&mut at_a, &mut at_b, NEIGHBOURS4);
        let (wg_a, _wg_b) = (pair.a.wireguard(&[&pair.b]), pair.b.wireguard(&[&pair.a]));
        pair.meet();
        // Node 1 no longer lets in what comes by the router; node 2 sends that way.
        let stranger = remote(ROUTED4[1], pair.b.port()).parse().unwrap();
        at_a.dismiss(stranger, pair.b.id());
        assert_eq!(counted(&at_a, Reason::UnknownReported), 0);
        assert!(at_a.admissions().iter().all(|(remote, ..)| *remote != stranger));
        let later = std::time::Instant::now() + std::time::Duration::from_mins(1);
        assert!(at_a.housekeep(later).is_none_or(|next| next > later));
        pair.b.set_path(&mut at_b, pair.a.id(), &pair.path_from_b(ROUTED4), None);
        pair.b.cannot_ping(&pair.a);
        assert_eq!(wg_a.endpoints(), [Some(at_a.stable_endpoint(pair.b.id()))]);
        assert!(counted(&at_a, Reason::UnknownReported) > 0);
        // The controller is told, and from where it was.
        let mut buffer = [0; 2048];
        let arrival = at_a.controller().try_recv(&mut buffer);
        // With a closed firewall only after it has spoken to that remote: here it has not.
        assert!(arrival.is_err(), "{arrival:?}");
        let controller = at_a.controller();
        let Some(uplink) = pair
            .a
            .uplinks()
            .into_iter()
            .find(|uplink| uplink.addresses.contains(&ROUTED4[0].parse().unwrap()))
        else {
            panic!("no uplink")
        };
        let local = ROUTED4[0].parse().unwrap();
        controller
            .try_send(uplink.index, local, stranger, b"\x00\x01\x00\x00\x21\x12\xa4\x42somebodythere")
            .unwrap();
        eventually("an unknown source is reported", || {
            pair.b.netns.output(&format!("ping -n -c 1 -W 1 {}", pair.a.overlay()));
            controller.try_recv(&mut buffer).is_ok_and(|arrival| {
                assert_eq!(
                    (arrival.kind, arrival.remote, arrival.uplink),
                    (Kind::Unknown, stranger, uplink.index)
                );
                assert_eq!(arrival.local, format!("{}:{}", ROUTED4[0], pair.a.port()).parse().unwrap());
                true
            })
        });
        // Admitted, it is let in.
        at_a.admit(stranger, pair.b.id(), Class::Direct).unwrap();
        pair.b.ping(&pair.a);
        assert_eq!(wg_a.endpoints(), [Some(at_a.stable_endpoint(pair.b.id()))]);
    }
}

#[test]
fn strangers_reach_the_controller_at_a_limited_rate_and_wireguard_never() {
    let mut pair = Pair::new(Choice::Userspace);
    pair.a.options.unknown_per_second = 5;
    let (mut at_a, mut at_b) = pair.steer();
    pair.use_network(&mut at_a, &mut at_b, NEIGHBOURS4);
    let (wg_a, _wg_b) = (pair.a.wireguard(&[&pair.b]), pair.b.wireguard(&[&pair.a]));
    pair.meet();
    for network in [NEIGHBOURS4, NEIGHBOURS6] {
        let before = (counted(&at_a, Reason::UnknownSource), counted(&at_a, Reason::UnknownReported));
        let attacker = pair.b.netns.run(|| UdpSocket::bind((network[1], 9999)).unwrap());
        let count = 2000;
        for _ in 0..count {
            attacker.send_to(&initiation(), (network[0], pair.a.port())).unwrap();
        }
        let told = || counted(&at_a, Reason::UnknownReported) - before.1;
        eventually("all are counted", || counted(&at_a, Reason::UnknownSource) - before.0 + told() == count);
        assert!(told() < count / 2, "{} of {count}", told());
        for (payload, reason) in [
            (vec![0; 64], Reason::NotWireGuard),
            (vec![4, 0, 0, 0], Reason::NotWireGuard),
            (vec![], Reason::NotWireGuard),
            (vec![0xff; 1200], Reason::NotWireGuard),
        ] {
            let before = counted(&at_a, reason);
            attacker.send_to(&payload, (network[0], pair.a.port())).unwrap();
            eventually("it is counted", || counted(&at_a, reason) > before);
        }
        // A fragmented initiation is no way in either.
        let before = counted(&at_a, Reason::Fragment);
        attacker.send_to(&[initiation(), vec![0; 3000]].concat(), (network[0], pair.a.port())).unwrap();
        eventually("the fragment is counted", || counted(&at_a, Reason::Fragment) > before);
    }
    assert_eq!(wg_a.endpoints(), [Some(at_a.stable_endpoint(pair.b.id()))]);
    pair.a.ping(&pair.b);
}

#[test]
fn what_is_not_for_the_port_is_passed_by() {
    let pair = Pair::new(Choice::Userspace);
    let (at_a, _at_b) = pair.steer();
    pair.a.netns.command("nft flush ruleset");
    pair.b.netns.command("nft flush ruleset");
    let service = pair.a.netns.run(|| UdpSocket::bind(("0.0.0.0", 53)).unwrap());
    let client = pair.b.netns.run(|| UdpSocket::bind((NEIGHBOURS4[1], 0)).unwrap());
    client.send_to(&initiation(), (NEIGHBOURS4[0], 53)).unwrap();
    let mut buffer = [0; 2048];
    assert_eq!(service.recv(&mut buffer).unwrap(), 148);
    // Nor what is forwarded, to WireGuard's port of somebody else.
    pair.a.netns.sysctl("net/ipv4/ip_forward", "1");
    pair.b.netns.ip("route replace 10.1.0.0/24 via 192.0.2.1");
    pair.router.ip("route add 192.0.2.0/24 via 10.1.0.2");
    let behind = pair.router.run(|| UdpSocket::bind(("10.1.0.1", pair.a.port())).unwrap());
    client.send_to(&initiation(), ("10.1.0.1", pair.a.port())).unwrap();
    assert_eq!(behind.recv(&mut buffer).unwrap(), 148);
    let total: u64 = Reason::ALL.iter().map(|reason| counted(&at_a, *reason)).sum();
    assert_eq!(total, counted(&at_a, Reason::NotSynthetic));
}

#[test]
fn packets_to_a_stable_endpoint_never_leave_the_host() {
    let pair = Pair::new(Choice::Userspace);
    let (mut at_a, mut at_b) = pair.steer();
    pair.use_network(&mut at_a, &mut at_b, NEIGHBOURS4);
    let (_wg_a, _wg_b) = (pair.a.wireguard(&[&pair.b]), pair.b.wireguard(&[&pair.a]));
    pair.meet();
    pair.a.netns.ip("route delete 198.18.0.0/15 dev gw0-steer");
    pair.a.netns.ip("route add default via 192.0.2.2 dev eth0");
    pair.a.cannot_ping(&pair.b);
    assert!(counted(&at_a, Reason::Escaped) > 0);
}
