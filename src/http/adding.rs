//! Watches, added.

use std::borrow::Cow;

use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Deserialize, Serialize, Serializer, ser::Error};
use serde_json::value::RawValue;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{AllOfBuilder, AnyOfBuilder, ArrayBuilder, ObjectBuilder, OneOfBuilder, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

use super::Server;
use super::extract::Json;
use super::problem::Problem;
use crate::config::DEFAULT_ACCOUNT;
use crate::control::{
    AddOptions, AddOutcome, AddResult, Control, check_account, check_batch, check_callback_url, check_metadata,
    duration,
};
use crate::watch::Watch;

/// So many ids may come in one request.
const MOST_IDS: usize = 10_000;
/// So many are added at once: with the longest metadata, some ten megabytes.
const ADDED_AT_ONCE: usize = 500;
/// What a request gives for all of its ids.
const OPTIONS: [&str; 2] = ["metadata", "callback_url"];

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

/// What became of `asset_id`.
#[derive(Serialize, ToSchema)]
pub(super) struct AddedOne {
    #[serde(flatten)]
    result: AddResult,
    /// Whether the batch is closed now; null if that was not asked for.
    closed: Option<bool>,
}

/// What became of one of `asset_ids`.
#[derive(Serialize, ToSchema)]
pub(super) struct OneOfSeveral {
    /// The id as it was given.
    asset_id: String,
    /// In one word.
    result: AddOutcome,
    /// Its newest watch, where there is one, without `metadata` and `callback_url`: `GET /v1/watches/{asset_id}` has them.
    #[serde(serialize_with = "without_options")]
    #[schema(value_type = Option<Watch>)]
    watch: Option<Box<Watch>>,
    /// Why it was not added.
    error: Option<String>,
}

impl From<AddResult> for OneOfSeveral {
    fn from(result: AddResult) -> Self {
        let AddResult { asset_id, result, watch, error } = result;
        let watch = watch.map(|watch| Box::new(Watch { metadata: None, callback_url: None, ..*watch }));
        Self { asset_id, result, watch, error }
    }
}

/// The same long text ten thousand times would be most of the answer. Left out, and not null: null means that there is none.
fn without_options<S: Serializer>(watch: &Option<Box<Watch>>, serializer: S) -> Result<S::Ok, S::Error> {
    let mut value = serde_json::to_value(watch).map_err(S::Error::custom)?;
    if let Some(columns) = value.as_object_mut() {
        columns.retain(|name, _| !OPTIONS.contains(&name.as_str()));
    }
    value.serialize(serializer)
}

/// What became of each of `asset_ids`.
#[derive(Serialize, ToSchema)]
pub(super) struct AddedSeveral {
    /// In the order of the ids.
    results: Vec<OneOfSeveral>,
    /// Whether the batch is closed now; null if that was not asked for.
    closed: Option<bool>,
}

/// What a 200 of `add` has.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "it stands for either in the description")]
pub(super) enum Added {
    /// Of `asset_id`.
    One(AddedOne),
    /// Of `asset_ids`.
    Several(AddedSeveral),
}

/// Starts to watch an asset, or several.
///
/// It is idempotent: what is being watched, or has settled unless `again`, is reported and not watched twice.
#[utoipa::path(post, path = "/v1/watches", tag = "watches", request_body = NewWatchesBody,
    responses((status = 200, description = "One that was known already, or what became of each of several", body = Added),
        (status = 201, description = "It is watched now", body = AddedOne,
            headers(("location" = String, description = "Where it is"))),
        (status = 409, description = "It is being watched with other options, which are not changed, or its batch is closed", body = Problem, content_type = "application/problem+json"),
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
            let results = add_several(&control, &ids, &options).await?;
            let good = results.iter().all(|result| result.error.is_none());
            let closed = close(&control, &options, new.close, good).await?;
            Ok(Json(AddedSeveral { results, closed }).into_response())
        }
        (Some(_), Some(_)) | (None, None) => Err(refuse("give either `asset_id` or `asset_ids`")),
    }
}

/// Each of them, with no more of them at once than there is memory for, since each has the options in it.
async fn add_several(control: &Control, ids: &[String], options: &AddOptions) -> Result<Vec<OneOfSeveral>, Problem> {
    let mut results = Vec::with_capacity(ids.len());
    for ids in ids.chunks(ADDED_AT_ONCE) {
        results.extend(control.add(ids.to_vec(), options).await?.into_iter().map(OneOfSeveral::from));
    }
    Ok(results)
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
    let closed = close(control, options, closes, true).await?;
    let place =
        format!("/v1/watches/{}?account={}", utf8_percent_encode(&result.asset_id, NON_ALPHANUMERIC), options.account);
    let mut response = (status, Json(AddedOne { result, closed })).into_response();
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
