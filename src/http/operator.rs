//! Hooks and accounts, as they stand.

use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::Server;
use super::extract::Json;
use super::problem::Problem;
use crate::control::{AccountShown, HookShown};

/// All hooks.
#[derive(Serialize, ToSchema)]
pub(super) struct Hooks {
    /// First the configured ones in their order, then the lanes of callbacks and those that are not configured any more.
    hooks: Vec<HookShown>,
}

/// All accounts.
#[derive(Serialize, ToSchema)]
pub(super) struct Accounts {
    /// First the configured ones in their order, then those for which watches wait all the same.
    accounts: Vec<AccountShown>,
}

/// How each hook stands, and what has not reached it.
#[utoipa::path(get, path = "/v1/hooks", tag = "operation",
    responses((status = 200, description = "All hooks", body = Hooks),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn hooks(State(server): State<Server>) -> Result<Json<Hooks>, Problem> {
    Ok(Json(Hooks { hooks: server.control().hooks_shown().await? }))
}

/// How each account stands, and how fast it is polled.
#[utoipa::path(get, path = "/v1/accounts", tag = "operation",
    responses((status = 200, description = "All accounts", body = Accounts),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn accounts(State(server): State<Server>) -> Result<Json<Accounts>, Problem> {
    Ok(Json(Accounts { accounts: server.control().accounts_shown().await? }))
}
