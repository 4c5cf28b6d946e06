use proptest::prelude::*;

use super::*;

fn frames(bytes: &[u8]) -> Result<Vec<String>, ProtocolError> {
    let mut framer = Framer::default();
    let mut messages = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let (used, message) = framer.push(rest)?;
        rest = &rest[used..];
        messages.extend(message.map(|message| message.to_string()));
    }
    Ok(messages)
}

fn nets() -> impl Strategy<Value = Vec<IpNet>> {
    let v4 = (any::<[u8; 4]>(), 0_u8..=32)
        .prop_map(|(octets, length)| IpNet::new(octets.into(), length).unwrap().trunc());
    let v6 = (any::<[u8; 16]>(), 0_u8..=128)
        .prop_map(|(octets, length)| IpNet::new(octets.into(), length).unwrap().trunc());
    prop::collection::vec(prop_oneof![v4, v6], 0..5)
}

fn endpoints() -> impl Strategy<Value = Option<SocketAddr>> {
    prop_oneof![
        Just(None),
        any::<([u8; 4], u16)>().prop_map(|(ip, port)| Some(SocketAddr::new(ip.into(), port))),
        any::<([u8; 16], u16)>().prop_map(|(ip, port)| Some(SocketAddr::new(ip.into(), port))),
    ]
}

prop_compose! {
    fn peer_update()(
        key in any::<[u8; 32]>(), remove: bool, update_only: bool, replace_allowed_ips: bool,
        preshared in any::<Option<[u8; 32]>>(), endpoint in endpoints(), keepalive: Option<u16>,
        allowed_ips in nets(),
    ) -> PeerUpdate {
        PeerUpdate {
            public_key: PublicKey::from_bytes(key), remove, update_only, endpoint, keepalive,
            preshared_key: preshared.map(PresharedKey::from_bytes), replace_allowed_ips, allowed_ips,
        }
    }
}

prop_compose! {
    fn update()(
        key in any::<Option<[u8; 32]>>(), listen_port: Option<u16>, fwmark: Option<u32>,
        replace_peers: bool, mut peers in prop::collection::vec(peer_update(), 0..5),
    ) -> Update {
        peers.sort_by_key(|peer| peer.public_key);
        peers.dedup_by_key(|peer| peer.public_key);
        Update { private_key: key.map(PrivateKey::from_bytes), listen_port, fwmark, replace_peers, peers }
    }
}

prop_compose! {
    fn peer_status()(
        key in any::<[u8; 32]>(), preshared in any::<Option<[u8; 32]>>(), endpoint in endpoints(),
        keepalive: Option<NonZeroU16>, handshake in prop::option::of((1_u64..1 << 40, 0_u32..1_000_000_000)),
        rx_bytes: u64, tx_bytes: u64, allowed_ips in nets(),
    ) -> PeerStatus {
        PeerStatus {
            public_key: PublicKey::from_bytes(key),
            preshared_key: preshared.map(PresharedKey::from_bytes).filter(|key| !key.is_none()),
            endpoint, allowed_ips, keepalive, rx_bytes, tx_bytes,
            last_handshake: handshake.map(|(seconds, nanos)| UNIX_EPOCH + Duration::new(seconds, nanos)),
        }
    }
}

prop_compose! {
    fn status()(
        key in any::<Option<[u8; 32]>>(), listen_port: u16, fwmark: u32,
        peers in prop::collection::vec(peer_status(), 0..5),
    ) -> DeviceStatus {
        DeviceStatus { private_key: key.map(PrivateKey::from_bytes), listen_port, fwmark, peers }
    }
}

/// Text that gets past the first checks of the parsers.
fn nearly_messages() -> impl Strategy<Value = String> {
    let keys = [
        "get",
        "set",
        "private_key",
        "listen_port",
        "fwmark",
        "replace_peers",
        "public_key",
        "remove",
        "update_only",
        "preshared_key",
        "endpoint",
        "persistent_keepalive_interval",
        "errno",
        "replace_allowed_ips",
        "allowed_ip",
        "last_handshake_time_sec",
        "last_handshake_time_nsec",
        "rx_bytes",
        "protocol_version",
        "unknown",
    ];
    let values = prop_oneof![
        Just("1".to_owned()),
        Just("true".to_owned()),
        Just(String::new()),
        Just("0".repeat(64)),
        Just("f".repeat(64)),
        Just(u64::MAX.to_string()),
        Just("10.0.0.0/33".to_owned()),
        Just("[::1]:99999".to_owned()),
        ".{0,80}",
    ];
    prop::collection::vec((prop::sample::select(keys.to_vec()), values), 0..12).prop_map(|lines| {
        lines.iter().fold(String::new(), |text, (key, value)| format!("{text}{key}={value}\n"))
    })
}

