//! What is measured, and under which names: the instruments that polls, attempts and commits write to as they happen, and
//! those that the daemon sets from a look at the database.
//!
//! An instrument is looked up once, when what it belongs to is set up; to write to it is an atomic operation or two. Where
//! nobody has installed a recorder (any verb but `run`), what is written goes nowhere. Label values are a closed set: our
//! own words, and the names in the configuration. What an API or a caller says is never one.

mod gauges;
mod names;

use std::sync::Arc;
use std::time::Duration;

use metrics::{Counter, Histogram, counter, histogram};

use crate::clock::Timestamp;
use crate::decide::{Observation, Rules, Verdict};
use crate::delivery::Parcel;
use crate::watch::{Reason, State, Watch};

pub use gauges::{Backlogs, HookStates, Pacing, Process, Waiting};
pub use names::{INSTRUMENTS, Instrument, Kind};

/// The label value for all callbacks together, as the origins that they go to are without number. No hook of a
/// configuration can have this name.
pub const CALLBACKS: &str = "callback:*";
/// The label value for accounts and hooks that the configuration does not name. None of it can have this name.
pub const NOT_CONFIGURED: &str = "(not configured)";

/// What polls bring.
const OUTCOMES: [&str; 12] = [
    "waiting",
    "settled",
    "failed",
    "throttled",
    "missing",
    "rejected",
    "unusable",
    "unauthorized",
    "forbidden",
    "unpaid",
    "untrusted",
    "unaskable",
];
/// The final statuses that the vendor's page names, and the label value for any other one.
const STATUSES: [&str; 4] = ["active", "archive", "censored", OTHER];
const OTHER: &str = "other";
const REASONS: [&str; 3] = [Reason::Missing.as_str(), Reason::Rejected.as_str(), Reason::Patience.as_str()];
const VERDICTS: [&str; 5] = ["delivered", "again", "dead", "held", "interrupted"];

