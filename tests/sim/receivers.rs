//! The receivers of the hooks, through the relay's seam, and what they really got.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use assetwatch::delivery::{Attempt, Outcome, Parcel};
use assetwatch::pump::{Phase, Stop};
use assetwatch::relay::Perform;

use crate::clock::{MINUTE, SECOND};
use crate::disk::{self, Process};
use crate::script::Mood;
use crate::world::{Shared, World};

/// The longest that an attempt takes.
pub const TIMEOUT: Duration = Duration::from_secs(20);

/// What was sent, by hook and event.
#[derive(Default)]
pub struct Receipts {
    pub of: BTreeMap<(usize, String), Receipt>,
    in_flight: BTreeMap<usize, u32>,
    /// By watch and hook: the end of the latest attempt.
    latest: BTreeMap<(i64, usize), Duration>,
    /// The events about a watch that a hook has accepted, in the order in which they were committed.
    accepted: BTreeMap<(i64, usize), i64>,
}

/// What one hook got of one event.
#[derive(Default)]
pub struct Receipt {
    pub numbers: BTreeSet<i64>,
    pub accepted: u32,
    pub refused: u32,
    pub failed: u32,
}

/// Makes attempts for one process.
pub fn perform(world: &Shared, process: Process, owner: &str, stop: Stop) -> Perform {
    let (world, owner) = (world.clone(), owner.to_owned());
    Arc::new(move |parcel| {
        let (world, owner, stop) = (world.clone(), owner.clone(), stop.clone());
        let performing = async move {
            if !disk::step(process) {
                std::future::pending::<()>().await;
            }
            let (hook, latency, outcome) = world.lock().sent((process, &owner), &parcel);
            let _in_flight = InFlight { world: world.clone(), hook };
            let ended = tokio::select! {
                biased;
                () = tokio::time::sleep(latency) => outcome,
                () = stop.reached(Phase::Hurry) => Outcome::Interrupted,
            };
            if !disk::step(process) {
                std::future::pending::<()>().await;
            }
            world.lock().received(hook, &parcel, &ended);
            Attempt::bare(ended)
        };
        Box::pin(performing) as Pin<Box<dyn Future<Output = Attempt> + Send>>
    })
}

struct InFlight {
    world: Shared,
    hook: usize,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if let Some(count) = self.world.lock().receipts.in_flight.get_mut(&self.hook) {
            *count = count.saturating_sub(1);
        }
    }
}

impl World {
    /// What comes of an attempt, and how long that takes. The receiver has what was sent from the beginning.
    fn sent(&mut self, (process, owner): (Process, &str), parcel: &Parcel) -> (usize, Duration, Outcome) {
        let now = self.time.now();
        self.attempts += 1;
        let delivery = &parcel.delivery;
        let (id, event, number) = (delivery.id, delivery.event_id.clone(), parcel.number);
        self.note(format_args!("sent {process} {} {event} {number}", delivery.hook));
        let hook = self.script.hooks.iter().position(|hook| hook.name == delivery.hook).unwrap_or_default();
        let in_flight = self.receipts.in_flight.entry(hook).or_default();
        *in_flight += 1;
        let full = *in_flight >= self.script.hooks[hook].concurrency;
        let limited = self.script.hooks[hook].rate.is_some();
        self.check_attempt(owner, hook, parcel);
        if full || limited {
            self.calm.disturb_hook(hook, now + if limited { MINUTE } else { Duration::ZERO });
        }
        if !self.receipts.of.entry((hook, event.clone())).or_default().numbers.insert(number) {
            self.fail("ledger", format_args!("delivery {id} is attempted twice as number {number}"));
        }
        let soon = self.draw.between(Duration::from_millis(5), Duration::from_millis(500));
        let windows = self.script.hooks[hook].windows.iter();
        let mood = windows.filter(|(from, until, _)| *from <= now && now < *until).map(|(_, _, mood)| *mood).next();
        let failed = |not_before| Outcome::Failed { error: "503".into(), not_before };
        let (latency, outcome) = match mood.unwrap_or(Mood::Fine) {
            Mood::Fine => (soon, Outcome::Delivered),
            Mood::Failing(share) if self.draw.chance(share) => (soon, failed(None)),
            Mood::Failing(_) => (soon, Outcome::Delivered),
            Mood::Hanging => (TIMEOUT, failed(None)),
            Mood::Busy(wait) => (soon, failed(Some(wait))),
            Mood::Refusing => (soon, Outcome::Refused { error: "no more of this".into() }),
            Mood::Gone => (soon, Outcome::Gone { error: "410".into() }),
        };
        (hook, latency, outcome)
    }

