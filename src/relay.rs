//! Delivering: claim → perform → verdict → finish. The pump's second use.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::clock::{Clock, Dice, Tick};
use crate::decide::{self, Verdict};
use crate::delivery::{Attempt, Parcel};
use crate::pump::{Gate, Live, Work, insist};
use crate::store::{Claimed, Lane, Store, StoreError, Terms};

/// A lease lasts as long as an attempt may, and this much for the writing.
const MARGIN: Duration = Duration::from_secs(10);

/// Makes one attempt. The seam at which a simulation stands in for the world.
pub type Perform = Arc<dyn Fn(Parcel) -> Pin<Box<dyn Future<Output = Attempt> + Send>> + Send + Sync>;

/// One hook, as the relay works it.
pub struct HookLane {
    /// The longest that an attempt takes.
    pub timeout: Duration,
    /// Attempts at once.
    pub concurrency: u32,
    /// The gaps after the first attempt.
    pub schedule: Vec<Duration>,
    standing: Arc<Mutex<Standing>>,
}

/// What is known of a hook while the program runs; a reload keeps it.
#[derive(Default)]
pub struct Standing {
    in_flight: u32,
    /// The receiver asked to be left alone until then.
    held_until: Tick,
}

impl HookLane {
    /// A lane that goes on with what is known of its hook.
    pub fn new(timeout: Duration, concurrency: u32, schedule: Vec<Duration>, standing: Arc<Mutex<Standing>>) -> Self {
        Self { timeout, concurrency, schedule, standing }
    }

    fn standing(&self) -> MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a relay needs.
pub struct Relay {
    /// The truth.
    pub store: Store,
    /// What time it is.
    pub clock: Clock,
    /// For lateness.
    pub dice: Dice,
    /// The name in our leases.
    pub owner: String,
    /// The lanes, by the hook's name.
    pub hooks: BTreeMap<String, HookLane>,
    /// Makes an attempt.
    pub perform: Perform,
    /// Only deliveries of these watches; all when absent.
    pub only: Option<Vec<i64>>,
    /// What our workers are at.
    pub live: Live,
}

/// An attempt that is under way; if its worker is dropped, the hook has its slot back.
struct InFlight<'a>(&'a HookLane);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        let mut standing = self.0.standing();
        standing.in_flight = standing.in_flight.saturating_sub(1);
    }
}

impl Work for Relay {
    type Item = Parcel;

    const NAME: &'static str = "relay";

    fn store(&self) -> &Store {
        &self.store
    }

    fn clock(&self) -> &Clock {
        &self.clock
    }

    fn gates(&self) -> Vec<Gate> {
        let tick = self.clock.tick();
        self.hooks
            .iter()
            .map(|(name, hook)| {
                let standing = hook.standing();
                match hook.concurrency.saturating_sub(standing.in_flight) {
                    _ if standing.held_until > tick => Gate::Closed(standing.held_until),
                    0 => Gate::Full(name.clone()),
                    room => Gate::Open(Lane { name: name.clone(), room, avoid: None, lease: hook.timeout + MARGIN }),
                }
            })
            .collect()
    }

    async fn claim(&self, lanes: Vec<Lane>) -> Result<Vec<Claimed<Parcel>>, StoreError> {
        let now = self.clock.now();
        let longest = self.hooks.values().map(|hook| decide::longest_gap(&hook.schedule)).max().unwrap_or_default();
        let owner = self.owner.clone();
        let terms = Terms { owner, lanes, now, horizon: now + longest, only: self.only.clone(), live: self.live.ids() };
        let claimed = self.store.claim_deliveries(terms).await?;
        for claimed in &claimed {
            if let Some(hook) = self.hooks.get(&claimed.lane) {
                hook.standing().in_flight += u32::try_from(claimed.rows.len()).unwrap_or(u32::MAX);
                self.live.begin(claimed.rows.iter().map(|parcel| parcel.delivery.id));
            }
        }
        Ok(claimed)
    }

    async fn work(self: Arc<Self>, lane: String, parcel: Parcel) {
        // A lane that was claimed from is one of ours.
        let Some(hook) = self.hooks.get(&lane) else { return };
        let _working = self.live.until_dropped(parcel.delivery.id);
        let in_flight = InFlight(hook);
        let attempt = (self.perform)(parcel.clone()).await;
        let now = self.clock.now();
        let verdict = decide::after_attempt(&parcel.delivery, &attempt, &hook.schedule, now, self.dice.roll());
        if let Verdict::Again { hold: Some(hold), .. } = &verdict {
            // Not until this delivery's own next attempt, which may be hours later by its schedule.
            let mut standing = hook.standing();
            standing.held_until = standing.held_until.max(self.clock.tick() + *hold);
        }
        let finished = insist(|| self.store.finish(parcel.clone(), attempt.clone(), verdict.clone(), now)).await;
        drop(in_flight);
        match finished {
            Ok(()) => log(&parcel, &verdict),
            Err(error) => tracing::error!(
                hook = lane,
                event.id = parcel.delivery.event_id,
                "the attempt's outcome was not recorded, and it may be repeated: {error}"
            ),
        }
    }
}

/// One line for each change of state.
fn log(parcel: &Parcel, verdict: &Verdict) {
    let (hook, event) = (parcel.delivery.hook.as_str(), parcel.delivery.event_id.as_str());
    let (attempt, kind) = (parcel.number, parcel.event_type.as_str());
    match verdict {
        Verdict::Delivered => {
            tracing::info!(hook, event.id = event, event.r#type = kind, delivery.attempt = attempt, "delivered");
        }
        Verdict::Again { due_at, error, .. } => {
            tracing::warn!(hook, event.id = event, delivery.attempt = attempt, "again at {due_at}: {error}");
        }
        Verdict::Dead { error } => {
            tracing::error!(hook, event.id = event, delivery.attempt = attempt, "given up on: {error}");
        }
        Verdict::Held { error } => {
            tracing::error!(hook, event.id = event, delivery.attempt = attempt, "held: {error}");
        }
        Verdict::Interrupted => {
            tracing::info!(hook, event.id = event, delivery.attempt = attempt, "interrupted by the stop; due again");
        }
    }
}
