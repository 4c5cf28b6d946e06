//! `gwctl status`

use ghostwire_proto::local::{PeerStatus, StatusRequest, StatusResponse};

use super::Context;
use crate::connect;
use crate::exit::{Code, Failure, Outcome};
use crate::output::table::{Facts, Table, number, text, whole, wrap};
use crate::output::units::{ago, bytes, count, latency, now_ms, until};
use crate::output::{Output, Style, json, plain};

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
            0 => {
                "this node sees no peers: it is not connected, or the policy allows it to see none".to_owned()
            }
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
        parts.push(
            "No peers: nobody else is in the network, or the policy lets this node see nobody.".to_owned(),
        );
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
        facts.add(
            "interface",
            format!("{}, MTU {}, UDP port {}", status.interface, status.mtu, status.listen_port),
        );
        facts.add("WireGuard", &status.wireguard_backend);
        facts.add("policy", policy(status));
        // Only where something is missing.
        if !status.steering && !status.steering_detail.is_empty() {
            facts.add(
                "paths",
                format!("plain endpoints, without NAT traversal and relays: {}", status.steering_detail),
            );
        }
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

/// Where names are so long that the table does not fit, the handshakes are left to `gwctl status PEER`.
fn peers(output: &Output, status: &StatusResponse, now: i64) -> String {
    // Colours would count as characters.
    let plain = Output { colour: false, ..output.clone() };
    let measured = peer_table(&plain, status, now, true);
    let widest = measured.lines().map(|line| line.chars().count()).max().unwrap_or(0);
    let fits = output.width.is_none_or(|width| widest <= width.into());
    peer_table(output, status, now, fits)
}

fn peer_table(output: &Output, status: &StatusResponse, now: i64, handshakes: bool) -> String {
    let mut columns = vec![whole("PEER"), whole("ADDRESS"), text("PATH"), number("LATENCY")];
    if handshakes {
        columns.push(text("HANDSHAKE"));
    }
    columns.extend([number("RECEIVED"), number("SENT"), number("DROPPED")]);
    let mut table = Table::new(output, &columns);
    for peer in &status.peers {
        let works = !matches!(peer.path.as_str(), "none" | "idle");
        let addresses = peer.peer.as_ref().map(|peer| json::prefixes(&peer.addresses)).unwrap_or_default();
        // Where there is room; the word alone says little.
        let short = output.width.is_some_and(|width| width < 100);
        let path = match peer.path.strip_prefix("direct ") {
            Some(endpoint) if short => endpoint.to_owned(),
            _ if works || peer.path == "idle" => peer.path.clone(),
            _ => idle_path(peer).to_owned(),
        };
        let path_style = if works { Style::Good } else { Style::Warning };
        let dropped_style = (peer.dropped_packets > 0).then_some(Style::Warning);
        let mut cells = vec![
            (name(peer).to_owned(), Some(Style::Bold)),
            (addresses.first().cloned().unwrap_or_default(), None),
            (path, Some(path_style)),
            (latency(peer.latency_ms), None),
        ];
        if handshakes {
            cells.push((ago(peer.last_handshake_unix_ms, now), None));
        }
        cells.extend([
            (bytes(peer.rx_bytes), None),
            (bytes(peer.tx_bytes), None),
            (peer.dropped_packets.to_string(), dropped_style),
        ]);
        table.styled(cells);
    }
    table.render("")
}

fn idle_path(peer: &PeerStatus) -> &'static str {
    if peer.peer.as_ref().is_some_and(|peer| peer.online) { "none" } else { "offline" }
}

/// Why peers that should be there have no path, or not a direct one, each on its own line.
fn remarks(output: &Output, status: &StatusResponse) -> Option<String> {
    let online = |peer: &PeerStatus| peer.peer.as_ref().is_some_and(|peer| peer.online);
    let silent = |peer: &PeerStatus| {
        peer.path == "none" && !peer.why.is_empty() && (online(peer) || !status.coordinator_connected)
    };
    let relayed = |peer: &PeerStatus| peer.path_class.starts_with("relay");
    let list = |title: &str, wanted: &dyn Fn(&PeerStatus) -> bool| {
        let lines = status.peers.iter().filter(|peer| wanted(peer)).map(|peer| {
            let line = format!("{}: {}", name(peer), peer.why);
            format!("  {}", wrap(&plain(&line), 4, output.width))
        });
        let lines: Vec<String> = lines.collect();
        (!lines.is_empty()).then(|| format!("{title}:\n{}", lines.join("\n")))
    };
    let lists = [list("Without a path", &silent), list("Not direct", &relayed)];
    let lists: Vec<String> = lists.into_iter().flatten().collect();
    (!lists.is_empty()).then(|| lists.join("\n\n"))
}

fn problems(output: &Output, problems: &[String]) -> String {
    let title = output.paint(Style::Bad, &count(problems.len() as u64, "problem"));
    let lines = problems.iter().map(|problem| format!("  {}", wrap(&plain(problem), 4, output.width)));
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
        .add(
            "latency",
            if status.latency_ms < 0.0 { unknown_latency(status) } else { latency(status.latency_ms) },
        )
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
    let online = if peer.online {
        output.paint(Style::Good, "online")
    } else {
        output.paint(Style::Warning, "offline")
    };
    format!("{}  {online}\n{}", output.paint(Style::Bold, &peer.name), facts.render())
}

