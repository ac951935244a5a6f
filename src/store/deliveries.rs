//! Deliveries as an operator sees them: looked through, attempted once more, and made for a test.

use std::time::Duration;

use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension, Row, params, params_from_iter};
use serde::Serialize;

use super::rows::{Columns, DELIVERY, delivery};
use super::{Outstanding, Store, StoreError, Terms, ledger};
use crate::clock::Timestamp;
use crate::decide::Verdict;
use crate::delivery::{Attempt, Delivery, DeliveryState, Parcel};
use crate::event::Event;

/// So many rows are stepped over in one transaction: it bounds how long the lock is held.
const PORTION: i64 = 1_000;

/// That somebody misses this delivery. Nobody misses a test, nor that an asset is being processed once what came after it
/// is known.
const MISSED: &str = "(SELECT CASE type
         WHEN 'test' THEN 0
         WHEN 'asset.processing' THEN NOT EXISTS (
             SELECT 1 FROM deliveries AS later WHERE later.watch_id = deliveries.watch_id
                 AND later.hook = deliveries.hook AND later.id > deliveries.id)
         ELSE 1 END FROM events WHERE seq = event_seq)";

/// The dead ones of a hook, after an id, and whether each is missed: a portion of them.
fn dead_sql() -> String {
    format!(
        "SELECT id, created_at >= ?3 AND {MISSED} FROM deliveries
         WHERE hook = ?1 AND state = 'dead' AND id > ?2 ORDER BY id LIMIT {PORTION}"
    )
}

/// Deliveries that wait: for their first attempt, for a later one, and those that are under way.
const WAITING: [&str; 3] = [
    "SELECT hook, count(*), min(id) FROM deliveries
     WHERE state = 'waiting' AND lease_until IS NULL AND attempts = 0 GROUP BY hook",
    "SELECT hook, count(*), min(id) FROM deliveries
     WHERE state = 'waiting' AND lease_until IS NULL AND attempts > 0 GROUP BY hook",
    "SELECT hook, count(*), min(id) FROM deliveries WHERE lease_until IS NOT NULL GROUP BY hook",
];

/// Which deliveries to list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeliveryFilter {
    /// Only this state.
    pub state: Option<DeliveryState>,
    /// Only this hook's.
    pub hook: Option<String>,
    /// Only older ones than this, for the next page.
    pub before: Option<i64>,
    /// At most so many, newest first; all when absent.
    pub limit: Option<u32>,
}

/// One row of `deliveries`, with what it is about.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct DeliveryRow {
    /// The row.
    #[serde(flatten)]
    pub delivery: Delivery,
    /// Until when an attempt that is under way may last.
    pub lease_until: Option<Timestamp>,
    /// The event's type.
    #[serde(rename = "type")]
    pub event_type: Option<String>,
    /// The watch that it speaks of.
    pub watch_id: Option<i64>,
    /// That watch's asset.
    pub asset_id: Option<String>,
}

/// What became of a delivery that was to be attempted once more.
#[expect(missing_docs, reason = "each variant's sentence names its fields")]
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "result", rename_all = "snake_case")]
pub enum Retried {
    /// It is due now, at this hook.
    Due { hook: String },
    /// This hook is disabled: it is held until that is enabled.
    Held { hook: String },
    /// An attempt at it lasts just now, and decides for itself.
    UnderWay { hook: String },
    /// There is no such delivery.
    Unknown,
}

/// A portion of the dead deliveries of a hook.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Portion {
    /// How many are due now.
    pub due: u64,
    /// How many are held, since their hook is disabled.
    pub held: u64,
    /// Where the next portion begins; none after the last one.
    pub after: Option<i64>,
}

/// What is not delivered of one hook's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Backlog {
    /// The hook.
    pub hook: String,
    /// How many deliveries wait or are under way.
    pub waiting: i64,
    /// How many are held.
    pub held: i64,
    /// How many were given up on; tests, and what the end of an asset has superseded, are nobody's loss, and not counted.
    pub dead: i64,
    /// When the oldest of those that wait was made.
    pub oldest_waiting_at: Option<Timestamp>,
}

impl Store {
    /// The deliveries that `filter` lets through, newest first.
    pub async fn deliveries(&self, filter: DeliveryFilter) -> Result<Vec<DeliveryRow>, StoreError> {
        self.look(move |connection| list(connection, &filter)).await
    }

    /// Has these deliveries attempted once more, by a fresh schedule, all in one transaction; their attempts go on being
    /// counted. Says of each what became of it.
    pub async fn retry(&self, ids: Vec<i64>, now: Timestamp) -> Result<Vec<Retried>, StoreError> {
        self.write(move |connection| ids.iter().map(|id| retry(connection, *id, now)).collect()).await
    }

