//! The mesh as its users see it: enrolment, policy, revocation, crashes, removal.
//!
//! Needs root. Runs on the host (userspace WireGuard where the kernel has none) and in virtual machines with
//! kernel WireGuard.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use ghostwire_tests::mesh::{Mesh, Mounts, Node, Owner, json};
use ghostwire_tests::process::{check_in, run_in, tail};
use ghostwire_tests::traffic::{Conversation, EchoServer, NumberedStream, tcp_probe, udp_probe};
use ghostwire_tests::wait::{patience, time_factor, until};
use serde_json::Value;

const WEB: u16 = 80;
const DATABASE: u16 = 5432;

const POLICY: &str = r#"{
  "groups": { "group:dev": ["*.dev@company.com"], "group:interns": ["*.intern@company.com"] },
  "tagOwners": { "tag:db": ["group:dev"] },
  "acls": [
    { "action": "accept", "src": ["group:dev"], "dst": ["tag:db:5432"] },
    { "action": "accept", "src": ["*"], "dst": ["*:80"] },
  ],
}"#;

/// A server and two people's machines under [`POLICY`]; echo servers on the server's two ports.
fn three() -> Result<(Mesh, Vec<EchoServer>)> {
    let mut mesh = Mesh::start()?;
    mesh.create_user("carol.dev@company.com")?;
    mesh.create_user("ivan.intern@company.com")?;
    mesh.set_policy(POLICY)?;
    mesh.add_node("server", Owner::Tag("tag:db"))?;
    mesh.add_node("developer", Owner::User("carol.dev@company.com"))?;
    mesh.add_node("intern", Owner::User("ivan.intern@company.com"))?;
    mesh.wait_enforced()?;
    let any = IpAddr::from([0_u16; 8]);
    let netns = &mesh.node("server")?.host.netns;
    let servers = vec![EchoServer::start(netns, any, WEB)?, EchoServer::start(netns, any, DATABASE)?];
    for name in ["developer", "intern"] {
        let (node, server) = (mesh.node(name)?, mesh.node("server")?);
        until("the first packet", patience(20), || {
            tcp_probe(&node.host.netns, server.at(WEB), patience(3)).map(drop)
        })
        .with_context(|| logs(&mesh))?;
    }
    Ok((mesh, servers))
}

fn logs(mesh: &Mesh) -> String {
    let nodes = mesh.nodes.iter().map(|node| (node.name(), node.log()));
    let all = std::iter::once(("coordinator", mesh.coordinator.log())).chain(nodes);
    all.map(|(name, log)| format!("--- {name}\n{}", tail(&log, 30))).collect::<Vec<_>>().join("\n")
}

fn refused(node: &Node, at: std::net::SocketAddr) -> bool {
    tcp_probe(&node.host.netns, at, Duration::from_millis(800) * time_factor()).is_err()
}

#[test]
fn policy_decides_what_connects_in_both_families_and_all_protocols() -> Result<()> {
    let (mesh, _servers) = three()?;
    let (server, developer, intern) = (mesh.node("server")?, mesh.node("developer")?, mesh.node("intern")?);
    let limit = patience(5);
    for at in [server.at(DATABASE), server.at6(DATABASE)] {
        tcp_probe(&developer.host.netns, at, limit)?;
        udp_probe(&developer.host.netns, at, 3, limit)?;
        ensure!(refused(intern, at), "the intern reached {at}");
        ensure!(udp_probe(&intern.host.netns, at, 3, Duration::from_millis(300)).is_err());
    }
    for at in [server.at(WEB), server.at6(WEB)] {
        tcp_probe(&intern.host.netns, at, limit)?;
        udp_probe(&intern.host.netns, at, 3, limit)?;
    }
    check_in(&intern.host.netns, "ping", &["-c", "2", "-W", "5", &server.v4.to_string()])?;
    check_in(&intern.host.netns, "ping", &["-6", "-c", "2", "-W", "5", &server.v6.to_string()])?;
    // Large packets: fragments through the tunnel, both directions.
    check_in(&developer.host.netns, "ping", &["-c", "2", "-W", "5", "-s", "4000", &server.v4.to_string()])?;
    check_in(
        &developer.host.netns,
        "ping",
        &["-6", "-c", "2", "-W", "5", "-s", "4000", &server.v6.to_string()],
    )?;
    // The server may answer, and open nothing by itself.
    let _echo = EchoServer::start(&developer.host.netns, IpAddr::from([0_u16; 8]), DATABASE)?;
    ensure!(refused(server, developer.at(DATABASE)), "the server opened a connection to the developer");
    Ok(())
}

