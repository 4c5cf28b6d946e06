//! A machine alone with inputs that make no sense: a hostile peer, a broken edge, clocks that run backwards.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use ghostwire_path::timing::MAX_PATHS;
use ghostwire_path::{
    Attempt, Base, Candidate, CandidateKind, CarrierFailure, Check, Class, Config, Credentials, Filter,
    Framing, Generation, Input, LocalCandidate, Mapping, NatReport, Output, PathMachine, Reach, RelayId,
    RelayOffer, Route, Signal, Socket, Steer, Transaction, UplinkId,
};
use proptest::prelude::*;

fn address() -> impl Strategy<Value = SocketAddr> {
    let few = (0_u8..40, 0_u16..4)
        .prop_map(|(host, port)| SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, host)), 51_820 + port));
    prop_oneof![6 => few, 1 => any::<([u8; 4], u16)>().prop_map(SocketAddr::from),
        1 => any::<([u16; 8], u16)>().prop_map(SocketAddr::from)]
}

fn socket() -> impl Strategy<Value = Socket> {
    prop_oneof![Just(Socket::WireGuard), Just(Socket::Quic)]
}

fn base() -> impl Strategy<Value = Base> {
    (0_u32..3, 0_u16..3, socket()).prop_map(|(uplink, port, socket)| Base {
        uplink: UplinkId(uplink),
        address: SocketAddr::new(IpAddr::V4(Ipv4Addr::new(198, 51, 100, 7)), 51_820 + port),
        socket,
    })
}

fn kind() -> impl Strategy<Value = CandidateKind> {
    prop_oneof![
        Just(CandidateKind::Host),
        Just(CandidateKind::PeerReflexive),
        Just(CandidateKind::PortMapped),
        Just(CandidateKind::ServerReflexive),
        Just(CandidateKind::Guessed),
    ]
}

fn route() -> impl Strategy<Value = Route> {
    prop_oneof![
        4 => (base(), address()).prop_map(|(base, remote)| Route::Pair { base, remote }),
        1 => (0_u32..4).prop_map(|relay| Route::RelayPort(RelayId(relay))),
        1 => (0_u32..4).prop_map(|relay| Route::Derp(RelayId(relay))),
    ]
}

fn reach() -> impl Strategy<Value = Reach> {
    prop_oneof![
        Just(Reach::Unknown),
        Just(Reach::Blocked),
        any::<u64>().prop_map(|ms| Reach::Answers(Duration::from_millis(ms))),
    ]
}

fn relays() -> impl Strategy<Value = Vec<RelayOffer>> {
    let offer = (0_u32..4, reach(), reach()).prop_map(|(relay, udp, tls)| RelayOffer {
        relay: RelayId(relay),
        udp,
        tls,
    });
    prop::collection::vec(offer, 0..40)
}

fn nat() -> impl Strategy<Value = NatReport> {
    let mapping = prop_oneof![
        Just(Mapping::Unknown),
        Just(Mapping::EndpointIndependent),
        Just(Mapping::EndpointDependent)
    ];
    (mapping, any::<Option<bool>>()).prop_map(|(mapping, udp)| NatReport { mapping, udp })
}

fn signal() -> impl Strategy<Value = Signal> {
    let candidate = (socket(), kind(), address(), any::<u32>())
        .prop_map(|(socket, kind, address, priority)| Candidate { socket, kind, address, priority });
    let attempt = (any::<u32>(), any::<bool>()).prop_map(|(number, birthday)| Attempt { number, birthday });
    let heard = any::<Option<u64>>().prop_map(|heard| heard.map(Generation));
    let candidates = prop::collection::vec(candidate, 0..100);
    (0_u64..4, any::<u32>(), candidates, relays(), nat(), attempt, heard).prop_map(
        |(generation, revision, candidates, relays, nat, attempt, heard)| Signal {
            generation: Generation(generation),
            revision,
            credentials: Credentials { fragment: "fragment".to_owned(), password: "password".to_owned() },
            candidates,
            relays,
            nat,
            attempt,
            heard,
        },
    )
}

