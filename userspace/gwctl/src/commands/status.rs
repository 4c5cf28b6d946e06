//! `gwctl status`

use ghostwire_proto::local::{PeerStatus, StatusRequest, StatusResponse};

use super::Context;
use crate::connect;
use crate::exit::{Code, Failure, Outcome};
use crate::output::table::{Facts, Table, number, text, whole, wrap};
use crate::output::units::{ago, bytes, count, latency, now_ms, until};
use crate::output::{Output, Style, json};

pub(super) async fn status(context: &Context, peer: Option<&str>) -> Outcome {
    let mut daemon = connect::daemon(&context.global.socket).await?;
    let answer = daemon.status(StatusRequest {}).await;
    let status = answer.map_err(|status| Failure::of_status("get the status", &status))?.into_inner();
    let output = &context.output;
    let Some(wanted) = peer else {
        return output.either(&json::Status::from(&status), || overview(output, &status, now_ms()));
    };
    let found = find(&status, wanted)?;
    output.either(&json::Peer::from(found), || detail(output, found, now_ms()))
}

fn find<'s>(status: &'s StatusResponse, wanted: &str) -> Result<&'s PeerStatus, Failure> {
    let is = |peer: &&PeerStatus| {
        peer.peer.as_ref().is_some_and(|peer| {
            peer.name == wanted || json::prefixes(&peer.addresses).iter().any(|address| address == wanted)
        })
    };
    status.peers.iter().find(is).ok_or_else(|| {
        let names: Vec<&str> = status.peers.iter().map(name).collect();
        let hint = match names.len() {
            0 => "this node sees no peers: it is not connected, or the policy allows it to see none".to_owned(),
            1..=20 => format!("the peers are {}", names.join(", ")),
            _ => "`gwctl status` lists the peers".to_owned(),
        };
        Failure::new(Code::NotFound, format!("there is no peer {wanted:?}"), hint)
    })
}

fn name(status: &PeerStatus) -> &str {
    status.peer.as_ref().map_or("", |peer| peer.name.as_str())
}

/// The node and all peers.
pub fn overview(output: &Output, status: &StatusResponse, now: i64) -> String {
    let mut parts = vec![head(output, status, now)];
    if !status.peers.is_empty() {
        parts.push(peers(output, status, now));
        parts.extend(remarks(output, status));
    } else if matches!(status.state.as_str(), "running" | "offline") {
        parts.push("No peers: nobody else is in the network, or the policy lets this node see nobody.".to_owned());
    }
    if !status.problems.is_empty() {
        parts.push(problems(output, &status.problems));
    }
    parts.join("\n\n")
}

fn head(output: &Output, status: &StatusResponse, now: i64) -> String {
    let style = match status.state.as_str() {
        "running" => Style::Good,
        "removed" => Style::Bad,
        _ => Style::Warning,
    };
    let state = output.paint(style, &status.state);
    let title = match &status.node {
        Some(node) => format!("{}  {state}", output.paint(Style::Bold, &node.name)),
        None => state,
    };
    let mut facts = Facts::new(output);
    facts.add("detail", &status.detail);
    if let Some(node) = &status.node {
        facts.add("addresses", json::prefixes(&node.addresses).join("  "));
        facts.add("owner", if node.tags.is_empty() { node.user.clone() } else { node.tags.join(", ") });
        facts.add("routes", json::prefixes(&node.approved_routes).join(", "));
        if node.key_expiry_unix_ms != 0 {
            facts.add("key expires", until(node.key_expiry_unix_ms, now));
        }
    }
    if !status.coordinator.is_empty() {
        let connected = if status.coordinator_connected { "connected" } else { "not connected" };
        facts.add("coordinator", format!("{}, {connected}", status.coordinator));
    }
    if !status.wireguard_backend.is_empty() {
        facts.add("interface", format!("{}, MTU {}, UDP port {}", status.interface, status.mtu, status.listen_port));
        facts.add("WireGuard", &status.wireguard_backend);
        facts.add("policy", policy(status));
    }
    let facts = facts.render();
    if facts.is_empty() { title } else { format!("{title}\n{facts}") }
}

