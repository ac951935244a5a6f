//! Deliveries, attempted once more by hand.

use super::Control;
use crate::clock::Timestamp;
use crate::store::{Portion, Retried, StoreError};

/// Retried in one transaction, so that the lock is not held long.
const RETRIED_AT_ONCE: usize = 1_000;

impl Control {
    /// Has these deliveries attempted once more, and says of each what became of it.
    pub async fn retry(&self, ids: Vec<i64>) -> Result<Vec<(i64, Retried)>, StoreError> {
        let mut results = Vec::with_capacity(ids.len());
        for portion in ids.chunks(RETRIED_AT_ONCE) {
            let retried = self.store.retry(portion.to_vec(), self.clock.now()).await?;
            results.extend(portion.iter().copied().zip(retried));
        }
        self.running.telling.wake();
        Ok(results)
    }

    /// Has all dead deliveries attempted once more, or those of one hook, whose events happened at `since` or later; tests,
    /// and those that the end of their asset has superseded, stay. They are gone through in portions.
    pub async fn retry_dead(&self, hook: Option<&str>, since: Timestamp) -> Result<Portion, StoreError> {
        let mut all = Portion::default();
        let backlogs = self.store.backlogs().await?;
        for backlog in backlogs.iter().filter(|backlog| hook.is_none_or(|hook| hook == backlog.hook)) {
            let mut after = Some(0);
            while let Some(id) = after {
                let now = self.clock.now();
                let portion = self.store.retry_dead(backlog.hook.clone(), since, id, now).await?;
                all.due += portion.due;
                all.held += portion.held;
                after = portion.after;
            }
        }
        self.running.telling.wake();
        Ok(all)
    }
}
