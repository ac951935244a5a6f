//! What the API itself says it allows, in the headers of its answers.

use std::time::Duration;

use super::LONGEST_RETRY_AFTER;
use super::learned::SLOWEST;
use crate::clock::Tick;

/// As much as is left may be used twice as fast as it would last: what is saved for later is often not needed, and the
/// less is left, the slower it goes, so that it does not run out.
const AHEAD: f64 = 2.0;
/// What is renewed within this time is not saved for later.
const MOMENTS: Duration = Duration::from_secs(5);
/// For so long a policy holds that an answer has told of: one that is not told of any more is no policy any more.
const POLICY_HOLDS: Duration = Duration::from_secs(60);

/// What one answer says of the quota. Draft-ietf-httpapi-ratelimit-headers calls the three remaining, reset and policy.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Quota {
    /// So many requests are left, and for how long that is so.
    pub left: Option<(u64, Duration)>,
    /// So many requests a second are allowed in the long run.
    pub rate: Option<f64>,
}

/// What is left of it, as far as we know.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Allowance {
    left: u64,
    until: Tick,
    rate: f64,
    rate_until: Tick,
}

impl Allowance {
    /// Hears of it again, while `in_flight` requests are under way that the API had perhaps not counted yet.
    pub fn hear(&mut self, quota: &Quota, in_flight: u32, now: Tick) {
        if let Some(rate) = quota.rate {
            (self.rate, self.rate_until) = (rate.max(SLOWEST), now + POLICY_HOLDS);
        }
        if let Some((left, reset)) = quota.left.filter(|(_, reset)| !reset.is_zero()) {
            // The latest word counts, in a window that slides as in one that ends.
            self.left = left.saturating_sub(in_flight.into());
            self.until = now + reset.min(LONGEST_RETRY_AFTER);
        }
    }

    /// Notes that so many requests were made.
    pub fn use_up(&mut self, requests: u32) {
        self.left = self.left.saturating_sub(requests.into());
    }

    /// At most so many requests at `now`.
    pub fn room(&self, now: Tick) -> u32 {
        if now < self.until { u32::try_from(self.left).unwrap_or(u32::MAX) } else { u32::MAX }
    }

    /// Until when there is nothing left.
    pub fn closed_until(&self, now: Tick) -> Option<Tick> {
        (self.room(now) == 0).then_some(self.until)
    }

    /// The rate at which it lasts.
    pub fn rate(&self, now: Tick) -> f64 {
        let lasting = match self.until.saturating_sub(now) {
            left if left <= MOMENTS => f64::INFINITY,
            left => (AHEAD * self.left as f64 / left.as_secs_f64()).max(SLOWEST),
        };
        if now < self.rate_until { lasting.min(self.rate) } else { lasting }
    }
}
