//! What the database says, through a connection of the auditor's own, and whether that is what was promised. It looks
//! after each piece of work of the daemons: at all that is open, and at what has ended since.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, Row};

use crate::disk::{self, Process};
use crate::world::{Said, World};

/// The drift of a clock below which nothing is counted as a jump, and what is rounded.
const SLACK: Duration = Duration::from_millis(1_500);

#[derive(Default)]
pub struct Audit {
    connection: Option<Connection>,
    version: i64,
    watches: BTreeMap<i64, WatchRow>,
    open_watches: BTreeSet<i64>,
    deliveries: BTreeMap<i64, (String, String)>,
    open_deliveries: BTreeSet<i64>,
    last_event: i64,
    /// The types of the events about each watch.
    told: BTreeMap<i64, BTreeSet<String>>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct WatchRow {
    pub id: i64,
    pub asset: String,
    pub account: String,
    pub state: String,
    pub due_at: Option<i64>,
    pub generation: i64,
    pub lease_owner: Option<String>,
    pub lease_until: Option<i64>,
    pub polls: i64,
    pub status: Option<String>,
    pub url: Option<String>,
    pub reason: Option<String>,
    pub patience: Option<i64>,
    pub first_polled_at: Option<i64>,
    pub last_polled_at: Option<i64>,
    pub processing_at: Option<i64>,
    pub settled_at: Option<i64>,
}

/// What an attempt at a delivery finds.
#[derive(Debug)]
pub struct DeliveryRow {
    pub watch_id: Option<i64>,
    pub seq: i64,
    pub due_at: Option<i64>,
    pub lease_owner: Option<String>,
    pub lease_until: Option<i64>,
    pub has_attempt: bool,
    /// Earlier ones of the same watch and hook that wait or are held.
    pub earlier_open: i64,
}

const WATCH: &str = "id, asset_id, account, state, due_at, generation, lease_owner, lease_until, polls, status, url, reason, \
     patience, first_polled_at, last_polled_at, processing_at, settled_at";

fn watch(row: &Row<'_>) -> rusqlite::Result<WatchRow> {
    Ok(WatchRow {
        id: row.get(0)?,
        asset: row.get(1)?,
        account: row.get(2)?,
        state: row.get(3)?,
        due_at: row.get(4)?,
        generation: row.get(5)?,
        lease_owner: row.get(6)?,
        lease_until: row.get(7)?,
        polls: row.get(8)?,
        status: row.get(9)?,
        url: row.get(10)?,
        reason: row.get(11)?,
        patience: row.get(12)?,
        first_polled_at: row.get(13)?,
        last_polled_at: row.get(14)?,
        processing_at: row.get(15)?,
        settled_at: row.get(16)?,
    })
}

impl WatchRow {
    /// Whether it ended so lately, in milliseconds.
    pub fn changed_within(&self, wall: i64, millis: i64) -> bool {
        self.settled_at.is_some_and(|at| (wall - at).abs() <= millis)
    }

    fn event_type(&self) -> Option<String> {
        match self.state.as_str() {
            "settled" => Some(format!("asset.{}", self.status.as_deref().unwrap_or_default())),
            "abandoned" => Some("watch.abandoned".into()),
            "cancelled" => Some("watch.cancelled".into()),
            _ => None,
        }
    }
}

/// What the auditor has found in one snapshot.
#[derive(Default)]
struct Found {
    watches: Vec<WatchRow>,
    /// Seq, watch, type, and the hooks that have a delivery of it.
    events: Vec<(i64, Option<i64>, String, BTreeSet<String>)>,
    /// Id, event, its type, hook, state, failures, attempts.
    deliveries: Vec<(i64, String, String, String, String, i64, i64)>,
}

impl Audit {
    /// Opens the database as a process of its own.
    pub fn open(&mut self, path: &Path, process: Process) {
        self.connection = disk::by(process, || {
            let connection = Connection::open(path).ok()?;
            // SQLite opens the log when it is first read.
            connection.query_row("SELECT count(*) FROM watches", [], |_| Ok(())).ok()?;
            Some(connection)
        });
        self.version = 0;
    }

