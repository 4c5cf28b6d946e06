//! The second half of the demonstration: two machines behind NATs, and which way their packets take.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use ghostwire_tests::mesh::{Mesh, Node, Owner, text};
use ghostwire_tests::nat::Network;
use ghostwire_tests::netns::Netns;
use ghostwire_tests::pair::why;
use ghostwire_tests::process::check_in;
use ghostwire_tests::relay::Relay;
use ghostwire_tests::traffic::{Conversation, EchoServer, NumberedStream};
use ghostwire_tests::wait::{patience, time_factor, until};

use crate::narrator::Narrator;
use crate::story::{TLS, WEB, iperf3};

/// First bytes of WireGuard's four kinds of messages.
const WIREGUARD: &str = "{ 0x01000000, 0x02000000, 0x03000000, 0x04000000 }";

/// Tells it. The relay ends with it.
pub(crate) fn tell(narrator: &mut Narrator, mesh: &mut Mesh) -> Result<()> {
    let relay = relay(narrator, mesh)?;
    for (name, owner) in [("home", "alice@company.com"), ("branch", "carol.dev@company.com")] {
        mesh.add_node_in(name, Owner::User(owner), Network::PortPreserving)?;
    }
    mesh.wait_enforced()?;
    meeting(narrator, mesh)?;
    obstacles(narrator, mesh)?;
    in_the_kernel(narrator, mesh, &relay)?;
    relay.end()
}

fn relay(narrator: &mut Narrator, mesh: &mut Mesh) -> Result<Relay> {
    narrator.step("A relay joins, with one command");
    let relay = Relay::join(mesh, "frankfurt")?;
    let command = "ghostwire-relay run --join-key-file relay.key --region frankfurt";
    narrator.shell("relay", command, &relay.ready_line()?);
    narrator.shell("coordinator", "gwctl relay list", &mesh.coordinator.gwctl(&["relay", "list"])?);
    narrator.seen("the coordinator offers it to every node, beside the relay that it has itself");
    Ok(relay)
}

fn until_class(from: &Node, to: &Node, class: &str) -> Result<Duration> {
    let began = Instant::now();
    until(&format!("{} to reach {} by {class}", from.name(), to.name()), patience(30), || {
        let is = text(&why(from, to)?, "path_class")?;
        anyhow::ensure!(is == class, "it is {is}");
        Ok(began.elapsed())
    })
}

fn meeting(narrator: &mut Narrator, mesh: &Mesh) -> Result<()> {
    narrator.step("Two machines behind NATs meet at once, and move to a direct path");
    let (home, branch) = (mesh.node("home")?, mesh.node("branch")?);
    narrator.say("home and branch are each behind a router that translates addresses and lets nothing in.");
    let per_second = 1000 / time_factor().min(10);
    let began = Instant::now();
    let stream =
        NumberedStream::start(&home.host.netns, &branch.host.netns, branch.v4, TLS, per_second, 200)?;
    until("the first packet", patience(20), || {
        anyhow::ensure!(stream.received() > 0, "nothing yet");
        Ok(())
    })?;
    narrator.seen(format!("home → branch: the first packet arrived after {:.1?}", began.elapsed()));
    narrator.say(&format!("It took this way: {}", text(&why(home, branch)?, "path")?));
    until_class(home, branch, "direct")?;
    until_class(branch, home, "direct")?;
    narrator.seen(format!("both ways are direct after {:.1?}", began.elapsed()));
    let report = stream.stop()?;
    narrator.claim(
        format!(
            "of {} numbered packets since the very first, {} were lost and {} came out of order",
            report.sent,
            report.lost(),
            report.reordered
        ),
        report.lost() == 0,
    )?;
    narrator.shell("home", "gwctl why branch", &home.gwctl(&["why", "branch"])?);
    Ok(())
}

