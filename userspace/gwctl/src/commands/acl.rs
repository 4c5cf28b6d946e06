//! `gwctl acl`

use ghostwire_proto::local::{self, AclRequest, AclResponse, SetShadowRequest, WatchAclRequest};
use serde_json::json;

use super::Context;
use crate::cli::{AclCommand, Switch};
use crate::connect;
use crate::exit::{Failure, Outcome};
use crate::output::table::{Table, number, text, whole, wrap};
use crate::output::units::{bytes, count, date, protocol};
use crate::output::{Output, Style, json as documents, plain};

pub(super) async fn run(context: &Context, command: AclCommand) -> Outcome {
    match command {
        AclCommand::Show => show(context).await,
        AclCommand::Counters => counters(context).await,
        AclCommand::Shadow { switch } => shadow(context, switch).await,
        AclCommand::Watch { accepted, count } => watch(context, accepted, count).await,
    }
}

async fn get(context: &Context) -> Result<AclResponse, Failure> {
    let mut daemon = connect::daemon(&context.global.socket).await?;
    let answer = daemon.acl(AclRequest {}).await;
    Ok(answer.map_err(|status| Failure::of_status("ask what the policy does", &status))?.into_inner())
}

fn headline(acl: &AclResponse) -> String {
    let mode = if acl.shadow { ", shadow mode: denied packets are reported and pass" } else { "" };
    match acl.generation {
        0 => "No policy is in force on this node yet: nothing passes.".to_owned(),
        generation => format!("Policy generation {generation} is in force{mode}."),
    }
}

async fn show(context: &Context) -> Outcome {
    let acl = get(context).await?;
    let document = documents::Rules {
        generation: acl.generation,
        shadow: acl.shadow,
        rules: acl.rules.clone(),
        filter: serde_json::from_str(&acl.filter_json).unwrap_or_default(),
    };
    context.output.either(&document, || {
        let mut lines = vec![headline(&acl)];
        if acl.rules.is_empty() && acl.generation != 0 {
            lines.push("It has no rule that concerns this node: nothing passes.".to_owned());
        }
        lines.extend(acl.rules.iter().map(|rule| wrap(rule, 4, context.output.width)));
        lines.join("\n")
    })
}

async fn counters(context: &Context) -> Outcome {
    let acl = get(context).await?;
    context.output.either(&documents::Counters::from(&acl), || counter_table(&context.output, &acl))
}

/// What was counted, without the zeros.
pub(super) fn counter_table(output: &Output, acl: &AclResponse) -> String {
    let mut table = Table::new(
        output,
        &[
            whole("DIRECTION"),
            whole("REASON"),
            whole("VERDICT"),
            number("PACKETS"),
            number("BYTES"),
            text("MEANING"),
        ],
    );
    for counter in acl.counters.iter().filter(|counter| counter.packets > 0) {
        let verdict = if counter.passed { "passed" } else { "dropped" };
        let style = if counter.passed { Style::Good } else { Style::Warning };
        table.styled([
            (counter.direction.clone(), None),
            (counter.reason.clone(), None),
            (verdict.to_owned(), Some(style)),
            (counter.packets.to_string(), None),
            (bytes(counter.bytes), None),
            (meaning(&counter.reason).to_owned(), Some(Style::Dim)),
        ]);
    }
    format!(
        "{}\n{}; image of {}.\n\n{}",
        headline(acl),
        count(acl.connections.into(), "remembered connection"),
        bytes(acl.image_words_used * 8),
        table.render("No packet was counted yet.")
    )
}

fn meaning(reason: &str) -> &'static str {
    match reason {
        "policy" => "a rule allows it",
        "connection" => "belongs to a connection opened here",
        "reply" => "answers an allowed flow",
        "icmp-error" => "about a permitted flow",
        "fragment" => "of an admitted datagram",
        "no-policy" => "no policy in force yet",
        "denied" => "no rule allows it",
        "unknown-remote" => "not a peer's address",
        "not-local" => "not for this node",
        "malformed" => "broken packet",
        "orphan-fragment" => "its first fragment was not admitted",
        "unrelated-icmp-error" => "about no permitted flow",
        "invalid-state" => "does not fit its connection",
        "unsupported" => "multicast, link-local or not IP",
        "state-rate-limited" => "opens connections too fast",
        "shadow" => "denied, but shadow mode",
        _ => "",
    }
}

async fn shadow(context: &Context, switch: Switch) -> Outcome {
    let on = switch == Switch::On;
    let mut daemon = connect::daemon(&context.global.socket).await?;
    daemon
        .set_shadow(SetShadowRequest { shadow: on })
        .await
        .map_err(|status| Failure::of_status("switch shadow mode", &status))?;
    context.output.either(&json!({ "shadow": on }), || {
        if on {
            "Shadow mode is on: what the policy denies passes and is reported. Watch it with `gwctl acl watch`.".to_owned()
        } else {
            "Shadow mode is off: what the policy denies is dropped.".to_owned()
        }
    })
}

async fn watch(context: &Context, accepted: bool, limit: Option<u64>) -> Outcome {
    let mut daemon = connect::daemon(&context.global.socket).await?;
    let failed = |status: tonic::Status| Failure::of_status("watch packets", &status);
    let mut events = daemon.watch_acl(WatchAclRequest { accepted }).await.map_err(failed)?.into_inner();
    let mut seen = 0;
    while limit.is_none_or(|limit| seen < limit) {
        let Some(event) = events.message().await.map_err(failed)? else { break };
        seen += 1;
        if context.output.json {
            context.output.record(&documents::AclEvent::from(event))?;
        } else {
            context.output.line(event_line(&context.output, &event))?;
        }
    }
    Ok(())
}

/// One packet in one or two lines.
pub(super) fn event_line(output: &Output, event: &local::AclEvent) -> String {
    let time = date(event.time_unix_ms);
    let clock = time.get(11..19).unwrap_or_default();
    let action = format!("{:10}", event.action);
    let action = match event.action.as_str() {
        "drop" => output.paint(Style::Bad, &action),
        "pass" => output.paint(Style::Good, &action),
        _ => output.paint(Style::Warning, &action),
    };
    let ports = matches!(event.protocol, 6 | 17 | 132);
    let end = |name: &str, address: &str, port: u32| {
        let host = if name.is_empty() { address } else { name };
        if ports { format!("{host}:{port}") } else { host.to_owned() }
    };
    let mut packet = format!(
        "{:7}  {} -> {}  {}  {} bytes  {}",
        event.direction,
        end(&event.src_name, &event.src, event.src_port),
        end(&event.dst_name, &event.dst, event.dst_port),
        protocol(event.protocol),
        event.length,
        event.explanation,
    );
    if event.suppressed > 0 {
        packet = format!("{packet}  (and {} not reported)", event.suppressed);
    }
    wrap(&format!("{clock}  {action}  {}", plain(&packet)), 10, output.width)
}
