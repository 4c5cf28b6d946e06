//! `gwctl key`

use ghostwire_proto::v1::{CreateAuthKeyRequest, ListAuthKeysRequest, RevokeAuthKeyRequest};
use serde_json::json;

use super::Context;
use crate::cli::KeyCommand;
use crate::connect;
use crate::exit::{Failure, Outcome};
use crate::output::Style;
use crate::output::json::Key;
use crate::output::table::{Table, number, text, whole};
use crate::output::units::{now_ms, until};

pub(super) async fn run(context: &Context, command: KeyCommand) -> Outcome {
    let mut server = connect::server(&context.global.server_socket).await?;
    match command {
        KeyCommand::Create { user, tags, reusable, ephemeral, relay, expires } => {
            let request =
                CreateAuthKeyRequest { user, reusable, ephemeral, tags, lifetime_seconds: expires, relay };
            let answer = server.create_auth_key(request).await;
            let created =
                answer.map_err(|status| Failure::of_status("create a join key", &status))?.into_inner();
            let key = Key::from(&created.key.unwrap_or_default());
            let document = json!({ "join_key": created.join_key, "key": key });
            context.output.either(&document, || {
                let what = if key.reusable { "any number of machines" } else { "one machine" };
                let until = until(key.expires_unix_ms, now_ms());
                let until = if until == "never" {
                    "it never expires".to_owned()
                } else {
                    format!("it expires {until}")
                };
                if key.relay {
                    return format!(
                        "Join key {} for relays, shown only now; {until}. Put it into a file on the relay's machine:\n\n  \
                         {}\n\nand start it with ghostwire-relay run --join-key-file FILE",
                        key.id, created.join_key
                    );
                }
                format!(
                    "Join key {} for {what}, shown only now; {until}. On the machine:\n\n  gwctl up {}",
                    key.id, created.join_key
                )
            })
        }
        KeyCommand::List => {
            let answer = server.list_auth_keys(ListAuthKeysRequest {}).await;
            let keys =
                answer.map_err(|status| Failure::of_status("list the keys", &status))?.into_inner().keys;
            let keys: Vec<Key> = keys.iter().map(Key::from).collect();
            context.output.either(&json!({ "keys": keys }), || list(context, &keys))
        }
        KeyCommand::Revoke { id } => {
            let answer = server.revoke_auth_key(RevokeAuthKeyRequest { id: id.clone() }).await;
            let key = answer
                .map_err(|status| Failure::of_status(&format!("revoke key {id}"), &status))?
                .into_inner();
            context.output.either(&Key::from(&key), || {
                format!("Key {id} admits nobody any more. Machines that joined with it stay: see `gwctl node list`.")
            })
        }
    }
}

fn list(context: &Context, keys: &[Key]) -> String {
    let columns = [whole("ID"), text("FOR"), text("KIND"), number("USES"), text("EXPIRES"), whole("STATE")];
    let mut table = Table::new(&context.output, &columns);
    let now = now_ms();
    for key in keys {
        let (state, style) = match () {
            () if key.revoked_unix_ms != 0 => ("revoked", Style::Dim),
            () if key.expires_unix_ms != 0 && key.expires_unix_ms <= now => ("expired", Style::Dim),
            () if !key.reusable && !key.relay && key.uses > 0 => ("used", Style::Dim),
            () => ("valid", Style::Good),
        };
        let mut kind = vec![match (key.relay, key.reusable) {
            (true, _) => "for relays",
            (false, true) => "reusable",
            (false, false) => "single use",
        }];
        if key.ephemeral {
            kind.push("ephemeral");
        }
        let owner = if key.tags.is_empty() { key.user.clone() } else { key.tags.join(", ") };
        table.styled([
            (key.id.clone(), None),
            (owner, None),
            (kind.join(", "), None),
            (key.uses.to_string(), None),
            (until(key.expires_unix_ms, now), None),
            (state.to_owned(), Some(style)),
        ]);
    }
    table.render("No keys: `gwctl key create --user LOGIN` makes one.")
}