/// What the edge could say; `Answer` stands for an answer to one of the machine's own checks.
#[derive(Clone, Debug)]
enum Act {
    Input(Box<Input>),
    Answer(prop::sample::Index),
    Wait(u64),
    Back(u64),
}

fn act() -> impl Strategy<Value = Act> {
    let local =
        (base(), kind(), address()).prop_map(|(base, kind, address)| LocalCandidate { base, kind, address });
    let check = (route(), any::<bool>(), any::<[u8; 12]>(), any::<u32>(), any::<bool>(), any::<u32>())
        .prop_map(|(route, stun, transaction, priority, nominate, attempt)| Check {
            route,
            framing: if stun { Framing::Stun } else { Framing::Carried },
            transaction: Transaction(transaction),
            priority,
            nominate,
            attempt,
        });
    let filter = any::<u8>().prop_map(|n| Filter {
        class: [None, Some(Class::Direct), Some(Class::Quic), Some(Class::Derp)][usize::from(n % 4)],
        ..Filter::default()
    });
    let steer = (0_u8..3, filter).prop_map(|(n, filter)| match n {
        0 => Steer::Automatic,
        1 => Steer::Prefer(filter),
        _ => Steer::Pin(filter),
    });
    let input = prop_oneof![
        2 => Just(Input::Tick),
        2 => prop::collection::vec(local, 0..60).prop_map(Input::LocalCandidates),
        1 => relays().prop_map(Input::Relays),
        1 => nat().prop_map(Input::Nat),
        1 => prop::collection::vec(base(), 0..400).prop_map(Input::AuxiliaryPorts),
        3 => signal().prop_map(|signal| Input::Signal(Box::new(signal))),
        1 => any::<bool>().prop_map(Input::PeerOnline),
        6 => check.prop_map(Input::CheckReceived),
        1 => (any::<[u8; 12]>(), route())
            .prop_map(|(id, route)| Input::CheckAnswered { transaction: Transaction(id), route }),
        3 => route().prop_map(Input::CarrierUp),
        1 => route().prop_map(|route| Input::CarrierDown(route, CarrierFailure::Lost)),
        4 => Just(Input::Sent),
        2 => Just(Input::Received),
        1 => steer.prop_map(Input::Steer),
        1 => Just(Input::TryNow),
        1 => Just(Input::Resumed),
    ];
    prop_oneof![
        8 => input.prop_map(|input| Act::Input(Box::new(input))),
        6 => any::<prop::sample::Index>().prop_map(Act::Answer),
        6 => (0_u64..3_000).prop_map(Act::Wait),
        1 => (0_u64..100_000).prop_map(Act::Wait),
        1 => (0_u64..3_000).prop_map(Act::Back),
    ]
}

/// Drives the machine until `end` as a real edge would, and counts its checks.
fn advance(machine: &mut PathMachine, now: &mut Instant, end: Instant, checks: &mut Vec<Check>) -> u32 {
    let mut sent = 0;
    let mut calls_now = 0;
    loop {
        while let Some(output) = machine.poll_output() {
            if let Output::SendCheck(check) = output {
                sent += 1;
                checks.push(check);
            }
        }
        match machine.poll_timeout() {
            Some(due) if due <= end => {
                calls_now = if due <= *now { calls_now + 1 } else { 0 };
                assert!(calls_now < 100, "busy loop: {}", machine.why(*now));
                *now = due.max(*now);
                machine.handle_input(*now, Input::Tick);
            }
            _ => {
                *now = end.max(*now);
                return sent;
            }
        }
    }
}

