//! Tokens for requests, by the generic cell rate algorithm (ITU-T I.371).
//!
//! It needs one instant instead of a bucket to refill, and its rate may change at any time.

use std::time::Duration;

use crate::clock::Tick;

/// One request costs one token; tokens come at a rate, and some are saved while none are used.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    /// Tokens a second, more than zero.
    rate: f64,
    /// So many are saved at most; at least 1.
    burst: f64,
    /// The theoretical arrival time of the next request.
    arrival: Tick,
}

impl Bucket {
    /// A full one, with `rate` tokens a second (more than zero) that saves those of a second.
    pub fn new(rate: f64) -> Self {
        Self { rate, burst: rate.ceil().max(1.0), arrival: Tick::ZERO }
    }

    /// The same one at another rate from `now` on, of which `burst` tokens are saved at most. Tokens that were taken ahead
    /// stay taken, however long they take to come now.
    pub fn at(self, rate: f64, burst: f64, now: Tick) -> Self {
        let ahead = self.arrival.saturating_sub(now).mul_f64(self.rate / rate);
        let arrival = if self.arrival > now { now + ahead } else { self.arrival };
        Self { rate, burst: burst.max(1.0), arrival }
    }

    /// How many tokens there are at `now`.
    pub fn tokens(&self, now: Tick) -> u32 {
        if now < self.opens() {
            return 0;
        }
        let spare = (now + self.saved()).saturating_sub(self.arrival.max(now));
        // The hundredth of a token makes up for the rounding of an interval to whole nanoseconds.
        let tokens = (spare.as_secs_f64() * self.rate + 0.01) as u32;
        tokens.max(1)
    }

    /// When the next token is there, which may be in the past.
    pub fn opens(&self) -> Tick {
        (self.arrival + self.gap()).saturating_sub(self.saved())
    }

    /// Takes tokens, even some that are not there yet: then none are for so much longer.
    pub fn take(&mut self, tokens: u32, now: Tick) {
        self.arrival = self.arrival.max(now) + self.gap() * tokens;
    }

    /// Loses what was saved: the next token is there at `instant`, and one at a time from then on.
    pub fn drain(&mut self, instant: Tick) {
        self.arrival = self.arrival.max((instant + self.saved()).saturating_sub(self.gap()));
    }

    /// The time between two tokens.
    pub fn gap(&self) -> Duration {
        Duration::from_secs_f64(1.0 / self.rate)
    }

    /// How much the requests may run ahead of their gaps.
    fn saved(&self) -> Duration {
        self.gap().mul_f64(self.burst)
    }
}
