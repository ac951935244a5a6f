//! Watches: added, looked through, waited for, polled now, cancelled.

use std::borrow::Cow;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;
use tokio::time::{Instant, timeout_at};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{AllOfBuilder, AnyOfBuilder, ArrayBuilder, ObjectBuilder, OneOfBuilder, Schema, Type};
use utoipa::{IntoParams, PartialSchema, ToSchema};

use super::Server;
use super::extract::{AssetId, Cursor, Json, PageSize, Params, parsed};
use super::problem::Problem;
use crate::config::DEFAULT_ACCOUNT;
use crate::control::{
    AddOptions, AddOutcome, AddResult, Cancelled, Control, Shown, check_account, check_batch, check_callback_url,
    check_metadata, duration,
};
use crate::store::Filter;
use crate::watch::{State as WatchState, Watch};

/// So many ids may come in one request.
const MOST_IDS: usize = 10_000;
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
    /// Rows on a page.
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

/// What to watch, and how.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewWatchesFields, examples(json!({"asset_id": "ast_1"}), json!({"asset_ids": ["ast_1", "ast_2"], "batch": "tuesday"})))]
pub(super) struct NewWatches {
    /// One asset, whose id has at most 512 bytes.
    #[schema(min_length = 1, max_length = 512, pattern = r"^[^\x00-\x1f\x7f-\x9f\ufffd]+$")]
    asset_id: Option<String>,
    /// Several: what is wrong with one does not keep the others from being added.
    #[schema(min_items = 1, max_items = 10_000)]
    asset_ids: Option<Vec<String>>,
    /// The account to poll with; `default` if there is none.
    #[schema(pattern = "^[a-z0-9_-]{1,64}$")]
    account: Option<String>,
    /// How long each is followed at most, in days, hours, minutes and seconds: `90s`, `2h 30m`; as configured if there is none.
    #[schema(pattern = r"^([1-9][0-9]{0,2}d|[1-9][0-9]{0,3}[hms])( ([1-9][0-9]{0,2}d|[1-9][0-9]{0,3}[hms])){0,2}$")]
    patience: Option<String>,
    /// Who is told besides the hooks: an http or https URL.
    #[schema(
        max_length = 2048,
        pattern = r"^https?://(([A-Za-z0-9-]+\.)*[A-Za-z][A-Za-z0-9-]*|((25[0-5]|(2[0-4]|1[0-9]|[1-9])?[0-9])\.){3}(25[0-5]|(2[0-4]|1[0-9]|[1-9])?[0-9])|\[([0-9a-f]{1,4}:){7}[0-9a-f]{1,4}\])(:[0-9]{1,4})?(/[!-~]*)?$"
    )]
    callback_url: Option<String>,
    /// Any JSON of at most 16 KiB; handed on with every event.
    #[schema(value_type = serde_json::Value, required = false)]
    metadata: Option<Box<RawValue>>,
    /// The batch that they belong to.
    #[schema(min_length = 1, max_length = 128, pattern = r"^[^\x00-\x1f\x7f-\x9f]+$")]
    batch: Option<String>,
    /// Close the batch with these, if none of them is bad.
    #[serde(default)]
    close: bool,
    /// Watch an asset that has settled once more.
    #[serde(default)]
    again: bool,
}

/// The description of [`NewWatches`], with what goes with what: either `asset_id` or `asset_ids`, and no `close` without a
/// `batch`.
pub(super) struct NewWatchesBody;

impl PartialSchema for NewWatchesBody {
    fn schema() -> RefOr<Schema> {
        let text = || ObjectBuilder::new().schema_type(Type::String);
        let with = |name: &str, value: RefOr<Schema>| ObjectBuilder::new().property(name, value).required(name).build();
        let ids = with("asset_ids", ArrayBuilder::new().items(text()).build().into());
        let not_closed = ObjectBuilder::new().schema_type(Type::Boolean).enum_values(Some([false]));
        AllOfBuilder::new()
            .item(NewWatches::schema())
            .item(OneOfBuilder::new().item(with("asset_id", text().into())).item(ids))
            .item(
                AnyOfBuilder::new()
                    .item(with("batch", text().into()))
                    .item(ObjectBuilder::new().property("close", not_closed).build()),
            )
            .into()
    }
}

impl ToSchema for NewWatchesBody {
    fn name() -> Cow<'static, str> {
        "NewWatches".into()
    }
}

/// What became of each id.
#[derive(Serialize, ToSchema)]
pub(super) struct Added {
    /// In the order of the ids.
    results: Vec<AddResult>,
    /// Whether the batch is closed now; null if that was not asked for.
    closed: Option<bool>,
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
    let watches = server.control().list(filter).await?;
    let next_cursor = Cursor::after(watches.last().map(|watch| watch.id), watches.len(), limit);
    Ok(Json(WatchPage { watches, next_cursor }))
}

