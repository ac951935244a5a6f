//! Events, deliveries and attempts: the ledger of what is told to whom, as it is written. It is read in `history.rs`.

use rusqlite::{Connection, OptionalExtension, params};

use super::lease::{self, AGAIN, Ask, FIRST, LEASED, Line, Sort};
use super::rows::{Columns, DELIVERY, delivery};
use super::{Claimed, Lane, Store, StoreError, Terms, hooks};
use crate::clock::Timestamp;
use crate::decide::Verdict;
use crate::delivery::{Attempt, Delivery, Outcome, Parcel};
use crate::event::{Addressee, Event};
use crate::standing::{Room, Standing, Turn};

/// Of one watch, a hook is told in order: what waits or is held blocks what came later.
pub(super) const LINE: Line = Line {
    table: "deliveries",
    lane: "hook",
    watch: "watch_id",
    in_order: "AND NOT EXISTS (SELECT 1 FROM deliveries AS earlier
                   WHERE earlier.watch_id = due.watch_id AND earlier.hook = due.hook AND earlier.id < due.id
                     AND earlier.state IN ('waiting', 'held'))",
};

/// What a rule makes of an attempt, for [`Store::finish`].
#[derive(Clone, Debug, PartialEq)]
pub struct Ending {
    /// What becomes of the delivery.
    pub verdict: Verdict,
    /// How the hook stands now.
    pub standing: Standing,
    /// What is to be said of that, handed back to the caller once it is written.
    pub turn: Option<Turn>,
    /// What others are told of it.
    pub events: Vec<Event>,
}

/// What is still to be delivered to one hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outstanding {
    /// The hook.
    pub hook: String,
    /// How many deliveries wait.
    pub waiting: i64,
    /// How many of them have not been attempted, or are being attempted.
    pub untried: i64,
}

/// One row of `daemons`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DaemonRow {
    /// Its name in leases.
    pub owner: String,
    /// Its process.
    pub pid: u32,
    /// The machine that it runs on.
    pub host: String,
    /// Its latest sign of life.
    pub heartbeat_at: Timestamp,
}

impl Store {
    /// Takes leases on due deliveries, first attempts and later ones in turn, oldest first, and writes an unfinished
    /// attempt for each: no request is made without one. An attempt that was left unfinished by an expired lease becomes
    /// `unknown`.
    ///
    /// How a hook stands is for all processes: of one that is to be left alone nothing is taken, of one whose breaker is
    /// open one delivery while none is leased, and what waits for a disabled one is held.
    pub async fn claim_deliveries(&self, terms: Terms) -> Result<Vec<Claimed<Parcel>>, StoreError> {
        self.write(move |connection| {
            let only = lease::only(&terms)?;
            terms.lanes.iter().map(|lane| claim_lane(connection, lane, &terms, only.as_deref())).collect()
        })
        .await
    }

    /// Finishes an attempt: `rule` makes the verdict, the hook's new standing and what is told of it out of how the hook
    /// stands in the same transaction, and is asked again when that has to be begun anew. They are written, all or
    /// nothing, if `parcel` still holds the lease; the attempt's outcome is kept in any case.
    ///
    /// # Errors
    /// [`StoreError::LeaseLost`] when the delivery was claimed again meanwhile.
    pub async fn finish(
        &self,
        parcel: Parcel,
        attempt: Attempt,
        now: Timestamp,
        mut rule: impl FnMut(&Standing) -> Ending + Send + 'static,
    ) -> Result<Ending, StoreError> {
        let ended = self
            .write(move |connection| {
                let before = hooks::standing_of(connection, &parcel.delivery.hook)?;
                let ending = rule(&before);
                finish_attempt(connection, &parcel, &attempt, now)?;
                if apply_verdict(connection, &parcel.delivery, &ending.verdict, now)? {
                    return Ok(None);
                }
                if ending.standing != before {
                    hooks::note(connection, &ending.standing)?;
                }
                ending.events.iter().try_for_each(|event| tell(connection, event))?;
                Ok(Some(ending))
            })
            .await?;
        ended.ok_or(StoreError::LeaseLost)
    }