fn unknown_latency(status: &PeerStatus) -> String {
    if matches!(status.path.as_str(), "none" | "idle") {
        "unknown: no path".to_owned()
    } else {
        "unknown: no answer to ICMP echo, or the policy allows none".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, SocketAddr};

    use ghostwire_proto::address::NodeEndpoint;
    use ghostwire_proto::v1;

    use super::*;

    const NOW: i64 = 1_795_367_560_000;

    fn output(width: u16) -> Output {
        Output { json: false, colour: false, width: Some(width) }
    }

    fn address(text: &str) -> v1::Prefix {
        text.parse::<IpAddr>().unwrap().into()
    }

    fn peer(name: &str, last: u8, online: bool) -> v1::Peer {
        let endpoint: SocketAddr = format!("192.0.2.{last}:51820").parse().unwrap();
        v1::Peer {
            id: last.into(),
            name: name.to_owned(),
            node_key: vec![last; 32],
            addresses: vec![address(&format!("100.64.0.{last}")), address(&format!("fd00::{last:x}"))],
            endpoints: vec![NodeEndpoint { address: endpoint, fixed: false }.into()],
            online,
            tags: vec!["tag:server".to_owned()],
            ..v1::Peer::default()
        }
    }

    fn running() -> StatusResponse {
        StatusResponse {
            state: "running".to_owned(),
            interface: "gw0".to_owned(),
            wireguard_backend: "kernel".to_owned(),
            hook: "tcx".to_owned(),
            mtu: 1420,
            listen_port: 51820,
            node: Some(v1::SelfNode {
                id: 1,
                name: "laptop".to_owned(),
                addresses: vec![address("100.64.0.2"), address("fd00::2")],
                user: "alice@example.com".to_owned(),
                ..v1::SelfNode::default()
            }),
            coordinator: "mesh.example.com:8080".to_owned(),
            coordinator_connected: true,
            wanted_generation: 7,
            enforced_generation: 7,
            peers: vec![
                PeerStatus {
                    peer: Some(peer("db-1", 3, true)),
                    path: "direct 192.0.2.3:51820".to_owned(),
                    path_class: "direct".to_owned(),
                    path_latency_ms: 12.4,
                    why: "announced by the peer".to_owned(),
                    latency_ms: 12.4,
                    last_handshake_unix_ms: NOW - 42_000,
                    rx_bytes: 123_456_789,
                    tx_bytes: 4_321,
                    dropped_packets: 3,
                    dropped_bytes: 180,
                },
                PeerStatus {
                    peer: Some(peer("build-server-with-a-long-name", 4, true)),
                    path: "none".to_owned(),
                    why: "trying 192.0.2.4:51820; no answer yet: a firewall must let UDP through on one side"
                        .to_owned(),
                    latency_ms: -1.0,
                    ..PeerStatus::default()
                },
            ],
            ..StatusResponse::default()
        }
    }

    #[test]
    fn a_running_node_in_120_columns() {
        let expected = "\
laptop  running
  addresses    100.64.0.2  fd00::2
  owner        alice@example.com
  coordinator  mesh.example.com:8080, connected
  interface    gw0, MTU 1420, UDP port 51820
  WireGuard    kernel
  policy       generation 7 in force, eBPF on tcx

PEER                           ADDRESS     PATH                    LATENCY  HANDSHAKE  RECEIVED    SENT  DROPPED
db-1                           100.64.0.3  direct 192.0.2.3:51820    12 ms  42 s ago     123 MB  4.3 kB        3
build-server-with-a-long-name  100.64.0.4  none                          -  never           0 B     0 B        0

Without a path:
  build-server-with-a-long-name: trying 192.0.2.4:51820; no answer yet: a firewall must let UDP through on one side";
        let text = overview(&output(120), &running(), NOW);
        assert_eq!(text, expected, "\n{text}\n");
    }

    #[test]
    fn nothing_is_wider_than_the_terminal() {
        for width in [80, 100, 120, 200] {
            let mut status = running();
            status.problems = vec![
                "the new policy is not in force: the policy is too large for one node; policy generation 6 stays in force, \
                 and new peers wait"
                    .to_owned(),
            ];
            let text = overview(&output(width), &status, NOW);
            let widest = text.lines().map(|line| line.chars().count()).max().unwrap();
            assert!(widest <= width.into(), "{widest} in {width}\n{text}");
            for whole in ["db-1", "100.64.0.3", "build-server-with-a-long-name"] {
                assert!(text.contains(whole), "{whole} is broken in {width}\n{text}");
            }
        }
    }

    #[test]
    fn a_stopped_node_says_what_to_do() {
        let status = StatusResponse {
            state: "stopped".to_owned(),
            detail: "run `gwctl up` to connect".to_owned(),
            ..StatusResponse::default()
        };
        assert_eq!(overview(&output(80), &status, NOW), "stopped\n  detail  run `gwctl up` to connect");
    }

    #[test]
    fn an_unknown_peer_is_not_found_with_the_names_that_are() {
        let failure = find(&running(), "db-2").unwrap_err();
        assert_eq!(failure.code, Code::NotFound);
        assert!(failure.hint.unwrap().contains("db-1"));
        assert_eq!(name(find(&running(), "100.64.0.4").unwrap()), "build-server-with-a-long-name");
    }
}
