//! `gwctl policy`

use std::io::Read as _;
use std::path::Path;

use ghostwire_policy::{Policy, ResolvedPolicy, Topology, topology};
use ghostwire_proto::v1::{
    ExplainFlowRequest, GetPolicyRequest, ListNodesRequest, ListPolicyVersionsRequest, ListUsersRequest,
    ServerStatusRequest, SetPolicyRequest,
};
use serde_json::json;

use super::Context;
use crate::cli::PolicyCommand;
use crate::connect::{self, Server};
use crate::exit::{Code, Failure, Outcome};
use crate::network;
use crate::output::json::PolicyVersion;
use crate::output::table::{Table, number, text};
use crate::output::units::{count, date};
use crate::service::{self, Target};

pub(super) async fn run(context: &Context, command: PolicyCommand) -> Outcome {
    match command {
        PolicyCommand::Get { version } => get(context, version).await,
        PolicyCommand::Set { file, expect } => {
            let content = read(&file)?;
            set(context, content, expect, &format!("put {} in force", file.display())).await
        }
        PolicyCommand::Check { file, topology, offline } => {
            check(context, &file, topology.as_deref(), offline).await
        }
        PolicyCommand::Test { file, path, topology } => {
            test(context, file.or(path).as_deref(), topology.as_deref()).await
        }
        PolicyCommand::Explain { src, dst, file, topology } => {
            explain(context, &src, &dst, file.as_deref(), topology.as_deref()).await
        }
        PolicyCommand::History => history(context).await,
        PolicyCommand::Rollback { version } => {
            let mut server = connect::server(&context.global.server_socket).await?;
            let old = fetch(&mut server, version).await?;
            set(context, old.content, 0, &format!("put version {version} in force again")).await
        }
    }
}

async fn fetch(server: &mut Server, version: u32) -> Result<ghostwire_proto::v1::PolicyVersion, Failure> {
    let doing = match version {
        0 => "get the policy".to_owned(),
        version => format!("get version {version} of the policy"),
    };
    let answer = server.get_policy(GetPolicyRequest { version }).await;
    Ok(answer.map_err(|status| Failure::of_status(&doing, &status))?.into_inner())
}

async fn get(context: &Context, version: u32) -> Outcome {
    let mut server = connect::server(&context.global.server_socket).await?;
    let policy = fetch(&mut server, version).await?;
    context.output.either(&PolicyVersion::from(&policy), || policy.content.clone())
}

async fn set(context: &Context, content: String, expected_version: u32, doing: &str) -> Outcome {
    let mut server = connect::server(&context.global.server_socket).await?;
    let answer = server.set_policy(SetPolicyRequest { content, check_only: false, expected_version }).await;
    let set = answer.map_err(|status| Failure::of_status(doing, &status))?.into_inner();
    let document = json!({ "version": set.version, "nodes_affected": set.nodes_affected });
    context.output.either(&document, || {
        let affected = match set.nodes_affected {
            0 => "it changes nothing for any node".to_owned(),
            nodes => format!("it changes what {} enforce", count(nodes.into(), "node")),
        };
        format!("Version {} is in force; {affected}.", set.version)
    })
}

async fn check(context: &Context, file: &Path, topology: Option<&Path>, offline: bool) -> Outcome {
    let content = read(file)?;
    let name = file.display();
    if topology.is_some() || offline {
        let policy = parse(context, file, &content)?;
        if let Some(topology) = topology {
            let network = read_topology(topology)?;
            let resolved = resolve(context, file, &policy, &network)?;
            failures_of(context, &name.to_string(), &resolved)?;
        }
        return context.output.either(&json!({ "valid": true, "rules": policy.rule_count() }), || {
            let warnings = policy.warnings().iter().map(|warning| format!("\nwarning: {warning}"));
            format!(
                "{name} is valid: {}.{}",
                count(policy.rule_count() as u64, "rule"),
                warnings.collect::<String>()
            )
        });
    }
    // What the text alone tells, with the file's name; the server then knows about users and nodes.
    parse(context, file, &content)?;
    let mut server = connect::server(&context.global.server_socket).await?;
    let answer = server.set_policy(SetPolicyRequest { content, check_only: true, expected_version: 0 }).await;
    let checked = answer.map_err(|status| {
        let mut failure = Failure::of_status(&format!("accept {name}"), &status);
        if failure.code == Code::Failed {
            failure.code = Code::NotFound;
            failure.message = format!("{name} is refused:\n{}", status.message());
        }
        failure
    })?;
    let nodes_affected = checked.into_inner().nodes_affected;
    context.output.either(&json!({ "valid": true, "nodes_affected": nodes_affected }), || {
        format!("{name} is valid; it would change what {} enforce.", count(nodes_affected.into(), "node"))
    })
}

