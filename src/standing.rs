//! How a hook stands: what its attempts have said about it, and what may be attempted therefore.

use std::time::Duration;

use serde::Serialize;

use crate::clock::Timestamp;
use crate::delivery::Outcome;
use crate::event::CALLBACK;

/// Failures in a row, over all deliveries of a hook, that open its breaker.
const BREAK_AFTER: i64 = 5;
/// Gaps between the probes of an open breaker; the last one repeats. A restarted receiver is found within seconds, and one
/// that is down for a night costs it a request a minute, whatever waits.
const PROBES: [Duration; 5] = [
    Duration::from_secs(5),
    Duration::from_secs(10),
    Duration::from_secs(20),
    Duration::from_secs(40),
    Duration::from_secs(60),
];
const LONGEST_PROBE: Duration = PROBES[PROBES.len() - 1];
/// Nothing but failures for so long disables a hook: longer than a weekend and the whole schedule of one delivery.
const DISABLE_AFTER: Duration = Duration::from_secs(5 * 24 * 3_600);
/// The longest Retry-After of a receiver that is believed.
pub const LONGEST_HOLD: Duration = Duration::from_secs(24 * 3_600);
/// What lies further ahead than it may, by more than this, was written by a clock that has been set back since.
const LEEWAY: Duration = Duration::from_secs(60);

/// One row of `hooks`: what is known of a hook, or of the lane of callbacks to one origin, beyond its configuration. As
/// JSON it has the names of the columns.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Standing {
    /// The configuration's name for it, or the lane of callbacks.
    pub name: String,
    /// Since when nothing is attempted.
    pub disabled_at: Option<Timestamp>,
    /// Why.
    pub disabled_reason: Option<String>,
    /// The receiver asked to be left alone until then.
    pub held_until: Option<Timestamp>,
    /// Failed attempts in a row, over all of its deliveries; what was in flight when the breaker opened is not counted.
    pub failures: i64,
    /// The first of them.
    pub failing_since: Option<Timestamp>,
    /// With an open breaker: when one attempt is made to see whether it works again.
    pub next_probe_at: Option<Timestamp>,
    /// The latest attempt that delivered.
    pub last_success_at: Option<Timestamp>,
    /// What the latest failed attempt brought; until one delivers.
    pub last_error: Option<String>,
}

/// What a claim may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// What there is room for.
    Open,
    /// One attempt, while no other is under way, to see whether the hook works again.
    Probe,
    /// Nothing before then.
    Closed(Timestamp),
    /// Nothing until a person enables the hook.
    Disabled,
}

/// A change that is worth a line in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Nothing is attempted any more.
    Disabled,
    /// The breaker opened: one attempt at a time.
    Broken,
    /// It works again.
    Mended,
}

impl Standing {
    /// A hook of which nothing is known yet.
    pub fn new(name: &str) -> Self {
        Self { name: name.into(), ..Self::default() }
    }

    /// What may be attempted at `now`.
    pub fn room(&self, now: Timestamp) -> Room {
        let ahead = |instant: Option<Timestamp>, longest| instant.filter(|at| *at > now && *at <= now + longest);
        let hold = ahead(self.held_until, LONGEST_HOLD + LEEWAY);
        let probe = ahead(self.next_probe_at, LONGEST_PROBE + LEEWAY);
        match hold.max(probe) {
            _ if self.disabled_at.is_some() => Room::Disabled,
            Some(until) => Room::Closed(until),
            None if self.next_probe_at.is_some() => Room::Probe,
            None => Room::Open,
        }
    }

    /// How the hook stands after an attempt that brought `outcome`, and whether that is worth a line.
    pub fn after(&self, outcome: &Outcome, now: Timestamp) -> (Self, Option<Turn>) {
        let after = match outcome {
            Outcome::Delivered => Self { last_success_at: Some(now), last_error: None, ..self.answered() },
            Outcome::Failed { error, not_before } => self.failed(error, *not_before, now),
            // It is there, and has an answer of its own for this event.
            Outcome::Refused { error } => Self { last_error: Some(error.clone()), ..self.answered() },
            Outcome::Gone { .. } if self.is_callback() => self.answered(),
            Outcome::Gone { error } => self.disabled(error, now),
            // It says nothing of the receiver; but a person who looks wants to know.
            Outcome::Blocked { error } if !self.is_callback() => {
                Self { last_error: Some(error.clone()), ..self.clone() }
            }
            Outcome::Blocked { .. } | Outcome::Interrupted => self.clone(),
        };
        let turn = match (self, &after) {
            (before, after) if before.disabled_at.is_none() && after.disabled_at.is_some() => Some(Turn::Disabled),
            (before, after) if before.next_probe_at.is_none() && after.next_probe_at.is_some() => Some(Turn::Broken),
            (before, after) if before.next_probe_at.is_some() && after.next_probe_at.is_none() => Some(Turn::Mended),
            _ => None,
        };
        (after, turn)
    }

