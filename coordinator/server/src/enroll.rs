//! Enrolment: whether an auth key admits a machine, and as what.

use std::sync::Arc;

use ghostwire_proto::auth_key::{AuthKey, AuthKeyError};
use ghostwire_proto::keys::{KeyError, MachineKey, NodeKey};
use ghostwire_proto::proof::Proven;
use ghostwire_proto::v1;
use thiserror::Error;

use crate::model::draft::Draft;
use crate::model::{AuthKeyRecord, Network, Node, UnixMs, policy_user};
use crate::names;
use crate::node_update::MAX_HOSTNAME;

/// Most tags that a machine can request, and most bytes of each.
pub const MAX_TAGS: usize = 32;
/// See [`MAX_TAGS`].
pub const MAX_TAG_LENGTH: usize = 128;
/// Most bytes of a version or the name of an operating system.
pub const MAX_LABEL: usize = 128;

/// What a machine asks for. Its proof of the machine key was checked.
#[derive(Clone, Debug)]
pub struct Application {
    /// Identity.
    pub machine_key: MachineKey,
    /// WireGuard key.
    pub node_key: NodeKey,
    /// What should admit it.
    pub auth_key: AuthKey,
    /// What it calls itself.
    pub hostname: String,
    /// Tags beyond the auth key's.
    pub requested_tags: Vec<String>,
    /// Its operating system.
    pub os: String,
    /// Its program's version.
    pub version: String,
}

/// Why a request to be admitted is not one.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ApplicationError {
    /// A host name that is none.
    #[error("the host name is longer than {MAX_HOSTNAME} bytes")]
    Hostname,
    /// Something else that is too long.
    #[error("os or version is longer than {MAX_LABEL} bytes")]
    Label,
    /// Too much to ask for.
    #[error("more than {MAX_TAGS} tags, or one of more than {MAX_TAG_LENGTH} bytes")]
    Tags,
    /// Not a WireGuard key.
    #[error(transparent)]
    NodeKey(#[from] KeyError),
    /// Not an auth key.
    #[error(transparent)]
    AuthKey(#[from] AuthKeyError),
}

impl Application {
    /// Checks what came from the network. `proven`: the proof in the request holds.
    pub fn parse(request: &v1::EnrollRequest, proven: Proven) -> Result<Self, ApplicationError> {
        if request.hostname.len() > MAX_HOSTNAME {
            return Err(ApplicationError::Hostname);
        }
        if request.os.len() > MAX_LABEL || request.version.len() > MAX_LABEL {
            return Err(ApplicationError::Label);
        }
        let tags = &request.requested_tags;
        if tags.len() > MAX_TAGS || tags.iter().any(|tag| tag.len() > MAX_TAG_LENGTH) {
            return Err(ApplicationError::Tags);
        }
        Ok(Self {
            machine_key: proven.machine_key,
            node_key: NodeKey::try_from(request.node_key.as_slice())?,
            auth_key: AuthKey::parse(&request.auth_key)?,
            hostname: request.hostname.clone(),
            requested_tags: tags.clone(),
            os: request.os.clone(),
            version: request.version.clone(),
        })
    }
}

/// Why a machine is not admitted.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// No such key, or another secret. Which of the two is nobody's business.
    #[error("the auth key is not valid; make a new one with `gwctl key create`")]
    Key,
    /// Revoked.
    #[error("the auth key {0} was revoked; make a new one with `gwctl key create`")]
    Revoked(String),
    /// Expired.
    #[error("the auth key {0} has expired; make a new one with `gwctl key create`")]
    Expired(String),
    /// A single-use key that admitted another machine.
    #[error(
        "the auth key {0} is for one machine and was used; make a new one, or a reusable one with `--reusable`"
    )]
    Used(String),
    /// A key that admits relays only.
    #[error("the auth key {0} is for relays; make one for machines with `gwctl key create`")]
    ForRelays(String),
    /// A key that admits machines only.
    #[error("the auth key {0} is for machines; make one for relays with `gwctl key create --relay`")]
    NotForRelays(String),
    /// A tag that the key does not give and its user does not own.
    #[error(
        "{tag} may not be requested with this auth key; make a key with this tag, or add its user to the tag's owners in the policy"
    )]
    Tag {
        /// The tag.
        tag: String,
    },
    /// Another machine has this WireGuard key.
    #[error(
        "another machine has the same node key; the state of one machine was copied to another: delete the client's state directory on this one and join again"
    )]
    NodeKeyTaken,
    /// No number is free.
    #[error("all 65,533 addresses are in use; delete nodes that are gone")]
    NoAddress,
}

