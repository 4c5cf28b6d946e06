//! The demonstration, step by step. It goes on only as long as everything it claims is seen to happen.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use ghostwire_tests::lab::Lab;
use ghostwire_tests::mesh::{Mesh, Node, Owner};
use ghostwire_tests::process::{Process, check_in, run_in};
use ghostwire_tests::traffic::{Conversation, EchoServer, NumberedStream, tcp_probe, udp_probe};
use ghostwire_tests::wait::{patience, time_factor, until};
use ghostwire_tests::wireguard::BareTunnel;
use serde_json::Value;

use crate::narrator::Narrator;
use crate::{ID, cleanup, paths, policy};

/// Port of the database that the policy is about.
const DATABASE: u16 = 5432;
/// A port that everyone may reach.
pub(crate) const WEB: u16 = 80;
/// The other port that everyone may reach; the streams use it.
pub(crate) const TLS: u16 = 443;

/// Tells the story. With `keep`, the mesh stays.
pub(crate) fn tell(narrator: &mut Narrator, keep: bool) -> Result<()> {
    let mut mesh = coordinator_and_policy(narrator)?;
    enrolment(narrator, &mut mesh)?;
    let servers = start_servers(&mesh)?;
    allowed(narrator, &mesh)?;
    denied(narrator, &mesh)?;
    policy_edit(narrator, &mesh)?;
    throughput(narrator, &mesh)?;
    crashes(narrator, &mut mesh)?;
    counters(narrator, &mesh)?;
    paths::tell(narrator, &mut mesh)?;
    drop(servers);
    if keep {
        keep_running(narrator, mesh);
        return Ok(());
    }
    farewell(narrator, &mesh)
}

fn coordinator_and_policy(narrator: &mut Narrator) -> Result<Mesh> {
    narrator.step("A coordinator, its users, and a policy");
    let lab = Lab::named(ID)?;
    std::fs::write(cleanup::marker(ID), lab.dir().as_os_str().as_encoded_bytes())?;
    let mesh = Mesh::start_in(lab)?;
    narrator
        .say("ghostwire-server runs in a network namespace of its own: no domain, no certificate, no file.");
    for user in ["alice@company.com", "carol.dev@company.com", "ivan.intern@company.com"] {
        mesh.create_user(user)?;
    }
    let said = mesh.set_policy(policy::START)?;
    narrator.shell("coordinator", "gwctl policy set policy.hujson", &said);
    narrator.shell("coordinator", "gwctl server status", &mesh.coordinator.gwctl(&["server", "status"])?);
    narrator.seen("the coordinator runs and SPEC.md's example policy is in force");
    Ok(mesh)
}

fn enrolment(narrator: &mut Narrator, mesh: &mut Mesh) -> Result<()> {
    narrator.step("Three machines join, each with one command");
    for (name, owner) in [
        ("server", Owner::Tag("tag:development")),
        ("developer", Owner::User("carol.dev@company.com")),
        ("intern", Owner::User("ivan.intern@company.com")),
    ] {
        let node = mesh.add_node(name, owner)?;
        narrator.say(&format!("{name}# gwctl up gwjoin-1-…   →   {}  {}", node.v4, node.v6));
    }
    mesh.wait_enforced()?;
    narrator.shell("coordinator", "gwctl node list", &mesh.coordinator.gwctl(&["node", "list"])?);
    let (server, developer) = (mesh.node("server")?, mesh.node("developer")?);
    until("the tunnel's first handshake", patience(20), || ping(developer, server.v4))?;
    narrator.shell("developer", "gwctl status", &developer.gwctl(&["status"])?);
    narrator.seen("three nodes enrolled, and the coordinator knows that each enforces the policy");
    Ok(())
}

fn start_servers(mesh: &Mesh) -> Result<Vec<EchoServer>> {
    let netns = &mesh.node("server")?.host.netns;
    let everywhere = IpAddr::from([0_u16; 8]);
    [WEB, DATABASE].iter().map(|port| EchoServer::start(netns, everywhere, *port)).collect()
}

fn ping(from: &Node, to: IpAddr) -> Result<String> {
    check_in(&from.host.netns, "ping", &["-c", "1", "-W", "5", &to.to_string()])
}

