//! The pair table: as a map, and under readers that take no lock.
#![expect(clippy::unwrap_used, reason = "a test that fails shall say where")]
#![expect(clippy::cast_possible_truncation, reason = "keys and values are made from numbers of any size")]

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};

use ghostwire_relay_fastpath::table::{self, Header, Key, Line, Pair, Writer, lines_needed};
use ghostwire_relay_fastpath::{Datagram, Endpoint, Forward, Ip, Pace, Reason, Verdict, decide};
use proptest::prelude::*;

fn memory(entries: u32) -> (Vec<Line>, Header) {
    let (lines, log2_buckets) = lines_needed(entries).unwrap();
    let header = Header {
        log2_buckets,
        seed: 0x1234_5678_9ABC_DEF0,
        main_port: 3478,
        first_port: 49152,
        last_port: 65535,
    };
    ((0..lines).map(|_| Line::default()).collect(), header)
}

fn key(number: u32) -> Key {
    let ip = std::net::Ipv4Addr::from(0x0A00_0000 + number / 7);
    Key {
        local: (number % 3) as u8,
        port: 49152 + (number % 1000) as u16,
        source: Endpoint { ip: ip.into(), port: number as u16 },
    }
}

/// A value whose every field follows from one number, so that a mixture of two shows.
fn pair(number: u32) -> Pair {
    Pair {
        local: number as u8 & 0x7F,
        port: number as u16,
        destination: Endpoint {
            ip: Ip([number, !number, number.rotate_left(7), number ^ 0x5555]),
            port: !number as u16,
        },
        session: number,
        generation: !number,
        same_way: number & 1 == 0,
        pace: Pace(number & 0xFF_FFFF),
    }
}

fn is_whole(value: &Pair) -> bool {
    *value == pair(value.session)
}

#[derive(Clone, Debug)]
enum Step {
    Insert(u32, u32),
    Remove(u32),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (0_u32..120, any::<u32>()).prop_map(|(key, value)| Step::Insert(key, value)),
        1 => (0_u32..120).prop_map(Step::Remove),
    ];
    proptest::collection::vec(step, 0..400)
}

proptest! {
    /// A small table, so that buckets overflow and entries have to move.
    #[test]
    fn it_is_a_map(steps in steps()) {
        let (lines, header) = memory(1);
        let lines = lines.as_slice();
        let mut writer = Writer::format(lines, header, &[]).unwrap();
        let mut model = HashMap::new();
        for step in steps {
            let (Step::Insert(touched, _) | Step::Remove(touched)) = step;
            match step {
                Step::Insert(number, value) => match writer.insert(&key(number), &pair(value)) {
                    Ok(()) => drop(model.insert(number, value)),
                    Err(table::Full) => prop_assert!(model.len() >= 16, "full with {} of 32", model.len()),
                },
                Step::Remove(number) => {
                    prop_assert_eq!(writer.remove(&key(number)), model.remove(&number).map(pair));
                }
            }
            prop_assert_eq!(writer.get(&key(touched)), model.get(&touched).copied().map(pair));
        }
        for number in 0..120 {
            let expected = model.get(&number).copied().map(pair);
            prop_assert_eq!(table::lookup(lines, &key(number)), Ok(expected));
        }
    }
}

#[test]
fn a_table_holds_what_it_was_made_for() {
    for entries in [1, 100, 1000, 29_491, 200_000] {
        let (lines, header) = memory(entries);
        let lines = lines.as_slice();
        let mut writer = Writer::format(lines, header, &[]).unwrap();
        for number in 0..entries {
            writer.insert(&key(number), &pair(number)).unwrap_or_else(|_| panic!("{number} of {entries}"));
        }
        for number in 0..entries {
            assert_eq!(table::lookup(lines, &key(number)), Ok(Some(pair(number))));
        }
        assert_eq!(table::lookup(lines, &key(entries + 9000)), Ok(None));
    }
}

