//! Peers added, changed and removed while others talk.

use std::{
    net::{Ipv4Addr, SocketAddr},
    num::NonZeroU16,
};

use ghostwire_dataplane::wireguard::{PeerConfig, PrivateKey};

use crate::lab::{Node, Session, engines, only_peer, pair};

#[test]
fn changing_peers_keeps_every_session() {
    for choice in engines() {
        let (a, at_a, b, _at_b) = pair(choice);
        a.ping("100.64.0.2");
        let session = Session::of(&at_a);

        // Another peer comes and goes.
        let other = PeerConfig {
            allowed_ips: vec!["10.7.0.0/16".parse().unwrap()],
            endpoint: Some("192.0.2.77:1".parse().unwrap()),
            ..PeerConfig::new(PrivateKey::generate().public_key())
        };
        let change = at_a.apply(&a.config(), &[b.as_peer(2), other.clone()]).unwrap();
        assert_eq!(change.peers.len(), 1);
        let added = at_a.status().unwrap().peer(&other.public_key).unwrap().clone();
        assert_eq!((added.allowed_ips, added.endpoint), (other.allowed_ips, other.endpoint));
        at_a.apply(&a.config(), &[b.as_peer(2)]).unwrap();

        // The peer itself is changed in every respect but its identity.
        let mut changed = b.as_peer(2);
        changed.keepalive = NonZeroU16::new(25);
        changed.allowed_ips.push("10.9.0.0/16".parse().unwrap());
        at_a.apply(&a.config(), std::slice::from_ref(&changed)).unwrap();
        changed.allowed_ips.pop();
        at_a.apply(&a.config(), std::slice::from_ref(&changed)).unwrap();
        let after = only_peer(&at_a);
        assert_eq!(after.keepalive, changed.keepalive);
        assert_eq!(after.allowed_ips.len(), 2);
        assert!(session.lives_on(&at_a), "{after:?}");
        a.ping("100.64.0.2");

        // The endpoint moves to another address of the peer, and back.
        b.netns.ip("address add 192.0.2.22/24 dev eth0");
        for endpoint in ["192.0.2.22:51821", "192.0.2.2:51821"] {
            let endpoint = endpoint.parse().unwrap();
            at_a.set_endpoint(&b.key.public_key(), endpoint).unwrap();
            assert_eq!(only_peer(&at_a).endpoint, Some(endpoint));
            a.ping("100.64.0.2");
        }
        assert!(session.lives_on(&at_a));
    }
}

#[test]
fn addresses_move_from_one_peer_to_another() {
    for choice in engines() {
        let (a, at_a, b, _at_b) = pair(choice);
        let mut thief = PeerConfig::new(PrivateKey::generate().public_key());
        thief.allowed_ips = b.as_peer(2).allowed_ips;
        at_a.apply(&a.config(), &[b.as_peer(2), thief.clone()]).unwrap();
        assert!(at_a.apply(&a.config(), &[b.as_peer(2), thief.clone()]).unwrap().is_empty());
        let lost = a.netns.output("ping -n -c 1 -W 1 100.64.0.2");
        assert!(!lost.status.success(), "the last claimant has the address");
        at_a.apply(&a.config(), &[thief, b.as_peer(2)]).unwrap();
        a.ping("100.64.0.2");
    }
}

#[test]
fn many_peers_and_addresses_are_applied_and_read_back() {
    for choice in engines() {
        let node = Node::new(choice, 51820);
        let (device, _) = node.open();
        let peers: Vec<PeerConfig> = (0..1_000_u16)
            .map(|number| PeerConfig {
                allowed_ips: vec![format!("100.64.{}.{}/32", number / 250, number % 250).parse().unwrap()],
                endpoint: Some(SocketAddr::new([127, 0, 0, 1].into(), 9)),
                ..PeerConfig::new(PrivateKey::generate().public_key())
            })
            .collect();
        device.apply(&node.config(), &peers).unwrap();
        assert_eq!(device.status().unwrap().peers.len(), 1_000);
        assert!(device.apply(&node.config(), &peers).unwrap().is_empty());
        // One with more addresses than fit into one message to the kernel.
        let mut many = peers[0].clone();
        many.allowed_ips = (0..3_000_u32)
            .map(|n| Ipv4Addr::from(0x0b00_0000 + n))
            .map(|ip| std::net::IpAddr::V4(ip).into())
            .collect();
        device.apply(&node.config(), std::slice::from_ref(&many)).unwrap();
        assert_eq!(only_peer(&device).allowed_ips.len(), 3_000);
        assert!(device.apply(&node.config(), &[many]).unwrap().is_empty());
    }
}
