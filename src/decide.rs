//! What an answer means: the table of the design's section 5, and what to write after a poll or an attempt.

use std::time::Duration;

use crate::backoff;
use crate::clock::Timestamp;
use crate::delivery::{Attempt, Delivery, Outcome};
use crate::event::Fact;
use crate::pace::{Jumps, Quota, Sign};
use crate::standing::{LONGEST_HOLD, Standing};
use crate::watch::{Asset, Reason, Since, State, Streaks, Watch};

/// Refusals in a row after which an asset is abandoned.
const REJECTIONS: u32 = 3;
/// Attempts are late by at most this share of their gap, never early.
const LATENESS: f64 = 0.2;

/// What one poll of one asset saw. It cannot fail: a refused connection is something seen.
#[expect(missing_docs, reason = "each variant's sentence names its fields")]
#[derive(Clone, Debug, PartialEq)]
pub enum Observation {
    /// 200 with a status. `note` is what was odd about it: an `err` beside the status, fields that had to be dropped.
    Answered { asset: Asset, note: Option<String> },
    /// 200 with an `err` and no status; a redirect: an answer, but not one about the asset.
    Unusable { error: String },
    /// No answer, or none that an API in order would give.
    Unavailable { error: String },
    /// Whoever answers there cannot show a valid certificate, so nothing was asked.
    Untrusted { error: String },
    /// 429, or 503 with a Retry-After; the wait, if one was given.
    Throttled { wait: Option<Duration>, error: String },
    /// 401.
    Unauthorized { error: String },
    /// 403: the key or only this asset, as others of the account show.
    Forbidden { error: String },
    /// 402.
    Unpaid { error: String },
    /// 404.
    Missing { error: String },
    /// 400, 410, 422 and every other 4xx.
    Rejected { error: String },
    /// The row holds an id that can never be asked for.
    Unaskable { error: String },
}

impl Observation {
    /// What was odd or wrong, in words.
    pub fn text_mut(&mut self) -> Option<&mut String> {
        match self {
            Self::Answered { note, .. } => note.as_mut(),
            Self::Unusable { error }
            | Self::Unavailable { error }
            | Self::Untrusted { error }
            | Self::Throttled { error, .. }
            | Self::Unauthorized { error }
            | Self::Forbidden { error }
            | Self::Unpaid { error }
            | Self::Missing { error }
            | Self::Rejected { error }
            | Self::Unaskable { error } => Some(error),
        }
    }
}

/// What one poll brought, besides what it saw of the asset.
#[derive(Clone, Debug, PartialEq)]
pub struct Polled {
    /// What it saw of the asset.
    pub observation: Observation,
    /// What the answer said of the account's quota.
    pub quota: Quota,
    /// How far it came.
    pub contact: Contact,
}

impl From<Observation> for Polled {
    /// An answer of the API's that says nothing of a quota.
    fn from(observation: Observation) -> Self {
        Self { observation, quota: Quota::default(), contact: Contact::Api }
    }
}

/// How far a request came. It changes no decision; a person wants to know where to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contact {
    /// There was no connection: no such host, nobody who listens there, no way to it.
    Nobody,
    /// There was a connection, and no answer of HTTP, or none in time.
    Unanswered,
    /// Something answered, and not as an API would: it has a body that is not JSON.
    Stranger,
    /// Something answered, with nothing in it that tells what it is.
    Silent,
    /// Something answered that it is somewhere else.
    Elsewhere,
    /// JSON was answered.
    Api,
}

/// The settings that the table takes.
#[derive(Clone, Debug, PartialEq)]
pub struct Rules {
    /// The statuses with which an asset is followed on.
    pub waiting_statuses: Vec<String>,
    /// How long to wait between polls.
    pub backoff: backoff::Policy,
    /// The longest that one asset is followed, unless it says otherwise.
    pub patience: Duration,
    /// How long a 404 may last.
    pub missing_grace: Duration,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            waiting_statuses: vec!["pending".into(), "processing".into()],
            backoff: backoff::Policy::default(),
            patience: Duration::from_secs(24 * 3_600),
            missing_grace: Duration::from_secs(300),
        }
    }
}

impl Rules {
    /// Whether an asset that answers so is followed on.
    pub fn is_waiting(&self, asset: &Asset) -> bool {
        asset.status.as_ref().is_some_and(|status| self.waiting_statuses.contains(status))
    }

