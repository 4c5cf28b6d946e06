//! The model as messages.

use ghostwire_proto::v1;
use ipnet::IpNet;

use super::{AuthKeyRecord, Network, Node, PolicyInForce, User};

/// A list of prefixes as messages.
pub fn prefixes(nets: &[IpNet]) -> Vec<v1::Prefix> {
    nets.iter().map(|net| (*net).into()).collect()
}

impl Network {
    /// A node as its peers see it. `routes` are those of its approved routes that the viewer may use.
    pub fn peer(&self, node: &Node, routes: &[IpNet]) -> v1::Peer {
        let addresses: Vec<v1::Prefix> = node.host.addresses(&self.overlay).map(Into::into).to_vec();
        let mut allowed_prefixes = addresses.clone();
        allowed_prefixes.extend(prefixes(routes));
        v1::Peer {
            id: node.id.0,
            name: node.name.clone(),
            node_key: node.node_key.as_bytes().to_vec(),
            addresses,
            allowed_prefixes,
            endpoints: node.endpoints.iter().map(|endpoint| (*endpoint).into()).collect(),
            online: node.online,
            user: self.owner(node).unwrap_or_default().to_owned(),
            tags: node.tags.clone(),
            last_seen_unix_ms: node.last_seen,
        }
    }

    /// What changed about a node that [`Node::differs_in_patch`].
    pub fn peer_patch(node: &Node) -> v1::PeerPatch {
        v1::PeerPatch {
            id: node.id.0,
            online: Some(node.online),
            endpoints: Some(v1::EndpointList {
                endpoints: node.endpoints.iter().map(|endpoint| (*endpoint).into()).collect(),
            }),
            last_seen_unix_ms: node.last_seen,
        }
    }

    /// A node as it sees itself.
    pub fn self_node(&self, node: &Node) -> v1::SelfNode {
        v1::SelfNode {
            id: node.id.0,
            name: node.name.clone(),
            addresses: node.host.addresses(&self.overlay).map(Into::into).to_vec(),
            user: self.owner(node).unwrap_or_default().to_owned(),
            tags: node.tags.clone(),
            approved_routes: prefixes(&node.approved),
            key_expiry_unix_ms: 0,
            overlay: Some(self.overlay.into()),
        }
    }

    /// A node as administrators see it.
    pub fn admin_node(&self, node: &Node, filter_generation: u32) -> v1::Node {
        v1::Node {
            id: node.id.0,
            name: node.name.clone(),
            machine_key: node.machine_key.as_bytes().to_vec(),
            node_key: node.node_key.as_bytes().to_vec(),
            addresses: node.host.addresses(&self.overlay).map(Into::into).to_vec(),
            user: self.owner(node).unwrap_or_default().to_owned(),
            tags: node.tags.clone(),
            online: node.online,
            ephemeral: node.ephemeral,
            last_seen_unix_ms: node.last_seen,
            created_unix_ms: node.created,
            key_expiry_unix_ms: 0,
            endpoints: node.endpoints.iter().map(|endpoint| (*endpoint).into()).collect(),
            advertised_routes: prefixes(&node.advertised),
            approved_routes: prefixes(&node.approved),
            filter_generation,
            enforced_generation: node.enforced_generation,
            problems: node.problems.clone(),
            version: node.version.clone(),
            os: node.os.clone(),
        }
    }

    /// An auth key as administrators see it.
    pub fn admin_key(&self, key: &AuthKeyRecord) -> v1::AuthKey {
        let user = key.user.as_ref().and_then(|id| self.users.get(id));
        v1::AuthKey {
            id: key.id.clone(),
            user: user.map(|user| user.email.clone()).unwrap_or_default(),
            reusable: key.reusable,
            ephemeral: key.ephemeral,
            tags: key.tags.clone(),
            created_unix_ms: key.created,
            expires_unix_ms: key.expires.unwrap_or_default(),
            revoked_unix_ms: key.revoked.unwrap_or_default(),
            uses: key.uses,
            relay: key.relay,
        }
    }
}

impl From<&User> for v1::User {
    fn from(user: &User) -> Self {
        Self {
            id: user.id.clone(),
            email: user.email.clone(),
            name: user.name.clone(),
            role: user.role.clone(),
            created_unix_ms: user.created,
        }
    }
}

impl From<&PolicyInForce> for v1::PolicyVersion {
    fn from(policy: &PolicyInForce) -> Self {
        Self {
            version: policy.version,
            content: policy.text.clone(),
            created_unix_ms: policy.created,
            author: policy.author.clone(),
        }
    }
}
