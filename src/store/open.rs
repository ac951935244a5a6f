//! Opening: pragmas, whose file it is, and migrations.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use super::copy::{self, Partial};
use super::place::Place;
use super::reader::Reader;
use super::{Blocking, Migrated, Shared, Store, StoreError, commit};
use crate::clock::Clock;
use crate::event::base32;

/// In the file's header, so that the file can be told from another program's: `aWtc`.
const APPLICATION_ID: i32 = 0x6157_7463;

/// Only ever appended. The position is the version that the file's `user_version` holds.
const MIGRATIONS: &[&str] = &[
    include_str!("../../migrations/0001_initial.sql"),
    include_str!("../../migrations/0002_hooks_and_batches.sql"),
    include_str!("../../migrations/0003_ended.sql"),
];

/// The version that this program works with.
pub(super) const SCHEMA: u32 = MIGRATIONS.len() as u32;

/// How a write-ahead log begins: its magic number and its version.
const LOG_HEAD: [u8; 8] = [0x37, 0x7f, 0x06, 0x82, 0x00, 0x2d, 0xe2, 0x18];

/// How long a statement waits for another program's lock.
pub(super) const BUSY: Duration = Duration::from_secs(5);

/// The same for one that has to bring the database up to date: another process may be at it, and copies it first.
const PATIENT: Duration = Duration::from_secs(120);

/// What a file is.
pub(super) enum Found {
    /// A database without any table.
    Nothing,
    /// One of ours, of the present schema.
    Current,
    /// One of ours, of this earlier schema.
    Older(u32),
}

/// Why a file cannot be worked with.
pub(super) struct Why {
    text: String,
    /// It is what is in the file, so that another try would not help.
    unfit: bool,
}

impl Why {
    fn unfit(text: impl Into<String>) -> Self {
        Self { text: text.into(), unfit: true }
    }

    pub fn of(self, path: &Path) -> StoreError {
        let (path, why) = (path.to_owned(), self.text);
        if self.unfit { StoreError::Unfit { path, why } } else { StoreError::Unusable { path, why } }
    }
}

impl From<String> for Why {
    fn from(text: String) -> Self {
        Self { text, unfit: false }
    }
}

impl From<rusqlite::Error> for Why {
    fn from(error: rusqlite::Error) -> Self {
        use rusqlite::ErrorCode as Code;
        let unfit = matches!(error.sqlite_error_code(), Some(Code::NotADatabase | Code::DatabaseCorrupt));
        Self { text: explained(&error), unfit }
    }
}

pub(super) fn open(path: &Path, blocking: Blocking) -> Result<Store, StoreError> {
    let unusable = |why: String| StoreError::Unusable { path: path.to_owned(), why };
    let refused = |why: Why| why.of(path);
    // SQLite gives `:memory:` and `file:…` a meaning of their own, and an absolute path none.
    let absolute = std::path::absolute(path).map_err(|error| unusable(error.to_string()))?;
    // SQLite keeps its log beside the file that a link leads to, and so does everything that is derived from the name here.
    let canonical = std::fs::canonicalize(&absolute).unwrap_or_else(|_| absolute.clone());
    let path = canonical.as_path();
    if std::fs::metadata(path).is_ok_and(|file| !file.is_file()) {
        return Err(unusable("it is not a regular file; name another one with `--database`".into()));
    }
    if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
        std::fs::create_dir_all(directory)
            .map_err(|error| unusable(format!("its directory cannot be created: {error}")))?;
    }
    create(path).map_err(|error| unusable(format!("it cannot be created: {error}")))?;
    check_log(path).map_err(refused)?;
    let explain = |error: rusqlite::Error| refused(error.into());
    let writer = connect(path).map_err(explain)?;
    let mut place = Place::of(absolute, path);
    let migrated = migrate(&writer, path).map_err(refused)?;
    look_into(&writer).map_err(explain)?;
    // After the migration: a file that is not ours is not changed in any way.
    log_ahead(&writer).map_err(explain)?;
    let install_id =
        writer.query_row("SELECT value FROM meta WHERE key = 'install_id'", [], |row| row.get(0)).map_err(explain)?;
    place.note_log();
    let read_only = writer.is_readonly(rusqlite::MAIN_DB).map_err(explain)?;
    Ok(Store {
        shared: Arc::new(Shared {
            path: path.to_owned(),
            place,
            install_id,
            migrated,
            writer: Mutex::new(writer),
            queue: Mutex::new(commit::Queue::default()),
            commits: tokio::sync::watch::Sender::new(0),
            meter: super::Commits::default(),
            lost: tokio::sync::watch::Sender::new(None),
            read_only,
            blocking,
        }),
        reader: Reader::new(path.to_owned()),
    })
}

