//! Backups: a copy by the name that a person gave it, of a database that may be in use.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags};
use serde::Serialize;

use super::copy::{self, Copying, Partial};
use super::open::{self, BUSY, Found};
use super::{Blocking, StoreError};

/// Why there is no backup. What was there before is as it was.
#[expect(missing_docs, reason = "each variant's sentence names its fields")]
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BackupError {
    /// The file cannot be what was asked for; the text says why and what to do.
    #[error("no backup was made: {0}")]
    Target(String),
    /// There is such a file already.
    #[error("no backup was made: {path} exists; name another file, or replace it with `--force`")]
    Exists { path: PathBuf },
    /// The database, or the way to the file.
    #[error("no backup of {path} was made: {why}")]
    Failed { path: PathBuf, why: String },
    /// The database could not be asked.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A backup that was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BackedUp {
    /// The database.
    pub database: PathBuf,
    /// The backup.
    pub file: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// Its schema's version.
    pub schema: u32,
    /// How many watches are in it.
    pub watches: i64,
}

/// Copies the database at `database` into `file`, as it is at one instant. Others may use it meanwhile, and none of them
/// waits. An older database is copied as it is. `report` hears how far it is.
///
/// `file` is there when it is whole, was read once more and found to be sound, and is on the disk, and not before; an
/// existing one is replaced only with `replace`. It has the mode of the database, or less. A process that is killed leaves
/// at most the file that [`backup_in_progress`] names, which the next one overwrites.
///
/// # Errors
/// When there is no such database, it is not ours or a newer version's, or the file cannot be written.
pub async fn backup(
    database: &Path,
    file: &Path,
    replace: bool,
    mut report: impl FnMut(Copying) + Send + 'static,
) -> Result<BackedUp, BackupError> {
    let (database, file) = (database.to_owned(), file.to_owned());
    Blocking::aside().answer(move || Ok(make(&database, &file, replace, &mut report))).await?
}

/// Where the backup is until it is whole.
pub fn backup_in_progress(file: &Path) -> PathBuf {
    copy::partial_path(file)
}

fn make(database: &Path, file: &Path, replace: bool, report: &mut dyn FnMut(Copying)) -> Result<BackedUp, BackupError> {
    let failed = |why: String| BackupError::Failed { path: database.to_owned(), why };
    let absolute = |path: &Path| std::path::absolute(path).map_err(|error| failed(error.to_string()));
    let (database, file) = (absolute(database)?, absolute(file)?);
    // A link's log is beside the file that it leads to.
    let canonical = database.canonicalize().unwrap_or_else(|_| database.clone());
    open::check_log(&canonical).map_err(|why| why.of(&database))?;
    let source = source(&database).map_err(failed)?;
    let schema = match open::look(&source).map_err(|why| why.of(&database))? {
        Found::Nothing => return Err(failed("it is empty".into())),
        Found::Current => open::SCHEMA,
        Found::Older(version) => version,
    };
    check_target(&database, &file, replace)?;
    let partial = Partial::begin(&file).map_err(failed)?;
    partial.fill(&source, report).map_err(failed)?;
    report(Copying::Checking);
    partial.check().map_err(failed)?;
    let watches = partial.count_watches().map_err(failed)?;
    partial
        .resemble(&database, false)
        .map_err(|error| failed(format!("the copy cannot be given the owner and mode of the database: {error}")))?;
    let bytes = partial.keep(&file, replace).map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => BackupError::Exists { path: file.clone() },
        _ => failed(format!("{} cannot be written: {error}", file.display())),
    })?;
    Ok(BackedUp { database, file, bytes, schema, watches })
}

/// Nothing is created, and nothing brought up to date.
fn source(database: &Path) -> Result<Connection, String> {
    match database.metadata() {
        Err(error) => return Err(format!("there is no such database ({error}); name one with `--database`")),
        Ok(file) if !file.is_file() => return Err("it is not a regular file".into()),
        Ok(_) => {}
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(database, flags).map_err(|error| open::explained(&error))?;
    connection.busy_timeout(BUSY).map_err(|error| open::explained(&error))?;
    Ok(connection)
}

fn check_target(database: &Path, file: &Path, replace: bool) -> Result<(), BackupError> {
    // A link's log is beside the file that it leads to.
    let database = database.canonicalize().unwrap_or_else(|_| database.to_owned());
    let named = |end: &str| {
        let mut name = database.as_os_str().to_owned();
        name.push(end);
        PathBuf::from(name)
    };
    let own = ["", "-wal", "-shm", "-journal"].map(named);
    let identity = |path: &Path| path.metadata().ok().map(|file| (file.dev(), file.ino()));
    let there = identity(file);
    if own.iter().any(|own| own == file || there.is_some() && identity(own) == there) {
        let why = format!("{} is the database itself, or a part of it; name another file", file.display());
        return Err(BackupError::Target(why));
    }
    match file.symlink_metadata() {
        Ok(found) if found.is_dir() => {
            Err(BackupError::Target(format!("{} is a directory; name a file in it", file.display())))
        }
        Ok(found) if !found.is_file() && !found.is_symlink() => {
            Err(BackupError::Target(format!("{} is not a regular file; name another one", file.display())))
        }
        Ok(_) if !replace => Err(BackupError::Exists { path: file.to_owned() }),
        Ok(_) | Err(_) => Ok(()),
    }
}
