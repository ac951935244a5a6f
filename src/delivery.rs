//! The deliveries that carry events to hooks, and what an attempt at one brought.

use std::time::Duration;

use serde::Serialize;

use crate::clock::Timestamp;

/// Where a delivery stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum DeliveryState {
    /// Due now or later.
    Waiting,
    /// The hook has it.
    Delivered,
    /// Given up on; may be retried by hand.
    Dead,
    /// Not attempted until something is changed by a person.
    Held,
}

impl DeliveryState {
    /// All states.
    pub const ALL: [Self; 4] = [Self::Waiting, Self::Delivered, Self::Dead, Self::Held];

    /// The word in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Delivered => "delivered",
            Self::Dead => "dead",
            Self::Held => "held",
        }
    }

    /// The state that `word` names.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == word)
    }
}

/// One event for one hook, at least once: one row of `deliveries`. As JSON it has the names of the columns.
#[derive(Clone, Debug, PartialEq, Serialize, utoipa::ToSchema)]
pub struct Delivery {
    /// Our number for it; never used again.
    pub id: i64,
    /// The event that it carries.
    pub event_id: String,
    /// The hook's name.
    pub hook: String,
    /// Where it stands.
    pub state: DeliveryState,
    /// When it is attempted next; only while it waits.
    pub due_at: Option<Timestamp>,
    /// The fencing number of its lease.
    pub generation: i64,
    /// How many attempts were begun.
    pub attempts: i64,
    /// How many of them failed: what the schedule counts. An attempt that was interrupted is not among them.
    pub failures: i64,
    /// What the latest failed attempt brought.
    pub last_error: Option<String>,
    /// When the event happened.
    pub created_at: Timestamp,
    /// When it was delivered or given up on.
    pub finished_at: Option<Timestamp>,
}

/// A claimed delivery with what a hook is told: what an edge performs.
#[derive(Clone, Debug, PartialEq)]
pub struct Parcel {
    /// The delivery, as claimed.
    pub delivery: Delivery,
    /// The attempt's number, 1 for the first.
    pub number: i64,
    /// The event's type.
    pub event_type: String,
    /// The exact bytes to send.
    pub body: Vec<u8>,
    /// Where to, for a watch's own callback; a hook's target is in the configuration.
    pub callback_url: Option<String>,
}

/// What one try at a delivery brought. It cannot fail: a refused connection is something seen.
#[derive(Clone, Debug, PartialEq)]
pub struct Attempt {
    /// How it went, for the verdict.
    pub outcome: Outcome,
    /// The receiver's HTTP status, or the command's exit code.
    pub code: Option<i64>,
    /// The headers of its answer that a person looks for, in short; they are not kept.
    pub headers: Vec<(String, String)>,
    /// What the receiver answered or the command wrote to stdout; the beginning and the end of it.
    pub output: Vec<u8>,
    /// What the command wrote to stderr.
    pub errors: Vec<u8>,
}

impl Attempt {
    /// An attempt of which nothing but its outcome is known.
    pub const fn bare(outcome: Outcome) -> Self {
        Self { outcome, code: None, headers: Vec::new(), output: Vec::new(), errors: Vec::new() }
    }
}

/// How an attempt went. The texts are one line each, and say what happened to whom.
#[expect(missing_docs, reason = "each variant's sentence names its fields")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The receiver has it.
    Delivered,
    /// It may work later; not before `not_before` has passed, where the receiver said so.
    Failed { error: String, not_before: Option<Duration> },
    /// The receiver wants no more of this event (a command's exit 100).
    Refused { error: String },
    /// The receiver wants no more of anything (HTTP 410).
    Gone { error: String },
    /// It cannot work until a person changes something; costs no attempt of the schedule.
    Blocked { error: String },
    /// The daemon stopped before it ended; to be stopped is not a failure.
    Interrupted,
}
