//! What is known of hooks beyond their configuration.

use rusqlite::params;
use serde::Serialize;

use super::rows::Columns;
use super::{Store, StoreError, ledger};
use crate::clock::Timestamp;
use crate::event::Event;

/// One row of `hooks`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct HookRow {
    /// The configuration's name for it, or the lane of callbacks.
    pub name: String,
    /// Since when nothing is attempted.
    pub disabled_at: Option<Timestamp>,
    /// Why.
    pub disabled_reason: Option<String>,
    /// The receiver asked to be left alone until then.
    pub held_until: Option<Timestamp>,
    /// Failed attempts in a row, over all of its deliveries.
    pub failures: i64,
    /// The first of them.
    pub failing_since: Option<Timestamp>,
    /// With an open breaker: when one attempt is made to see whether it works again.
    pub next_probe_at: Option<Timestamp>,
    /// The latest attempt that delivered.
    pub last_success_at: Option<Timestamp>,
    /// What the latest failed attempt brought.
    pub last_error: Option<String>,
}

impl Store {
    /// What is known of the hooks.
    pub async fn hook_rows(&self) -> Result<Vec<HookRow>, StoreError> {
        self.look(|connection| {
            let mut statement = connection.prepare_cached(
                "SELECT name, disabled_at, disabled_reason, held_until, failures, failing_since, next_probe_at,
                     last_success_at, last_error FROM hooks ORDER BY name",
            )?;
            let rows = statement.query_map([], |row| {
                let mut column = Columns { row, at: 0 };
                Ok(HookRow {
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
            })?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// Has nothing more attempted at a hook, and tells of it; whether it was enabled before.
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
                connection.execute(
                    "UPDATE deliveries SET state = 'held', due_at = NULL, last_error = 'the hook is disabled'
                     WHERE hook = ?1 AND state = 'waiting' AND lease_until IS NULL",
                    [&name],
                )?;
                ledger::tell(connection, &told)?;
            }
            Ok(changed > 0)
        })
        .await
    }

    /// Has a hook attempted again, with all that was held for it; how many deliveries those are.
    pub async fn enable_hook(&self, name: String, now: Timestamp) -> Result<u64, StoreError> {
        self.write(move |connection| {
            connection.execute(
                "UPDATE hooks SET disabled_at = NULL, disabled_reason = NULL, held_until = NULL, failures = 0,
                     failing_since = NULL, next_probe_at = NULL WHERE name = ?1",
                [&name],
            )?;
            let released = connection.execute(
                "UPDATE deliveries SET state = 'waiting', due_at = ?2 WHERE hook = ?1 AND state = 'held'",
                params![name, now.as_millis()],
            )?;
            Ok(u64::try_from(released).unwrap_or(u64::MAX))
        })
        .await
    }
}
