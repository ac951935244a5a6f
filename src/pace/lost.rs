//! The time that was not the assets': while the account was not asked, and by what the wall clock was set.

use std::time::Duration;

use crate::clock::{Drift, Tick, Timestamp};

/// How the wall clock was set since this process looks at it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Jumps {
    /// That it was set back, if it was.
    pub back: Option<SetBack>,
    /// How it was set forward, since it was set back last.
    pub ahead: Vec<SetAhead>,
}

/// That the wall clock was set forward, or the machine slept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetAhead {
    /// What it would have shown then, and showed before.
    pub from: Timestamp,
    /// By so many milliseconds.
    pub ms: i64,
}

/// That the wall clock was set back since this process looks at it; in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetBack {
    /// By how much, all told; negative.
    pub ms: i64,
    /// How long ago it happened last.
    pub ago_ms: i64,
    /// The sum right after that.
    pub sum_ms: i64,
}

impl Jumps {
    /// No sum of lost time has changed by less since something was noted at `at`, at which the sum was `base`, and since
    /// when the wall clock says that `elapsed` milliseconds have passed. It matters where another process noted it, whose
    /// account was closed while ours was not.
    pub fn least(&self, at: Timestamp, base: i64, elapsed: i64) -> i64 {
        let back = self.back.filter(|back| back.is_after(base, elapsed)).map_or(0, |back| back.ms);
        self.ahead.iter().filter(|ahead| at <= ahead.from).fold(back, |sum, ahead| sum.saturating_add(ahead.ms))
    }
}

impl SetBack {
    /// Whether something was noted before it. It is longer ago then than this is; what shows less was noted by another
    /// process, whose sum is another one.
    fn is_after(&self, base: i64, elapsed: i64) -> bool {
        let ago = elapsed.saturating_add(base.saturating_sub(self.sum_ms));
        ago >= self.ago_ms.saturating_sub(SMALLEST)
    }
}

/// What is rounded, and what passes before a jump is noticed.
const SMALLEST: i64 = 2_000;
/// So many jumps ahead are remembered one by one.
const MOST_AHEAD: usize = 64;

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
    /// How it was set forward since then.
    ahead: Vec<SetAhead>,
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
            // What it shows now it has shown before, so it does not tell any more what came before what.
            self.ahead.clear();
        }
        if jump > 0 {
            let dropped = self.ahead.len().saturating_sub(MOST_AHEAD - 1);
            self.ahead.drain(..dropped);
            let from = Timestamp::from_millis(wall.as_millis().saturating_sub(jump));
            self.ahead.push(SetAhead { from, ms: jump });
        }
        jump != 0
    }

    pub fn jumps(&self, now: Tick) -> Jumps {
        let set_back = |(at, sum_ms)| SetBack { ms: self.set_back_ms, ago_ms: millis(now.saturating_sub(at)), sum_ms };
        Jumps { back: self.set_back.map(set_back), ahead: self.ahead.clone() }
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
