//! What is due, in a lane of watches or of deliveries: the same question to two tables.
//!
//! A free row is in the index `(lane, due_at)`, a leased one in the small index `(lane, lease_until)`; so neither a claim
//! nor the search for the next due instant steps over rows that cannot be taken.

use std::time::Duration;

use rusqlite::{Connection, Row, params};

use super::{Lane, StoreError, Terms};
use crate::clock::Timestamp;

/// A lease that ends later than this was written by a clock that has been set back since: it is over.
pub(super) const LONGEST_LEASE: Duration = Duration::from_secs(2 * 3_600);

/// Rows that have an index of their own, and the instant by which it is sorted.
#[derive(Clone, Copy)]
pub(super) struct Sort {
    rows: &'static str,
    instant: &'static str,
}

pub(super) const FREE: Sort = Sort { rows: "state = 'waiting' AND lease_until IS NULL", instant: "due_at" };
/// Deliveries that have never been attempted, and those that have.
pub(super) const FIRST: Sort =
    Sort { rows: "state = 'waiting' AND lease_until IS NULL AND attempts = 0", instant: "due_at" };
pub(super) const AGAIN: Sort =
    Sort { rows: "state = 'waiting' AND lease_until IS NULL AND attempts > 0", instant: "due_at" };
pub(super) const LEASED: Sort =
    Sort { rows: "lease_until IS NOT NULL AND id NOT IN (SELECT value FROM json_each(?3))", instant: "lease_until" };

/// A table that is claimed from.
pub(super) struct Line {
    pub(super) table: &'static str,
    /// The column that holds the lane.
    pub(super) lane: &'static str,
    /// The column that holds the watch's id.
    pub(super) watch: &'static str,
    /// A condition for a row, `due`, that must not overtake another one.
    pub(super) in_order: &'static str,
}

/// The watches that a claim is limited to, as a JSON list for `json_each`.
pub(super) fn only(terms: &Terms) -> Result<Option<String>, StoreError> {
    let json = terms.only.as_ref().map(serde_json::to_string).transpose();
    json.map_err(|error| StoreError::Broken(error.to_string()))
}

/// The rows that the claimer is at, likewise.
pub(super) fn live(terms: &Terms) -> Result<String, StoreError> {
    serde_json::to_string(&terms.live).map_err(|error| StoreError::Broken(error.to_string()))
}

/// What is asked for: in which lane, by which terms, and of which watches, see [`only`].
pub(super) type Ask<'a> = (&'a Lane, &'a Terms, Option<&'a str>);