    /// The longest that a watch may have to wait for its next poll: one that is due later was written by a clock that
    /// has been set back since, and is due now.
    pub fn longest_wait(&self) -> Duration {
        self.backoff.longest() + Duration::from_secs(60)
    }
}

/// What a decision takes besides the watch and the answer.
#[derive(Clone, Debug)]
pub struct Moment {
    /// Wall time.
    pub now: Timestamp,
    /// A roll in `0.0..1.0`.
    pub roll: f64,
    /// The account's lost time, all told, in milliseconds; see [`crate::pace::Pace::lost_ms`].
    pub lost_ms: i64,
    /// Whether the account answers for other assets.
    pub others_answered: bool,
    /// How the wall clock was set.
    pub jumps: Jumps,
    /// Whether the account is closed: then a failure is the account's, and none of the asset.
    pub closed: bool,
}

impl Moment {
    /// What the clock says has passed, less what was lost meanwhile: also right when the clock was set, in any direction.
    fn since(&self, first: Since) -> Duration {
        let elapsed = self.now.as_millis().saturating_sub(first.at.as_millis());
        let lost = self.lost_ms.saturating_sub(first.base);
        let lost = lost.max(self.jumps.least(first.at, first.base, elapsed));
        u64::try_from(elapsed.saturating_sub(lost)).map(Duration::from_millis).unwrap_or_default()
    }
}

/// What to write after a poll.
#[expect(missing_docs, reason = "each variant's sentence names its fields")]
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// It is followed on.
    Wait(Wait),
    /// Nothing is held against it; it is due again.
    Untouched { due_at: Timestamp, error: String },
    /// It reached a final status.
    Settle { asset: Asset, note: Option<String> },
    /// It is given up on.
    Abandon { reason: Reason, asset: Option<Asset>, error: Option<String> },
}

/// How a watch is followed on.
#[derive(Clone, Debug, PartialEq)]
pub struct Wait {
    /// When it is polled next.
    pub due_at: Timestamp,
    /// The streaks after this poll.
    pub streaks: Streaks,
    /// The first of the 404s in a row.
    pub missing: Option<Since>,
    /// What the API said of it, if it said anything.
    pub asset: Option<Asset>,
    /// What was wrong.
    pub error: Option<String>,
}

/// What the poll says about its account.
pub fn sign(observation: &Observation, others_answered: bool) -> Sign {
    match observation {
        Observation::Answered { .. } => Sign::Healthy,
        Observation::Unavailable { .. } => Sign::Strained,
        Observation::Untrusted { .. } => Sign::Untrusted,
        Observation::Throttled { wait, .. } => Sign::Throttled(*wait),
        Observation::Unauthorized { .. } => Sign::Unauthorized,
        Observation::Forbidden { .. } if others_answered => Sign::Forbidden,
        Observation::Forbidden { .. } => Sign::Doubtful,
        Observation::Unpaid { .. } => Sign::Unpaid,
        Observation::Unusable { .. } | Observation::Missing { .. } | Observation::Rejected { .. } => Sign::Neutral,
        Observation::Unaskable { .. } => Sign::Unasked,
    }
}

/// What to write after a poll of `watch`.
pub fn after_poll(watch: &Watch, observation: Observation, rules: &Rules, moment: &Moment) -> Decision {
    let streaks = watch.streaks;
    // Due as soon as the account is polled again, behind those that have waited longer: so each probe is of another one.
    let overdue = |error: String| Decision::Untouched { due_at: moment.now, error };
    let failed = |error: String| {
        let failures = streaks.failures.saturating_add(1);
        let delay = rules.backoff.failure_delay(failures, moment.roll);
        let streaks = Streaks { failures, ..streaks };
        Step { delay, streaks, missing: watch.missing, asset: None, error: Some(error) }
            .within_patience(watch, rules, moment)
    };
    match observation {
        Observation::Answered { asset, note } => answered(watch, asset, note, rules, moment),
        // The account waits as long as it was asked to; this watch needs no more than its own interval besides.
        Observation::Throttled { error, .. } => {
            Decision::Untouched { due_at: moment.now + rules.backoff.delay(streaks.waiting, moment.roll), error }
        }
        Observation::Unavailable { error } if moment.closed => overdue(error),
        Observation::Unusable { error } | Observation::Unavailable { error } => failed(error),
        Observation::Untrusted { error } | Observation::Unauthorized { error } | Observation::Unpaid { error } => {
            overdue(error)
        }
        Observation::Forbidden { error } if moment.closed => overdue(error),
        // Not told apart yet whether it is the asset's or the key's; others are answered before it is asked for again.
        Observation::Forbidden { error } if !moment.others_answered => {
            Decision::Untouched { due_at: moment.now + rules.backoff.delay(u32::MAX, moment.roll), error }
        }
        Observation::Forbidden { error } | Observation::Rejected { error } => rejected(watch, error, rules, moment),
        Observation::Missing { error } => missing(watch, error, rules, moment),
        Observation::Unaskable { error } => {
            Decision::Abandon { reason: Reason::Rejected, asset: None, error: Some(error) }
        }
    }
}

