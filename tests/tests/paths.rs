//! Which way packets go, through real NATs, firewalls and relays.
//!
//! Needs root. Runs on the host; in virtual machines the grid stands for it.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use ghostwire_tests::mesh::{Mesh, Node, Owner, json, text};
use ghostwire_tests::nat::Network;
use ghostwire_tests::netns::Netns;
use ghostwire_tests::pair::{OPEN, logs, pair, ping, why};
use ghostwire_tests::process::{Process, check_in};
use ghostwire_tests::relay::Relay;
use ghostwire_tests::switching::{self, until_class, until_more};
use ghostwire_tests::traffic::{Conversation, EchoServer};
use ghostwire_tests::wait::{patience, until};
use serde_json::Value;

const PORT: u16 = 7;
/// Outside of a router that forwards ports.
const MAPPED: &str = "11.0.0.1";

#[test]
fn one_side_that_can_be_reached_is_enough() -> Result<()> {
    for network in [Network::Public, Network::PortPreserving, Network::Symmetric, Network::Double] {
        let mesh = pair(network, Network::Public)?;
        let (a, b) = (mesh.node("a")?, mesh.node("b")?);
        let check = || -> Result<()> {
            // The public side begins: it has to wake the other through the coordinator.
            ping(b, a)?;
            until_class(b, a, "direct")?;
            until_class(a, b, "direct")?;
            let endpoint = check_in(&a.host.netns, "ip", &["-o", "link"])?;
            ensure!(endpoint.contains("gw0-steer"), "{endpoint}");
            for node in [a, b] {
                node.gwctl(&["down"])?;
                let left = check_in(&node.host.netns, "ip", &["-o", "link"])?;
                ensure!(!left.contains("gw0"), "{left}");
            }
            Ok(())
        };
        check().with_context(|| format!("{network}\n{}", logs(&mesh)))?;
    }
    Ok(())
}

#[test]
fn two_nodes_behind_nats_meet_at_once_and_move_to_a_direct_path() -> Result<()> {
    let mesh = pair(Network::PortPreserving, Network::PortPreserving)?;
    let (a, b) = (mesh.node("a")?, mesh.node("b")?);
    let check = || -> Result<()> {
        // The first packet, whatever way it takes.
        ping(a, b)?;
        until_class(a, b, "direct")?;
        until_class(b, a, "direct")?;
        let out = a.gwctl(&["--json", "ping", "b", "--until-direct"])?;
        let last = json(out.lines().last().context("a reply")?)?;
        ensure!(text(&last, "path_class")? == "direct", "{last}");
        ensure!(text(&last, "path")?.starts_with("direct 192.0.2."), "{last}");
        let status = a.status()?;
        ensure!(status.get("steering") == Some(&Value::Bool(true)), "{status}");
        let peer = status.pointer("/peers/0").context("a peer")?;
        ensure!(peer.get("latency_ms").is_some_and(Value::is_f64), "{peer}");
        Ok(())
    };
    check().with_context(|| logs(&mesh))
}

#[test]
fn from_a_relay_to_a_direct_path_no_packet_is_lost_or_overtaken() -> Result<()> {
    let mut mesh = pair(Network::PortPreserving, Network::PortPreserving)?;
    // One that forwards in the kernel: packets do not wait there for a processor and are not overtaken.
    let relay = Relay::join(&mut mesh, "frankfurt")?;
    let (a, b) = (mesh.node("a")?, mesh.node("b")?);
    let check = || -> Result<()> {
        ping(a, b)?;
        for report in switching::upgrade(a, b, "frankfurt")? {
            println!("relay to direct: {report:?}");
            ensure!(report.lost() == 0 && report.reordered == 0, "{report:?}");
        }
        Ok(())
    };
    check().with_context(|| format!("{}\n{}", relay.log(), logs(&mesh)))
}

#[test]
fn lost_direct_path_is_replaced_by_a_relay_and_comes_back() -> Result<()> {
    let mesh = pair(Network::PortPreserving, Network::Public)?;
    let (a, b) = (mesh.node("a")?, mesh.node("b")?);
    let check = || -> Result<()> {
        ping(a, b)?;
        until_class(a, b, "direct")?;
        let _echo = EchoServer::start(&b.host.netns, [0_u16; 8].into(), PORT)?;
        let tcp = Conversation::tcp(&a.host.netns, b.at(PORT), patience(5))?;
        ensure!(tcp.progresses_within(patience(5)));
        println!("direct to relay: nothing arrived for {:?}", switching::failover(a, b)?);
        ensure!(tcp.progresses_within(patience(10)), "the connection did not survive");
        switching::unblock(a, b)?;
        ensure!(tcp.progresses_within(patience(5)));
        tcp.stop().map(drop)
    };
    check().with_context(|| logs(&mesh))
}

