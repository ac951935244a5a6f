//! How everything stands: once, or whenever it changes.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::stream::unfold;
use tokio::sync::{Mutex, OwnedSemaphorePermit, watch};
use tokio::time::{Instant, sleep_until, timeout};

use super::Server;
use super::events::{EVENT_STREAM, Message};
use super::problem::Problem;
use crate::control::{Control, OverviewShown};
use crate::store::StoreError;

/// The shortest time between two looks.
const OFTEN: Duration = Duration::from_secs(1);
/// A look takes at most one part in so many of the time: with millions of watches it takes a while.
const SHARE: u32 = 20;
/// The longest time between two messages of a stream: time passes even where nothing else happens.
const SELDOM: Duration = Duration::from_secs(15);

/// The latest look, shared by all who ask.
#[derive(Clone, Default)]
pub(super) struct Cached(Arc<Mutex<Option<Look>>>);

#[derive(Clone)]
struct Look {
    json: Bytes,
    /// From when on it is looked again.
    until: Instant,
    /// The feed's count of changes before it.
    change: u64,
}

impl Cached {
    /// How everything stands, at most as old as it takes to look; with `change`, after that change at least. And the
    /// change that it is surely after.
    async fn look(&self, control: &Control, changes: u64, change: Option<u64>) -> Result<(u64, Bytes), StoreError> {
        let mut latest = loop {
            let latest = self.0.lock().await;
            let Some(look) = latest.as_ref() else { break latest };
            let until = look.until;
            if change.map_or(Instant::now() < until, |change| look.change >= change) {
                return Ok((look.change, look.json.clone()));
            }
            if Instant::now() >= until {
                break latest;
            }
            // Without the lock, for those who can take what there is.
            drop(latest);
            sleep_until(until).await;
        };
        let begun = Instant::now();
        let json: Bytes = serde_json::to_vec(&control.overview().await?).unwrap_or_default().into();
        let until = Instant::now() + (begun.elapsed() * SHARE).max(OFTEN);
        *latest = Some(Look { json: json.clone(), until, change: changes });
        Ok((changes, json))
    }
}

/// How everything stands, in a few numbers; at most some seconds old.
#[utoipa::path(get, path = "/v1/overview", tag = "operation",
    responses((status = 200, description = "The overview", body = OverviewShown),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn get(State(server): State<Server>) -> Result<Response, Problem> {
    let changes = *server.feed.changes().borrow();
    let (_, json) = server.overview.look(&server.control(), changes, None).await?;
    Ok(([(header::CONTENT_TYPE, "application/json")], json).into_response())
}

/// The overview, at once and then whenever it changes, at most once a second: server-sent events named `overview`.
#[utoipa::path(get, path = "/v1/overview/stream", tag = "operation",
    responses((status = 200, description = "Server-sent events", body = Message, content_type = "text/event-stream"),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn stream(State(server): State<Server>) -> Result<Response, Problem> {
    let permit = server.streams.clone().try_acquire_owned().map_err(|_| Problem::no_room("streams"))?;
    let changes = server.feed.changes();
    let stream = Stream { server, changes, told: None, _permit: permit };
    let body = Body::from_stream(unfold(stream, async |mut stream| {
        let frame = stream.next().await?;
        Some((Ok::<_, Infallible>(frame), stream))
    }));
    Ok((EVENT_STREAM, body).into_response())
}

struct Stream {
    server: Server,
    changes: watch::Receiver<u64>,
    /// The change that was told last; none before the first message.
    told: Option<u64>,
    _permit: OwnedSemaphorePermit,
}

impl Stream {
    async fn next(&mut self) -> Option<Bytes> {
        let (server, told) = (self.server.clone(), self.told);
        let mut changes = self.changes.clone();
        let looking = async {
            let mut change = None;
            if let Some(told) = told {
                let changed = timeout(SELDOM, changes.wait_for(|change| *change != told)).await.is_ok();
                change = changed.then(|| *changes.borrow());
            }
            loop {
                let changes = *changes.borrow();
                match server.overview.look(&server.control(), changes, change).await {
                    Ok(looked) => return looked,
                    // The database pauses; a stream that ended would only begin again.
                    Err(error) => {
                        tracing::debug!("no overview was made: {error}");
                        tokio::time::sleep(OFTEN).await;
                    }
                }
            }
        };
        let (change, json) = tokio::select! {
            () = self.server.stopped() => return None,
            looked = looking => looked,
        };
        self.told = Some(change);
        let mut frame = Vec::with_capacity(json.len() + 32);
        frame.extend_from_slice(b"event: overview\ndata: ");
        frame.extend_from_slice(&json);
        frame.extend_from_slice(b"\n\n");
        Some(frame.into())
    }
}