fn allowed(narrator: &mut Narrator, mesh: &Mesh) -> Result<()> {
    narrator.step("What the policy allows, works");
    let (server, developer, intern) = (mesh.node("server")?, mesh.node("developer")?, mesh.node("intern")?);
    let limit = patience(5);
    narrator.shell("developer", &format!("ping -c 1 {}", server.v4), &ping(developer, server.v4)?);
    narrator.seen("ICMP: developer → server");
    for (who, at) in [(developer, server.at(DATABASE)), (intern, server.at(WEB)), (intern, server.at6(WEB))] {
        let took = tcp_probe(&who.host.netns, at, limit)?;
        narrator.seen(format!("TCP: {} → {at} connected and answered in {took:.1?}", who.name()));
        udp_probe(&who.host.netns, at, 3, limit)?;
        narrator.seen(format!("UDP: {} → {at} answered", who.name()));
    }
    Ok(())
}

fn denied(narrator: &mut Narrator, mesh: &Mesh) -> Result<()> {
    narrator.step("What no rule allows, does not, and says why");
    let (server, intern) = (mesh.node("server")?, mesh.node("intern")?);
    let at = server.at(DATABASE);
    let log = mesh.lab.dir().join("watch.log");
    let gwctl = ghostwire_tests::process::bin_dir()?.join("gwctl");
    let socket = intern.socket();
    let args = ["--socket", socket.to_str().context("UTF-8 path")?, "acl", "watch"];
    let mut watch = Process::spawn(&intern.host.netns, "gwctl acl watch", &gwctl, &args, &log)?;
    let wanted = DATABASE.to_string();
    // The watcher needs a moment to subscribe: try until it has reported one of our attempts.
    let report = until("gwctl acl watch to report the denial", patience(20), || {
        watch.check_alive()?;
        let connected = tcp_probe(&intern.host.netns, at, Duration::from_millis(500) * time_factor()).is_ok();
        anyhow::ensure!(!connected, "the intern reached the database");
        let log = watch.log();
        log.lines().find(|line| line.contains(&wanted)).map(str::to_owned).context("nothing reported")
    })?;
    narrator.claim(format!("TCP: intern → {at} does not connect"), true)?;
    narrator.shell("intern", "gwctl acl watch", &report);
    narrator.seen("the kernel program reported the packet that it dropped");
    let target = format!("server:{DATABASE}/tcp");
    let explain = mesh.coordinator.try_gwctl(&["policy", "explain", "intern", &target])?;
    let text = String::from_utf8_lossy(&explain.stdout).into_owned();
    narrator.shell("coordinator", &format!("gwctl policy explain intern {target}"), &text);
    narrator.claim("the explanation names the rules and what is missing", explain.status.code() == Some(5))
}

fn policy_edit(narrator: &mut Narrator, mesh: &Mesh) -> Result<()> {
    narrator.step("A policy edit opens the one and cuts the other, mid-flow");
    let (server, developer, intern) = (mesh.node("server")?, mesh.node("developer")?, mesh.node("intern")?);
    let limit = patience(5);
    let tcp = Conversation::tcp(&developer.host.netns, server.at(DATABASE), limit)?;
    let udp = Conversation::udp(&developer.host.netns, server.at(DATABASE))?;
    let untouched = stream(mesh, "intern", "server")?;
    let running = tcp.progresses_within(limit) && udp.progresses_within(limit);
    narrator.claim("the developer talks to the database over TCP and UDP", running)?;

    narrator.say("The edit, one line:");
    narrator.say(&format!("- {}", policy::OLD_LINE));
    narrator.say(&format!("+ {}", policy::NEW_LINE));
    let said = mesh.set_policy(&policy::edited())?;
    narrator.shell("coordinator", "gwctl policy set policy.hujson", &said);
    mesh.wait_enforced()?;

    let window = Duration::from_secs(2) * time_factor();
    // One answer may have been in flight when the images were swapped.
    tcp.progresses_within(Duration::from_millis(50));
    udp.progresses_within(Duration::from_millis(50));
    narrator.claim("the developer's established TCP connection is cut", !tcp.progresses_within(window))?;
    narrator.claim("the developer's running UDP flow is cut", !udp.progresses_within(window))?;
    let took = tcp_probe(&intern.host.netns, server.at(DATABASE), limit)?;
    narrator.seen(format!("TCP: intern → {} now connects ({took:.1?})", server.at(DATABASE)));
    let report = untouched.stop()?;
    narrator.claim(
        format!("a flow that both policies allow lost {} of {} packets", report.lost(), report.sent),
        report.lost() == 0 && report.sent > 0,
    )?;
    drop(tcp.stop());
    udp.stop()?;
    Ok(())
}

