//! The world of one seed: what the API and the receivers really said, what was really asked of them, and whether that is
//! as it was promised. It is written by the scripted sides of the two seams and knows nothing of the code under test but
//! its database, through a connection of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::Notify;

use crate::audit::Audit;
use crate::clock::{Draw, MINUTE, Time};
use crate::disk::Process;
use crate::pace::Paces;
use crate::receivers::Receipts;
use crate::script::Script;
use crate::trace::Trace;

/// The world, as all who take part in it share it.
#[derive(Clone)]
pub struct Shared(Arc<Mutex<World>>);

impl Shared {
    pub fn new(world: World) -> Self {
        Self(Arc::new(Mutex::new(world)))
    }

    pub fn lock(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

pub struct World {
    pub time: Time,
    pub script: Arc<Script>,
    pub draw: Draw,
    pub trace: Trace,
    pub audit: Audit,
    pub paces: Paces,
    /// By account and asset.
    pub answers: BTreeMap<(usize, String), Vec<Answer>>,
    /// The latest request about each watch.
    pub latest: BTreeMap<i64, Latest>,
    pub receipts: Receipts,
    pub calm: Calm,
    /// Where the operator has cancelled, and when.
    pub cancelled: BTreeSet<(usize, String)>,
    pub retried: bool,
    /// For how long each piece of work waits for the disk.
    pub slow_disk: Duration,
    /// The wall clock was set while not all daemons ran, who cannot tell that from time, or before one that ended soon had
    /// written that down; or it was set back while there are two, whose sums of lost time are not the same.
    pub set_unseen: bool,
    /// When the wall clock was set last.
    pub set_at: Duration,
    pub requests: u64,
    pub attempts: u64,
    pub deaths: u64,
    failure: Option<String>,
    failed: Arc<Notify>,
}

/// What the API said about one asset.
#[derive(Clone, Debug)]
pub struct Answer {
    pub asked_at: Duration,
    pub at: Duration,
    pub wall: i64,
    pub said: Said,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Said {
    Status { word: &'static str, url: Option<String> },
    Missing,
    Rejected,
    Forbidden,
    Throttled(Option<Duration>),
    Unauthorized,
    Unpaid,
    Untrusted,
    Unavailable(&'static str),
}

/// The latest request about a watch.
#[derive(Clone, Copy, Debug)]
pub struct Latest {
    pub generation: i64,
    pub at: Duration,
    pub process: Process,
    /// The polls that were counted before it.
    pub polls: i64,
    pub lease_until: i64,
    pub in_flight: bool,
    /// When it was answered that the asset still waits, if that was the answer.
    pub waits_since: Option<Duration>,
}

/// Since when nothing has happened that may delay anything.
pub struct Calm {
    pub all: Duration,
    pub accounts: Vec<Duration>,
    pub hooks: Vec<Duration>,
}

impl Calm {
    fn new(script: &Script) -> Self {
        let (accounts, hooks) = (vec![Duration::ZERO; script.accounts.len()], vec![Duration::ZERO; script.hooks.len()]);
        Self { all: Duration::ZERO, accounts, hooks }
    }

    pub fn disturb(&mut self, until: Duration) {
        self.all = self.all.max(until);
    }

    pub fn disturb_account(&mut self, account: usize, until: Duration) {
        self.accounts[account] = self.accounts[account].max(until);
    }

    pub fn disturb_hook(&mut self, hook: usize, until: Duration) {
        self.hooks[hook] = self.hooks[hook].max(until);
    }

    /// What holds somebody up until later than `now` ends so much later.
    pub fn put_off(&mut self, now: Duration, by: Duration) {
        let later = self.accounts.iter_mut().chain(&mut self.hooks).filter(|until| **until > now);
        later.for_each(|until| *until = until.saturating_add(by));
    }

    pub fn of_account(&self, account: usize) -> Duration {
        self.all.max(self.accounts[account])
    }

    pub fn of_hook(&self, hook: usize) -> Duration {
        self.all.max(self.hooks[hook])
    }
}

impl World {
    pub fn new(script: Arc<Script>, time: Time, audit: Audit, failed: Arc<Notify>, keep_trace: bool) -> Self {
        Self {
            time,
            draw: Draw::new(script.seed ^ 0xa5a5),
            trace: Trace::new(keep_trace),
            audit,
            paces: Paces::default(),
            answers: BTreeMap::new(),
            latest: BTreeMap::new(),
            receipts: Receipts::default(),
            calm: Calm::new(&script),
            cancelled: BTreeSet::new(),
            retried: false,
            slow_disk: Duration::ZERO,
            set_unseen: false,
            set_at: Duration::ZERO,
            requests: 0,
            attempts: 0,
            deaths: 0,
            failure: None,
            failed,
            script,
        }
    }

    pub fn note(&mut self, what: std::fmt::Arguments<'_>) {
        let now = self.time.now();
        self.trace.note(now, what);
    }

    /// A promise was broken. The first one counts: what comes after it may follow from it.
    pub fn fail(&mut self, law: &str, what: std::fmt::Arguments<'_>) {
        if self.failure.is_none() {
            let at = humantime::format_duration(Duration::from_secs(self.time.now().as_secs()));
            self.note(format_args!("FAILED {law}: {what}"));
            self.failure = Some(format!("[{law}] after {at}: {what}"));
            self.failed.notify_one();
        }
    }

    pub fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// A daemon has ended. That the clock was set is written down with the next poll, so it may have taken that along.
    pub fn ended(&mut self) {
        self.deaths += 1;
        self.set_unseen |= !self.set_at.is_zero() && self.time.now() < self.set_at + 2 * MINUTE;
    }

    /// For how long the next piece of work waits for the disk.
    pub fn disk_waits(&mut self) -> Duration {
        if self.slow_disk.is_zero() { Duration::ZERO } else { self.draw.between(Duration::ZERO, self.slow_disk) }
    }

    /// The instant of the clock that nobody sets at which the wall clock showed `wall`, if it was not set since.
    pub fn instant(&self, wall: i64) -> Duration {
        let ago = u64::try_from(self.time.wall() - wall).unwrap_or(0);
        self.time.now().saturating_sub(Duration::from_millis(ago))
    }
}