#[test]
fn closed_port_is_refused_at_once_and_a_denied_one_is_explained() -> Result<()> {
    let (mesh, servers) = three()?;
    drop(servers);
    let (server, developer) = (mesh.node("server")?, mesh.node("developer")?);
    // Nobody listens any more: the RST of an allowed flow comes through, long before the time-out.
    let error =
        tcp_probe(&developer.host.netns, server.at(DATABASE), patience(20)).err().context("connected")?;
    ensure!(format!("{error:#}").contains("refused"), "{error:#}");
    let explain = mesh.coordinator.try_gwctl(&["policy", "explain", "intern", "server:5432/tcp"])?;
    ensure!(explain.status.code() == Some(5), "{explain:?}");
    let explain = mesh.coordinator.try_gwctl(&["policy", "explain", "developer", "server:5432/tcp"])?;
    ensure!(explain.status.code() == Some(0), "{explain:?}");
    ensure!(String::from_utf8_lossy(&explain.stdout).contains("line 5"), "{explain:?}");
    Ok(())
}

#[test]
fn revoked_permission_cuts_live_tcp_and_udp_and_spares_the_rest() -> Result<()> {
    let (mesh, _servers) = three()?;
    let (server, developer, intern) = (mesh.node("server")?, mesh.node("developer")?, mesh.node("intern")?);
    let limit = patience(5);
    // What a socket sends anew while its own node denies it counts as a probe every half second, and TCP gives up after
    // this many (15 by default): on a slow machine that is before the permission is given back.
    for node in [server, developer] {
        check_in(&node.host.netns, "sysctl", &["-q", "-w", "net.ipv4.tcp_retries2=255"])?;
    }
    let tcp = Conversation::tcp(&developer.host.netns, server.at(DATABASE), limit)?;
    let udp = Conversation::udp(&developer.host.netns, server.at(DATABASE))?;
    ensure!(tcp.progresses_within(limit) && udp.progresses_within(limit));
    let spared = Conversation::tcp(&intern.host.netns, server.at(WEB), limit)?;
    mesh.set_policy(&POLICY.replace("group:dev\"], \"dst\"", "group:interns\"], \"dst\""))?;
    mesh.wait_enforced()?;
    tcp.progresses_within(Duration::from_millis(50));
    udp.progresses_within(Duration::from_millis(50));
    let window = Duration::from_secs(1) * time_factor();
    ensure!(!tcp.progresses_within(window), "the TCP connection lives on");
    ensure!(!udp.progresses_within(window), "the UDP flow lives on");
    ensure!(spared.progresses_within(limit), "an allowed connection was cut");
    tcp_probe(&intern.host.netns, server.at(DATABASE), limit)?;
    // Given back, the established connection goes on where it was.
    mesh.set_policy(POLICY)?;
    mesh.wait_enforced()?;
    if !tcp.progresses_within(patience(30)) {
        tcp.stop().with_context(|| format!("the connection broke\n{}", logs(&mesh)))?;
        bail!("the connection stands, but did not recover\n{}", logs(&mesh));
    }
    spared.stop()?;
    Ok(())
}

