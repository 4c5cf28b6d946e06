//! The policy.

use std::sync::Arc;

use ghostwire_policy::Policy;
use ghostwire_proto::v1::{
    ExplainFlowRequest, ExplainFlowResponse, ListPolicyVersionsResponse, PolicyVersion, SetPolicyRequest,
    SetPolicyResponse,
};
use tonic::Status;

use super::{Admin, Refused, status, storage_status};
use crate::clock;
use crate::model::draft::Draft;
use crate::model::{Network, PolicyInForce};
use crate::node_update::approve_routes;
use crate::storage;

impl Admin {
    pub(super) async fn do_get_policy(&self, version: u32) -> Result<PolicyVersion, Status> {
        let network = self.network();
        if version == 0 || version == network.policy.version {
            return Ok((&*network.policy).into());
        }
        let found = self.handle.run(move |writer| writer.policy_version(version)).await;
        match found.ok_or_else(stopped)? {
            Ok(Some(found)) => Ok(found.into()),
            Ok(None) => Err(Refused::NotFound {
                what: "policy version",
                name: version.to_string(),
                hint: "`gwctl policy history` shows all",
            }
            .into()),
            Err(error) => Err(storage_status(&error, &error)),
        }
    }

    pub(super) async fn do_list_policy_versions(&self) -> Result<ListPolicyVersionsResponse, Status> {
        let found = self.handle.run(|writer| writer.policy_versions()).await;
        let versions = found.ok_or_else(stopped)?.map_err(|error| storage_status(&error, &error))?;
        Ok(ListPolicyVersionsResponse { versions: versions.into_iter().map(Into::into).collect() })
    }

    pub(super) async fn do_set_policy(
        &self,
        actor: String,
        request: SetPolicyRequest,
    ) -> Result<SetPolicyResponse, Status> {
        let (check_only, expected) = (request.check_only, request.expected_version);
        let network = self.network();
        // Parsing and the policy's tests can take a while with large policies: not on the writer's time.
        let checked = {
            let network = network.clone();
            let author = actor.clone();
            tokio::task::spawn_blocking(move || check(&network, request.content, author))
                .await
                .map_err(|error| Status::internal(error.to_string()))??
        };
        if check_only {
            let world = self.handle.world();
            let affected = tokio::task::spawn_blocking(move || {
                let mut draft = Draft::new(&world.network, "check", clock::now());
                draft.put_policy(checked);
                approve_routes(&mut draft);
                world.next(Arc::new(draft.into_parts().0)).map(|next| next.views_changed_since(&world))
            });
            let affected = affected
                .await
                .map_err(|error| Status::internal(error.to_string()))?
                .map_err(|errors| Refused::Invalid(errors.to_string()))?;
            return Ok(response(network.policy.version, affected));
        }
        if checked.text == network.policy.text && (expected == 0 || expected == network.policy.version) {
            return Ok(response(network.policy.version, 0));
        }
        let set = move |draft: &mut Draft| {
            let in_force = draft.network().policy.version;
            if expected != 0 && expected != in_force {
                return Err(Refused::Conflict(format!(
                    "version {in_force} is in force, not {expected}: somebody else changed the policy; get it, \
                     merge, and try again"
                )));
            }
            let policy = PolicyInForce { version: in_force + 1, created: draft.now(), ..checked };
            let version = policy.version;
            draft.put_policy(policy);
            draft.audit("policy.set", format!("version {version}"), "");
            approve_routes(draft);
            Ok(version)
        };
        let (version, affected) = self.handle.change_and_count(actor, set).await.map_err(status)?;
        tracing::info!(version, affected, "policy in force");
        Ok(response(version, affected))
    }

    pub(super) fn do_explain(&self, request: &ExplainFlowRequest) -> Result<ExplainFlowResponse, Status> {
        let world = self.handle.world();
        let invalid = |message: String| Status::from(Refused::Invalid(message));
        let protocol = u8::try_from(request.protocol)
            .map_err(|_| invalid(format!("{} is not a protocol number", request.protocol)))?;
        let port =
            u16::try_from(request.port).map_err(|_| invalid(format!("{} is not a port", request.port)))?;
        let ipv6 = [&request.src, &request.dst].iter().any(|word| word.parse::<std::net::Ipv6Addr>().is_ok());
        let address = |word: &str| {
            world.resolved.find_address(word, ipv6).ok_or_else(|| Refused::NotFound {
                what: "node, address, or login or tag of one single node",
                name: word.to_owned(),
                hint: "`gwctl node list` shows all nodes",
            })
        };
        let explanation =
            world.resolved.explain(address(&request.src)?, address(&request.dst)?, protocol, port);
        let json =
            serde_json::to_string(&explanation).map_err(|error| Status::internal(error.to_string()))?;
        Ok(ExplainFlowResponse { allowed: explanation.allowed, json, text: explanation.to_string() })
    }
}

/// Parses, resolves, and runs the policy's own tests.
fn check(network: &Network, text: String, author: String) -> Result<PolicyInForce, Refused> {
    let policy = Policy::parse(&text).map_err(|errors| Refused::Invalid(errors.to_string()))?;
    let resolved =
        policy.resolve(&network.topology()).map_err(|errors| Refused::Invalid(errors.to_string()))?;
    let failures: Vec<String> = resolved.run_tests().iter().map(ToString::to_string).collect();
    if failures.is_empty() {
        Ok(PolicyInForce { version: 0, author, created: 0, text, policy })
    } else {
        Err(Refused::Blocked(failures.join("\n")))
    }
}

fn response(version: u32, affected: usize) -> SetPolicyResponse {
    SetPolicyResponse { version, nodes_affected: u32::try_from(affected).unwrap_or(u32::MAX) }
}

fn stopped() -> Status {
    Status::unavailable("the coordinator is shutting down")
}

impl From<storage::PolicyVersion> for PolicyVersion {
    fn from(version: storage::PolicyVersion) -> Self {
        Self {
            version: version.version,
            content: version.text,
            created_unix_ms: version.created,
            author: version.author,
        }
    }
}
