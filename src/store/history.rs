//! What was told, read back: events by their order, and all that was told about one watch.

use rusqlite::{Connection, Row, params};
use serde::Serialize;

use super::rows::{Columns, DELIVERY, delivery};
use super::{Store, StoreError};
use crate::clock::Timestamp;
use crate::delivery::Delivery;

/// One row of `events`, as JSON with the body as it was sent.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct EventRow {
    /// The order in which facts were committed.
    pub seq: i64,
    /// The id that receivers see.
    pub id: String,
    /// The watch that it speaks of.
    pub watch_id: Option<i64>,
    /// `asset.<status>`, `watch.abandoned`, …
    #[serde(rename = "type")]
    pub event_type: String,
    /// The body that is signed and sent.
    #[serde(serialize_with = "as_json")]
    #[schema(value_type = Object)]
    pub body: String,
    /// When it happened.
    pub created_at: Timestamp,
}

/// One row of `attempts`.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct AttemptRow {
    /// The delivery that was attempted.
    pub delivery_id: i64,
    /// 1 for the first.
    pub number: i64,
    /// When it was claimed: before anything was sent.
    pub started_at: Timestamp,
    /// When it ended, or when it was found that its sender is gone.
    pub finished_at: Option<Timestamp>,
    /// `delivered`, `failed`, `refused`, `blocked`, `interrupted`, `unknown`; null while it lasts.
    pub outcome: Option<String>,
    /// The HTTP status or the exit code.
    pub code: Option<i64>,
    /// What went wrong.
    pub error: Option<String>,
    /// What the receiver answered, or the command wrote to stdout.
    pub output: Option<String>,
    /// What the command wrote to stderr.
    pub errors: Option<String>,
}

/// Everything that was told about one watch.
#[derive(Clone, Debug, Default, Serialize, utoipa::ToSchema)]
pub struct History {
    /// In the order in which they were committed.
    pub events: Vec<EventRow>,
    /// One for each hook that was to be told.
    pub deliveries: Vec<Delivery>,
    /// Every try.
    pub attempts: Vec<AttemptRow>,
}

impl Store {
    /// The events after `after` (a `seq`) that did not happen before `since`, oldest first: at most `limit`, and no more
    /// after `bytes` of their bodies, since a caller's metadata may be most of one. And whether there may be more.
    pub async fn events(
        &self,
        after: i64,
        since: Timestamp,
        limit: u32,
        bytes: usize,
    ) -> Result<(Vec<EventRow>, bool), StoreError> {
        self.look(move |connection| {
            let mut statement = connection.prepare_cached(
                "SELECT seq, id, watch_id, type, body, created_at FROM events
                 WHERE seq > ?1 AND created_at >= ?2 ORDER BY seq LIMIT ?3",
            )?;
            let (mut events, mut size) = (Vec::new(), 0);
            for event in statement.query_map(params![after, since.as_millis(), limit], event)? {
                let event = event?;
                size += event.body.len();
                events.push(event);
                if size >= bytes {
                    return Ok((events, true));
                }
            }
            let more = events.len() >= limit as usize;
            Ok((events, more))
        })
        .await
    }

    /// The `seq` of the latest event, even if it has been pruned since; 0 when there was none.
    pub async fn latest_event(&self) -> Result<i64, StoreError> {
        self.look(|connection| {
            let sql = "SELECT coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'events'), 0)";
            Ok(connection.prepare_cached(sql)?.query_row([], |row| row.get(0))?)
        })
        .await
    }

    /// Everything that was told about a watch, in one snapshot.
    pub async fn history(&self, watch_id: i64) -> Result<History, StoreError> {
        self.look(move |connection| history(connection, watch_id)).await
    }
}

fn history(connection: &Connection, watch_id: i64) -> Result<History, StoreError> {
    let mut events = connection.prepare_cached(
        "SELECT seq, id, watch_id, type, body, created_at FROM events WHERE watch_id = ?1 ORDER BY seq",
    )?;
    let sql = format!("SELECT {DELIVERY} FROM deliveries WHERE watch_id = ?1 ORDER BY id");
    let mut deliveries = connection.prepare_cached(&sql)?;
    let mut attempts = connection.prepare_cached(
        "SELECT delivery_id, number, started_at, finished_at, outcome, code, error, output, errors FROM attempts
         WHERE delivery_id IN (SELECT id FROM deliveries WHERE watch_id = ?1) ORDER BY id",
    )?;
    Ok(History {
        events: events.query_map([watch_id], event)?.collect::<Result<_, _>>()?,
        deliveries: deliveries.query_map([watch_id], delivery)?.collect::<Result<_, _>>()?,
        attempts: attempts.query_map([watch_id], attempt)?.collect::<Result<_, _>>()?,
    })
}

fn event(row: &Row<'_>) -> rusqlite::Result<EventRow> {
    let mut column = Columns { row, at: 0 };
    Ok(EventRow {
        seq: column.next()?,
        id: column.text()?,
        watch_id: column.next()?,
        event_type: column.text()?,
        body: column.text()?,
        created_at: Timestamp::from_millis(column.next()?),
    })
}

fn attempt(row: &Row<'_>) -> rusqlite::Result<AttemptRow> {
    let mut column = Columns { row, at: 0 };
    Ok(AttemptRow {
        delivery_id: column.next()?,
        number: column.next()?,
        started_at: Timestamp::from_millis(column.next()?),
        finished_at: column.instant()?,
        outcome: column.maybe_text()?,
        code: column.next()?,
        error: column.maybe_text()?,
        output: column.maybe_text()?,
        errors: column.maybe_text()?,
    })
}

fn as_json<S: serde::Serializer>(body: &str, serializer: S) -> Result<S::Ok, S::Error> {
    crate::watch::raw_json(body).serialize(serializer)
}
