//! Batches: watches that belong together, and the one end of them all.

use std::collections::BTreeMap;
use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::rows::Columns;
use super::{Store, StoreError, ledger};
use crate::clock::Timestamp;
use crate::event::{Batch, Event};
use crate::watch::State;

/// Makes the event that tells of a batch that has settled. Writes that may end a watch take it, since only they see in
/// their own transaction whether it was the last one.
pub type TellBatch = Arc<dyn Fn(&Batch) -> Event + Send + Sync>;

/// Settles a closed batch of which nothing waits. It looks for one waiting watch, however many the batch has.
const SETTLE: &str = "UPDATE batches SET settled_at = ?2
     WHERE name = ?1 AND closed_at IS NOT NULL AND settled_at IS NULL
       AND NOT EXISTS (SELECT 1 FROM watches WHERE batch = ?1 AND state = 'waiting')";

const COUNTS: &str = "SELECT state, status, count(*) FROM watches WHERE batch = ?1 GROUP BY state, status";

impl Store {
    /// Closes a batch: from now on the table refuses further watches of it. If none of its watches waits, it settles in the
    /// same transaction, with the event that `tell` makes. One that is closed stays closed since when it was, and one
    /// that has settled is not told again. `None` when there is no such batch.
    pub async fn close_batch(
        &self,
        name: String,
        now: Timestamp,
        tell: TellBatch,
    ) -> Result<Option<Batch>, StoreError> {
        self.write(move |connection| {
            connection
                .prepare_cached("UPDATE batches SET closed_at = ?2 WHERE name = ?1 AND closed_at IS NULL")?
                .execute(params![name, now.as_millis()])?;
            settle(connection, &name, now, &tell)?;
            batch(connection, &name)
        })
        .await
    }

    /// How a batch stands, with its counts, in one snapshot.
    pub async fn batch(&self, name: String) -> Result<Option<Batch>, StoreError> {
        self.look(move |connection| batch(connection, &name)).await
    }

    /// How the newest `limit` batches stand, newest first.
    pub async fn batches(&self, limit: u32) -> Result<Vec<Batch>, StoreError> {
        self.look(move |connection| {
            let mut statement = connection.prepare_cached(
                "SELECT name, created_at, closed_at, settled_at FROM batches ORDER BY created_at DESC, rowid DESC LIMIT ?1",
            )?;
            let rows = statement.query_map([limit], bare)?.collect::<Result<Vec<_>, _>>()?;
            rows.into_iter().map(|bare| counted(connection, bare)).collect()
        })
        .await
    }
}

/// Settles the batch if it is closed and none of its watches waits any more, and tells of it: once, since who settles it
/// is who has written `settled_at`.
pub(super) fn settle(
    connection: &Connection,
    name: &str,
    now: Timestamp,
    tell: &TellBatch,
) -> Result<Option<Batch>, StoreError> {
    if connection.prepare_cached(SETTLE)?.execute(params![name, now.as_millis()])? == 0 {
        return Ok(None);
    }
    let settled = batch(connection, name)?;
    if let Some(batch) = &settled {
        ledger::tell(connection, &tell(batch))?;
    }
    Ok(settled)
}

fn batch(connection: &Connection, name: &str) -> Result<Option<Batch>, StoreError> {
    let sql = "SELECT name, created_at, closed_at, settled_at FROM batches WHERE name = ?1";
    let bare = connection.prepare_cached(sql)?.query_row([name], bare).optional()?;
    bare.map(|bare| counted(connection, bare)).transpose()
}

fn bare(row: &Row<'_>) -> rusqlite::Result<Batch> {
    let mut column = Columns { row, at: 0 };
    Ok(Batch {
        name: column.text()?,
        created_at: Timestamp::from_millis(column.next()?),
        closed_at: column.instant()?,
        settled_at: column.instant()?,
        watches: 0,
        waiting: 0,
        abandoned: 0,
        cancelled: 0,
        statuses: BTreeMap::new(),
    })
}

fn counted(connection: &Connection, mut batch: Batch) -> Result<Batch, StoreError> {
    let mut statement = connection.prepare_cached(COUNTS)?;
    let mut rows = statement.query([&batch.name])?;
    while let Some(row) = rows.next()? {
        let mut column = Columns { row, at: 0 };
        let (state, status, count) = (column.text()?, column.maybe_text()?, column.next::<i64>()?);
        batch.watches += count;
        match State::parse(&state).unwrap_or(State::Waiting) {
            State::Waiting => batch.waiting += count,
            State::Settled => *batch.statuses.entry(status.unwrap_or_default()).or_default() += count,
            State::Abandoned => batch.abandoned += count,
            State::Cancelled => batch.cancelled += count,
        }
    }
    Ok(batch)
}

#[cfg(test)]
mod tests {
    use super::super::lease::tests::{assert_searches, full};
    use super::super::lock;
    use super::*;

    #[test]
    fn the_end_of_a_watch_does_not_read_its_batch() {
        let directory = tempfile::tempdir().unwrap();
        let store = full(&directory);
        let connection = lock(&store.shared.writer);
        connection.execute_batch("UPDATE watches SET batch = 'b'").unwrap();
        for analyze in ["", "ANALYZE"] {
            connection.execute_batch(analyze).unwrap();
            assert_searches(&connection, SETTLE, "watches_batch_waiting (batch=?)");
        }
    }
}
