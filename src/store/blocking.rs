//! Where SQLite's work is done, which blocks whoever does it.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::StoreError;

/// How work that blocks is run. An argument, so that a simulation can do it where everything has one order.
#[derive(Clone)]
pub struct Blocking(Arc<dyn Fn(Work) + Send + Sync>);

/// A piece of work; who drops it leaves it undone, as a crash would, and its caller gets an error.
pub type Work = Box<dyn FnOnce() + Send>;

impl Blocking {
    /// On the runtime's threads for it: unlike threads of our own, they hold a paused clock still.
    pub fn aside() -> Self {
        Self::new(|work| drop(tokio::task::spawn_blocking(work)))
    }

    /// By `run`, which may run it later, and in whichever order.
    pub fn new(run: impl Fn(Work) + Send + Sync + 'static) -> Self {
        Self(Arc::new(run))
    }

    pub(super) fn run(&self, work: impl FnOnce() + Send + 'static) {
        (self.0)(Box::new(work));
    }

    /// Runs `work` and returns what it does.
    pub(super) async fn answer<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (answer, answered) = oneshot::channel();
        self.run(move || {
            // Nobody listens any more when the caller was aborted.
            let _ = answer.send(work());
        });
        answered.await.unwrap_or_else(|_| Err(StoreError::Broken("its work ended with a panic".into())))
    }
}
