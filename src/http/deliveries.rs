//! Deliveries: looked through, and attempted once more.

use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::Server;
use super::extract::{Cursor, Json, Number, PageSize, Params, parsed};
use super::problem::Problem;
use crate::delivery::DeliveryState;
use crate::store::{DeliveryFilter, DeliveryRow, Retried};

/// Which deliveries.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Query {
    /// Only this state.
    #[serde(default, deserialize_with = "state")]
    #[param(value_type = DeliveryState, required = false)]
    state: Option<DeliveryState>,
    /// Only this hook's.
    hook: Option<String>,
    /// Rows on a page.
    #[serde(default)]
    #[param(value_type = u32, minimum = 1, maximum = 1000, default = 100, required = false)]
    limit: PageSize,
    /// The `next_cursor` of the page before.
    #[serde(default)]
    #[param(value_type = String, pattern = "^[0-7]?[0-9a-f]{1,15}$", required = false)]
    cursor: Cursor,
}

fn state<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<DeliveryState>, D::Error> {
    parsed(deserializer, DeliveryState::parse, "it must be `waiting`, `delivered`, `dead` or `held`")
}

/// A page of deliveries.
#[derive(Serialize, ToSchema)]
pub(super) struct DeliveryPage {
    /// Newest first.
    deliveries: Vec<DeliveryRow>,
    /// For the next page, if there may be one.
    next_cursor: Option<String>,
}

/// A delivery that is attempted once more.
#[derive(Serialize, ToSchema)]
pub(super) struct RetriedShown {
    /// Its number.
    delivery: i64,
    /// Whether it is due now, or held since its hook is disabled.
    result: RetryResult,
    /// Its hook.
    hook: String,
}

/// What became of a delivery.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum RetryResult {
    /// It is due now.
    Due,
    /// Its hook is disabled.
    Held,
}

/// Deliveries, newest first.
#[utoipa::path(get, path = "/v1/deliveries", tag = "deliveries", params(Query),
    responses((status = 200, description = "A page", body = DeliveryPage),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn list(
    State(server): State<Server>,
    Params(query): Params<Query>,
) -> Result<Json<DeliveryPage>, Problem> {
    let Query { state, hook, limit, cursor } = query;
    let filter = DeliveryFilter { state, hook, before: cursor.0, limit: Some(limit.0) };
    let deliveries = server.control().store.deliveries(filter).await?;
    let last = deliveries.last().map(|row| row.delivery.id);
    let next_cursor = Cursor::after(last, deliveries.len() >= limit.0 as usize);
    Ok(Json(DeliveryPage { deliveries, next_cursor }))
}

/// Attempts a delivery once more, by a fresh schedule and under the same `webhook-id`; also one that is held or was
/// delivered.
#[utoipa::path(post, path = "/v1/deliveries/{id}/retry", tag = "deliveries",
    params(("id" = i64, Path, description = "The delivery's number")),
    responses((status = 202, description = "It is due, or held", body = RetriedShown),
        (status = 404, description = "There is none", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "It is being attempted", body = Problem, content_type = "application/problem+json"),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn retry(
    State(server): State<Server>,
    Number(delivery): Number,
) -> Result<(StatusCode, Json<RetriedShown>), Problem> {
    let retried = server.control().retry(vec![delivery]).await?.pop();
    let (result, hook) = match retried.map(|(_, retried)| retried) {
        Some(Retried::Due { hook }) => (RetryResult::Due, hook),
        Some(Retried::Held { hook }) => (RetryResult::Held, hook),
        Some(Retried::UnderWay { .. }) => {
            let why = format!("delivery {delivery} is being attempted just now; see what comes of it");
            return Err(Problem::new(StatusCode::CONFLICT, why));
        }
        Some(Retried::Unknown) | None => {
            return Err(Problem::new(StatusCode::NOT_FOUND, format!("there is no delivery {delivery}")));
        }
    };
    Ok((StatusCode::ACCEPTED, Json(RetriedShown { delivery, result, hook })))
}
