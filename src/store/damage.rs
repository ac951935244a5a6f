//! A file that turns out to be damaged: nothing more is written to it, and whoever runs on it is told.

use std::path::PathBuf;

use super::{Shared, Store, StoreError};

impl Store {
    /// Waits until a statement has found the file damaged. From then on every write is refused.
    pub async fn damaged(&self) -> StoreError {
        let mut damage = self.shared.damage.subscribe();
        loop {
            let found = damage.borrow_and_update().clone();
            match found {
                Some(error) => return error,
                // The sender lives as long as this store does.
                None => drop(damage.changed().await),
            }
        }
    }

    /// Says whether the file was open to us for reading only, which stays so until it is opened again.
    ///
    /// # Errors
    /// [`StoreError::Unusable`] when it was.
    pub fn writable(&self) -> Result<(), StoreError> {
        if !self.shared.read_only {
            return Ok(());
        }
        let why = "it may only be read; look at the owner and mode of the file and its directory".into();
        Err(StoreError::Unusable { path: self.shared.path.clone(), why })
    }
}

impl Shared {
    /// Names the file in an error that says that it is damaged, and remembers it.
    pub(super) fn noted<T>(&self, result: Result<T, StoreError>) -> Result<T, StoreError> {
        result.map_err(|error| match error {
            StoreError::Unusable { why, .. } => {
                let error = StoreError::Unusable { path: self.path.clone(), why };
                self.damage.send_replace(Some(error.clone()));
                error
            }
            other => other,
        })
    }

    /// Whether there may be a transaction that writes.
    pub(super) fn may_write(&self) -> Result<(), StoreError> {
        if let Some(damaged) = self.damage.borrow().clone() {
            return Err(damaged);
        }
        if self.read_only {
            // SQLite begins one all the same, and refuses only what is written in it.
            return Err(StoreError::Unavailable("it cannot be written to; look at its owner and mode".into()));
        }
        Ok(())
    }
}

/// What SQLite found in a file whose name it does not say.
pub(super) fn unusable(found: &str) -> StoreError {
    let why = format!(
        "it is damaged ({found}). Stop what uses it, and restore a backup, or recover it with `sqlite3 FILE .recover`"
    );
    StoreError::Unusable { path: PathBuf::new(), why }
}