/// Admits the machine or changes nothing. The same machine keeps its node and addresses.
pub fn admit(draft: &mut Draft, application: &Application) -> Result<Arc<Node>, Refusal> {
    let now = draft.now();
    let network = draft.network();
    let existing = network.node_by_machine(&application.machine_key).cloned();
    let key = usable_key(network, &application.auth_key, existing.as_deref(), now)?;
    let tags = tags(network, &key, &application.requested_tags)?;
    let own_id = existing.as_ref().map(|node| node.id);
    if network.nodes.values().any(|node| node.node_key == application.node_key && Some(node.id) != own_id) {
        return Err(Refusal::NodeKeyTaken);
    }
    let again_with_same_key = existing.as_ref().is_some_and(|node| node.auth_key == key.id);
    let label = names::sanitise(&application.hostname);
    let node = if let Some(node) = existing {
        let keeps_name = node.renamed || names::sanitise(&node.hostname) == label;
        let name = if keeps_name { node.name.clone() } else { network.free_name(&label, own_id) };
        draft.put_node(Node {
            name,
            hostname: application.hostname.clone(),
            node_key: application.node_key,
            user: key.user.clone(),
            tags,
            ephemeral: key.ephemeral,
            auth_key: key.id.clone(),
            version: application.version.clone(),
            os: application.os.clone(),
            last_seen: now,
            ..(*node).clone()
        })
    } else {
        let name = network.free_name(&label, None);
        draft
            .add_node(|id, host| new_node(id, host, name, tags, &key, application, now))
            .ok_or(Refusal::NoAddress)?
    };
    if !again_with_same_key {
        draft.put_key(AuthKeyRecord { uses: key.uses.saturating_add(1), ..(*key).clone() });
    }
    draft.audit(
        "node.enroll",
        node.name.clone(),
        format!("machine {} with key {}", node.machine_key, key.id),
    );
    Ok(node)
}

fn new_node(
    id: crate::model::NodeId,
    host: crate::ipam::HostPart,
    name: String,
    tags: Vec<String>,
    key: &AuthKeyRecord,
    application: &Application,
    now: UnixMs,
) -> Node {
    Node {
        id,
        host,
        name,
        tags,
        hostname: application.hostname.clone(),
        renamed: false,
        machine_key: application.machine_key,
        node_key: application.node_key,
        user: key.user.clone(),
        ephemeral: key.ephemeral,
        auth_key: key.id.clone(),
        created: now,
        last_seen: now,
        online: false,
        endpoints: Vec::new(),
        advertised: Vec::new(),
        approved_by_admin: Vec::new(),
        approved: Vec::new(),
        version: application.version.clone(),
        os: application.os.clone(),
        enforced_generation: 0,
        problems: Vec::new(),
    }
}

fn usable_key(
    network: &Network,
    presented: &AuthKey,
    existing: Option<&Node>,
    now: UnixMs,
) -> Result<Arc<AuthKeyRecord>, Refusal> {
    let key = valid_key(network, presented, now)?;
    if key.relay {
        return Err(Refusal::ForRelays(key.id.clone()));
    }
    // The machine that used a single-use key may ask again: the answer may have been lost on the way.
    let same_machine = existing.is_some_and(|node| node.auth_key == key.id);
    if !key.reusable && key.uses > 0 && !same_machine {
        return Err(Refusal::Used(key.id.clone()));
    }
    Ok(key.clone())
}

/// The key that a relay presents. It is good for as long as it is not revoked and has not expired.
pub fn usable_relay_key(
    network: &Network,
    presented: &AuthKey,
    now: UnixMs,
) -> Result<Arc<AuthKeyRecord>, Refusal> {
    let key = valid_key(network, presented, now)?;
    if key.relay { Ok(key.clone()) } else { Err(Refusal::NotForRelays(key.id.clone())) }
}

fn valid_key<'a>(
    network: &'a Network,
    presented: &AuthKey,
    now: UnixMs,
) -> Result<&'a Arc<AuthKeyRecord>, Refusal> {
    let key = network.keys.get(presented.id()).ok_or(Refusal::Key)?;
    if key.secret != presented.secret_hash() {
        return Err(Refusal::Key);
    }
    if key.revoked.is_some() {
        return Err(Refusal::Revoked(key.id.clone()));
    }
    if key.expires.is_some_and(|expires| expires <= now) {
        return Err(Refusal::Expired(key.id.clone()));
    }
    Ok(key)
}