    /// Hands back every lease of `owner`, who has stopped: its watches and deliveries are due again at once, and what it
    /// had begun to send may have been received.
    pub async fn release(&self, owner: String, now: Timestamp) -> Result<(), StoreError> {
        self.write(move |connection| {
            for table in ["watches", "deliveries"] {
                let sql = format!(
                    "UPDATE {table} SET lease_owner = NULL, lease_until = NULL
                     WHERE lease_until IS NOT NULL AND lease_owner = ?1"
                );
                connection.execute(&sql, [&owner])?;
            }
            connection.execute(
                "UPDATE attempts SET outcome = 'unknown', finished_at = ?2 WHERE owner = ?1 AND outcome IS NULL",
                params![owner, now.as_millis()],
            )?;
            connection.execute("DELETE FROM daemons WHERE owner = ?1", [&owner])?;
            Ok(())
        })
        .await
    }

    /// Notes a daemon's sign of life, and forgets those that gave none for a day.
    pub async fn note_daemon(&self, daemon: DaemonRow) -> Result<(), StoreError> {
        self.write(move |connection| {
            let at = daemon.heartbeat_at.as_millis();
            connection
                .prepare_cached(
                    "INSERT INTO daemons (owner, pid, host, started_at, heartbeat_at) VALUES (?1, ?2, ?3, ?4, ?4)
                     ON CONFLICT (owner) DO UPDATE SET heartbeat_at = ?4",
                )?
                .execute(params![daemon.owner, daemon.pid, daemon.host, at])?;
            connection.prepare_cached("DELETE FROM daemons WHERE heartbeat_at < ?1 - 86400000")?.execute([at])?;
            Ok(())
        })
        .await
    }

