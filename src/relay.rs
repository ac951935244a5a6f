//! Delivering: claim → perform → verdict → finish. The pump's second use.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::clock::{Clock, Dice, Timestamp};
use crate::decide::{self, Verdict};
use crate::delivery::{Attempt, Outcome, Parcel};
use crate::event::{CALLBACK, Event, Notice, Subscription, Telling};
use crate::meter::Attempts;
use crate::pace::Bucket;
use crate::pump::{Gate, Lanes, Live, Work, insist};
use crate::standing::{Standing, Turn};
use crate::store::{Claimed, Ending, Lane, Store, StoreError, Terms};

/// A lease lasts as long as an attempt may, and this much for the writing.
const MARGIN: Duration = Duration::from_secs(10);
/// So many lanes of callbacks are looked at in one turn, since anybody who adds watches makes new ones.
const LANES_A_TURN: u32 = 200;
/// So many callbacks are under way at once, whatever number of origins they go to: descriptors are for everybody.
const MOST_CALLBACKS: u32 = 64;
/// Until the next ones are looked at.
const LANES_PAUSE: Duration = Duration::from_millis(250);

/// Makes one attempt. The seam at which a simulation stands in for the world.
pub type Perform = Arc<dyn Fn(Parcel) -> Pin<Box<dyn Future<Output = Attempt> + Send>> + Send + Sync>;

/// One hook, as the relay works it.
#[derive(Clone)]
pub struct HookLane {
    /// The longest that an attempt takes.
    pub timeout: Duration,
    /// Attempts at once.
    pub concurrency: u32,
    /// The gaps after the first attempt.
    pub schedule: Vec<Duration>,
    /// Attempts a second, more than zero, if they are limited.
    pub rate: Option<f64>,
    /// What its attempts are counted with.
    pub meter: Attempts,
}

impl HookLane {
    /// Slots that later attempts leave to first ones: a quarter, rounded up.
    fn reserved(&self) -> u32 {
        if self.concurrency > 1 { self.concurrency.div_ceil(4) } else { 0 }
    }
}

/// What our own attempts are at, by lane; a reload keeps it. What others have to know as well is in the database.
#[derive(Clone, Default)]
pub struct Slots(Arc<Mutex<BTreeMap<String, Slot>>>);

#[derive(Default)]
struct Slot {
    in_flight: u32,
    /// How many of them were attempted before.
    again: u32,
    /// Whether the latest one was.
    again_latest: bool,
    bucket: Option<Bucket>,
}

impl Slots {
    /// How many callbacks are under way.
    fn of_callbacks(&self) -> u32 {
        let slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        slots.iter().filter(|(lane, _)| lane.starts_with(CALLBACK)).map(|(_, slot)| slot.in_flight).sum()
    }

    /// Runs `work` with the slot of a lane, which is forgotten when there is nothing in it: origins of callbacks are
    /// without number.
    fn with<T>(&self, lane: &str, work: impl FnOnce(&mut Slot) -> T) -> T {
        let mut slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut slot = slots.remove(lane).unwrap_or_default();
        let result = work(&mut slot);
        if slot.in_flight > 0 || slot.bucket.is_some() || !lane.starts_with(CALLBACK) {
            slots.insert(lane.to_owned(), slot);
        }
        result
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
    /// What every lane of callbacks is like; without it none is worked.
    pub callbacks: Option<HookLane>,
    /// What our attempts are at.
    pub slots: Slots,
    /// Who is told that a hook was disabled.
    pub subscriptions: Arc<[Subscription]>,
    /// The lane of callbacks that was looked at last: the next turn goes on behind it.
    pub looked_at: Mutex<String>,
    /// Makes an attempt.
    pub perform: Perform,
    /// Only deliveries of these watches; all when absent.
    pub only: Option<Vec<i64>>,
    /// What our workers are at.
    pub live: Live,
}

/// An attempt that is under way; if its worker is dropped, the hook has its slot back.
struct InFlight<'a> {
    slots: &'a Slots,
    lane: &'a str,
    again: bool,
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.slots.with(self.lane, |slot| {
            slot.in_flight = slot.in_flight.saturating_sub(1);
            slot.again = slot.again.saturating_sub(u32::from(self.again));
        });
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

