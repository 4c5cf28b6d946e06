//! Two nodes `a` and `b` in networks of their own: what tests of paths begin with.

use anyhow::Result;
use serde_json::Value;

use crate::mesh::{Mesh, Node, Owner, json};
use crate::nat::Network;
use crate::process::{check_in, tail};

/// A policy that lets everybody reach everybody.
pub const OPEN: &str = r#"{ "acls": [{ "action": "accept", "src": ["*"], "dst": ["*:*"] }] }"#;

/// Nodes `a` and `b` in these networks, which may reach each other.
pub fn pair(a: Network, b: Network) -> Result<Mesh> {
    let mut mesh = Mesh::start()?;
    mesh.create_user("dora@company.com")?;
    mesh.set_policy(OPEN)?;
    mesh.add_node_in("a", Owner::User("dora@company.com"), a)?;
    mesh.add_node_in("b", Owner::User("dora@company.com"), b)?;
    mesh.wait_enforced()?;
    Ok(mesh)
}

/// The ends of all logs, and how each node explains its path to each other one.
pub fn logs(mesh: &Mesh) -> String {
    let nodes = mesh.nodes.iter().map(|node| {
        let why = |peer: &str| node.gwctl(&["why", peer]).unwrap_or_else(|error| format!("{error:#}"));
        let others = mesh.nodes.iter().filter(|other| other.name() != node.name());
        let whys: Vec<String> = others.map(|other| why(other.name())).collect();
        (node.name(), format!("{}\n{}", tail(&node.log(), 40), whys.join("\n")))
    });
    let all = std::iter::once(("coordinator", tail(&mesh.coordinator.log(), 30))).chain(nodes);
    all.map(|(name, log)| format!("--- {name}\n{log}")).collect::<Vec<_>>().join("\n")
}

/// One echo, which has to be answered.
pub fn ping(from: &Node, to: &Node) -> Result<()> {
    check_in(&from.host.netns, "ping", &["-c", "1", "-W", "10", &to.v4.to_string()]).map(drop)
}

/// What `gwctl why` says of the path.
pub fn why(from: &Node, to: &Node) -> Result<Value> {
    json(&from.gwctl(&["--json", "why", to.name()])?)
}
