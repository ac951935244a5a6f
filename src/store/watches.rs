//! Watches: adding, claiming, recording, looking.

use std::sync::Arc;

use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension, params, params_from_iter};

use super::lease::{self, Line, Sort};
use super::rows::{Columns, WATCH, watch};
use super::{Claimed, Lane, Store, StoreError, TellBatch, Terms, batches, ledger};
use crate::clock::Timestamp;
use crate::event::{Batch, Event};
use crate::watch::{State, Watch};

pub(super) const LINE: Line = Line { table: "watches", lane: "account", watch: "id", in_order: "" };
const SORTS: [Sort; 2] = [lease::LEASED, lease::FREE];

/// Of a lane with a million watches it counts no more than are asked about, and of those that nobody here polls none.
pub(super) const UP_TO_TWO_WAIT: &str = "SELECT count(*) FROM (SELECT 1 FROM watches WHERE account = ?1
         AND state = 'waiting' AND (?2 IS NULL OR id IN (SELECT value FROM json_each(?2))) LIMIT 2)";

/// Which watches to list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Only these watches.
    pub ids: Option<Vec<i64>>,
    /// Only this asset.
    pub asset_id: Option<String>,
    /// Only assets with this in their id; letter case counts.
    pub search: Option<String>,
    /// Only this state.
    pub state: Option<State>,
    /// Only this word of the API's.
    pub status: Option<String>,
    /// Only this batch.
    pub batch: Option<String>,
    /// Only this account.
    pub account: Option<String>,
    /// Only watches older than this one, for the next page.
    pub before: Option<i64>,
    /// At most so many, newest first; all when absent.
    pub limit: Option<u32>,
}

impl Store {
    /// Takes leases on due watches, oldest first, in the order of the lanes.
    ///
    /// After a crash the leases stand until they expire; then the watches are due again.
    pub async fn claim_watches(&self, terms: Terms) -> Result<Vec<Claimed<Watch>>, StoreError> {
        self.write(move |connection| {
            let only = lease::only(&terms)?;
            terms.lanes.iter().map(|lane| claim_lane(connection, lane, &terms, only.as_deref())).collect()
        })
        .await
    }

    /// Writes a watch as it stands after a poll, with the events that tell of it and one delivery for each of their
    /// hooks, all or nothing, if `after.generation` still holds the lease. If it was the last of a closed batch, that
    /// settles with it, is told of as `tell` says, and is returned.
    ///
    /// # Errors
    /// [`StoreError::LeaseLost`] when somebody else has claimed the watch since, or it has ended.
    pub async fn record(
        &self,
        after: impl Into<Arc<Watch>>,
        events: impl Into<Arc<[Event]>>,
        tell: TellBatch,
    ) -> Result<Option<Batch>, StoreError> {
        let (after, events) = (after.into(), events.into());
        self.write(move |connection| update(connection, &after, &events, &tell)).await
    }

    /// Ends waiting watches by hand, in one transaction: `rule` makes what is written out of what stands there, and a
    /// batch may settle with it as with [`Store::record`]. Returns each as it stands then, in the order of the ids; one
    /// that does not wait stays as it is, and one that is not there is none. The rule is asked again when the transaction has
    /// to be begun anew.
    pub async fn end(
        &self,
        ids: Vec<i64>,
        mut rule: impl FnMut(&Watch) -> (Watch, Vec<Event>) + Send + 'static,
        tell: TellBatch,
    ) -> Result<Vec<Option<Watch>>, StoreError> {
        self.write(move |connection| {
            let sql = format!("SELECT {WATCH} FROM watches WHERE id = ?1");
            let mut stands = connection.prepare_cached(&sql)?;
            let mut end = |id: &i64| {
                let before = match stands.query_row([id], watch).optional()? {
                    Some(before) if before.state == State::Waiting => before,
                    ended => return Ok(ended),
                };
                let (after, events) = rule(&before);
                update(connection, &after, &events, &tell)?;
                Ok(Some(after))
            };
            ids.iter().map(&mut end).collect()
        })
        .await
    }

    /// Has a waiting watch polled now; one that is just being polled is left to that. The watch as it stands then, which
    /// may have ended; `None` when there is no such watch.
    pub async fn poll_now(&self, id: i64, now: Timestamp) -> Result<Option<Watch>, StoreError> {
        self.write(move |connection| {
            connection
                .prepare_cached(
                    "UPDATE watches SET due_at = ?2 WHERE id = ?1 AND state = 'waiting' AND lease_until IS NULL AND due_at > ?2",
                )?
                .execute(params![id, now.as_millis()])?;
            let sql = format!("SELECT {WATCH} FROM watches WHERE id = ?1");
            Ok(connection.prepare_cached(&sql)?.query_row([id], watch).optional()?)
        })
        .await
    }