    /// The daemons that have given a sign of life.
    pub async fn daemons(&self) -> Result<Vec<DaemonRow>, StoreError> {
        self.look(|connection| {
            let mut statement = connection.prepare_cached("SELECT owner, pid, host, heartbeat_at FROM daemons")?;
            let rows = statement.query_map([], |row| {
                let mut column = Columns { row, at: 0 };
                Ok(DaemonRow {
                    owner: column.text()?,
                    pid: u32::try_from(column.next::<i64>()?).unwrap_or(0),
                    host: column.text()?,
                    heartbeat_at: Timestamp::from_millis(column.next()?),
                })
            })?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// What is still to be delivered of these watches, by hook.
    pub async fn outstanding(&self, watches: Vec<i64>) -> Result<Vec<Outstanding>, StoreError> {
        self.look(move |connection| {
            let only = serde_json::to_string(&watches).map_err(|error| StoreError::Broken(error.to_string()))?;
            let mut statement = connection.prepare_cached(
                "SELECT hook, count(*), sum(attempts = 0 OR lease_until IS NOT NULL) FROM deliveries
                 WHERE state = 'waiting' AND watch_id IN (SELECT value FROM json_each(?1))
                 GROUP BY hook ORDER BY hook",
            )?;
            let rows = statement.query_map([only], |row| {
                let mut column = Columns { row, at: 0 };
                Ok(Outstanding { hook: column.text()?, waiting: column.next()?, untried: column.next()? })
            })?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// Adapts the ledger to a configuration that names these hooks: what waits for another one is held, and what was
    /// held for one of these, unless it is disabled, is due again. No configuration names the lanes of callbacks: what
    /// was held for one of those is tried by the new configuration.
    ///
    /// Without `hold` nothing is held: another daemon has another configuration. Returns how many were held.
    pub async fn adopt_hooks(&self, hooks: Vec<String>, hold: bool, now: Timestamp) -> Result<usize, StoreError> {
        self.write(move |connection| {
            let hooks = serde_json::to_string(&hooks).map_err(|error| StoreError::Broken(error.to_string()))?;
            let gone = "hook NOT IN (SELECT value FROM json_each(?1)) AND hook NOT GLOB 'callback:*'";
            let mut held = 0;
            if hold {
                // Nobody claims from a hook that is gone, so nobody else finds that a sender is.
                connection.execute(
                    &format!(
                        "UPDATE attempts SET outcome = 'unknown', finished_at = ?2,
                         error = 'its sender is gone: it may have been received'
                     WHERE outcome IS NULL
                       AND delivery_id IN (SELECT id FROM deliveries WHERE lease_until <= ?2 AND {gone})"
                    ),
                    params![hooks, now.as_millis()],
                )?;
                held = connection.execute(
                    &format!(
                        "UPDATE deliveries SET state = 'held', due_at = NULL, lease_owner = NULL, lease_until = NULL,
                         last_error = 'the configuration names no hook of this name'
                     WHERE state = 'waiting' AND (lease_until IS NULL OR lease_until <= ?2) AND {gone}"
                    ),
                    params![hooks, now.as_millis()],
                )?;
            }
            connection.execute(
                "UPDATE deliveries SET state = 'waiting', due_at = ?2
                 WHERE state = 'held' AND (hook IN (SELECT value FROM json_each(?1)) OR hook GLOB 'callback:*')
                   AND hook NOT IN (SELECT name FROM hooks WHERE disabled_at IS NOT NULL)",
                params![hooks, now.as_millis()],
            )?;
            Ok(held)
        })
        .await
    }
}

/// Writes an event and one delivery for each of its hooks; an event that was told already stays as it was.
pub(super) fn tell(connection: &Connection, event: &Event) -> Result<(), StoreError> {
    let at = event.created_at.as_millis();
    let told = connection
        .prepare_cached(
            "INSERT INTO events (id, watch_id, type, body, created_at) VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT (watch_id, type) DO NOTHING",
        )?
        .execute(params![event.id, event.watch_id, event.event_type, event.body, at])?;
    if told == 0 {
        return Ok(());
    }
    let seq = connection.last_insert_rowid();
    supersede(connection, event)?;
    for Addressee { hook, body, problem } in &event.addressees {
        connection
            .prepare_cached(
                "INSERT INTO deliveries (event_seq, hook, watch_id, body, due_at, created_at, last_error)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?5, ?6)",
            )?
            .execute(params![seq, hook, event.watch_id, body, at, problem])?;
    }
    Ok(())
}

/// Nobody wants to hear that an asset is being processed once it has ended. A delivery that is under way stays.
fn supersede(connection: &Connection, event: &Event) -> Result<(), StoreError> {
    if event.event_type == "asset.processing" {
        return Ok(());
    }
    // Looked for first: most assets were never told to be processed, and an UPDATE costs something even of no rows.
    let told = "SELECT seq FROM events WHERE watch_id = ?1 AND type = 'asset.processing'";
    let told: Option<i64> =
        connection.prepare_cached(told)?.query_row([event.watch_id], |row| row.get(0)).optional()?;
    if let Some(seq) = told {
        connection
            .prepare_cached(
                "UPDATE deliveries SET state = 'dead', due_at = NULL, finished_at = ?2,
                     last_error = 'superseded: the asset has ended since'
                 WHERE event_seq = ?1 AND state IN ('waiting', 'held') AND lease_until IS NULL",
            )?
            .execute(params![seq, event.created_at.as_millis()])?;
    }
    Ok(())
}

fn claim_lane(
    connection: &Connection,
    lane: &Lane,
    terms: &Terms,
    only: Option<&str>,
) -> Result<Claimed<Parcel>, StoreError> {
    let nothing = |next_due| Claimed { lane: lane.name.clone(), rows: Vec::new(), next_due, alone: false };
    end_tests(connection, lane, terms)?;
    match hooks::standing_of(connection, &lane.name)?.room(terms.now) {
        Room::Open => claim_open(connection, (lane, terms, only)),
        Room::Closed(until) => Ok(nothing(Some(until))),
        Room::Disabled => {
            hooks::hold_free(connection, &lane.name)?;
            hold_expired(connection, lane, terms)?;
            Ok(nothing(None))
        }
        Room::Probe => match under_way(connection, lane, terms)? {
            Some(until) => Ok(nothing(Some(until).filter(|until| *until > terms.now))),
            None => {
                let probe = claim_open(connection, (&Lane { room: 1, again: 1, ..lane.clone() }, terms, only))?;
                // With a probe under way the next instant is its end.
                let next_due = probe.next_due.filter(|_| probe.rows.is_empty());
                Ok(Claimed { next_due, ..probe })
            }
        },
    }
}

/// A test whose sender is gone is not made again.
fn end_tests(connection: &Connection, lane: &Lane, terms: &Terms) -> Result<(), StoreError> {
    let mut statement = connection.prepare_cached(
        "SELECT id FROM deliveries WHERE hook = ?1 AND lease_until <= ?2
             AND (SELECT type FROM events WHERE seq = event_seq) = 'test'",
    )?;
    let ids = statement.query_map(params![lane.name, terms.now.as_millis()], |row| row.get(0))?;
    for id in ids.collect::<Result<Vec<i64>, _>>()? {
        unknown(connection, id, terms.now)?;
        connection
            .prepare_cached(
                "UPDATE deliveries SET state = 'dead', due_at = NULL, finished_at = ?2, lease_owner = NULL,
                     lease_until = NULL, last_error = 'whoever made this test is gone' WHERE id = ?1",
            )?
            .execute(params![id, terms.now.as_millis()])?;
    }
    Ok(())
}

fn claim_open(connection: &Connection, (lane, terms, only): Ask<'_>) -> Result<Claimed<Parcel>, StoreError> {
    const LATER: [Sort; 2] = [LEASED, AGAIN];
    let ids = |room, sorts| {
        let lane = Lane { room, ..lane.clone() };
        lease::due(connection, (&LINE, sorts), (&lane, terms, only), "id", |_| Ok(()))
    };
    let again = lane.again.min(lane.room);
    let (first, later) = (ids(lane.room, &[FIRST])?, ids(again, &LATER)?);
    let due = in_turn(first, later, lane);
    let until = terms.now + lane.lease;
    let rows: Vec<Parcel> =
        due.iter().map(|(id, ())| lease_one(connection, *id, terms, until)).collect::<Result<_, _>>()?;
    // Later attempts that have all their slots wait for one of these, not for an instant.
    let attempted_before = rows.iter().filter(|parcel| parcel.number > 1).count();
    let sorts: &[Sort] = if attempted_before < again as usize { &[FIRST, LEASED, AGAIN] } else { &[FIRST] };
    let next_due = lease::next_due(connection, (&LINE, sorts), (lane, terms, only))?;
    Ok(Claimed { lane: lane.name.clone(), rows, next_due, alone: false })
}

/// One of each kind after the other, until the lane has no more room: so neither starves the other.
fn in_turn<T>(first: Vec<T>, later: Vec<T>, lane: &Lane) -> Vec<T> {
    let (mut one, mut other) = if lane.again_first { (later, first) } else { (first, later) };
    one.truncate(lane.room as usize);
    other.truncate(lane.room as usize);
    let (mut one, mut other, mut both) = (one.into_iter(), other.into_iter(), Vec::new());
    while one.len() + other.len() > 0 && both.len() < lane.room as usize {
        both.extend(one.next());
        both.extend(other.next());
    }
    both.truncate(lane.room as usize);
    both
}

/// When the last attempt in this lane is over at the latest, if one is under way, in whichever process.
fn under_way(connection: &Connection, lane: &Lane, terms: &Terms) -> Result<Option<Timestamp>, StoreError> {
    let sql = "SELECT max(lease_until) FROM deliveries WHERE hook = ?1 AND lease_until IS NOT NULL
                   AND (lease_until > ?2 AND lease_until <= ?3 OR id IN (SELECT value FROM json_each(?4)))";
    let late = terms.now + lease::LONGEST_LEASE;
    let values = params![lane.name, terms.now.as_millis(), late.as_millis(), lease::live(terms)?];
    let until: Option<i64> = connection.prepare_cached(sql)?.query_row(values, |row| row.get(0))?;
    Ok(until.map(Timestamp::from_millis))
}

/// Holds what a gone sender has left of a disabled hook; its attempt may have been received.
fn hold_expired(connection: &Connection, lane: &Lane, terms: &Terms) -> Result<(), StoreError> {
    let all = Lane { room: u32::MAX, avoid: None, ..lane.clone() };
    let line = Line { in_order: "", ..LINE };
    for (id, ()) in lease::due(connection, (&line, &[LEASED]), (&all, terms, None), "id", |_| Ok(()))? {
        unknown(connection, id, terms.now)?;
        connection
            .prepare_cached(
                "UPDATE deliveries SET state = 'held', due_at = NULL, lease_owner = NULL, lease_until = NULL,
                     last_error = ?2 WHERE id = ?1",
            )?
            .execute(params![id, hooks::held_because(&lane.name)])?;
    }
    Ok(())
}

/// What a gone sender had begun to send.
fn unknown(connection: &Connection, id: i64, now: Timestamp) -> Result<(), StoreError> {
    connection
        .prepare_cached(
            "UPDATE attempts SET outcome = 'unknown', finished_at = ?2,
                 error = 'its sender is gone: it may have been received'
             WHERE delivery_id = ?1 AND outcome IS NULL",
        )?
        .execute(params![id, now.as_millis()])?;
    Ok(())
}

pub(super) fn lease_one(
    connection: &Connection,
    id: i64,
    terms: &Terms,
    until: Timestamp,
) -> Result<Parcel, StoreError> {
    unknown(connection, id, terms.now)?;
    let sql = format!(
        "UPDATE deliveries SET lease_owner = ?2, lease_until = ?3, generation = generation + 1, attempts = attempts + 1
         WHERE id = ?1 RETURNING {DELIVERY}"
    );
    let delivery = connection.prepare_cached(&sql)?.query_row(params![id, terms.owner, until.as_millis()], delivery)?;
    connection
        .prepare_cached("INSERT INTO attempts (delivery_id, number, owner, started_at) VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![id, delivery.attempts, terms.owner, terms.now.as_millis()])?;
    let sql = "SELECT type, coalesce(deliveries.body, events.body),
                   iif(hook GLOB 'callback:*', (SELECT callback_url FROM watches WHERE id = deliveries.watch_id), NULL)
               FROM deliveries JOIN events ON seq = event_seq WHERE deliveries.id = ?1";
    Ok(connection.prepare_cached(sql)?.query_row([id], |row| {
        let mut column = Columns { row, at: 0 };
        let (event_type, body) = (column.text()?, column.next()?);
        Ok(Parcel { number: delivery.attempts, delivery, event_type, body, callback_url: column.maybe_text()? })
    })?)
}

pub(super) fn finish_attempt(
    connection: &Connection,
    parcel: &Parcel,
    attempt: &Attempt,
    now: Timestamp,
) -> Result<(), StoreError> {
    let interrupted = "it was stopped before its end: it may have been received".to_owned();
    let (outcome, error) = match &attempt.outcome {
        Outcome::Delivered => ("delivered", None),
        Outcome::Failed { error, .. } => ("failed", Some(error)),
        Outcome::Refused { error } | Outcome::Gone { error } => ("refused", Some(error)),
        Outcome::Blocked { error } => ("blocked", Some(error)),
        Outcome::Interrupted => ("interrupted", Some(&interrupted)),
    };
    let kept = |bytes: &Vec<u8>| (!bytes.is_empty()).then(|| bytes.clone());
    connection
        .prepare_cached(
            "UPDATE attempts SET outcome = ?3, finished_at = ?4, code = ?5, error = ?6, output = ?7, errors = ?8
             WHERE delivery_id = ?1 AND number = ?2",
        )?
        .execute(params![
            parcel.delivery.id,
            parcel.number,
            outcome,
            now.as_millis(),
            attempt.code,
            error,
            kept(&attempt.output),
            kept(&attempt.errors),
        ])?;
    Ok(())
}

/// Whether the lease was lost.
pub(super) fn apply_verdict(
    connection: &Connection,
    delivery: &Delivery,
    verdict: &Verdict,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let (state, due_at, failures, error) = match verdict {
        Verdict::Delivered => ("delivered", None, delivery.failures, None),
        Verdict::Again { due_at, failures, error, .. } => ("waiting", Some(*due_at), *failures, Some(error)),
        Verdict::Dead { error } => ("dead", None, delivery.failures + 1, Some(error)),
        Verdict::Held { error } => ("held", None, delivery.failures, Some(error)),
        Verdict::Interrupted => ("waiting", delivery.due_at, delivery.failures, delivery.last_error.as_ref()),
    };
    let finished_at = matches!(state, "delivered" | "dead").then(|| now.as_millis());
    let changed = connection
        .prepare_cached(
            "UPDATE deliveries SET state = ?3, due_at = ?4, failures = ?5, last_error = ?6, finished_at = ?7,
                 lease_owner = NULL, lease_until = NULL
             WHERE id = ?1 AND generation = ?2 AND state = 'waiting'",
        )?
        .execute(params![
            delivery.id,
            delivery.generation,
            state,
            due_at.map(Timestamp::as_millis),
            failures,
            error,
            finished_at,
        ])?;
    if changed > 0 && state != "delivered" && state != "dead" {
        supersede_late(connection, delivery.id, now)?;
    }
    Ok(changed == 0)
}

/// An `asset.processing` that was under way when its asset ended: it has not arrived, and must not keep the end waiting.
fn supersede_late(connection: &Connection, id: i64, now: Timestamp) -> Result<(), StoreError> {
    connection
        .prepare_cached(
            "UPDATE deliveries AS late SET state = 'dead', due_at = NULL, finished_at = ?2, lease_owner = NULL,
                 lease_until = NULL, last_error = 'superseded: the asset has ended since'
             WHERE id = ?1 AND state IN ('waiting', 'held')
               AND (SELECT type FROM events WHERE seq = event_seq) = 'asset.processing'
               AND EXISTS (SELECT 1 FROM watches WHERE id = late.watch_id AND state <> 'waiting')",
        )?
        .execute(params![id, now.as_millis()])?;
    Ok(())
}