proptest! {
    #[test]
    fn updates_survive_the_wire(update in update()) {
        let text = set_request(&update);
        let messages = frames(text.as_bytes()).unwrap();
        prop_assert_eq!(messages.len(), 1);
        prop_assert_eq!(parse_request(&messages[0]).unwrap(), Request::Set(update));
    }

    #[test]
    fn states_survive_the_wire(status in status()) {
        let messages = frames(get_answer(&status).as_bytes()).unwrap();
        let answer = parse_answer(&messages[0]).unwrap();
        prop_assert_eq!(answer, Answer { errno: 0, status });
    }

    #[test]
    fn parsers_are_total(text in nearly_messages()) {
        drop(parse_request(&text));
        drop(parse_answer(&text));
    }

    #[test]
    fn parsers_and_framer_are_total_on_anything(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        drop(frames(&bytes));
        let text = String::from_utf8_lossy(&bytes);
        drop(parse_request(&text));
        drop(parse_answer(&text));
    }

    #[test]
    fn framing_does_not_depend_on_how_the_bytes_arrive(
        status in status(), cuts in prop::collection::vec(1_usize..50, 1..20),
    ) {
        let text = get_answer(&status);
        let mut framer = Framer::default();
        let mut messages = Vec::new();
        let mut rest = text.as_bytes();
        for cut in cuts.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (used, message) = framer.push(&rest[..(*cut).min(rest.len())]).unwrap();
            rest = &rest[used..];
            messages.extend(message.map(|message| message.to_string()));
        }
        prop_assert_eq!(messages, frames(text.as_bytes()).unwrap());
    }
}

#[test]
fn a_line_without_end_is_refused_early() {
    let mut framer = Framer::default();
    assert_eq!(framer.push(&[b'a'; MAX_LINE + 1]), Err(ProtocolError::LineTooLong(1)));
}

#[test]
fn a_message_without_end_is_refused() {
    let mut framer = Framer::default();
    let chunk = "allowed_ip=10.0.0.0/8\n".repeat(4096);
    let mut fed = 0;
    let error = loop {
        match framer.push(chunk.as_bytes()) {
            Ok(_) => fed += chunk.len(),
            Err(error) => break error,
        }
        assert!(fed <= MAX_MESSAGE);
    };
    assert_eq!(error, ProtocolError::MessageTooLong);
}

#[test]
fn two_messages_in_one_read_are_two() {
    assert_eq!(frames(b"get=1\n\nset=1\nfwmark=\n\n").unwrap(), ["get=1\n", "set=1\nfwmark=\n"]);
}

#[test]
fn requests_that_are_not_of_the_protocol_are_refused() {
    let key = "1".repeat(64);
    let cases: [(String, ProtocolError); 10] = [
        (String::new(), ProtocolError::UnknownOperation),
        ("get=2\n".into(), ProtocolError::UnknownOperation),
        ("get=1\nfwmark=1\n".into(), ProtocolError::UnexpectedKey(2)),
        ("set=1\nendpoint=1.2.3.4:5\n".into(), ProtocolError::UnexpectedKey(2)),
        ("set=1\nlisten_port=65536\n".into(), ProtocolError::BadValue { line: 2, key: "listen_port" }),
        ("set=1\nreplace_peers=false\n".into(), ProtocolError::BadValue { line: 2, key: "replace_peers" }),
        ("set=1\nprotocol_version=2\n".into(), ProtocolError::BadValue { line: 2, key: "protocol_version" }),
        (format!("set=1\npublic_key={key}\nlisten_port=1\n"), ProtocolError::UnexpectedKey(3)),
        (format!("set=1\npublic_key={key}\npublic_key={key}\n"), ProtocolError::DuplicatePeer(3)),
        (
            format!("set=1\npublic_key={key}\nallowed_ip=10.0.0.0/33\n"),
            ProtocolError::BadValue { line: 3, key: "allowed_ip" },
        ),
    ];
    for (text, error) in cases {
        assert_eq!(parse_request(&text), Err(error), "{text}");
    }
}

#[test]
fn an_answer_without_errno_is_no_answer() {
    assert_eq!(parse_answer("listen_port=1\n"), Err(ProtocolError::NoErrno));
}
