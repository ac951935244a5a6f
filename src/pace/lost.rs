//! The time that was not the assets': while the account was not asked, and by what the wall clock was set.

use std::time::Duration;

use crate::clock::{Drift, Tick, Timestamp};

/// That the wall clock was set back since this process looks at it; in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetBack {
    /// By how much, all told; negative. No sum can have shrunk by more meanwhile.
    pub ms: i64,
    /// How long ago it happened last.
    pub ago_ms: i64,
    /// The sum right after that.
    pub sum_ms: i64,
}

impl SetBack {
    /// Whether something was noted before it, at which the sum was `base` and since when the wall clock says that
    /// `elapsed` milliseconds have passed. It is longer ago then than this is; what shows less was noted by another
    /// process, whose sum is another one.
    pub fn is_after(&self, base: i64, elapsed: i64) -> bool {
        let ago = elapsed.saturating_add(base.saturating_sub(self.sum_ms));
        ago >= self.ago_ms.saturating_sub(SMALLEST)
    }
}

/// What is rounded, and what passes before a jump is noticed.
const SMALLEST: i64 = 2_000;

/// A sum in milliseconds, of which only differences have a meaning.
#[derive(Clone, Debug, Default)]
pub(super) struct Lost {
    ms: i64,
    /// Since when the account is not asked: it is closed, held, or one after the other.
    since: Option<Tick>,
    /// What the clock was set back by since this process looks at it; not positive.
    set_back_ms: i64,
    /// When it was set back last, and the sum right after that.
    set_back: Option<(Tick, i64)>,
    drift: Drift,
}

impl Lost {
    pub fn new(ms: i64) -> Self {
        Self { ms, ..Self::default() }
    }

    /// The account is not asked from `now` on; `ended` is when it was asked again after the time before.
    pub fn begin(&mut self, now: Tick, ended: Option<Tick>) {
        if let Some(ended) = ended.filter(|ended| *ended <= now) {
            self.end(ended);
        }
        self.since.get_or_insert(now);
    }

    /// It is asked again since `now`.
    pub fn end(&mut self, now: Tick) {
        self.ms = self.at(now);
        self.since = None;
    }

    /// The sum at `now`, at which the account is still not asked, or was asked again.
    pub fn at(&self, now: Tick) -> i64 {
        self.ms.saturating_add(self.since.map_or(0, |since| millis(now.saturating_sub(since))))
    }

    /// Takes in what the wall clock was set by, or for how long the machine slept; whether there was anything.
    pub fn keep_time(&mut self, wall: Timestamp, now: Tick) -> bool {
        let jump = self.drift.jump(wall, now);
        self.ms = self.ms.saturating_add(jump);
        if jump < 0 {
            self.set_back_ms = self.set_back_ms.saturating_add(jump);
            self.set_back = Some((now, self.at(now)));
        }
        jump != 0
    }

    pub fn set_back(&self, now: Tick) -> Option<SetBack> {
        let (at, sum_ms) = self.set_back?;
        Some(SetBack { ms: self.set_back_ms, ago_ms: millis(now.saturating_sub(at)), sum_ms })
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