#[test]
fn machine_that_joins_a_known_class_changes_the_image_in_place() -> Result<()> {
    let (mut mesh, _servers) = three()?;
    let at = mesh.node("server")?.at(DATABASE);
    let flow = Conversation::tcp(&mesh.node("developer")?.host.netns, at, patience(5))?;
    // How often the server swapped its image, and how often it changed it in place.
    let changes = |mesh: &Mesh| -> Result<(usize, usize)> {
        let log = mesh.node("server")?.log();
        let in_place = log.matches("policy is in force, changed in place").count();
        Ok((log.matches("policy is in force").count() - in_place, in_place))
    };
    let (swaps, in_place) = changes(&mesh)?;
    mesh.add_node("second", Owner::User("carol.dev@company.com"))?;
    mesh.wait_enforced()?;
    ensure!(changes(&mesh)? == (swaps, in_place + 1), "swapped for a second developer\n{}", logs(&mesh));
    until("the second developer's first packet", patience(20), || {
        tcp_probe(&mesh.node("second")?.host.netns, at, patience(3)).map(drop)
    })?;
    ensure!(flow.progresses_within(patience(5)), "the first developer's connection was cut");
    // Going is another matter.
    mesh.coordinator.gwctl(&["node", "delete", "second", "--yes"])?;
    mesh.wait_enforced()?;
    ensure!(changes(&mesh)? == (swaps + 1, in_place + 1), "a permission was taken away in place");
    flow.stop()?;
    Ok(())
}

#[test]
fn refused_policy_changes_nothing() -> Result<()> {
    let (mesh, _servers) = three()?;
    let before = mesh.coordinator.gwctl(&["policy", "get"])?;
    let error = mesh.set_policy(&POLICY.replace("\"acls\"", "\"acl\"")).err().context("accepted")?;
    ensure!(format!("{error:#}").contains("line 4"), "{error:#}");
    ensure!(mesh.coordinator.gwctl(&["policy", "get"])? == before);
    let (server, intern) = (mesh.node("server")?, mesh.node("intern")?);
    tcp_probe(&intern.host.netns, server.at(WEB), patience(5))?;
    ensure!(refused(intern, server.at(DATABASE)));
    Ok(())
}

#[test]
fn killed_daemons_and_coordinator_lose_no_packet_and_open_nothing() -> Result<()> {
    let (mut mesh, servers) = three()?;
    drop(servers);
    let per_second = 1000 / time_factor().min(10);
    let (server, intern) = (mesh.node("server")?, mesh.node("intern")?);
    let stream =
        NumberedStream::start(&intern.host.netns, &server.host.netns, server.v4, WEB, per_second, 200)?;
    let flows = |since: u64| {
        until("packets to arrive", patience(10), || {
            ensure!(stream.received() > since + 50, "{} datagrams", stream.received());
            Ok(stream.received())
        })
    };
    let mut count = flows(0)?;
    for name in ["server", "intern"] {
        mesh.node_mut(name)?.kill()?;
        count = flows(count)?;
    }
    mesh.coordinator.kill()?;
    count = flows(count)?;
    ensure!(refused(mesh.node("intern")?, mesh.node("server")?.at(DATABASE)));
    for name in ["server", "intern"] {
        mesh.node_mut(name)?.restart()?;
        count = flows(count)?;
    }
    mesh.coordinator.restart()?;
    mesh.wait_enforced()?;
    flows(count)?;
    let report = stream.stop()?;
    ensure!(report.lost() == 0, "{report:?}\n{}", logs(&mesh));
    Ok(())
}

/// What `gwctl status` says is wrong.
fn problems(node: &Node) -> Result<String> {
    Ok(node.status()?.get("problems").context("problems")?.to_string())
}

