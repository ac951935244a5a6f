//! Events: page by page, or as they happen.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream::unfold;
use serde::{Deserialize, Deserializer, Serialize};
use tokio::sync::{OwnedSemaphorePermit, broadcast};
use tokio::time::sleep;
use utoipa::{IntoParams, ToSchema};

use super::Server;
use super::extract::{Cursor, Json, PageSize, Params, parsed};
use super::feed::{EVER, PAGE, PAGE_BYTES, Page, frame};
use super::problem::Problem;
use crate::clock::Timestamp;
use crate::store::EventRow;

/// The headers of a stream; the last one is for nginx, which would hold it back.
pub(super) const EVENT_STREAM: [(HeaderName, &str); 3] = [
    (header::CONTENT_TYPE, "text/event-stream"),
    (header::CACHE_CONTROL, "no-store"),
    (HeaderName::from_static("x-accel-buffering"), "no"),
];
/// A stream on which nothing happens says so, or a proxy would take it for dead.
pub(super) const HEARTBEAT: Duration = Duration::from_secs(15);
/// The first line of a stream: so many milliseconds after it was lost its reader comes again.
const RETRY: &str = "retry: 2000\n";
/// Between two pages for a stream that is behind: it may not take the database for itself.
const PAUSE: Duration = Duration::from_millis(50);

/// Which events.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Query {
    /// Only what happened then or later.
    #[serde(default, deserialize_with = "instant")]
    #[param(value_type = Timestamp, required = false)]
    since: Option<Timestamp>,
    /// Rows on a page, at most: large ones make it shorter.
    #[serde(default)]
    #[param(value_type = u32, minimum = 1, maximum = 1000, default = 100, required = false)]
    limit: PageSize,
    /// The `next_cursor` of the page before.
    #[serde(default)]
    #[param(value_type = String, pattern = "^[0-7]?[0-9a-f]{1,15}$", required = false)]
    cursor: Cursor,
}

fn instant<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Timestamp>, D::Error> {
    parsed(deserializer, |text| text.parse().ok(), "it must be an instant like `2026-09-21T10:00:00Z`")
}

/// A page of events.
#[derive(Serialize, ToSchema)]
pub(super) struct EventPage {
    /// Oldest first.
    events: Vec<EventRow>,
    /// For the next page: it may be empty now, and have events later.
    next_cursor: Option<String>,
}

/// A message of a stream (server-sent events, as the HTML standard has them).
#[derive(ToSchema)]
#[expect(dead_code, reason = "it stands for what is written by hand")]
pub(super) struct Message {
    /// Where to go on after it.
    #[schema(required = false)]
    id: String,
    /// What it tells of.
    #[schema(required = false)]
    event: String,
    /// JSON.
    #[schema(required = false)]
    data: String,
    /// Milliseconds to wait before connecting again.
    #[schema(required = false)]
    retry: u32,
}

/// Where a stream goes on.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Resume {
    /// As the header `Last-Event-ID`, for those who cannot set it: the `id` of the last event that was received.
    #[serde(default, deserialize_with = "seq")]
    #[param(value_type = i64, minimum = 0, required = false)]
    last_event_id: Option<i64>,
}

/// Where a stream goes on, as browsers say it.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "it stands for what is read by hand")]
pub(super) struct LastEventId {
    /// The `id` of the last event that was received.
    #[param(rename = "Last-Event-ID", value_type = String, required = false, pattern = "^[0-9]{0,18}$")]
    last_event_id: String,
}

fn seq<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
    parsed(deserializer, parsed_seq, "it must be the `id` of an event")
}

