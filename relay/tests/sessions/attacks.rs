//! What an attacker tries, one test each.

use std::time::Duration;

use ed25519_dalek::SigningKey;
use ghostwire_relay::limits::Rate;
use ghostwire_relay::sessions::Event;
use ghostwire_relay_protocol::control::{
    Action, CHALLENGE_LEN, MIN_REQUEST_LEN, Response, code, write_request,
};
use ghostwire_relay_protocol::stun::{Message, Method, TransactionId, looks_like_stun};
use ghostwire_relay_protocol::token::RelayId;
use proptest::prelude::*;
use x25519_dalek::StaticSecret;

use crate::world::{AT_A, AT_B, MAIN, Met, Node, World, address, config};

const VICTIM: &str = "198.51.100.66:6666";

/// The attacker's answer never comes: the challenge goes to the address that it pretends to have.
#[test]
fn a_spoofed_source_gets_no_leg() {
    let mut met = Met::new();
    let mut attacker = met.a.clone();
    // It can have challenges for its own address, and guess.
    let own =
        attacker.challenge(&mut met.world, Action::Bind, Some(2), met.port_b, address("198.51.100.99:9"));
    for challenge in [own, [0; CHALLENGE_LEN], [0xFF; CHALLENGE_LEN]] {
        let request = attacker.request(&met.world, Action::Bind, Some(2), Some(&challenge));
        let answer = met.world.send(met.port_b, address(VICTIM), &request).unwrap();
        assert!(matches!(attacker.read(&met.world, Action::Bind, &answer), Response::Challenge(_)));
    }
    assert_eq!(met.world.route(met.port_b, address(VICTIM)), None);
    assert!(met.flows(AT_A, AT_B));
}

#[test]
fn a_challenge_is_for_one_port_and_for_a_short_time() {
    let mut met = Met::new();
    let challenge = met.a.challenge(&mut met.world, Action::Bind, Some(2), met.port_b, address(AT_A));
    let request = met.a.request(&met.world, Action::Bind, Some(2), Some(&challenge));
    let is_challenge = |met: &Met, answer: &[u8]| {
        matches!(met.a.read(&met.world, Action::Bind, answer), Response::Challenge(_))
    };
    let answer = met.world.send(met.port_a, address(AT_A), &request).unwrap();
    assert!(is_challenge(&met, &answer), "another port");
    met.world.pass(31);
    let answer = met.world.send(met.port_b, address(AT_A), &request).unwrap();
    assert!(is_challenge(&met, &answer), "too old");
}

#[test]
fn a_replayed_bind_does_nothing_from_elsewhere_and_undoes_nothing() {
    let mut met = Met::new();
    let challenge = met.a.challenge(&mut met.world, Action::Bind, Some(2), met.port_b, address(AT_A));
    let recorded = met.a.request(&met.world, Action::Bind, Some(2), Some(&challenge));
    let read = |met: &Met, answer: &[u8]| met.a.read(&met.world, Action::Bind, answer);

    let answer = met.world.send(met.port_b, address(AT_A), &recorded).unwrap();
    assert!(matches!(read(&met, &answer), Response::Granted(_)));
    let answer = met.world.send(met.port_b, address(AT_A), &recorded).unwrap();
    assert!(
        matches!(read(&met, &answer), Response::Granted(_)),
        "a repetition changes nothing and is answered"
    );

    let answer = met.world.send(met.port_b, address(VICTIM), &recorded).unwrap();
    assert!(matches!(read(&met, &answer), Response::Challenge(_)), "from elsewhere");

    // The node moves; the attacker sends the old bind with the old source address, while its challenge is good.
    let moved = "198.51.100.1:4444";
    met.a.bind(&mut met.world, 2, met.port_b, moved).unwrap();
    let answer = met.world.send(met.port_b, address(AT_A), &recorded).unwrap();
    assert_eq!(read(&met, &answer), Response::Refused { code: code::OUT_OF_ORDER, signed: true });
    assert!(met.flows(moved, AT_B));

    // Nor does it bring back what was released.
    met.a.ask(&mut met.world, Action::Release, Some(2), met.port_b, address(moved)).unwrap();
    let answer = met.world.send(met.port_b, address(AT_A), &recorded).unwrap();
    assert_eq!(read(&met, &answer), Response::Refused { code: code::OUT_OF_ORDER, signed: true });
    assert_eq!(met.world.route(met.port_b, address(AT_A)), None);
}

