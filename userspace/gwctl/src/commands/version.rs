//! `gwctl version`

use ghostwire_proto::local::StatusRequest;
use ghostwire_proto::v1::ServerStatusRequest;
use serde_json::json;

use super::Context;
use crate::connect;
use crate::exit::Outcome;

pub(super) async fn version(context: &Context) -> Outcome {
    let own = env!("CARGO_PKG_VERSION");
    let daemon = match connect::daemon(&context.global.socket).await {
        Ok(mut daemon) => {
            daemon.status(StatusRequest {}).await.ok().map(|status| status.into_inner().version)
        }
        Err(_) => None,
    };
    let server = match connect::server(&context.global.server_socket).await {
        Ok(mut server) => {
            server.status(ServerStatusRequest {}).await.ok().map(|status| status.into_inner().version)
        }
        Err(_) => None,
    };
    let document = json!({ "gwctl": own, "daemon": daemon, "server": server });
    context.output.either(&document, || {
        let shown = |version: Option<String>| version.unwrap_or_else(|| "not reached".to_owned());
        format!(
            "gwctl              {own}\nghostwire-client   {}\nghostwire-server   {}",
            shown(daemon),
            shown(server)
        )
    })
}