    fn received(&mut self, hook: usize, parcel: &Parcel, outcome: &Outcome) {
        let now = self.time.now();
        let event = parcel.delivery.event_id.clone();
        self.note(format_args!("received {hook} {event} {outcome:?}"));
        let row = self.audit.delivery(parcel.delivery.id);
        let receipt = self.receipts.of.entry((hook, event)).or_default();
        match outcome {
            Outcome::Delivered => receipt.accepted += 1,
            Outcome::Refused { .. } | Outcome::Gone { .. } => receipt.refused += 1,
            Outcome::Failed { .. } | Outcome::Blocked { .. } => receipt.failed += 1,
            Outcome::Interrupted => {}
        }
        if let Some((watch, seq)) = row.and_then(|row| Some((row.watch_id?, row.seq))) {
            self.receipts.latest.insert((watch, hook), now);
            if *outcome == Outcome::Delivered {
                let accepted = self.receipts.accepted.entry((watch, hook)).or_default();
                *accepted = seq.max(*accepted);
            }
        }
        let disturbed = match outcome {
            Outcome::Delivered | Outcome::Refused { .. }
                if self.receipts.in_flight[&hook] < self.script.hooks[hook].concurrency =>
            {
                return;
            }
            Outcome::Delivered | Outcome::Refused { .. } => Duration::ZERO,
            Outcome::Failed { not_before, .. } => not_before.unwrap_or_default() + 2 * MINUTE,
            Outcome::Blocked { .. } | Outcome::Interrupted => 2 * MINUTE,
            // Until somebody enables it.
            Outcome::Gone { .. } => Duration::MAX / 4,
        };
        self.calm.disturb_hook(hook, now + disturbed);
    }

    /// Whether this attempt may be made at all.
    fn check_attempt(&mut self, owner: &str, hook: usize, parcel: &Parcel) {
        let (now, wall) = (self.time.now(), self.time.wall());
        let id = parcel.delivery.id;
        let Some(row) = self.audit.delivery(id) else { return };
        let mine = row.lease_owner.as_deref() == Some(owner);
        if !mine || !row.has_attempt {
            self.fail(
                "ledger",
                format_args!("delivery {id} is attempted by {owner} with no attempt in the ledger: {row:?}"),
            );
            return;
        }
        let lease = (TIMEOUT + 10 * SECOND).as_millis() as i64;
        let until = row.lease_until.unwrap_or_default();
        if until > wall + lease && self.set_at + Duration::from_millis(1) < now && !self.slow() {
            self.fail("lease", format_args!("delivery {id} is leased until {until}, longer than {lease} ms"));
        }
        let due = row.due_at.unwrap_or_default();
        if due > wall && due < wall + 24 * 3_600_000 && self.set_at + SECOND < now {
            self.fail("due", format_args!("delivery {id} is attempted {} ms before it is due", due - wall));
        }
        if row.earlier_open > 0 {
            self.fail("order", format_args!("delivery {id} overtakes an earlier one of its watch and hook"));
        }
        let pair = row.watch_id.map(|watch| (watch, hook));
        let accepted = pair.and_then(|pair| self.receipts.accepted.get(&pair).copied()).unwrap_or_default();
        if accepted > row.seq && !self.retried {
            self.fail("order", format_args!("delivery {id} comes after a later event of its watch was accepted"));
        }
        if parcel.number == 1 {
            let before = pair.and_then(|pair| self.receipts.latest.get(&pair).copied()).unwrap_or_default();
            let since = self.instant(due).max(self.calm.of_hook(hook)).max(before);
            let late = now.saturating_sub(since);
            if late > Duration::from_millis(1_100) {
                self.fail(
                    "lateness",
                    format_args!("delivery {id} is attempted first {late:?} after its event, with nothing in the way"),
                );
            }
        }
    }
}