/// Starts to watch an asset, or several.
///
/// It is idempotent: what is being watched, or has settled unless `again`, is reported and not watched twice.
#[utoipa::path(post, path = "/v1/watches", tag = "watches", request_body = NewWatchesBody,
    responses((status = 200, description = "One that was known already, or what became of each of several", body = AddedBody),
        (status = 201, description = "It is watched now", body = AddResult,
            headers(("location" = String, description = "Where it is"))),
        (status = 409, description = "It is being watched with other options, which are not changed", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "It is refused", body = Problem, content_type = "application/problem+json"),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn add(State(server): State<Server>, Json(new): Json<NewWatches>) -> Result<Response, Problem> {
    let control = server.control();
    let options = options(&new)?;
    let refuse = |why: &str| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, why);
    if new.close && options.batch.is_none() {
        return Err(refuse("`close` closes a batch: name it in `batch`"));
    }
    match (new.asset_id, new.asset_ids) {
        (Some(id), None) => add_one(&control, id, &options, new.close).await,
        (None, Some(ids)) if ids.is_empty() || ids.len() > MOST_IDS => {
            Err(refuse(&format!("`asset_ids` has 1 to {MOST_IDS} ids, and this has {}", ids.len())))
        }
        (None, Some(ids)) => {
            let results = control.add(ids, &options).await?;
            let good = results.iter().all(|result| result.error.is_none());
            let closed = close(&control, &options, new.close, good).await?;
            Ok(Json(Added { results, closed }).into_response())
        }
        (Some(_), Some(_)) | (None, None) => Err(refuse("give either `asset_id` or `asset_ids`")),
    }
}

/// What a 200 of `add` has.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "it stands for either in the description")]
pub(super) enum AddedBody {
    /// Of `asset_id`.
    One(AddResult),
    /// Of `asset_ids`.
    Several(Added),
}

async fn add_one(control: &Control, id: String, options: &AddOptions, closes: bool) -> Result<Response, Problem> {
    let Some(result) = control.add(vec![id], options).await?.pop() else {
        return Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "nothing became of it"));
    };
    let problem = |status| Problem::new(status, result.error.clone().unwrap_or_default());
    let status = match result.result {
        AddOutcome::Added => StatusCode::CREATED,
        AddOutcome::Watching | AddOutcome::Settled => StatusCode::OK,
        AddOutcome::Conflict => return Err(problem(StatusCode::CONFLICT)),
        AddOutcome::Refused => return Err(problem(StatusCode::UNPROCESSABLE_ENTITY)),
    };
    close(control, options, closes, true).await?;
    let place =
        format!("/v1/watches/{}?account={}", utf8_percent_encode(&result.asset_id, NON_ALPHANUMERIC), options.account);
    let mut response = (status, Json(result)).into_response();
    if status == StatusCode::CREATED
        && let Ok(place) = HeaderValue::from_str(&place)
    {
        response.headers_mut().insert(header::LOCATION, place);
    }
    Ok(response)
}

/// A batch is closed once and for all, so not while something was wrong with one of its ids.
async fn close(control: &Control, options: &AddOptions, closes: bool, good: bool) -> Result<Option<bool>, Problem> {
    let Some(batch) = options.batch.as_deref().filter(|_| closes) else { return Ok(None) };
    Ok(Some(good && control.close_batch(batch).await?.is_some()))
}

fn options(new: &NewWatches) -> Result<AddOptions, Problem> {
    let refuse = |name: &str, why: String| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, format!("`{name}`: {why}"));
    let account = new.account.clone().unwrap_or_else(|| DEFAULT_ACCOUNT.into());
    let metadata = new.metadata.as_ref().map(|json| json.get().to_owned());
    check_account(&account).map_err(|why| refuse("account", why))?;
    new.batch.as_deref().map_or(Ok(()), check_batch).map_err(|why| refuse("batch", why))?;
    new.callback_url.as_deref().map_or(Ok(()), check_callback_url).map_err(|why| refuse("callback_url", why))?;
    metadata.as_deref().map_or(Ok(()), check_metadata).map_err(|why| refuse("metadata", why))?;
    let patience = new.patience.as_deref().map(duration).transpose().map_err(|why| refuse("patience", why))?;
    let (batch, callback_url) = (new.batch.clone(), new.callback_url.clone());
    Ok(AddOptions { account, patience, metadata, batch, callback_url, again: new.again })
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
