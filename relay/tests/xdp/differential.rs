//! Random tables, random frames, and damage.

use std::net::{IpAddr, SocketAddr};

use ghostwire_relay::sessions::config::Limits;
use ghostwire_relay_fastpath::abi::Counter;
use ghostwire_relay_fastpath::frame::checksum;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::frames::{Spec, sums_are_right};
use crate::model::{Allowance, LOCALS, Lab, MAIN, Outcome, local_of, read};

fn address(rng: &mut StdRng, v6: bool) -> SocketAddr {
    // Few addresses, so that sources differ in one thing at a time.
    let last = rng.random_range(1..5_u8);
    let port = rng.random_range(1..4_u16) * 0x5555;
    let ip: IpAddr = if v6 {
        IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 2, u16::from(last)])
    } else {
        IpAddr::from([198, 51, 100, last])
    };
    SocketAddr::new(ip, port)
}

fn local(rng: &mut StdRng) -> (u8, IpAddr) {
    let at = rng.random_range(0..LOCALS.len());
    (at as u8, LOCALS[at].parse().unwrap())
}

/// WireGuard, most of the time.
fn payload(rng: &mut StdRng) -> Vec<u8> {
    let (kind, len) = match rng.random_range(0..10) {
        0 => (1, 148),
        1 => (2, 92),
        2 => (3, 64),
        3 => (rng.random(), rng.random_range(0..200)),
        _ => (4, rng.random_range(32..1453)),
    };
    let mut payload: Vec<u8> = (0..len).map(|_| rng.random()).collect();
    for (at, byte) in payload.iter_mut().take(4).enumerate() {
        *byte = if at == 0 { kind } else { 0 };
    }
    payload
}

fn spec(rng: &mut StdRng) -> Spec {
    let (_, ip) = local(rng);
    let source = address(rng, ip.is_ipv6());
    let port = rng.random_range(50_000..50_004);
    let mut spec = Spec::new(source, SocketAddr::new(ip, port), payload(rng));
    spec.hops = rng.random_range(2..=255);
    spec.tos = rng.random();
    spec.id = rng.random();
    if rng.random_bool(0.3) {
        spec.vlan = Some([0x81, 0, rng.random(), rng.random()]);
    }
    if ip.is_ipv4() {
        spec.without_checksum = rng.random_bool(0.2);
        spec.fragment = if rng.random_bool(0.5) { 0x4000 } else { 0 };
    }
    if rng.random_bool(0.2) {
        spec.padding = rng.random_range(1..40);
    }
    match rng.random_range(0..30) {
        0 => spec.hops = rng.random_range(0..2),
        1 => spec.fragment = [0x2000, 0x00B9, 0x2001][rng.random_range(0..3)],
        2 => spec.options = vec![1; 4 * rng.random_range(1..8)],
        3 => spec.longer = rng.random_range(-20..20),
        4 => spec.destination.set_port(rng.random()),
        5 => spec.source.set_port(rng.random()),
        6 if ip.is_ipv4() => spec.destination.set_ip([203, 0, 113, 9].into()),
        7 => spec.destination.set_port(MAIN),
        8 => spec.without_checksum = true,
        _ => {}
    }
    if ip.is_ipv6() {
        spec.fragment = 0;
        if !spec.options.is_empty() {
            // A destination options header of eight bytes and no more, of padding.
            spec.options = vec![17, 0, 1, 4, 0, 0, 0, 0];
        }
    }
    spec
}

/// A table in which most of the sources of [`spec`] are bound.
fn fill(lab: &mut Lab, rng: &mut StdRng) {
    for _ in 0..200 {
        let (_, ip) = local(rng);
        let source = address(rng, ip.is_ipv6());
        let at = SocketAddr::new(ip, rng.random_range(50_000..50_004));
        let (from_local, from) = local(rng);
        let to = address(rng, from.is_ipv6());
        lab.bind(&Spec::new(source, at, Vec::new()), to, from_local, rng.random_range(50_000..50_100));
    }
}

/// Compares, and says which outcome it was.
fn compare(lab: &Lab, frame: &[u8], what: &dyn std::fmt::Debug) -> usize {
    let got = lab.run(frame);
    match (lab.expected(frame), &got) {
        (None, Outcome::Pass | Outcome::Drop) => 3,
        (Some(expected), got) if expected == *got => match got {
            Outcome::Pass => 0,
            Outcome::Drop => 1,
            Outcome::Transmit(sent) => {
                assert!(sums_are_right(sent), "{what:?}\n{sent:02x?}");
                2
            }
        },
        (expected, got) => panic!("{what:?}\nframe {frame:02x?}\nexpected {expected:02x?}\ngot {got:02x?}"),
    }
}

