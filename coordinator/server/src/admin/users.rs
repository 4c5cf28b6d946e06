//! Users.

use ghostwire_proto::v1::{self, CreateUserRequest, DeleteUserRequest, DeleteUserResponse};
use tonic::Status;

use super::{Admin, Refused, no_user, status};
use crate::model::User;

const ROLES: [&str; 2] = ["user", "admin"];
const MAX_LENGTH: usize = 254;

impl Admin {
    pub(super) async fn do_create_user(
        &self,
        actor: String,
        request: CreateUserRequest,
    ) -> Result<v1::User, Status> {
        let email = request.email.trim().to_owned();
        let well_formed = email.len() <= MAX_LENGTH
            && email.split_once('@').is_some_and(|(name, domain)| !name.is_empty() && !domain.contains('@'))
            && !email.contains(|c: char| c.is_whitespace() || c.is_control() || matches!(c, ':' | '*' | ','));
        if !well_formed {
            let message = format!("{email:?} is not a login; logins look like alice@example.com");
            return Err(Refused::Invalid(message).into());
        }
        let role = if request.role.is_empty() { "user".to_owned() } else { request.role };
        if !ROLES.contains(&role.as_str()) {
            return Err(Refused::Invalid(format!("{role:?} is not a role; roles are user and admin")).into());
        }
        if request.name.len() > MAX_LENGTH {
            return Err(Refused::Invalid("the name is too long".to_owned()).into());
        }
        let name = match request.name.trim() {
            "" => email.split('@').next().unwrap_or_default().to_owned(),
            name => name.to_owned(),
        };
        let id = hex::encode(rand::random::<[u8; 8]>());
        let create = move |draft: &mut crate::model::draft::Draft| {
            if draft.network().user_by_email(&email).is_some() {
                return Err(Refused::Exists(format!("there is a user {email} already")));
            }
            draft.audit("user.create", email.clone(), role.clone());
            let created = draft.now();
            Ok(draft.put_user(User { id, email, name, role, created }))
        };
        let user = self.handle.change(actor, create).await.map_err(status)?;
        Ok((&*user).into())
    }

    pub(super) async fn do_delete_user(
        &self,
        actor: String,
        request: DeleteUserRequest,
    ) -> Result<DeleteUserResponse, Status> {
        let delete = move |draft: &mut crate::model::draft::Draft| {
            let network = draft.network();
            let user =
                network.user_by_email(&request.email).cloned().ok_or_else(|| no_user(&request.email))?;
            let owned: Vec<&str> = network
                .nodes
                .values()
                .filter(|node| node.tags.is_empty() && node.user.as_ref() == Some(&user.id))
                .map(|node| node.name.as_str())
                .collect();
            if !owned.is_empty() {
                let (email, owned) = (&user.email, owned.join(", "));
                return Err(Refused::Blocked(format!(
                    "{email} owns nodes: {owned}; delete or tag them first"
                )));
            }
            draft.delete_user(&user.id);
            draft.audit("user.delete", user.email.clone(), "");
            Ok(())
        };
        self.handle.change(actor, delete).await.map_err(status)?;
        Ok(DeleteUserResponse {})
    }
}
