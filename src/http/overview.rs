//! How everything stands: once, or whenever it changes.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::stream::unfold;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::Server;
use super::events::{EVENT_STREAM, HEARTBEAT, Message};
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
pub(super) struct Cached(Arc<Shared>);

#[derive(Default)]
struct Shared {
    latest: Mutex<Option<Look>>,
    /// Held by whoever makes the next look, and while waiting until it may. Who can take the latest one never waits for it.
    looking: tokio::sync::Mutex<()>,
}

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
    async fn look(
        &self,
        control: &Control,
        changes: &watch::Receiver<u64>,
        change: Option<u64>,
    ) -> Result<(u64, Bytes), StoreError> {
        let fits = |look: &Look| change.map_or(Instant::now() < look.until, |change| look.change >= change);
        if let Some(look) = self.latest().filter(fits) {
            return Ok((look.change, look.json));
        }
        let _looking = self.0.looking.lock().await;
        // Somebody may have looked while we waited for that.
        match self.latest() {
            Some(look) if fits(&look) => return Ok((look.change, look.json)),
            Some(look) => sleep_until(look.until).await,
            None => {}
        }
        let (begun, change) = (Instant::now(), *changes.borrow());
        let json: Bytes = serde_json::to_vec(&control.overview().await?).unwrap_or_default().into();
        let until = Instant::now() + (begun.elapsed() * SHARE).max(OFTEN);
        *self.0.latest.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(Look { json: json.clone(), until, change });
        Ok((change, json))
    }

    fn latest(&self) -> Option<Look> {
        self.0.latest.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// How everything stands, in a few numbers; at most some seconds old.
#[utoipa::path(get, path = "/v1/overview", tag = "operation",
    responses((status = 200, description = "The overview", body = OverviewShown),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn get(State(server): State<Server>) -> Result<Response, Problem> {
    let (_, json) = server.overview.look(&server.control(), &server.feed.changes(), None).await?;
    Ok(([(header::CONTENT_TYPE, "application/json")], json).into_response())
}

/// The overview, at once and then whenever it changes, at most once a second: server-sent events named `overview`.
#[utoipa::path(get, path = "/v1/overview/stream", tag = "operation",
    responses((status = 200, description = "Server-sent events", body = Message, content_type = "text/event-stream"),
        (status = "default", description = "A problem", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn stream(State(server): State<Server>) -> Result<Response, Problem> {
    let permit = server.streams.clone().try_acquire_owned().map_err(|_| Problem::no_room("streams"))?;
    let stream = Stream { server, told: None, looking: None, _permit: permit };
    let body = Body::from_stream(unfold(stream, async |mut stream| {
        let frame = stream.next().await?;
        Some((Ok::<_, Infallible>(frame), stream))
    }));
    Ok((EVENT_STREAM, body).into_response())
}

type Looking = Pin<Box<dyn Future<Output = (u64, Bytes)> + Send>>;

struct Stream {
    server: Server,
    /// The change that was told last; none before the first message.
    told: Option<u64>,
    /// The look that is told next. It may take longer than a stream may be silent.
    looking: Option<Looking>,
    _permit: OwnedSemaphorePermit,
}

impl Stream {
    async fn next(&mut self) -> Option<Bytes> {
        let (server, told) = (self.server.clone(), self.told);
        let looking = self.looking.get_or_insert_with(|| Box::pin(next_look(server, told)));
        let (change, json) = tokio::select! {
            biased;
            () = self.server.stopped() => return None,
            looked = looking => looked,
            () = sleep(HEARTBEAT) => return Some(Bytes::from_static(b":\n\n")),
        };
        (self.told, self.looking) = (Some(change), None);
        let mut frame = Vec::with_capacity(json.len() + 32);
        frame.extend_from_slice(b"event: overview\ndata: ");
        frame.extend_from_slice(&json);
        frame.extend_from_slice(b"\n\n");
        Some(frame.into())
    }
}

/// The look after the change `told`: when there is another one, or some time has passed.
async fn next_look(server: Server, told: Option<u64>) -> (u64, Bytes) {
    let (mut changes, mut change) = (server.feed.changes(), None);
    if let Some(told) = told {
        let changed = timeout(SELDOM, changes.wait_for(|change| *change != told)).await.is_ok();
        change = changed.then(|| *changes.borrow());
    }
    loop {
        match server.overview.look(&server.control(), &changes, change).await {
            Ok(looked) => return looked,
            // The database pauses; a stream that ended would only begin again.
            Err(error) => {
                tracing::debug!("no overview was made: {error}");
                sleep(OFTEN).await;
            }
        }
    }
}