#[test]
fn a_newer_token_puts_the_requests_of_an_older_one_behind() {
    let mut met = Met::new();
    let mut old = met.a.clone();
    let mut renewed =
        Node { issued: met.a.issued + 10, sequence: 0, secret: StaticSecret::from([9; 32]), ..met.a.clone() };
    met.world.pass(20);
    renewed.bind(&mut met.world, 2, met.port_b, "198.51.100.1:4444").unwrap();
    assert_eq!(old.bind(&mut met.world, 2, met.port_b, AT_A), Err(code::OUT_OF_ORDER));
}

#[test]
fn expired_foreign_and_stolen_tokens_are_refused() {
    let mut met = Met::new();
    let elsewhere = "198.51.100.1:4444";
    let wrong = [
        Node { expires: crate::world::START, ..met.a.clone() },
        Node { signer: SigningKey::from_bytes(&[2; 32]), ..met.a.clone() },
        Node { relay: RelayId([0xBB; 16]), ..met.a.clone() },
        Node {
            issued: crate::world::START + 100_000,
            expires: crate::world::START + 150_000,
            ..met.a.clone()
        },
    ];
    for mut node in wrong {
        assert_eq!(node.bind(&mut met.world, 2, met.port_b, elsewhere), Err(code::WRONG_CREDENTIALS));
        met.world.pass(2);
    }
    // A's token as an eavesdropper sees it, without A's session key.
    let token = met.a.token(Some(2));
    let thief = Node { secret: StaticSecret::from([8; 32]), ..met.a.clone() };
    let challenge = met.a.challenge(&mut met.world, Action::Bind, Some(2), met.port_b, address(elsewhere));
    let (mut buffer, key) = ([0; MIN_REQUEST_LEN], thief.key(&met.world));
    let request =
        write_request(&mut buffer, Action::Bind, TransactionId([3; 12]), &token, Some(&challenge), 999, &key)
            .unwrap();
    let answer = met.world.send(met.port_b, address(elsewhere), request).unwrap();
    let refused = Response::Refused { code: code::WRONG_CREDENTIALS, signed: false };
    assert_eq!(met.a.read(&met.world, Action::Bind, &answer), refused);
    assert!(met.flows(AT_A, AT_B));
    let counters = met.world.relay.counters();
    assert_eq!((counters.token_refused, counters.integrity_refused), (4, 1));
}

#[test]
fn a_token_is_good_only_for_what_it_says() {
    let mut met = Met::new();
    let mut c = Node::new(3);
    c.allocate(&mut met.world, "198.51.100.3:3").unwrap();
    let at_c = address("198.51.100.3:3");
    let mut ask = |action, peer, port| c.ask(&mut met.world, action, peer, port, at_c);
    assert_eq!(ask(Action::Bind, Some(2), met.port_a), Err(code::MISMATCH), "the port of another node");
    assert_eq!(ask(Action::Bind, Some(3), met.port_b), Err(code::MISMATCH), "itself");
    assert_eq!(ask(Action::Bind, None, met.port_b), Err(code::BAD_REQUEST), "an allocate token");
    assert_eq!(ask(Action::Allocate, Some(2), MAIN), Err(code::BAD_REQUEST), "a bind token");
    assert_eq!(ask(Action::Bind, Some(2), MAIN), Err(code::BAD_REQUEST), "on the main port");
    assert_eq!(ask(Action::Release, Some(2), met.port_b), Err(code::MISMATCH), "somebody else's leg");
}

#[test]
fn data_never_latches_an_address() {
    let mut met = Met::new();
    for _ in 0..1000 {
        assert_eq!(met.world.route(met.port_b, address(VICTIM)), None);
    }
    assert!(met.flows(AT_A, AT_B));
}

#[test]
fn unknown_sources_are_reported_at_a_limited_rate() {
    let mut met = Met::new();
    let reports = |met: &Met| {
        met.world.events.iter().filter(|event| matches!(event, Event::UnknownSource { .. })).count()
    };
    for number in 0..1000_u16 {
        met.world.data(met.port_b, address(&format!("198.51.100.77:{}", 10_000 + number)));
    }
    assert_eq!(reports(&met), 1);
    met.world.pass(3);
    met.world.data(met.port_b, address(VICTIM));
    assert_eq!(reports(&met), 2);
}

