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

/// Runs a write, and returns what tells its caller once the transaction has ended. Where there is no transaction, only
/// the reason is handed on.
type Write = Box<dyn FnOnce(Result<&Connection, StoreError>) -> Answer + Send>;
type Answer = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

#[derive(Default)]
pub(super) struct Queue {
    waiting: Vec<Write>,
    /// Whether a task commits what waits.
    committing: bool,
}

impl Store {
    /// Runs `write` in a transaction that others may share, and returns once it is on the disk.
    ///
    /// An error or a panic of `write` undoes its own changes and nobody else's; a failed commit undoes them all and is
    /// everyone's error. The write happens even if the caller stops waiting for it.
    pub(super) async fn write<T: Send + 'static>(
        &self,
        write: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (answer, answered) = oneshot::channel();
        self.enqueue(Box::new(move |connection| {
            let result = connection.and_then(|connection| in_savepoint(connection, write));
            Box::new(move |committed| {
                // Nobody listens any more when the caller was aborted.
                let _ = answer.send(committed.and(result));
            })
        }));
        answered.await.unwrap_or_else(|_| Err(StoreError::Broken("a write was dropped".into())))
    }

    fn enqueue(&self, write: Write) {
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
        let in_order = commit(&connection, batch);
        shared.commits.send_modify(|commits| *commits = commits.wrapping_add(1));
        shared.meter.committed(writes, begun.elapsed(), in_order);
    }
}

fn next_batch(shared: &Shared) -> Option<Vec<Write>> {
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
fn commit(connection: &Connection, batch: Vec<Write>) -> bool {
    let begun = begin(connection);
    let answers: Vec<Answer> = batch.into_iter().map(|write| write(begun.clone().map(|()| connection))).collect();
    let ended = begun.and_then(|()| end(connection));
    for answer in answers {
        answer(ended.clone());
    }
    ended.is_ok()
}

fn begin(connection: &Connection) -> Result<(), StoreError> {
    if !connection.is_autocommit() {
        // A rollback that failed left it open.
        connection.execute_batch("ROLLBACK")?;
    }
    connection.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
    Ok(())
}

fn end(connection: &Connection) -> Result<(), StoreError> {
    check_open(connection)?;
    let committed = connection.prepare_cached("COMMIT")?.execute([]);
    if committed.is_err() && !connection.is_autocommit() {
        // The lock must not be kept while the callers wait to try again.
        connection.execute_batch("ROLLBACK")?;
    }
    Ok(committed.map(drop)?)
}

/// SQLite rolls a whole transaction back by itself on some errors (a full disk); what came after would not be part of it.
fn check_open(connection: &Connection) -> Result<(), StoreError> {
    if connection.is_autocommit() {
        return Err(StoreError::Unavailable("its transaction was rolled back".into()));
    }
    Ok(())
}

fn in_savepoint<T>(
    connection: &Connection,
    write: impl FnOnce(&Connection) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    check_open(connection)?;
    connection.prepare_cached("SAVEPOINT one")?.execute([])?;
    // A panic is its own write's error: those that share the transaction, or wait behind it, had no part in it.
    let result = catch_unwind(AssertUnwindSafe(|| write(connection)));
    let result = result.unwrap_or_else(|_| Err(StoreError::Broken("a write ended with a panic".into())));
    if connection.is_autocommit() {
        return result;
    }
    let undone = match &result {
        Ok(_) => Ok(0),
        Err(_) => connection.prepare_cached("ROLLBACK TO one").and_then(|mut undo| undo.execute([])),
    };
    let released = connection.prepare_cached("RELEASE one").and_then(|mut release| release.execute([]));
    if let Err(error) = undone.and(released) {
        // Nobody knows what is left of it, so nothing may be: the others are told, and try again.
        connection.execute_batch("ROLLBACK")?;
        return Err(error.into());
    }
    result
}