#[test]
fn daemon_in_a_mount_namespace_of_its_own_says_so_and_leaves_nothing_open() -> Result<()> {
    let (mut mesh, _servers) = three()?;
    ensure!(problems(mesh.node("server")?)? == "[]", "{}", problems(mesh.node("server")?)?);
    let server = mesh.node_mut("server")?;
    server.gwctl(&["down"])?;
    server.terminate(patience(10))?;
    server.restart_with(Mounts::Private)?;
    server.gwctl(&["up"])?;
    let (server, intern) = (mesh.node("server")?, mesh.node("intern")?);
    let works = || {
        until("the server to be back", patience(20), || {
            tcp_probe(&intern.host.netns, server.at(WEB), patience(3)).map(drop)
        })
    };
    works().with_context(|| logs(&mesh))?;
    ensure!(problems(server)?.contains("nsenter"), "{}", problems(server)?);
    let flow = Conversation::tcp(&intern.host.netns, server.at(WEB), patience(5))?;
    let mesh = &mut mesh;
    mesh.node_mut("server")?.kill()?;
    let (server, intern) = (mesh.node("server")?, mesh.node("intern")?);
    ensure!(flow.progresses_within(patience(10)), "an allowed connection was cut");
    ensure!(refused(intern, server.at(DATABASE)), "the device is open");
    // Back where it should be, it takes over.
    mesh.node_mut("server")?.restart_with(Mounts::Shared)?;
    let server = mesh.node("server")?;
    until("the policy to be in force", patience(20), || {
        ensure!(problems(server)? == "[]", "{}", problems(server)?);
        ensure!(server.log().matches("hook=").count() >= 3);
        Ok(())
    })?;
    ensure!(flow.progresses_within(patience(30)), "an allowed connection was cut");
    ensure!(refused(mesh.node("intern")?, server.at(DATABASE)), "the device is open");
    flow.stop()?;
    Ok(())
}

#[test]
fn programs_and_device_that_are_removed_by_hand_come_back_with_a_warning() -> Result<()> {
    let (mesh, _servers) = three()?;
    let (server, intern) = (mesh.node("server")?, mesh.node("intern")?);
    let netns = &server.host.netns;
    for side in ["ingress", "egress"] {
        let pin = server.bpf_dir().join("gw0").join(side);
        if pin.exists() {
            check_in(netns, "bpftool", &["link", "detach", "pinned", &pin.to_string_lossy()])?;
        } else {
            check_in(netns, "tc", &["filter", "del", "dev", "gw0", side])?;
        }
        let nth = if side == "ingress" { "detached" } else { "2 times" };
        until("the daemon to notice", patience(10), || {
            ensure!(problems(server)?.contains(nth), "{}", problems(server)?);
            Ok(())
        })?;
        ensure!(refused(intern, server.at(DATABASE)), "the device is open");
        tcp_probe(&intern.host.netns, server.at(WEB), patience(5))?;
    }
    ensure!(server.log().contains("somebody detached the policy's programs from gw0"), "{}", server.log());
    netns.ip(&["link", "delete", "gw0"])?;
    until("the server to be back", patience(30), || {
        tcp_probe(&intern.host.netns, server.at(WEB), patience(3)).map(drop)
    })
    .with_context(|| logs(&mesh))?;
    ensure!(problems(server)?.contains("deleted interface gw0"), "{}", problems(server)?);
    ensure!(refused(intern, server.at(DATABASE)), "the device is open");
    Ok(())
}

#[test]
fn deleted_node_is_cut_off_from_everyone() -> Result<()> {
    let (mesh, _servers) = three()?;
    let (server, intern) = (mesh.node("server")?, mesh.node("intern")?);
    let flow = Conversation::tcp(&intern.host.netns, server.at(WEB), patience(5))?;
    ensure!(flow.progresses_within(patience(5)));
    mesh.coordinator.gwctl(&["node", "delete", "intern", "--yes"])?;
    until("the server to forget the intern", patience(10), || {
        let peers = server.status()?;
        ensure!(!peers.get("peers").context("peers")?.to_string().contains("intern"), "{peers}");
        Ok(())
    })?;
    flow.progresses_within(Duration::from_millis(50));
    ensure!(!flow.progresses_within(Duration::from_secs(1) * time_factor()), "the removed node still talks");
    until("the intern to know", patience(10), || {
        let status = intern.status()?;
        ensure!(status.get("state").and_then(Value::as_str) == Some("removed"), "{status}");
        Ok(())
    })?;
    Ok(())
}

