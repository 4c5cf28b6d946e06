//! The network as the coordinator knows it: users, auth keys, nodes, policy.
//!
//! A [`Network`] is an immutable value that readers share. The writer drafts the next one ([`draft`]), stores the
//! changes, and only then publishes it. All of this is pure: time and randomness are passed in.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use ghostwire_policy::{Policy, Topology, topology};
use ghostwire_proto::address::{NodeEndpoint, OverlayRanges};
use ghostwire_proto::auth_key::SecretHash;
use ghostwire_proto::keys::{MachineKey, NodeKey};
use ipnet::IpNet;

use crate::ipam::{HostPart, Ipam};
use crate::names;

pub mod draft;
pub mod wire;

/// Milliseconds since 1970 UTC.
pub type UnixMs = i64;

/// Names a node; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u64);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Random, never reused.
    pub id: String,
    /// Login; the name that the policy uses.
    pub email: String,
    /// For people.
    pub name: String,
    /// `user` or `admin`.
    pub role: String,
    /// When it was made.
    pub created: UnixMs,
}

/// What admits machines. The secret is stored hashed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthKeyRecord {
    /// Public part.
    pub id: String,
    /// Hash of the secret part.
    pub secret: SecretHash,
    /// Id of the user whose nodes it makes; `None` for nodes that only tags own.
    pub user: Option<String>,
    /// Admits more than one machine.
    pub reusable: bool,
    /// Its nodes are removed some time after they disconnect.
    pub ephemeral: bool,
    /// Tags of its nodes.
    pub tags: Vec<String>,
    /// When it was made.
    pub created: UnixMs,
    /// When it ends.
    pub expires: Option<UnixMs>,
    /// When it was revoked.
    pub revoked: Option<UnixMs>,
    /// Machines admitted.
    pub uses: u32,
    /// Admits relays, and no machines.
    pub relay: bool,
}

impl AuthKeyRecord {
    /// Whether it is neither revoked nor expired.
    pub fn is_usable(&self, now: UnixMs) -> bool {
        self.revoked.is_none() && self.expires.is_none_or(|expires| expires > now)
    }
}

/// A machine in the mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Never reused.
    pub id: NodeId,
    /// Unique DNS label.
    pub name: String,
    /// What the machine calls itself.
    pub hostname: String,
    /// An administrator chose the name: the machine's own name no longer changes it.
    pub renamed: bool,
    /// Identity.
    pub machine_key: MachineKey,
    /// WireGuard key.
    pub node_key: NodeKey,
    /// Its number.
    pub host: HostPart,
    /// Id of the user who owns it, or who brought a tagged node.
    pub user: Option<String>,
    /// Tags; sorted.
    pub tags: Vec<String>,
    /// Removed some time after it disconnects.
    pub ephemeral: bool,
    /// Id of the auth key that admitted it last.
    pub auth_key: String,
    /// When it was admitted first.
    pub created: UnixMs,
    /// When it was connected last.
    pub last_seen: UnixMs,
    /// Its stream is open.
    pub online: bool,
    /// Where it listens.
    pub endpoints: Vec<NodeEndpoint>,
    /// Prefixes it offers to route; sorted.
    pub advertised: Vec<IpNet>,
    /// Prefixes that an administrator approved, offered or not; sorted.
    pub approved_by_admin: Vec<IpNet>,
    /// The prefixes that are in force: offered, and approved by an administrator or by the policy; sorted.
    pub approved: Vec<IpNet>,
    /// Its program's version.
    pub version: String,
    /// Its operating system.
    pub os: String,
    /// What it says its kernel enforces.
    pub enforced_generation: u32,
    /// What it says is wrong.
    pub problems: Vec<String>,
}

/// The policy that is in force.
#[derive(Debug)]
pub struct PolicyInForce {
    /// Counts up from 1.
    pub version: u32,
    /// Who set it.
    pub author: String,
    /// When.
    pub created: UnixMs,
    /// The text.
    pub text: String,
    /// The text, checked.
    pub policy: Policy,
}

