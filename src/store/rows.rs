//! Rows to values. Other programs write to the file, so nothing in it is trusted to be what we would have written.

use std::time::Duration;

use rusqlite::types::{FromSql, FromSqlResult, ValueRef};
use rusqlite::{Result, Row};

use crate::clock::Timestamp;
use crate::delivery::{Delivery, DeliveryState};
use crate::watch::{Asset, Reason, Since, State, Streaks, Watch};

/// The columns that [`watch`] reads, in its order.
pub(super) const WATCH: &str = "id, asset_id, account, state, due_at, generation, lease_owner, lease_until, patience, \
     polls, waiting_streak, failures, rejections, missing_at, missing_base, status, type, url, width, height, duration, frames, \
     reason, last_error, batch, metadata, callback_url, created_at, first_polled_at, last_polled_at, processing_at, \
     waiting_at, settled_at, lost_base";

/// The columns that [`delivery`] reads, in its order.
pub(super) const DELIVERY: &str = "id, (SELECT id FROM events WHERE seq = event_seq), hook, state, due_at, generation, attempts, failures, last_error, \
     created_at, finished_at";

pub(super) fn watch(row: &Row<'_>) -> Result<Watch> {
    let mut column = Columns { row, at: 0 };
    Ok(Watch {
        id: column.next()?,
        asset_id: column.text()?,
        account: column.text()?,
        state: State::parse(&column.text()?).unwrap_or(State::Waiting),
        due_at: column.instant()?,
        generation: column.next()?,
        lease_owner: column.maybe_text()?,
        lease_until: column.instant()?,
        patience: column.next::<Option<i64>>()?.and_then(|ms| u64::try_from(ms).ok()).map(Duration::from_millis),
        polls: column.next()?,
        streaks: Streaks { waiting: column.count()?, failures: column.count()?, rejections: column.count()? },
        missing: since(column.instant()?, column.next()?),
        asset: Asset {
            status: column.maybe_text()?,
            kind: column.maybe_text()?,
            url: column.maybe_text()?,
            width: column.next()?,
            height: column.next()?,
            duration: column.next()?,
            frames: column.next()?,
        },
        reason: column.maybe_text()?.and_then(|word| Reason::parse(&word)),
        last_error: column.maybe_text()?,
        batch: column.maybe_text()?,
        metadata: column.maybe_text()?,
        callback_url: column.maybe_text()?,
        created_at: Timestamp::from_millis(column.next()?),
        first_polled_at: column.instant()?,
        last_polled_at: column.instant()?,
        processing_at: column.instant()?,
        waiting_at: column.instant()?,
        settled_at: column.instant()?,
        lost_base: column.next()?,
    })
}

pub(super) fn delivery(row: &Row<'_>) -> Result<Delivery> {
    let mut column = Columns { row, at: 0 };
    Ok(Delivery {
        id: column.next()?,
        event_id: column.text()?,
        hook: column.text()?,
        state: DeliveryState::parse(&column.text()?).unwrap_or(DeliveryState::Held),
        due_at: column.instant()?,
        generation: column.next()?,
        attempts: column.next()?,
        failures: column.next()?,
        last_error: column.maybe_text()?,
        created_at: Timestamp::from_millis(column.next()?),
        finished_at: column.instant()?,
    })
}

/// Without a base it was written by another program, or by a version that had none.
fn since(at: Option<Timestamp>, base: Option<i64>) -> Option<Since> {
    Some(Since { at: at?, base: base.unwrap_or(0) })
}

/// Reads columns one after the other.
pub(super) struct Columns<'a, 'row> {
    pub(super) row: &'a Row<'row>,
    pub(super) at: usize,
}

impl Columns<'_, '_> {
    pub(super) fn next<T: FromSql>(&mut self) -> Result<T> {
        self.at += 1;
        self.row.get(self.at - 1)
    }

    pub(super) fn text(&mut self) -> Result<String> {
        self.next::<Text>().map(|text| text.0)
    }

    pub(super) fn maybe_text(&mut self) -> Result<Option<String>> {
        self.next::<Option<Text>>().map(|text| text.map(|text| text.0))
    }

    pub(super) fn instant(&mut self) -> Result<Option<Timestamp>> {
        self.next::<Option<i64>>().map(|millis| millis.map(Timestamp::from_millis))
    }

    fn count(&mut self) -> Result<u32> {
        self.next::<i64>().map(|count| u32::try_from(count.max(0)).unwrap_or(u32::MAX))
    }
}

/// Text that need not be valid UTF-8: SQLite does not check what other programs write.
struct Text(String);

impl FromSql for Text {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        value.as_bytes().map(|bytes| Self(String::from_utf8_lossy(bytes).into_owned()))
    }
}