#[test]
fn nothing_is_sent_in_a_circle_or_into_the_relays_own_network() {
    let mut met = Met::new();
    for source in [
        "203.0.113.1:50003", // the relay's own port
        "203.0.113.1:3478",  // its main port
        "203.0.113.1:40000", // its own address
        "10.1.2.3:1111",
        "172.16.0.1:1111",
        "192.168.1.1:1111",
        "127.0.0.1:1111",
        "169.254.1.1:1111",
        "100.64.0.1:1111",
        "198.18.0.1:1111",
        "0.0.0.0:1111",
        "224.0.0.1:1111",
        "255.255.255.255:1111",
        "198.51.100.1:0",
        "[fd00::1]:1111",
        "[fe80::1]:1111",
        "[::1]:1111",
        "[ff02::1]:1111",
        "[2001:db8::1]:1111",   // its own address
        "[2002:a00:1::1]:1111", // 10.0.0.1 in 6to4
    ] {
        assert_eq!(met.a.bind(&mut met.world, 2, met.port_b, source), Err(code::FORBIDDEN), "{source}");
        assert_eq!(met.world.route(met.port_b, address(source)), None);
        met.world.pass(1);
    }
    assert!(met.flows(AT_A, AT_B));
}

#[test]
fn an_operator_may_allow_private_legs_but_no_circle() {
    let mut config = config();
    config.allowed_legs = vec!["10.0.0.0/8".parse().unwrap(), "203.0.113.1/32".parse().unwrap()];
    let mut met = Met::with(config);
    met.a.bind(&mut met.world, 2, met.port_b, "10.1.2.3:1111").unwrap();
    met.a.bind(&mut met.world, 2, met.port_b, "203.0.113.1:40000").unwrap();
    for source in ["203.0.113.1:50003", "203.0.113.1:3478", "192.168.1.1:1"] {
        assert_eq!(met.a.bind(&mut met.world, 2, met.port_b, source), Err(code::FORBIDDEN), "{source}");
    }
}

#[test]
fn a_port_scan_finds_nothing() {
    let mut met = Met::new();
    met.world.events.clear();
    let mut attacker = Node::new(77);
    let scanner = address("198.51.100.50:5000");
    for port in (50_000..=50_009).filter(|port| ![met.port_a, met.port_b].contains(port)) {
        met.world.data(port, scanner);
        assert_eq!(met.world.send(port, scanner, b"GET / HTTP/1.1\r\n\r\n"), None);
    }
    assert_eq!(met.world.events, [], "ports that nobody has report nothing");
    // Even with a token, a port that is not the peer's does not tell whether it is anybody's.
    attacker.allocate(&mut met.world, "198.51.100.50:5000").unwrap();
    for port in 50_000..=50_009 {
        let refused = attacker.bind(&mut met.world, 99, port, "198.51.100.50:5000");
        assert_eq!(refused, Err(code::MISMATCH));
    }
}

#[test]
fn a_flood_from_one_source_is_limited_and_others_are_served() {
    let mut met = Met::new();
    let flood = met.a.request(&met.world, Action::Bind, Some(2), None);
    let answered =
        (0..10_000).filter(|_| met.world.send(met.port_b, address(VICTIM), &flood).is_some()).count();
    assert_eq!(answered, 400, "the burst");
    assert!(met.a.bind(&mut met.world, 2, met.port_b, "198.51.100.1:4444").is_ok());
}

#[test]
fn failed_verifications_cost_their_source_more() {
    let mut met = Met::new();
    let mut forger = Node { signer: SigningKey::from_bytes(&[2; 32]), ..met.a.clone() };
    let challenge = forger.challenge(&mut met.world, Action::Bind, Some(2), met.port_b, address(VICTIM));
    let forged = forger.request(&met.world, Action::Bind, Some(2), Some(&challenge));
    let answered =
        (0..1000).filter(|_| met.world.send(met.port_b, address(VICTIM), &forged).is_some()).count();
    assert!(answered <= 20, "{answered} verifications");
}

#[test]
fn the_cost_of_cryptography_is_limited_over_all_sources() {
    let mut config = config();
    config.limits.crypto = Rate { per_second: 10, burst: 10 };
    let mut met = Met::with(config);
    met.world.pass(10);
    let verified = (0..100_u16)
        .filter(|number| {
            let source = address(&format!("198.51.100.{}:7", number + 100));
            let mut forger = Node { signer: SigningKey::from_bytes(&[2; 32]), ..met.a.clone() };
            let challenge = forger.challenge(&mut met.world, Action::Bind, Some(2), met.port_b, source);
            let forged = forger.request(&met.world, Action::Bind, Some(2), Some(&challenge));
            met.world.send(met.port_b, source, &forged).is_some()
        })
        .count();
    assert_eq!(verified, 10);
}

