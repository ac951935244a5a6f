//! The file's place: whether its path still leads to the database that was opened.
//!
//! SQLite goes on with a file that was removed or replaced, and nobody else ever sees what is written there.

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rusqlite::Connection;

use super::{Shared, StoreError, open};

/// The device, and the file's number there: no file gets another one while it is open.
type Identity = (u64, u64);

/// Where a database was found, and which files were there.
pub(super) struct Place {
    /// The name that was given; a link may be led elsewhere.
    given: PathBuf,
    /// Not known where it could not be looked at.
    file: Option<Identity>,
    /// The write-ahead log and its index, by the name beside the file.
    beside: [(PathBuf, Option<Identity>); 2],
}

/// What became of the file at its path.
#[derive(Clone, Copy)]
enum Gone {
    Removed,
    Replaced,
}

impl Place {
    /// Which file it is, once it is open for writing: an overlay of file systems makes another one of it at that moment.
    pub fn of(given: PathBuf, path: &Path) -> Self {
        let beside = ["-wal", "-shm"].map(|end| (named(path, end), None));
        Self { given, file: identity(path).ok(), beside }
    }

    /// Which log and index it has, once it is open: then they stay as long as it is.
    pub fn note_log(&mut self) {
        for (path, found) in &mut self.beside {
            *found = identity(path).ok();
        }
    }

    /// Whether something else is there now. What cannot be looked at, for want of a right or because the disk fails, is
    /// not gone.
    fn gone(&self) -> Option<Gone> {
        let file = self.file?;
        match identity(&self.given) {
            Ok(found) if found == file => None,
            Ok(_) => Some(Gone::Replaced),
            Err(error) if error.kind() == ErrorKind::NotFound => Some(Gone::Removed),
            Err(_) => None,
        }
    }

    /// Parts the file from what lies beside its path: to SQLite the log belongs to whatever is called so, and it would be
    /// written over the next file. All of it goes into its own file, or else it is kept by another name, which is returned.
    fn part(&self, path: &Path, connection: &Connection) -> std::io::Result<Option<PathBuf>> {
        // Only the link leads elsewhere.
        if identity(path).ok() == self.file {
            return Ok(None);
        }
        let emptied = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, i64>(0)) == Ok(0);
        let [log, index] = &self.beside;
        let is_ours = |(path, found): &(PathBuf, Option<Identity>)| found.is_some() && identity(path).ok() == *found;
        let kept = named(&log.0, &format!(".{}", open::stamp()));
        let kept = match is_ours(log) {
            true if emptied => std::fs::remove_file(&log.0).map(|()| None)?,
            true => std::fs::rename(&log.0, &kept).map(|()| Some(kept))?,
            false => None,
        };
        if is_ours(index) {
            std::fs::remove_file(&index.0)?;
        }
        Ok(kept)
    }

    /// A file that replaced ours can be gone on with, if no log lies beside it that is not its own. Where there is none,
    /// somebody is at it: nobody wants an empty one.
    fn lost(&self, gone: Gone, parted: std::io::Result<Option<PathBuf>>) -> StoreError {
        let (happened, to_do) = gone.in_words();
        let goes_on = matches!(gone, Gone::Replaced) && parted.is_ok();
        let log = match parted {
            Ok(None) => String::new(),
            Ok(Some(kept)) => format!(", and in its log, which is kept as {}", kept.display()),
            Err(error) => {
                let log = self.beside[0].0.display();
                format!(", and in its log, {log}, which has to be moved away before anything is started ({error})")
            }
        };
        let path = self.given.clone();
        let why = format!("{happened}. What was recorded since stays in the file that was there before{log}{to_do}");
        if goes_on { StoreError::Unusable { path, why } } else { StoreError::Unfit { path, why } }
    }
}

impl Shared {
    /// Fails as a write would; without the lock of whoever writes, as long as nothing is wrong.
    pub(super) fn in_place_to_read(&self) -> Result<(), StoreError> {
        self.place.gone().map_or(Ok(()), |_| self.in_place(&super::lock(&self.writer)))
    }

    /// Fails when the file was removed or replaced; the first time it is parted from what is there now.
    pub(super) fn in_place(&self, connection: &Connection) -> Result<(), StoreError> {
        if let Some(lost) = self.lost.borrow().clone() {
            return Err(lost);
        }
        let Some(gone) = self.place.gone() else { return Ok(()) };
        let lost = self.place.lost(gone, self.place.part(&self.path, connection));
        self.lost.send_replace(Some(lost.clone()));
        Err(lost)
    }
}

impl Gone {
    /// What happened, and what is to be done.
    const fn in_words(self) -> (&'static str, &'static str) {
        match self {
            Self::Removed => (
                "it was removed, or moved away, while it was in use",
                ". Put it back, or restore a backup, and start again; with none there, a new one is begun",
            ),
            Self::Replaced => ("another file was put in its place while it was in use", ""),
        }
    }
}

fn identity(path: &Path) -> std::io::Result<Identity> {
    std::fs::metadata(path).map(|file| (file.dev(), file.ino()))
}

fn named(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    name.into()
}
