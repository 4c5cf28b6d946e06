//! STUN in the kernel gives the same answers as in userspace.

use std::net::SocketAddr;
use std::time::Duration;

use ed25519_dalek::SigningKey;
use ghostwire_relay::sessions::config::{Config, Limits, LocalAddress, Secrets};
use ghostwire_relay::sessions::{Arrival, Now, Sessions};
use ghostwire_relay::table::HeapTable;
use ghostwire_relay_fastpath::abi::Counter;
use ghostwire_relay_protocol::stun::{Class, Kind, Method, TransactionId, Writer};
use ghostwire_relay_protocol::token::{KeyNumber, RelayId};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use x25519_dalek::StaticSecret;

use crate::frames::{Spec, sums_are_right};
use crate::model::{Allowance, LOCALS, Lab, MAIN, Outcome, read};

fn userspace() -> Sessions<HeapTable> {
    let locals =
        LOCALS.map(|ip| LocalAddress { local: ip.parse().unwrap(), advertised: ip.parse().unwrap() });
    let config = Config {
        locals: locals.to_vec(),
        main_port: MAIN,
        ports: 50_000..=50_099,
        allowed_legs: Vec::new(),
        allocation_lease: Duration::from_mins(10),
        binding_lease: Duration::from_mins(5),
        limits: Limits { pairs: 20, ..Limits::default() },
    };
    let secrets = Secrets {
        relay: RelayId([1; 16]),
        key: StaticSecret::from([2; 32]),
        coordinators: vec![(KeyNumber(1), SigningKey::from_bytes(&[3; 32]).verifying_key())],
    };
    let table = HeapTable::new(Sessions::<HeapTable>::table_lines(&config).unwrap());
    Sessions::new(config, secrets, table, &[4; 32]).unwrap()
}

/// A request with these attributes, and whether the kernel answers it by itself.
fn request(rng: &mut StdRng) -> (Vec<u8>, bool) {
    let mut buffer = [0; 256];
    let transaction = TransactionId(rng.random());
    let mut writer = Writer::new(&mut buffer, Class::Request, Method::BINDING, transaction).unwrap();
    let mut plain = true;
    for _ in 0..rng.random_range(0..3) {
        // SOFTWARE, one of a later version, and one that must be understood.
        let kind = [0x8022, 0xC001, 0x8022, 0x0024][rng.random_range(0..4)];
        plain &= kind >= 0x8000;
        let value: Vec<u8> = (0..rng.random_range(0..20_u8)).collect();
        writer.attribute(Kind(kind), &value).unwrap();
    }
    if rng.random_bool(0.6) {
        writer.fingerprint().unwrap();
    }
    let mut bytes = writer.finish().to_vec();
    match rng.random_range(0..8) {
        // Damage; a bit of the transaction only shows in FINGERPRINT.
        0 => {
            let at = rng.random_range(0..bytes.len());
            bytes[at] ^= 1 << rng.random_range(0..8);
            (bytes, false)
        }
        _ => (bytes, plain),
    }
}

#[test]
fn requests_are_answered_in_the_kernel_as_in_userspace() {
    let mut rng = StdRng::seed_from_u64(0x6777_0007);
    let (mut answered, mut left) = (0, 0);
    for number in 0..4000_u32 {
        // Sources have limits, so each request comes from another one.
        if number % 500 == 0 {
            (answered, left) = round(&mut rng, number, (answered, left));
        }
    }
    assert!(answered > 1500 && left > 300, "{answered} {left}");
}

