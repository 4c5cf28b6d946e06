//! QUIC where WireGuard does not pass: a firewall on the way drops what looks like WireGuard.
//!
//! Needs root. Runs on the host (userspace WireGuard where the kernel has none) and in virtual machines.

use anyhow::{Context, Result, ensure};
use ghostwire_tests::mesh::{Mesh, Node, Owner, json, text};
use ghostwire_tests::nat::Network;
use ghostwire_tests::netns::Netns;
use ghostwire_tests::process::{check_in, run_in, tail};
use ghostwire_tests::traffic::{Conversation, EchoServer};
use ghostwire_tests::wait::{patience, until};
use serde_json::Value;

const PORT: u16 = 7;
const POLICY: &str = r#"{ "acls": [{ "action": "accept", "src": ["*"], "dst": ["*:*"] }] }"#;
/// Drops what begins like one of WireGuard's four messages: the type and three zeros, behind UDP's header of 64 bits.
const FIREWALL: &str = "table inet wall {\nchain f { type filter hook forward priority -10;\n\
                        meta l4proto udp @th,64,32 { 0x01000000, 0x02000000, 0x03000000, 0x04000000 } drop\n}\n}";

/// Node `a` behind a router, node `b` in public.
fn pair() -> Result<Mesh> {
    let mut mesh = Mesh::start()?;
    mesh.create_user("dora@company.com")?;
    mesh.set_policy(POLICY)?;
    mesh.add_node_in("a", Owner::User("dora@company.com"), Network::PortPreserving)?;
    mesh.add_node_in("b", Owner::User("dora@company.com"), Network::Public)?;
    mesh.wait_enforced()?;
    Ok(mesh)
}

fn router(mesh: &Mesh) -> Result<&Netns> {
    mesh.node("a")?.host.routers.first().context("a router")
}

fn logs(mesh: &Mesh) -> String {
    let nodes = mesh.nodes.iter().map(|node| {
        let why = |peer: &str| node.gwctl(&["why", peer]).unwrap_or_else(|error| format!("{error:#}"));
        let others = mesh.nodes.iter().filter(|other| other.name() != node.name());
        let whys: Vec<String> = others.map(|other| why(other.name())).collect();
        (node.name(), format!("{}\n{}", tail(&node.log(), 40), whys.join("\n")))
    });
    let all = std::iter::once(("coordinator", tail(&mesh.coordinator.log(), 30))).chain(nodes);
    all.map(|(name, log)| format!("--- {name}\n{log}")).collect::<Vec<_>>().join("\n")
}

fn ping(from: &Node, to: &Node) -> Result<()> {
    check_in(&from.host.netns, "ping", &["-c", "1", "-W", "10", &to.v4.to_string()]).map(drop)
}

fn why(from: &Node, to: &Node) -> Result<Value> {
    json(&from.gwctl(&["--json", "why", to.name()])?)
}

/// Waits, with traffic, until packets take this kind of path.
fn until_class(from: &Node, to: &Node, class: &str, seconds: u64) -> Result<()> {
    until(&format!("{} to reach {} by {class}", from.name(), to.name()), patience(seconds), || {
        run_in(&from.host.netns, "ping", &["-c", "1", "-W", "1", &to.v4.to_string()])?;
        let why = why(from, to)?;
        let is = text(&why, "path_class")?;
        ensure!(is == class, "it is {is}");
        Ok(())
    })
}

#[test]
fn where_wireguard_is_dropped_traffic_takes_quic() -> Result<()> {
    let mesh = pair()?;
    let (a, b) = (mesh.node("a")?, mesh.node("b")?);
    check_in(router(&mesh)?, "nft", &[FIREWALL])?;
    let check = || -> Result<()> {
        ping(a, b)?;
        for (from, to) in [(a, b), (b, a)] {
            until_class(from, to, "quic", 30)?;
            // The largest packet that gw0 takes, without fragments: 20 and 8 bytes of headers.
            let link = json(&check_in(&from.host.netns, "ip", &["-json", "link", "show", "dev", "gw0"])?)?;
            let mtu = link.pointer("/0/mtu").and_then(Value::as_u64).context("gw0's MTU")?;
            let size = (mtu - 28).to_string();
            let largest = ["-c", "3", "-i", "0.2", "-W", "5", "-M", "do", "-s", &size, &to.v4.to_string()];
            check_in(&from.host.netns, "ping", &largest)?;
        }
        let why = why(a, b)?;
        ensure!(text(&why, "path")?.starts_with("QUIC 192.0.2."), "{why}");
        let status = a.status()?;
        let peer = status.pointer("/peers/0").context("a peer")?;
        ensure!(text(peer, "path_class")? == "quic", "{peer}");
        let reply = a.gwctl(&["--json", "ping", "b", "-c", "1"])?;
        let reply = json(reply.lines().next().context("a reply")?)?;
        ensure!(text(&reply, "path_class")? == "quic", "{reply}");
        let netcheck = json(&a.gwctl(&["--json", "netcheck"])?)?;
        ensure!(netcheck.get("quic_port").and_then(Value::as_u64) == Some(51_821), "{netcheck}");
        Ok(())
    };
    check().with_context(|| logs(&mesh))
}

#[test]
fn tcp_connection_survives_the_change_to_quic_and_back() -> Result<()> {
    let mesh = pair()?;
    let (a, b) = (mesh.node("a")?, mesh.node("b")?);
    let check = || -> Result<()> {
        ping(a, b)?;
        until_class(a, b, "direct", 20)?;
        let _echo = EchoServer::start(&b.host.netns, [0_u16; 8].into(), PORT)?;
        let tcp = Conversation::tcp(&a.host.netns, b.at(PORT), patience(5))?;
        ensure!(tcp.progresses_within(patience(5)));
        check_in(router(&mesh)?, "nft", &[FIREWALL])?;
        until_class(a, b, "quic", 30)?;
        until_class(b, a, "quic", 30)?;
        ensure!(tcp.progresses_within(patience(10)), "the connection did not survive");
        check_in(router(&mesh)?, "nft", &["delete table inet wall"])?;
        a.gwctl(&["ping", "b", "--until-direct", "-c", "90"])?;
        ensure!(tcp.progresses_within(patience(5)), "the connection did not survive the way back");
        tcp.stop().map(drop)
    };
    check().with_context(|| logs(&mesh))
}

#[test]
fn an_operator_pins_quic_and_lets_go() -> Result<()> {
    let mesh = pair()?;
    let (a, b) = (mesh.node("a")?, mesh.node("b")?);
    let check = || -> Result<()> {
        ping(a, b)?;
        until_class(a, b, "direct", 20)?;
        a.gwctl(&["path", "b", "--pin", "quic"])?;
        until_class(a, b, "quic", 30)?;
        // The other side was not asked, and does not mind.
        until_class(b, a, "direct", 20)?;
        ping(a, b)?;
        b.gwctl(&["path", "a", "--pin", "quic"])?;
        until_class(b, a, "quic", 30)?;
        until_class(a, b, "quic", 30)?;
        for (node, peer) in [(a, "b"), (b, "a")] {
            node.gwctl(&["path", peer, "--auto"])?;
        }
        until_class(a, b, "direct", 30)?;
        ping(b, a)
    };
    check().with_context(|| logs(&mesh))
}
