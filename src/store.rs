//! The database: one SQLite file, the truth about every watch and every delivery.
//!
//! Whatever returned `Ok` here is on the disk (`synchronous=FULL`). Writes of concurrent workers share a transaction and
//! with it the wait for the disk, and yet none takes another one along when it fails; see `store/commit.rs`. Every write
//! transaction is `BEGIN IMMEDIATE`. After a crash the file holds exactly what was acknowledged, and at most the one batch that was
//! being committed besides.
//!
//! A row is worked under a lease: a claim gives it an owner, an end and the next generation. A write about it applies
//! only while the generation is still the claim's, so a worker that was too slow gets [`StoreError::LeaseLost`] and
//! nothing is written twice. An expired lease is claimed again like anything that is due.
//!
//! No rusqlite type leaves this module.

mod accounts;
mod adding;
mod backup;
mod batches;
mod blocking;
mod commit;
mod damage;
mod copy;
mod deliveries;
mod history;
mod hooks;
mod integrity;
mod lease;
mod ledger;
mod open;
mod overview;
mod place;
mod prune;
mod reader;
mod rows;
mod waiting;
mod watches;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::Connection;

pub use crate::standing::Standing as HookRow;
pub use accounts::AccountRow;
pub use adding::{AddOptions, Added};
pub use backup::{BackedUp, BackupError, backup, backup_in_progress};
pub use batches::TellBatch;
pub use blocking::Blocking;
pub use copy::{Copying, free_room, size_in_words};
pub use deliveries::{Backlog, DeliveryFilter, DeliveryRow, Portion, Retried};
pub use history::{AttemptRow, EventRow, History};
pub use integrity::Integrity;
pub use ledger::{DaemonRow, Ending, Outstanding};
pub use overview::{Lateness, Overview, Settled, WaitingTime};
pub use prune::{Ended, Free, OldRow};
pub use watches::Filter;

use crate::clock::Timestamp;
use crate::meter::Commits;

use place::Place;
use reader::Reader;

/// Why the store could not do what it was asked to.
#[expect(missing_docs, reason = "each variant's sentence names its fields")]
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The file cannot be used at all; the text says why and what to do.
    #[error("the database {path}: {why}")]
    Unusable { path: PathBuf, why: String },
    /// Nor could it later, unless a person sees to it: it is damaged, another program's or a newer version's, or was taken
    /// away.
    #[error("the database {path}: {why}")]
    Unfit { path: PathBuf, why: String },
    /// Locked, full, read-only or unreadable for now: worth another try later.
    #[error("the database cannot be used right now: {0}")]
    Unavailable(String),
    /// The row's lease was taken over, or the row has ended: nothing was written.
    #[error("the lease was lost: somebody else has worked on it meanwhile")]
    LeaseLost,
    /// The rows that the statement would have written are not allowed.
    #[error("the database refuses it: {0}")]
    Refused(String),
    /// Neither of the above: an error of ours.
    #[error("the database failed: {0}")]
    Broken(String),
}

/// What a claim may take from one lane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lane {
    /// An account or a hook.
    pub name: String,
    /// At most so many rows.
    pub room: u32,
    /// Not this row, unless it is the only one.
    pub avoid: Option<i64>,
    /// This watch and no other, if it is due.
    pub prefer: Option<i64>,
    /// How long a lease lasts.
    pub lease: Duration,
    /// Of deliveries, at most so many that were attempted before.
    pub again: u32,
    /// Whether one of those comes first, and not one that is attempted for the first time.
    pub again_first: bool,
}

/// The terms of a claim.
#[derive(Clone, Debug)]
pub struct Terms {
    /// Who claims.
    pub owner: String,
    /// The lanes that are open.
    pub lanes: Vec<Lane>,
    /// Wall time.
    pub now: Timestamp,
    /// What is due later than this was written by a clock that has been set back since: it is due now.
    pub horizon: Timestamp,
    /// Only what belongs to these watches; everything when absent.
    pub only: Option<Vec<i64>>,
    /// Rows that the claimer is still at, even if their leases have run out.
    pub live: Vec<i64>,
}

/// What a claim brought from one lane.
#[derive(Clone, Debug)]
pub struct Claimed<T> {
    /// The lane.
    pub lane: String,
    /// The rows that were due, leased to the claimer.
    pub rows: Vec<T>,
    /// When the next row of this lane is due or its lease expires, when all that was due has been claimed.
    pub next_due: Option<Timestamp>,
    /// Whether at most one row of this lane waits at all.
    pub alone: bool,
}

/// What opening did to a database of an earlier version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Migrated {
    /// Its schema before.
    pub from: u32,
    /// Its schema now.
    pub to: u32,
    /// A copy of it as it was.
    pub copy: PathBuf,
}

