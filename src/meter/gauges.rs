//! How things stand, as somebody sets it who has looked.

use metrics::{Gauge, gauge};

use super::names;
use crate::delivery::DeliveryState;
use crate::pace::Closure;

const CLOSURES: [Closure; 4] = [Closure::Unauthorized, Closure::Unpaid, Closure::Untrusted, Closure::Broken];
/// What is in a backlog.
const UNDELIVERED: [DeliveryState; 3] = [DeliveryState::Waiting, DeliveryState::Held, DeliveryState::Dead];

/// Of the watches of one account, or of all that are [`super::NOT_CONFIGURED`].
pub struct Waiting {
    waiting: Gauge,
    lag: Gauge,
}

impl Waiting {
    /// Those of this account.
    pub fn of(account: &str) -> Self {
        let gauge = |name: &'static str| gauge!(name, "account" => account.to_owned());
        Self { waiting: gauge(names::WAITING), lag: gauge(names::LAG) }
    }

    /// So many wait, and the longest overdue one has been due for so many seconds.
    pub fn set(&self, waiting: i64, lag: f64) {
        self.waiting.set(waiting as f64);
        self.lag.set(lag);
    }
}

/// Of one account's pace.
pub struct Pacing {
    rate: Gauge,
    in_flight: Gauge,
    closed: [(Closure, Gauge); CLOSURES.len()],
    held: Gauge,
}

impl Pacing {
    /// Those of this account.
    pub fn of(account: &str) -> Self {
        let gauge = |name: &'static str| gauge!(name, "account" => account.to_owned());
        let closed = |why: Closure| gauge!(names::CLOSED, "account" => account.to_owned(), "reason" => why.as_str());
        Self {
            rate: gauge(names::RATE),
            in_flight: gauge(names::IN_FLIGHT),
            closed: CLOSURES.map(|why| (why, closed(why))),
            held: gauge(names::HELD),
        }
    }

    /// So many polls a second are allowed, and so many under way.
    pub fn set(&self, rate: f64, in_flight: u32) {
        self.rate.set(rate);
        self.in_flight.set(in_flight);
    }

    /// Why it is closed, if it is, and whether the API has asked for patience.
    pub fn set_closed(&self, closure: Option<Closure>, held: bool) {
        for (why, gauge) in &self.closed {
            gauge.set(one_if(closure == Some(*why)));
        }
        self.held.set(one_if(held));
    }
}

/// Of the deliveries of one hook, of [`super::CALLBACKS`] or of those that are [`super::NOT_CONFIGURED`].
pub struct Backlogs {
    counts: [Gauge; UNDELIVERED.len()],
    oldest: Gauge,
}

impl Backlogs {
    /// Those of this hook.
    pub fn of(hook: &str) -> Self {
        let count = |state: DeliveryState| gauge!(names::BACKLOG, "hook" => hook.to_owned(), "state" => state.as_str());
        Self { counts: UNDELIVERED.map(count), oldest: gauge!(names::OLDEST, "hook" => hook.to_owned()) }
    }

    /// So many wait, are held and are dead, and the oldest of those that wait was made so many seconds ago.
    pub fn set(&self, waiting_held_dead: [i64; 3], oldest: f64) {
        for (gauge, count) in self.counts.iter().zip(waiting_held_dead) {
            gauge.set(count as f64);
        }
        self.oldest.set(oldest);
    }
}

/// Of how one configured hook stands.
pub struct HookStates(Vec<(&'static str, Gauge)>);

impl HookStates {
    /// Those of this hook, one for each state.
    pub fn of(hook: &str, states: impl IntoIterator<Item = &'static str>) -> Self {
        let state = |state| (state, gauge!(names::HOOK_STATE, "hook" => hook.to_owned(), "state" => state));
        Self(states.into_iter().map(state).collect())
    }

    /// It is in this state; in none when absent.
    pub fn set(&self, state: Option<&str>) {
        for (word, gauge) in &self.0 {
            gauge.set(one_if(state == Some(*word)));
        }
    }
}

/// Of the process, and of the looks that the gauges are set from.
pub struct Process {
    memory: Gauge,
    descriptors: Gauge,
    cpu: metrics::Counter,
    look_duration: Gauge,
    looked_at: Gauge,
}

impl Process {
    /// Those of this process, which is this build and was started then, in Unix seconds, and may have so many descriptors.
    pub fn of(version: &'static str, commit: &'static str, started_at: f64, most_descriptors: Option<u64>) -> Self {
        gauge!(names::BUILD, "version" => version, "commit" => commit).set(1);
        gauge!(names::STARTED_AT).set(started_at);
        if let Some(most) = most_descriptors {
            gauge!(names::MOST_DESCRIPTORS).set(most as f64);
        }
        Self {
            memory: gauge!(names::MEMORY),
            descriptors: gauge!(names::DESCRIPTORS),
            cpu: metrics::counter!(names::CPU),
            look_duration: gauge!(names::LOOK_DURATION),
            looked_at: gauge!(names::LOOKED_AT),
        }
    }

    /// What it has now: bytes, descriptors, and the seconds that it has used.
    pub fn set(&self, memory: Option<u64>, descriptors: Option<usize>, cpu: u64) {
        if let Some(bytes) = memory {
            self.memory.set(bytes as f64);
        }
        if let Some(count) = descriptors {
            self.descriptors.set(count as f64);
        }
        self.cpu.absolute(cpu);
    }

    /// A look took so many seconds, and was made at this Unix time.
    pub fn looked(&self, took: f64, at: f64) {
        self.look_duration.set(took);
        self.looked_at.set(at);
    }
}

fn one_if(is: bool) -> f64 {
    f64::from(u8::from(is))
}