fn round(rng: &mut StdRng, start: u32, (mut answered, mut left): (u32, u32)) -> (u32, u32) {
    let (lab, mut userspace) = (Lab::new(10, rng.random()), userspace());
    let now = Now { monotonic: Duration::from_secs(5), unix: 1_800_000_000 };
    for number in start..start + 500 {
        let (payload, in_kernel) = request(rng);
        let local = rng.random_range(0..2_u8);
        let source: SocketAddr = if local == 1 {
            SocketAddr::from(([0x2001, 0xdb8, number as u16, 7, 0, 0, 0, 1], 4000))
        } else {
            SocketAddr::from(([198, 51, (number >> 8) as u8, number as u8], 4000))
        };
        let destination = SocketAddr::new(LOCALS[usize::from(local)].parse().unwrap(), MAIN);
        let mut spec = Spec::new(source, destination, payload.clone());
        spec.vlan = rng.random_bool(0.3).then_some([0x81, 0, 0, 9]);
        spec.padding = if rng.random_bool(0.3) { rng.random_range(0..20) } else { 0 };
        let frame = spec.bytes();
        let expected = userspace.handle_control(now, Arrival { local, port: MAIN, source }, &payload);
        match lab.run(&frame) {
            Outcome::Transmit(sent) => {
                assert!(sums_are_right(&sent), "{spec:?}");
                assert_eq!(sent[..12], [&frame[6..12], &frame[..6]].concat());
                let packet = read(&sent_back(&sent)).unwrap();
                let answer = &sent[sent.len() - expected.unwrap().bytes().len()..];
                assert_eq!(answer, expected.unwrap().bytes(), "{spec:?}");
                assert_eq!(packet.datagram.port, MAIN);
                assert_eq!(SocketAddr::from(packet.datagram.source), source);
                answered += 1;
            }
            Outcome::Pass => {
                assert!(!in_kernel, "a plain request is answered in the kernel: {spec:?}");
                left += 1;
            }
            Outcome::Drop => panic!("dropped: {spec:?}"),
        }
    }
    (answered, left)
}

/// The frame with its ends exchanged, so that what was sent by the relay reads as if it had been sent to it.
fn sent_back(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    let ethernet = if frame[12..14] == [0x81, 0] { 18 } else { 14 };
    let (at, len, udp) = if frame[ethernet] >> 4 == 4 { (12, 4, 20) } else { (8, 16, 40) };
    let (source, destination) = (ethernet + at, ethernet + at + len);
    for offset in 0..len {
        frame.swap(source + offset, destination + offset);
    }
    for offset in 0..2 {
        frame.swap(ethernet + udp + offset, ethernet + udp + 2 + offset);
    }
    frame
}

#[test]
fn one_source_gets_so_many_answers_and_others_are_served() {
    let mut rng = StdRng::seed_from_u64(8);
    let lab = Lab::new(10, 4);
    let mut buffer = [0; 64];
    let transaction = TransactionId(rng.random());
    let payload =
        Writer::new(&mut buffer, Class::Request, Method::BINDING, transaction).unwrap().finish().to_vec();
    let to = SocketAddr::new(LOCALS[0].parse().unwrap(), MAIN);
    let flood = Spec::new("198.51.100.7:1".parse().unwrap(), to, payload.clone()).bytes();
    let allowance = Allowance::new(200.0, 400.0);
    let answered = (0..5000).filter(|_| matches!(lab.run(&flood), Outcome::Transmit(_))).count();
    assert!(allowance.fits(answered), "{answered}");
    assert_eq!(lab.xdp.packets(Counter::StunLimited).unwrap(), 5000 - answered as u64);
    let other = Spec::new("198.51.100.8:1".parse().unwrap(), to, payload).bytes();
    assert!(matches!(lab.run(&other), Outcome::Transmit(_)));
}

#[test]
fn a_damaged_request_is_not_answered_with_a_good_checksum() {
    let mut rng = StdRng::seed_from_u64(9);
    let lab = Lab::new(10, 5);
    let mut buffer = [0; 64];
    let transaction = TransactionId(rng.random());
    let payload =
        Writer::new(&mut buffer, Class::Request, Method::BINDING, transaction).unwrap().finish().to_vec();
    for (local, source) in LOCALS.into_iter().zip(["198.51.100.7:1", "[2001:db8:5::1]:1"]) {
        let to = SocketAddr::new(local.parse().unwrap(), MAIN);
        let frame = Spec::new(source.parse().unwrap(), to, payload.clone()).bytes();
        let ip_source = if to.is_ipv4() { 14 + 12 } else { 14 + 8 };
        for at in [ip_source, frame.len() - 1, frame.len() - 9] {
            let mut damaged = frame.clone();
            damaged[at] ^= 4;
            assert_eq!(lab.run(&damaged), Outcome::Pass, "byte {at}: the kernel drops it");
        }
    }
}
