//! The gauges: set from a look at the database and at the paces, again and again, and not when somebody asks, so that
//! no number of scrapes costs the polling anything.

use std::collections::BTreeMap;
use std::sync::PoisonError;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::engine::Engine;
use crate::clock::Timestamp;
use crate::control::{Control, HookShown, HookState, Running};
use crate::event::CALLBACK;
use crate::meter::{Backlogs, CALLBACKS, HookStates, NOT_CONFIGURED, Pacing, Waiting};
use crate::store::{Store, StoreError};
use crate::telemetry::Metrics;

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// With a large database a look takes a while: it is made so much less often that it takes 1 % of the time,
const SHARE: u32 = 100;
/// but not less often than this.
const LONGEST: Duration = Duration::from_secs(300);

/// What is looked at.
type Seen = (Control, Running);

/// Sets the gauges until it is dropped.
pub(super) struct Gauges {
    follow: watch::Sender<Seen>,
    _tasks: JoinSet<()>,
}

impl Gauges {
    pub(super) fn start(metrics: Metrics, control: &Control, engine: &Engine) -> Self {
        let (follow, seen) = watch::channel((control.clone(), engine.running()));
        let mut tasks = JoinSet::new();
        tasks.spawn(metrics.clone().keep_small());
        // What is counted may take a while, and the work's own looks must not wait for it.
        tasks.spawn(look_on(metrics, control.store.beside(), seen));
        Self { follow, _tasks: tasks }
    }

    /// A reload has changed what is looked at.
    pub(super) fn follow(&self, control: &Control, engine: &Engine) {
        self.follow.send_replace((control.clone(), engine.running()));
    }
}

async fn look_on(metrics: Metrics, store: Store, mut seen: watch::Receiver<Seen>) {
    let mut set = Set::default();
    loop {
        let (control, running) = seen.borrow_and_update().clone();
        let control = Control { store: store.clone(), ..control };
        let begun = Instant::now();
        set.paces(&control, &running);
        match set.database(&control).await {
            Ok(()) => metrics.looked(begun.elapsed(), control.clock.now()),
            Err(error) => tracing::debug!("the gauges stay as they are: {error}"),
        }
        let pause = LOOK_EVERY.max(begun.elapsed() * SHARE).min(LONGEST);
        if let Ok(Err(_gone)) = timeout(pause, seen.changed()).await {
            return;
        }
    }
}

/// The gauges by name. What is not there any more stays, at nothing, so that no old value stands for a new one.
#[derive(Default)]
struct Set {
    waiting: BTreeMap<String, Waiting>,
    pacing: BTreeMap<String, Pacing>,
    backlogs: BTreeMap<String, Backlogs>,
    states: BTreeMap<String, HookStates>,
}

impl Set {
    fn paces(&mut self, control: &Control, Running { paces, .. }: &Running) {
        for (_, gone) in self.pacing.iter().filter(|(name, _)| !paces.contains_key(*name)) {
            gone.set(0.0, 0);
            gone.set_closed(None, false);
        }
        let tick = control.clock.tick();
        for (name, pace) in paces {
            let (standing, load) = {
                let pace = pace.lock().unwrap_or_else(PoisonError::into_inner);
                (pace.standing(tick), pace.load(tick))
            };
            let gauges = self.pacing.entry(name.clone()).or_insert_with(|| Pacing::of(name));
            gauges.set(load.rate, load.in_flight);
            gauges.set_closed(standing.closed.map(|(why, ..)| why), standing.held_until.is_some());
        }
    }

    async fn database(&mut self, control: &Control) -> Result<(), StoreError> {
        let now = control.clock.now();
        let waiting = control.store.waiting_by_account(control.accounts.clone(), NOT_CONFIGURED).await?;
        let late = control.store.lateness(now).await?;
        let hooks = control.hooks_shown().await?;
        for (_, gone) in self.waiting.iter().filter(|(name, _)| !waiting.contains_key(*name)) {
            gone.set(0, 0.0);
        }
        for (name, count) in &waiting {
            let is_counted_here =
                |account: &String| account == name || (name == NOT_CONFIGURED && !waiting.contains_key(account));
            let oldest = late.iter().filter(|late| is_counted_here(&late.account)).map(|late| late.oldest_due_at).min();
            let gauges = self.waiting.entry(name.clone()).or_insert_with_key(|name| Waiting::of(name));
            gauges.set(*count, age(oldest, now));
        }
        self.backlogs(control, &hooks, now);
        self.states(control, &hooks);
        Ok(())
    }

    fn backlogs(&mut self, control: &Control, hooks: &[HookShown], now: Timestamp) {
        let configured = control.hooks.iter().map(|hook| hook.subscription.hook.as_str());
        let names = self.backlogs.keys().map(String::as_str).chain(configured).chain([CALLBACKS, NOT_CONFIGURED]);
        let mut sums: BTreeMap<String, ([i64; 3], f64)> =
            names.map(|name| (name.to_owned(), Default::default())).collect();
        for hook in hooks {
            let (counts, oldest) = sums.entry(label(control, &hook.row.name).to_owned()).or_default();
            for (sum, count) in counts.iter_mut().zip([hook.waiting, hook.held, hook.dead]) {
                *sum += count;
            }
            *oldest = oldest.max(age(hook.oldest_waiting_at, now));
        }
        for (name, (counts, oldest)) in sums {
            self.backlogs.entry(name).or_insert_with_key(|name| Backlogs::of(name)).set(counts, oldest);
        }
    }

    fn states(&mut self, control: &Control, hooks: &[HookShown]) {
        let configured = || hooks.iter().filter(|hook| label(control, &hook.row.name) == hook.row.name);
        for (_, gone) in self.states.iter().filter(|(name, _)| !configured().any(|hook| hook.row.name == **name)) {
            gone.set(None);
        }
        for hook in configured() {
            let states = || HookStates::of(&hook.row.name, HookState::ALL.map(HookState::as_str));
            self.states.entry(hook.row.name.clone()).or_insert_with(states).set(Some(hook.state.as_str()));
        }
    }
}

/// Under which name a lane is counted.
fn label<'a>(control: &Control, lane: &'a str) -> &'a str {
    match lane {
        lane if lane.starts_with(CALLBACK) => CALLBACKS,
        lane if control.is_configured(lane) => lane,
        _ => NOT_CONFIGURED,
    }
}

/// In seconds; 0 for what lies ahead, or is not there.
fn age(since: Option<Timestamp>, now: Timestamp) -> f64 {
    since.map_or(0.0, |since| now.since(since).as_secs_f64())
}
