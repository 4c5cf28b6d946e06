//! A topology as JSON: what `gwctl policy` reads, and what conformance cases contain.
//!
//! ```json
//! {
//!   "users": ["alice@example.com", {"login": "bob@example.com", "groups": ["eng"]}],
//!   "nodes": {
//!     "web": {"tags": ["tag:server"], "ipv4": "100.64.0.2", "ipv6": "fd00::2"},
//!     "laptop": {"user": "alice@example.com", "ipv4": "100.64.0.3",
//!                "routable_ips": ["10.0.0.0/8"], "approved_routes": ["10.0.0.0/8"]}
//!   },
//!   "overlay": {"v4": "100.64.0.0/10", "v6": "fd00::/48"}
//! }
//! ```

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::Deserialize;

use super::{Node, Overlay, Topology, User};

/// Why a topology could not be read.
#[derive(Debug, thiserror::Error)]
pub enum TopologyError {
    /// Not JSON, or not of the expected shape.
    #[error("the topology is not valid: {0}")]
    Json(#[from] serde_json::Error),
    /// Two nodes have the same name.
    #[error("the topology has two nodes named \"{0}\"; names are unique")]
    DuplicateName(String),
}

/// The topology as it is written. Other fields beside it are someone else's: a conformance case has more.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct TopologyText {
    #[serde(default)]
    users: Vec<UserText>,
    nodes: NodesText,
    #[serde(default)]
    overlay: Option<OverlayText>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum UserText {
    Login(String),
    User {
        login: String,
        #[serde(default)]
        groups: Vec<String>,
    },
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum NodesText {
    ByName(BTreeMap<String, NodeText>),
    List(Vec<NodeText>),
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NodeText {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    user: Option<String>,
    #[serde(default)]
    tags: Vec<String>,
    #[serde(default)]
    ipv4: Option<Ipv4Addr>,
    #[serde(default)]
    ipv6: Option<Ipv6Addr>,
    #[serde(default)]
    routable_ips: Vec<IpNet>,
    #[serde(default)]
    approved_routes: Vec<IpNet>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct OverlayText {
    #[serde(default)]
    v4: Option<Ipv4Net>,
    #[serde(default)]
    v4_excluded: Option<Vec<Ipv4Net>>,
    #[serde(default)]
    v6: Option<Ipv6Net>,
}

/// Reads a topology.
pub fn from_json(text: &str) -> Result<Topology, TopologyError> {
    serde_json::from_str::<TopologyText>(text)?.into_topology()
}

impl TopologyText {
    pub(crate) fn into_topology(self) -> Result<Topology, TopologyError> {
        let users = self.users.into_iter().map(|user| match user {
            UserText::Login(login) => User { login, groups: Vec::new() },
            UserText::User { login, groups } => User { login, groups },
        });
        let mut seen = std::collections::HashSet::new();
        let nodes = match self.nodes {
            NodesText::ByName(nodes) => {
                nodes.into_iter().map(|(name, node)| node.into_node(Some(name))).collect::<Vec<_>>()
            }
            NodesText::List(nodes) => nodes.into_iter().map(|node| node.into_node(None)).collect(),
        };
        if let Some(double) = nodes.iter().find(|node| !seen.insert(node.name.as_str())) {
            return Err(TopologyError::DuplicateName(double.name.clone()));
        }
        let mut overlay = Overlay::default();
        if let Some(text) = self.overlay {
            overlay.v4 = text.v4.unwrap_or(overlay.v4);
            overlay.v4_excluded = text.v4_excluded.unwrap_or(overlay.v4_excluded);
            overlay.v6 = text.v6.unwrap_or(overlay.v6);
        }
        Ok(Topology { users: users.collect(), nodes, overlay })
    }
}

impl NodeText {
    fn into_node(self, key: Option<String>) -> Node {
        let addresses = self.ipv4.map(Into::into).into_iter().chain(self.ipv6.map(Into::into));
        Node {
            name: key.or(self.name).unwrap_or_default(),
            user: self.user,
            tags: self.tags,
            addresses: addresses.collect(),
            advertised_routes: self.routable_ips,
            approved_routes: self.approved_routes,
        }
    }
}
