//! `gwctl relay`

use ghostwire_proto::v1::ServerStatusRequest;
use serde_json::json;

use super::Context;
use crate::cli::RelayCommand;
use crate::connect;
use crate::exit::{Failure, Outcome};
use crate::output::json::Relay;
use crate::output::table::{Table, number, text, whole};
use crate::output::{Output, Style};

pub(super) async fn run(context: &Context, command: RelayCommand) -> Outcome {
    let RelayCommand::List = command;
    let mut server = connect::server(&context.global.server_socket).await?;
    let answer = server.status(ServerStatusRequest {}).await;
    let status = answer.map_err(|status| Failure::of_status("list the relays", &status))?.into_inner();
    let relays: Vec<Relay> = status.relays.iter().map(Relay::from).collect();
    context.output.either(&json!({ "relays": relays }), || list(&context.output, &relays))
}

fn list(output: &Output, relays: &[Relay]) -> String {
    let columns = [
        whole("REGION"),
        text("ADDRESS"),
        whole("UDP"),
        whole("TLS"),
        whole("STATE"),
        number("NODES"),
        number("PAIRS"),
        number("STREAMS"),
        number("LOAD"),
    ];
    let mut table = Table::new(output, &columns);
    let port = |port: u32| if port == 0 { "off".to_owned() } else { port.to_string() };
    for relay in relays {
        let (state, style) = match (relay.connected, relay.draining) {
            (false, _) => ("gone", Style::Bad),
            (true, true) => ("draining", Style::Warning),
            (true, false) => ("ready", Style::Good),
        };
        let region = if relay.region.is_empty() { "-".to_owned() } else { relay.region.clone() };
        table.styled([
            (region, Some(Style::Bold)),
            (relay.addresses.join(", "), None),
            (port(relay.udp_port), None),
            (port(relay.derp_port), None),
            (state.to_owned(), Some(style)),
            (relay.nodes.to_string(), None),
            (relay.pairs.to_string(), None),
            (relay.derp_clients.to_string(), None),
            (format!("{} %", relay.load_permille.div_ceil(10)), None),
        ]);
    }
    table.render(
        "No relays: nodes that cannot reach each other stay apart. The server has one of its own unless it runs with \
         `--relay off`; for another one, `gwctl key create --relay` and `ghostwire-relay run`.",
    )
}