async fn test(context: &Context, file: Option<&Path>, topology: Option<&Path>) -> Outcome {
    let (name, content) = policy_text(context, file).await?;
    let network = match topology {
        Some(path) => read_topology(path)?,
        None => server_network(context).await?,
    };
    let path = file.unwrap_or(Path::new("the policy in force"));
    let policy = parse(context, path, &content)?;
    let resolved = resolve(context, path, &policy, &network)?;
    failures_of(context, &name, &resolved)?;
    let tests = policy.test_count();
    context.output.either(&json!({ "tests": tests, "failures": [] }), || match tests {
        0 => format!("{name} has no tests. Add some: \"tests\": [{{\"src\": \"alice@example.com\", \"accept\": [\"tag:web:443\"]}}]"),
        tests => format!("{name}: {} passed.", count(tests as u64, "test")),
    })
}

async fn explain(
    context: &Context,
    src: &str,
    dst: &str,
    file: Option<&Path>,
    topology: Option<&Path>,
) -> Outcome {
    let target = service::parse(dst).map_err(|why| {
        Failure::new(
            Code::Failed,
            format!("{dst:?} is not a destination: {why}"),
            "write it as db-1:5432, db-1:53/udp or db-1/icmp",
        )
    })?;
    let (allowed, document, text) = if file.is_some() || topology.is_some() {
        explain_here(context, src, &target, file, topology).await?
    } else {
        let mut server = connect::server(&context.global.server_socket).await?;
        let request = ExplainFlowRequest {
            src: src.to_owned(),
            dst: target.host.clone(),
            protocol: target.protocol.into(),
            port: target.port.into(),
        };
        let answer = server.explain_flow(request).await;
        let answer = answer.map_err(|status| Failure::of_status("explain the flow", &status))?.into_inner();
        (answer.allowed, serde_json::from_str(&answer.json).unwrap_or_default(), answer.text)
    };
    context.output.either(&document, || text)?;
    if allowed { Ok(()) } else { Err(Failure::answered(Code::NotFound)) }
}

async fn explain_here(
    context: &Context,
    src: &str,
    target: &Target,
    file: Option<&Path>,
    topology: Option<&Path>,
) -> Result<(bool, serde_json::Value, String), Failure> {
    let (_, content) = policy_text(context, file).await?;
    let network = match topology {
        Some(path) => read_topology(path)?,
        None => server_network(context).await?,
    };
    let path = file.unwrap_or(Path::new("the policy in force"));
    let policy = parse(context, path, &content)?;
    let resolved = resolve(context, path, &policy, &network)?;
    let ipv6 = [src, &target.host].iter().any(|word| word.parse::<std::net::Ipv6Addr>().is_ok());
    let address = |word: &str| {
        resolved.find_address(word, ipv6).ok_or_else(|| {
            let what = format!("{word:?} is no node, address, or login or tag of one single node");
            Failure::new(Code::NotFound, what, "name a node of the network, or give an address")
        })
    };
    let explanation = resolved.explain(address(src)?, address(&target.host)?, target.protocol, target.port);
    let document = serde_json::to_value(&explanation).unwrap_or_default();
    Ok((explanation.allowed, document, explanation.to_string()))
}

