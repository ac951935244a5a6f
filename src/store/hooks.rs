//! What is known of hooks beyond their configuration.

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::rows::Columns;
use super::{Store, StoreError, ledger};
use crate::clock::Timestamp;
use crate::event::{CALLBACK, Event};
use crate::standing::Standing;

/// The columns that [`standing`] reads, in its order.
const COLUMNS: &str = "name, disabled_at, disabled_reason, held_until, failures, failing_since, next_probe_at, \
     last_success_at, last_error";

/// What waits for an attempt, by the index that it is in; the last are being attempted, or their sender is gone.
const WAITING: [&str; 3] = [
    "state = 'waiting' AND lease_until IS NULL AND attempts = 0",
    "state = 'waiting' AND lease_until IS NULL AND attempts > 0",
    "lease_until IS NOT NULL",
];

impl Store {
    /// What is known of the hooks, and of the lanes of callbacks.
    pub async fn hook_rows(&self) -> Result<Vec<Standing>, StoreError> {
        self.look(|connection| {
            let mut statement = connection.prepare_cached(&format!("SELECT {COLUMNS} FROM hooks ORDER BY name"))?;
            let rows = statement.query_map([], standing)?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// Has nothing more attempted at a hook and holds what waits for it, and tells of it; whether it was enabled before.
    /// What is under way ends as it ends.
    pub async fn disable_hook(
        &self,
        name: String,
        reason: String,
        now: Timestamp,
        told: Event,
    ) -> Result<bool, StoreError> {
        self.write(move |connection| {
            let changed = connection.execute(
                "INSERT INTO hooks (name, disabled_at, disabled_reason) VALUES (?1, ?2, ?3)
                 ON CONFLICT (name) DO UPDATE SET disabled_at = ?2, disabled_reason = ?3 WHERE disabled_at IS NULL",
                params![name, now.as_millis(), reason],
            )?;
            if changed > 0 {
                hold_free(connection, &name)?;
                ledger::tell(connection, &told)?;
            }
            Ok(changed > 0)
        })
        .await
    }

    /// Has a hook attempted again, with all that was held for it: due now. How many deliveries those are.
    pub async fn enable_hook(&self, name: String, now: Timestamp) -> Result<u64, StoreError> {
        self.write(move |connection| {
            connection.execute(
                "UPDATE hooks SET disabled_at = NULL, disabled_reason = NULL, held_until = NULL, failures = 0,
                     failing_since = NULL, next_probe_at = NULL WHERE name = ?1",
                [&name],
            )?;
            // What the receiver had put off is due as well: a person says that it works now.
            for rows in &WAITING[..2] {
                let sql = format!("UPDATE deliveries SET due_at = ?2 WHERE hook = ?1 AND due_at > ?2 AND {rows}");
                connection.prepare_cached(&sql)?.execute(params![name, now.as_millis()])?;
            }
            let released = connection.execute(
                "UPDATE deliveries SET state = 'waiting', due_at = ?2 WHERE hook = ?1 AND state = 'held'",
                params![name, now.as_millis()],
            )?;
            Ok(u64::try_from(released).unwrap_or(u64::MAX))
        })
        .await
    }

    /// The lanes of callbacks for which something waits: at most `limit` that come after `after`, in order.
    pub async fn callback_lanes(&self, after: String, limit: u32) -> Result<Vec<String>, StoreError> {
        self.look(move |connection| {
            let mut lanes = std::collections::BTreeSet::new();
            for rows in WAITING {
                let mut statement = connection.prepare_cached(&lanes_sql(rows))?;
                let names = statement.query_map(params![after, limit], |row| Columns { row, at: 0 }.text())?;
                for name in names {
                    lanes.insert(name?);
                }
            }
            Ok(lanes.into_iter().take(limit as usize).collect())
        })
        .await
    }
}

/// One step in an index for each lane, however many deliveries it has. `;` comes after the colon.
pub(super) fn lanes_sql(rows: &str) -> String {
    let (begin, end) = (CALLBACK, CALLBACK.replace(':', ";"));
    let next =
        |after: &str| format!("SELECT min(hook) FROM deliveries WHERE {rows} AND hook > {after} AND hook < '{end}'");
    format!(
        "WITH RECURSIVE lane (hook) AS (
             SELECT ({}) UNION ALL SELECT ({}) FROM lane WHERE hook IS NOT NULL LIMIT ?2 + 1)
         SELECT hook FROM lane WHERE hook IS NOT NULL",
        next(&format!("max(?1, '{begin}')")),
        next("lane.hook"),
    )
}

/// How a hook stands; one of which nothing is known has no row.
pub(super) fn standing_of(connection: &Connection, name: &str) -> Result<Standing, StoreError> {
    let sql = format!("SELECT {COLUMNS} FROM hooks WHERE name = ?1");
    let known = connection.prepare_cached(&sql)?.query_row([name], standing).optional()?;
    Ok(known.unwrap_or_else(|| Standing::new(name)))
}

pub(super) fn note(connection: &Connection, standing: &Standing) -> Result<(), StoreError> {
    let millis = |instant: Option<Timestamp>| instant.map(Timestamp::as_millis);
    let sql = format!("INSERT OR REPLACE INTO hooks ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)");
    connection.prepare_cached(&sql)?.execute(params![
        standing.name,
        millis(standing.disabled_at),
        standing.disabled_reason,
        millis(standing.held_until),
        standing.failures,
        millis(standing.failing_since),
        millis(standing.next_probe_at),
        millis(standing.last_success_at),
        standing.last_error,
    ])?;
    Ok(())
}

/// Holds what waits for a disabled hook and is not under way.
pub(super) fn hold_free(connection: &Connection, name: &str) -> Result<(), StoreError> {
    for rows in &WAITING[..2] {
        let sql =
            format!("UPDATE deliveries SET state = 'held', due_at = NULL, last_error = ?2 WHERE hook = ?1 AND {rows}");
        connection.prepare_cached(&sql)?.execute(params![name, held_because(name)])?;
    }
    Ok(())
}

pub(super) fn held_because(name: &str) -> String {
    format!("the hook is disabled; `assetwatch hooks enable {name}` has it told again")
}

fn standing(row: &Row<'_>) -> rusqlite::Result<Standing> {
    let mut column = Columns { row, at: 0 };
    Ok(Standing {
        name: column.text()?,
        disabled_at: column.instant()?,
        disabled_reason: column.maybe_text()?,
        held_until: column.instant()?,
        failures: column.next()?,
        failing_since: column.instant()?,
        next_probe_at: column.instant()?,
        last_success_at: column.instant()?,
        last_error: column.maybe_text()?,
    })
}
