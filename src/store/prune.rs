//! What has ended is removed after a while, and its space given back: in small writes, each of which others share.
//!
//! There is no index for it, which every poll would have to keep up: rows are gone through in the order of their ids,
//! which is nearly the order of time.

use std::sync::Arc;

use rusqlite::{Connection, params};

use super::{Store, StoreError, open};
use crate::clock::Timestamp;

/// SQLite's number for `auto_vacuum = INCREMENTAL`.
pub(super) const INCREMENTAL: i64 = 2;

/// What is removed once it is old.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Watches that have ended, with their events, deliveries and attempts. They stay while a delivery of theirs waits or
    /// is held, and while their batch has not settled; and all of a batch goes no sooner than its end is old.
    Watches,
    /// Events that speak of no watch, with their deliveries and attempts; they stay while one of those waits or is held.
    Events,
    /// Batches that have settled and of which no watch is left.
    Batches,
    /// What was learned of the origins of callbacks, where nothing waits, is held or dead. One that a person has
    /// disabled stays so.
    Callbacks,
}

/// A row that was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OldRow {
    /// Its id.
    pub key: i64,
    /// How many rows go with it, itself included; none when it stays.
    pub rows: u32,
    /// Whether it is younger than what is looked for, so that those behind it probably are as well.
    pub young: bool,
}

/// The pages of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Free {
    /// All of them.
    pub pages: u64,
    /// Those in which nothing stands.
    pub free: u64,
    /// Whether they can be given back bit by bit.
    pub incremental: bool,
}

/// How a kind of row is found.
struct Kind {
    table: &'static str,
    key: &'static str,
    /// Whether a row is old enough to go. `?2` is the instant before which it is.
    old: &'static str,
    /// Whether it was only made since; false where that is not known.
    young: &'static str,
    /// How many rows go with one.
    rows: &'static str,
}

const WATCHES: Kind = Kind {
    table: "watches",
    key: "id",
    old: "state <> 'waiting' AND settled_at < ?2
          AND NOT EXISTS (SELECT 1 FROM batches WHERE name = watches.batch
                              AND (settled_at IS NULL OR settled_at >= ?2))
          AND NOT EXISTS (SELECT 1 FROM deliveries WHERE watch_id = watches.id
                              AND (state IN ('waiting', 'held') OR finished_at >= ?2))",
    young: "created_at >= ?2",
    rows: "(SELECT 2 + count(*) + total(attempts) FROM deliveries WHERE watch_id = watches.id)",
};

const EVENTS: Kind = Kind {
    table: "events",
    key: "seq",
    old: "watch_id IS NULL AND created_at < ?2
          AND NOT EXISTS (SELECT 1 FROM deliveries WHERE event_seq = events.seq
                              AND (state IN ('waiting', 'held') OR finished_at >= ?2))",
    young: "created_at >= ?2",
    rows: "(SELECT 1 + count(*) + total(attempts) FROM deliveries WHERE event_seq = events.seq)",
};

const BATCHES: Kind = Kind {
    table: "batches",
    key: "rowid",
    old: "settled_at < ?2 AND NOT EXISTS (SELECT 1 FROM watches WHERE batch = batches.name)",
    young: "created_at >= ?2",
    rows: "1",
};

/// Its rows are written anew whenever something is learned, so their ids say nothing of their age. What was delivered needs
/// no look, and has no index by hook: it is no younger than the last success.
const CALLBACKS: Kind = Kind {
    table: "hooks",
    key: "rowid",
    old: "name GLOB 'callback:*' AND disabled_at IS NULL AND coalesce(last_success_at, 0) < ?2 AND coalesce(failing_since, 0) < ?2
          AND coalesce(held_until, 0) < ?2 AND coalesce(next_probe_at, 0) < ?2
          AND NOT EXISTS (SELECT 1 FROM deliveries WHERE hook = name AND state = 'waiting' AND lease_until IS NULL AND attempts = 0)
          AND NOT EXISTS (SELECT 1 FROM deliveries WHERE hook = name AND state = 'waiting' AND lease_until IS NULL AND attempts > 0)
          AND NOT EXISTS (SELECT 1 FROM deliveries WHERE hook = name AND lease_until IS NOT NULL)
          AND NOT EXISTS (SELECT 1 FROM deliveries WHERE hook = name AND state IN ('dead', 'held'))",
    young: "false",
    rows: "1",
};