    pub fn is_open(&self) -> bool {
        self.connection.is_some()
    }

    /// The newest watch of an asset.
    pub fn newest(&self, asset: &str, account: &str) -> Option<WatchRow> {
        let sql = format!("SELECT {WATCH} FROM watches WHERE asset_id = ?1 AND account = ?2 ORDER BY id DESC LIMIT 1");
        self.connection.as_ref()?.prepare_cached(&sql).ok()?.query_row([asset, account], watch).ok()
    }

    pub fn delivery(&self, id: i64) -> Option<DeliveryRow> {
        let sql = "SELECT watch_id, event_seq, due_at, lease_owner, lease_until,
                EXISTS (SELECT 1 FROM attempts WHERE delivery_id = mine.id AND number = mine.attempts AND outcome IS NULL),
                (SELECT count(*) FROM deliveries AS earlier WHERE earlier.watch_id = mine.watch_id
                     AND earlier.hook = mine.hook AND earlier.id < mine.id AND earlier.state IN ('waiting', 'held'))
            FROM deliveries AS mine WHERE id = ?1";
        let row = |row: &Row<'_>| {
            Ok(DeliveryRow {
                watch_id: row.get(0)?,
                seq: row.get(1)?,
                due_at: row.get(2)?,
                lease_owner: row.get(3)?,
                lease_until: row.get(4)?,
                has_attempt: row.get(5)?,
                earlier_open: row.get(6)?,
            })
        };
        self.connection.as_ref()?.prepare_cached(sql).ok()?.query_row([id], row).ok()
    }

    /// How many rows of these there are.
    pub fn count(&self, what: &str) -> i64 {
        let sql = format!("SELECT count(*) FROM {what}");
        self.connection.as_ref().and_then(|open| open.query_row(&sql, [], |row| row.get(0)).ok()).unwrap_or(-1)
    }

    /// Whether anybody has written anything since the last look.
    fn has_changed(&mut self) -> bool {
        let ask = |open: &Connection| {
            open.prepare_cached("PRAGMA data_version").ok()?.query_row([], |row| row.get::<_, i64>(0)).ok()
        };
        let version = self.connection.as_ref().and_then(ask);
        version.is_some_and(|version| std::mem::replace(&mut self.version, version) != version)
    }

    fn look(&mut self, all: bool) -> rusqlite::Result<Found> {
        let Some(open) = &mut self.connection else { return Ok(Found::default()) };
        let open = open.transaction()?;
        let last = if all { 0 } else { self.watches.keys().next_back().copied().unwrap_or_default() };
        let sql = format!("SELECT {WATCH} FROM watches WHERE state = 'waiting' OR id > ?1 ORDER BY id");
        let mut watches = open.prepare_cached(&sql)?.query_map([last], watch)?.collect::<rusqlite::Result<Vec<_>>>()?;
        let waiting: BTreeSet<i64> = watches.iter().map(|watch| watch.id).collect();
        let sql = format!("SELECT {WATCH} FROM watches WHERE id = ?1");
        for gone in self.open_watches.difference(&waiting) {
            watches.extend(open.prepare_cached(&sql)?.query_row([gone], watch).optional()?);
        }
        let mut events = Vec::new();
        let mut hooks = open.prepare_cached("SELECT hook FROM deliveries WHERE event_seq = ?1")?;
        let mut statement =
            open.prepare_cached("SELECT seq, watch_id, type FROM events WHERE seq > ?1 ORDER BY seq")?;
        let mut rows = statement.query([if all { 0 } else { self.last_event }])?;
        while let Some(row) = rows.next()? {
            let seq: i64 = row.get(0)?;
            let told = hooks.query_map([seq], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
            events.push((seq, row.get(1)?, row.get(2)?, told));
        }
        let columns = "deliveries.id, events.id, type, hook, state, failures, attempts
             FROM deliveries JOIN events ON seq = event_seq";
        let delivery = |row: &Row<'_>| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?, row.get(5)?, row.get(6)?))
        };
        let last = if all { 0 } else { self.deliveries.keys().next_back().copied().unwrap_or_default() };
        let sql = format!("SELECT {columns} WHERE deliveries.id > ?1 ORDER BY 1");
        let mut deliveries =
            open.prepare_cached(&sql)?.query_map([last], delivery)?.collect::<rusqlite::Result<Vec<_>>>()?;
        let sql = format!("SELECT {columns} WHERE deliveries.id = ?1");
        for id in self.open_deliveries.iter().filter(|_| !all) {
            deliveries.extend(open.prepare_cached(&sql)?.query_row([id], delivery).optional()?);
        }
        Ok(Found { watches, events, deliveries })
    }
}