#[test]
fn quotas_hold() {
    let mut config = config();
    config.limits.allocations_per_source = 2;
    config.limits.pairs_per_node = 1;
    let mut met = Met::with(config);
    let mut third = Node::new(3);
    let port_c = third.allocate(&mut met.world, "198.51.100.1:3333").unwrap();
    assert_eq!(Node::new(4).allocate(&mut met.world, "198.51.100.1:4444"), Err(code::QUOTA));
    assert_eq!(met.a.bind(&mut met.world, 3, port_c, AT_A), Err(code::QUOTA));
    // With the pair ended, there is room again once an old bind could no longer be replayed.
    met.a.ask(&mut met.world, Action::Release, Some(2), met.port_b, address(AT_A)).unwrap();
    met.b.ask(&mut met.world, Action::Release, Some(1), met.port_a, address(AT_B)).unwrap();
    met.world.pass(61);
    met.a.bind(&mut met.world, 3, port_c, AT_A).unwrap();
}

#[test]
fn the_ports_run_out_with_an_error() {
    let mut world = World::new();
    let ports: std::collections::HashSet<u16> = (1..=10)
        .map(|id| Node::new(id).allocate(&mut world, &format!("198.51.100.{id}:1")).unwrap())
        .collect();
    assert_eq!(ports.len(), 10);
    assert_eq!(Node::new(11).allocate(&mut world, "198.51.100.11:1"), Err(code::CAPACITY));
    world.pass(601);
    assert!(Node::new(11).allocate(&mut world, "198.51.100.11:1").is_ok());
}

#[test]
fn a_short_request_gets_no_answer() {
    let mut met = Met::new();
    let full = met.a.request(&met.world, Action::Bind, Some(2), None);
    assert_eq!(full.len(), MIN_REQUEST_LEN);
    for len in [0, 20, 100, MIN_REQUEST_LEN - 4] {
        let mut short = full[..len].to_vec();
        if len >= 20 {
            short[2..4].copy_from_slice(&u16::try_from(len - 20).unwrap().to_be_bytes());
        }
        assert_eq!(met.world.send(met.port_b, address(VICTIM), &short), None, "{len} bytes");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever comes, in whatever state, no answer is longer than what it answers; STUN's own method alone may
    /// add the address (24 bytes) to a request of 20.
    #[test]
    fn no_answer_amplifies(
        damage in proptest::collection::vec((0_usize..MIN_REQUEST_LEN, any::<u8>()), 0..4),
        action in prop_oneof![Just(Action::Allocate), Just(Action::Bind), Just(Action::Refresh), Just(Action::Release)],
        with_challenge in any::<bool>(),
        on_main in any::<bool>(),
        noise in proptest::collection::vec(any::<u8>(), 0..400),
    ) {
        let mut met = Met::new();
        let port = if on_main { MAIN } else { met.port_b };
        let peer = (!on_main).then_some(2);
        let challenge = met.a.challenge(&mut met.world, action, peer, port, address(VICTIM));
        let mut request = met.a.request(&met.world, action, peer, with_challenge.then_some(&challenge));
        for (at, value) in damage {
            request[at] = value;
        }
        for bytes in [request, noise] {
            if let Some(answer) = met.world.send(port, address(VICTIM), &bytes) {
                prop_assert!(looks_like_stun(&answer));
                let is_binding = Message::parse(&bytes).unwrap().method() == Method::BINDING;
                prop_assert!(answer.len() <= bytes.len() || (is_binding && answer.len() <= bytes.len() + 24));
            }
        }
    }
}

#[test]
fn time_that_stands_still_or_jumps_harms_nothing() {
    let mut met = Met::new();
    met.world.relay.handle_timeout(met.world.now);
    met.world.now.monotonic -= Duration::from_secs(50);
    assert!(met.flows(AT_A, AT_B));
    met.world.now.monotonic += Duration::from_secs(100_000_000);
    met.world.relay.handle_timeout(met.world.now);
    assert!(!met.flows(AT_A, AT_B));
}
