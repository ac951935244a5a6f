//! A file that turns out to be damaged, or is taken away: nothing more is written to it, and whoever runs on it is told.

use std::path::PathBuf;
use std::sync::Arc;

use rusqlite::{Connection, ErrorCode};

use super::{Shared, Store, StoreError, lock};

impl Store {
    /// Waits until a statement has found the file damaged, or a write that it was removed or replaced. From then on every
    /// write is refused.
    pub async fn lost(&self) -> StoreError {
        let mut lost = self.shared.lost.subscribe();
        loop {
            let found = lost.borrow_and_update().clone();
            match found {
                Some(error) => return error,
                // The sender lives as long as this store does.
                None => drop(lost.changed().await),
            }
        }
    }

    /// Says whether it was opened for reading only, the file itself or its write-ahead log, which somebody else may have
    /// created: SQLite then keeps it so until it is opened again, whatever its mode has become. A lock or a full disk is
    /// none of its business, for those pass.
    ///
    /// # Errors
    /// [`StoreError::Unusable`] when it was.
    pub async fn writable(&self) -> Result<(), StoreError> {
        let shared = Arc::clone(&self.shared);
        let answer = self.shared.blocking.answer(move || {
            let begun = lock(&shared.writer).execute_batch("BEGIN IMMEDIATE; ROLLBACK");
            let refused = begun.err().and_then(|error| error.sqlite_error_code()) == Some(ErrorCode::ReadOnly);
            if !shared.read_only && !refused {
                return Ok(());
            }
            let why = "it may only be read; look at the owner and mode of the file, of its directory, and of what stands \
                       beside it with `-wal` or `-shm` at the end";
            Err(StoreError::Unusable { path: shared.path.clone(), why: why.into() })
        });
        answer.await
    }
}

impl Shared {
    /// Names the file in an error that says that it is damaged, and remembers it.
    pub(super) fn noted<T>(&self, result: Result<T, StoreError>) -> Result<T, StoreError> {
        result.map_err(|error| match error {
            StoreError::Unfit { why, .. } => {
                let error = StoreError::Unfit { path: self.path.clone(), why };
                self.lost.send_replace(Some(error.clone()));
                error
            }
            other => other,
        })
    }

    /// Whether there may be a transaction that writes.
    pub(super) fn may_write(&self, connection: &Connection) -> Result<(), StoreError> {
        if let Some(lost) = self.lost.borrow().clone() {
            return Err(lost);
        }
        self.in_place(connection)?;
        if self.read_only {
            // SQLite begins one all the same, and refuses only what is written in it.
            return Err(StoreError::Unavailable("it cannot be written to; look at its owner and mode".into()));
        }
        Ok(())
    }
}

/// What SQLite found in a file whose name it does not say.
pub(super) fn unfit(found: &str) -> StoreError {
    let why = format!(
        "it is damaged ({found}). Stop what uses it, and restore a backup, or recover it with `sqlite3 FILE .recover`"
    );
    StoreError::Unfit { path: PathBuf::new(), why }
}