impl World {
    /// Looks at the database if anybody has written to it; at `all` of it, whether or not.
    pub fn look(&mut self, all: bool) {
        if !self.audit.has_changed() && !all {
            return;
        }
        // With many rows not each time.
        let rows = self.audit.open_watches.len() + self.audit.open_deliveries.len();
        if !all && rows > 40 && !self.draw.chance(40.0 / rows as f64) {
            self.audit.version = -1;
            return;
        }
        // The power may have failed.
        let Ok(found) = self.audit.look(all) else { return };
        for (seq, watch, kind, hooks) in &found.events {
            self.audit.last_event = self.audit.last_event.max(*seq);
            if let Some(watch) = watch {
                self.audit.told.entry(*watch).or_default().insert(kind.clone());
            }
            self.check_addressees(*seq, kind, hooks);
        }
        for row in found.watches {
            self.check_watch(&row);
            if row.state == "waiting" {
                self.audit.open_watches.insert(row.id);
            } else {
                self.audit.open_watches.remove(&row.id);
            }
            self.audit.watches.insert(row.id, row);
        }
        for (_, watch, kind, _) in &found.events {
            self.check_fact(*watch, kind);
        }
        for (id, event, kind, hook, state, failures, attempts) in found.deliveries {
            self.check_delivery((id, &event, &kind, &hook), &state, (failures, attempts));
            if matches!(state.as_str(), "waiting" | "held") || kind == "asset.processing" && state == "dead" {
                self.audit.open_deliveries.insert(id);
            } else {
                self.audit.open_deliveries.remove(&id);
            }
            self.audit.deliveries.insert(id, (state, event));
        }
    }

    /// An event has a delivery for each hook that wants it, and for no other.
    fn check_addressees(&mut self, seq: i64, kind: &str, hooks: &BTreeSet<String>) {
        let wanting = self.script.hooks.iter().filter(|hook| hook.on.iter().any(|word| covers(word, kind)));
        let wanting: BTreeSet<String> = wanting.map(|hook| hook.name.clone()).collect();
        // A hook is not told of itself.
        let missing = wanting.difference(hooks).filter(|_| kind != "hook.disabled").count();
        if missing > 0 || !hooks.is_subset(&wanting) {
            self.fail(
                "outbox",
                format_args!("event {seq} ({kind}) has deliveries for {hooks:?}, wanted by {wanting:?}"),
            );
        }
    }

    /// No event about a watch without what it tells.
    fn check_fact(&mut self, watch: Option<i64>, kind: &str) {
        let Some(row) = watch.and_then(|watch| self.audit.watches.get(&watch)).cloned() else { return };
        let holds = match kind {
            "asset.processing" => row.processing_at.is_some(),
            _ => row.event_type().as_deref() == Some(kind),
        };
        if !holds {
            self.fail("outbox", format_args!("an event {kind} is told of watch {}, which is {row:?}", row.id));
        }
    }

