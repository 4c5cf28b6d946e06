//! The controller shares WireGuard's port.

use std::time::Duration;

use ghostwire_dataplane::steer::{Class, Kind, Path, Reason, Steer, carried};
use ghostwire_dataplane::wireguard::Choice;

use crate::lab::{NEIGHBOURS4, NEIGHBOURS6, Node, Pair, ROUTED4, ROUTED6, counted, engines};
use crate::netns::{Netns, eventually};

/// A STUN binding request without attributes.
fn stun(transaction: u8) -> Vec<u8> {
    [&[0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42][..], &[transaction; 12]].concat()
}

/// Sends from an address of a node, by its uplink.
fn send(node: &Node, steer: &Steer, path: &Path, payload: &[u8]) {
    let Path::Wire { uplink, local, remote, .. } = *path else { panic!("no wire") };
    node.netns.run(|| steer.controller().try_send(uplink, local.ip(), remote, payload)).unwrap();
}

#[test]
fn stun_and_dressed_checks_go_from_port_to_port_by_every_network() {
    let pair = Pair::new(Choice::Userspace);
    let (at_a, at_b) = pair.steer();
    let mut buffer = [0; 2048];
    for network in [NEIGHBOURS4, NEIGHBOURS6, ROUTED4, ROUTED6] {
        let (from_a, from_b) = (pair.path_from_a(network), pair.path_from_b(network));
        let (Path::Wire { local: at, .. }, Path::Wire { local: there, uplink, .. }) = (from_a, from_b) else {
            panic!("no wires")
        };
        for (kind, message) in [(Kind::Stun, stun(1)), (Kind::Carried, carried::wrap(&stun(2)))] {
            // The firewalls let in answers only: both sides speak first, as in ICE.
            send(&pair.a, &at_a, &from_a, &message);
            send(&pair.b, &at_b, &from_b, &message);
            send(&pair.a, &at_a, &from_a, &message);
            eventually("the check arrives, from WireGuard's port to WireGuard's port", || {
                at_b.controller().try_recv(&mut buffer).is_ok_and(|arrival| {
                    (arrival.kind, arrival.remote, arrival.local, arrival.uplink) == (kind, at, there, uplink)
                        && buffer[..arrival.length] == message
                })
            });
            if kind == Kind::Carried {
                assert_eq!(carried::unwrap(&message).unwrap()[..20], stun(2));
            }
        }
    }
    assert!(counted(&at_b, Reason::ControlReported) >= 8);
}

#[test]
fn what_the_controller_waits_for_wakes_it() {
    let pair = Pair::new(Choice::Userspace);
    let (at_a, at_b) = pair.steer();
    let (from_a, from_b) = (pair.path_from_a(NEIGHBOURS6), pair.path_from_b(NEIGHBOURS6));
    send(&pair.b, &at_b, &from_b, &stun(1));
    let controller = at_b.controller();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut buffer = [0; 2048];
        for round in 0..20 {
            let later = async {
                tokio::time::sleep(Duration::from_millis(2)).await;
                send(&pair.a, &at_a, &from_a, &stun(round));
            };
            let (arrival, ()) = tokio::join!(controller.recv(&mut buffer), later);
            assert_eq!(buffer[..arrival.unwrap().length], stun(round));
        }
    });
}

/// Node 1 behind address translation to a few ports, node 2 and a server outside.
struct Translated {
    a: Node,
    b: Node,
    _translator: Netns,
}

impl Translated {
    fn new(choice: Choice) -> Self {
        let (a, b, translator) = (Node::new(choice, 1), Node::new(choice, 2), Netns::new());
        a.netns.connect(&translator, "eth0", "10.0.0.2/24", "10.0.0.1/24");
        translator.connect(&b.netns, "eth1", "203.0.113.1/24", "203.0.113.2/24");
        a.netns.ip("route add default via 10.0.0.1");
        b.netns.ip("address add 203.0.113.3/24 dev eth1");
        translator.sysctl("net/ipv4/ip_forward", "1");
        for line in [
            "add table inet n",
            "add chain inet n post { type nat hook postrouting priority 100 ; }",
            "add rule inet n post oifname eth1 meta l4proto udp masquerade to :40000-40100",
        ] {
            translator.command(&format!("nft {line}"));
        }
        a.close_firewall();
        Self { a, b, _translator: translator }
    }
}

