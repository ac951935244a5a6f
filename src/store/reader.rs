//! Looking: snapshots that never wait for a commit, one at a time and in order.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use rusqlite::Connection;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{StoreError, lock, open};

/// A connection to look with. Those who share it wait without a thread, and whoever stops waiting looks at
/// nothing.
pub(super) struct Reader {
    path: PathBuf,
    /// Opened with the first look.
    connection: Mutex<Option<Connection>>,
    permits: Arc<Semaphore>,
}

/// Whoever holds it may look.
pub(super) struct Permit {
    reader: Arc<Reader>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Reader {
    pub fn new(path: PathBuf) -> Arc<Self> {
        Arc::new(Self { path, connection: Mutex::default(), permits: Arc::new(Semaphore::new(1)) })
    }

    pub async fn permit(self: &Arc<Self>) -> Permit {
        // Nobody closes it.
        let permit = Arc::clone(&self.permits).acquire_owned().await.ok();
        Permit { reader: Arc::clone(self), _permit: permit }
    }
}

impl Permit {
    /// Looks, on a thread that may be blocked.
    pub fn look<T>(self, look: impl FnOnce(&mut Connection) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let mut connection = lock(&self.reader.connection);
        let connection = match &mut *connection {
            Some(open) => open,
            none => none.insert(open::connect(&self.reader.path)?),
        };
        look(connection)
    }
}