    fn check_watch(&mut self, row: &WatchRow) {
        let before = self.audit.watches.get(&row.id).cloned();
        if before.as_ref() == Some(row) {
            return;
        }
        let told = self.audit.told.get(&row.id).cloned().unwrap_or_default();
        let wanted = row.event_type().into_iter().chain(row.processing_at.map(|_| "asset.processing".to_owned()));
        for kind in wanted.filter(|kind| !told.contains(kind)) {
            self.fail("outbox", format_args!("watch {} is {}, and no event {kind} tells of it", row.id, row.state));
        }
        if let Some(before) = before.as_ref().filter(|before| before.state != "waiting") {
            self.fail("once", format_args!("watch {} had ended as {before:?} and is {row:?} now", row.id));
            return;
        }
        let generation = before.as_ref().map_or(0, |before| before.generation);
        if row.generation < generation {
            self.fail("generation", format_args!("watch {} goes back from {generation} to {row:?}", row.id));
        }
        if before.is_none_or(|before| before.polls != row.polls) && row.polls > 0 {
            self.check_recorded(row);
        }
        match row.state.as_str() {
            "settled" => self.check_settled(row),
            "abandoned" => self.check_abandoned(row),
            "cancelled" if !self.cancelled.contains(&(self.account(row), row.asset.clone())) => {
                self.fail("cancel", format_args!("watch {} is cancelled, by nobody", row.id));
            }
            _ => {}
        }
    }

    fn account(&self, row: &WatchRow) -> usize {
        self.script.accounts.iter().position(|account| account.name == row.account).unwrap_or_default()
    }

    /// What was recorded came from an answer, and from the worker that holds the lease.
    fn check_recorded(&mut self, row: &WatchRow) {
        let answers = self.answers.get(&(self.account(row), row.asset.clone()));
        let mut recorded = answers.into_iter().flatten().rev();
        let found = recorded.find(|answer| Some(answer.wall) == row.last_polled_at).cloned();
        let Some(answer) = found else {
            self.fail("invented", format_args!("watch {} was polled at no instant of an answer: {row:?}", row.id));
            return;
        };
        let requests = self.answers.get(&(self.account(row), row.asset.clone())).map_or(0, Vec::len);
        if row.polls > requests as i64 {
            self.fail("ledger", format_args!("watch {} counts {} polls, {requests} were answered", row.id, row.polls));
        }
        let Some(latest) = self.latest.get(&row.id).copied() else { return };
        // Written under the lease of the latest request, so it has to be what that was answered.
        let under_it = latest.generation == row.generation && latest.polls != row.polls;
        if under_it && answer.asked_at != latest.at {
            self.fail(
                "generation",
                format_args!(
                    "watch {}: the answer to a request of {:?} was recorded, whose lease had been taken over at {:?}",
                    row.id, answer.asked_at, latest.at
                ),
            );
        }
    }

    fn check_settled(&mut self, row: &WatchRow) {
        let answers = self.answers.get(&(self.account(row), row.asset.clone())).into_iter().flatten();
        let mut given = answers.filter(|answer| Some(answer.wall) == row.settled_at);
        let is = |said: &Said| match said {
            Said::Status { word, url } => Some(*word) == row.status.as_deref() && *url == row.url,
            _ => false,
        };
        let waiting = matches!(row.status.as_deref(), Some("pending" | "processing") | None);
        if waiting || !given.any(|answer| is(&answer.said)) {
            self.fail(
                "status",
                format_args!("watch {} has settled with what the API never said then: {row:?}", row.id),
            );
        }
    }

    fn check_abandoned(&mut self, row: &WatchRow) {
        let account = self.account(row);
        let answers = self.answers.get(&(account, row.asset.clone())).cloned().unwrap_or_default();
        let plan = &self.script.accounts[account];
        let first = |is: &dyn Fn(&Said) -> bool| answers.iter().find(|answer| is(&answer.said)).map(|answer| answer.at);
        let now = self.time.now();
        let since = |first: Option<Duration>| first.map_or(Duration::ZERO, |first| now.saturating_sub(first) + SLACK);
        let patience = row.patience.map_or(plan.patience, |patience| Duration::from_millis(patience as u64));
        let may = match row.reason.as_deref() {
            Some("missing") => since(first(&|said| *said == Said::Missing)) >= plan.missing_grace || self.set_unseen,
            Some("rejected") => {
                let rejections =
                    answers.iter().filter(|answer| matches!(answer.said, Said::Rejected | Said::Forbidden));
                rejections.count() >= 3
            }
            Some("patience") => since(first(&|_| true)) >= patience || self.set_unseen,
            _ => false,
        };
        if !may {
            self.fail("patience", format_args!("watch {} is given up on before its time: {row:?}", row.id));
        }
    }

