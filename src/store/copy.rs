//! A consistent copy of a database, made while others go on writing to it.
//!
//! It grows under another name beside its target and gets its own only when it is whole, sound and on the disk. What a
//! killed process has left of one is overwritten by the next.

use std::ffi::OsString;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};

use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, OpenFlags};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

/// Pages that are copied between two reports.
const PORTION: i32 = 1_000;
/// Its own locks would be of no use: nobody else knows the file, and some network file systems have none.
const WITHOUT_LOCKS: &str = "unix-none";
/// How much of two files is compared at once.
const COMPARED: usize = 64 * 1024;

/// How far a copy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copying {
    /// So many bytes of so many are copied.
    Pages {
        /// Those that are copied.
        done: u64,
        /// Those of the whole database.
        of: u64,
    },
    /// The copy is read once more, to see that it is sound.
    Checking,
}

/// A file that is not finished. If it is dropped, it is removed.
pub(super) struct Partial {
    path: PathBuf,
    /// Holds a lock as long as it is open: two processes never write into one file.
    file: File,
}

/// Where the copy for `target` grows.
pub(super) fn partial_path(target: &Path) -> PathBuf {
    let mut name = OsString::from(target);
    name.push(".assetwatch-partial");
    name.into()
}

impl Partial {
    /// Begins an empty file for `target`, which nobody but its owner may read.
    pub(super) fn begin(target: &Path) -> Result<Self, String> {
        let path = partial_path(target);
        loop {
            if let Some(file) = create(&path)?
                && is_still_there(&file, &path)
            {
                return Ok(Self { path, file });
            }
        }
    }

    /// Copies everything that `source` sees now. What others commit meanwhile neither is in the copy nor begins it anew,
    /// so it ends, however busy the database is.
    pub(super) fn fill(&self, source: &Connection, report: &mut dyn FnMut(Copying)) -> Result<(), String> {
        let failed = |error: rusqlite::Error| self.explained(&error);
        let snapshot = source.unchecked_transaction().map_err(failed)?;
        let number = |name| snapshot.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
        let page = u64::try_from(number("page_size").map_err(failed)?).unwrap_or(0);
        let pages = u64::try_from(number("page_count").map_err(failed)?).unwrap_or(0);
        self.find_room(pages.saturating_mul(page))?;
        let mut target = self.connect(OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(failed)?;
        // It is not there until it is whole, and is synced once, at its end.
        target
            .execute_batch("PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF")
            .map_err(failed)?;
        let copy = Backup::new(&snapshot, &mut target).map_err(failed)?;
        loop {
            match copy.step(PORTION).map_err(failed)? {
                StepResult::Done => break,
                StepResult::More => {}
                _ => return Err("another program holds a lock on the database; try again".into()),
            }
            let left = u64::try_from(copy.progress().remaining).unwrap_or(0);
            report(Copying::Pages { done: pages.saturating_sub(left) * page, of: pages * page });
        }
        drop(copy);
        // One file and no log beside it: so it can be moved, and read where nothing can be written.
        target.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(())).map_err(failed)?;
        target.pragma_update(None, "journal_mode", "DELETE").map_err(failed)?;
        target.close().map_err(|(_, error)| failed(error))
    }

