//! QUIC where WireGuard does not pass: a firewall on the way drops what looks like WireGuard.
//!
//! Needs root.

use anyhow::{Context, Result, ensure};
use ghostwire_tests::mesh::{Mesh, json, text};
use ghostwire_tests::nat::Network;
use ghostwire_tests::netns::Netns;
use ghostwire_tests::pair::{logs, pair, ping, why};
use ghostwire_tests::process::check_in;
use ghostwire_tests::switching::until_class;
use ghostwire_tests::traffic::{Conversation, EchoServer};
use ghostwire_tests::wait::patience;
use serde_json::Value;

const PORT: u16 = 7;
/// Drops what begins like one of WireGuard's four messages: the type and three zeros, behind UDP's header of 64 bits.
const FIREWALL: &str = "table inet wall {\nchain f { type filter hook forward priority -10;\n\
                        meta l4proto udp @th,64,32 { 0x01000000, 0x02000000, 0x03000000, 0x04000000 } drop\n}\n}";

fn router(mesh: &Mesh) -> Result<&Netns> {
    mesh.node("a")?.host.routers.first().context("a router")
}

#[test]
fn where_wireguard_is_dropped_traffic_takes_quic() -> Result<()> {
    let mesh = pair(Network::PortPreserving, Network::Public)?;
    let (a, b) = (mesh.node("a")?, mesh.node("b")?);
    check_in(router(&mesh)?, "nft", &[FIREWALL])?;
    let check = || -> Result<()> {
        ping(a, b)?;
        for (from, to) in [(a, b), (b, a)] {
            until_class(from, to, "quic")?;
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
    let mesh = pair(Network::PortPreserving, Network::Public)?;
    let (a, b) = (mesh.node("a")?, mesh.node("b")?);
    let check = || -> Result<()> {
        ping(a, b)?;
        until_class(a, b, "direct")?;
        let _echo = EchoServer::start(&b.host.netns, [0_u16; 8].into(), PORT)?;
        let tcp = Conversation::tcp(&a.host.netns, b.at(PORT), patience(5))?;
        ensure!(tcp.progresses_within(patience(5)));
        check_in(router(&mesh)?, "nft", &[FIREWALL])?;
        until_class(a, b, "quic")?;
        until_class(b, a, "quic")?;
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
    let mesh = pair(Network::PortPreserving, Network::Public)?;
    let (a, b) = (mesh.node("a")?, mesh.node("b")?);
    let check = || -> Result<()> {
        ping(a, b)?;
        until_class(a, b, "direct")?;
        a.gwctl(&["path", "b", "--pin", "quic"])?;
        until_class(a, b, "quic")?;
        // The other side was not asked, and does not mind.
        until_class(b, a, "direct")?;
        ping(a, b)?;
        b.gwctl(&["path", "a", "--pin", "quic"])?;
        until_class(b, a, "quic")?;
        until_class(a, b, "quic")?;
        for (node, peer) in [(a, "b"), (b, "a")] {
            node.gwctl(&["path", peer, "--auto"])?;
        }
        until_class(a, b, "direct")?;
        ping(b, a)
    };
    check().with_context(|| logs(&mesh))
}