#[test]
fn down_leaves_no_trace_and_up_comes_back_with_the_same_address() -> Result<()> {
    let (mesh, _servers) = three()?;
    let (server, intern) = (mesh.node("server")?, mesh.node("intern")?);
    // A foreign interface and a foreign firewall stay as they are.
    intern.host.netns.ip(&["link", "add", "docker0", "type", "bridge"])?;
    check_in(&intern.host.netns, "nft", &["add", "table", "inet", "foreign"])?;
    intern.gwctl(&["down"])?;
    ensure!(
        !run_in(&intern.host.netns, "ip", &["link", "show", "gw0"])?.status.success(),
        "gw0 is still there"
    );
    ensure!(!intern.bpf_dir().join("gw0").exists(), "pins are still there");
    let routes = intern.host.netns.ip(&["route", "show", "table", "all"])?;
    ensure!(!routes.contains("100.64"), "{routes}");
    let foreign = check_in(&intern.host.netns, "nft", &["list", "tables"])?;
    ensure!(foreign.trim() == "table inet foreign", "{foreign}");
    intern.host.netns.ip(&["link", "show", "docker0"])?;
    ensure!(
        json(&intern.gwctl(&["--json", "status"])?)?.get("state").and_then(Value::as_str) == Some("stopped")
    );
    let before = intern.v4;
    intern.gwctl(&["up"])?;
    until("the node to be back", patience(20), || {
        tcp_probe(&intern.host.netns, server.at(WEB), patience(3)).map(drop)
    })?;
    ensure!(intern.status()?.to_string().contains(&before.to_string()));
    Ok(())
}

#[test]
fn node_restarts_from_its_stored_map_without_a_coordinator() -> Result<()> {
    let (mut mesh, _servers) = three()?;
    mesh.coordinator.kill()?;
    let intern = mesh.node_mut("intern")?;
    intern.gwctl(&["down"])?;
    intern.gwctl(&["up"])?;
    let (server, intern) = (mesh.node("server")?, mesh.node("intern")?);
    until("the node to be back", patience(20), || {
        tcp_probe(&intern.host.netns, server.at(WEB), patience(3)).map(drop)
    })?;
    ensure!(refused(intern, server.at(DATABASE)));
    ensure!(intern.status()?.get("state").and_then(Value::as_str) == Some("offline"));
    Ok(())
}

#[test]
fn used_and_revoked_and_garbled_join_keys_are_refused() -> Result<()> {
    let (mut mesh, _servers) = three()?;
    let key = mesh.join_key(Owner::User("carol.dev@company.com"))?;
    mesh.add_node("second", Owner::User("carol.dev@company.com"))?;
    let second = mesh.node("second")?;
    second.gwctl(&["down"])?;
    let (head, tail) = key.split_at(key.len() / 2);
    let other = if tail.starts_with('A') { "B" } else { "A" };
    let garbled = format!("{head}{other}{}", &tail[1..]);
    ensure!(!second.try_gwctl(&["up", &garbled])?.status.success());
    ensure!(!second.try_gwctl(&["up", "gwjoin-1-nonsense"])?.status.success());
    let keys = json(&mesh.coordinator.gwctl(&["--json", "key", "list"])?)?;
    let unused = keys
        .get("keys")
        .and_then(Value::as_array)
        .context("keys")?
        .iter()
        .find(|k| k.get("uses").and_then(Value::as_u64) == Some(0))
        .context("the unused key")?;
    let id = unused.get("id").and_then(Value::as_str).context("id")?;
    mesh.coordinator.gwctl(&["key", "revoke", id])?;
    let output = second.try_gwctl(&["up", &key])?;
    ensure!(!output.status.success(), "a revoked key was accepted");
    Ok(())
}