#[test]
fn stun_and_wireguard_share_one_mapping_of_an_address_translator() {
    for choice in engines() {
        let net = Translated::new(choice);
        let (mut at_a, mut at_b) = (net.a.steer(), net.b.steer());
        net.a.set_uplinks(&mut at_a);
        net.b.set_uplinks(&mut at_b);
        let mut buffer = [0; 2048];
        // STUN to one address of node 2.
        let to_b = net.a.wire("10.0.0.2", "203.0.113.2:51822");
        send(&net.a, &at_a, &to_b, &stun(1));
        let mut arrived = None;
        eventually("STUN arrives", || {
            arrived = at_b.controller().try_recv(&mut buffer).ok();
            arrived.is_some()
        });
        let mapped = arrived.unwrap().remote;
        assert!(
            mapped.ip().to_string() == "203.0.113.1" && (40000..=40100).contains(&mapped.port()),
            "{mapped}"
        );
        // WireGuard through the same mapping, in both directions.
        at_b.admit(mapped, net.a.id(), Class::Direct).unwrap();
        at_a.admit("203.0.113.2:51822".parse().unwrap(), net.b.id(), Class::Direct).unwrap();
        net.a.set_path(&mut at_a, net.b.id(), &to_b, None);
        net.b.set_path(&mut at_b, net.a.id(), &net.b.wire("203.0.113.2", &mapped.to_string()), None);
        let (wg_a, wg_b) = (net.a.wireguard(&[&net.b]), net.b.wireguard(&[&net.a]));
        net.a.ping(&net.b);
        net.b.ping(&net.a);
        assert_eq!(counted(&at_b, Reason::UnknownReported), 0, "WireGuard came from where STUN came from");
        // The answer to STUN comes back through it.
        let answer = net.b.wire("203.0.113.2", &mapped.to_string());
        send(&net.b, &at_b, &answer, &stun(2));
        eventually("the answer arrives", || {
            at_a.controller().try_recv(&mut buffer).is_ok_and(|arrival| buffer[..arrival.length] == stun(2))
        });
        // And STUN elsewhere while WireGuard talks: the third flow.
        send(&net.a, &at_a, &net.a.wire("10.0.0.2", "203.0.113.3:51822"), &stun(3));
        eventually("STUN to another address arrives", || {
            at_b.controller().try_recv(&mut buffer).is_ok_and(|arrival| {
                assert_eq!(arrival.remote, mapped, "one mapping");
                arrival.local.ip().to_string() == "203.0.113.3"
            })
        });
        net.a.ping(&net.b);
        assert_eq!(wg_a.endpoints(), [Some(at_a.stable_endpoint(net.b.id()))]);
        assert_eq!(wg_b.endpoints(), [Some(at_b.stable_endpoint(net.a.id()))]);
    }
}

#[test]
fn a_further_port_keeps_its_stun_and_brings_wireguard_in() {
    let pair = Pair::new(Choice::Userspace);
    pair.b.netns.command("nft flush ruleset");
    let (mut at_a, mut at_b) = pair.steer();
    let extra = 44_444;
    let socket = pair.b.netns.run(|| std::net::UdpSocket::bind((NEIGHBOURS4[1], extra)).unwrap());
    socket.set_read_timeout(Some(Duration::from_mins(1))).unwrap();
    at_b.open_port(extra).unwrap();
    // STUN stays with the socket.
    let to_extra = pair.a.wire(NEIGHBOURS4[0], &format!("{}:{extra}", NEIGHBOURS4[1]));
    send(&pair.a, &at_a, &to_extra, &stun(9));
    let mut buffer = [0; 2048];
    let (length, from) = socket.recv_from(&mut buffer).unwrap();
    assert_eq!((&buffer[..length], from.port()), (&stun(9)[..], pair.a.port()));
    // WireGuard arrives there and leaves from there.
    at_a.admit(format!("{}:{extra}", NEIGHBOURS4[1]).parse().unwrap(), pair.b.id(), Class::Direct).unwrap();
    pair.a.set_path(&mut at_a, pair.b.id(), &to_extra, None);
    let Path::Wire { class, uplink, mut local, remote } = pair.path_from_b(NEIGHBOURS4) else {
        panic!("no wire")
    };
    local.set_port(extra);
    pair.b.set_path(&mut at_b, pair.a.id(), &Path::Wire { class, uplink, local, remote }, None);
    let (_wg_a, _wg_b) = (pair.a.wireguard(&[&pair.b]), pair.b.wireguard(&[&pair.a]));
    pair.meet();
    assert_eq!(counted(&at_a, Reason::UnknownReported), 0);
    at_b.close_port(extra).unwrap();
    pair.a.cannot_ping(&pair.b);
}