fn policy(status: &StatusResponse) -> String {
    let hook = if status.hook.is_empty() { String::new() } else { format!(", eBPF on {}", status.hook) };
    let mode = if status.shadow { ", shadow mode: denied packets are reported and pass" } else { "" };
    match (status.enforced_generation, status.wanted_generation) {
        (0, _) => "none in force yet: nothing passes".to_owned(),
        (is, wanted) if is == wanted => format!("generation {is} in force{hook}{mode}"),
        (is, wanted) => format!("generation {is} in force, {wanted} wanted{hook}{mode}"),
    }
}

fn peers(output: &Output, status: &StatusResponse, now: i64) -> String {
    let columns = [
        whole("PEER"),
        whole("ADDRESS"),
        text("PATH"),
        number("LATENCY"),
        text("HANDSHAKE"),
        number("RECEIVED"),
        number("SENT"),
        number("DROPPED"),
    ];
    let mut table = Table::new(output, &columns);
    for peer in &status.peers {
        let works = peer.path != "none";
        let addresses = peer.peer.as_ref().map(|peer| json::prefixes(&peer.addresses)).unwrap_or_default();
        let path = if works { peer.path.clone() } else { idle_path(peer).to_owned() };
        let path_style = if works { Style::Good } else { Style::Warning };
        let dropped_style = (peer.dropped_packets > 0).then_some(Style::Warning);
        table.styled([
            (name(peer).to_owned(), Some(Style::Bold)),
            (addresses.first().cloned().unwrap_or_default(), None),
            (path, Some(path_style)),
            (latency(peer.latency_ms), None),
            (ago(peer.last_handshake_unix_ms, now), None),
            (bytes(peer.rx_bytes), None),
            (bytes(peer.tx_bytes), None),
            (peer.dropped_packets.to_string(), dropped_style),
        ]);
    }
    table.render("")
}

fn idle_path(peer: &PeerStatus) -> &'static str {
    if peer.peer.as_ref().is_some_and(|peer| peer.online) { "none" } else { "offline" }
}

/// Why peers have no path, each on its own line.
fn remarks(output: &Output, status: &StatusResponse) -> Option<String> {
    let silent: Vec<&PeerStatus> =
        status.peers.iter().filter(|peer| peer.path == "none" && !peer.why.is_empty()).collect();
    let lines = silent.iter().map(|peer| {
        let line = format!("{}: {}", name(peer), peer.why);
        format!("  {}", wrap(&line, 4, output.width))
    });
    let lines: Vec<String> = lines.collect();
    (!lines.is_empty()).then(|| format!("Without a path:\n{}", lines.join("\n")))
}

fn problems(output: &Output, problems: &[String]) -> String {
    let title = output.paint(Style::Bad, &count(problems.len() as u64, "problem"));
    let lines = problems.iter().map(|problem| format!("  {}", wrap(problem, 4, output.width)));
    format!("{title}:\n{}", lines.collect::<Vec<_>>().join("\n"))
}

/// Everything about one peer.
pub fn detail(output: &Output, status: &PeerStatus, now: i64) -> String {
    let peer = status.peer.clone().unwrap_or_default();
    let shown = json::Peer::from(status);
    let mut facts = Facts::new(output);
    facts
        .add("addresses", shown.addresses.join("  "))
        .add("owner", if peer.tags.is_empty() { peer.user } else { peer.tags.join(", ") })
        .add("path", &status.path)
        .add("why", &status.why)
        .add("latency", if status.latency_ms < 0.0 { unknown_latency(status) } else { latency(status.latency_ms) })
        .add("handshake", ago(status.last_handshake_unix_ms, now))
        .add("received", bytes(status.rx_bytes))
        .add("sent", bytes(status.tx_bytes))
        .add(
            "dropped",
            format!("{}, {}", count(status.dropped_packets, "packet"), bytes(status.dropped_bytes)),
        )
        .add("endpoints", shown.endpoints.join(", "))
        .add("accepted", shown.allowed_prefixes.join(", "))
        .add("key", &shown.node_key);
    if !peer.online {
        facts.add("last seen", ago(peer.last_seen_unix_ms, now));
    }
    let online = if peer.online { output.paint(Style::Good, "online") } else { output.paint(Style::Warning, "offline") };
    format!("{}  {online}\n{}", output.paint(Style::Bold, &peer.name), facts.render())
}

fn unknown_latency(status: &PeerStatus) -> String {
    if status.path == "none" {
        "unknown: no path".to_owned()
    } else {
        "unknown: no answer to ICMP echo, or the policy allows none".to_owned()
    }
}
