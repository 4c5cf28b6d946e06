//! The server's network as the policy crate wants it.

use ghostwire_policy::Topology;
use ghostwire_policy::topology::{Node, Overlay, User};
use ghostwire_proto::address::{AddressError, OverlayRanges, addresses_from_wire, prefixes_from_wire};
use ghostwire_proto::v1;

/// Users, nodes and ranges.
pub fn topology(
    nodes: &[v1::Node],
    users: &[v1::User],
    overlay: Option<&v1::Overlay>,
) -> Result<Topology, AddressError> {
    let nodes = nodes.iter().map(|node| {
        Ok(Node {
            name: node.name.clone(),
            user: (!node.user.is_empty()).then(|| node.user.clone()),
            tags: node.tags.clone(),
            addresses: addresses_from_wire(&node.addresses)?,
            advertised_routes: prefixes_from_wire(&node.advertised_routes)?,
            approved_routes: prefixes_from_wire(&node.approved_routes)?,
        })
    });
    let nodes: Result<Vec<Node>, AddressError> = nodes.collect();
    let mut ranges = Overlay::default();
    if let Some(overlay) = overlay {
        let told = OverlayRanges::try_from(overlay)?;
        ranges.v4 = told.v4;
        ranges.v6 = told.v6;
    }
    let users = users.iter().map(|user| User { login: user.email.clone(), groups: Vec::new() });
    Ok(Topology { users: users.collect(), nodes: nodes?, overlay: ranges })
}