#[test]
fn random_frames_are_relayed_as_userspace_would_relay_them() {
    let mut rng = StdRng::seed_from_u64(0x6777_0001);
    let mut seen = [0_usize; 4];
    let mut crossed = [0_usize; 2];
    for table in 0..12 {
        let mut lab = Lab::new(400, rng.random());
        fill(&mut lab, &mut rng);
        for number in 0..2500 {
            let spec = spec(&mut rng);
            let frame = spec.bytes();
            let outcome = compare(&lab, &frame, &(table, number, &spec));
            seen[outcome] += 1;
            if let (2, Outcome::Transmit(sent)) = (outcome, lab.run(&frame)) {
                let before = spec.destination.is_ipv6();
                let after = read_family(&sent);
                crossed[usize::from(before)] += usize::from(before != after);
            }
        }
        let counters = lab.xdp.counters().unwrap();
        assert_eq!(counters[Counter::Spoilt as usize], [0, 0]);
        assert!(counters[Counter::Returned as usize][0] > 0);
    }
    // Each kind of outcome has been compared often.
    assert!(seen.iter().all(|count| *count > 500), "{seen:?}");
    assert!(crossed.iter().all(|count| *count > 500), "{crossed:?}");
}

fn read_family(frame: &[u8]) -> bool {
    let at = if frame[12..14] == [0x81, 0] { 16 } else { 12 };
    frame[at..at + 2] == [0x86, 0xDD]
}

/// Frames of every shape, cut at every length.
#[test]
fn a_frame_that_is_cut_off_anywhere_is_left_to_the_kernel() {
    let mut rng = StdRng::seed_from_u64(0x6777_0002);
    let mut lab = Lab::new(100, rng.random());
    for (v6, to_v6) in [(false, false), (false, true), (true, false), (true, true)] {
        for vlan in [None, Some([0x88, 0xA8, 0, 7])] {
            let ip: IpAddr = LOCALS[usize::from(v6)].parse().unwrap();
            let mut spec =
                Spec::new(address(&mut rng, v6), SocketAddr::new(ip, 50_001), payload_of(148, &mut rng));
            spec.vlan = vlan;
            lab.bind(&spec, address(&mut rng, to_v6), u8::from(to_v6), 50_002);
            let whole = spec.bytes();
            assert!(matches!(lab.run(&whole), Outcome::Transmit(_)), "{spec:?}");
            compare(&lab, &whole, &spec);
            for len in 14..whole.len() {
                assert_eq!(lab.run(&whole[..len]), Outcome::Pass, "{len} bytes of {spec:?}");
                compare(&lab, &whole[..len], &(len, &spec));
            }
        }
    }
}

fn payload_of(len: usize, rng: &mut StdRng) -> Vec<u8> {
    let mut payload: Vec<u8> = (0..len).map(|_| rng.random()).collect();
    payload[..4].copy_from_slice(&[4, 0, 0, 0]);
    payload
}

/// Each byte of the headers set to other values: both sides agree on what it means then.
#[test]
fn damaged_headers_mean_the_same_to_both() {
    let mut rng = StdRng::seed_from_u64(0x6777_0003);
    let mut lab = Lab::new(400, rng.random());
    fill(&mut lab, &mut rng);
    for v6 in [false, true] {
        let ip: IpAddr = LOCALS[usize::from(v6)].parse().unwrap();
        let mut spec =
            Spec::new(address(&mut rng, v6), SocketAddr::new(ip, 50_001), payload_of(64, &mut rng));
        lab.bind(&spec, address(&mut rng, v6), u8::from(v6), 50_002);
        spec.padding = 3;
        let whole = spec.bytes();
        for at in 0..whole.len().min(14 + 40 + 8 + 8) {
            for _ in 0..12 {
                let mut frame = whole.clone();
                frame[at] = rng.random();
                let got = lab.run(&frame);
                match (lab.expected(&frame), got) {
                    (None, Outcome::Pass | Outcome::Drop) => {}
                    (Some(Outcome::Transmit(expected)), Outcome::Transmit(sent)) => {
                        // A checksum that was wrong stays wrong: damage must be seen by the receiver.
                        assert_eq!(sums_are_right(&sent), sums_are_right(&frame), "byte {at}");
                        assert_eq!(without_sums(&sent), without_sums(&expected), "byte {at}");
                    }
                    (Some(expected), got) => assert_eq!(expected, got, "byte {at} of {frame:02x?}"),
                    (None, got) => panic!("byte {at}: {got:?}"),
                }
            }
        }
    }
}

/// The frame with its checksums blanked.
fn without_sums(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    if read_family(&frame) {
        frame[14 + 40 + 6..][..2].fill(0);
    } else {
        frame[14 + 10..][..2].fill(0);
        frame[14 + 20 + 6..][..2].fill(0);
    }
    frame
}

