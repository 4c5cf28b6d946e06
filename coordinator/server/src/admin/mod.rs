//! Administration, served on the local socket: one file per kind of thing.

use std::sync::Arc;

use ghostwire_proto::join_key::Address;
use ghostwire_proto::keys::Fingerprint;
use ghostwire_proto::v1;
use thiserror::Error;
use tonic::{Request, Response, Status};

use crate::model::{Network, Node, UnixMs};
use crate::relays::Relays;
use crate::storage::StorageError;
use crate::writer::{Handle, WriteError};

mod access;
mod keys;
mod nodes;
mod policy;
mod users;

pub use access::Access;

/// What administrators are told about the server itself.
#[derive(Clone, Debug)]
pub struct ServerFacts {
    /// When this process started.
    pub started: UnixMs,
    /// Where it listens.
    pub listen: String,
    /// Where nodes are told to find it.
    pub advertised: Vec<Address>,
    /// What join keys pin.
    pub ca: Fingerprint,
}

/// Serves administrators.
#[derive(Clone)]
pub struct Admin {
    handle: Handle,
    facts: Arc<ServerFacts>,
    relays: Relays,
}

impl Admin {
    /// Serves what `handle` knows.
    pub fn new(handle: Handle, facts: ServerFacts, relays: Relays) -> Self {
        Self { handle, facts: Arc::new(facts), relays }
    }

    fn network(&self) -> Arc<Network> {
        self.handle.world().network.clone()
    }

    fn admin_node(&self, network: &Network, node: &Node) -> v1::Node {
        let world = self.handle.world();
        let generation = world.views.get(&node.id).map(|view| view.generation.get()).unwrap_or_default();
        network.admin_node(node, generation)
    }
}

/// Why an administrator's request is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
enum Refused {
    #[error("there is no {what} {name:?}; {hint}")]
    NotFound { what: &'static str, name: String, hint: &'static str },
    #[error("{0}")]
    Invalid(String),
    #[error("{0}")]
    Exists(String),
    #[error("{0}")]
    Conflict(String),
    #[error("{0}")]
    Blocked(String),
}

impl From<Refused> for Status {
    fn from(refused: Refused) -> Self {
        let text = refused.to_string();
        match refused {
            Refused::NotFound { .. } => Self::not_found(text),
            Refused::Invalid(_) => Self::invalid_argument(text),
            Refused::Exists(_) => Self::already_exists(text),
            Refused::Conflict(_) => Self::aborted(text),
            Refused::Blocked(_) => Self::failed_precondition(text),
        }
    }
}

fn status<E: std::error::Error + Into<Status>>(error: WriteError<E>) -> Status {
    match error {
        WriteError::Refused(refused) => refused.into(),
        WriteError::Storage(ref storage) => storage_status(&error, storage),
        WriteError::Stopped => Status::unavailable(error.to_string()),
    }
}

fn storage_status(error: &dyn std::error::Error, storage: &StorageError) -> Status {
    match storage {
        StorageError::Full(_) => {
            Status::resource_exhausted(format!("{error}; make room on the disk and try again"))
        }
        StorageError::ReadOnly(_) => {
            Status::unavailable(format!("{error}; check the disk and its mount options"))
        }
        _ => Status::internal(error.to_string()),
    }
}

fn no_node(name: &str) -> Refused {
    Refused::NotFound { what: "node", name: name.to_owned(), hint: "`gwctl node list` shows all" }
}

fn no_user(email: &str) -> Refused {
    Refused::NotFound { what: "user", name: email.to_owned(), hint: "`gwctl user list` shows all" }
}

/// Tags as an administrator gives them: checked, sorted, each once.
fn checked_tags(tags: &[String]) -> Result<Vec<String>, Refused> {
    let well_formed = |tag: &String| {
        tag.len() <= 128
            && tag.strip_prefix("tag:").is_some_and(|name| {
                name.starts_with(|first: char| first.is_ascii_alphabetic())
                    && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            })
    };
    if let Some(bad) = tags.iter().find(|tag| !well_formed(tag)) {
        let message = format!(
            "{bad:?} is not a tag; tags look like tag:server: a letter, then letters, digits and hyphens"
        );
        return Err(Refused::Invalid(message));
    }
    let mut tags = tags.to_vec();
    tags.sort_unstable();
    tags.dedup();
    Ok(tags)
}

/// Who asks, for the audit log.
fn actor<T>(request: &Request<T>) -> String {
    access::actor(request.extensions())
}

