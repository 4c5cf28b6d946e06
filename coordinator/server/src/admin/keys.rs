//! Auth keys.

use ghostwire_proto::auth_key::AuthKey;
use ghostwire_proto::join_key::{self, JoinKey};
use ghostwire_proto::v1::{self, CreateAuthKeyRequest, CreateAuthKeyResponse, RevokeAuthKeyRequest};
use tonic::Status;

use super::{Admin, Refused, checked_tags, no_user, status};
use crate::model::AuthKeyRecord;
use crate::model::draft::Draft;

const DEFAULT_LIFETIME_SECONDS: i64 = 3_600;

impl Admin {
    pub(super) async fn do_create_key(
        &self,
        actor: String,
        request: CreateAuthKeyRequest,
    ) -> Result<CreateAuthKeyResponse, Status> {
        let tags = checked_tags(&request.tags)?;
        if request.relay && !(request.user.is_empty() && tags.is_empty() && !request.ephemeral) {
            let message = "a key for relays has no user and no tags, and is not ephemeral";
            return Err(Refused::Invalid(message.to_owned()).into());
        }
        if request.user.is_empty() && tags.is_empty() && !request.relay {
            let message = "an auth key needs a user whose nodes it makes, or tags; use --user or --tags";
            return Err(Refused::Invalid(message.to_owned()).into());
        }
        let lifetime_ms = match request.lifetime_seconds {
            0 => Some(DEFAULT_LIFETIME_SECONDS * 1_000),
            -1 => None,
            seconds if seconds > 0 => Some(seconds.saturating_mul(1_000)),
            _ => return Err(Refused::Invalid("the lifetime is negative".to_owned()).into()),
        };
        let auth_key = AuthKey::new(hex::encode(rand::random::<[u8; 6]>()), rand::random())
            .map_err(|error| Status::internal(error.to_string()))?;
        let (id, secret) = (auth_key.id().to_owned(), auth_key.secret_hash());
        let create = move |draft: &mut Draft| {
            let user = match request.user.as_str() {
                "" => None,
                email => {
                    let user = draft.network().user_by_email(email).ok_or_else(|| no_user(email))?;
                    Some(user.id.clone())
                }
            };
            let created = draft.now();
            let what = if request.relay { "for relays".to_owned() } else { tags.join(", ") };
            draft.audit("key.create", id.clone(), what);
            let key = draft.put_key(AuthKeyRecord {
                id,
                secret,
                user,
                tags,
                created,
                reusable: request.reusable,
                ephemeral: request.ephemeral,
                expires: lifetime_ms.map(|lifetime| created.saturating_add(lifetime)),
                revoked: None,
                uses: 0,
                relay: request.relay,
            });
            Ok::<_, Refused>(draft.network().admin_key(&key))
        };
        let key = self.handle.change(actor, create).await.map_err(status)?;
        let join_key = join_key::encode(&JoinKey {
            ca: self.facts.ca,
            auth_key,
            addresses: self.facts.advertised.clone(),
        });
        Ok(CreateAuthKeyResponse { key: Some(key), join_key })
    }

    pub(super) async fn do_revoke_key(
        &self,
        actor: String,
        request: RevokeAuthKeyRequest,
    ) -> Result<v1::AuthKey, Status> {
        let revoke = move |draft: &mut Draft| {
            let not_found = || Refused::NotFound {
                what: "auth key",
                name: request.id.clone(),
                hint: "`gwctl key list` shows all",
            };
            let key = draft.network().keys.get(&request.id).cloned().ok_or_else(not_found)?;
            let key = if key.revoked.is_some() {
                key
            } else {
                draft.audit("key.revoke", key.id.clone(), "");
                let revoked = Some(draft.now());
                draft.put_key(AuthKeyRecord { revoked, ..(*key).clone() })
            };
            Ok::<_, Refused>(draft.network().admin_key(&key))
        };
        self.handle.change(actor, revoke).await.map_err(status)
    }
}
