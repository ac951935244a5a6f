//! Pruning: what has ended is removed after `retention`, and the space goes back to the disk.
//!
//! It takes little at a time and then leaves the database to the others for longer than that took, so no poll waits for it.
//! When there is nothing to do it looks at a few rows each hour. A crash at any moment leaves whole rows, and the next look
//! goes on with them.

use std::future::Future;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::clock::{Clock, Timestamp};
use crate::pump::{Phase, Stop};
use crate::store::{Ended, OldRow, Store, StoreError};

/// Between two sweeps.
const SWEEP_EVERY: Duration = Duration::from_secs(3_600);
/// Between two tries when the database cannot be used.
const NAP: Duration = Duration::from_secs(10);
/// Rows that are looked at in one go.
const PORTION: u32 = 500;
/// Rows that are removed in one write, those that belong to them included.
const LOT: u32 = 500;
/// Pages that are given back in one write.
const PAGES: u32 = 128;
/// One page in so many stays free, to be used again: or the file would be cut each hour and grow again until the next.
const SPARE: u64 = 16;
const LEAST_SPARE: u64 = 16;
/// Each so-many-th sweep goes through everything. The others end where everything is young: behind it there may be
/// something old only if a clock was set back.
const WHOLE_EVERY: u64 = 24;
/// The others have the database for so many times as long as one piece of work took, and for no less than this.
const REST: u32 = 4;
const SHORTEST_REST: Duration = Duration::from_millis(5);
const LONGEST_REST: Duration = Duration::from_secs(2);

/// Prunes one database.
pub struct Janitor {
    /// The database.
    pub store: Store,
    /// What time it is.
    pub clock: Clock,
    /// How long what has ended is kept.
    pub retention: Duration,
}

/// What a sweep removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Swept {
    watches: u64,
    events: u64,
    batches: u64,
    callbacks: u64,
    pages: u64,
}

/// Prunes at once and then each hour, until a stop is announced. What was begun by then is written or not, as a whole.
pub async fn run(janitor: Janitor, stop: Stop) {
    tokio::select! {
        biased;
        () = stop.reached(Phase::Drain) => {}
        () = janitor.go_on() => {}
    }
}

impl Janitor {
    async fn go_on(&self) {
        let (mut sweeps, mut troubled, mut said) = (0_u64, false, false);
        loop {
            sweeps += 1;
            match self.sweep(sweeps.is_multiple_of(WHOLE_EVERY), &mut said).await {
                Ok(()) => troubled = false,
                Err(error) => {
                    if !std::mem::replace(&mut troubled, true) {
                        tracing::warn!("pruning pauses until the database can be used: {error}");
                    }
                    sweeps -= 1;
                    sleep(NAP).await;
                    continue;
                }
            }
            sleep(SWEEP_EVERY).await;
        }
    }

    async fn sweep(&self, whole: bool, said: &mut bool) -> Result<(), StoreError> {
        let before = self.clock.now() - self.retention;
        let swept = Swept {
            watches: self.prune(Ended::Watches, before, whole).await?,
            events: self.prune(Ended::Events, before, whole).await?,
            // After the watches of which it was made.
            batches: self.prune(Ended::Batches, before, whole).await?,
            callbacks: self.prune(Ended::Callbacks, before, whole).await?,
            pages: self.shrink(said).await?,
        };
        if swept != Swept::default() {
            let Swept { watches, events, batches, callbacks, pages } = swept;
            tracing::info!(watches, events, batches, callbacks, pages, "pruned what had ended before {before}");
        }
        Ok(())
    }

    /// Goes along the rows of one kind.
    async fn prune(&self, ended: Ended, before: Timestamp, whole: bool) -> Result<u64, StoreError> {
        let (mut after, mut gone) = (i64::MIN, 0);
        loop {
            let rows = rested(self.store.ended(ended, after, before, PORTION)).await?;
            for keys in lots(&rows) {
                gone += rested(self.store.prune(ended, keys, before)).await?;
            }
            let behind_is_young = !whole && rows.iter().all(|row| row.young);
            match rows.last() {
                Some(last) if !behind_is_young && rows.len() >= PORTION as usize => after = last.key,
                Some(_) | None => return Ok(gone),
            }
        }
    }

    /// Gives free pages back, but for some.
    async fn shrink(&self, said: &mut bool) -> Result<u64, StoreError> {
        let mut given = 0;
        loop {
            let free = self.store.free().await?;
            let spare = (free.pages / SPARE).max(LEAST_SPARE);
            if free.free <= spare {
                break;
            }
            if !free.incremental {
                if !std::mem::replace(said, true) {
                    tracing::info!(
                        free = free.free,
                        "the file keeps its size, and uses its free pages again; to make it smaller, stop every assetwatch and run \
                         `sqlite3 FILE 'PRAGMA auto_vacuum = INCREMENTAL; VACUUM'` once"
                    );
                }
                break;
            }
            let pages = PAGES.min(u32::try_from(free.free - spare).unwrap_or(PAGES));
            match rested(self.store.give_back(pages)).await? {
                0 => break,
                some => given += some,
            }
        }
        if given > 0 {
            self.store.checkpoint().await?;
        }
        Ok(given)
    }
}

/// Does a piece of work, and then leaves the database to the others.
async fn rested<T>(work: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    let begun = Instant::now();
    let done = work.await?;
    sleep((begun.elapsed() * REST).clamp(SHORTEST_REST, LONGEST_REST)).await;
    Ok(done)
}

/// The rows that may go, in lots that one write removes. One with more rows than a lot has is a lot of its own.
fn lots(rows: &[OldRow]) -> Vec<Vec<i64>> {
    let (mut lots, mut room) = (Vec::<Vec<i64>>::new(), 0);
    for row in rows.iter().filter(|row| row.rows > 0) {
        match lots.last_mut().filter(|_| row.rows <= room) {
            Some(lot) => lot.push(row.key),
            None => {
                lots.push(vec![row.key]);
                room = LOT;
            }
        }
        room = room.saturating_sub(row.rows);
    }
    lots
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_removes_a_bounded_number_of_rows() {
        let row = |key, rows| OldRow { key, rows, young: false };
        let rows = [row(1, 300), row(2, 0), row(3, 200), row(4, 1), row(5, 9_000), row(6, 1), row(7, 499), row(8, 1)];
        assert_eq!(lots(&rows), [vec![1, 3], vec![4], vec![5], vec![6, 7], vec![8]]);
        assert_eq!(lots(&[]), Vec::<Vec<i64>>::new());
    }
}