#[test]
fn lost_relay_is_replaced_by_another() -> Result<()> {
    let mut mesh = pair(Network::Symmetric, Network::Symmetric)?;
    let relay = Relay::join(&mut mesh, "frankfurt")?;
    let (a, b) = (mesh.node("a")?, mesh.node("b")?);
    let through =
        |from: &Node, to: &Node| -> Result<bool> { Ok(text(&why(from, to)?, "path")?.contains("frankfurt")) };
    let check = || -> Result<()> {
        ping(a, b)?;
        for (from, to) in [(a, b), (b, a)] {
            from.gwctl(&["path", to.name(), "--prefer", "relay-udp", "--relay", "frankfurt"])?;
        }
        until("both to use the relay", patience(30), || {
            ping(a, b)?;
            ensure!(through(a, b)? && through(b, a)?, "{}\n{}", why(a, b)?, why(b, a)?);
            Ok(())
        })?;
        let stream = switching::stream(a, b)?;
        until_more(&stream, 100)?;
        mesh.lab.set_uplink(&relay.host, false)?;
        until("another relay to carry", patience(30), || {
            ensure!(!through(a, b)?, "{}", why(a, b)?);
            Ok(())
        })?;
        until_more(&stream, 100)?;
        println!("relay to relay: nothing arrived for {:?}", stream.stop()?.longest_gap);
        Ok(())
    };
    check().with_context(|| logs(&mesh))
}

#[test]
fn where_udp_is_blocked_the_relays_stream_carries() -> Result<()> {
    let mesh = pair(Network::UdpBlocked, Network::PortPreserving)?;
    let (a, b) = (mesh.node("a")?, mesh.node("b")?);
    let check = || -> Result<()> {
        ping(a, b)?;
        until_class(a, b, "relay-tls")?;
        ping(b, a)?;
        let netcheck = json(&a.gwctl(&["--json", "netcheck"])?)?;
        ensure!(text(&netcheck, "udp")? == "blocked", "{netcheck}");
        let why = why(a, b)?;
        let advice = why.get("advice").and_then(Value::as_array).context("advice")?;
        let named = advice.iter().any(|line| line.as_str().is_some_and(|line| line.contains("UDP")));
        ensure!(named, "{why}");
        let failed = a.try_gwctl(&["ping", "b", "--until-direct", "-c", "2", "-i", "0.2"])?;
        ensure!(failed.status.code() == Some(1), "{failed:?}");
        Ok(())
    };
    check().with_context(|| logs(&mesh))
}

/// `miniupnpd` on a router, with an address outside: it refuses to forward ports of addresses for documentation.
fn port_mapping_router(mesh: &Mesh, router: &Netns) -> Result<Process> {
    router.ip(&["address", "add", &format!("{MAPPED}/32"), "dev", "eth0"])?;
    let chains = "table inet router {\nchain upnp_forward { }\nchain upnp_in { }\nchain upnp_out { }\n}\n\
                  add rule inet router in jump upnp_in";
    check_in(router, "nft", &[chains])?;
    let (file, pid) = (mesh.lab.dir().join("miniupnpd.conf"), mesh.lab.dir().join("miniupnpd.pid"));
    let configuration = format!(
        "ext_ifname=eth0\next_ip={MAPPED}\nlistening_ip=lan\nenable_natpmp=yes\nenable_upnp=no\nsecure_mode=yes\n\
         uuid=00000000-0000-0000-0000-000000000001\nupnp_table_name=router\nupnp_nat_table_name=router\n\
         upnp_forward_chain=upnp_forward\nupnp_nat_chain=upnp_in\nupnp_nat_postrouting_chain=upnp_out\n\
         allow 1-65535 0.0.0.0/0 1-65535\n"
    );
    std::fs::write(&file, configuration)?;
    let args = ["-d", "-f", &*file.to_string_lossy(), "-P", &*pid.to_string_lossy()];
    Process::spawn(router, "miniupnpd", "miniupnpd".as_ref(), &args, &mesh.lab.dir().join("miniupnpd.log"))
}

#[test]
fn router_that_forwards_a_port_makes_hard_nats_direct() -> Result<()> {
    let mut mesh = pair(Network::Symmetric, Network::Symmetric)?;
    let outer = |name| -> Result<&Netns> { mesh.node(name)?.host.routers.first().context("a router") };
    outer("b")?.ip(&["route", "add", MAPPED, "dev", "eth0"])?;
    let server = port_mapping_router(&mesh, outer("a")?)?;
    // The router is asked when the daemon starts.
    mesh.node_mut("a")?.kill()?;
    mesh.node_mut("a")?.restart()?;
    let (a, b) = (mesh.node("a")?, mesh.node("b")?);
    let check = || -> Result<()> {
        until("a forwarded port", patience(20), || {
            let netcheck = json(&a.gwctl(&["--json", "netcheck"])?)?;
            ensure!(text(&netcheck, "port_mapping")?.starts_with(MAPPED), "{netcheck}");
            Ok(())
        })?;
        ping(b, a)?;
        until_class(b, a, "direct")?;
        until_class(a, b, "direct")?;
        a.gwctl(&["down"])?;
        until("the port to be given back", patience(10), || {
            let router = a.host.routers.first().context("a router")?;
            let left = check_in(router, "nft", &["list chain inet router upnp_in"])?;
            ensure!(!left.contains("dnat"), "{left}");
            Ok(())
        })
    };
    check().with_context(|| format!("{}\n{}", server.log(), logs(&mesh)))
}