impl Ended {
    const fn kind(self) -> Kind {
        match self {
            Self::Watches => WATCHES,
            Self::Events => EVENTS,
            Self::Batches => BATCHES,
            Self::Callbacks => CALLBACKS,
        }
    }
}

impl Store {
    /// Looks at the next `limit` rows after `after`, in the order of their ids, and says which of them may go: what ended
    /// before `before`, and of which nothing happened since.
    pub async fn ended(
        &self,
        ended: Ended,
        after: i64,
        before: Timestamp,
        limit: u32,
    ) -> Result<Vec<OldRow>, StoreError> {
        self.look(move |connection| {
            let mut statement = connection.prepare_cached(&look_sql(&ended.kind()))?;
            let rows = statement.query_map(params![after, before.as_millis(), limit], |row| {
                let rows: f64 = row.get(1)?;
                Ok(OldRow { key: row.get(0)?, rows: rows as u32, young: row.get(2)? })
            })?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// Removes those of these rows that still may go, with all that belongs to them, all or nothing. How many those were.
    ///
    /// Their ids are not used again.
    pub async fn prune(&self, ended: Ended, keys: Vec<i64>, before: Timestamp) -> Result<u64, StoreError> {
        self.write(move |connection| {
            let mut statement = connection.prepare_cached(&prune_sql(&ended.kind()))?;
            let mut gone = 0;
            for key in &keys {
                gone += statement.execute(params![key, before.as_millis()])? as u64;
            }
            Ok(gone)
        })
        .await
    }

    /// How much of the file is free.
    pub async fn free(&self) -> Result<Free, StoreError> {
        self.look(free).await
    }

    /// Makes the file shorter by at most so many pages, and says by how many; the disk has them back after
    /// [`Store::checkpoint`].
    pub async fn give_back(&self, pages: u32) -> Result<u64, StoreError> {
        self.write(move |connection| {
            let before = free(connection)?.pages;
            let mut statement = connection.prepare(&format!("PRAGMA incremental_vacuum({pages})"))?;
            // Each step gives back one.
            let mut steps = statement.query([])?;
            while steps.next()?.is_some() {}
            Ok(before.saturating_sub(free(connection)?.pages))
        })
        .await
    }

    /// Brings what is in the log into the file, as far as nobody reads what was there before. Nobody waits for it.
    pub async fn checkpoint(&self) -> Result<(), StoreError> {
        let shared = Arc::clone(&self.shared);
        let answer = self.shared.blocking.answer(move || {
            let connection = open::connect(&shared.path)?;
            Ok(connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))?)
        });
        answer.await
    }
}

/// Of what it looks at it leaves nothing out, or one look could go through a whole table.
fn look_sql(Kind { table, key, old, young, rows }: &Kind) -> String {
    format!("SELECT {key}, iif({old}, {rows}, 0) + 0.0, {young} FROM {table} WHERE {key} > ?1 ORDER BY {key} LIMIT ?3")
}

fn prune_sql(Kind { table, key, old, .. }: &Kind) -> String {
    format!("DELETE FROM {table} WHERE {key} = ?1 AND {old}")
}

fn free(connection: &Connection) -> Result<Free, StoreError> {
    let number = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let count = |name| number(name).map(|count| u64::try_from(count).unwrap_or(0));
    let incremental = number("auto_vacuum")? == INCREMENTAL;
    Ok(Free { pages: count("page_count")?, free: count("freelist_count")?, incremental })
}

#[cfg(test)]
mod tests {
    use super::super::lease::tests::{full, plan};
    use super::super::lock;
    use super::*;

    /// A look goes along the ids, and what it asks of a row it finds by an index.
    #[test]
    fn nothing_is_searched_for_in_a_whole_table() {
        let directory = tempfile::tempdir().unwrap();
        let store = full(&directory);
        let connection = lock(&store.shared.writer);
        for analyze in ["", "ANALYZE"] {
            connection.execute_batch(analyze).unwrap();
            for ended in [Ended::Watches, Ended::Events, Ended::Batches, Ended::Callbacks] {
                for sql in [look_sql(&ended.kind()), prune_sql(&ended.kind())] {
                    let plan = plan(&connection, &sql);
                    assert!(plan[0].contains("USING INTEGER PRIMARY KEY (rowid"), "{plan:#?}\n{sql}");
                    for step in plan {
                        assert!(!step.starts_with("SCAN") && !step.contains("TEMP B-TREE"), "{step}\n{sql}");
                    }
                }
            }
        }
    }
}
