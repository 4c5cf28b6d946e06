//! `gwctl netcheck`, `gwctl why` and `gwctl path`

use ghostwire_proto::local::{
    NetcheckRequest, NetcheckResponse, PathReport, SetPathRequest, WhyRequest, WhyResponse,
    set_path_request::Mode,
};

use super::Context;
use crate::cli::{PathArgs, PathKind};
use crate::connect;
use crate::exit::{Failure, Outcome};
use crate::output::table::{Facts, Table, number, text, whole, wrap};
use crate::output::units::latency;
use crate::output::{Output, Style, json, plain};

pub(super) async fn netcheck(context: &Context) -> Outcome {
    let mut daemon = connect::daemon(&context.global.socket).await?;
    let answer = daemon.netcheck(NetcheckRequest {}).await;
    let found = answer.map_err(|status| Failure::of_status("check the network", &status))?.into_inner();
    let output = &context.output;
    output.either(&json::Netcheck::from(&found), || network(output, &found))
}

fn network(output: &Output, found: &NetcheckResponse) -> String {
    let mut parts = Vec::new();
    if found.steering {
        let mut facts = Facts::new(output);
        let family = |has| if has { "yes" } else { "no" };
        facts
            .add("UDP", &found.udp)
            .add("NAT", nat(&found.nat))
            .add("IPv4", family(found.ipv4))
            .add("IPv6", family(found.ipv6))
            .add("QUIC", quic(found.quic_port))
            .add("addresses", found.local.join("  "))
            .add("seen as", seen_as(found))
            .add("port mapping", if found.port_mapping.is_empty() { "none" } else { &found.port_mapping });
        parts.push(facts.render());
        parts.push(relays(output, found));
    }
    let lines = found.meaning.iter().map(|line| wrap(&plain(line), 0, output.width));
    parts.push(lines.collect::<Vec<_>>().join("\n"));
    parts.retain(|part| !part.is_empty());
    parts.join("\n\n")
}

fn quic(port: u32) -> String {
    if port == 0 { "off".to_owned() } else { format!("port {port}") }
}

fn nat(word: &str) -> String {
    match word {
        "none" => "none",
        "easy" => "the same port for every destination",
        "hard" => "a new port for every destination",
        "some" => "there is one; its kind is not known",
        _ => "unknown",
    }
    .to_owned()
}

fn seen_as(found: &NetcheckResponse) -> String {
    let mut seen: Vec<&str> = Vec::new();
    for mapped in &found.mapped {
        if !seen.contains(&mapped.mapped.as_str()) {
            seen.push(&mapped.mapped);
        }
    }
    seen.join("  ")
}

fn relays(output: &Output, found: &NetcheckResponse) -> String {
    if found.relays.is_empty() {
        return String::new();
    }
    let columns = [whole("RELAY"), number("UDP"), number("TLS"), text("REMARK")];
    let mut table = Table::new(output, &columns);
    for relay in &found.relays {
        let cell = |word: &str, ms: f64| if ms < 0.0 { word.to_owned() } else { latency(ms) };
        let remark = if relay.draining { "about to stop" } else { "" };
        table.row([
            relay.name.clone(),
            cell(&relay.udp, relay.udp_ms),
            cell(&relay.tls, relay.tls_ms),
            remark.to_owned(),
        ]);
    }
    table.render("")
}

pub(super) async fn why(context: &Context, peer: &str) -> Outcome {
    let mut daemon = connect::daemon(&context.global.socket).await?;
    let answer = daemon.why(WhyRequest { peer: peer.to_owned() }).await;
    let doing = format!("explain the path to {peer}");
    let why = answer.map_err(|status| Failure::of_status(&doing, &status))?.into_inner();
    let output = &context.output;
    output.either(&json::Why::from(&why), || explanation(output, &why))
}

fn explanation(output: &Output, why: &WhyResponse) -> String {
    let works = why.path_class != "none";
    let style = if works { Style::Good } else { Style::Warning };
    let path = if works { why.path.as_str() } else { "no path" };
    let title = format!("{}  {}", output.paint(Style::Bold, &why.peer), output.paint(style, path));
    let mut facts = Facts::new(output);
    facts.add("state", &why.state);
    if works {
        let since = if why.in_use_s < 0.0 { String::new() } else { format!(", for {}", span(why.in_use_s)) };
        facts.add("why this one", format!("{}{since}", why.reason));
    }
    facts.add("your wish", &why.wish);
    let running = (!why.running.is_empty()).then(|| format!("now: {}", why.running));
    let next = (why.next_s >= 0.0).then(|| format!("in {}: {}", span(why.next_s), why.next_cause));
    facts.add("next tries", running.into_iter().chain(next).collect::<Vec<_>>().join("; "));
    let mut parts = vec![format!("{title}\n{}", facts.render())];
    if !why.paths.is_empty() {
        parts.push(paths(output, &why.paths));
    }
    if !why.advice.is_empty() {
        let lines = why.advice.iter().map(|line| format!("  {}", wrap(&plain(line), 4, output.width)));
        parts.push(format!("What would make it better:\n{}", lines.collect::<Vec<_>>().join("\n")));
    }
    parts.join("\n\n")
}