    /// Has the dead deliveries of a hook attempted once more whose events happened at `since` or later: those after
    /// `after`, a portion in one transaction.
    pub async fn retry_dead(
        &self,
        hook: String,
        since: Timestamp,
        after: i64,
        now: Timestamp,
    ) -> Result<Portion, StoreError> {
        self.write(move |connection| {
            let mut statement = connection.prepare_cached(&dead_sql())?;
            let rows =
                statement.query_map(params![hook, after, since.as_millis()], |row| Ok((row.get(0)?, row.get(1)?)))?;
            let rows: Vec<(i64, bool)> = rows.collect::<Result<_, _>>()?;
            let mut portion = Portion { after: rows.last().map(|(id, _)| *id), ..Portion::default() };
            for (id, _) in rows.into_iter().filter(|(_, missed)| *missed) {
                match retry(connection, id, now)? {
                    Retried::Due { .. } => portion.due += 1,
                    Retried::Held { .. } => portion.held += 1,
                    Retried::UnderWay { .. } | Retried::Unknown => {}
                }
            }
            Ok(portion)
        })
        .await
    }

    /// How many deliveries wait that tell of batches which have settled, by hook.
    pub async fn outstanding_of_batches(&self) -> Result<Vec<Outstanding>, StoreError> {
        self.look(|connection| {
            let mut statement = connection.prepare_cached(
                "SELECT hook, count(*), sum(attempts = 0 OR lease_until IS NOT NULL) FROM deliveries
                 WHERE watch_id IS NULL AND state = 'waiting'
                   AND (SELECT type FROM events WHERE seq = event_seq) = 'batch.settled'
                 GROUP BY hook ORDER BY hook",
            )?;
            let rows = statement.query_map([], |row| {
                let mut column = Columns { row, at: 0 };
                Ok(Outstanding { hook: column.text()?, waiting: column.next()?, untried: column.next()? })
            })?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// What is not delivered, by hook.
    pub async fn backlogs(&self) -> Result<Vec<Backlog>, StoreError> {
        self.look(backlogs).await
    }

    /// Writes a test event with its one delivery, which `owner` has leased for `lease`, and with the attempt that is about
    /// to be made. After a crash it is due again like any other.
    pub async fn begin_test(
        &self,
        event: Event,
        owner: String,
        lease: Duration,
        now: Timestamp,
    ) -> Result<Parcel, StoreError> {
        self.write(move |connection| {
            ledger::tell(connection, &event)?;
            // Ids only ever grow, so the latest delivery is the one that was just written; and nobody else's is leased.
            let id = connection.query_row(
                "SELECT id FROM deliveries WHERE id = (SELECT max(id) FROM deliveries)
                     AND (SELECT id FROM events WHERE seq = event_seq) = ?1",
                [&event.id],
                |row| row.get(0),
            )?;
            let owner = owner.clone();
            let terms = Terms { owner, lanes: Vec::new(), now, horizon: now, only: None, live: Vec::new() };
            ledger::lease_one(connection, id, &terms, now + lease)
        })
        .await
    }

    /// Finishes the attempt of a test. It is not repeated, and says nothing about its hook.
    ///
    /// # Errors
    /// [`StoreError::LeaseLost`] when it was claimed by somebody else meanwhile.
    pub async fn finish_test(
        &self,
        parcel: Parcel,
        attempt: Attempt,
        verdict: Verdict,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let lost = self
            .write(move |connection| {
                ledger::finish_attempt(connection, &parcel, &attempt, now)?;
                ledger::apply_verdict(connection, &parcel.delivery, &verdict, now)
            })
            .await?;
        if lost { Err(StoreError::LeaseLost) } else { Ok(()) }
    }
}

fn list(connection: &Connection, filter: &DeliveryFilter) -> Result<Vec<DeliveryRow>, StoreError> {
    let wanted = [
        ("state = ?", filter.state.map(|state| Value::Text(state.as_str().into()))),
        ("hook = ?", filter.hook.clone().map(Value::Text)),
        ("id < ?", filter.before.map(Value::Integer)),
    ];
    let (clauses, mut values): (Vec<_>, Vec<_>) =
        wanted.into_iter().filter_map(|(clause, value)| Some((clause, value?))).unzip();
    values.push(Value::Integer(filter.limit.map_or(-1, i64::from)));
    let filtered = if clauses.is_empty() { String::new() } else { format!("WHERE {}", clauses.join(" AND ")) };
    let sql = format!(
        "SELECT {DELIVERY}, lease_until, (SELECT type FROM events WHERE seq = event_seq), watch_id,
             (SELECT asset_id FROM watches WHERE watches.id = deliveries.watch_id)
         FROM deliveries {filtered} ORDER BY id DESC LIMIT ?"
    );
    let mut statement = connection.prepare_cached(&sql)?;
    let rows = statement.query_map(params_from_iter(values), listed)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn listed(row: &Row<'_>) -> rusqlite::Result<DeliveryRow> {
    let mut column = Columns { row, at: DELIVERY_COLUMNS };
    Ok(DeliveryRow {
        delivery: delivery(row)?,
        lease_until: column.instant()?,
        event_type: column.maybe_text()?,
        watch_id: column.next()?,
        asset_id: column.maybe_text()?,
    })
}

/// How many columns [`DELIVERY`] names.
const DELIVERY_COLUMNS: usize = 11;

/// A lease that has run out is due as it is.
fn retry(connection: &Connection, id: i64, now: Timestamp) -> Result<Retried, StoreError> {
    let sql =
        "SELECT hook, lease_until > ?2, EXISTS (SELECT 1 FROM hooks WHERE name = hook AND disabled_at IS NOT NULL)
               FROM deliveries WHERE id = ?1";
    let mut statement = connection.prepare_cached(sql)?;
    let found = statement.query_row(params![id, now.as_millis()], |row| {
        let mut column = Columns { row, at: 0 };
        Ok((column.text()?, column.next()?, column.next()?))
    });
    let Some((hook, leased, disabled)): Option<(String, Option<bool>, bool)> = found.optional()? else {
        return Ok(Retried::Unknown);
    };
    if leased == Some(true) {
        return Ok(Retried::UnderWay { hook });
    }
    let (state, due_at) = if disabled { ("held", None) } else { ("waiting", Some(now.as_millis())) };
    connection
        .prepare_cached(
            "UPDATE deliveries SET state = ?2, due_at = ?3, failures = 0, finished_at = NULL, lease_owner = NULL,
                 lease_until = NULL WHERE id = ?1",
        )?
        .execute(params![id, state, due_at])?;
    Ok(if disabled { Retried::Held { hook } } else { Retried::Due { hook } })
}

fn backlogs(connection: &Connection) -> Result<Vec<Backlog>, StoreError> {
    let mut backlogs = std::collections::BTreeMap::<String, Backlog>::new();
    let mut first = std::collections::BTreeMap::<String, i64>::new();
    for sql in WAITING {
        let mut statement = connection.prepare_cached(sql)?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let mut column = Columns { row, at: 0 };
            let (hook, count, id) = (column.text()?, column.next::<i64>()?, column.next::<i64>()?);
            backlogs.entry(hook.clone()).or_default().waiting += count;
            let first = first.entry(hook).or_insert(id);
            *first = id.min(*first);
        }
    }
    let mut created = connection.prepare_cached("SELECT created_at FROM deliveries WHERE id = ?1")?;
    for (hook, id) in first {
        // Ids grow with time, so the lowest is the oldest.
        let at = created.query_row([id], |row| row.get(0)).map(Timestamp::from_millis)?;
        backlogs.entry(hook).or_default().oldest_waiting_at = Some(at);
    }
    let sql = format!(
        "SELECT hook, sum(state = 'held'), sum(state = 'dead' AND {MISSED}) FROM deliveries
         WHERE state IN ('dead', 'held') GROUP BY hook"
    );
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let mut column = Columns { row, at: 0 };
        let backlog = backlogs.entry(column.text()?).or_default();
        (backlog.held, backlog.dead) = (column.next()?, column.next()?);
    }
    Ok(backlogs.into_iter().map(|(hook, backlog)| Backlog { hook, ..backlog }).collect())
}

#[cfg(test)]
mod tests {
    use super::super::lease::tests::{assert_searches, full, plan};
    use super::super::lock;
    use super::*;

    #[test]
    fn the_operator_does_not_read_what_was_delivered() {
        let directory = tempfile::tempdir().unwrap();
        let store = full(&directory);
        let connection = lock(&store.shared.writer);
        for analyze in ["", "ANALYZE"] {
            connection.execute_batch(analyze).unwrap();
            assert_searches(&connection, &dead_sql(), "deliveries_dead (hook=? AND rowid>?");
            for sql in WAITING {
                let plan = plan(&connection, sql);
                assert!(plan[0].contains(" INDEX deliveries_") && plan.len() == 1, "{plan:?}");
            }
        }
    }
}
