//! Watches, added.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use rusqlite::{Connection, params};

use super::rows::{WATCH, watch};
use super::{Store, StoreError};
use crate::clock::Timestamp;
use crate::watch::{State, Watch, check_asset_id};

/// Added in one transaction at most. A million ids are to take neither one lock that keeps everyone else waiting, nor a
/// sync each; and the more stand in one, the fewer pages are written again by the next. These take about a second.
const MOST_AT_ONCE: usize = 100_000;
/// From as many ids on they get a page cache of their own.
const MANY: usize = 10_000;
/// That cache, in KiB: a transaction's pages are then written once, at its end, instead of whenever there are too many.
const CACHE: i64 = 64 << 10;

/// The options of `add`, for all ids of one call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddOptions {
    /// The account to poll with.
    pub account: String,
    /// Their own patience: a millisecond or more.
    pub patience: Option<Duration>,
    /// The caller's JSON, of at most 16 KiB.
    pub metadata: Option<String>,
    /// The batch that they belong to.
    pub batch: Option<String>,
    /// Who is told besides the hooks: a URL of at most 2,048 characters.
    pub callback_url: Option<String>,
    /// Whether an asset that has settled is watched once more.
    pub again: bool,
}

impl AddOptions {
    /// How many ids are best added in one transaction: 100,000, or as many as have some 50 MiB of these options in memory.
    #[must_use]
    pub fn ids_at_once(&self) -> usize {
        let bytes = [&self.metadata, &self.callback_url].into_iter().flatten().map(String::len).sum::<usize>();
        (MOST_AT_ONCE / (1 + bytes / 512)).max(1)
    }
}

/// What `add` did with one asset.
#[expect(missing_docs, reason = "each variant's sentence names its fields")]
#[derive(Clone, Debug, PartialEq)]
pub enum Added {
    /// There is a new watch.
    New(Box<Watch>),
    /// It was being watched, or has settled before: this is its newest watch.
    Known(Box<Watch>),
    /// It is being watched with other options; this column would have changed.
    Conflict { watch: Box<Watch>, column: &'static str },
    /// Its batch takes no more watches.
    BatchClosed,
    /// Its id is none, or the table refuses its options.
    Refused(String),
}

impl Store {
    /// Adds watches, in one transaction, and says what became of each id, in their order. What is being watched already, or
    /// has settled unless `again`, is reported.
    ///
    /// # Errors
    /// When the database cannot be written to; then nothing is added.
    pub async fn add(
        &self,
        asset_ids: Vec<String>,
        options: AddOptions,
        now: Timestamp,
    ) -> Result<Vec<Added>, StoreError> {
        self.write(move |connection| add(connection, &asset_ids, &options, now)).await
    }
}

/// An id that is given twice is added once.
fn add(
    connection: &Connection,
    asset_ids: &[String],
    options: &AddOptions,
    now: Timestamp,
) -> Result<Vec<Added>, StoreError> {
    if asset_ids.len() > MANY {
        // Only whoever adds a file of ids gets here; the cache stays while the store is open.
        connection.pragma_update(None, "cache_size", -CACHE)?;
    }
    let mut seen = HashSet::new();
    let distinct: Vec<&str> = asset_ids.iter().map(String::as_str).filter(|id| seen.insert(*id)).collect();
    let added = add_distinct(connection, &distinct, options, now)?;
    if added.len() == asset_ids.len() {
        return Ok(added);
    }
    let added: HashMap<&str, Added> = distinct.into_iter().zip(added).collect();
    let mut told = HashSet::new();
    let each = asset_ids.iter().filter_map(|id| {
        let added = added.get(id.as_str())?.clone();
        Some(if told.insert(id) { added } else { repeated(added) })
    });
    Ok(each.collect())
}

/// What `add` would do with it next.
fn repeated(added: Added) -> Added {
    match added {
        Added::New(watch) => Added::Known(watch),
        other => other,
    }
}

/// All in three statements, however many there are: one for each asset would cost several times as much.
fn add_distinct(
    connection: &Connection,
    asset_ids: &[&str],
    options: &AddOptions,
    now: Timestamp,
) -> Result<Vec<Added>, StoreError> {
    let sound: Vec<&str> = asset_ids.iter().copied().filter(|id| check_asset_id(id).is_ok()).collect();
    let mut newest = newest(connection, &sound, &options.account)?;
    let is_over = |watch: &Watch| match watch.state {
        State::Waiting => false,
        State::Settled => options.again,
        State::Abandoned | State::Cancelled => true,
    };
    let new: Vec<&str> = sound.into_iter().filter(|id| newest.get(*id).is_none_or(is_over)).collect();
    let mut inserted = insert(connection, &new, options, now)?.into_iter();
    let added = |id: &&str| match (check_asset_id(id), newest.remove(*id)) {
        (Err(why), _) => Ok(Added::Refused(why.to_string())),
        (Ok(()), Some(watch)) if !is_over(&watch) => Ok(compared(Box::new(watch), options)),
        (Ok(()), _) => inserted.next().ok_or_else(|| StoreError::Broken(format!("the watch of {id:?} is not there"))),
    };
    asset_ids.iter().map(added).collect()
}

/// The watch of each that waits, or else its newest, where there is one: another program may have added a row of one that
/// had ended. They are looked up in the order of the index, beside each other.
fn newest(connection: &Connection, asset_ids: &[&str], account: &str) -> Result<HashMap<String, Watch>, StoreError> {
    let mut in_order = asset_ids.to_vec();
    in_order.sort_unstable();
    let sql = format!(
        "SELECT {WATCH} FROM watches WHERE id IN (
             SELECT (SELECT id FROM watches WHERE asset_id = one.value AND account = ?2
                        ORDER BY state = 'waiting' DESC, id DESC LIMIT 1)
               FROM json_each(?1) AS one)"
    );
    let mut statement = connection.prepare_cached(&sql)?;
    let rows = statement.query_map(params![json(&in_order)?, account], watch)?;
    Ok(rows.map(|row| row.map(|watch| (watch.asset_id.clone(), watch))).collect::<Result<_, _>>()?)
}

