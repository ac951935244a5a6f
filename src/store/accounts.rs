//! Accounts: what is known of them beyond their configuration.

use rusqlite::params;

use super::rows::Columns;
use super::{Store, StoreError, ledger};
use crate::clock::Timestamp;
use crate::event::Event;

/// One row of `accounts`: what is known of an account beyond its configuration.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, utoipa::ToSchema)]
pub struct AccountRow {
    /// The account.
    pub name: String,
    /// Why it is not polled; the word of [`crate::pace::Closure`].
    pub closure: Option<String>,
    /// Since when.
    pub closed_at: Option<Timestamp>,
    /// When it is tried again.
    pub next_probe_at: Option<Timestamp>,
    /// What the API said.
    pub last_error: Option<String>,
    /// The rate that was found out, in requests a second, where it is below the configured one.
    pub rate: Option<f64>,
    /// The API asked to be left alone until then.
    pub held_until: Option<Timestamp>,
    /// The time that was not the assets', in milliseconds, until `closed_at` if it is closed.
    pub lost_ms: i64,
}

impl Store {
    /// What is known of the accounts beyond their configuration.
    pub async fn accounts(&self) -> Result<Vec<AccountRow>, StoreError> {
        self.look(|connection| {
            let mut statement = connection.prepare_cached(
                "SELECT name, closure, closed_at, next_probe_at, last_error, rate, held_until, lost_ms FROM accounts
                 ORDER BY name",
            )?;
            let rows = statement.query_map([], |row| {
                let mut column = Columns { row, at: 0 };
                Ok(AccountRow {
                    name: column.text()?,
                    closure: column.maybe_text()?,
                    closed_at: column.instant()?,
                    next_probe_at: column.instant()?,
                    last_error: column.maybe_text()?,
                    rate: column.next()?,
                    held_until: column.instant()?,
                    lost_ms: column.next()?,
                })
            })?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// Notes how an account stands, with the events that tell of it, all or nothing.
    pub async fn note_account(&self, account: AccountRow, events: Vec<Event>) -> Result<(), StoreError> {
        self.write(move |connection| {
            connection
                .prepare_cached(
                    "INSERT INTO accounts (name, closure, closed_at, next_probe_at, last_error, rate, held_until, lost_ms)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
                     ON CONFLICT (name) DO UPDATE SET closure = ?2, closed_at = ?3, next_probe_at = ?4,
                         last_error = ?5, rate = ?6, held_until = ?7, lost_ms = ?8",
                )?
                .execute(params![
                    account.name,
                    account.closure,
                    account.closed_at.map(Timestamp::as_millis),
                    account.next_probe_at.map(Timestamp::as_millis),
                    account.last_error,
                    account.rate,
                    account.held_until.map(Timestamp::as_millis),
                    account.lost_ms,
                ])?;
            events.iter().try_for_each(|event| ledger::tell(connection, event))
        })
        .await
    }
}
