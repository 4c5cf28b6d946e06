//! The carrier between two network namespaces: real sockets, real handshakes. Needs root.

mod lab;

use std::collections::{BTreeSet, HashSet};
use std::net::{IpAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use ghostwire_quic::{Endpoint, Event, Failure, Identity, PublicKey, Stun, bind};
use tokio::time::timeout;

use self::lab::{PATIENCE, Pair};

/// A message that says which it is.
fn numbered(number: u32, length: usize) -> Vec<u8> {
    let mut message = number.to_be_bytes().to_vec();
    message.resize(length, 0x5a);
    message
}

fn number_of(message: &[u8]) -> Option<u32> {
    message.get(..4)?.try_into().ok().map(u32::from_be_bytes)
}

#[test]
fn messages_of_every_size_pass_both_ways_over_both_families() -> Result<()> {
    let mut pair = Pair::peers()?;
    for to in [pair.b.at(), pair.b.at6()?] {
        let (mut at_a, mut at_b) = pair.connect(to)?;
        assert!(at_a.is_caller() && !at_b.is_caller());
        assert_eq!((at_a.peer(), at_b.peer()), (pair.b.key, pair.a.key));
        assert_eq!((at_a.remote(), at_b.local()), (to, Some(to.ip())));
        for length in [1, 32, 148, 1_100, 1_200, 1_452, 1_500, 3_000, 9_000, 65_535] {
            let message = vec![7; length];
            at_a.send(&message);
            at_a.flush();
            ensure!(pair.runtime.block_on(pair.b.messages())? == [message.clone()], "{length} bytes");
            at_b.send(&message);
            at_b.flush();
            ensure!(pair.runtime.block_on(pair.a.messages())? == [message], "{length} bytes back");
        }
        // Probes for a larger size are on their way with the data above.
        println!("{to}: the longest datagram is {:?} bytes", at_a.largest());
        drop(at_a);
        for node in [&mut pair.a, &mut pair.b] {
            let event = pair.runtime.block_on(node.event())?;
            ensure!(matches!(event, Event::Down(_, Some(_), Failure::Lost, _)), "{event:?}");
        }
    }
    Ok(())
}

/// What the caller and the called are told if `a` calls `b` and expects `expected` there.
fn refused(pair: &mut Pair, expected: PublicKey) -> Result<()> {
    let to = pair.b.at();
    pair.a.endpoint_connect(to, expected);
    // A server speaks before it knows its client: the caller may be up for a moment.
    let mut link = None;
    loop {
        match pair.runtime.block_on(pair.a.event())? {
            Event::Up(up) => link = Some(up),
            Event::Down(_, Some(key), failure, why) => {
                ensure!(key == expected);
                ensure!(link.is_some() || failure == Failure::Refused, "{failure:?}: {why}");
                break;
            }
            other => bail!("{other:?}"),
        }
        if let Some(link) = &mut link {
            link.send(b"to nobody");
            link.flush();
        }
    }
    let event = pair.runtime.block_on(pair.b.event())?;
    ensure!(matches!(event, Event::Down(_, None, Failure::Refused, _)), "{event:?}");
    Ok(())
}

#[test]
fn who_is_not_the_expected_peer_is_refused_in_both_directions() -> Result<()> {
    let mut pair = Pair::peers()?;
    // Somebody else is at b's address.
    let other = Identity::derive(&[9; 32])?.public();
    refused(&mut pair, other)?;
    // b does not know a.
    pair.b.endpoint.set_peers(HashSet::from([other]));
    let expected = pair.b.key;
    refused(&mut pair, expected)?;
    pair.b.endpoint.set_peers(HashSet::new());
    refused(&mut pair, expected)?;
    // And with everybody known, it is no matter of the lab.
    pair.b.endpoint.set_peers(HashSet::from([pair.a.key]));
    let to = pair.b.at();
    pair.connect(to).map(drop)
}

#[test]
fn second_connection_sends_in_its_first_flight() -> Result<()> {
    let mut pair = Pair::peers()?;
    let to = pair.b.at();
    let (mut first, mut first_at_b) = pair.connect(to)?;
    assert!(!first.is_early() && !first_at_b.is_early());
    // Tickets come after the handshake; what comes back after them has overtaken none.
    first.send(b"question");
    first.flush();
    pair.runtime.block_on(pair.b.messages())?;
    first_at_b.send(b"answer");
    first_at_b.flush();
    pair.runtime.block_on(pair.a.messages())?;
    drop((first, first_at_b));
    for node in [&mut pair.a, &mut pair.b] {
        pair.runtime.block_on(node.event())?;
    }
    // Nothing comes back from b: whatever arrives has been sent without a round trip.
    let rule = "table inet cut { chain out { type filter hook output priority 0; udp sport 443 drop; }; }";
    ghostwire_tests::process::check_in(&pair.b.host.netns, "nft", &[rule])?;
    pair.a.endpoint_connect(to, pair.b.key);
    let mut second = pair.runtime.block_on(pair.a.up())?;
    assert!(second.is_early());
    second.send(b"early");
    second.flush();
    let second_at_b = pair.runtime.block_on(pair.b.up())?;
    assert!(second_at_b.is_early());
    assert_eq!(second_at_b.peer(), pair.a.key);
    assert_eq!(pair.runtime.block_on(pair.b.messages())?, [b"early".to_vec()]);
    Ok(())
}

#[test]
fn early_data_of_who_is_no_peer_any_more_is_refused() -> Result<()> {
    let mut pair = Pair::peers()?;
    let to = pair.b.at();
    let (mut first, mut first_at_b) = pair.connect(to)?;
    first.send(b"question");
    first.flush();
    pair.runtime.block_on(pair.b.messages())?;
    first_at_b.send(b"answer");
    first_at_b.flush();
    pair.runtime.block_on(pair.a.messages())?;
    // What is open ends at once.
    pair.b.endpoint.set_peers(HashSet::new());
    for node in [&mut pair.a, &mut pair.b] {
        let event = pair.runtime.block_on(node.event())?;
        ensure!(matches!(event, Event::Down(_, Some(_), Failure::Lost, _)), "{event:?}");
    }
    drop((first, first_at_b));
    pair.a.endpoint_connect(to, pair.b.key);
    let mut second = pair.runtime.block_on(pair.a.up())?;
    assert!(second.is_early());
    second.send(b"early");
    second.flush();
    let event = pair.runtime.block_on(pair.b.event())?;
    ensure!(matches!(event, Event::Down(_, None, Failure::Refused, _)), "{event:?}");
    let event = pair.runtime.block_on(pair.a.event())?;
    ensure!(matches!(event, Event::Down(..)), "{event:?}");
    Ok(())
}

#[test]
fn connection_outlives_a_change_of_the_callers_address() -> Result<()> {
    let mut pair = Pair::peers()?;
    let to = pair.b.at();
    pair.a.endpoint.connect(Some(pair.a.at().ip()), to, pair.b.key);
    let mut at_a = pair.runtime.block_on(pair.a.up())?;
    let mut at_b = pair.runtime.block_on(pair.b.up())?;
    let number = at_b.number();
    let mut sent = 0;
    let mut exchange = |pair: &mut Pair, at_b: &mut ghostwire_quic::Link| -> Result<()> {
        let began = Instant::now();
        loop {
            ensure!(began.elapsed() < PATIENCE, "nothing arrives any more");
            sent += 1;
            at_a.send(&numbered(sent, 1_452));
            at_a.flush();
            let arrived =
                pair.runtime.block_on(async { timeout(Duration::from_millis(200), pair.b.messages()).await });
            if let Ok(messages) = arrived {
                ensure!(messages?.iter().any(|message| number_of(message).is_some()));
                break;
            }
        }
        at_b.send(b"answer");
        at_b.flush();
        match pair.runtime.block_on(pair.a.event())? {
            Event::Messages(..) => Ok(()),
            other => bail!("{other:?}"),
        }
    };
    exchange(&mut pair, &mut at_b)?;
    let before = at_b.remote();
    pair.a.host.netns.ip(&["address", "add", "192.0.2.200/24", "dev", "eth0"])?;
    pair.a.host.netns.ip(&["address", "del", &format!("{}/24", before.ip()), "dev", "eth0"])?;
    pair.a.host.netns.ip(&["address", "replace", "192.0.2.200/24", "dev", "eth0"])?;
    pair.a.endpoint.move_to(Some("192.0.2.200".parse()?), to)?;
    exchange(&mut pair, &mut at_b)?;
    exchange(&mut pair, &mut at_b)?;
    assert_eq!(at_b.remote().ip(), "192.0.2.200".parse::<IpAddr>()?);
    assert_eq!(at_b.number(), number);
    Ok(())
}

#[test]
fn flood_that_nobody_reads_is_bounded_and_the_newest_arrives() -> Result<()> {
    const SENT: u32 = 100_000;
    let mut pair = Pair::peers()?;
    let to = pair.b.at();
    let (mut at_a, at_b) = pair.connect(to)?;
    for number in 0..SENT {
        at_a.send(&numbered(number, 1_452));
    }
    at_a.flush();
    let mut arrived = BTreeSet::new();
    while !arrived.contains(&(SENT - 1)) {
        let messages = pair.runtime.block_on(pair.b.messages())?;
        arrived.extend(messages.iter().filter_map(|message| number_of(message)));
    }
    // What the queues hold and what a's were drained of meanwhile; all of it would be no bound.
    println!("{} of {SENT} messages arrived", arrived.len());
    drop(at_b);
    Ok(())
}

#[test]
fn garbage_harms_nobody_and_stun_is_handed_out() -> Result<()> {
    let mut pair = Pair::peers()?;
    let to = pair.b.at();
    let (mut at_a, _at_b) = pair.connect(to)?;
    let stranger = pair.a.host.netns.run(|| Ok(UdpSocket::bind("0.0.0.0:0")?))?;
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for first in 0..=255_u8 {
        for length in [0_usize, 1, 7, 21, 64, 1_200, 1_452] {
            let mut datagram: Vec<u8> = (0..length).map(|_| random().to_le_bytes()[0]).collect();
            if let Some(byte) = datagram.first_mut() {
                *byte = first;
            }
            // Long headers of QUIC version 1 get furthest.
            if let Some(version) = datagram.get_mut(1..5).filter(|_| first % 2 == 1) {
                version.copy_from_slice(&[0, 0, 0, 1]);
            }
            stranger.send_to(&datagram, to)?;
        }
    }
    for wireguard in [1, 2, 3, 4_u8] {
        stranger.send_to(&[&[wireguard, 0, 0, 0][..], &[9; 144]].concat(), to)?;
    }
    let mut stun = vec![0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42];
    stun.resize(20, 0xcc);
    pair.a.endpoint.send_stun(0, pair.a.at().ip(), to, &stun)?;
    let received = pair.runtime.block_on(async { timeout(PATIENCE, pair.b.inbox.stun.recv()).await })?;
    let expected = Stun { local: Some(to.ip()), remote: pair.a.at(), bytes: stun.clone() };
    assert_eq!(received, Some(expected));
    // Over IPv6, and by a named link.
    pair.b.endpoint.send_stun(2, pair.b.at6()?.ip(), pair.a.at6()?, &stun).or_else(|_| {
        let index = pair.b.host.netns.run(|| Ok(nix::net::if_::if_nametoindex("eth0")?))?;
        Ok::<(), anyhow::Error>(pair.b.endpoint.send_stun(index, pair.b.at6()?.ip(), pair.a.at6()?, &stun)?)
    })?;
    let received = pair.runtime.block_on(async { timeout(PATIENCE, pair.a.inbox.stun.recv()).await })?;
    assert_eq!(received.context("STUN")?.remote, pair.b.at6()?);
    at_a.send(b"still here");
    at_a.flush();
    assert_eq!(pair.runtime.block_on(pair.b.messages())?, [b"still here".to_vec()]);
    Ok(())
}

#[test]
fn another_port_is_taken_if_the_first_is_in_use() -> Result<()> {
    let pair = Pair::strangers()?;
    assert_eq!(pair.a.at().port(), 443);
    let second = pair.a.host.netns.run(|| Ok(bind(&[443, 0], 0)?))?;
    let _in_runtime = pair.runtime.enter();
    let (endpoint, _inbox) = Endpoint::open(second, &Identity::derive(&[3; 32])?)?;
    assert_ne!(endpoint.port(), 443);
    assert!(pair.a.host.netns.run(|| Ok(bind(&[443], 0).is_err()))?);
    Ok(())
}
