//! How fast one account may be polled, and whether at all.
//!
//! The vendor publishes no limits, so the configured rate is a ceiling and the rate in force is found out: cut on a
//! throttle, grown back slowly. Tokens follow the generic cell rate algorithm (ITU-T I.371), which needs one instant
//! instead of a bucket to refill, and whose rate may change at any time. Every instant here is monotonic.

use std::time::Duration;

use crate::clock::Tick;

/// The share of the rate that is kept on a throttle.
const CUT: f64 = 0.7;
/// Throttles that arrive within this time of a cut were caused by the same burst and do not cut again.
const CUT_ONCE_IN: Duration = Duration::from_secs(1);
/// The rate is never cut below one request in 20 seconds.
const SLOWEST: f64 = 0.05;
/// From nothing back to the configured rate takes this many seconds of use.
const REGROWTH: f64 = 300.0;
/// How long a throttle without a Retry-After closes the account.
const BARE_THROTTLE: Duration = Duration::from_secs(1);
/// The longest Retry-After that is believed.
pub const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(3_600);
/// Failures in a row that open the breaker.
const BREAK_AFTER: u32 = 5;
/// Gaps between the probes of an open breaker; the last one repeats.
const BREAKER_PROBES: [Duration; 6] = seconds([2, 4, 8, 15, 30, 60]);
/// Gaps between the probes of a paused account; the last one repeats.
const PAUSE_PROBES: [Duration; 4] = seconds([60, 120, 300, 900]);

const fn seconds<const N: usize>(numbers: [u64; N]) -> [Duration; N] {
    let mut durations = [Duration::ZERO; N];
    let mut at = 0;
    while at < N {
        durations[at] = Duration::from_secs(numbers[at]);
        at += 1;
    }
    durations
}

/// The configured limits of an account.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Requests a second, more than zero; also the burst, rounded up.
    pub rate: f64,
    /// Requests in flight at once, at least 1.
    pub max_in_flight: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { rate: 10.0, max_in_flight: 32 }
    }
}

/// What one poll says about its account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    /// The API answered for the asset.
    Healthy,
    /// The API is there, but this answer says nothing of its health.
    Neutral,
    /// It could not be reached, or broke: counts for the breaker.
    Strained,
    /// It asks for patience; for this long, if it said how long.
    Throttled(Option<Duration>),
    /// Nothing was asked at all.
    Unasked,
    /// 403 for this asset alone: others were answered since the last one.
    Forbidden,
    /// The key was refused.
    Unauthorized,
    /// The account has to be paid.
    Unpaid,
}

/// Why an account is not polled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closure {
    /// 401 or 403: the key was refused.
    Unauthorized,
    /// 402: the account has to be paid.
    Unpaid,
    /// Failures in a row: the breaker is open.
    Broken,
}

impl Closure {
    /// The word in the database, and what it means.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unauthorized => "unauthorized",
            Self::Unpaid => "unpaid",
            Self::Broken => "broken",
        }
    }

    const fn probes(self) -> &'static [Duration] {
        match self {
            Self::Unauthorized | Self::Unpaid => &PAUSE_PROBES,
            Self::Broken => &BREAKER_PROBES,
        }
    }
}

/// A change that is worth a line in the log.
#[expect(missing_docs, reason = "each variant's sentence names its fields")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// The account was closed.
    Closed(Closure),
    /// It is polled again, after having been closed for `lost`.
    Opened { after: Closure, lost: Duration },
}

/// What a claim may take.
#[expect(missing_docs, reason = "each variant's sentence names its fields")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// So many polls now; 0 when all that are allowed are in flight.
    Open(u32),
    /// One poll, to see whether the account works again; of another asset than this one, if there is one.
    Probe { avoid: Option<i64> },
    /// None before this tick.
    Closed(Tick),
}

#[derive(Clone, Debug)]
struct Shut {
    why: Closure,
    since: Tick,
    probes: usize,
    next_probe: Tick,
}

/// The pace of one account.
#[derive(Clone, Debug)]
pub struct Pace {
    limits: Limits,
    rate: f64,
    /// Slow start ends here: below it the rate doubles each second, above it it grows slowly.
    threshold: f64,
    /// The theoretical arrival time of the next request.
    arrival: Tick,
    in_flight: u32,
    not_before: Tick,
    cut_at: Option<Tick>,
    grown_at: Tick,
    strained: u32,
    strained_asset: Option<i64>,
    several_strained: bool,
    shut: Option<Shut>,
    probing: bool,
    last_probed: Option<i64>,
    last_answered: Option<i64>,
    lost: Duration,
}