/// What became of each: all of them are new watches, or the options that they have in common are refused.
///
/// The rows' ids are in the order in which the assets were given: so they are polled and listed. They are written in the
/// order of the table's indexes: what stands beside each other there is then written at once. In the order in which an
/// API makes its asset ids, each of a million is a page of its own, to be read and to be written.
fn insert(
    connection: &Connection,
    asset_ids: &[&str],
    options: &AddOptions,
    now: Timestamp,
) -> Result<Vec<Added>, StoreError> {
    let last = "SELECT max(coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'watches'), 0),
                    coalesce((SELECT max(id) FROM watches), 0))";
    let last: i64 = connection.prepare_cached(last)?.query_row([], |row| row.get(0))?;
    let mut in_order: Vec<(i64, &str)> = (last + 1..).zip(asset_ids.iter().copied()).collect();
    in_order.sort_unstable_by_key(|(_, asset_id)| *asset_id);
    let inserted = connection
        .prepare_cached(
            "INSERT INTO watches (id, asset_id, account, patience, metadata, batch, callback_url, created_at, due_at)
             SELECT value ->> 0, value ->> 1, ?2, ?3, ?4, ?5, ?6, ?7, ?7 FROM json_each(?1)",
        )?
        .execute(params![
            json(&in_order)?,
            options.account,
            options.patience.map(in_millis),
            options.metadata,
            options.batch,
            options.callback_url,
            now.as_millis(),
        ]);
    let refusal = match inserted {
        Ok(_) => {
            let sql = format!("SELECT {WATCH} FROM watches WHERE id > ?1 ORDER BY id");
            let mut statement = connection.prepare_cached(&sql)?;
            let rows = statement.query_map([last], watch)?;
            return Ok(rows.map(|row| row.map(|watch| Added::New(Box::new(watch)))).collect::<Result<_, _>>()?);
        }
        Err(error) if is_raised(&error) => Added::BatchClosed,
        Err(error) => match error.into() {
            StoreError::Refused(why) => Added::Refused(why),
            error => return Err(error),
        },
    };
    Ok(vec![refusal; asset_ids.len()])
}

/// The one trigger that refuses a watch is the one of a closed batch.
fn is_raised(error: &rusqlite::Error) -> bool {
    error.sqlite_error().is_some_and(|error| error.extended_code == rusqlite::ffi::SQLITE_CONSTRAINT_TRIGGER)
}

/// As the database keeps it.
fn in_millis(patience: Duration) -> i64 {
    i64::try_from(patience.as_millis()).unwrap_or(i64::MAX)
}

fn json(value: &impl serde::Serialize) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|error| StoreError::Broken(error.to_string()))
}

fn compared(known: Box<Watch>, options: &AddOptions) -> Added {
    let changed = (known.state == State::Waiting).then(|| changed_column(&known, options)).flatten();
    match changed {
        Some(column) => Added::Conflict { watch: known, column },
        None => Added::Known(known),
    }
}

/// An option that was given and differs from the watch's own would be dropped silently; so it is an error.
fn changed_column(known: &Watch, options: &AddOptions) -> Option<&'static str> {
    let differs = |old: &Option<String>, new: &Option<String>| new.is_some() && old != new;
    [
        ("callback_url", differs(&known.callback_url, &options.callback_url)),
        ("batch", differs(&known.batch, &options.batch)),
        ("metadata", differs(&known.metadata, &options.metadata) && !is_same_json(&known.metadata, &options.metadata)),
        ("patience", options.patience.is_some() && known.patience.map(in_millis) != options.patience.map(in_millis)),
    ]
    .into_iter()
    .find_map(|(column, differs)| differs.then_some(column))
}

/// Whether both say the same, however it is written: a repeated request may come from another program.
fn is_same_json(old: &Option<String>, new: &Option<String>) -> bool {
    let parsed = |text: &Option<String>| serde_json::from_str::<serde_json::Value>(text.as_deref()?).ok();
    parsed(old).is_some_and(|old| Some(old) == parsed(new))
}
