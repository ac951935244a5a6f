//! Group commit: writes that wait at the same time share one transaction, and one wait for the disk.
//!
//! Whoever finds nobody writing starts a blocking task that commits batch after batch until nothing waits. There is no
//! thread to start or stop, and a batch is as large as what gathered while the one before it was being synced.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use rusqlite::Connection;
use tokio::sync::oneshot;

use super::{Shared, Store, StoreError, lock};

/// At most so many writes in one transaction: it bounds how long a lock is held.
const BATCH: usize = 1_024;

/// A write that waits for a transaction, with whoever waits for it.
pub(super) trait Write: Send {
    /// Runs it, and keeps what came of it for the answer.
    fn run(&mut self, connection: &Connection) -> Result<(), StoreError>;

    /// Tells its caller once the transaction has ended, well or not.
    fn answer(self: Box<Self>, committed: Result<(), StoreError>);
}

struct Asked<T, F> {
    write: F,
    result: Result<T, StoreError>,
    answer: oneshot::Sender<Result<T, StoreError>>,
}

impl<T, F> Write for Asked<T, F>
where
    T: Send,
    F: FnMut(&Connection) -> Result<T, StoreError> + Send,
{
    fn run(&mut self, connection: &Connection) -> Result<(), StoreError> {
        // A panic is its own write's error: those that share the transaction, or wait behind it, had no part in it.
        let result = catch_unwind(AssertUnwindSafe(|| (self.write)(connection)));
        self.result = result.unwrap_or_else(|_| Err(StoreError::Broken("a write ended with a panic".into())));
        self.result.as_ref().map(drop).map_err(StoreError::clone)
    }

    fn answer(self: Box<Self>, committed: Result<(), StoreError>) {
        // Nobody listens any more when the caller was aborted.
        let _ = self.answer.send(committed.and(self.result));
    }
}

#[derive(Default)]
pub(super) struct Queue {
    waiting: Vec<Box<dyn Write>>,
    /// Whether a task commits what waits.
    committing: bool,
}

impl Store {
    /// Runs `write` in a transaction that others may share, and returns once it is on the disk.
    ///
    /// An error or a panic of `write` undoes its own changes and nobody else's; a failed commit undoes them all and is
    /// everyone's error. `write` may be run again in another transaction if it, or one that shared the first, has
    /// failed; only what its last run did stays. The write happens even if the caller stops waiting for it.
    pub(super) async fn write<T: Send + 'static>(
        &self,
        write: impl FnMut(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (answer, answered) = oneshot::channel();
        let result = Err(StoreError::Broken("a write was not run".into()));
        self.enqueue(Box::new(Asked { write, result, answer }));
        answered.await.unwrap_or_else(|_| Err(StoreError::Broken("a write was dropped".into())))
    }

    fn enqueue(&self, write: Box<dyn Write>) {
        let is_first = {
            let mut queue = lock(&self.shared.queue);
            queue.waiting.push(write);
            !std::mem::replace(&mut queue.committing, true)
        };
        if is_first {
            let shared = Arc::clone(&self.shared);
            self.shared.blocking.run(move || commit_all(&shared));
        }
    }
}

fn commit_all(shared: &Shared) {
    let connection = lock(&shared.writer);
    while let Some(batch) = next_batch(shared) {
        let (begun, writes) = (Instant::now(), batch.len());
        let in_order = commit(shared, &connection, batch);
        shared.commits.send_modify(|commits| *commits = commits.wrapping_add(1));
        shared.meter.committed(writes, begun.elapsed(), in_order);
    }
}

fn next_batch(shared: &Shared) -> Option<Vec<Box<dyn Write>>> {
    let mut queue = lock(&shared.queue);
    if queue.waiting.is_empty() {
        queue.committing = false;
        return None;
    }
    let size = queue.waiting.len().min(BATCH);
    let rest = queue.waiting.split_off(size);
    Some(std::mem::replace(&mut queue.waiting, rest))
}

/// Whether it is on the disk.
fn commit(shared: &Shared, connection: &Connection, mut batch: Vec<Box<dyn Write>>) -> bool {
    let committed = shared.may_write(connection).and_then(|()| shared.noted(transact(connection, &mut batch)));
    if committed.is_err() && !connection.is_autocommit() {
        // The lock must not be kept while the callers wait to try again. What cannot be rolled back now is rolled back
        // by the next transaction.
        let _ = connection.execute_batch("ROLLBACK");
    }
    for write in batch {
        write.answer(committed.clone());
    }
    committed.is_ok()
}

/// Almost always all goes well, and a savepoint costs a copy of each page that a write touches. So only where one has
/// failed half-way are they run anew, each in a savepoint of its own.
fn transact(connection: &Connection, batch: &mut [Box<dyn Write>]) -> Result<(), StoreError> {
    begin(connection)?;
    if !together(connection, batch)? {
        connection.execute_batch("ROLLBACK")?;
        begin(connection)?;
        apart(connection, batch)?;
    }
    connection.prepare_cached("COMMIT")?.execute([])?;
    Ok(())
}

fn begin(connection: &Connection) -> Result<(), StoreError> {
    if !connection.is_autocommit() {
        // A rollback that failed left it open.
        connection.execute_batch("ROLLBACK")?;
    }
    connection.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
    Ok(())
}

/// Runs one write after the other. `false` if one has failed after it had changed something, which stands between what
/// the others have changed.
fn together(connection: &Connection, batch: &mut [Box<dyn Write>]) -> Result<bool, StoreError> {
    for write in batch {
        let before = connection.total_changes();
        if let Err(error) = write.run(connection) {
            check_open(connection, &error)?;
            if connection.total_changes() != before {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

fn apart(connection: &Connection, batch: &mut [Box<dyn Write>]) -> Result<(), StoreError> {
    for write in batch {
        connection.prepare_cached("SAVEPOINT one")?.execute([])?;
        if let Err(error) = write.run(connection) {
            check_open(connection, &error)?;
            connection.prepare_cached("ROLLBACK TO one")?.execute([])?;
        }
        connection.prepare_cached("RELEASE one")?.execute([])?;
    }
    Ok(())
}

/// SQLite rolls a whole transaction back by itself on some errors (a full disk): then nothing of it is left for anybody.
/// And where one write has met damage, none of the others is to make it worse.
fn check_open(connection: &Connection, error: &StoreError) -> Result<(), StoreError> {
    if matches!(error, StoreError::Unfit { .. }) {
        return Err(error.clone());
    }
    if connection.is_autocommit() {
        return Err(StoreError::Unavailable(format!("its transaction was rolled back ({error})")));
    }
    Ok(())
}
