//! The only loop: claim what is due, work it, sleep until the next due time or a wake-up.
//!
//! Polling and delivering are the same motion, so it is written once. There is no schedule in memory: the index on
//! `due_at` is the schedule, and a restart has nothing to rebuild.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep, sleep_until};

use crate::clock::{Clock, Tick, Timestamp};
use crate::store::{Claimed, Lane, Store, StoreError};

/// No sleep is longer: a wall clock that was set while we slept is noticed after this at the latest.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);
/// How often an idle pump looks for what other processes wrote.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Between two tries when the database cannot be used.
const NAP: Duration = Duration::from_secs(1);

/// A hint that something may be due. Its loss costs at most one idle interval.
#[derive(Clone, Default)]
pub struct Wake(Arc<Notify>);

impl Wake {
    /// Has the pump look again; remembered if it is not waiting just now.
    pub fn wake(&self) {
        self.0.notify_one();
    }
}

/// A pump's sign of life. Each turn leaves one, whether the database could be used or not, and so does each look of an
/// idle pump: what leaves none for much longer than the database may be locked hangs.
#[derive(Clone, Default)]
pub struct Pulse(Arc<AtomicBool>);

impl Pulse {
    /// Whether the pump has turned since the last [`Pulse::clear`].
    pub fn is_felt(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Has it be left anew.
    pub fn clear(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    fn beat(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// How a stop proceeds; each phase includes the ones before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Go on.
    Run,
    /// Claim no more; what is in flight may end.
    Drain,
    /// The grace is over: end what is in flight.
    Hurry,
    /// Drop what is in flight.
    Abort,
}

/// The phase, as workers and pumps see it.
#[derive(Clone)]
pub struct Stop(watch::Receiver<Phase>);

impl Stop {
    /// The phase to announce, and what listens to it.
    pub fn channel() -> (watch::Sender<Phase>, Self) {
        let (announce, phase) = watch::channel(Phase::Run);
        (announce, Self(phase))
    }

    /// Waits until the stop has come as far as `phase`; whoever announced it and is gone meant [`Phase::Abort`].
    pub async fn reached(&self, phase: Phase) {
        let _ = self.0.clone().wait_for(|now| *now >= phase).await;
    }

    fn is_running(&self) -> bool {
        *self.0.borrow() == Phase::Run
    }
}

/// The rows that workers of this process are at. Their leases may run out, while the database is locked or when the wall
/// clock is set forward; but they are not up for anybody of ours to claim again.
#[derive(Clone, Default)]
pub struct Live(Arc<Mutex<BTreeSet<i64>>>);

impl Live {
    /// Notes rows that were claimed.
    pub fn begin(&self, ids: impl IntoIterator<Item = i64>) {
        self.rows().extend(ids);
    }

    /// The rows that are being worked.
    pub fn ids(&self) -> Vec<i64> {
        self.rows().iter().copied().collect()
    }

    /// A row that is worked until this is dropped, by a panic as well: then its lease may run out.
    pub fn until_dropped(&self, id: i64) -> impl Drop + use<> {
        struct Working(Live, i64);
        impl Drop for Working {
            fn drop(&mut self) {
                self.0.rows().remove(&self.1);
            }
        }
        Working(self.clone(), id)
    }

    fn rows(&self) -> MutexGuard<'_, BTreeSet<i64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a lane may be claimed from.
pub enum Gate {
    /// So much of it, now.
    Open(Lane),
    /// Not before this tick.
    Closed(Tick),
    /// Not before one of its workers ends.
    Full,
}

/// Where something may be claimed.
pub struct Lanes {
    /// The lanes to look at now.
    pub names: Vec<String>,
    /// There are more of them, to be looked at after so long.
    pub more: Option<Duration>,
}

/// What a pump is used for.
pub trait Work: Send + Sync + 'static {
    /// What is claimed and worked.
    type Item: Send + 'static;

    /// What is written in the log where it is called something.
    const NAME: &'static str;

    /// Where it is claimed from.
    fn store(&self) -> &Store;

    /// What time it is.
    fn clock(&self) -> &Clock;

    /// The lanes, asked for once a turn.
    fn lanes(&self) -> impl Future<Output = Result<Lanes, StoreError>> + Send;

    /// How one of them stands.
    fn gate(&self, lane: &str) -> Gate;

    /// Takes leases on what is due in these lanes.
    fn claim(&self, lanes: Vec<Lane>) -> impl Future<Output = Result<Vec<Claimed<Self::Item>>, StoreError>> + Send;

    /// Works one claimed row to its end, the writing included.
    fn work(self: Arc<Self>, lane: String, item: Self::Item) -> impl Future<Output = ()> + Send;

    /// Whether something outside the database has changed that may open a lane; asked while idle.
    fn stirred(&self) -> bool {
        false
    }
}

/// Claims and works until a stop is announced, then until what is in flight has ended.
pub async fn run<W: Work>(work: Arc<W>, wake: Wake, stop: Stop, pulse: Pulse) {
    let mut workers = JoinSet::new();
    let mut pump = Pump { work, pulse, seen: None, troubled: false, next_look: Instant::now() + LOOK_EVERY };
    pump.seen = pump.foreign_version().await;
    while stop.is_running() {
        while let Some(ended) = workers.try_join_next() {
            note_panic::<W>(ended);
        }
        pump.look_around();
        let pause = pump.turn(&mut workers).await;
        pump.pulse.beat();
        tokio::select! {
            biased;
            () = stop.reached(Phase::Drain) => {}
            () = wake.0.notified() => {}
            Some(ended) = workers.join_next() => note_panic::<W>(ended),
            () = pump.idle(pause) => {}
        }
    }
    drain::<W>(workers, &stop).await;
}

/// To be stopped is not a failure: what does not end in time is dropped, and its lease handed back by whoever stops us.
async fn drain<W: Work>(mut workers: JoinSet<()>, stop: &Stop) {
    loop {
        tokio::select! {
            biased;
            ended = workers.join_next() => match ended {
                Some(ended) => note_panic::<W>(ended),
                None => return,
            },
            () = stop.reached(Phase::Abort) => return workers.shutdown().await,
        }
    }
}

/// We were wrong: the panic stays in its worker, whose lease expires; the others go on.
fn note_panic<W: Work>(ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(pump = W::NAME, "a worker panicked; its row is due again when the lease expires: {error}");
    }
}

struct Pump<W> {
    work: Arc<W>,
    pulse: Pulse,
    /// The version of the database before the latest claim, as far as others change it.
    seen: Option<i64>,
    /// Whether the latest claim failed.
    troubled: bool,
    /// When what has changed outside is looked at next.
    next_look: Instant,
}

impl<W: Work> Pump<W> {
    /// Claims and starts what is due, and returns how long there is nothing more to do.
    async fn turn(&mut self, workers: &mut JoinSet<()>) -> Duration {
        let found = match self.work.lanes().await {
            Ok(found) => found,
            Err(error) => return self.in_trouble(&error),
        };
        let mut pause = found.more.unwrap_or(LONGEST_SLEEP);
        let mut lanes = Vec::new();
        for name in &found.names {
            match self.work.gate(name) {
                Gate::Open(lane) => lanes.push(lane),
                Gate::Closed(until) => pause = pause.min(self.until_tick(until)),
                Gate::Full => {}
            }
        }
        if lanes.is_empty() {
            return pause;
        }
        let rooms: Vec<(String, u32)> = lanes.iter().map(|lane| (lane.name.clone(), lane.room)).collect();
        let claimed = match self.work.claim(lanes).await {
            Ok(claimed) => self.at_ease(claimed),
            Err(error) => return self.in_trouble(&error),
        };
        let mut filled = Vec::new();
        for (Claimed { lane, rows, next_due, .. }, (_, room)) in claimed.into_iter().zip(&rooms) {
            if rows.len() >= *room as usize {
                filled.push(lane.clone());
            } else if let Some(due) = next_due {
                pause = pause.min(self.until(due));
            }
            for row in rows {
                // Boxed: the runtime moves what it is given a dozen times, and a worker is large.
                workers.spawn(Box::pin(Arc::clone(&self.work).work(lane.clone(), row)));
            }
        }
        pause.min(self.until_more(&filled))
    }

    /// How long until lanes that gave all they had room for may be claimed from again.
    fn until_more(&self, filled: &[String]) -> Duration {
        let wait = |name: &String| match self.work.gate(name) {
            Gate::Open(_) => Duration::ZERO,
            Gate::Closed(until) => self.until_tick(until),
            Gate::Full => LONGEST_SLEEP,
        };
        filled.iter().map(wait).min().unwrap_or(LONGEST_SLEEP)
    }

    /// Notices what opens a lane from outside, however busy the pump is.
    fn look_around(&mut self) -> bool {
        if Instant::now() < self.next_look {
            return false;
        }
        self.next_look = Instant::now() + LOOK_EVERY;
        self.work.stirred()
    }

    /// Sleeps for `pause`, or until another process has written something.
    async fn idle(&mut self, pause: Duration) {
        let end = Instant::now() + pause;
        loop {
            let look = self.next_look;
            sleep_until(look.min(end)).await;
            if Instant::now() < look || self.look_around() {
                return;
            }
            let version = self.foreign_version().await;
            self.pulse.beat();
            if version != self.seen {
                self.seen = version;
                return;
            }
        }
    }

    async fn foreign_version(&self) -> Option<i64> {
        self.work.store().foreign_version().await.ok()
    }

    fn until(&self, due: Timestamp) -> Duration {
        due.since(self.work.clock().now()).min(LONGEST_SLEEP)
    }

    fn until_tick(&self, tick: Tick) -> Duration {
        tick.saturating_sub(self.work.clock().tick()).min(LONGEST_SLEEP)
    }

    fn at_ease<T>(&mut self, claimed: T) -> T {
        if std::mem::take(&mut self.troubled) {
            tracing::info!(pump = W::NAME, "the database can be used again");
        }
        claimed
    }

    fn in_trouble(&mut self, error: &StoreError) -> Duration {
        if !std::mem::replace(&mut self.troubled, true) {
            tracing::error!(pump = W::NAME, "work pauses until the database can be used: {error}");
        }
        NAP
    }
}

/// Repeats a write that the database cannot take right now, so that what was seen is not lost with it.
///
/// Gives up only with an error that another try would not mend; a stop ends it by dropping it.
pub async fn insist<T, F>(mut write: impl FnMut() -> F) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, StoreError>>,
{
    let mut said = false;
    loop {
        match write().await {
            Err(error @ StoreError::Unavailable(_)) => {
                if !std::mem::replace(&mut said, true) {
                    tracing::warn!("what was seen is kept and written later: {error}");
                }
                sleep(NAP).await;
            }
            result => return result,
        }
    }
}
