//! What nodes say about themselves, and which of their routes are in force.

use std::sync::Arc;

use ghostwire_proto::address::{AddressError, NodeEndpoint, prefixes_from_wire};
use ghostwire_proto::v1;
use ipnet::IpNet;
use thiserror::Error;

use crate::model::draft::Draft;
use crate::model::{Network, Node, NodeId};
use crate::names;

/// Most endpoints of a node.
pub const MAX_ENDPOINTS: usize = 32;
/// Most routes of a node.
pub const MAX_ROUTES: usize = 256;
/// Longest host name, as in DNS.
pub const MAX_HOSTNAME: usize = 253;

/// Most problems that a node can report, and most bytes of each.
pub const MAX_PROBLEMS: usize = 32;
/// See [`MAX_PROBLEMS`].
pub const MAX_PROBLEM_LENGTH: usize = 1024;

/// What a node says is wrong, as it may be shown to an administrator: not too much of it, and nothing that a
/// terminal would take for a command.
pub fn problems(mut reported: Vec<String>) -> Vec<String> {
    reported.truncate(MAX_PROBLEMS);
    for problem in &mut reported {
        problem.truncate(problem.floor_char_boundary(MAX_PROBLEM_LENGTH));
        *problem = problem.replace(char::is_control, " ");
    }
    reported
}

/// Why what a node says is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum UpdateError {
    /// A bad address.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// Too many of something.
    #[error("{got} {what}; a node can have {most}")]
    TooMany {
        /// Endpoints or routes.
        what: &'static str,
        /// How many there are.
        got: usize,
        /// How many there may be.
        most: usize,
    },
    /// A host name that is none.
    #[error("the host name is longer than {MAX_HOSTNAME} bytes")]
    Hostname,
    /// A route into the mesh itself.
    #[error("{0} overlaps the mesh's own addresses and cannot be routed by a node")]
    OwnRange(IpNet),
}

/// A checked [`v1::NodeUpdate`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeUpdate {
    endpoints: Vec<NodeEndpoint>,
    advertised: Vec<IpNet>,
    hostname: String,
}

impl NodeUpdate {
    /// Checks what came from the network.
    pub fn parse(update: &v1::NodeUpdate, network: &Network) -> Result<Self, UpdateError> {
        let limit = |what, got, most| match got {
            got if got > most => Err(UpdateError::TooMany { what, got, most }),
            _ => Ok(()),
        };
        limit("endpoints", update.endpoints.len(), MAX_ENDPOINTS)?;
        limit("routes", update.advertised_routes.len(), MAX_ROUTES)?;
        if update.hostname.len() > MAX_HOSTNAME {
            return Err(UpdateError::Hostname);
        }
        let mut endpoints: Vec<NodeEndpoint> =
            update.endpoints.iter().map(NodeEndpoint::try_from).collect::<Result<_, _>>()?;
        // The order is the node's preference; only exact repetitions go.
        let mut seen = std::collections::HashSet::new();
        endpoints.retain(|endpoint| seen.insert(*endpoint));
        let mut advertised = prefixes_from_wire(&update.advertised_routes)?;
        advertised.sort_unstable();
        advertised.dedup();
        check_routes(&advertised, network)?;
        Ok(Self { endpoints, advertised, hostname: update.hostname.clone() })
    }

    /// Makes it the node's state. True if anything changed.
    pub fn apply(self, draft: &mut Draft, id: NodeId) -> bool {
        let Some(node) = draft.network().nodes.get(&id).cloned() else { return false };
        let mut changed = (*node).clone();
        changed.endpoints = self.endpoints;
        changed.advertised = self.advertised;
        if !self.hostname.is_empty() && self.hostname != node.hostname {
            let label = names::sanitise(&self.hostname);
            if !node.renamed && label != names::sanitise(&node.hostname) {
                changed.name = draft.network().free_name(&label, Some(id));
            }
            changed.hostname = self.hostname;
        }
        if changed == *node {
            return false;
        }
        let routes_changed = changed.advertised != node.advertised;
        if routes_changed {
            let routes: Vec<String> = changed.advertised.iter().map(ToString::to_string).collect();
            draft.audit("node.advertise", changed.name.clone(), routes.join(", "));
        }
        draft.put_node(changed);
        if routes_changed {
            approve_routes(draft);
        }
        true
    }
}

/// Whether a node may be asked to route these prefixes.
pub fn check_routes(routes: &[IpNet], network: &Network) -> Result<(), UpdateError> {
    let own = [IpNet::V4(network.overlay.v4_nodes), IpNet::V6(network.overlay.v6)];
    let overlaps = |route: &IpNet| {
        route.prefix_len() != 0 && own.iter().any(|own| own.contains(route) || route.contains(own))
    };
    routes.iter().find(|route| overlaps(route)).map_or(Ok(()), |route| Err(UpdateError::OwnRange(*route)))
}

/// Puts in force what administrators and the policy's `autoApprovers` approve of what nodes offer.
pub fn approve_routes(draft: &mut Draft) {
    let network = draft.network();
    if network.nodes.values().all(|node| node.advertised.is_empty() && node.approved.is_empty()) {
        return;
    }
    // Fails only if two nodes have one address, which the address pool rules out; then nothing is approved anew.
    let Ok(resolved) = network.policy.policy.resolve(&network.topology()) else { return };
    let nodes: Vec<Arc<Node>> = network.nodes.values().cloned().collect();
    for (index, node) in nodes.iter().enumerate() {
        let in_force = |route: &&IpNet| {
            node.approved_by_admin.contains(route) || resolved.approves_route(index, **route)
        };
        let approved: Vec<IpNet> = node.advertised.iter().filter(in_force).copied().collect();
        if approved != node.approved {
            let routes: Vec<String> = approved.iter().map(ToString::to_string).collect();
            draft.audit("node.routes", node.name.clone(), routes.join(", "));
            draft.put_node(Node { approved, ..(**node).clone() });
        }
    }
}