/// The whole network at one moment.
#[derive(Clone, Debug)]
pub struct Network {
    /// Random id of this state; nodes resume only where they left.
    pub epoch: String,
    /// Address ranges.
    pub overlay: OverlayRanges,
    /// By id.
    pub users: Arc<BTreeMap<String, Arc<User>>>,
    /// By id.
    pub keys: Arc<BTreeMap<String, Arc<AuthKeyRecord>>>,
    /// By id.
    pub nodes: Arc<BTreeMap<NodeId, Arc<Node>>>,
    /// Nodes by machine key.
    pub by_machine: Arc<HashMap<MachineKey, NodeId>>,
    /// Machines whose node was deleted and that have not been told to be gone for good.
    pub removed: Arc<HashSet<MachineKey>>,
    /// Numbers.
    pub ipam: Arc<Ipam>,
    /// The id that the next node gets.
    pub next_node: u64,
    /// The policy in force.
    pub policy: Arc<PolicyInForce>,
}

impl Network {
    /// A network without users and nodes.
    pub fn new(epoch: String, overlay: OverlayRanges, policy: PolicyInForce) -> Self {
        Self {
            epoch,
            overlay,
            users: Arc::default(),
            keys: Arc::default(),
            nodes: Arc::default(),
            by_machine: Arc::default(),
            removed: Arc::default(),
            ipam: Arc::default(),
            next_node: 1,
            policy: Arc::new(policy),
        }
    }

    /// The user with this login.
    pub fn user_by_email(&self, email: &str) -> Option<&Arc<User>> {
        self.users.values().find(|user| user.email == email)
    }

    /// The node with this name or id.
    pub fn node_by_name_or_id(&self, text: &str) -> Option<&Arc<Node>> {
        self.nodes
            .values()
            .find(|node| node.name == text)
            .or_else(|| self.nodes.get(&NodeId(text.parse().ok()?)))
    }

    /// The node of this machine.
    pub fn node_by_machine(&self, key: &MachineKey) -> Option<&Arc<Node>> {
        self.nodes.get(self.by_machine.get(key)?)
    }

    /// Login of a node's owner; `None` for a tagged node.
    pub fn owner(&self, node: &Node) -> Option<&str> {
        if node.tags.is_empty() { Some(&self.users.get(node.user.as_ref()?)?.email) } else { None }
    }

    /// The name for a node that wants `label`: that, or with a number that makes it its own.
    pub fn free_name(&self, label: &str, of: Option<NodeId>) -> String {
        let others = self.nodes.values().filter(|node| Some(node.id) != of);
        let taken: HashSet<&str> = others.map(|node| node.name.as_str()).collect();
        names::unique(label, |name| taken.contains(name))
    }

    /// Whether another node has this name.
    pub fn name_taken(&self, name: &str, but: Option<NodeId>) -> bool {
        self.nodes.values().any(|node| node.name == name && Some(node.id) != but)
    }

    /// What the policy is resolved against; nodes in the order of their ids.
    pub fn topology(&self) -> Topology {
        Topology {
            users: self.users.values().map(|user| policy_user(user)).collect(),
            nodes: self.nodes.values().map(|node| self.policy_node(node)).collect(),
            overlay: topology::Overlay {
                v4: self.overlay.v4,
                v6: self.overlay.v6,
                ..topology::Overlay::default()
            },
        }
    }

    fn policy_node(&self, node: &Node) -> topology::Node {
        topology::Node {
            name: node.name.clone(),
            user: self.owner(node).map(str::to_owned),
            tags: node.tags.clone(),
            addresses: node.host.addresses(&self.overlay).to_vec(),
            advertised_routes: node.advertised.clone(),
            approved_routes: node.approved.clone(),
        }
    }
}

/// A user as the policy sees it.
pub fn policy_user(user: &User) -> topology::User {
    topology::User { login: user.email.clone(), groups: Vec::new() }
}

impl Node {
    /// Whether peers have to be told all about this node again, compared with `old`.
    pub fn differs_for_peers(&self, old: &Self) -> bool {
        self.name != old.name
            || self.node_key != old.node_key
            || self.host != old.host
            || self.user != old.user
            || self.tags != old.tags
            || self.approved != old.approved
    }

    /// Whether a [`PeerPatch`](ghostwire_proto::v1::PeerPatch) tells peers what changed since `old`.
    pub fn differs_in_patch(&self, old: &Self) -> bool {
        self.online != old.online || self.endpoints != old.endpoints || self.last_seen != old.last_seen
    }

    /// Whether the policy may resolve differently, compared with `old`.
    pub fn differs_for_policy(&self, old: &Self) -> bool {
        self.name != old.name
            || self.host != old.host
            || self.user != old.user
            || self.tags != old.tags
            || self.advertised != old.advertised
            || self.approved != old.approved
    }
}