impl std::fmt::Display for Migrated {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { from, to, copy } = self;
        let copy = copy.display();
        write!(
            f,
            "it was brought from schema {from} to {to}; as it was before it is kept as {copy}, until you remove it"
        )
    }
}

/// The database. Clones share it.
#[derive(Clone)]
pub struct Store {
    shared: Arc<Shared>,
    reader: Arc<Reader>,
}

struct Shared {
    path: PathBuf,
    place: Place,
    install_id: String,
    migrated: Option<Migrated>,
    writer: Mutex<Connection>,
    queue: Mutex<commit::Queue>,
    /// Counts our own commits.
    commits: tokio::sync::watch::Sender<u64>,
    meter: Commits,
    /// Set when the file was found damaged, removed or replaced.
    lost: tokio::sync::watch::Sender<Option<StoreError>>,
    /// Opened by a process that may not write to it.
    read_only: bool,
    blocking: Blocking,
}

impl Store {
    /// Opens the database at `path`, creates it if there is none, and brings an older one to the present schema, of which
    /// a copy is kept beside it: [`Store::migrated`] names it. A process that is killed meanwhile leaves the old database
    /// or the new one, and at most an unfinished copy, which the next one overwrites.
    ///
    /// # Errors
    /// [`StoreError::Unusable`] when there can be no database there, and [`StoreError::Unfit`] when it is damaged, not one
    /// of ours, or a newer version's.
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
        Self::open_with(path, Blocking::aside()).await
    }

    /// [`Store::open`], with a say in how the work that blocks is run.
    ///
    /// # Errors
    /// Those of [`Store::open`].
    pub async fn open_with(path: &Path, blocking: Blocking) -> Result<Self, StoreError> {
        let (path, kept) = (path.to_owned(), blocking.clone());
        blocking.answer(move || open::open(&path, kept)).await
    }

    /// The database's own random id: part of every event's id.
    pub fn install_id(&self) -> &str {
        &self.shared.install_id
    }

    /// What opening it changed, if this is who has changed it.
    pub fn migrated(&self) -> Option<&Migrated> {
        self.shared.migrated.as_ref()
    }

    /// Where the database is.
    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    /// The same database, with another connection to look with: whatever is looked up through it, however long that takes,
    /// nobody else waits for.
    #[must_use]
    pub fn beside(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), reader: Reader::new(self.shared.path.clone()) }
    }

    /// Changes whenever this process has committed something.
    pub fn commits(&self) -> tokio::sync::watch::Receiver<u64> {
        self.shared.commits.subscribe()
    }

    /// A number that changes whenever another process has committed a change.
    pub async fn foreign_version(&self) -> Result<i64, StoreError> {
        let shared = Arc::clone(&self.shared);
        self.shared.blocking.answer(move || version(&lock(&shared.writer))).await
    }

    /// A number that changes whenever anybody has committed a change, this process included.
    ///
    /// # Errors
    /// Also when the file was removed or replaced: nobody would change this one any more.
    pub async fn version(&self) -> Result<i64, StoreError> {
        let (shared, permit) = (Arc::clone(&self.shared), self.reader.permit().await);
        let look = move || {
            shared.in_place_to_read()?;
            permit.look(|reader| version(reader))
        };
        self.shared.blocking.answer(look).await
    }

    /// Looks at the database in one snapshot.
    async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (shared, permit) = (Arc::clone(&self.shared), self.reader.permit().await);
        let look = move || {
            shared.in_place_to_read()?;
            shared.noted(permit.look(|reader| {
                let snapshot = reader.transaction()?;
                look(&snapshot)
            }))
        };
        self.shared.blocking.answer(look).await
    }
}

/// SQLite's own count, which leaves out what the asking connection has committed itself.
fn version(connection: &Connection) -> Result<i64, StoreError> {
    connection.query_row("PRAGMA data_version", [], |row| row.get(0)).map_err(StoreError::from)
}

/// A panic inside a job leaves the connection usable: what it had begun is rolled back.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        use rusqlite::ErrorCode as Code;
        let text = error.to_string();
        match error.sqlite_error_code() {
            Some(Code::DatabaseBusy | Code::DatabaseLocked) => {
                Self::Unavailable(format!("another program holds its write lock ({text})"))
            }
            Some(Code::DiskFull) => Self::Unavailable(format!("the disk is full ({text})")),
            Some(Code::ReadOnly | Code::PermissionDenied) => {
                Self::Unavailable(format!("it cannot be written to; look at its owner and mode ({text})"))
            }
            Some(Code::SystemIoFailure | Code::CannotOpen | Code::OutOfMemory | Code::FileLockingProtocolFailed) => {
                Self::Unavailable(text)
            }
            Some(Code::DatabaseCorrupt | Code::NotADatabase) => damage::unfit(&text),
            Some(Code::ConstraintViolation) => Self::Refused(text.replace("CHECK constraint failed: ", "")),
            _ => Self::Broken(text),
        }
    }
}