    /// The streak is over. That the receiver asked to be left alone still holds.
    fn answered(&self) -> Self {
        Self { failures: 0, failing_since: None, next_probe_at: None, ..self.clone() }
    }

    fn failed(&self, error: &str, not_before: Option<Duration>, now: Timestamp) -> Self {
        let mut after = Self { last_error: Some(error.into()), ..self.clone() };
        if let Some(wait) = not_before.filter(|wait| !wait.is_zero()) {
            let believed = self.held_until.filter(|until| *until <= now + LONGEST_HOLD + LEEWAY);
            after.held_until = believed.max(Some(now + wait.min(LONGEST_HOLD)));
        }
        // What was in flight when the breaker opened says nothing new, and puts off no probe.
        let is_early = self.next_probe_at.is_some_and(|probe| now < probe && probe <= now + LONGEST_PROBE + LEEWAY);
        if is_early {
            return after;
        }
        after.failures = self.failures.saturating_add(1);
        // A first failure that lies ahead was noted by a clock that has been set back since.
        let since = self.failing_since.filter(|since| *since <= now).unwrap_or(now);
        after.failing_since = Some(since);
        if let Ok(probes) = usize::try_from(after.failures - BREAK_AFTER) {
            after.next_probe_at = Some(now + PROBES[probes.min(PROBES.len() - 1)]);
        }
        let is_lasting = after.failures >= BREAK_AFTER && now.since(since) >= DISABLE_AFTER;
        if is_lasting && !self.is_callback() {
            let days = DISABLE_AFTER.as_secs() / (24 * 3_600);
            return after.disabled(&format!("nothing but failures for {days} days; the last one: {error}"), now);
        }
        after
    }

    fn disabled(&self, reason: &str, now: Timestamp) -> Self {
        let reason = self.disabled_reason.clone().unwrap_or_else(|| reason.into());
        Self {
            disabled_at: Some(self.disabled_at.unwrap_or(now)),
            disabled_reason: Some(reason.clone()),
            last_error: Some(reason),
            ..self.clone()
        }
    }

    /// Many share the lane of an origin: what one of them is told must not be the end of the others.
    fn is_callback(&self) -> bool {
        self.name.starts_with(CALLBACK)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_790_000_000_000);
    const SECOND: Duration = Duration::from_secs(1);
    const DAY: Duration = Duration::from_secs(86_400);

    fn failed(not_before: Option<Duration>) -> Outcome {
        Outcome::Failed { error: "503".into(), not_before }
    }

    fn gone() -> Outcome {
        Outcome::Gone { error: "410".into() }
    }

    /// A hook after so many failures, all just now.
    fn after_failures(count: i64) -> Standing {
        let once = |standing: Standing, _| standing.after(&failed(None), NOW).0;
        (0..count).fold(Standing::new("cms"), once)
    }

    #[test]
    fn five_failures_in_a_row_open_the_breaker_and_one_success_closes_it() {
        assert_eq!(after_failures(4).room(NOW), Room::Open);
        let (open, turn) = after_failures(4).after(&failed(None), NOW);
        assert_eq!((open.failures, open.room(NOW), turn), (5, Room::Closed(NOW + 5 * SECOND), Some(Turn::Broken)));
        assert_eq!(open.room(NOW + 5 * SECOND), Room::Probe);
        let (closed, turn) = open.after(&Outcome::Delivered, NOW + DAY);
        assert_eq!(turn, Some(Turn::Mended));
        let healthy = Standing { last_success_at: Some(NOW + DAY), ..Standing::new("cms") };
        assert_eq!(closed, healthy);
    }

    #[test]
    fn probes_come_at_growing_gaps_and_early_failures_move_none() {
        let (mut standing, mut now) = (after_failures(5), NOW);
        for gap in [5, 10, 20, 40, 60, 60, 60] {
            assert_eq!(standing.next_probe_at, Some(now + gap * SECOND));
            let (same, _) = standing.after(&failed(None), now + (gap - 1) * SECOND);
            assert_eq!(same, standing, "it was in flight when the breaker opened");
            now = now + gap * SECOND;
            standing = standing.after(&failed(None), now).0;
        }
    }

