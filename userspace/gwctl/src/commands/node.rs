//! `gwctl node`

use std::io::{IsTerminal as _, Write as _};

use ghostwire_proto::v1::{
    self, DeleteNodeRequest, ListNodesRequest, Prefix, PrefixList, TagList, UpdateNodeRequest,
};
use serde_json::json;

use super::Context;
use crate::cli::NodeCommand;
use crate::connect::{self, Server};
use crate::exit::{Code, Failure, Outcome};
use crate::output::json::Node;
use crate::output::table::{Facts, Table, text, whole, wrap};
use crate::output::units::{ago, date, now_ms, until};
use crate::output::{Output, Style};

pub(super) async fn run(context: &Context, command: NodeCommand) -> Outcome {
    let mut server = connect::server(&context.global.server_socket).await?;
    match command {
        NodeCommand::List { topology } => {
            let nodes = nodes(&mut server).await?;
            if topology {
                return context.output.document(&topology_of(&nodes));
            }
            let shown: Vec<Node> = nodes.iter().map(Node::from).collect();
            context.output.either(&json!({ "nodes": shown }), || list(&context.output, &shown, now_ms()))
        }
        NodeCommand::Show { node } => {
            let nodes = nodes(&mut server).await?;
            let id: Option<u64> = node.parse().ok();
            let found = nodes.iter().find(|known| known.name == node || Some(known.id) == id);
            let found = found.ok_or_else(|| {
                Failure::new(
                    Code::NotFound,
                    format!("there is no node {node:?}"),
                    "`gwctl node list` shows all nodes",
                )
            })?;
            let shown = Node::from(found);
            context.output.either(&shown, || detail(&context.output, &shown, now_ms()))
        }
        NodeCommand::Rename { node, name } => {
            let request = UpdateNodeRequest { node: node.clone(), name: Some(name), ..Default::default() };
            let updated = update(&mut server, request, &format!("rename {node}")).await?;
            context.output.either(&updated, || format!("{node} is now {}.", updated.name))
        }
        NodeCommand::Tag { node, tags } => {
            let request =
                UpdateNodeRequest { node: node.clone(), tags: Some(TagList { tags }), ..Default::default() };
            let updated = update(&mut server, request, &format!("tag {node}")).await?;
            context.output.either(&updated, || match updated.tags.len() {
                0 => format!("{} has no tags; it belongs to {}.", updated.name, updated.user),
                _ => format!("{} has {}.", updated.name, updated.tags.join(", ")),
            })
        }
        NodeCommand::ApproveRoutes { node, prefixes } => {
            let prefixes = prefixes.into_iter().map(|net| Prefix::from(net.trunc())).collect();
            let approved_routes = Some(PrefixList { prefixes });
            let request = UpdateNodeRequest { node: node.clone(), approved_routes, ..Default::default() };
            let updated = update(&mut server, request, &format!("approve routes of {node}")).await?;
            context.output.either(&updated, || match updated.approved_routes.len() {
                0 => format!("{} routes no subnets.", updated.name),
                _ => format!("{} routes {}.", updated.name, updated.approved_routes.join(", ")),
            })
        }
        NodeCommand::Delete { node, yes } => {
            if !yes && !context.output.json {
                confirm(&node)?;
            }
            let answer = server.delete_node(DeleteNodeRequest { node: node.clone() }).await;
            answer.map_err(|status| Failure::of_status(&format!("delete {node}"), &status))?;
            context.output.either(&json!({ "deleted": node }), || format!("{node} is out of the network."))
        }
    }
}

async fn nodes(server: &mut Server) -> Result<Vec<v1::Node>, Failure> {
    let answer = server.list_nodes(ListNodesRequest {}).await;
    Ok(answer.map_err(|status| Failure::of_status("list the nodes", &status))?.into_inner().nodes)
}

async fn update(server: &mut Server, request: UpdateNodeRequest, doing: &str) -> Result<Node, Failure> {
    let answer = server.update_node(request).await;
    Ok(Node::from(&answer.map_err(|status| Failure::of_status(doing, &status))?.into_inner()))
}

/// Asks a person; a script must say `--yes`.
fn confirm(node: &str) -> Outcome {
    let not_asked =
        || Failure::new(Code::Failed, format!("{node} is not deleted"), "say --yes if that is meant");
    if !std::io::stdin().is_terminal() {
        return Err(not_asked());
    }
    eprint!("Delete {node}? It loses its connections at once and must enrol again to come back. [y/N] ");
    let mut answer = String::new();
    let read = std::io::stderr().flush().and_then(|()| std::io::stdin().read_line(&mut answer));
    match read {
        Ok(_) if matches!(answer.trim(), "y" | "Y" | "yes") => Ok(()),
        _ => Err(not_asked()),
    }
}