/// That the comparison can fail: one bit of a frame that was sent.
#[test]
fn a_wrong_frame_is_told_from_a_right_one() {
    let mut rng = StdRng::seed_from_u64(4);
    let mut lab = Lab::new(10, 1);
    let ip: IpAddr = LOCALS[0].parse().unwrap();
    let spec = Spec::new(address(&mut rng, false), SocketAddr::new(ip, 50_001), payload_of(40, &mut rng));
    lab.bind(&spec, address(&mut rng, false), 0, 50_002);
    let Outcome::Transmit(sent) = lab.run(&spec.bytes()) else { panic!("not relayed") };
    for at in 14..sent.len() {
        let mut wrong = sent.clone();
        wrong[at] ^= 0x10;
        let told = lab.expected(&spec.bytes()) != Some(Outcome::Transmit(wrong.clone()));
        assert!(told, "byte {at}");
    }
    let mut wrong = sent;
    wrong[26] ^= 1;
    assert!(!sums_are_right(&wrong), "{}", checksum::Sum::default().checksum());
    assert!(read(&wrong).is_none() || local_of(ip) == Some(0));
}

/// An address that is bound on one relay address or port is nobody on another.
#[test]
fn only_the_bound_source_gets_through() {
    let mut rng = StdRng::seed_from_u64(5);
    let mut lab = Lab::new(10, 2);
    let at: SocketAddr = "203.0.113.1:50001".parse().unwrap();
    let spec = Spec::new("198.51.100.1:1111".parse().unwrap(), at, payload_of(64, &mut rng));
    lab.bind(&spec, "198.51.100.2:2222".parse().unwrap(), 0, 50_002);
    assert!(matches!(lab.run(&spec.bytes()), Outcome::Transmit(_)));
    let mut others = Vec::new();
    for (source, destination) in [
        ("198.51.100.1:1112", "203.0.113.1:50001"),
        ("198.51.100.3:1111", "203.0.113.1:50001"),
        ("198.51.100.1:1111", "203.0.113.1:50002"),
        ("198.51.100.1:1111", "203.0.113.2:50001"),
    ] {
        let (source, destination) = (source.parse().unwrap(), destination.parse().unwrap());
        others.push(Spec { source, destination, ..spec.clone() });
    }
    let before = lab.xdp.packets(Counter::UnknownSource).unwrap();
    for other in &others {
        assert!(!matches!(lab.run(&other.bytes()), Outcome::Transmit(_)), "{other:?}");
    }
    assert_eq!(lab.xdp.packets(Counter::UnknownSource).unwrap(), before + 4);
    // A flood of them reaches userspace only now and then.
    let allowance = Allowance::new(100.0, 20.0);
    let passed = (0..10_000).filter(|_| lab.run(&others[0].bytes()) == Outcome::Pass).count();
    assert!(passed < 10_000 && passed as f64 <= allowance.most(), "{passed} of 10,000 were reported");
    // Data never binds.
    assert!(!matches!(lab.run(&others[0].bytes()), Outcome::Transmit(_)));
}

#[test]
fn sessions_have_limits_in_the_kernel_too() {
    let mut rng = StdRng::seed_from_u64(6);
    let mut lab = Lab::with(10, 3, &Limits::default());
    let at: SocketAddr = "203.0.113.1:50001".parse().unwrap();
    let spec = Spec::new("198.51.100.1:1111".parse().unwrap(), at, payload_of(1000, &mut rng));
    lab.bind(&spec, "198.51.100.2:2222".parse().unwrap(), 0, 50_002);
    let (key, mut pair) = lab.table.entries().next().unwrap();
    // 10 kB/s: one burst of 128 KiB passes at once.
    pair.pace = ghostwire_relay_fastpath::Pace::per_second(10_000);
    lab.table.insert(&key, &pair).unwrap();
    let allowance = Allowance::new(10.0, 131.072);
    let sent = (0..1000).filter(|_| matches!(lab.run(&spec.bytes()), Outcome::Transmit(_))).count();
    assert!(allowance.fits(sent), "{sent}");
    assert_eq!(lab.xdp.packets(Counter::Paced).unwrap(), 1000 - sent as u64);

    let mut initiation = payload_of(148, &mut rng);
    initiation[0] = 1;
    pair.pace = ghostwire_relay_fastpath::Pace::UNLIMITED;
    lab.table.insert(&key, &pair).unwrap();
    let spec = Spec { payload: initiation, ..spec };
    let allowance = Allowance::new(20.0, 40.0);
    let sent = (0..1000).filter(|_| matches!(lab.run(&spec.bytes()), Outcome::Transmit(_))).count();
    assert!(allowance.fits(sent), "{sent}");
    assert_eq!(lab.xdp.packets(Counter::Handshakes).unwrap(), 1000 - sent as u64);
}