    /// The newest watch of each of these assets, of one account or of all, in their order.
    pub async fn newest(
        &self,
        asset_ids: Vec<String>,
        account: Option<String>,
    ) -> Result<Vec<Option<Watch>>, StoreError> {
        self.look(move |connection| {
            let mut filter = Filter { account, limit: Some(1), ..Filter::default() };
            let newest = |asset_id| {
                filter.asset_id = Some(asset_id);
                Ok(list(connection, &filter, usize::MAX)?.0.pop())
            };
            asset_ids.into_iter().map(newest).collect()
        })
        .await
    }

    /// The watches that `filter` lets through, newest first.
    pub async fn watches(&self, filter: Filter) -> Result<Vec<Watch>, StoreError> {
        Ok(self.page(filter, usize::MAX).await?.0)
    }

    /// The same, and no more after `bytes` of text: a caller's metadata may be most of a watch. And whether there may be
    /// more.
    pub async fn page(&self, filter: Filter, bytes: usize) -> Result<(Vec<Watch>, bool), StoreError> {
        self.look(move |connection| list(connection, &filter, bytes)).await
    }

    /// How many watches wait.
    pub async fn waiting(&self) -> Result<i64, StoreError> {
        self.look(|connection| {
            let sql = "SELECT count(*) FROM watches WHERE state = 'waiting'";
            Ok(connection.prepare_cached(sql)?.query_row([], |row| row.get(0))?)
        })
        .await
    }

    /// The names of the accounts for which watches wait.
    pub async fn waiting_accounts(&self) -> Result<Vec<String>, StoreError> {
        self.look(|connection| {
            // One step in the index for each account, however many watches it has.
            let mut statement = connection.prepare_cached(
                "WITH RECURSIVE one (account) AS (
                     SELECT min(account) FROM watches WHERE state = 'waiting'
                     UNION ALL
                     SELECT (SELECT min(account) FROM watches WHERE state = 'waiting' AND account > one.account)
                       FROM one WHERE one.account IS NOT NULL)
                 SELECT account FROM one WHERE account IS NOT NULL",
            )?;
            let names = statement.query_map([], |row| Columns { row, at: 0 }.text())?;
            Ok(names.collect::<Result<_, _>>()?)
        })
        .await
    }
}

fn claim_lane(
    connection: &Connection,
    lane: &Lane,
    terms: &Terms,
    only: Option<&str>,
) -> Result<Claimed<Watch>, StoreError> {
    let due = match preferred(connection, lane, terms, only)? {
        Some(preferred) => vec![preferred],
        None => lease::due(connection, (&LINE, &SORTS), (lane, terms, only), WATCH, watch)?,
    };
    let until = terms.now + lane.lease;
    // Not with RETURNING, which goes by way of a table of its own: what is written is known.
    let mut lease = connection
        .prepare_cached("UPDATE watches SET lease_owner = ?2, lease_until = ?3, generation = ?4 WHERE id = ?1")?;
    let mut rows = Vec::with_capacity(due.len());
    for (id, mut watch) in due {
        watch.generation = watch.generation.saturating_add(1);
        watch.lease_owner = Some(terms.owner.clone());
        watch.lease_until = Some(until);
        lease.execute(params![id, terms.owner, until.as_millis(), watch.generation])?;
        rows.push(watch);
    }
    let waiting: i64 =
        connection.prepare_cached(UP_TO_TWO_WAIT)?.query_row(params![lane.name, only], |row| row.get(0))?;
    // A lane that is full is asked again when it has room, whatever is due.
    let full = rows.len() >= lane.room as usize;
    let next_due = if full { None } else { lease::next_due(connection, (&LINE, &SORTS), (lane, terms, only))? };
    Ok(Claimed { lane: lane.name.clone(), rows, next_due, alone: waiting < 2 })
}

/// The watch that the lane would rather have than any other, if it is due.
fn preferred(
    connection: &Connection,
    lane: &Lane,
    terms: &Terms,
    only: Option<&str>,
) -> Result<Option<(i64, Watch)>, StoreError> {
    let Some(id) = lane.prefer else { return Ok(None) };
    let sql = format!(
        "SELECT {WATCH} FROM watches WHERE id = ?1 AND account = ?2 AND state = 'waiting' AND lease_until IS NULL
             AND due_at <= ?3 AND (?4 IS NULL OR id IN (SELECT value FROM json_each(?4)))"
    );
    let values = params![id, lane.name, terms.now.as_millis(), only];
    let due = connection.prepare_cached(&sql)?.query_row(values, watch).optional()?;
    Ok(due.map(|watch| (id, watch)))
}

