//! Watches: looked through, waited for, polled now, cancelled.

use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Deserializer, Serialize};
use tokio::time::{Instant, timeout_at};
use utoipa::{IntoParams, ToSchema};

use super::Server;
use super::extract::{AssetId, Cursor, Json, PageSize, Params, parsed};
use super::feed::PAGE_BYTES;
use super::problem::Problem;
use crate::control::{Cancelled, Control, Shown, duration};
use crate::store::Filter;
use crate::watch::{State as WatchState, Watch};

/// The longest that an answer is held back.
const LONGEST_WAIT: Duration = Duration::from_secs(300);

/// Which watches.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Query {
    /// Only this state.
    #[serde(default, deserialize_with = "state")]
    #[param(value_type = WatchState, required = false)]
    state: Option<WatchState>,
    /// Only this word of the API's.
    status: Option<String>,
    /// Only this batch.
    batch: Option<String>,
    /// Only this account.
    account: Option<String>,
    /// Only assets with this in their id; letter case counts.
    search: Option<String>,
    /// Rows on a page, at most: large ones make it shorter.
    #[serde(default)]
    #[param(value_type = u32, minimum = 1, maximum = 1000, default = 100, required = false)]
    limit: PageSize,
    /// The `next_cursor` of the page before.
    #[serde(default)]
    #[param(value_type = String, pattern = "^[0-7]?[0-9a-f]{1,15}$", required = false)]
    cursor: Cursor,
}

fn state<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<WatchState>, D::Error> {
    parsed(deserializer, WatchState::parse, "it must be `waiting`, `settled`, `abandoned` or `cancelled`")
}

/// A page of watches.
#[derive(Serialize, ToSchema)]
pub(super) struct WatchPage {
    /// Newest first.
    watches: Vec<Watch>,
    /// For the next page, if there may be one.
    next_cursor: Option<String>,
}

/// Which of the watches of an asset.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Which {
    /// The newest one of this account, and not of all.
    account: Option<String>,
    /// The one of this number (`id`), and not the newest.
    watch: Option<i64>,
}

impl Which {
    fn unknown(&self, asset_id: &str) -> Problem {
        Problem::unknown_watch(asset_id, self.account.as_deref(), self.watch)
    }
}

/// Which of the watches of an asset, and whether to wait for it.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct WhichWhen {
    /// The newest one of this account, and not of all.
    account: Option<String>,
    /// The one of this number (`id`), and not the newest.
    watch: Option<i64>,
    /// Hold the answer back until the watch has ended, for so long at most (5 min): `30s`, `2m`.
    #[serde(default, deserialize_with = "wait")]
    #[param(value_type = String, required = false, pattern = "^[1-9][0-9]{0,2}(s|m)$", example = "1s")]
    wait: Option<Duration>,
}

fn wait<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    parsed(deserializer, |text| duration(text).ok(), "it must be a time like `30s`")
}