fn tags(network: &Network, key: &AuthKeyRecord, requested: &[String]) -> Result<Vec<String>, Refusal> {
    let policy = &network.policy.policy;
    let user = key.user.as_ref().and_then(|id| network.users.get(id)).map(|user| policy_user(user));
    let allowed = |tag: &String| {
        key.tags.contains(tag)
            || key.tags.iter().any(|owner| policy.tag_owns_tag(owner, tag))
            || user.as_ref().is_some_and(|user| policy.may_own_tag(user, tag))
    };
    if let Some(tag) = requested.iter().find(|tag| !allowed(tag)) {
        return Err(Refusal::Tag { tag: tag.clone() });
    }
    let mut tags: Vec<String> = key.tags.iter().chain(requested).cloned().collect();
    tags.sort_unstable();
    tags.dedup();
    Ok(tags)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, application};

    fn draft() -> Draft {
        Draft::new(&testing::network(), "test", 1_000)
    }

    fn key(draft: &mut Draft, change: impl FnOnce(&mut AuthKeyRecord)) -> AuthKey {
        let (auth_key, mut record) = testing::auth_key("k1");
        change(&mut record);
        draft.put_key(record);
        auth_key
    }

    #[test]
    fn a_single_use_key_admits_one_machine_and_that_one_again() {
        let mut draft = draft();
        let key = key(&mut draft, |_| {});
        let first = admit(&mut draft, &application(1, &key)).unwrap();
        let again = admit(&mut draft, &application(1, &key)).unwrap();
        assert_eq!((first.id, first.host, &first.name), (again.id, again.host, &again.name));
        assert_eq!(admit(&mut draft, &application(2, &key)), Err(Refusal::Used("k1".to_owned())));
        assert_eq!(draft.network().keys["k1"].uses, 1);
    }

    #[test]
    fn a_reusable_key_admits_many_and_names_are_unique() {
        let mut draft = draft();
        let key = key(&mut draft, |key| key.reusable = true);
        let names: Vec<String> =
            (1..=3).map(|n| admit(&mut draft, &application(n, &key)).unwrap().name.clone()).collect();
        assert_eq!(names, ["web", "web-2", "web-3"]);
        assert_eq!(draft.network().keys["k1"].uses, 3);
    }

    #[test]
    fn revoked_expired_and_wrong_keys_admit_nobody() {
        let mut draft = draft();
        let good = key(&mut draft, |key| key.revoked = Some(1));
        assert_eq!(admit(&mut draft, &application(1, &good)), Err(Refusal::Revoked("k1".to_owned())));
        let good = key(&mut draft, |key| key.expires = Some(1_000));
        assert_eq!(admit(&mut draft, &application(1, &good)), Err(Refusal::Expired("k1".to_owned())));
        let _ = key(&mut draft, |_| {});
        let wrong = AuthKey::new("k1", [99; 32]).unwrap();
        assert_eq!(admit(&mut draft, &application(1, &wrong)), Err(Refusal::Key));
        let unknown = AuthKey::new("other", [1; 32]).unwrap();
        assert_eq!(admit(&mut draft, &application(1, &unknown)), Err(Refusal::Key));
        assert!(draft.network().nodes.is_empty());
    }

    #[test]
    fn tags_come_from_the_key_and_from_what_its_user_owns() {
        let mut draft = draft();
        let key = key(&mut draft, |key| {
            key.tags = vec!["tag:server".to_owned()];
            key.reusable = true;
        });
        let node = admit(&mut draft, &application(1, &key)).unwrap();
        assert_eq!(node.tags, ["tag:server"]);
        assert_eq!(draft.network().owner(&node), None);
        let mut wanting = application(2, &key);
        wanting.requested_tags = vec!["tag:owned".to_owned()];
        assert_eq!(admit(&mut draft, &wanting).unwrap().tags, ["tag:owned", "tag:server"]);
        wanting.requested_tags = vec!["tag:admin".to_owned()];
        assert_eq!(admit(&mut draft, &wanting), Err(Refusal::Tag { tag: "tag:admin".to_owned() }));
    }

    #[test]
    fn a_copied_node_key_is_refused() {
        let mut draft = draft();
        let key = key(&mut draft, |key| key.reusable = true);
        admit(&mut draft, &application(1, &key)).unwrap();
        let mut copy = application(2, &key);
        copy.node_key = application(1, &key).node_key;
        assert_eq!(admit(&mut draft, &copy), Err(Refusal::NodeKeyTaken));
    }
}
