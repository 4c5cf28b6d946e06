//! HTTP for people and for monitoring, on the port that nodes use.

use axum::Router;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::get;

use crate::writer::Handle;

/// The routes beside gRPC's.
pub fn routes(handle: Handle) -> Router {
    Router::new().route("/", get(root)).route("/healthz", get(move || healthz(handle.clone())))
}

async fn root() -> impl IntoResponse {
    concat!(
        "GhostWire coordination server ",
        env!("CARGO_PKG_VERSION"),
        "\n\n\
        Machines join this mesh with `gwctl up JOIN_KEY`.\n\
        Make a join key on the server with `gwctl key create`.\n"
    )
}

/// 200 while changes can be made, 503 with the reasons while they cannot.
async fn healthz(handle: Handle) -> (StatusCode, String) {
    let problems = handle.problems();
    if problems.is_empty() {
        (StatusCode::OK, "ok\n".to_owned())
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, problems.join("\n") + "\n")
    }
}
