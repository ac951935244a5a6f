//! What requests bring, checked before a handler sees it. Everything in them is hostile.

use std::time::Duration;

use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use serde::de::{Deserializer, Error};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::problem::Problem;

/// A body that is not there after this is not waited for.
const BODY_TIME: Duration = Duration::from_secs(30);
/// Rows on a page, unless another number is asked for.
const PAGE: u32 = 100;
/// The most rows that a page may have.
pub(super) const LONGEST_PAGE: u32 = 1_000;

/// The query, in which unknown parameters are refused by the type that it is read into.
pub(super) struct Params<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Params<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Query(query) = Query::from_request_parts(parts, state).await?;
        Ok(Self(query))
    }
}

/// An asset's id, from the path. Of one that cannot be watched no watch is known, so it needs no check.
pub(super) struct AssetId(pub String);

impl<S: Send + Sync> FromRequestParts<S> for AssetId {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Path(id): Path<String> = Path::from_request_parts(parts, state).await?;
        Ok(Self(id))
    }
}

/// A number of ours, from the path.
pub(super) struct Number(pub i64);

impl<S: Send + Sync> FromRequestParts<S> for Number {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Path(number): Path<i64> = Path::from_request_parts(parts, state).await?;
        Ok(Self(number))
    }
}

/// A body of JSON, of which nothing is dropped: unknown fields are refused by the type that it is read into.
pub(super) struct Json<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        match tokio::time::timeout(BODY_TIME, axum::Json::from_request(request, state)).await {
            Ok(read) => Ok(Self(read?.0)),
            Err(_) => Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "the body did not come within 30 s")),
        }
    }
}

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        axum::Json(self.0).into_response()
    }
}

/// The number of rows on a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PageSize(pub u32);

impl Default for PageSize {
    fn default() -> Self {
        Self(PAGE)
    }
}

impl<'de> Deserialize<'de> for PageSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match u32::deserialize(deserializer)? {
            size @ 1..=LONGEST_PAGE => Ok(Self(size)),
            _ => Err(D::Error::custom("it must be from 1 to 1000")),
        }
    }
}

/// Where a page begins: the last one's `next_cursor`, or nothing for the first. What is in it is nobody's business.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Cursor(pub Option<i64>);

impl Cursor {
    /// The text for the page after `last`, if there may be more.
    pub(super) fn after(last: Option<i64>, more: bool) -> Option<String> {
        last.filter(|_| more).map(|last| format!("{last:x}"))
    }
}

impl<'de> Deserialize<'de> for Cursor {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let position = i64::from_str_radix(&text, 16).ok().filter(|at| *at >= 0 && text.bytes().all(|b| b != b'+'));
        let position = position.ok_or_else(|| D::Error::custom("it must be the `next_cursor` of another page"))?;
        Ok(Self(Some(position)))
    }
}

/// Reads what has a `parse` of its own from text.
pub(super) fn parsed<'de, D: Deserializer<'de>, T>(
    deserializer: D,
    parse: impl FnOnce(&str) -> Option<T>,
    otherwise: &str,
) -> Result<Option<T>, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse(&text).map(Some).ok_or_else(|| D::Error::custom(otherwise))
}