#[tonic::async_trait]
impl v1::admin_service_server::AdminService for Admin {
    async fn status(
        &self,
        _: Request<v1::ServerStatusRequest>,
    ) -> Result<Response<v1::ServerStatus>, Status> {
        let network = self.network();
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        Ok(Response::new(v1::ServerStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_unix_ms: self.facts.started,
            listen: self.facts.listen.clone(),
            advertised: self.facts.advertised.iter().map(ToString::to_string).collect(),
            ca_fingerprint: self.facts.ca.as_bytes().to_vec(),
            nodes: count(network.nodes.len()),
            nodes_online: count(network.nodes.values().filter(|node| node.online).count()),
            users: count(network.users.len()),
            policy_version: network.policy.version,
            overlay: Some(network.overlay.into()),
            problems: self.handle.problems(),
            relays: self.relays.status(),
        }))
    }

    async fn create_user(
        &self,
        request: Request<v1::CreateUserRequest>,
    ) -> Result<Response<v1::User>, Status> {
        let actor = actor(&request);
        self.do_create_user(actor, request.into_inner()).await.map(Response::new)
    }

    async fn list_users(
        &self,
        _: Request<v1::ListUsersRequest>,
    ) -> Result<Response<v1::ListUsersResponse>, Status> {
        let users = self.network().users.values().map(|user| v1::User::from(&**user)).collect();
        Ok(Response::new(v1::ListUsersResponse { users }))
    }

    async fn delete_user(
        &self,
        request: Request<v1::DeleteUserRequest>,
    ) -> Result<Response<v1::DeleteUserResponse>, Status> {
        let actor = actor(&request);
        self.do_delete_user(actor, request.into_inner()).await.map(Response::new)
    }

    async fn create_auth_key(
        &self,
        request: Request<v1::CreateAuthKeyRequest>,
    ) -> Result<Response<v1::CreateAuthKeyResponse>, Status> {
        let actor = actor(&request);
        self.do_create_key(actor, request.into_inner()).await.map(Response::new)
    }

    async fn list_auth_keys(
        &self,
        _: Request<v1::ListAuthKeysRequest>,
    ) -> Result<Response<v1::ListAuthKeysResponse>, Status> {
        let network = self.network();
        let mut keys: Vec<v1::AuthKey> = network.keys.values().map(|key| network.admin_key(key)).collect();
        keys.sort_by_key(|key| std::cmp::Reverse(key.created_unix_ms));
        Ok(Response::new(v1::ListAuthKeysResponse { keys }))
    }

    async fn revoke_auth_key(
        &self,
        request: Request<v1::RevokeAuthKeyRequest>,
    ) -> Result<Response<v1::AuthKey>, Status> {
        let actor = actor(&request);
        self.do_revoke_key(actor, request.into_inner()).await.map(Response::new)
    }

    async fn list_nodes(
        &self,
        _: Request<v1::ListNodesRequest>,
    ) -> Result<Response<v1::ListNodesResponse>, Status> {
        let network = self.network();
        let nodes = network.nodes.values().map(|node| self.admin_node(&network, node)).collect();
        Ok(Response::new(v1::ListNodesResponse { nodes }))
    }

    async fn update_node(
        &self,
        request: Request<v1::UpdateNodeRequest>,
    ) -> Result<Response<v1::Node>, Status> {
        let actor = actor(&request);
        self.do_update_node(actor, request.into_inner()).await.map(Response::new)
    }

    async fn delete_node(
        &self,
        request: Request<v1::DeleteNodeRequest>,
    ) -> Result<Response<v1::DeleteNodeResponse>, Status> {
        let actor = actor(&request);
        self.do_delete_node(actor, request.into_inner()).await.map(Response::new)
    }

    async fn get_policy(
        &self,
        request: Request<v1::GetPolicyRequest>,
    ) -> Result<Response<v1::PolicyVersion>, Status> {
        self.do_get_policy(request.into_inner().version).await.map(Response::new)
    }

    async fn set_policy(
        &self,
        request: Request<v1::SetPolicyRequest>,
    ) -> Result<Response<v1::SetPolicyResponse>, Status> {
        let actor = actor(&request);
        self.do_set_policy(actor, request.into_inner()).await.map(Response::new)
    }

    async fn list_policy_versions(
        &self,
        _: Request<v1::ListPolicyVersionsRequest>,
    ) -> Result<Response<v1::ListPolicyVersionsResponse>, Status> {
        self.do_list_policy_versions().await.map(Response::new)
    }

    async fn explain_flow(
        &self,
        request: Request<v1::ExplainFlowRequest>,
    ) -> Result<Response<v1::ExplainFlowResponse>, Status> {
        self.do_explain(&request.into_inner()).map(Response::new)
    }
}