fn paths(output: &Output, paths: &[PathReport]) -> String {
    let columns = [whole("PATH"), text("FROM"), text("TO"), number("LATENCY"), text("ROLE"), text("STATE")];
    let mut table = Table::new(output, &columns);
    for path in paths {
        let to = match path.kind.as_str() {
            "" => path.remote.clone(),
            kind => format!("{} ({kind})", path.remote),
        };
        let mut state = path.state.clone();
        if !path.works && !path.failure.is_empty() {
            state = format!("{state}: {} {} ago", path.failure, span(path.failure_ago_s));
        }
        if path.held_down_s >= 0.0 {
            state = format!("{state}; not used for {} since it failed", span(path.held_down_s));
        }
        let style = if path.works { Some(Style::Good) } else { None };
        table.styled([
            (path.class.clone(), style),
            (path.local.clone(), None),
            (to, None),
            (latency(path.latency_ms), None),
            (path.role.clone(), None),
            (state, None),
        ]);
    }
    table.render("")
}

/// Seconds in words.
fn span(seconds: f64) -> String {
    match seconds {
        under if under < 100.0 => format!("{under:.0} s"),
        under if under < 6_000.0 => format!("{:.0} min", under / 60.0),
        hours => format!("{:.0} h", hours / 3_600.0),
    }
}

pub(super) async fn path(context: &Context, args: &PathArgs) -> Outcome {
    let mut daemon = connect::daemon(&context.global.socket).await?;
    let word = |kind: PathKind| match kind {
        PathKind::Direct => "direct",
        PathKind::Quic => "quic",
        PathKind::RelayUdp => "relay-udp",
        PathKind::RelayTls => "relay-tls",
        PathKind::Any => "",
    };
    let (mode, kind) = match (args.prefer, args.pin) {
        (Some(kind), _) => (Mode::Prefer, word(kind)),
        (_, Some(kind)) => (Mode::Pin, word(kind)),
        (None, None) => (Mode::Unspecified, ""),
    };
    let request = SetPathRequest {
        peer: args.peer.clone(),
        mode: mode.into(),
        class: kind.to_owned(),
        remote: args.via.clone().unwrap_or_default(),
        relay: args.relay.clone().unwrap_or_default(),
    };
    let doing = format!("change the path to {}", args.peer);
    daemon.set_path(request).await.map_err(|status| Failure::of_status(&doing, &status))?;
    let said = match mode {
        Mode::Prefer => "These paths come before all others, as long as they work.",
        Mode::Pin => "Only these paths are used; if none works, nothing does. `--auto` ends it.",
        Mode::Unspecified => "The best path is used.",
    };
    let mode = match mode {
        Mode::Prefer => "prefer",
        Mode::Pin => "pin",
        Mode::Unspecified => "auto",
    };
    let wish = json::Wish { peer: args.peer.clone(), mode: mode.to_owned(), class: kind.to_owned() };
    context.output.either(&wish, || said.to_owned())
}

#[cfg(test)]
mod tests {
    use ghostwire_proto::local::{MappedAddress, RelayReport};

    use super::*;

    fn output() -> Output {
        Output { json: false, colour: false, width: Some(120) }
    }

    #[test]
    fn a_network_behind_a_hard_nat() {
        let mapped = |port: u32| MappedAddress {
            local: "192.168.1.2:51820".to_owned(),
            server: format!("203.0.113.{port}:3478"),
            mapped: format!("198.51.100.7:{port}"),
            latency_ms: 12.0,
        };
        let found = NetcheckResponse {
            steering: true,
            udp: "passes".to_owned(),
            nat: "hard".to_owned(),
            ipv4: true,
            local: vec!["192.168.1.2:51820".to_owned()],
            mapped: vec![mapped(1), mapped(2), mapped(1)],
            relays: vec![RelayReport {
                number: 1,
                name: "frankfurt".to_owned(),
                udp: "answers".to_owned(),
                udp_ms: 12.0,
                tls: "not needed yet".to_owned(),
                tls_ms: -1.0,
                ..RelayReport::default()
            }],
            meaning: vec!["It means something.".to_owned()],
            ..NetcheckResponse::default()
        };
        let expected = "  UDP           passes
  NAT           a new port for every destination
  IPv4          yes
  IPv6          no
  QUIC          off
  addresses     192.168.1.2:51820
  seen as       198.51.100.7:1  198.51.100.7:2
  port mapping  none

RELAY        UDP             TLS  REMARK
frankfurt  12 ms  not needed yet

It means something.";
        let text = network(&output(), &found);
        let text: Vec<&str> = text.lines().map(str::trim_end).collect();
        assert_eq!(text.join("\n"), expected, "\n{}\n", text.join("\n"));
    }

    #[test]
    fn why_names_what_was_tried_and_what_would_help() {
        let path = |class: &str, works, failure: &str| PathReport {
            class: class.to_owned(),
            remote: "203.0.113.9:51820".to_owned(),
            state: if works { "works" } else { "failed" }.to_owned(),
            works,
            failure: failure.to_owned(),
            failure_ago_s: 7.0,
            latency_ms: if works { 8.0 } else { -1.0 },
            held_down_s: -1.0,
            ..PathReport::default()
        };
        let why = WhyResponse {
            peer: "db-1".to_owned(),
            path: "relay (UDP) frankfurt".to_owned(),
            path_class: "relay-udp".to_owned(),
            state: "relay (UDP)".to_owned(),
            reason: "the first that worked".to_owned(),
            in_use_s: 65.0,
            paths: vec![path("relay-udp", true, ""), path("direct", false, "no answer")],
            next_s: 30.0,
            next_cause: "the path in use is not direct".to_owned(),
            advice: vec!["let UDP out of this network".to_owned()],
            ..WhyResponse::default()
        };
        let text = explanation(&output(), &why);
        for part in [
            "db-1  relay (UDP) frankfurt",
            "the first that worked, for 65 s",
            "in 30 s: the path in use is not direct",
            "failed: no answer 7 s ago",
            "What would make it better:\n  let UDP out of this network",
        ] {
            assert!(text.contains(part), "{part:?} is missing\n{text}");
        }
    }
}