/// SQLite would create it for its owner to write only, and the database is an interface: the umask decides.
fn create(path: &Path) -> std::io::Result<()> {
    match OpenOptions::new().write(true).create_new(true).open(path) {
        Ok(_) => Ok(()),
        // Whether an existing one can be used is for SQLite to say.
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

/// SQLite takes a write-ahead log that it does not know for an empty one and writes over it, and with it over whatever
/// was committed last.
pub(super) fn check_log(path: &Path) -> Result<(), Why> {
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    let mut head = [0; LOG_HEAD.len()];
    // What is not there, too short or not readable is for SQLite to judge.
    let read = File::open(&log).and_then(|mut file| file.read_exact(&mut head));
    // A power failure may leave a log that has its length already and nothing in it.
    if read.is_err() || head == [0; LOG_HEAD.len()] {
        return Ok(());
    }
    // The lowest bit is the byte order of the checksums.
    head[3] &= !1;
    if head == LOG_HEAD {
        return Ok(());
    }
    Err(Why::unfit(format!(
        "its write-ahead log, {}, is damaged, or another program's; nothing was changed. Restore both from a backup, or \
         move that file away, with which is lost what was committed last",
        Path::new(&log).display()
    )))
}

/// The file is there already: whoever opens the store has created it, and where it is gone, none is begun.
pub(super) fn connect(path: &Path) -> Result<Connection, rusqlite::Error> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY)?;
    connection.set_prepared_statement_cache_capacity(64);
    // FULL: in WAL mode an acknowledged commit survives a power loss only with it.
    connection.execute_batch("PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; PRAGMA temp_store = MEMORY;")?;
    // In pages: a checkpoint writes each page once, however often it is in the log.
    connection.pragma_update(None, "wal_autocheckpoint", 4_000)?;
    // The log grows while somebody reads for long, as a backup does; afterwards it is cut to this again.
    connection.pragma_update(None, "journal_size_limit", 64 << 20)?;
    // Without it a statement is planned anew whenever other values are bound.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    Ok(connection)
}

/// Looks into each table: what is damaged there is said before anything is written. An index is met when it is used.
fn look_into(connection: &Connection) -> Result<(), rusqlite::Error> {
    let mut tables = connection.prepare("SELECT name FROM sqlite_schema WHERE type = 'table'")?;
    let tables = tables.query_map([], |row| row.get::<_, String>(0))?.collect::<Result<Vec<_>, _>>()?;
    for table in tables {
        let table = table.replace('"', "\"\"");
        let look = connection.prepare(&format!("SELECT 1 FROM \"{table}\" NOT INDEXED LIMIT 1"));
        match look.and_then(|mut look| look.exists([])) {
            Err(error) if error.sqlite_error_code() == Some(rusqlite::ErrorCode::DatabaseCorrupt) => return Err(error),
            // Somebody else's table may need what we do not have.
            _ => {}
        }
    }
    Ok(())
}

/// Turns the write-ahead log on. SQLite reads the header first and then wants to write, and who has begun to read does not
/// wait for a lock; but several processes may have found no database at once.
fn log_ahead(connection: &Connection) -> Result<(), rusqlite::Error> {
    let deadline = Instant::now() + BUSY;
    loop {
        match connection.pragma_update(None, "journal_mode", "WAL") {
            Err(error)
                if error.sqlite_error_code() == Some(rusqlite::ErrorCode::DatabaseBusy)
                    && Instant::now() < deadline =>
            {
                // Waits until nobody else holds any lock.
                connection.execute_batch("BEGIN EXCLUSIVE; ROLLBACK")?;
            }
            done => return done,
        }
    }
}

/// Brings the file to the present schema in one transaction, or says why that is not possible. Of one that had a schema a
/// copy is kept, made under the same lock: so it is the last state of the old one, and of several processes that start
/// at once one makes it.
fn migrate(connection: &Connection, path: &Path) -> Result<Option<Migrated>, Why> {
    // In one snapshot: a file that another process is just creating would look like a stranger's.
    let snapshot = connection.unchecked_transaction()?;
    if matches!(look(&snapshot)?, Found::Current) {
        return Ok(None);
    }
    snapshot.finish()?;
    if tables(connection)? == 0 {
        // Only possible before the first table is there; lets the janitor give space back bit by bit.
        connection.execute_batch("PRAGMA auto_vacuum = INCREMENTAL")?;
    }
    connection.busy_timeout(PATIENT)?;
    let begun = connection.execute_batch("BEGIN IMMEDIATE");
    connection.busy_timeout(BUSY)?;
    begun?;
    // Asked again under the lock: two programs may have started at once.
    match look(connection).and_then(|found| bring_up(connection, path, &found)) {
        Ok(migrated) => {
            connection.execute_batch("COMMIT")?;
            Ok(migrated)
        }
        Err(why) => {
            // The first error is the one to tell; closing the connection rolls back as well.
            let _ = connection.execute_batch("ROLLBACK");
            Err(why)
        }
    }
}

fn bring_up(connection: &Connection, path: &Path, found: &Found) -> Result<Option<Migrated>, Why> {
    let migrated = match found {
        Found::Current => return Ok(None),
        Found::Nothing => None,
        Found::Older(from) => {
            let kept = keep_copy(path, *from).map_err(|why| {
                format!("it is of an older version (schema {from}) and has to be copied before it is brought up to date: {why}. Nothing was changed")
            })?;
            Some(Migrated { from: *from, to: SCHEMA, copy: kept })
        }
    };
    apply(connection)?;
    Ok(migrated)
}

