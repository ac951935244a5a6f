//! What has happened, handed to those who wait for it: one reader of the database, however many streams and long polls
//! are open.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::Bytes;
use tokio::sync::{Notify, broadcast, watch};
use tokio::time::sleep;

use crate::clock::Timestamp;
use crate::store::{EventRow, Store, StoreError};

/// Between two looks. Whatever happens meanwhile is gathered, so that a busy database is not read for each commit.
const PACE: Duration = Duration::from_millis(50);
/// After a page that was full: what it left is there already.
const REST: Duration = Duration::from_millis(5);
/// How often what other processes wrote is looked for.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Events that are read at once.
pub(super) const PAGE: u32 = 500;
/// And bytes of their bodies: every stream that is behind has a page of its own.
pub(super) const PAGE_BYTES: usize = 256 * 1024;
/// Since ever: another program may have written any instant.
pub(super) const EVER: Timestamp = Timestamp::from_millis(i64::MIN);
/// Pages that a slow stream may be behind before it has to read the database itself.
const PAGES: usize = 16;

/// What has happened after a position.
pub(super) struct Page {
    /// The position: all events up to this one were in earlier pages.
    pub after: i64,
    /// The events, oldest first, each as a stream sends it.
    pub frames: Vec<(i64, Bytes)>,
}

/// The feed. Clones share it.
#[derive(Clone)]
pub(super) struct Feed(Arc<Shared>);

struct Shared {
    pages: broadcast::Sender<Arc<Page>>,
    /// Counts the looks that found a change of any kind.
    changes: watch::Sender<u64>,
    /// Who waits for the end of a watch, by the watch.
    waiting: Mutex<BTreeMap<i64, (Arc<Notify>, usize)>>,
}

impl Default for Feed {
    fn default() -> Self {
        let (pages, changes) = (broadcast::Sender::new(PAGES), watch::Sender::new(0));
        Self(Arc::new(Shared { pages, changes, waiting: Mutex::default() }))
    }
}

/// Somebody waits for the end of a watch, until this is dropped.
pub(super) struct Waiting {
    feed: Feed,
    watch: i64,
    /// Told when something has happened to it.
    pub told: Arc<Notify>,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut waiting = self.feed.waiting();
        if let Some((_, count)) = waiting.get_mut(&self.watch) {
            *count -= 1;
            if *count == 0 {
                waiting.remove(&self.watch);
            }
        }
    }
}

impl Feed {
    /// The pages from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<Page>> {
        self.0.pages.subscribe()
    }

    /// Changes whenever the database may have.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    /// Registers for the end of a watch; whoever looks after this misses nothing.
    pub fn wait_for(&self, watch: i64) -> Waiting {
        let mut waiting = self.waiting();
        let (told, count) = waiting.entry(watch).or_default();
        *count += 1;
        Waiting { feed: self.clone(), watch, told: Arc::clone(told) }
    }

    /// Reads and hands on what happens in the database after `position`, for ever.
    pub async fn run(&self, store: &Store, mut position: i64) {
        let (mut commits, mut version) = (store.commits(), None);
        loop {
            let mut pace = PACE;
            match self.look(store, &mut position).await {
                Ok(true) => pace = REST,
                Ok(false) => self.changed(store, &mut commits, &mut version).await,
                // It is met, and told, wherever it matters more.
                Err(error) => {
                    tracing::debug!("events were not read: {error}");
                    sleep(LOOK_EVERY).await;
                }
            }
            self.0.changes.send_modify(|changes| *changes = changes.wrapping_add(1));
            sleep(pace).await;
        }
    }

    /// Hands a page on, and says whether there may be more.
    async fn look(&self, store: &Store, position: &mut i64) -> Result<bool, StoreError> {
        let after = *position;
        if !self.is_heard() {
            let latest = store.latest_event().await?;
            // Whoever has come meanwhile has not looked at the database before we did, or needs the page.
            if !self.is_heard() {
                *position = latest.max(after);
                return Ok(false);
            }
        }
        let (events, more) = store.events(after, EVER, PAGE, PAGE_BYTES).await?;
        let Some(last) = events.last().map(|event| event.seq) else { return Ok(false) };
        *position = last;
        self.tell(&events);
        let frames = events.into_iter().map(|event| (event.seq, frame(&event))).collect();
        // An error means that no stream is open.
        let _ = self.0.pages.send(Arc::new(Page { after, frames }));
        Ok(more)
    }

    fn is_heard(&self) -> bool {
        self.0.pages.receiver_count() > 0 || !self.waiting().is_empty()
    }

    fn tell(&self, events: &[EventRow]) {
        let waiting = self.waiting();
        for watch in events.iter().filter_map(|event| event.watch_id) {
            if let Some((told, _)) = waiting.get(&watch) {
                told.notify_waiters();
            }
        }
    }

    /// Waits until anybody has committed something.
    async fn changed(&self, store: &Store, commits: &mut watch::Receiver<u64>, version: &mut Option<i64>) {
        loop {
            tokio::select! {
                _ = commits.changed() => return,
                () = sleep(LOOK_EVERY) => {
                    let now = store.version().await.ok();
                    if std::mem::replace(version, now) != now {
                        return;
                    }
                }
            }
        }
    }

    fn waiting(&self) -> MutexGuard<'_, BTreeMap<i64, (Arc<Notify>, usize)>> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An event as a stream sends it. Its body is JSON of one line; its type has the API's own word in it, which may be
/// anything.
pub(super) fn frame(event: &EventRow) -> Bytes {
    let kind: String = event.event_type.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let data = serde_json::to_string(event).unwrap_or_default();
    format!("id: {}\nevent: {kind}\ndata: {data}\n\n", event.seq).into()
}
