//! What a change of path costs, counted on numbered packets.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::mesh::{Node, text};
use crate::pair;
use crate::process::{check_in, run_in};
use crate::traffic::{NumberedStream, StreamReport};
use crate::wait::{patience, until};

/// Where numbered packets go.
const PORT: u16 = 7_007;
/// Few enough that a packet's delay in an overtaken relay is shorter than the time to the next packet.
const PER_SECOND: u32 = 200;
const SIZE: usize = 200;

/// Waits, with traffic, until packets take this kind of path.
pub fn until_class(from: &Node, to: &Node, class: &str) -> Result<()> {
    until(&format!("{} to reach {} by {class}", from.name(), to.name()), patience(30), || {
        run_in(&from.host.netns, "ping", &["-c", "1", "-W", "1", &to.v4.to_string()])?;
        let why = pair::why(from, to)?;
        let is = text(&why, "path_class")?;
        ensure!(is == class, "it is {is}");
        Ok(())
    })
}

/// Numbered packets from one node to another.
pub fn stream(from: &Node, to: &Node) -> Result<NumberedStream> {
    NumberedStream::start(&from.host.netns, &to.host.netns, to.v4, PORT, PER_SECOND, SIZE)
}

/// Waits until `count` more packets have arrived.
pub fn until_more(stream: &NumberedStream, count: u64) -> Result<()> {
    let before = stream.received();
    until("packets to arrive", patience(30), || {
        ensure!(stream.received() >= before + count, "{} of {count}", stream.received() - before);
        Ok(())
    })
}

/// Moves both directions of a pair from this relay to the direct path; what became of the packets of either.
pub fn upgrade(a: &Node, b: &Node, relay: &str) -> Result<[StreamReport; 2]> {
    for (from, to) in [(a, b), (b, a)] {
        from.gwctl(&["path", to.name(), "--pin", "relay-udp", "--relay", relay])?;
    }
    until_class(a, b, "relay-udp")?;
    until_class(b, a, "relay-udp")?;
    let streams = [stream(a, b)?, stream(b, a)?];
    for stream in &streams {
        until_more(stream, 100)?;
    }
    for (from, to) in [(a, b), (b, a)] {
        from.gwctl(&["path", to.name(), "--auto"])?;
    }
    until_class(a, b, "direct")?;
    until_class(b, a, "direct")?;
    for stream in &streams {
        until_more(stream, 100)?;
    }
    let [there, back] = streams;
    Ok([there.stop()?, back.stop()?])
}

/// Lets `a`'s router drop what goes straight to `b`, which is in public; the longest time in which no packet of `a`
/// arrived. The path is left blocked; see [`unblock`].
pub fn failover(a: &Node, b: &Node) -> Result<Duration> {
    let router = a.host.routers.first().context("a router")?;
    let stream = stream(a, b)?;
    until_more(&stream, 100)?;
    let address = &b.host.address;
    let block = format!(
        "table inet cut {{ chain f {{ type filter hook forward priority -10;\n\
         ip daddr {address} udp dport 51820 drop\nip saddr {address} udp sport 51820 drop\n}}\n}}"
    );
    check_in(router, "nft", &[&block])?;
    until_class(a, b, "relay-udp")?;
    until_more(&stream, 100)?;
    Ok(stream.stop()?.longest_gap)
}

/// Ends what [`failover`] began, and waits for the direct path.
pub fn unblock(a: &Node, b: &Node) -> Result<()> {
    let router = a.host.routers.first().context("a router")?;
    check_in(router, "nft", &["delete table inet cut"])?;
    until("the direct path to come back", patience(90), || {
        a.gwctl(&["ping", b.name(), "--until-direct", "-c", "20"]).map(drop)
    })
}
