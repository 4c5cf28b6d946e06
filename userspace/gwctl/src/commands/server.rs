//! `gwctl server`

use ghostwire_proto::v1::ServerStatusRequest;

use super::Context;
use crate::cli::ServerCommand;
use crate::connect;
use crate::exit::{Failure, Outcome};
use crate::output::json::Server;
use crate::output::table::{Facts, wrap};
use crate::output::units::{ago, count, now_ms};
use crate::output::{Style, plain};

pub(super) async fn run(context: &Context, command: ServerCommand) -> Outcome {
    let ServerCommand::Status = command;
    let mut server = connect::server(&context.global.server_socket).await?;
    let answer = server.status(ServerStatusRequest {}).await;
    let status =
        answer.map_err(|status| Failure::of_status("get the server's status", &status))?.into_inner();
    let shown = Server::from(&status);
    let output = &context.output;
    output.either(&shown, || {
        let mut facts = Facts::new(output);
        facts
            .add("version", &shown.version)
            .add("started", ago(shown.started_unix_ms, now_ms()))
            .add("listens at", &shown.listen)
            .add("nodes reach it at", shown.advertised.join(", "))
            .add("nodes", format!("{}, {} online", shown.nodes, shown.nodes_online))
            .add("users", shown.users.to_string())
            .add("policy", policy(shown.policy_version))
            .add(
                "overlay",
                format!("{} (nodes in {}), {}", shown.overlay.v4, shown.overlay.v4_nodes, shown.overlay.v6),
            )
            .add("CA fingerprint", &shown.ca_fingerprint);
        let mut text = format!("{}\n{}", output.paint(Style::Bold, "ghostwire-server"), facts.render());
        if !shown.problems.is_empty() {
            let title = output.paint(Style::Bad, &count(shown.problems.len() as u64, "problem"));
            let lines =
                shown.problems.iter().map(|problem| format!("  {}", wrap(&plain(problem), 4, output.width)));
            text = format!("{text}\n\n{title}:\n{}", lines.collect::<Vec<_>>().join("\n"));
        }
        text
    })
}

fn policy(version: u32) -> String {
    match version {
        1 => "version 1, the default: everybody in the network may talk to everybody (`gwctl policy get`)"
            .to_owned(),
        other => format!("version {other} (`gwctl policy get`)"),
    }
}
