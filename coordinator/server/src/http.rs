//! HTTP for people and for monitoring, on the port that nodes use.

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use crate::writer::Handle;

/// gRPC's routes and those for people.
pub fn routes(handle: Handle, grpc: Router) -> Router {
    grpc.route("/", get(root))
        .route("/healthz", get(move || std::future::ready(healthz(&handle))))
        .fallback(nothing)
}

/// Whether a program asks that wants to be answered in gRPC.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

/// What is not there, in the language of who asks.
async fn nothing(headers: HeaderMap) -> Response {
    if is_grpc(&headers) {
        tonic::Status::unimplemented("this coordinator has no such method; it may be older than you")
            .into_http()
    } else {
        (StatusCode::NOT_FOUND, "there is nothing here\n").into_response()
    }
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
fn healthz(handle: &Handle) -> (StatusCode, String) {
    let problems = handle.problems();
    if problems.is_empty() {
        (StatusCode::OK, "ok\n".to_owned())
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, problems.join("\n") + "\n")
    }
}
