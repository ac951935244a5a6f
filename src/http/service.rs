//! For those who look after the service: whether it lives, and what it can be asked.

use std::sync::Arc;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};

use super::Server;
use super::problem::Problem;

/// Whether the process answers at all; says nothing about the database or the API.
#[utoipa::path(get, path = "/healthz", tag = "operation", security(()),
    responses((status = 200, description = "It does", body = String, content_type = "text/plain"),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn healthz() -> &'static str {
    "ok\n"
}

/// Whether the database can be read: then what is asked for can be answered.
#[utoipa::path(get, path = "/readyz", tag = "operation", security(()),
    responses((status = 200, description = "It can", body = String, content_type = "text/plain"),
        (status = 503, description = "It cannot", body = Problem, content_type = "application/problem+json"),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn readyz(State(server): State<Server>) -> Result<&'static str, Problem> {
    server.control().store.version().await?;
    Ok("ready\n")
}

/// What is measured, in Prometheus's text format 0.0.4.
#[utoipa::path(get, path = "/metrics", tag = "operation",
    responses((status = 200, description = "All instruments", body = String, content_type = "text/plain"),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn metrics(State(server): State<Server>) -> Response {
    let text = Arc::clone(&server.face.borrow().metrics);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text()).into_response()
}

/// This description.
#[utoipa::path(get, path = "/openapi.json", tag = "operation", security(()),
    responses((status = 200, description = "OpenAPI 3.1", body = serde_json::Value),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn document(State(server): State<Server>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], server.document.to_string()).into_response()
}
