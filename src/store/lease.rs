//! What is due, in a lane of watches or of deliveries: the same question to two tables.
//!
//! A free row is in the index `(lane, due_at)`, a leased one in the small index `(lane, lease_until)`; so neither a claim
//! nor the search for the next due instant steps over rows that cannot be taken.

use std::time::Duration;

use rusqlite::{Connection, Row, params};

use super::{Lane, StoreError, Terms};
use crate::clock::Timestamp;

/// A lease that ends later than this was written by a clock that has been set back since: it is over.
const LONGEST_LEASE: Duration = Duration::from_secs(2 * 3_600);

const FREE: &str = "state = 'waiting' AND lease_until IS NULL";
const LEASED: &str = "lease_until IS NOT NULL";

/// A table that is claimed from.
pub(super) struct Line {
    pub(super) table: &'static str,
    /// The column that holds the lane.
    pub(super) lane: &'static str,
    /// The column that holds the watch's id.
    pub(super) watch: &'static str,
    /// A condition for a row of `due` that must not overtake another one.
    pub(super) in_order: &'static str,
}

/// The watches that a claim is limited to, as a JSON list for `json_each`.
pub(super) fn only(terms: &Terms) -> Result<Option<String>, StoreError> {
    let json = terms.only.as_ref().map(serde_json::to_string).transpose();
    json.map_err(|error| StoreError::Broken(error.to_string()))
}

/// The rows to claim in a lane, at most its room, as `read` makes them out of `columns` (the id first): expired leases,
/// then what is due, oldest first, then what a clock that was set back since has put out of reach.
pub(super) fn due<T>(
    connection: &Connection,
    line: &Line,
    (lane, terms, only): (&Lane, &Terms, Option<&str>),
    columns: &str,
    read: impl Fn(&Row<'_>) -> rusqlite::Result<T>,
) -> Result<Vec<(i64, T)>, StoreError> {
    let Line { table, lane: column, watch, in_order } = line;
    let late_lease = terms.now + LONGEST_LEASE;
    let sorts = [
        (LEASED, "lease_until", "<=", terms.now),
        (LEASED, "lease_until", ">", late_lease),
        (FREE, "due_at", "<=", terms.now),
        (FREE, "due_at", ">", terms.horizon),
    ];
    // One more, to have another one than the one to avoid.
    let room = lane.room as usize + usize::from(lane.avoid.is_some());
    let mut rows = Vec::new();
    for (which, instant, test, bound) in sorts {
        let sql = format!(
            "SELECT {columns} FROM {table} AS due
             WHERE {column} = ?1 AND {which} AND {instant} {test} ?2
               AND (?4 IS NULL OR {watch} IN (SELECT value FROM json_each(?4))) {in_order}
             ORDER BY {instant} LIMIT ?3"
        );
        let left = i64::try_from(room.saturating_sub(rows.len())).unwrap_or(i64::MAX);
        let mut statement = connection.prepare_cached(&sql)?;
        let found = statement
            .query_map(params![lane.name, bound.as_millis(), left, only], |row| Ok((row.get(0)?, read(row)?)))?;
        for row in found {
            rows.push(row?);
        }
    }
    if let (Some(avoid), true) = (lane.avoid, rows.len() > 1) {
        rows.retain(|(id, _)| *id != avoid);
    }
    rows.truncate(lane.room as usize);
    Ok(rows)
}

/// When the first free row of a lane is due or its first lease expires.
pub(super) fn next_due(
    connection: &Connection,
    line: &Line,
    lane: &str,
    only: Option<&str>,
) -> Result<Option<Timestamp>, StoreError> {
    let Line { table, lane: column, watch, in_order } = line;
    let mine = format!("(?2 IS NULL OR {watch} IN (SELECT value FROM json_each(?2)))");
    let sql = format!(
        "SELECT min(at) FROM (
             SELECT * FROM (SELECT due_at AS at FROM {table} AS due
                 WHERE {column} = ?1 AND {FREE} AND {mine} {in_order} ORDER BY due_at LIMIT 1)
             UNION ALL
             SELECT * FROM (SELECT lease_until AS at FROM {table}
                 WHERE {column} = ?1 AND {LEASED} AND {mine} ORDER BY lease_until LIMIT 1))"
    );
    let at: Option<i64> = connection.prepare_cached(&sql)?.query_row(params![lane, only], |row| row.get(0))?;
    Ok(at.map(Timestamp::from_millis))
}