/// A copy of the database beside it, as `NAME.v1-20260921T101320.123Z`. One with the same content, of a process that was
/// killed before it had migrated, is kept instead: or a process that is started again and again would fill the disk.
fn keep_copy(path: &Path, version: u32) -> Result<PathBuf, String> {
    let named = |end: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".v{version}{end}"));
        PathBuf::from(name)
    };
    let source = connect(path).map_err(|error| explained(&error))?;
    let partial = Partial::begin(&named(""))?;
    partial.fill(&source, &mut |_| {})?;
    partial.check()?;
    let prefix = named("-");
    let siblings = std::fs::read_dir(copy::directory(path)).into_iter().flatten().flatten().map(|entry| entry.path());
    let is_copy =
        |other: &PathBuf| other.as_os_str().as_encoded_bytes().starts_with(prefix.as_os_str().as_encoded_bytes());
    // One that cannot be read is none.
    if let Some(known) = siblings.filter(is_copy).find(|other| partial.equals(other).unwrap_or(false)) {
        return Ok(known);
    }
    let kept = named(&format!("-{}", stamp()));
    let unwritable = |error: std::io::Error| format!("{} cannot be written: {error}", kept.display());
    partial.resemble(path, true).map_err(unwritable)?;
    partial.keep(&kept, false).map_err(unwritable)?;
    Ok(kept)
}

/// This instant, as it may be part of a file's name.
pub(super) fn stamp() -> String {
    Clock::system().now().to_string().replace(['-', ':'], "")
}

/// What the file is, unless it is not ours or a newer version's: then it is not touched.
pub(super) fn look(connection: &Connection) -> Result<Found, Why> {
    let number = |name: &str| connection.pragma_query_value(None, name, |row| row.get::<_, i32>(0));
    let (application, version) = (number("application_id")?, number("user_version")?);
    if application == 0 && version == 0 && tables(connection)? == 0 {
        return Ok(Found::Nothing);
    }
    if application != APPLICATION_ID {
        return Err(Why::unfit("it belongs to another program; name another file with `--database`"));
    }
    match u32::try_from(version) {
        Ok(SCHEMA) => Ok(Found::Current),
        Ok(version) if version < SCHEMA => Ok(Found::Older(version)),
        _ => Err(Why::unfit(format!(
            "it was written by a newer assetwatch (schema {version}, this one knows {SCHEMA}); install that version again"
        ))),
    }
}

fn tables(connection: &Connection) -> rusqlite::Result<i64> {
    connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
}

fn apply(connection: &Connection) -> Result<(), Why> {
    let version: usize = connection
        .pragma_query_value(None, "user_version", |row| row.get::<_, u32>(0))?
        .try_into()
        .unwrap_or(usize::MAX);
    for migration in MIGRATIONS.iter().skip(version) {
        connection.execute_batch(migration)?;
    }
    connection.execute("INSERT OR IGNORE INTO meta (key, value) VALUES ('install_id', ?1)", [random_id()?])?;
    connection.pragma_update(None, "application_id", APPLICATION_ID)?;
    connection.pragma_update(None, "user_version", MIGRATIONS.len() as i64)?;
    Ok(())
}

fn random_id() -> Result<String, String> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| format!("the system gives no random numbers: {error}"))?;
    Ok(base32(&bytes))
}

/// What a person can do about an error while opening.
pub(super) fn explained(error: &rusqlite::Error) -> String {
    use rusqlite::ErrorCode as Code;
    match error.sqlite_error_code() {
        Some(Code::NotADatabase) => {
            format!(
                "it is damaged, or not a SQLite database; nothing was changed ({error}). Restore a backup, or name another file with `--database`"
            )
        }
        Some(Code::DatabaseCorrupt) => {
            format!(
                "it is damaged; nothing was changed ({error}). Restore a backup, or recover it with `sqlite3 FILE .recover`"
            )
        }
        Some(Code::CannotOpen | Code::PermissionDenied | Code::ReadOnly) => {
            format!(
                "it cannot be opened for writing; look at the owner and mode of the file and its directory, or name another file with `--database` ({error})"
            )
        }
        Some(Code::DatabaseBusy | Code::DatabaseLocked) => {
            format!("another program holds its write lock; end that, and try again ({error})")
        }
        Some(Code::DiskFull) => format!("the disk is full ({error})"),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::lock;
    use super::*;

    /// These belong to a connection, so no other program can see them.
    #[test]
    fn each_connection_waits_for_the_disk_and_for_locks() {
        let directory = tempfile::tempdir().unwrap();
        let store = open(&directory.path().join("assetwatch.db"), Blocking::aside()).unwrap();
        let another = connect(store.path()).unwrap();
        for connection in [&*lock(&store.shared.writer), &another] {
            let number = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0)).unwrap();
            assert_eq!(number("synchronous"), 2, "FULL");
            assert_eq!((number("foreign_keys"), number("busy_timeout")), (1, 5_000));
            let journal: String = connection.pragma_query_value(None, "journal_mode", |row| row.get(0)).unwrap();
            assert_eq!(journal, "wal");
        }
    }
}