/// The `id` of an event: digits, and nothing else that a number may have.
fn parsed_seq(text: &str) -> Option<i64> {
    text.parse().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Events, oldest first.
#[utoipa::path(get, path = "/v1/events", tag = "events", params(Query),
    responses((status = 200, description = "A page", body = EventPage),
        (status = 409, description = "The cursor is ahead of the database, which is an older copy", body = Problem, content_type = "application/problem+json"),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn list(
    State(server): State<Server>,
    Params(query): Params<Query>,
) -> Result<Json<EventPage>, Problem> {
    let after = query.cursor.0.unwrap_or_default();
    let since = query.since.unwrap_or(EVER);
    let (events, more) = server.control().store.events(after, since, query.limit.0, PAGE_BYTES).await?;
    if events.is_empty() {
        let latest = server.control().store.latest_event().await?;
        if after > latest {
            let why = format!(
                "the cursor is after event {after}, and the latest event is {latest}: the database is an older copy; begin \
                 again without the cursor, or with `since`"
            );
            return Err(Problem::new(StatusCode::CONFLICT, why));
        }
    }
    let next_cursor = Cursor::after(events.last().map(|event| event.seq), more);
    Ok(Json(EventPage { events, next_cursor }))
}

/// Events as they happen: server-sent events, each with its `seq` as `id`, its type as `event` and the event as `data`.
///
/// After an interruption it goes on behind `Last-Event-ID`; without one, or behind one that this database never gave, it
/// begins with what happens from now on.
#[utoipa::path(get, path = "/v1/events/stream", tag = "events",
    params(Resume, LastEventId),
    responses((status = 200, description = "Server-sent events", body = Message, content_type = "text/event-stream"),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn stream(
    State(server): State<Server>,
    Params(resume): Params<Resume>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let permit = server.streams.clone().try_acquire_owned().map_err(|_| Problem::no_room("streams"))?;
    let last =
        match headers.get("last-event-id") {
            // An empty one is what a browser sends that has received nothing.
            Some(value) if value.is_empty() => None,
            Some(value) => {
                let number = value.to_str().ok().and_then(parsed_seq);
                Some(number.ok_or_else(|| {
                    Problem::new(StatusCode::BAD_REQUEST, "Last-Event-ID must be the `id` of an event")
                })?)
            }
            None => resume.last_event_id,
        };
    // Before the database is looked at: what happens between the two is not missed.
    let pages = server.feed.subscribe();
    let latest = server.control().store.latest_event().await?;
    let position = last.unwrap_or(latest).min(latest);
    let set_back = last.filter(|last| *last > latest).map(|last| set_back(last, latest)).unwrap_or_default();
    let greeting = Some(format!("{RETRY}{set_back}\n").into());
    let stream = Stream { server, pages, position, behind: position < latest, greeting, _permit: permit };
    let body = Body::from_stream(unfold(stream, async |mut stream| {
        let frame = stream.next().await?;
        Some((Ok::<_, Infallible>(frame), stream))
    }));
    Ok((EVENT_STREAM, body).into_response())
}

/// What is said to a caller that was told more than this database knows, as after a backup was restored. An error would do
/// for a program; a browser takes that for the end, and does not come again.
fn set_back(last: i64, latest: i64) -> String {
    tracing::info!("a stream goes on after event {latest}: its reader has seen event {last} of a newer database");
    format!(
        ": there is no event {last} yet, the database is an older copy; what comes now is after event {latest}, and \
         /v1/events?since= has what was before\nid: {latest}\n"
    )
}

struct Stream {
    server: Server,
    pages: broadcast::Receiver<Arc<Page>>,
    /// The `seq` of the last event that was sent.
    position: i64,
    /// Whether the database has to be read, since the feed's pages do not follow on the position.
    behind: bool,
    /// What is sent first, so that the caller knows at once that it is connected.
    greeting: Option<Bytes>,
    _permit: OwnedSemaphorePermit,
}

impl Stream {
    /// The next bytes to send; none when the server stops.
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(greeting) = self.greeting.take() {
            return Some(greeting);
        }
        loop {
            if self.behind {
                if let Some(frames) = self.catch_up().await {
                    return Some(frames);
                }
                continue;
            }
            let received = tokio::select! {
                biased;
                () = self.server.stopped() => return None,
                received = self.pages.recv() => received,
                () = sleep(HEARTBEAT) => return Some(Bytes::from_static(b":\n\n")),
            };
            match received {
                Ok(page) if page.after > self.position => self.behind = true,
                Ok(page) => {
                    if let Some(frames) = self.new_ones(&page.frames) {
                        return Some(frames);
                    }
                }
                Err(broadcast::error::RecvError::Lagged(_)) => self.behind = true,
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }

    fn new_ones(&mut self, frames: &[(i64, Bytes)]) -> Option<Bytes> {
        let new: Vec<&(i64, Bytes)> = frames.iter().filter(|(seq, _)| *seq > self.position).collect();
        let (last, _) = new.last()?;
        self.position = *last;
        match new.as_slice() {
            // As they are: all streams share them.
            [(_, frame)] => Some(frame.clone()),
            several => Some(several.iter().flat_map(|(_, frame)| frame.iter().copied()).collect()),
        }
    }

    /// A page from the database; none when there was nothing, or it cannot be read just now.
    async fn catch_up(&mut self) -> Option<Bytes> {
        let store = self.server.control().store;
        let read = tokio::select! {
            read = store.events(self.position, EVER, PAGE, PAGE_BYTES) => read,
            () = self.server.stopped() => { self.behind = false; return None }
        };
        match read {
            Ok((events, more)) => {
                self.behind = more;
                if self.behind {
                    sleep(PAUSE).await;
                }
                self.new_ones(&events.iter().map(|event| (event.seq, frame(event))).collect::<Vec<_>>())
            }
            Err(error) => {
                tracing::debug!("a stream of events waits: {error}");
                sleep(HEARTBEAT / 15).await;
                None
            }
        }
    }
}
