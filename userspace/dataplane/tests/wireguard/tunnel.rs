//! What comes through a tunnel, and what does not.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
};

use ghostwire_dataplane::wireguard::{Choice, DeviceConfig, PeerConfig, PresharedKey, PrivateKey};

use crate::lab::{engines, only_peer, pair};
use crate::netns::Netns;

/// Sends `length` bytes from one namespace to the other and checks each of them.
fn transfer(from: &Netns, to: &Netns, target: Ipv4Addr, length: usize) {
    let listener = to.run(|| TcpListener::bind((target, 7000)).unwrap());
    let pattern: Vec<u8> = (0..=250).collect();
    let expected: Vec<u8> = pattern.iter().copied().cycle().take(length).collect();
    let sent = expected.clone();
    let mut stream = from.run(|| TcpStream::connect((target, 7000)).unwrap());
    let sender = std::thread::spawn(move || stream.write_all(&sent).unwrap());
    let mut received = Vec::new();
    listener.accept().unwrap().0.read_to_end(&mut received).unwrap();
    sender.join().unwrap();
    assert!(received == expected, "{} of {length} bytes, or other bytes", received.len());
}

#[test]
fn tunnel_carries_pings_and_ten_megabytes_of_tcp() {
    for choice in engines() {
        let (a, at_a, b, at_b) = pair(choice);
        println!("through {}", at_a.backend());
        a.ping("100.64.0.2");
        b.ping("fd00:1234:5678::1");
        transfer(&a.netns, &b.netns, [100, 64, 0, 2].into(), 10 << 20);
        for (device, floor) in [(&at_a, "tx"), (&at_b, "rx")] {
            let peer = only_peer(device);
            assert!(peer.last_handshake.is_some());
            let bytes = if floor == "tx" { peer.tx_bytes } else { peer.rx_bytes };
            assert!(bytes > 10 << 20, "{floor} {bytes}");
        }
        at_a.delete().unwrap();
        at_b.delete().unwrap();
        for node in [&a, &b] {
            let links = node.netns.ip("-o link");
            assert!(!links.contains("gw0"), "{links}");
        }
    }
}

#[test]
fn a_preshared_key_has_to_be_the_same_at_both_ends() {
    for choice in engines() {
        let (a, at_a, b, at_b) = pair(choice);
        let shared = PresharedKey::generate();
        let with =
            |peer: PeerConfig, key: &PresharedKey| PeerConfig { preshared_key: Some(key.clone()), ..peer };
        at_a.apply(&a.config(), &[with(b.as_peer(2), &shared)]).unwrap();
        at_b.apply(&b.config(), &[with(a.as_peer(1), &PresharedKey::generate())]).unwrap();
        let refused = a.netns.output("ping -n -c 1 -W 1 100.64.0.2");
        assert!(!refused.status.success());
        at_b.apply(&b.config(), &[with(a.as_peer(1), &shared)]).unwrap();
        assert_eq!(only_peer(&at_b).preshared_key, Some(shared));
        a.ping("100.64.0.2");
        at_b.apply(&b.config(), &[a.as_peer(1)]).unwrap();
        assert_eq!(only_peer(&at_b).preshared_key, None);
    }
}

#[test]
fn port_and_key_can_change_and_a_port_in_use_leaves_the_old_one() {
    for choice in engines() {
        let (a, at_a, b, at_b) = pair(choice);
        a.ping("100.64.0.2");
        // A new port at one end: the other learns it from the packets that arrive.
        at_b.apply(&DeviceConfig { listen_port: 40000, ..b.config() }, &[a.as_peer(1)]).unwrap();
        assert_eq!(at_b.status().unwrap().listen_port, 40000);
        b.ping("100.64.0.1");
        assert_eq!(only_peer(&at_a).endpoint, Some("192.0.2.2:40000".parse().unwrap()));

        let taken = b.netns.run(|| std::net::UdpSocket::bind("0.0.0.0:40001").unwrap());
        let error =
            at_b.apply(&DeviceConfig { listen_port: 40001, ..b.config() }, &[a.as_peer(1)]).unwrap_err();
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(source.contains("Address already in use"), "{error}: {source}");
        drop(taken);
        if choice == Choice::Userspace {
            b.ping("100.64.0.1");
            assert_eq!(at_b.status().unwrap().listen_port, 40000);
        }

        // Port 0 keeps what is there, or takes any.
        let any = DeviceConfig { listen_port: 0, ..b.config() };
        at_b.apply(&any, &[a.as_peer(1)]).unwrap();
        assert_ne!(at_b.status().unwrap().listen_port, 0);

        // A new key at one end: the other end has to be told, and then it works.
        let key = PrivateKey::generate();
        let config = DeviceConfig { private_key: key.clone(), listen_port: 51821, fwmark: 0 };
        at_b.apply(&config, &[a.as_peer(1)]).unwrap();
        assert_eq!(at_b.status().unwrap().private_key, Some(key.clone()));
        let renewed = PeerConfig { public_key: key.public_key(), ..b.as_peer(2) };
        at_a.apply(&a.config(), &[renewed]).unwrap();
        a.ping("100.64.0.2");
    }
}

#[test]
fn the_firewall_mark_is_on_the_encrypted_packets() {
    for choice in engines() {
        let (a, at_a, b, _at_b) = pair(choice);
        a.ping("100.64.0.2");
        a.netns.ip("rule add fwmark 0x77 prohibit");
        let marked = DeviceConfig { fwmark: 0x77, ..a.config() };
        at_a.apply(&marked, &[b.as_peer(2)]).unwrap();
        assert_eq!(at_a.status().unwrap().fwmark, 0x77);
        assert!(!a.netns.output("ping -n -c 1 -W 1 100.64.0.2").status.success());
        at_a.apply(&a.config(), &[b.as_peer(2)]).unwrap();
        assert_eq!(at_a.status().unwrap().fwmark, 0);
        a.ping("100.64.0.2");
    }
}

#[test]
fn a_device_that_was_down_passes_packets_again() {
    for choice in engines() {
        let (a, _at_a, b, _at_b) = pair(choice);
        a.ping("100.64.0.2");
        a.netns.ip("link set gw0 down");
        assert!(!b.netns.output("ping -n -c 2 -i 0.2 -W 1 100.64.0.1").status.success());
        a.netns.ip("link set gw0 up");
        a.ping("100.64.0.2");
        b.ping("100.64.0.1");
    }
}
