//! Nodes.

use ghostwire_proto::address::prefixes_from_wire;
use ghostwire_proto::v1::{self, DeleteNodeRequest, DeleteNodeResponse, UpdateNodeRequest};
use tonic::Status;

use super::{Admin, Refused, checked_tags, no_node, status};
use crate::model::draft::Draft;
use crate::names;
use crate::node_update::{approve_routes, check_routes};

impl Admin {
    pub(super) async fn do_update_node(
        &self,
        actor: String,
        request: UpdateNodeRequest,
    ) -> Result<v1::Node, Status> {
        let tags = request.tags.as_ref().map(|list| checked_tags(&list.tags)).transpose()?;
        let routes =
            request.approved_routes.as_ref().map(|list| prefixes_from_wire(&list.prefixes)).transpose();
        let routes = routes.map_err(|error| Refused::Invalid(error.to_string()))?;
        let update = move |draft: &mut Draft| {
            let network = draft.network();
            let node =
                network.node_by_name_or_id(&request.node).cloned().ok_or_else(|| no_node(&request.node))?;
            let mut changed = (*node).clone();
            if let Some(name) = request.name.filter(|name| *name != node.name) {
                if !names::is_label(&name) {
                    let message =
                        format!("{name:?} is not a name; use lower-case letters, digits and hyphens");
                    return Err(Refused::Invalid(message));
                }
                if network.name_taken(&name, Some(node.id)) {
                    return Err(Refused::Exists(format!("there is a node {name} already")));
                }
                draft.audit("node.rename", node.name.clone(), name.clone());
                changed.name = name;
                changed.renamed = true;
            }
            if let Some(tags) = tags {
                if tags.is_empty() && node.user.is_none() {
                    let message =
                        format!("{} belongs to no user: without tags nobody would own it", node.name);
                    return Err(Refused::Blocked(message));
                }
                draft.audit("node.tag", changed.name.clone(), tags.join(", "));
                changed.tags = tags;
            }
            if let Some(mut routes) = routes {
                routes.sort_unstable();
                routes.dedup();
                check_routes(&routes, draft.network())
                    .map_err(|error| Refused::Invalid(error.to_string()))?;
                let list: Vec<String> = routes.iter().map(ToString::to_string).collect();
                draft.audit("node.approve", changed.name.clone(), list.join(", "));
                changed.approved_by_admin = routes;
            }
            let id = node.id;
            if changed != *node {
                draft.put_node(changed);
                approve_routes(draft);
            }
            draft.network().nodes.get(&id).cloned().ok_or_else(|| no_node(&request.node))
        };
        let node = self.handle.change(actor, update).await.map_err(status)?;
        Ok(self.admin_node(&self.network(), &node))
    }

    pub(super) async fn do_delete_node(
        &self,
        actor: String,
        request: DeleteNodeRequest,
    ) -> Result<DeleteNodeResponse, Status> {
        let delete = move |draft: &mut Draft| {
            let network = draft.network();
            let node =
                network.node_by_name_or_id(&request.node).cloned().ok_or_else(|| no_node(&request.node))?;
            draft.delete_node(node.id);
            draft.audit("node.delete", node.name.clone(), format!("machine {}", node.machine_key));
            Ok::<_, Refused>(())
        };
        self.handle.change(actor, delete).await.map_err(status)?;
        Ok(DeleteNodeResponse {})
    }
}