    #[test]
    fn a_hold_is_for_the_whole_hook_and_at_most_a_day() {
        for (asked, held) in [(1, 1), (3_600, 3_600), (999_999, 86_400)] {
            let (standing, _) = Standing::new("cms").after(&failed(Some(asked * SECOND)), NOW);
            assert_eq!(standing.room(NOW), Room::Closed(NOW + held * SECOND));
            assert_eq!(standing.room(NOW + held * SECOND), Room::Open);
        }
        let (held, _) = Standing::new("cms").after(&failed(Some(60 * SECOND)), NOW);
        assert_eq!(held.after(&failed(Some(SECOND)), NOW).0.held_until, held.held_until, "the longer one holds");
        assert_eq!(
            held.after(&Outcome::Delivered, NOW).0.held_until,
            held.held_until,
            "what was in flight changes none"
        );
        assert_eq!(Standing::new("cms").after(&failed(Some(Duration::ZERO)), NOW).0.held_until, None);
    }

    #[test]
    fn a_clock_that_was_set_back_closes_nothing_for_long() {
        let standing = Standing { held_until: Some(NOW + 2 * DAY), ..Standing::new("cms") };
        assert_eq!(standing.room(NOW), Room::Open);
        let (standing, _) = standing.after(&failed(Some(SECOND)), NOW);
        assert_eq!(standing.room(NOW), Room::Closed(NOW + SECOND));
        let open = Standing { next_probe_at: Some(NOW + DAY), ..after_failures(5) };
        assert_eq!(open.room(NOW), Room::Probe);
        assert_eq!(open.after(&failed(None), NOW).0.room(NOW), Room::Closed(NOW + 10 * SECOND), "a probe counts");
        let ahead = Standing { failing_since: Some(NOW + DAY), failures: 1, ..Standing::new("cms") };
        assert_eq!(ahead.after(&failed(None), NOW).0.failing_since, Some(NOW));
    }

    #[test]
    fn nothing_but_failures_for_five_days_disables_a_hook_and_no_callback() {
        let few = after_failures(2);
        assert_eq!(few.after(&failed(None), NOW + 9 * DAY).1, None, "two failures are not five days of them");
        let first = after_failures(6);
        assert_eq!(first.after(&failed(None), NOW + (5 * DAY - SECOND)).1, None);
        let (disabled, turn) = first.after(&failed(None), NOW + 5 * DAY);
        assert_eq!((disabled.room(NOW), turn), (Room::Disabled, Some(Turn::Disabled)));
        let reason = "nothing but failures for 5 days; the last one: 503";
        assert_eq!((disabled.disabled_at, disabled.disabled_reason.as_deref()), (Some(NOW + 5 * DAY), Some(reason)));
        let callback = Standing { name: "callback:https://a.example".into(), ..first };
        assert_eq!(callback.after(&failed(None), NOW + 9 * DAY).0.disabled_at, None);
    }

    #[test]
    fn a_receiver_that_is_gone_disables_its_hook_and_no_callback() {
        let (disabled, turn) = Standing::new("cms").after(&gone(), NOW);
        assert_eq!((disabled.disabled_at, disabled.disabled_reason.as_deref()), (Some(NOW), Some("410")));
        assert_eq!(turn, Some(Turn::Disabled));
        assert_eq!(disabled.after(&gone(), NOW + SECOND), (disabled.clone(), None), "said once");
        assert_eq!(disabled.after(&Outcome::Delivered, NOW).0.room(NOW), Room::Disabled, "what was in flight");
        let callback = Standing::new("callback:https://a.example");
        assert_eq!(callback.after(&gone(), NOW), (callback.clone(), None));
    }

    #[test]
    fn what_says_nothing_of_the_hook_changes_nothing() {
        for standing in [after_failures(3), after_failures(6)] {
            assert_eq!(standing.after(&Outcome::Interrupted, NOW), (standing.clone(), None));
            let noted = Standing { last_error: Some("no".into()), ..standing.clone() };
            assert_eq!(standing.after(&Outcome::Blocked { error: "no".into() }, NOW), (noted, None), "but what it was");
        }
        let (standing, turn) = after_failures(6).after(&Outcome::Refused { error: "exit 100".into() }, NOW);
        assert_eq!((standing.failures, standing.room(NOW), turn), (0, Room::Open, Some(Turn::Mended)));
    }
}