/// Readers look keys up while the writer changes them, moves them about and takes others in and out. A key that
/// is always there is always found, and its value is whole and never goes back.
#[test]
fn readers_see_the_old_or_the_new_value_and_never_nothing() {
    const KEYS: u32 = 20;
    let (lines, header) = memory(1);
    let lines = lines.as_slice();
    let mut writer = Writer::format(lines, header, &[]).unwrap();
    for number in 0..KEYS {
        writer.insert(&key(number), &pair(0)).unwrap();
    }
    let done = AtomicBool::new(false);
    let reads = std::thread::scope(|scope| {
        let readers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let (mut reads, mut busy, mut last) = (0_u64, 0_u64, [0; KEYS as usize]);
                    while !done.load(Ordering::Relaxed) {
                        for number in 0..KEYS {
                            match table::lookup(lines, &key(number)) {
                                Ok(Some(found)) => {
                                    assert!(is_whole(&found), "a mixture: {found:?}");
                                    assert!(found.session >= last[number as usize], "an old value came back");
                                    last[number as usize] = found.session;
                                    reads += 1;
                                }
                                Ok(None) => panic!("key {number} was not found"),
                                Err(table::Busy) => busy += 1,
                            }
                        }
                    }
                    (reads, busy)
                })
            })
            .collect();
        for round in 1..60_000 {
            writer.insert(&key(round % KEYS), &pair(round)).unwrap();
            // Others come and go, so that buckets fill up and entries have to move.
            let guest = key(KEYS + round % 40);
            if writer.remove(&guest).is_none() {
                let _ = writer.insert(&guest, &pair(round));
            }
        }
        done.store(true, Ordering::Relaxed);
        readers.into_iter().map(|reader| reader.join().unwrap()).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1))
    });
    assert!(reads.0 > reads.1, "found {} times, busy {} times", reads.0, reads.1);
}

/// That the test above can fail: a mixture is seen. What threads meet by chance, the unit tests of the table try at
/// every word.
#[test]
fn a_mixture_is_told_from_a_whole_value() {
    assert!(is_whole(&pair(7)));
    assert!(!is_whole(&Pair { generation: 0, ..pair(7) }));
    assert!(!is_whole(&Pair { destination: pair(8).destination, ..pair(7) }));
}

#[test]
fn own_addresses_are_found_by_index() {
    let (lines, header) = memory(10);
    let lines = lines.as_slice();
    let locals = ["192.0.2.1", "2001:db8::1"].map(|ip| Ip::from(ip.parse::<std::net::IpAddr>().unwrap()));
    Writer::format(lines, header, &locals).unwrap();
    assert_eq!(table::header(lines), Some(header));
    assert_eq!(table::local_index(lines, locals[0]), Some(0));
    assert_eq!(table::local_index(lines, locals[1]), Some(1));
    assert_eq!(table::local_index(lines, Ip([1; 4])), None);
    let (blank, _) = memory(10);
    assert_eq!(table::header(blank.as_slice()), None);
    assert!(Writer::format(&lines[..20], header, &locals).is_err(), "too little memory");
}

fn data(source: &str) -> Datagram {
    Datagram {
        local: 0,
        port: 50001,
        source: source.parse::<std::net::SocketAddr>().unwrap().into(),
        hops: 64,
        len: 128,
        head: [4, 0, 0, 0, 9, 9, 9, 9],
    }
}

#[test]
fn only_the_bound_source_reaches_the_peer() {
    let (lines, header) = memory(10);
    let lines = lines.as_slice();
    let mut writer = Writer::format(lines, header, &[]).unwrap();
    let bound = data("198.51.100.7:51820");
    let destination: Endpoint = "[2001:db8::9]:4500".parse::<std::net::SocketAddr>().unwrap().into();
    let key = Key { local: 0, port: 50001, source: bound.source };
    writer
        .insert(
            &key,
            &Pair {
                local: 1,
                port: 50002,
                destination,
                session: 3,
                generation: 1,
                same_way: true,
                pace: Pace(7),
            },
        )
        .unwrap();

    let forward = Forward {
        local: 1,
        port: 50002,
        destination,
        hops: 63,
        session: 3,
        handshake: false,
        same_way: true,
        pace: Pace(7),
    };
    assert_eq!(decide(&lines, &bound), Verdict::Forward(forward));
    let initiation = Datagram { len: 148, head: [1, 0, 0, 0, 1, 2, 3, 4], ..bound };
    assert_eq!(decide(&lines, &initiation), Verdict::Forward(Forward { handshake: true, ..forward }));

    let unknown = Verdict::Drop(Reason::UnknownSource);
    assert_eq!(decide(&lines, &data("198.51.100.7:51821")), unknown, "another port");
    assert_eq!(decide(&lines, &data("198.51.100.8:51820")), unknown, "another address");
    assert_eq!(decide(&lines, &Datagram { port: 50002, ..bound }), unknown, "another relay port");
    assert_eq!(decide(&lines, &Datagram { local: 1, ..bound }), unknown, "another relay address");
    assert_eq!(decide(&lines, &Datagram { hops: 1, ..bound }), Verdict::Drop(Reason::HopLimit));
    assert_eq!(
        decide(&lines, &Datagram { head: [5, 0, 0, 0, 0, 0, 0, 0], ..bound }),
        Verdict::Drop(Reason::NotWireGuard)
    );
    let stun = Datagram { len: 20, head: [0, 1, 0, 0, 0x21, 0x12, 0xA4, 0x42], ..bound };
    assert_eq!(decide(&lines, &stun), Verdict::Control);
}