    /// Reads the copy again, from the file, and sees whether it is sound.
    pub(super) fn check(&self) -> Result<(), String> {
        let failed = |error: rusqlite::Error| self.explained(&error);
        let copy = self.connect(OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(failed)?;
        let found: String = copy.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0)).map_err(failed)?;
        if found == "ok" { Ok(()) } else { Err(format!("the copy is not sound, and was not kept: {found}")) }
    }

    /// How many watches are in it.
    pub(super) fn count_watches(&self) -> Result<i64, String> {
        let failed = |error: rusqlite::Error| self.explained(&error);
        let copy = self.connect(OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(failed)?;
        copy.query_row("SELECT count(*) FROM watches", [], |row| row.get(0)).map_err(failed)
    }

    /// Gives it the mode of `original`, and its owner as well if `owner`; where its group cannot be had, none may read it.
    pub(super) fn resemble(&self, original: &Path, owner: bool) -> io::Result<()> {
        let original = original.metadata()?;
        let mut mode = original.mode() & 0o666;
        // Only root may give a file away; for others it is theirs already, or stays their own.
        let _ = owner.then(|| fchown(&self.file, Some(original.uid()), None));
        if self.file.metadata()?.gid() != original.gid() && fchown(&self.file, None, Some(original.gid())).is_err() {
            mode &= !0o060;
        }
        self.file.set_permissions(std::fs::Permissions::from_mode(mode))
    }

    /// Gives it its name, once it is on the disk. Without `replace`, a file of that name stays, and is an error.
    pub(super) fn keep(self, target: &Path, replace: bool) -> io::Result<u64> {
        self.file.sync_all()?;
        let bytes = self.file.metadata()?.len();
        if replace {
            std::fs::rename(&self.path, target)?;
        } else {
            rename_new(&self.path, target)?;
        }
        // Or the name could be gone after a power loss.
        File::open(directory(target))?.sync_all()?;
        Ok(bytes)
    }

    /// Whether `other` has the same content.
    pub(super) fn equals(&self, other: &Path) -> io::Result<bool> {
        let (mut one, mut two) = (File::open(&self.path)?, File::open(other)?);
        if one.metadata()?.len() != two.metadata()?.len() {
            return Ok(false);
        }
        let (mut left, mut right) = (vec![0; COMPARED], vec![0; COMPARED]);
        loop {
            let read = one.read(&mut left)?;
            if read == 0 {
                return Ok(true);
            }
            two.read_exact(&mut right[..read])?;
            if left[..read] != right[..read] {
                return Ok(false);
            }
        }
    }

    fn connect(&self, flags: OpenFlags) -> rusqlite::Result<Connection> {
        Connection::open_with_flags_and_vfs(&self.path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX, WITHOUT_LOCKS)
    }

    /// Better said before a disk is full than after: others write to it, too.
    fn find_room(&self, bytes: u64) -> Result<(), String> {
        let Some(free) = free_room(&self.path).filter(|free| *free < bytes) else { return Ok(()) };
        let directory = directory(&self.path);
        Err(format!(
            "there is not enough room in {}: the copy takes {}, and {} are free",
            directory.display(),
            size_in_words(bytes),
            size_in_words(free)
        ))
    }

    fn explained(&self, error: &rusqlite::Error) -> String {
        match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DiskFull) => {
                format!("there is not enough room in {} for the copy ({error})", directory(&self.path).display())
            }
            _ => format!("it cannot be copied: {error}"),
        }
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // After `keep` nothing has this name, or it is another process's.
        if is_still_there(&self.file, &self.path) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// A new file, locked. None where what an earlier process left was taken out of the way first.
fn create(path: &Path) -> Result<Option<File>, String> {
    let failed = |error: io::Error| format!("{} cannot be written: {error}", path.display());
    // Never through a link, which may be somebody else's.
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600).custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed());
    match options.create_new(true).open(path) {
        Ok(file) => lock(&file, path).map(|()| Some(file)),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            match options.create_new(false).open(path) {
                Ok(left) => lock(&left, path)?,
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
                Err(_) => {}
            }
            std::fs::remove_file(path).map(|()| None).map_err(failed)
        }
        Err(error) => Err(failed(error)),
    }
}

fn lock(file: &File, path: &Path) -> Result<(), String> {
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => {
            Err(format!("another process is writing {}; let it end, and try again", path.display()))
        }
        // A file system without locks.
        Ok(()) | Err(TryLockError::Error(_)) => Ok(()),
    }
}

/// Whether this is the file that has this name.
fn is_still_there(file: &File, path: &Path) -> bool {
    match (file.metadata(), path.symlink_metadata()) {
        (Ok(open), Ok(named)) => (open.dev(), open.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}

/// Renames unless there is such a file, also where the file system cannot do both in one step.
fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) if to.symlink_metadata().is_err() => std::fs::rename(from, to),
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => Err(ErrorKind::AlreadyExists.into()),
        renamed => Ok(renamed?),
    }
}

/// The directory that a file is in.
pub(super) fn directory(file: &Path) -> &Path {
    file.parent().filter(|directory| !directory.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// How many bytes are free for us in the file system of this file, which need not be there; none where that is not known.
pub fn free_room(file: &Path) -> Option<u64> {
    let disk = rustix::fs::statvfs(directory(file)).ok()?;
    Some(disk.f_bavail.saturating_mul(disk.f_frsize))
}

/// A size for people.
pub fn size_in_words(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["bytes", "kB", "MB", "GB"];
    let mut size = bytes as f64;
    let mut unit = 0;
    while size >= 1_000.0 && unit + 1 < UNITS.len() {
        size /= 1_000.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} bytes") } else { format!("{size:.1} {}", UNITS[unit]) }
}