proptest! {
    #![proptest_config(crate::properties::cases(300))]

    #[test]
    fn nothing_breaks_the_bounds(acts in prop::collection::vec(act(), 1..120), seed in any::<[u8; 32]>(), controlling in any::<bool>()) {
        let begin = Instant::now() + Duration::from_secs(1_000);
        let mut now = begin;
        let mut machine = PathMachine::new(Config {
            controlling,
            generation: Generation(1),
            credentials: None,
            birthday: true,
            seed,
        });
        let mut checks = Vec::new();
        for act in acts {
            let before = now;
            let mut inputs = 1;
            match act {
                Act::Input(input) => machine.handle_input(now, *input),
                Act::Answer(index) if !checks.is_empty() => {
                    let check: &Check = index.get(&checks);
                    let (transaction, route) = (check.transaction, check.route);
                    machine.handle_input(now, Input::CheckAnswered { transaction, route });
                }
                Act::Answer(_) => {}
                Act::Wait(ms) => {
                    inputs = 0;
                    let end = now + Duration::from_millis(ms);
                    let sent = advance(&mut machine, &mut now, end, &mut checks);
                    // Paced ones and birthday probes, and every path's health twice a second at the very most.
                    let most = 170 * (1 + ms / 1_000) + 10 * u64::try_from(MAX_PATHS).unwrap_or(0);
                    prop_assert!(u64::from(sent) <= most, "{sent} checks in {ms} ms");
                }
                Act::Back(ms) => {
                    let earlier = now.checked_sub(Duration::from_millis(ms)).unwrap_or(now);
                    machine.handle_input(earlier, Input::Tick);
                },
            }
            let sent = advance(&mut machine, &mut now, before, &mut checks);
            prop_assert!(u64::from(sent) <= 10 * u64::try_from(MAX_PATHS).unwrap_or(0) || inputs == 0);
            prop_assert!(machine.path_count() <= MAX_PATHS);
            let why = machine.why(now);
            for (id, _) in [machine.in_use().primary, machine.in_use().also].into_iter().flatten() {
                prop_assert!(why.paths.iter().any(|path| path.id == id), "{why}");
            }
            prop_assert!(!why.to_string().is_empty());
        }
        // Left alone it goes to sleep.
        let end = now + Duration::from_secs(200);
        advance(&mut machine, &mut now, end, &mut checks);
        prop_assert_eq!(machine.poll_timeout(), None);
    }
}

#[test]
fn a_peer_cannot_make_us_send_anywhere() {
    let now = Instant::now();
    let mut machine = PathMachine::new(Config {
        controlling: true,
        generation: Generation(1),
        credentials: None,
        birthday: true,
        seed: [7; 32],
    });
    let own: SocketAddr = "192.0.2.1:51820".parse().unwrap();
    let base = Base { uplink: UplinkId(1), address: own, socket: Socket::WireGuard };
    machine.handle_input(
        now,
        Input::LocalCandidates(vec![LocalCandidate { base, kind: CandidateKind::Host, address: own }]),
    );
    let bad =
        ["0.0.0.0:1", "255.255.255.255:1", "224.0.0.1:1", "127.0.0.1:1", "192.0.2.9:0", "192.0.2.1:51820"];
    let candidates = bad.map(|address| Candidate {
        socket: Socket::WireGuard,
        kind: CandidateKind::Host,
        address: address.parse().unwrap(),
        priority: 1,
    });
    let signal = Signal {
        generation: Generation(1),
        revision: 1,
        credentials: Credentials { fragment: "f".to_owned(), password: "p".to_owned() },
        candidates: candidates.to_vec(),
        relays: Vec::new(),
        nat: NatReport::default(),
        attempt: Attempt::default(),
        heard: None,
    };
    machine.handle_input(now, Input::Signal(Box::new(signal)));
    machine.handle_input(now, Input::Sent);
    let mut checks = Vec::new();
    let mut then = now;
    advance(&mut machine, &mut then, now + Duration::from_secs(30), &mut checks);
    assert_eq!(checks, []);
    assert_eq!(machine.path_count(), 0);
}