    fn check_delivery(
        &mut self,
        (id, event, kind, hook): (i64, &str, &str, &str),
        state: &str,
        (failures, attempts): (i64, i64),
    ) {
        if let Some((before, named)) = self.audit.deliveries.get(&id).cloned() {
            if named != event {
                self.fail("id", format_args!("delivery {id} had the event {named}, and has {event} now"));
            }
            if before == "delivered" && state != "delivered" {
                self.fail("once", format_args!("delivery {id} was delivered, and is {state} now"));
            }
            if before == state {
                return;
            }
        }
        let hook = self.script.hooks.iter().position(|plan| plan.name == hook).unwrap_or_default();
        let receipt = self.receipts.of.get(&(hook, event.to_owned()));
        let (sent, accepted, refused) =
            receipt.map_or((0, 0, 0), |receipt| (receipt.numbers.len(), receipt.accepted, receipt.refused));
        let schedule = self.script.hooks[hook].schedule.len();
        if state == "delivered" && accepted == 0 {
            self.fail("lost", format_args!("delivery {id} counts as delivered, and its receiver has accepted nothing"));
        }
        let spent = failures > schedule as i64;
        if state == "dead" && kind != "asset.processing" && refused == 0 && !spent {
            self.fail("lost", format_args!("delivery {id} is dead after {failures} failures and {attempts} attempts"));
        }
        if attempts < sent as i64 {
            self.fail("ledger", format_args!("delivery {id} counts {attempts} attempts, {sent} were made"));
        }
    }

    /// What holds when all is over: nothing is open, and every row is accounted for.
    pub fn settle_accounts(&mut self) {
        self.look(true);
        let slots: u32 = self.script.hooks.iter().map(|hook| hook.concurrency).sum();
        for (what, most) in [
            ("watches WHERE state = 'waiting'", 0),
            ("watches WHERE lease_owner IS NOT NULL", 0),
            ("deliveries WHERE state IN ('waiting', 'held')", 0),
            ("deliveries WHERE lease_owner IS NOT NULL", 0),
            ("attempts WHERE outcome IS NULL", 0),
            ("attempts WHERE number > (SELECT attempts FROM deliveries WHERE id = delivery_id)", 0),
            ("attempts WHERE outcome <> 'unknown'", self.attempts as i64),
            ("attempts", (self.attempts + (self.deaths + 1) * u64::from(slots * 2)) as i64),
            ("accounts", self.script.accounts.len() as i64),
            ("hooks", self.script.hooks.len() as i64),
        ] {
            let count = self.audit.count(what);
            if count > most {
                self.fail("end", format_args!("at the end there are {count} of: {what}; at most {most} were expected"));
            }
        }
        let bytes = disk::bytes();
        let most = (64 << 20) + self.script.assets.len() * 20_000;
        if bytes > most {
            self.fail("bounded", format_args!("the disk holds {bytes} bytes, {most} were expected at most"));
        }
        for ((hook, event), receipt) in std::mem::take(&mut self.receipts.of) {
            let known = self.audit.deliveries.values().any(|(_, known)| *known == event);
            if !known && !receipt.numbers.is_empty() {
                self.fail("invented", format_args!("hook {hook} was told of an event {event} that is not there"));
            }
        }
    }
}

/// Whether a word of a hook's `on` covers events of this type.
fn covers(word: &str, kind: &str) -> bool {
    let status = kind.strip_prefix("asset.");
    match word {
        "settled" => status.is_some_and(|status| status != "processing"),
        "abandoned" => kind == "watch.abandoned",
        "cancelled" => kind == "watch.cancelled",
        _ => kind == word || status == Some(word),
    }
}
