//! How long to wait before the next poll of one asset.
//!
//! The growth law is the `backoff` crate's [`ExponentialBackoff`]; its randomization and its give-up are off. Jitter is
//! applied here, from a `roll`, and a watch's patience decides when to stop. The crate appears in this file only.

use std::time::Duration;

use backoff::{SystemClock, backoff::Backoff as _, exponential::ExponentialBackoff};

/// The settings of an exponential backoff.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// The first interval; more than zero.
    pub initial: Duration,
    /// Each interval is the one before it times this; 1 (constant) to 10.
    pub multiplier: f64,
    /// No interval is longer, jitter aside; at least `initial`.
    pub max: Duration,
    /// The share of an interval by which it is shortened or lengthened at random; 0 to 1.
    pub jitter: f64,
}

impl Default for Policy {
    fn default() -> Self {
        Self { initial: Duration::from_secs(2), multiplier: 1.5, max: Duration::from_secs(60), jitter: 0.1 }
    }
}

impl Policy {
    /// The interval after `streak` polls in a row of the same kind (1 for the first), before jitter.
    ///
    /// A row keeps the streak, not the interval: a changed policy then takes effect on the next poll.
    pub fn interval(&self, streak: u32) -> Duration {
        let mut growth = ExponentialBackoff {
            current_interval: self.initial,
            initial_interval: self.initial,
            randomization_factor: 0.0,
            multiplier: self.multiplier,
            max_interval: self.max,
            max_elapsed_time: None,
            ..ExponentialBackoff::<SystemClock>::default()
        };
        for _ in 1..streak {
            let before = growth.current_interval;
            growth.next_backoff();
            if growth.current_interval <= before {
                break; // at the maximum, or constant
            }
        }
        growth.current_interval.clamp(self.initial, self.max)
    }

    /// The delay before the next poll of an asset that is still waiting: the interval, ± `jitter`.
    ///
    /// `roll` is in `0.0..1.0`. Little jitter is enough to break step, and full jitter would cost a third more lateness.
    pub fn delay(&self, streak: u32, roll: f64) -> Duration {
        self.interval(streak).mul_f64(1.0 + self.jitter * (2.0 * roll - 1.0))
    }

    /// The delay after a failure: full jitter, so that those who failed together do not come back together.
    ///
    /// At least a tenth of `initial`, since an unlucky roll must not hammer a server that is in trouble.
    pub fn failure_delay(&self, failures: u32, roll: f64) -> Duration {
        self.interval(failures).mul_f64(roll).max(self.initial / 10)
    }

    /// The longest delay that this policy can give.
    pub fn longest(&self) -> Duration {
        self.max.mul_f64(1.0 + self.jitter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn intervals_grow_to_the_maximum_and_stay() {
        let policy = Policy { multiplier: 2.0, ..Policy::default() };
        let intervals: Vec<u64> = (0..9).map(|streak| policy.interval(streak).as_secs()).collect();
        assert_eq!(intervals, [2, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(policy.interval(u32::MAX), 60 * SECOND);
    }

    #[test]
    fn a_multiplier_of_one_is_constant() {
        let policy = Policy { multiplier: 1.0, ..Policy::default() };
        assert_eq!(policy.interval(u32::MAX), 2 * SECOND);
    }

    #[test]
    fn equal_initial_and_maximum_are_constant() {
        let policy = Policy { initial: SECOND, max: SECOND, ..Policy::default() };
        assert_eq!(policy.interval(7), SECOND);
    }

    #[test]
    fn jitter_stays_within_its_share_and_below_the_longest() {
        let policy = Policy::default();
        assert_eq!(policy.delay(1, 0.0), Duration::from_millis(1_800));
        assert_eq!(policy.delay(1, 0.5), 2 * SECOND);
        assert!(policy.delay(99, 0.999_999) < policy.longest());
    }

    #[test]
    fn failures_spread_over_the_whole_interval_but_never_hammer() {
        let policy = Policy::default();
        assert_eq!(policy.failure_delay(1, 0.0), Duration::from_millis(200));
        assert_eq!(policy.failure_delay(1, 0.5), SECOND);
        assert_eq!(policy.failure_delay(99, 0.5), 30 * SECOND);
    }
}