fn answered(watch: &Watch, asset: Asset, note: Option<String>, rules: &Rules, moment: &Moment) -> Decision {
    if !rules.is_waiting(&asset) {
        return Decision::Settle { asset, note };
    }
    let same = watch.asset.status == asset.status;
    let waiting = if same { watch.streaks.waiting.saturating_add(1) } else { 1 };
    Step {
        delay: rules.backoff.delay(waiting, moment.roll),
        streaks: Streaks { waiting, ..Streaks::default() },
        missing: None,
        asset: Some(asset),
        error: note,
    }
    .within_patience(watch, rules, moment)
}

fn rejected(watch: &Watch, error: String, rules: &Rules, moment: &Moment) -> Decision {
    let rejections = watch.streaks.rejections.saturating_add(1);
    if rejections >= REJECTIONS {
        return Decision::Abandon { reason: Reason::Rejected, asset: None, error: Some(error) };
    }
    Step {
        delay: rules.backoff.delay(rejections, moment.roll),
        streaks: Streaks { rejections, ..watch.streaks },
        missing: watch.missing,
        asset: None,
        error: Some(error),
    }
    .within_patience(watch, rules, moment)
}

/// An upload is not visible at once everywhere, so a 404 gets a grace; its last poll is at the grace's very end.
fn missing(watch: &Watch, error: String, rules: &Rules, moment: &Moment) -> Decision {
    // A first 404 that lies ahead was noted by a clock that was set back while nobody looked.
    let first = watch.missing.filter(|first| first.at <= moment.now || first.base != moment.lost_ms);
    let first = first.unwrap_or(Since { at: moment.now, base: moment.lost_ms });
    let left = rules.missing_grace.saturating_sub(moment.since(first));
    if left.is_zero() {
        return Decision::Abandon { reason: Reason::Missing, asset: None, error: Some(error) };
    }
    let waiting = watch.streaks.waiting.saturating_add(1);
    Step {
        delay: rules.backoff.delay(waiting, moment.roll).min(left),
        streaks: Streaks { waiting, failures: 0, rejections: 0 },
        missing: Some(first),
        asset: None,
        error: Some(error),
    }
    .within_patience(watch, rules, moment)
}

/// A wait that patience has not been asked about yet.
struct Step {
    delay: Duration,
    streaks: Streaks,
    missing: Option<Since>,
    asset: Option<Asset>,
    error: Option<String>,
}

impl Step {
    /// One last poll exactly at the end of patience, and none after it.
    fn within_patience(self, watch: &Watch, rules: &Rules, moment: &Moment) -> Decision {
        let patience = watch.patience.unwrap_or(rules.patience);
        let first = watch.first_polled_at.map(|at| Since { at, base: watch.lost_base.unwrap_or(moment.lost_ms) });
        let followed = first.map_or(Duration::ZERO, |first| moment.since(first));
        let left = patience.saturating_sub(followed);
        if left.is_zero() {
            return Decision::Abandon { reason: Reason::Patience, asset: self.asset, error: self.error };
        }
        Decision::Wait(Wait {
            due_at: moment.now + self.delay.min(left),
            streaks: self.streaks,
            missing: self.missing,
            asset: self.asset,
            error: self.error,
        })
    }
}