fn update(
    connection: &Connection,
    after: &Watch,
    events: &[Event],
    tell: &TellBatch,
) -> Result<Option<Batch>, StoreError> {
    let asset = &after.asset;
    let changed = connection.prepare_cached(update_sql(after))?.execute(params![
        after.id,
        after.generation,
        after.state.as_str(),
        after.due_at.map(Timestamp::as_millis),
        after.polls,
        after.streaks.waiting,
        after.streaks.failures,
        after.streaks.rejections,
        after.missing.map(|first| first.at.as_millis()),
        asset.status,
        asset.kind,
        asset.url,
        asset.width,
        asset.height,
        asset.duration,
        asset.frames,
        after.reason.map(crate::watch::Reason::as_str),
        after.last_error,
        after.first_polled_at.map(Timestamp::as_millis),
        after.last_polled_at.map(Timestamp::as_millis),
        after.processing_at.map(Timestamp::as_millis),
        after.waiting_at.map(Timestamp::as_millis),
        after.settled_at.map(Timestamp::as_millis),
        after.lost_base,
        after.missing.map(|first| first.base),
    ])?;
    if changed == 0 {
        return Err(StoreError::LeaseLost);
    }
    events.iter().try_for_each(|event| ledger::tell(connection, event))?;
    match (&after.batch, after.settled_at) {
        (Some(batch), Some(ended_at)) => batches::settle(connection, batch, ended_at, tell),
        _ => Ok(None),
    }
}

/// SQLite checks a list of words by way of a table that it makes for it, and a constraint only where its column is
/// written. So `state` and `reason` are written when they change: while a watch waits, both are as they always were.
fn update_sql(after: &Watch) -> &'static str {
    macro_rules! update {
        ($end:literal) => {
            concat!(
                "UPDATE watches SET ",
                $end,
                "due_at = ?4, lease_owner = NULL, lease_until = NULL, polls = ?5, waiting_streak = ?6, failures = ?7,
                     rejections = ?8, missing_at = ?9, status = ?10, type = ?11, url = ?12, width = ?13, height = ?14,
                     duration = ?15, frames = ?16, last_error = ?18, first_polled_at = ?19, last_polled_at = ?20,
                     processing_at = ?21, waiting_at = ?22, settled_at = ?23, lost_base = ?24, missing_base = ?25
                 WHERE id = ?1 AND generation = ?2 AND state = 'waiting'"
            )
        };
    }
    match (after.state, after.reason) {
        (State::Waiting, None) => update!(""),
        (State::Waiting, Some(_)) => update!("reason = ?17, "),
        (_, None) => update!("state = ?3, "),
        (_, Some(_)) => update!("state = ?3, reason = ?17, "),
    }
}

fn list(connection: &Connection, filter: &Filter, bytes: usize) -> Result<(Vec<Watch>, bool), StoreError> {
    let ids = filter.ids.as_ref().map(serde_json::to_string).transpose();
    let ids = ids.map_err(|error| StoreError::Broken(error.to_string()))?;
    let text = |text: &Option<String>| text.clone().map(Value::Text);
    let wanted = [
        ("id IN (SELECT value FROM json_each(?))", ids.map(Value::Text)),
        ("asset_id = ?", text(&filter.asset_id)),
        ("instr(asset_id, ?) > 0", text(&filter.search)),
        ("state = ?", filter.state.map(|state| Value::Text(state.as_str().into()))),
        ("status = ?", text(&filter.status)),
        ("batch = ?", text(&filter.batch)),
        ("account = ?", text(&filter.account)),
        ("id < ?", filter.before.map(Value::Integer)),
    ];
    let (clauses, mut values): (Vec<_>, Vec<_>) =
        wanted.into_iter().filter_map(|(clause, value)| Some((clause, value?))).unzip();
    values.push(Value::Integer(filter.limit.map_or(-1, i64::from)));
    let filtered = if clauses.is_empty() { String::new() } else { format!("WHERE {}", clauses.join(" AND ")) };
    let sql = format!("SELECT {WATCH} FROM watches {filtered} ORDER BY id DESC LIMIT ?");
    let mut statement = connection.prepare_cached(&sql)?;
    let (mut watches, mut size) = (Vec::new(), 0);
    for watch in statement.query_map(params_from_iter(values), watch)? {
        let watch = watch?;
        size += text_of(&watch);
        watches.push(watch);
        if size >= bytes {
            return Ok((watches, true));
        }
    }
    let more = filter.limit.is_some_and(|limit| watches.len() >= limit as usize);
    Ok((watches, more))
}

/// The bytes of what has no fixed size.
fn text_of(watch: &Watch) -> usize {
    let Watch { asset_id, asset, last_error, metadata, callback_url, .. } = watch;
    let texts = [&asset.status, &asset.kind, &asset.url, last_error, metadata, callback_url];
    asset_id.len() + texts.into_iter().flatten().map(String::len).sum::<usize>()
}