#[test]
fn netcheck_tells_nats_apart() -> Result<()> {
    let mut mesh = Mesh::start()?;
    mesh.create_user("dora@company.com")?;
    mesh.set_policy(OPEN)?;
    let networks = [
        ("public", Network::Public, "none"),
        ("easy", Network::EndpointIndependent, "easy"),
        ("hard", Network::Symmetric, "hard"),
    ];
    for (name, network, _) in networks {
        mesh.add_node_in(name, Owner::User("dora@company.com"), network)?;
    }
    mesh.wait_enforced()?;
    // Through a relay the NATs show their kind: it sees them from two ports.
    ping(mesh.node("easy")?, mesh.node("hard")?).with_context(|| logs(&mesh))?;
    for (name, _, nat) in networks {
        let node = mesh.node(name)?;
        until("the kind of NAT", patience(20), || {
            let netcheck = json(&node.gwctl(&["--json", "netcheck"])?)?;
            let is = text(&netcheck, "nat")?;
            ensure!(is == nat, "{name}: {is} instead of {nat}: {netcheck}");
            Ok(())
        })
        .with_context(|| logs(&mesh))?;
    }
    Ok(())
}

#[test]
fn an_operator_pins_a_path_and_lets_go() -> Result<()> {
    let mesh = pair(Network::Public, Network::Public)?;
    let (a, b) = (mesh.node("a")?, mesh.node("b")?);
    let check = || -> Result<()> {
        ping(a, b)?;
        until_class(a, b, "direct")?;
        for (kind, class) in [("relay-udp", "relay-udp"), ("relay-tls", "relay-tls"), ("direct", "direct")] {
            a.gwctl(&["path", "b", "--pin", kind])?;
            until_class(a, b, class)?;
            ping(a, b)?;
        }
        a.gwctl(&["path", "b", "--prefer", "relay-udp"])?;
        until_class(a, b, "relay-udp")?;
        a.gwctl(&["path", "b", "--auto"])?;
        until_class(a, b, "direct")?;
        let unknown = a.try_gwctl(&["path", "b", "--pin", "any", "--relay", "atlantis"])?;
        ensure!(unknown.status.code() == Some(5), "{unknown:?}");
        Ok(())
    };
    check().with_context(|| logs(&mesh))
}

#[test]
fn killed_daemon_loses_no_packet_and_the_next_one_adopts_the_path() -> Result<()> {
    let mut mesh = pair(Network::PortPreserving, Network::Public)?;
    let (a, b) = (mesh.node("a")?, mesh.node("b")?);
    ping(a, b)?;
    // Both ways in the kernel: a carrier of the daemon's ends with it.
    for (from, to) in [(a, b), (b, a)] {
        until_class(from, to, "direct").with_context(|| logs(&mesh))?;
    }
    let _echo = EchoServer::start(&b.host.netns, [0_u16; 8].into(), PORT)?;
    let tcp = Conversation::tcp(&a.host.netns, b.at(PORT), patience(5))?;
    mesh.node_mut("a")?.kill()?;
    ensure!(tcp.progresses_within(patience(5)), "packets waited for the daemon");
    mesh.node_mut("a")?.restart()?;
    let started = std::time::Instant::now();
    while started.elapsed() < Duration::from_secs(3) {
        if !tcp.progresses_within(Duration::from_secs(1)) {
            bail!("the new daemon broke the connection\n{}", logs(&mesh));
        }
    }
    let (a, b) = (mesh.node("a")?, mesh.node("b")?);
    until_class(a, b, "direct").with_context(|| logs(&mesh))?;
    tcp.stop().map(drop)
}

#[test]
fn without_steering_plain_endpoints_still_work_and_status_says_so() -> Result<()> {
    let mut mesh = pair(Network::Public, Network::Public)?;
    for name in ["a", "b"] {
        mesh.node_mut(name)?.restart_without_steering()?;
    }
    let (a, b) = (mesh.node("a")?, mesh.node("b")?);
    let check = || -> Result<()> {
        until("a packet", patience(30), || ping(a, b))?;
        let status = a.status()?;
        ensure!(status.get("steering") == Some(&Value::Bool(false)), "{status}");
        ensure!(text(&status, "steering_detail")?.contains("--steering off"), "{status}");
        let refused = a.try_gwctl(&["why", "b"])?;
        ensure!(refused.status.code() == Some(1), "{refused:?}");
        Ok(())
    };
    check().with_context(|| logs(&mesh))
}