/// All nodes, one line each.
pub(super) fn list(output: &Output, nodes: &[Node], now: i64) -> String {
    let columns = [
        whole("ID"),
        whole("NAME"),
        whole("ADDRESS"),
        text("OWNER"),
        whole("STATE"),
        text("SEEN"),
        text("POLICY"),
    ];
    let mut table = Table::new(output, &columns);
    for node in nodes {
        let owner = if node.tags.is_empty() { node.user.clone() } else { node.tags.join(", ") };
        let (state, style) = if node.online { ("online", Style::Good) } else { ("offline", Style::Dim) };
        let (policy, policy_style) = match (node.enforced_generation, node.filter_generation) {
            (is, wanted) if is == wanted => ("in force".to_owned(), None),
            (0, _) => ("none yet".to_owned(), Some(Style::Warning)),
            (is, wanted) => (format!("{is} of {wanted}"), Some(Style::Warning)),
        };
        table.styled([
            (node.id.to_string(), None),
            (node.name.clone(), Some(Style::Bold)),
            (node.addresses.first().cloned().unwrap_or_default(), None),
            (owner, None),
            (state.to_owned(), Some(style)),
            (if node.online { "now".to_owned() } else { ago(node.last_seen_unix_ms, now) }, None),
            (policy, policy_style),
        ]);
    }
    let mut text = table.render("No nodes yet: `gwctl key create` makes a key with which a machine joins.");
    let troubled = nodes.iter().flat_map(|node| node.problems.iter().map(move |problem| (node, problem)));
    for (node, problem) in troubled {
        let line = format!("{}: {problem}", node.name);
        text.push('\n');
        text.push_str(&wrap(&output.paint(Style::Bad, &line), 4, output.width));
    }
    text
}

fn detail(output: &Output, node: &Node, now: i64) -> String {
    let mut facts = Facts::new(output);
    let policy =
        format!("generation {} in force, {} wanted", node.enforced_generation, node.filter_generation);
    let unapproved: Vec<&str> = node
        .advertised_routes
        .iter()
        .filter(|route| !node.approved_routes.contains(route))
        .map(String::as_str)
        .collect();
    facts
        .add("id", node.id.to_string())
        .add("addresses", node.addresses.join("  "))
        .add("owner", &node.user)
        .add("tags", node.tags.join(", "))
        .add("ephemeral", if node.ephemeral { "yes: deleted some time after it goes away" } else { "" })
        .add("seen", if node.online { "now".to_owned() } else { ago(node.last_seen_unix_ms, now) })
        .add("enrolled", date(node.created_unix_ms))
        .add("key expires", until(node.key_expiry_unix_ms, now))
        .add("endpoints", node.endpoints.join(", "))
        .add("routes", node.approved_routes.join(", "))
        .add("not approved", unapproved.join(", "))
        .add("policy", policy)
        .add("version", format!("{} on {}", node.version, node.os))
        .add("machine key", &node.machine_key)
        .add("node key", &node.node_key);
    for problem in &node.problems {
        facts.add("problem", problem);
    }
    let online =
        if node.online { output.paint(Style::Good, "online") } else { output.paint(Style::Dim, "offline") };
    format!("{}  {online}\n{}", output.paint(Style::Bold, &node.name), facts.render())
}

/// The form that `gwctl policy test --topology` reads.
fn topology_of(nodes: &[v1::Node]) -> serde_json::Value {
    let mut users: Vec<&str> =
        nodes.iter().map(|node| node.user.as_str()).filter(|user| !user.is_empty()).collect();
    users.sort_unstable();
    users.dedup();
    let nodes: serde_json::Map<String, serde_json::Value> = nodes
        .iter()
        .map(|node| {
            let shown = Node::from(node);
            let address =
                |v4: bool| shown.addresses.iter().find(|address| address.contains(':') != v4).cloned();
            let mut value = json!({ "tags": shown.tags, "ipv4": address(true), "ipv6": address(false),
                "routable_ips": shown.advertised_routes, "approved_routes": shown.approved_routes });
            if !shown.user.is_empty() {
                value["user"] = json!(shown.user);
            }
            (shown.name, value)
        })
        .collect();
    json!({ "users": users, "nodes": nodes })
}