/// Watches, newest first.
#[utoipa::path(get, path = "/v1/watches", tag = "watches", params(Query),
    responses((status = 200, description = "A page", body = WatchPage),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn list(
    State(server): State<Server>,
    Params(query): Params<Query>,
) -> Result<Json<WatchPage>, Problem> {
    let Query { state, status, batch, account, search, limit, cursor } = query;
    let search = search.filter(|text| !text.is_empty());
    let filter =
        Filter { state, status, batch, account, search, before: cursor.0, limit: Some(limit.0), ..Filter::default() };
    let (watches, more) = server.control().page(filter, PAGE_BYTES).await?;
    let next_cursor = Cursor::after(watches.last().map(|watch| watch.id), more);
    Ok(Json(WatchPage { watches, next_cursor }))
}

/// The newest watch of an asset; with `wait` when it has ended, or after that long as it stands then.
#[utoipa::path(get, path = "/v1/watches/{asset_id}", tag = "watches",
    params(("asset_id" = String, Path, description = "The asset's id", min_length = 1, max_length = 512), WhichWhen),
    responses((status = 200, description = "The watch", body = Watch),
        (status = 404, description = "No such watch is known", body = Problem, content_type = "application/problem+json"),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn get(
    State(server): State<Server>,
    AssetId(id): AssetId,
    Params(query): Params<WhichWhen>,
) -> Result<Json<Watch>, Problem> {
    let which = Which { account: query.account, watch: query.watch };
    let watch = find(&server.control(), &id, &which).await?;
    match query.wait {
        Some(wait) if watch.state == WatchState::Waiting => {
            wait_for(&server, watch, wait.min(LONGEST_WAIT)).await.map(Json)
        }
        Some(_) | None => Ok(Json(watch)),
    }
}

async fn wait_for(server: &Server, watch: Watch, wait: Duration) -> Result<Watch, Problem> {
    let _permit = server.long_polls.try_acquire().map_err(|_| Problem::no_room("long polls"))?;
    let (deadline, waiting) = (Instant::now() + wait, server.feed.wait_for(watch.id));
    loop {
        let told = waiting.told.notified();
        tokio::pin!(told);
        // Registered before the look, so that nothing is missed between the two.
        told.as_mut().enable();
        let found = server.control().watch(watch.id).await?;
        let found = found.ok_or_else(|| Problem::unknown_watch(&watch.asset_id, None, Some(watch.id)))?;
        if found.state != WatchState::Waiting || Instant::now() >= deadline {
            return Ok(found);
        }
        tokio::select! {
            // Either way it is looked at once more.
            _ = timeout_at(deadline, told) => {}
            () = server.stopped() => return Ok(found),
        }
    }
}

/// A watch with everything that was told about it, and for each hook why it was or was not told.
#[utoipa::path(get, path = "/v1/watches/{asset_id}/history", tag = "watches",
    params(("asset_id" = String, Path, description = "The asset's id", min_length = 1, max_length = 512), Which),
    responses((status = 200, description = "The watch and its history", body = Shown),
        (status = 404, description = "No such watch is known", body = Problem, content_type = "application/problem+json"),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn history(
    State(server): State<Server>,
    AssetId(id): AssetId,
    Params(which): Params<Which>,
) -> Result<Json<Shown>, Problem> {
    let control = server.control();
    let watch = find(&control, &id, &which).await?;
    Ok(Json(control.show_watch(watch).await?))
}

/// Has a waiting watch polled now, as far as its account's pace allows.
#[utoipa::path(post, path = "/v1/watches/{asset_id}/poll", tag = "watches",
    params(("asset_id" = String, Path, description = "The asset's id", min_length = 1, max_length = 512), Which),
    responses((status = 202, description = "It is due now", body = Watch),
        (status = 404, description = "No such watch is known", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "It has ended", body = Problem, content_type = "application/problem+json"),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn poll(
    State(server): State<Server>,
    AssetId(id): AssetId,
    Params(which): Params<Which>,
) -> Result<(StatusCode, Json<Watch>), Problem> {
    let control = server.control();
    let watch = find(&control, &id, &which).await?;
    match control.poll_now(watch.id).await? {
        Some(watch) if watch.state == WatchState::Waiting => Ok((StatusCode::ACCEPTED, Json(watch))),
        Some(watch) => Err(ended(&watch)),
        None => Err(which.unknown(&id)),
    }
}

/// Stops following an asset; hooks that want to hear of it are told.
#[utoipa::path(delete, path = "/v1/watches/{asset_id}", tag = "watches",
    params(("asset_id" = String, Path, description = "The asset's id", min_length = 1, max_length = 512), Which),
    responses((status = 200, description = "It is not followed any more", body = Watch),
        (status = 404, description = "No such watch is known", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "It had ended before", body = Problem, content_type = "application/problem+json"),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn cancel(
    State(server): State<Server>,
    AssetId(id): AssetId,
    Params(which): Params<Which>,
) -> Result<Json<Watch>, Problem> {
    let control = server.control();
    let watch = find(&control, &id, &which).await?;
    match control.cancel_watch(watch).await? {
        Cancelled::Now(watch) => Ok(Json(*watch)),
        Cancelled::Ended(watch) => Err(ended(&watch)),
        Cancelled::Unknown => Err(which.unknown(&id)),
    }
}

fn ended(watch: &Watch) -> Problem {
    let Watch { asset_id, state, .. } = watch;
    let why = format!("{asset_id:?} is {state} already; POST /v1/watches with `again` watches it once more");
    Problem::new(StatusCode::CONFLICT, why)
}

async fn find(control: &Control, asset_id: &str, which: &Which) -> Result<Watch, Problem> {
    let found = match which.watch {
        Some(number) => control.watch(number).await?,
        None => control.newest(asset_id, which.account.as_deref()).await?,
    };
    let fits = |watch: &Watch| {
        watch.asset_id == asset_id && which.account.as_deref().is_none_or(|account| watch.account == account)
    };
    found.filter(fits).ok_or_else(|| which.unknown(asset_id))
}