    async fn lanes(&self) -> Result<Lanes, StoreError> {
        let mut names: Vec<String> = self.hooks.keys().cloned().collect();
        if self.callbacks.is_none() {
            return Ok(Lanes { names, more: None });
        }
        let after = lock(&self.looked_at).clone();
        let mut found = self.store.callback_lanes(after.clone(), LANES_A_TURN).await?;
        let is_full = found.len() >= LANES_A_TURN as usize;
        *lock(&self.looked_at) = found.last().filter(|_| is_full).cloned().unwrap_or_default();
        // The end was reached, and what stands before the place where it began comes next.
        let more = (is_full || !after.is_empty()).then_some(LANES_PAUSE);
        names.append(&mut found);
        Ok(Lanes { names, more })
    }

    fn gate(&self, lane: &str) -> Gate {
        // A lane that was named is one of ours.
        let Some(hook) = self.hook(lane) else { return Gate::Full };
        let tick = self.clock.tick();
        self.slots.with(lane, |slot| {
            slot.bucket =
                hook.rate.map(|rate| slot.bucket.unwrap_or_else(|| Bucket::new(rate)).at(rate, rate.ceil(), tick));
            let tokens = slot.bucket.map_or(u32::MAX, |bucket| bucket.tokens(tick));
            let free = hook.concurrency.saturating_sub(slot.in_flight);
            let again = hook.concurrency.saturating_sub(hook.reserved() + slot.again);
            match (free, tokens, slot.bucket) {
                (0, _, _) => Gate::Full,
                (_, 0, Some(bucket)) => Gate::Closed(bucket.opens()),
                _ => Gate::Open(Lane {
                    name: lane.into(),
                    room: free.min(tokens),
                    avoid: None,
                    prefer: None,
                    lease: hook.timeout + MARGIN,
                    again,
                    again_first: !slot.again_latest,
                }),
            }
        })
    }

    async fn claim(&self, lanes: Vec<Lane>) -> Result<Vec<Claimed<Parcel>>, StoreError> {
        let order: BTreeMap<String, usize> = lanes.iter().map(|lane| lane.name.clone()).zip(0..).collect();
        let (callbacks, hooks): (Vec<_>, Vec<_>) = lanes.into_iter().partition(|lane| lane.name.starts_with(CALLBACK));
        let mut claimed = if hooks.is_empty() { Vec::new() } else { self.claim_from(hooks).await? };
        self.claim_callbacks(callbacks, &mut claimed).await?;
        claimed.sort_by_key(|claimed| order.get(&claimed.lane).copied());
        Ok(claimed)
    }

    async fn work(self: Arc<Self>, lane: String, parcel: Parcel) {
        let Some(hook) = self.hook(&lane) else { return };
        let _working = self.live.until_dropped(parcel.delivery.id);
        let in_flight = InFlight { slots: &self.slots, lane: &lane, again: is_again(&parcel) };
        let begun = self.clock.tick();
        let attempt = (self.perform)(parcel.clone()).await;
        hook.meter.performed(self.clock.tick().saturating_sub(begun));
        let now = self.clock.now();
        let verdict = decide::after_attempt(&parcel.delivery, &attempt, &hook.schedule, now, self.dice.roll());
        let finished = insist(|| {
            let rule = self.rule(verdict.clone(), attempt.outcome.clone(), now);
            self.store.finish(parcel.clone(), attempt.clone(), now, rule)
        });
        let finished = finished.await;
        drop(in_flight);
        match finished {
            Ok(ending) => {
                hook.meter.finished(&parcel, &ending.verdict, now);
                log(&parcel, &ending.verdict);
                log_turn(&ending);
            }
            Err(error) => {
                if error == StoreError::LeaseLost {
                    hook.meter.lease_lost();
                }
                tracing::error!(
                    hook = lane,
                    event.id = parcel.delivery.event_id,
                    "the attempt's outcome was not recorded, and it may be repeated: {error}"
                );
            }
        }
    }
}

impl Relay {
    async fn claim_from(&self, lanes: Vec<Lane>) -> Result<Vec<Claimed<Parcel>>, StoreError> {
        let now = self.clock.now();
        let hooks = self.hooks.values().chain(&self.callbacks);
        let longest = hooks.map(|hook| decide::longest_gap(&hook.schedule)).max().unwrap_or_default();
        let owner = self.owner.clone();
        let terms = Terms { owner, lanes, now, horizon: now + longest, only: self.only.clone(), live: self.live.ids() };
        let claimed = self.store.claim_deliveries(terms).await?;
        for claimed in claimed.iter().filter(|claimed| !claimed.rows.is_empty()) {
            self.slots.with(&claimed.lane, |slot| self.took(slot, &claimed.rows));
            self.live.begin(claimed.rows.iter().map(|parcel| parcel.delivery.id));
        }
        Ok(claimed)
    }