async fn history(context: &Context) -> Outcome {
    let mut server = connect::server(&context.global.server_socket).await?;
    let answer = server.list_policy_versions(ListPolicyVersionsRequest {}).await;
    let versions =
        answer.map_err(|status| Failure::of_status("list the versions", &status))?.into_inner().versions;
    let shown: Vec<PolicyVersion> = versions.iter().map(PolicyVersion::from).collect();
    context.output.either(&json!({ "versions": shown }), || {
        let mut table = Table::new(&context.output, &[number("VERSION"), text("BY"), text("WHEN"), text("")]);
        for (index, policy) in shown.iter().enumerate() {
            let mark = if index == 0 { "in force" } else { "" };
            table.row([
                policy.version.to_string(),
                policy.author.clone(),
                date(policy.created_unix_ms),
                mark.to_owned(),
            ]);
        }
        table.render("No policy yet.")
    })
}

async fn policy_text(context: &Context, file: Option<&Path>) -> Result<(String, String), Failure> {
    if let Some(file) = file {
        return Ok((file.display().to_string(), read(file)?));
    }
    let mut server = connect::server(&context.global.server_socket).await?;
    let policy = fetch(&mut server, 0).await?;
    Ok((format!("Version {}", policy.version), policy.content))
}

async fn server_network(context: &Context) -> Result<Topology, Failure> {
    let mut server = connect::server(&context.global.server_socket).await?;
    let failed = |status: tonic::Status| Failure::of_status("get the network from the server", &status);
    let nodes = server.list_nodes(ListNodesRequest {}).await.map_err(failed)?.into_inner().nodes;
    let users = server.list_users(ListUsersRequest {}).await.map_err(failed)?.into_inner().users;
    let status = server.status(ServerStatusRequest {}).await.map_err(failed)?.into_inner();
    network::topology(&nodes, &users, status.overlay.as_ref())
        .map_err(|why| Failure::failed(format!("the server's network cannot be understood: {why}")))
}

fn parse(context: &Context, file: &Path, content: &str) -> Result<Policy, Failure> {
    Policy::parse(content).map_err(|errors| refused(context, file, &errors))
}

fn resolve(
    context: &Context,
    file: &Path,
    policy: &Policy,
    network: &Topology,
) -> Result<ResolvedPolicy, Failure> {
    policy.resolve(network).map_err(|errors| refused(context, file, &errors))
}

/// All errors; as a document with `--json`.
fn refused(context: &Context, file: &Path, errors: &ghostwire_policy::PolicyErrors) -> Failure {
    if context.output.json {
        let document = json!({ "valid": false, "errors": errors.errors });
        return match context.output.document(&document) {
            Ok(()) => Failure::answered(Code::NotFound),
            Err(failure) => failure,
        };
    }
    let count = count(errors.errors.len() as u64, "error");
    Failure {
        hint: None,
        ..Failure::new(Code::NotFound, format!("{}: {count}\n{errors}", file.display()), "")
    }
}

fn failures_of(context: &Context, name: &str, resolved: &ResolvedPolicy) -> Outcome {
    let failures = resolved.run_tests();
    if failures.is_empty() {
        return Ok(());
    }
    if context.output.json {
        context.output.document(&json!({ "tests": resolved.policy().test_count(), "failures": failures }))?;
        return Err(Failure::answered(Code::NotFound));
    }
    let lines: Vec<String> = failures.iter().map(ToString::to_string).collect();
    let message = format!("{name}: {} failed\n{}", count(failures.len() as u64, "test"), lines.join("\n"));
    Err(Failure { hint: None, ..Failure::new(Code::NotFound, message, "") })
}

fn read(file: &Path) -> Result<String, Failure> {
    let mut text = String::new();
    let result = if file == Path::new("-") {
        std::io::stdin().read_to_string(&mut text).map(drop)
    } else {
        std::fs::read_to_string(file).map(|content| text = content)
    };
    match result {
        Ok(()) => Ok(text),
        Err(error) => Err(Failure::failed(format!("cannot read {}: {error}", file.display()))),
    }
}

fn read_topology(file: &Path) -> Result<Topology, Failure> {
    topology::from_json(&read(file)?).map_err(|error| {
        let message = format!("{}: {error}", file.display());
        Failure::new(Code::Failed, message, "`gwctl policy test --help` shows the form")
    })
}
