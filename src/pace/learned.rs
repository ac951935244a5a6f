//! The rate in force while the API does not say what it allows: cut on a throttle, grown back slowly.
//!
//! Additive increase and multiplicative decrease, as congestion control does it (Chiu and Jain 1989), so that several
//! who share a limit end up with equal shares of it.

use std::time::Duration;

use crate::clock::Tick;

/// The share of the rate that is kept on a throttle.
const CUT: f64 = 0.7;
/// Throttles that arrive within this time of a cut were caused by the same burst and do not cut again.
const CUT_ONCE_IN: Duration = Duration::from_secs(1);
/// The rate is never cut below one request in 20 seconds.
pub(super) const SLOWEST: f64 = 0.05;
/// From nothing back to the configured rate takes this many seconds of use.
const REGROWTH: f64 = 300.0;
/// The most that is made up for at once, however far apart two answers are.
const LONGEST_STEP: Duration = Duration::from_secs(1);
/// Requests that are further apart than so many of their gaps do not use the limit.
const IN_USE: f64 = 2.5;

/// A rate, never above the configured one.
#[derive(Clone, Debug)]
pub(super) struct Learned {
    configured: f64,
    rate: f64,
    /// Slow start ends here: below it the rate doubles each second, above it it grows slowly.
    threshold: f64,
    cut_at: Option<Tick>,
    grown_at: Tick,
}

impl Learned {
    /// Begins with what was learned before, if anything was.
    pub fn new(configured: f64, before: Option<f64>) -> Self {
        let slowest = SLOWEST.min(configured);
        let rate = before.filter(|rate| rate.is_finite()).map_or(configured, |rate| rate.clamp(slowest, configured));
        Self { configured, rate, threshold: rate, cut_at: None, grown_at: Tick::ZERO }
    }

    /// Requests a second.
    pub fn rate(&self) -> f64 {
        self.rate
    }

    /// Whether the API wants less than the configured rate.
    pub fn is_limited(&self) -> bool {
        self.rate < self.configured
    }

    /// The rate that was found out, where it is below the configured one; a slow start is on the way to it.
    pub fn found(&self) -> Option<f64> {
        let found = self.rate.max(self.threshold);
        (found < self.configured).then_some(found)
    }

    /// Takes over another configured rate; what was learned stays, as far as it fits.
    pub fn configure(&mut self, configured: f64) {
        let unhindered = self.found().is_none();
        self.configured = configured;
        self.rate = if unhindered { configured } else { self.rate.min(configured) };
        self.threshold = if unhindered { configured } else { self.threshold.min(configured) };
    }

    /// The API asked for less. Whether the rate was cut: once for each burst.
    pub fn cut(&mut self, now: Tick) -> bool {
        let cuts = self.cut_at.is_none_or(|cut_at| now.saturating_sub(cut_at) >= CUT_ONCE_IN);
        if cuts {
            self.rate = (self.rate * CUT).max(SLOWEST.min(self.configured));
            self.threshold = self.rate;
            self.cut_at = Some(now);
            self.grown_at = now;
        }
        cuts
    }

    /// The API answered. Only a limit that is in use grows: an unused one has not been shown to be too low.
    pub fn grow(&mut self, now: Tick) {
        if !self.is_limited() {
            return;
        }
        let elapsed = now.saturating_sub(self.grown_at);
        if self.rate < self.threshold {
            // One more request a second for each answer: twice the rate after each second.
            self.rate = (self.rate + 1.0).min(self.threshold);
        } else if elapsed.as_secs_f64() * self.rate <= IN_USE {
            self.rate += self.configured / REGROWTH * elapsed.min(LONGEST_STEP).as_secs_f64();
        }
        self.grown_at = now;
        self.rate = self.rate.min(self.configured);
    }

    /// After an outage: a tenth of the rate, and soon the whole of it.
    pub fn start_slowly(&mut self) {
        self.threshold = self.threshold.max(self.rate);
        self.rate = (self.rate / 10.0).max(1.0).min(self.rate);
    }
}