/// Numbered datagrams to the TLS port, which everyone may reach.
fn stream(mesh: &Mesh, from: &str, to: &str) -> Result<NumberedStream> {
    let (from, to) = (mesh.node(from)?, mesh.node(to)?);
    let per_second = 1000 / time_factor().min(10);
    let stream = NumberedStream::start(&from.host.netns, &to.host.netns, to.v4, TLS, per_second, 200)?;
    until("the numbered stream to arrive", patience(10), || {
        anyhow::ensure!(stream.received() > 10, "{} datagrams so far", stream.received());
        Ok(())
    })?;
    Ok(stream)
}

fn throughput(narrator: &mut Narrator, mesh: &Mesh) -> Result<()> {
    narrator.step("Throughput, with and without the ACL programs");
    let (server, developer) = (mesh.node("server")?, mesh.node("developer")?);
    let backend = status_text(developer, "wireguard_backend")?;
    let kernel = backend.starts_with("kernel");
    narrator
        .say(&format!("WireGuard backend: {backend}. Bare: the same backend and links without GhostWire."));
    let bare = BareTunnel::start(&developer.host, &server.host, kernel, mesh.lab.dir())?;
    let dir = mesh.lab.dir();
    let mut rates = [0.0; 2];
    // In turn, so that a machine that changes its speed changes it for both.
    for round in 0..2 {
        for (i, address) in [server.v4, BareTunnel::far_address()].into_iter().enumerate() {
            let rate = iperf3(developer, server, address, &dir.join(format!("iperf-{round}-{i}.log")))?;
            rates[i] += rate / 2.0;
        }
    }
    drop(bare);
    let [ours, plain] = rates;
    narrator.say(&format!("GhostWire, ACL both ways   {ours:>9.1} Mbit/s"));
    narrator.say(&format!("bare WireGuard             {plain:>9.1} Mbit/s"));
    narrator.claim(format!("TCP through the mesh at {:.2} of bare WireGuard", ours / plain), ours > 0.0)
}

/// One TCP stream through port 443; megabits per second at the receiver.
pub(crate) fn iperf3(from: &Node, to: &Node, address: IpAddr, log: &std::path::Path) -> Result<f64> {
    let port = TLS.to_string();
    let mut server = Process::spawn(
        &to.host.netns,
        "iperf3 server",
        std::path::Path::new("/usr/bin/iperf3"),
        &["-s", "-1", "-p", &port, "--forceflush"],
        log,
    )?;
    until("iperf3 to listen", patience(10), || {
        server.check_alive()?;
        anyhow::ensure!(server.log().contains("listening"), "not yet");
        Ok(())
    })?;
    let output = check_in(
        &from.host.netns,
        "iperf3",
        &["-J", "-t", "3", "-c", &address.to_string(), "-p", &port, "--connect-timeout", "10000"],
    )?;
    let report: Value = serde_json::from_str(&output).context("iperf3's report")?;
    let bits = report.pointer("/end/sum_received/bits_per_second").and_then(Value::as_f64);
    Ok(bits.context("a rate in iperf3's report")? / 1e6)
}