impl Pace {
    /// An open account at its full rate that has `lost` so much time before.
    pub fn new(limits: Limits, lost: Duration) -> Self {
        Self {
            limits,
            rate: limits.rate,
            threshold: limits.rate,
            arrival: Tick::ZERO,
            in_flight: 0,
            not_before: Tick::ZERO,
            cut_at: None,
            grown_at: Tick::ZERO,
            strained: 0,
            strained_asset: None,
            several_strained: false,
            shut: None,
            probing: false,
            last_probed: None,
            last_answered: None,
            lost,
        }
    }

    /// Takes over changed limits; what was learned stays, as far as it fits.
    pub fn set_limits(&mut self, limits: Limits) {
        let unhindered = self.rate >= self.limits.rate;
        self.limits = limits;
        self.rate = if unhindered { limits.rate } else { self.rate.min(limits.rate) };
        self.threshold = if unhindered { limits.rate } else { self.threshold.min(limits.rate) };
    }

    /// How many polls may be claimed at `now`.
    pub fn room(&self, now: Tick) -> Room {
        if self.in_flight >= self.limits.max_in_flight {
            return Room::Open(0);
        }
        let opens = self.not_before.max(self.token_at());
        if let Some(shut) = &self.shut {
            let opens = opens.max(shut.next_probe);
            return match (self.probing, now < opens) {
                (true, _) => Room::Open(0),
                (false, true) => Room::Closed(opens),
                (false, false) => Room::Probe { avoid: self.last_probed },
            };
        }
        if now < opens {
            return Room::Closed(opens);
        }
        let spare = (now + self.burst()).saturating_sub(self.arrival.max(now));
        // The hundredth of a token makes up for the rounding of an interval to whole nanoseconds.
        let tokens = (spare.as_secs_f64() * self.rate + 0.01) as u32;
        Room::Open(tokens.max(1).min(self.limits.max_in_flight - self.in_flight))
    }

    /// Notes that these watches were claimed at `now`, after [`Pace::room`] allowed it.
    pub fn took(&mut self, watches: &[i64], now: Tick) {
        let count = u32::try_from(watches.len()).unwrap_or(u32::MAX);
        self.arrival = self.arrival.max(now) + self.gap() * count;
        self.in_flight += count;
        if let (Some(_), Some(watch)) = (&self.shut, watches.last()) {
            self.probing = true;
            self.last_probed = Some(*watch);
        }
    }

