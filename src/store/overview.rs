//! The whole in a few numbers.

use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension, params};
use serde::Serialize;
use utoipa::ToSchema;

use super::rows::Columns;
use super::{Store, StoreError};
use crate::clock::Timestamp;
use crate::watch::State;

/// So many of those that settled last say how long assets wait.
const SAMPLE: u32 = 1_000;
/// A word of the API's that is not among the most frequent ones is not gone through.
const MOST_STATUSES: usize = 20;

/// The watches in a few numbers, from one snapshot.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Overview {
    /// How many wait, settled, were abandoned, were cancelled.
    pub states: BTreeMap<&'static str, i64>,
    /// How many settled with each of the most frequent words of the API's.
    pub statuses: BTreeMap<String, i64>,
    /// How many settled lately.
    pub settled: Vec<Settled>,
    /// How long those waited that settled lately.
    pub waiting_times: Vec<WaitingTime>,
}

/// How many watches settled in one minute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Settled {
    /// Its beginning.
    pub minute: Timestamp,
    /// How many.
    pub settled: i64,
}

/// How long the assets of one type waited, from `add` to their end.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct WaitingTime {
    /// The API's word for the type, or `unknown`.
    #[serde(rename = "type")]
    pub kind: String,
    /// How many there are.
    pub settled: i64,
    /// In seconds.
    pub mean_seconds: f64,
    /// Of the one that waited longest, in seconds.
    pub longest_seconds: f64,
}

/// What is due and not claimed yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lateness {
    /// The account.
    pub account: String,
    /// Since when the longest overdue of its watches has been due.
    pub oldest_due_at: Timestamp,
}

impl Store {
    /// The watches in a few numbers: how many there are of each kind, how many settled in each minute of the last
    /// `minutes` ones, and how long the latest of those waited. It reads an index from end to end: 0.1 s for a million rows.
    pub async fn overview(&self, minutes: u32, now: Timestamp) -> Result<Overview, StoreError> {
        self.look(move |connection| overview(connection, minutes, now)).await
    }

    /// For each account for which a watch is due and unclaimed, since when: one step in the index for each account.
    pub async fn lateness(&self, now: Timestamp) -> Result<Vec<Lateness>, StoreError> {
        let accounts = self.waiting_accounts().await?;
        self.look(move |connection| {
            let mut statement = connection.prepare_cached(
                "SELECT min(due_at) FROM watches WHERE account = ?1 AND state = 'waiting' AND lease_until IS NULL",
            )?;
            let mut late = Vec::new();
            for account in accounts {
                let due: Option<i64> = statement.query_row([&account], |row| row.get(0)).optional()?.flatten();
                late.extend(
                    due.map(Timestamp::from_millis)
                        .filter(|due| *due <= now)
                        .map(|oldest_due_at| Lateness { account, oldest_due_at }),
                );
            }
            Ok(late)
        })
        .await
    }
}

fn overview(connection: &Connection, minutes: u32, now: Timestamp) -> Result<Overview, StoreError> {
    let mut overview = Overview::default();
    let waiting = connection
        .prepare_cached("SELECT count(*) FROM watches WHERE state = 'waiting'")?
        .query_row([], |row| row.get(0))?;
    overview.states.insert(State::Waiting.as_str(), waiting);
    let mut statement = connection.prepare_cached(
        "SELECT state, status, count(*) FROM watches INDEXED BY watches_ended WHERE settled_at IS NOT NULL
         GROUP BY state, status",
    )?;
    let mut rows = statement.query([])?;
    let mut statuses: Vec<(i64, String)> = Vec::new();
    while let Some(row) = rows.next()? {
        let mut column = Columns { row, at: 0 };
        let (state, status, count): (_, _, i64) = (column.text()?, column.maybe_text()?, column.next()?);
        let Some(state) = State::parse(&state) else { continue };
        *overview.states.entry(state.as_str()).or_default() += count;
        statuses.extend(status.filter(|_| state == State::Settled).map(|status| (count, status)));
    }
    statuses.sort_by(|one, other| other.cmp(one));
    statuses.truncate(MOST_STATUSES);
    lately(connection, &statuses, minutes, now, &mut overview)?;
    overview.statuses = statuses.into_iter().map(|(count, status)| (status, count)).collect();
    Ok(overview)
}

fn lately(
    connection: &Connection,
    statuses: &[(i64, String)],
    minutes: u32,
    now: Timestamp,
    overview: &mut Overview,
) -> Result<(), StoreError> {
    let minute = |at: i64| at.div_euclid(60_000);
    let first = minute(now.as_millis()) - i64::from(minutes.max(1)) + 1;
    let mut counts: BTreeMap<i64, i64> = (first..=minute(now.as_millis())).map(|minute| (minute, 0)).collect();
    let mut waits: BTreeMap<String, (i64, i64, i64)> = BTreeMap::new();
    let mut settled = connection.prepare_cached(
        "SELECT settled_at / 60000, count(*) FROM watches
         WHERE state = 'settled' AND status = ?1 AND settled_at >= ?2 GROUP BY 1",
    )?;
    let mut sample = connection.prepare_cached(
        "SELECT coalesce(type, 'unknown'), settled_at - created_at FROM watches
         WHERE state = 'settled' AND status = ?1 AND settled_at >= ?2 ORDER BY settled_at DESC LIMIT ?3",
    )?;
    for (_, status) in statuses {
        let mut rows = settled.query(params![status, first * 60_000])?;
        while let Some(row) = rows.next()? {
            if let Some(count) = counts.get_mut(&row.get(0)?) {
                *count += row.get::<_, i64>(1)?;
            }
        }
        let mut rows = sample.query(params![status, first * 60_000, SAMPLE])?;
        while let Some(row) = rows.next()? {
            let mut column = Columns { row, at: 0 };
            let (kind, wait): (_, i64) = (column.text()?, column.next()?);
            let (count, sum, longest) = waits.entry(kind).or_default();
            *count += 1;
            *sum += wait.max(0);
            *longest = (*longest).max(wait);
        }
    }
    let seconds = |millis: i64| millis.max(0) as f64 / 1_000.0;
    overview.settled = counts
        .into_iter()
        .map(|(minute, settled)| Settled { minute: Timestamp::from_millis(minute * 60_000), settled })
        .collect();
    overview.waiting_times = waits
        .into_iter()
        .map(|(kind, (settled, sum, longest))| WaitingTime {
            kind,
            settled,
            mean_seconds: seconds(sum / settled.max(1)),
            longest_seconds: seconds(longest),
        })
        .collect();
    // Types are the API's words, of which there may be any number.
    overview.waiting_times.sort_by_key(|time| std::cmp::Reverse(time.settled));
    overview.waiting_times.truncate(MOST_STATUSES);
    Ok(())
}