fn crashes(narrator: &mut Narrator, mesh: &mut Mesh) -> Result<()> {
    narrator.step("kill -9 of the daemons and of the coordinator while packets flow");
    let running = stream(mesh, "developer", "server")?;
    for name in ["server", "developer"] {
        mesh.node_mut(name)?.kill()?;
        arrives(narrator, &running, &format!("{name}'s daemon is dead, and packets still arrive"))?;
    }
    let (intern, server) = (mesh.node("intern")?, mesh.node("server")?);
    let ssh = tcp_probe(&intern.host.netns, server.at(22), Duration::from_secs(1));
    narrator.claim("nothing has opened: intern → server:22 is still denied", ssh.is_err())?;
    mesh.coordinator.kill()?;
    arrives(narrator, &running, "the coordinator is dead as well, and packets still arrive")?;
    for name in ["server", "developer"] {
        mesh.node_mut(name)?.restart()?;
        arrives(
            narrator,
            &running,
            &format!("{name}'s daemon restarted without a coordinator and adopted all"),
        )?;
    }
    mesh.coordinator.restart()?;
    mesh.wait_enforced()?;
    let report = running.stop()?;
    if report.lost() > 0 {
        for name in ["developer", "server"] {
            let counters = mesh.node(name)?.gwctl(&["acl", "counters"])?;
            narrator.shell(name, "gwctl acl counters", &counters);
        }
    }
    narrator.claim(
        format!("through all of it {} of {} numbered packets were lost", report.lost(), report.sent),
        report.lost() == 0,
    )
}

fn arrives(narrator: &mut Narrator, stream: &NumberedStream, claim: &str) -> Result<()> {
    let before = stream.received();
    let more = until("more packets", patience(10), || {
        anyhow::ensure!(stream.received() > before + 50, "{} since", stream.received() - before);
        Ok(())
    });
    narrator.claim(claim, more.is_ok())
}

fn counters(narrator: &mut Narrator, mesh: &Mesh) -> Result<()> {
    narrator.step("Every packet was counted, by reason");
    let server = mesh.node("server")?;
    narrator.shell("server", "gwctl acl counters", &server.gwctl(&["acl", "counters"])?);
    let intern = mesh.node("intern")?;
    narrator.shell("intern", "gwctl acl counters", &intern.gwctl(&["acl", "counters"])?);
    let answer: Value = serde_json::from_str(&intern.gwctl(&["--json", "acl", "counters"])?)?;
    let dropped: u64 = answer
        .get("counters")
        .and_then(Value::as_array)
        .context("counters")?
        .iter()
        .filter(|c| c.get("passed") == Some(&Value::Bool(false)))
        .filter_map(|c| c.get("packets")?.as_u64())
        .sum();
    narrator.claim(format!("the intern's node counted {dropped} denied packets"), dropped > 0)
}

fn status_text(node: &Node, field: &str) -> Result<String> {
    ghostwire_tests::mesh::text(&node.status()?, field)
}

fn keep_running(narrator: &mut Narrator, mesh: Mesh) {
    narrator.step("The mesh stays: things to try");
    let gwctl = ghostwire_tests::process::bin_dir().unwrap_or_default().join("gwctl");
    let gwctl = gwctl.display();
    for node in &mesh.nodes {
        narrator.say(&format!(
            "ip netns exec {} {gwctl} --socket {} status",
            node.host.netns.name(),
            node.socket().display()
        ));
    }
    narrator.say(&format!("{gwctl} --server-socket {} node list", mesh.coordinator.socket().display()));
    if let (Ok(server), Ok(intern)) = (mesh.node("server"), mesh.node("intern")) {
        narrator.say(&format!("ip netns exec {} ping {}", intern.host.netns.name(), server.v4));
    }
    narrator.say("cargo xtask demo --clean     # removes it all");
    mesh.leak();
}

fn farewell(narrator: &mut Narrator, mesh: &Mesh) -> Result<()> {
    narrator.step("gwctl down leaves nothing behind");
    for node in &mesh.nodes {
        let said = node.gwctl(&["down"])?;
        narrator.shell(node.name(), "gwctl down", &said);
    }
    for node in &mesh.nodes {
        let link = run_in(&node.host.netns, "ip", &["link", "show", "gw0"])?;
        let gone = !link.status.success() && !node.bpf_dir().join("gw0").exists();
        narrator.claim(format!("{}: no interface, no program, no map is left", node.name()), gone)?;
    }
    Ok(())
}