    /// Notes that a request about `watch` ended without an answer to learn from: it was interrupted.
    pub fn dropped(&mut self, watch: i64) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.probing &= !self.is_probe(watch);
    }

    /// Notes what a poll of `watch` said about the account.
    ///
    /// `alone`: no other watch of this account waits. Then one asset is enough to open the breaker.
    pub fn ended(&mut self, watch: i64, sign: Sign, alone: bool, now: Tick) -> Option<Turn> {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.note_strain(watch, sign);
        match sign {
            Sign::Healthy => {
                self.last_answered = Some(watch);
                self.grow(now);
                self.open(now)
            }
            Sign::Neutral => self.open(now),
            Sign::Unasked => {
                self.probing &= !self.is_probe(watch);
                None
            }
            Sign::Forbidden => {
                // The next 403 counts against its asset only if somebody was answered in between: with a key that has
                // been revoked nobody is, and then the account pauses instead of abandoning all its watches.
                self.last_answered = None;
                self.open(now)
            }
            Sign::Throttled(wait) => {
                self.throttle(wait, now);
                match self.closure() {
                    Some(Closure::Broken) => self.open(now),
                    // Some servers throttle before they look at the key.
                    Some(Closure::Unauthorized | Closure::Unpaid) => self.probe_later(watch, now),
                    None => None,
                }
            }
            Sign::Unauthorized => self.close(Closure::Unauthorized, watch, now),
            Sign::Unpaid => self.close(Closure::Unpaid, watch, now),
            Sign::Strained if self.shut.is_some() => self.probe_later(watch, now),
            Sign::Strained => {
                let enough = self.strained >= BREAK_AFTER && (self.several_strained || alone);
                enough.then(|| self.close(Closure::Broken, watch, now)).flatten()
            }
        }
    }

    /// Looks at once whether a paused account works again: its key has changed, or a person asked for it.
    pub fn probe_now(&mut self) {
        if let Some(shut) = &mut self.shut {
            shut.probes = 0;
            shut.next_probe = Tick::ZERO;
        }
    }

    /// Why the account is closed, if it is.
    pub fn closure(&self) -> Option<Closure> {
        self.shut.as_ref().map(|shut| shut.why)
    }

    /// When the next probe of a closed account is due.
    pub fn next_probe(&self) -> Option<Tick> {
        self.shut.as_ref().map(|shut| shut.next_probe)
    }

    /// Whether another asset than `watch` has been answered since the account was closed or an asset was forbidden.
    pub fn answered_another(&self, watch: i64) -> bool {
        self.last_answered.is_some_and(|answered| answered != watch)
    }

    /// The time that was not the assets': how long the account has been closed, all told.
    pub fn lost(&self, now: Tick) -> Duration {
        self.lost + self.shut.as_ref().map_or(Duration::ZERO, |shut| now.saturating_sub(shut.since))
    }

    /// The rate in force, in requests a second.
    pub fn rate(&self) -> f64 {
        self.rate
    }

    fn gap(&self) -> Duration {
        Duration::from_secs_f64(1.0 / self.rate)
    }

    /// How much the requests may run ahead of their gaps.
    fn burst(&self) -> Duration {
        self.gap().mul_f64(self.limits.rate.min(self.rate).ceil().max(1.0))
    }

    /// When the next token is there.
    fn token_at(&self) -> Tick {
        (self.arrival + self.gap()).saturating_sub(self.burst())
    }

    fn note_strain(&mut self, watch: i64, sign: Sign) {
        if sign != Sign::Strained {
            self.strained = 0;
            self.strained_asset = None;
            self.several_strained = false;
            return;
        }
        self.strained = self.strained.saturating_add(1);
        self.several_strained |= *self.strained_asset.get_or_insert(watch) != watch;
    }

    fn throttle(&mut self, wait: Option<Duration>, now: Tick) {
        let wait = wait.map_or(BARE_THROTTLE, |wait| wait.min(LONGEST_RETRY_AFTER));
        self.not_before = self.not_before.max(now + wait);
        if self.cut_at.is_none_or(|cut_at| now.saturating_sub(cut_at) >= CUT_ONCE_IN) {
            self.rate = (self.rate * CUT).max(SLOWEST.min(self.limits.rate));
            self.threshold = self.rate;
            self.cut_at = Some(now);
            self.grown_at = now;
        }
    }

    /// A share of the growth for each answer, so that an unused limit does not grow.
    fn grow(&mut self, now: Tick) {
        if self.rate >= self.limits.rate {
            return;
        }
        if self.rate < self.threshold {
            // One more request a second for each answer: twice the rate after each second.
            self.rate = (self.rate + 1.0).min(self.threshold);
        } else {
            let elapsed = now.saturating_sub(self.grown_at).min(Duration::from_secs(1));
            self.rate += self.limits.rate / REGROWTH * elapsed.as_secs_f64();
        }
        self.grown_at = now;
        self.rate = self.rate.min(self.limits.rate);
    }

    fn close(&mut self, why: Closure, watch: i64, now: Tick) -> Option<Turn> {
        self.last_answered = None;
        match &mut self.shut {
            Some(shut) if shut.why == why => self.probe_later(watch, now),
            Some(shut) => {
                // A breaker that was open, and now the key is refused: another reason, and still the same closed time.
                shut.why = why;
                shut.probes = 0;
                self.probe_later(watch, now);
                Some(Turn::Closed(why))
            }
            None => {
                self.probing = false;
                // It was asked for just now, so the first probe is of another one.
                self.last_probed = Some(watch);
                self.shut = Some(Shut { why, since: now, probes: 1, next_probe: now + why.probes()[0] });
                Some(Turn::Closed(why))
            }
        }
    }

    /// Only a probe moves the next one: what was in flight when the account closed says nothing new.
    fn probe_later(&mut self, watch: i64, now: Tick) -> Option<Turn> {
        if !self.is_probe(watch) {
            return None;
        }
        self.probing = false;
        if let Some(shut) = &mut self.shut {
            let gaps = shut.why.probes();
            shut.next_probe = now + gaps[shut.probes.min(gaps.len() - 1)];
            shut.probes += 1;
        }
        None
    }

    /// Older requests may still be in flight beside the probe.
    fn is_probe(&self, watch: i64) -> bool {
        self.probing && self.last_probed == Some(watch)
    }

    fn open(&mut self, now: Tick) -> Option<Turn> {
        self.probing = false;
        let shut = self.shut.take()?;
        let lost = now.saturating_sub(shut.since);
        self.lost += lost;
        if shut.why == Closure::Broken {
            self.threshold = self.rate;
            self.rate = (self.rate / 10.0).max(1.0).min(self.rate);
            self.arrival = now + self.burst().saturating_sub(self.gap());
        }
        Some(Turn::Opened { after: shut.why, lost })
    }
}

#[cfg(test)]
mod tests;