/// The address that the world sees.
fn outside(node: &Node) -> Result<String> {
    let router = node.host.routers.first().context("a router")?;
    let shown = check_in(router, "ip", &["-4", "-o", "address", "show", "dev", "eth0"])?;
    let address = shown.split_whitespace().nth(3).and_then(|net| net.split('/').next());
    address.map(str::to_owned).context("an address of the router")
}

fn filter(router: &Netns, rules: &str) -> Result<()> {
    let table = format!(
        "table inet obstacle\ndelete table inet obstacle\n\
         table inet obstacle {{\nchain forward {{\ntype filter hook forward priority -10;\n{rules}\n}}\n}}"
    );
    check_in(router, "nft", &[&table]).map(drop)
}

fn obstacles(narrator: &mut Narrator, mesh: &Mesh) -> Result<()> {
    narrator.step("Whatever is blocked, the connection stays");
    let (home, branch) = (mesh.node("home")?, mesh.node("branch")?);
    let router = home.host.routers.first().context("a router")?;
    let _echo = EchoServer::start(&branch.host.netns, branch.v4, WEB)?;
    let tcp = Conversation::tcp(&home.host.netns, branch.at(WEB), patience(5))?;
    let there = outside(branch)?;
    let both = |what: &str| format!("ip daddr {there} {what} drop\nip saddr {there} {what} drop");
    for (what, rules, class, way_called) in [
        (
            "packets that look like WireGuard, on the way between the two",
            both(&format!("meta l4proto udp @th,64,32 {WIREGUARD}")),
            "quic",
            "QUIC",
        ),
        ("all UDP between the two", both("meta l4proto udp"), "relay-udp", "the relay's UDP port"),
        ("all UDP", "meta l4proto udp drop".to_owned(), "relay-tls", "the relay's TLS stream (DERP)"),
        ("nothing any more", String::new(), "direct", "the direct path"),
    ] {
        filter(router, &rules)?;
        let took = until_class(home, branch, class)?;
        narrator.say(&format!("Home's router drops {what}."));
        let alive = tcp.progresses_within(patience(10));
        narrator.claim(
            format!("the TCP connection goes on by {way_called} ({:.1} s later)", took.as_secs_f64()),
            alive,
        )?;
        narrator.say(&text(&why(home, branch)?, "path")?);
    }
    tcp.stop().map(drop)
}

fn nonzero(metrics: &str) -> String {
    metrics.lines().filter(|line| !line.ends_with(" 0")).collect::<Vec<_>>().join("\n")
}

fn in_the_kernel(narrator: &mut Narrator, mesh: &Mesh, relay: &Relay) -> Result<()> {
    narrator.step("The relay forwards in the kernel");
    let (home, branch) = (mesh.node("home")?, mesh.node("branch")?);
    let pin = ["--pin", "relay-udp", "--relay", "frankfurt"];
    for (node, peer) in [(home, branch), (branch, home)] {
        node.gwctl(&[&["path", peer.name()][..], &pin].concat())?;
        until_class(node, peer, "relay-udp")?;
    }
    narrator.say("gwctl path branch --pin relay-udp --relay frankfurt, and the same at the other end");
    let before = relay.forwarded_in_kernel()?;
    let log: PathBuf = mesh.lab.dir().join("iperf-relay.log");
    let rate = iperf3(home, branch, branch.v4, &log)?;
    let forwarded = relay.forwarded_in_kernel()? - before;
    narrator.shell(
        "relay",
        "curl -s http://127.0.0.1:9478/metrics | grep '^ghostwire_relay_xdp_packets_total' | grep -v ' 0$'",
        &nonzero(&relay.metrics("ghostwire_relay_xdp_packets_total")?),
    );
    narrator.claim(
        format!("iperf3 through the relay: {rate:.0} Mbit/s; {forwarded} packets were sent on by XDP"),
        forwarded > 0,
    )?;
    for (node, peer) in [(home, branch), (branch, home)] {
        node.gwctl(&["path", peer.name(), "--auto"])?;
    }
    Ok(())
}