/// The rows of these sorts to claim in a lane, at most its room, as `read` makes them out of `columns` (the id first): of
/// each sort what is due or has expired, oldest first, then what a clock that was set back since has put out of reach.
pub(super) fn due<T>(
    connection: &Connection,
    (line, sorts): (&Line, &[Sort]),
    (lane, terms, only): Ask<'_>,
    columns: &str,
    read: impl Fn(&Row<'_>) -> rusqlite::Result<T>,
) -> Result<Vec<(i64, T)>, StoreError> {
    // One more, to have another one than the one to avoid.
    let room = lane.room as usize + usize::from(lane.avoid.is_some());
    let live = live(terms)?;
    let mut rows = Vec::new();
    let tests = sorts.iter().flat_map(|sort| {
        let late = if sort.instant == LEASED.instant { terms.now + LONGEST_LEASE } else { terms.horizon };
        [(*sort, "<=", terms.now), (*sort, ">", late)]
    });
    for (sort, test, bound) in tests {
        let left = i64::try_from(room.saturating_sub(rows.len())).unwrap_or(i64::MAX);
        if left == 0 {
            break;
        }
        let mut statement = connection.prepare_cached(&due_sql(line, columns, sort, test))?;
        let values = params![lane.name, only, live, bound.as_millis(), left];
        for row in statement.query_map(values, |row| Ok((row.get(0)?, read(row)?)))? {
            rows.push(row?);
        }
    }
    if let (Some(avoid), true) = (lane.avoid, rows.len() > 1) {
        rows.retain(|(id, _)| *id != avoid);
    }
    rows.truncate(lane.room as usize);
    Ok(rows)
}

/// When the first row of these sorts is due or its lease expires.
pub(super) fn next_due(
    connection: &Connection,
    (line, sorts): (&Line, &[Sort]),
    (lane, terms, only): Ask<'_>,
) -> Result<Option<Timestamp>, StoreError> {
    let values = params![lane.name, only, live(terms)?];
    let at: Option<i64> = connection.prepare_cached(&next_due_sql(line, sorts))?.query_row(values, |row| row.get(0))?;
    Ok(at.map(Timestamp::from_millis))
}

/// The first `?5` of the rows below whose instant compares so with `?4`.
fn due_sql(line: &Line, columns: &str, sort: Sort, test: &str) -> String {
    let rows = rows(line, sort);
    let instant = sort.instant;
    format!("SELECT {columns} {rows} AND {instant} {test} ?4 ORDER BY {instant} LIMIT ?5")
}

fn next_due_sql(line: &Line, sorts: &[Sort]) -> String {
    let first = |sort: &Sort| {
        let (rows, instant) = (rows(line, *sort), sort.instant);
        format!("SELECT * FROM (SELECT {instant} AS at {rows} ORDER BY {instant} LIMIT 1)")
    };
    let firsts: Vec<String> = sorts.iter().map(first).collect();
    // `?3` has to be there, whatever the sorts.
    format!("SELECT min(at) FROM ({}) WHERE ?3 IS NOT NULL", firsts.join(" UNION ALL "))
}

/// What can be claimed, now or later, from the lane `?1`; only of the watches `?2` unless that is null, and not `?3`.
fn rows(line: &Line, sort: Sort) -> String {
    let Line { table, lane, watch, in_order } = line;
    let rows = sort.rows;
    format!(
        "FROM {table} AS due WHERE {lane} = ?1 AND {rows}
             AND (?2 IS NULL OR {watch} IN (SELECT value FROM json_each(?2))) {in_order}"
    )
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::{Blocking, Store, ledger, lock, open, watches};
    use super::*;

    /// A database with many rows of each kind, in two lanes.
    pub fn full(directory: &tempfile::TempDir) -> Store {
        let store = open::open(&directory.path().join("assetwatch.db"), Blocking::aside()).unwrap();
        let numbers = "WITH RECURSIVE number (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < 600)";
        let lease = "iif(n % 3 = 0, 'us', NULL), iif(n % 3 = 0, n, NULL)";
        let rows = format!(
            "{numbers} INSERT INTO watches (asset_id, account, due_at, lease_owner, lease_until)
                 SELECT 'ast_' || n, 'lane ' || (n % 2), n, {lease} FROM number;
             {numbers} INSERT INTO events (id, watch_id, type, body, created_at) SELECT n, n, 'x', x'', n FROM number;
             {numbers} INSERT INTO deliveries (event_seq, hook, watch_id, due_at, lease_owner, lease_until, created_at)
                 SELECT n, 'lane ' || (n % 2), n, n, {lease}, n FROM number;"
        );
        lock(&store.shared.writer).execute_batch(&rows).unwrap();
        store
    }

    /// The steps of SQLite's plan for `sql`.
    pub fn plan(connection: &Connection, sql: &str) -> Vec<String> {
        let mut statement = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
        let parameters = vec![rusqlite::types::Null; statement.parameter_count()];
        let steps = statement.query_map(rusqlite::params_from_iter(parameters), |row| row.get("detail")).unwrap();
        steps.collect::<Result<_, _>>().unwrap()
    }

    /// The plan searches by this index, and never reads a whole table or sorts.
    pub fn assert_searches(connection: &Connection, sql: &str, index: &str) {
        let plan = plan(connection, sql);
        assert!(
            plan.iter().any(|step| step.starts_with("SEARCH") && step.contains(index)),
            "{index}: {plan:#?}\n{sql}"
        );
        for step in plan {
            let of_one_row = step.starts_with("SCAN (subquery") || step.contains("json_each") || step == "SCAN at";
            assert!(!step.contains("SCAN") || of_one_row, "{step}\n{sql}");
            assert!(!step.contains("TEMP B-TREE"), "{step}\n{sql}");
        }
    }

    #[test]
    fn a_claim_reads_no_more_than_it_takes() {
        let directory = tempfile::tempdir().unwrap();
        let store = full(&directory);
        let connection = lock(&store.shared.writer);
        // The statistics of another program's ANALYZE must not change the plan for the worse.
        for analyze in ["", "ANALYZE"] {
            connection.execute_batch(analyze).unwrap();
            for (line, sort, index) in [
                (&watches::LINE, FREE, "watches_due (account=?"),
                (&watches::LINE, LEASED, "watches_leased (account=?"),
                (&ledger::LINE, FIRST, "deliveries_first (hook=?"),
                (&ledger::LINE, AGAIN, "deliveries_again (hook=?"),
                (&ledger::LINE, LEASED, "deliveries_leased (hook=?"),
            ] {
                for test in ["<=", ">"] {
                    let sought = format!("{index} AND {}", sort.instant);
                    assert_searches(&connection, &due_sql(line, "id", sort, test), &sought);
                }
                assert_searches(&connection, &next_due_sql(line, &[sort]), index);
            }
            assert_searches(&connection, watches::UP_TO_TWO_WAIT, "(account=?");
        }
    }
}