    /// As many as are free for all origins together; what one of them does not use, the next ones get.
    async fn claim_callbacks(
        &self,
        mut lanes: Vec<Lane>,
        claimed: &mut Vec<Claimed<Parcel>>,
    ) -> Result<(), StoreError> {
        let mut next_due = None;
        loop {
            let free = MOST_CALLBACKS.saturating_sub(self.slots.of_callbacks()) as usize;
            if free == 0 || lanes.is_empty() {
                break;
            }
            let rest = lanes.split_off(free.min(lanes.len()));
            let mut portion = std::mem::replace(&mut lanes, rest);
            let names: Vec<String> = portion.iter().map(|lane| lane.name.clone()).collect();
            let share = u32::try_from(free / portion.len()).unwrap_or(u32::MAX);
            portion.iter_mut().for_each(|lane| lane.room = lane.room.min(share));
            match self.claim_from(portion).await {
                Ok(mut portion) => claimed.append(&mut portion),
                Err(error) if claimed.is_empty() => return Err(error),
                // What was claimed before has to be worked; the next turn meets the error again.
                Err(_) => {
                    next_due = Some(self.clock.now());
                    claimed.extend(names.into_iter().map(|lane| nothing(lane, next_due)));
                    break;
                }
            }
        }
        // These wait for the end of another one, and not for an instant.
        claimed.extend(lanes.into_iter().map(|lane| nothing(lane.name, next_due)));
        Ok(())
    }

    fn hook(&self, lane: &str) -> Option<&HookLane> {
        self.hooks.get(lane).or_else(|| self.callbacks.as_ref().filter(|_| lane.starts_with(CALLBACK)))
    }

    fn took(&self, slot: &mut Slot, parcels: &[Parcel]) {
        let count = u32::try_from(parcels.len()).unwrap_or(u32::MAX);
        slot.in_flight += count;
        slot.again += parcels.iter().map(|parcel| u32::from(is_again(parcel))).sum::<u32>();
        slot.again_latest = parcels.last().is_some_and(is_again);
        if let Some(bucket) = &mut slot.bucket {
            bucket.take(count, self.clock.tick());
        }
    }

    /// What is to be written, out of how the hook stands when it is.
    fn rule(
        &self,
        verdict: Verdict,
        outcome: Outcome,
        now: Timestamp,
    ) -> impl FnMut(&Standing) -> Ending + Send + 'static {
        let (install_id, subscriptions) = (self.store.install_id().to_owned(), Arc::clone(&self.subscriptions));
        let dice = self.dice.clone();
        move |before| {
            let (standing, turn) = before.after(&outcome, now);
            let telling = Telling { install_id: &install_id, subscriptions: &subscriptions };
            let told = (turn == Some(Turn::Disabled)).then(|| {
                let reason = standing.disabled_reason.clone().unwrap_or_default();
                let notice = Notice::HookDisabled { hook: standing.name.clone(), reason };
                Event::of_notice(&notice, dice.bytes(), now, &telling)
            });
            Ending { verdict: verdict.clone().at(&standing), standing, turn, events: told.into_iter().collect() }
        }
    }
}

fn nothing(lane: String, next_due: Option<Timestamp>) -> Claimed<Parcel> {
    Claimed { lane, rows: Vec::new(), next_due, alone: false }
}

fn is_again(parcel: &Parcel) -> bool {
    parcel.number > 1
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One line for each change of state.
fn log(parcel: &Parcel, verdict: &Verdict) {
    let (hook, event) = (parcel.delivery.hook.as_str(), parcel.delivery.event_id.as_str());
    let (attempt, kind) = (parcel.number, parcel.event_type.as_str());
    match verdict {
        Verdict::Delivered => {
            tracing::info!(hook, event.id = event, "event.type" = kind, delivery.attempt = attempt, "delivered");
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

/// One line when a hook begins to be treated in another way.
fn log_turn(ending: &Ending) {
    let (hook, error) = (ending.standing.name.as_str(), ending.standing.last_error.as_deref().unwrap_or_default());
    match ending.turn {
        Some(Turn::Disabled) => tracing::error!(
            hook,
            "disabled, and its deliveries are held: {error}; `assetwatch hooks enable {hook}` has it told again"
        ),
        Some(Turn::Broken) => {
            tracing::warn!(hook, "failing; single attempts are made until it works again, and the rest waits: {error}");
        }
        Some(Turn::Mended) => tracing::info!(hook, "works again"),
        None => {}
    }
}