/// The watch as it stands after `decision`, and the facts to tell. Its lease is over.
pub fn apply(watch: &Watch, decision: Decision, lost_ms: i64, now: Timestamp) -> (Watch, Vec<Fact>) {
    let mut after = watch.clone();
    after.lease_owner = None;
    after.lease_until = None;
    after.polls = after.polls.saturating_add(1);
    after.first_polled_at.get_or_insert(now);
    after.last_polled_at = Some(now);
    after.lost_base.get_or_insert(lost_ms);
    match decision {
        Decision::Wait(wait) => {
            after.due_at = Some(wait.due_at);
            after.streaks = wait.streaks;
            after.missing = wait.missing;
            after.last_error = wait.error;
            if let Some(asset) = wait.asset {
                seen(&mut after, asset, now);
            }
        }
        Decision::Untouched { due_at, error } => {
            after.due_at = Some(due_at);
            after.last_error = Some(error);
        }
        Decision::Settle { asset, note } => {
            after.asset = asset.over(&watch.asset);
            after.last_error = note;
            end(&mut after, State::Settled, now);
        }
        Decision::Abandon { reason, asset, error } => {
            after.reason = Some(reason);
            after.last_error = error;
            if let Some(asset) = asset {
                seen(&mut after, asset, now);
            }
            end(&mut after, State::Abandoned, now);
        }
    }
    let processing = (watch.processing_at.is_none() && after.processing_at.is_some()).then_some(Fact::Processing);
    let facts = processing.into_iter().chain(Fact::of_end(&after)).collect();
    (after, facts)
}

/// The watch as it stands after the operator stopped it.
pub fn cancelled(watch: &Watch, now: Timestamp) -> Watch {
    let mut after = watch.clone();
    after.lease_owner = None;
    after.lease_until = None;
    end(&mut after, State::Cancelled, now);
    after
}

fn seen(after: &mut Watch, asset: Asset, now: Timestamp) {
    after.waiting_at = Some(now);
    if asset.status.as_deref() == Some("processing") {
        after.processing_at.get_or_insert(now);
    }
    after.asset = asset.over(&after.asset);
}

fn end(after: &mut Watch, state: State, now: Timestamp) {
    after.state = state;
    after.due_at = None;
    after.settled_at = Some(now);
}

/// The gaps after the first attempt of a delivery.
pub const SCHEDULE: [Duration; 11] = {
    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }
    [
        at(5),
        at(30),
        at(2 * 60),
        at(10 * 60),
        at(30 * 60),
        at(2 * 3_600),
        at(5 * 3_600),
        at(10 * 3_600),
        at(14 * 3_600),
        at(20 * 3_600),
        at(24 * 3_600),
    ]
};

/// The longest that a delivery may have to wait for its next attempt, see [`Rules::longest_wait`].
pub fn longest_gap(schedule: &[Duration]) -> Duration {
    let longest = schedule.iter().max().copied().unwrap_or_default().mul_f64(1.0 + LATENESS);
    longest.max(LONGEST_HOLD) + Duration::from_secs(60)
}

/// What to write after an attempt.
#[expect(missing_docs, reason = "each variant's sentence names its fields")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The hook has it.
    Delivered,
    /// It is attempted again.
    Again { due_at: Timestamp, failures: i64, error: String },
    /// It is given up on.
    Dead { error: String },
    /// It waits for a person to change something.
    Held { error: String },
    /// It is due again as it was.
    Interrupted,
}

impl Verdict {
    /// What to write when the hook stands so afterwards: at a disabled one nothing is attempted again by itself.
    pub fn at(self, standing: &Standing) -> Self {
        match (self, &standing.disabled_reason) {
            (Self::Again { error, .. }, Some(_)) => Self::Held { error },
            (verdict, _) => verdict,
        }
    }
}

/// What to write after an attempt at `delivery`; `schedule` holds the gaps after the first attempt.
pub fn after_attempt(
    delivery: &Delivery,
    attempt: &Attempt,
    schedule: &[Duration],
    now: Timestamp,
    roll: f64,
) -> Verdict {
    match &attempt.outcome {
        Outcome::Delivered => Verdict::Delivered,
        Outcome::Refused { error } | Outcome::Gone { error } => Verdict::Dead { error: error.clone() },
        Outcome::Blocked { error } => Verdict::Held { error: error.clone() },
        Outcome::Interrupted => Verdict::Interrupted,
        Outcome::Failed { error, not_before } => {
            let gap = usize::try_from(delivery.failures).ok().and_then(|failures| schedule.get(failures));
            let Some(gap) = gap else { return Verdict::Dead { error: error.clone() } };
            let hold = not_before.map(|wait| wait.min(LONGEST_HOLD));
            Verdict::Again {
                due_at: now + gap.mul_f64(1.0 + LATENESS * roll).max(hold.unwrap_or_default()),
                failures: delivery.failures + 1,
                error: error.clone(),
            }
        }
    }
}

#[cfg(test)]
mod tests;