/// Counters that differ in one label.
struct Family(Vec<(&'static str, Counter)>);

impl Family {
    fn new(words: &[&'static str], counter: impl Fn(&'static str) -> Counter) -> Self {
        Self(words.iter().map(|word| (*word, counter(word))).collect())
    }

    /// Counts one for `word`, which is one of those that the family was made of.
    fn count(&self, word: &str) {
        if let Some((_, counter)) = self.0.iter().find(|(known, _)| *known == word) {
            counter.increment(1);
        }
    }
}

/// The instruments of an account's polls.
pub struct Polls {
    outcomes: Family,
    duration: Histogram,
    settled: Family,
    abandoned: Family,
    delay: Histogram,
    leases_lost: Counter,
}

impl Polls {
    /// Those of an account of the configuration.
    pub fn of(account: &str) -> Self {
        let family = |name: &'static str, label: &'static str, words: &[&'static str]| {
            Family::new(words, |word| counter!(name, "account" => account.to_owned(), label => word))
        };
        Self {
            outcomes: family(names::POLLS, "outcome", &OUTCOMES),
            duration: histogram!(names::POLL_DURATION, "account" => account.to_owned()),
            settled: family(names::SETTLED, "status", &STATUSES),
            abandoned: family(names::ABANDONED, "reason", &REASONS),
            delay: histogram!(names::DETECTION_DELAY, "account" => account.to_owned()),
            leases_lost: counter!(names::LEASES_LOST, "pump" => "poller"),
        }
    }

    /// A poll has seen this, and took so long.
    pub fn polled(&self, observation: &Observation, rules: &Rules, took: Duration) {
        self.outcomes.count(outcome(observation, rules));
        self.duration.record(took);
    }

    /// A poll of `before` was written down as `after`.
    pub fn recorded(&self, before: &Watch, after: &Watch) {
        match after.state {
            State::Settled => {
                let status = after.asset.status.as_deref();
                self.settled.count(status.filter(|word| STATUSES.contains(word)).unwrap_or(OTHER));
                self.delay.record(detection_delay(before, after));
            }
            State::Abandoned => self.abandoned.count(after.reason.map_or("", Reason::as_str)),
            State::Waiting | State::Cancelled => {}
        }
    }

    /// What a poll brought was not written: the lease was lost.
    pub fn lease_lost(&self) {
        self.leases_lost.increment(1);
    }
}

/// The longest for which a settled asset can have gone unnoticed: the time from the latest answer that had it waiting, or
/// from the `add` when there was none, to the answer that had it settled. When in that time it settled, the API does not
/// say.
fn detection_delay(before: &Watch, after: &Watch) -> Duration {
    let known_to_wait = before.waiting_at.unwrap_or(before.created_at);
    after.settled_at.map_or(Duration::ZERO, |settled_at| settled_at.since(known_to_wait))
}

fn outcome(observation: &Observation, rules: &Rules) -> &'static str {
    match observation {
        Observation::Answered { asset, .. } if rules.is_waiting(asset) => "waiting",
        Observation::Answered { .. } => "settled",
        Observation::Unavailable { .. } => "failed",
        Observation::Throttled { .. } => "throttled",
        Observation::Missing { .. } => "missing",
        Observation::Rejected { .. } => "rejected",
        Observation::Unusable { .. } => "unusable",
        Observation::Unauthorized { .. } => "unauthorized",
        Observation::Forbidden { .. } => "forbidden",
        Observation::Unpaid { .. } => "unpaid",
        Observation::Untrusted { .. } => "untrusted",
        Observation::Unaskable { .. } => "unaskable",
    }
}

/// The instruments of a hook's attempts.
#[derive(Clone)]
pub struct Attempts {
    verdicts: Arc<Family>,
    duration: Histogram,
    delay: Histogram,
    leases_lost: Counter,
}

impl Attempts {
    /// Those of a hook of the configuration, or of [`CALLBACKS`].
    pub fn of(hook: &str) -> Self {
        let verdict = |word| counter!(names::ATTEMPTS, "hook" => hook.to_owned(), "verdict" => word);
        Self {
            verdicts: Family::new(&VERDICTS, verdict).into(),
            duration: histogram!(names::ATTEMPT_DURATION, "hook" => hook.to_owned()),
            delay: histogram!(names::DELIVERY_DELAY, "hook" => hook.to_owned()),
            leases_lost: counter!(names::LEASES_LOST, "pump" => "relay"),
        }
    }

    /// An attempt took so long.
    pub fn performed(&self, took: Duration) {
        self.duration.record(took);
    }

    /// An attempt at `parcel` was written down with this verdict at `now`.
    pub fn finished(&self, parcel: &Parcel, verdict: &Verdict, now: Timestamp) {
        self.verdicts.count(match verdict {
            Verdict::Delivered => "delivered",
            Verdict::Again { .. } => "again",
            Verdict::Dead { .. } => "dead",
            Verdict::Held { .. } => "held",
            Verdict::Interrupted => "interrupted",
        });
        if matches!(verdict, Verdict::Delivered) {
            self.delay.record(now.since(parcel.delivery.created_at));
        }
    }

    /// What an attempt brought was not written: the lease was lost.
    pub fn lease_lost(&self) {
        self.leases_lost.increment(1);
    }
}

/// The instruments of the store's commits.
pub struct Commits {
    duration: Histogram,
    writes: Histogram,
    failures: Counter,
}

impl Default for Commits {
    fn default() -> Self {
        Self {
            duration: histogram!(names::COMMIT_DURATION),
            writes: histogram!(names::COMMIT_WRITES),
            failures: counter!(names::COMMIT_FAILURES),
        }
    }
}

impl Commits {
    /// A transaction of so many writes has ended after so long.
    pub fn committed(&self, writes: usize, took: Duration, in_order: bool) {
        self.duration.record(took);
        self.writes.record(u32::try_from(writes).unwrap_or(u32::MAX));
        if !in_order {
            self.failures.increment(1);
        }
    }
}
