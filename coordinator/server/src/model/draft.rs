//! The next state of the network, and the rows that it takes to get there.

use std::sync::Arc;

use super::{AuthKeyRecord, Network, Node, NodeId, PolicyInForce, UnixMs, User};
use crate::audit::AuditEntry;
use crate::storage::Change;

/// A changed copy of the network that nobody sees until its changes are stored.
#[derive(Debug)]
pub struct Draft {
    network: Network,
    changes: Vec<Change>,
    actor: String,
    now: UnixMs,
}

impl Draft {
    /// Starts from `network` on behalf of `actor`.
    pub fn new(network: &Network, actor: impl Into<String>, now: UnixMs) -> Self {
        Self { network: network.clone(), changes: Vec::new(), actor: actor.into(), now }
    }

    /// The state so far.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// Time of this change.
    pub fn now(&self) -> UnixMs {
        self.now
    }

    /// The new state and what must be stored first.
    pub fn into_parts(self) -> (Network, Vec<Change>) {
        (self.network, self.changes)
    }

    /// Writes down what happened.
    pub fn audit(&mut self, action: &'static str, target: impl Into<String>, detail: impl Into<String>) {
        self.changes.push(Change::Audit(AuditEntry {
            at: self.now,
            actor: self.actor.clone(),
            action,
            target: target.into(),
            detail: detail.into(),
        }));
    }

    /// Adds or replaces a user.
    pub fn put_user(&mut self, user: User) -> Arc<User> {
        let user = Arc::new(user);
        Arc::make_mut(&mut self.network.users).insert(user.id.clone(), user.clone());
        self.changes.push(Change::PutUser(user.clone()));
        user
    }

    /// Deletes a user and its auth keys.
    pub fn delete_user(&mut self, id: &str) {
        Arc::make_mut(&mut self.network.users).remove(id);
        Arc::make_mut(&mut self.network.keys).retain(|_, key| key.user.as_deref() != Some(id));
        self.changes.push(Change::DeleteUser(id.to_owned()));
    }

    /// Adds or replaces an auth key.
    pub fn put_key(&mut self, key: AuthKeyRecord) -> Arc<AuthKeyRecord> {
        let key = Arc::new(key);
        Arc::make_mut(&mut self.network.keys).insert(key.id.clone(), key.clone());
        self.changes.push(Change::PutAuthKey(key.clone()));
        key
    }

    /// Adds a node: takes the next id and number, and `build`s the node from them. `None` if no number is free.
    pub fn add_node(
        &mut self,
        build: impl FnOnce(NodeId, crate::ipam::HostPart) -> Node,
    ) -> Option<Arc<Node>> {
        let host = Arc::make_mut(&mut self.network.ipam).allocate()?;
        let id = NodeId(self.network.next_node);
        self.network.next_node += 1;
        let node = build(id, host);
        Arc::make_mut(&mut self.network.by_machine).insert(node.machine_key, id);
        if self.network.removed.contains(&node.machine_key) {
            Arc::make_mut(&mut self.network.removed).remove(&node.machine_key);
        }
        self.changes.push(Change::NextNode(self.network.next_node));
        Some(self.put_node(node))
    }

    /// Replaces a node.
    pub fn put_node(&mut self, node: Node) -> Arc<Node> {
        let node = self.put_node_in_memory(node);
        self.changes.push(Change::PutNode(node.clone()));
        node
    }

    /// Replaces a node without storing it: for what is true only while this process runs.
    pub fn put_node_in_memory(&mut self, node: Node) -> Arc<Node> {
        let node = Arc::new(node);
        Arc::make_mut(&mut self.network.nodes).insert(node.id, node.clone());
        node
    }

    /// Deletes a node. Its machine is told when it calls.
    pub fn delete_node(&mut self, id: NodeId) -> Option<Arc<Node>> {
        let node = Arc::make_mut(&mut self.network.nodes).remove(&id)?;
        Arc::make_mut(&mut self.network.by_machine).remove(&node.machine_key);
        Arc::make_mut(&mut self.network.removed).insert(node.machine_key);
        Arc::make_mut(&mut self.network.ipam).release(node.host);
        self.changes.push(Change::DeleteNode { node: node.clone(), at: self.now });
        Some(node)
    }

    /// Puts a policy in force.
    pub fn put_policy(&mut self, policy: PolicyInForce) -> Arc<PolicyInForce> {
        let policy = Arc::new(policy);
        self.network.policy = policy.clone();
        self.changes.push(Change::PutPolicy(policy.clone()));
        policy
    }
}
