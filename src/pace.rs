//! How fast one account may be polled, and whether at all.
//!
//! The vendor publishes no limits, so the configured rate is a ceiling and the rate in force is found out: from what the
//! API says of its quota, and else from its throttling. Every instant here is
//! monotonic.

mod bucket;
mod learned;
mod lost;
mod quota;

use std::time::Duration;

use crate::clock::{Tick, Timestamp};

pub use bucket::Bucket;
pub use lost::{Jumps, SetAhead, SetBack};
pub use quota::Quota;

use learned::Learned;
use lost::Lost;
use quota::Allowance;

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
    /// Whoever answers there cannot show a valid certificate.
    Untrusted,
    /// It asks for patience; for this long, if it said how long.
    Throttled(Option<Duration>),
    /// Nothing was asked at all.
    Unasked,
    /// 403 for this asset alone: others were answered since the last one.
    Forbidden,
    /// 403, and nobody was answered since the last one: the asset's or the key's.
    Doubtful,
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
    /// The certificate is not valid: it is not known who answers there, and nobody is told the key.
    Untrusted,
    /// Failures in a row: the breaker is open.
    Broken,
}

impl Closure {
    /// The word in the database, and what it means.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unauthorized => "unauthorized",
            Self::Unpaid => "unpaid",
            Self::Untrusted => "untrusted",
            Self::Broken => "broken",
        }
    }

    /// The closure that `word` names.
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Unauthorized, Self::Unpaid, Self::Untrusted, Self::Broken].into_iter().find(|why| why.as_str() == word)
    }

    /// Whether a person has to do something about it; a broken API is somebody else's to mend.
    pub const fn is_pause(self) -> bool {
        !matches!(self, Self::Broken)
    }

    const fn probes(self) -> &'static [Duration] {
        match self {
            Self::Unauthorized | Self::Unpaid | Self::Untrusted => &PAUSE_PROBES,
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
    /// The API throttled, for the first time since it was polled at the configured rate.
    Slowed,
}

/// What a claim may take.
#[expect(missing_docs, reason = "each variant's sentence names its fields")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// So many polls now; 0 when all that are allowed are in flight.
    Open(u32),
    /// One poll, to see whether the account works again: of `prefer` if that is due, which was answered before, and else
    /// of another one than `avoid`, if there is one.
    Probe { avoid: Option<i64>, prefer: Option<i64> },
    /// None before this tick.
    Closed(Tick),
}

#[derive(Clone, Debug)]
struct Shut {
    why: Closure,
    since: Tick,
    /// For how long it had been closed when this process took it over.
    before: Duration,
    probes: usize,
    next_probe: Tick,
}

/// How an account stands, for those who look from outside.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Standing {
    /// Why and for how long it has been closed, and when it is tried again.
    pub closed: Option<(Closure, Duration, Tick)>,
    /// The learned rate, where it is below the configured one.
    pub rate: Option<f64>,
    /// The API asked to be left alone until then.
    pub held_until: Option<Tick>,
    /// The time that was not the assets', in milliseconds, without that of the present closure.
    pub lost_ms: i64,
}

/// How much is asked of an account.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Load {
    /// As configured.
    pub limits: Limits,
    /// The rate in force, in requests a second.
    pub rate: f64,
    /// Requests in flight.
    pub in_flight: u32,
}

/// The pace of one account.
#[derive(Clone, Debug)]
pub struct Pace {
    limits: Limits,
    learned: Learned,
    bucket: Bucket,
    allowance: Allowance,
    in_flight: u32,
    not_before: Tick,
    strained: Streak,
    doubted: Streak,
    shut: Option<Shut>,
    probing: bool,
    last_probed: Option<i64>,
    /// Who was answered last, since the account was closed or an asset was forbidden.
    last_answered: Option<i64>,
    /// Who was answered last of all.
    last_good: Option<i64>,
    lost: Lost,
}

/// Polls in a row of which each said the same.
#[derive(Clone, Copy, Debug, Default)]
struct Streak {
    length: u32,
    first: Option<i64>,
    /// Whether they were of several assets.
    several: bool,
}

impl Streak {
    /// Whether it is long enough to blame the account. One asset may be to blame itself, unless it is the only one.
    fn note(&mut self, watch: i64, alone: bool) -> bool {
        self.length = self.length.saturating_add(1);
        self.several |= *self.first.get_or_insert(watch) != watch;
        self.length >= BREAK_AFTER && (self.several || alone)
    }
}

/// What an earlier process has found out of an account.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Known {
    /// The learned rate, in requests a second.
    pub rate: Option<f64>,
    /// The API asked to be left alone until then.
    pub held_until: Tick,
    /// See [`Pace::lost_ms`].
    pub lost_ms: i64,
    /// Why and for how long it has been closed.
    pub closed: Option<(Closure, Duration)>,
}

impl Pace {
    /// An open account with nothing behind it.
    pub fn new(limits: Limits) -> Self {
        Self::resumed(limits, &Known::default(), Tick::ZERO)
    }

    /// An account that goes on at `now` with what was known of it. One that was closed is tried at once, with one probe.
    pub fn resumed(limits: Limits, known: &Known, now: Tick) -> Self {
        let shut = |(why, before)| Shut { why, since: now, before, probes: 0, next_probe: Tick::ZERO };
        let mut pace = Self {
            limits,
            learned: Learned::new(limits.rate, known.rate),
            bucket: Bucket::new(limits.rate),
            allowance: Allowance::default(),
            in_flight: 0,
            not_before: known.held_until,
            strained: Streak::default(),
            doubted: Streak::default(),
            shut: known.closed.map(shut),
            probing: false,
            last_probed: None,
            last_answered: None,
            last_good: None,
            lost: Lost::new(known.lost_ms),
        };
        if pace.shut.is_some() || pace.not_before > now {
            pace.lost.begin(now, None);
        }
        pace
    }

    /// Takes over changed limits; what was learned stays, as far as it fits.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
        self.learned.configure(limits.rate);
    }

    /// How many polls may be claimed at `now`.
    pub fn room(&self, now: Tick) -> Room {
        if self.in_flight >= self.limits.max_in_flight {
            return Room::Open(0);
        }
        let bucket = self.bucket(now);
        let opens = self.not_before.max(bucket.opens());
        let opens = self.allowance.closed_until(now).map_or(opens, |until| opens.max(until));
        if let Some(shut) = &self.shut {
            let opens = opens.max(shut.next_probe);
            return match (self.probing, now < opens) {
                (true, _) => Room::Open(0),
                (false, true) => Room::Closed(opens),
                (false, false) => {
                    let (avoid, good) = (self.last_probed, self.last_good);
                    Room::Probe { avoid, prefer: good.filter(|good| avoid != Some(*good)) }
                }
            };
        }
        if now < opens {
            return Room::Closed(opens);
        }
        let slots = self.limits.max_in_flight - self.in_flight;
        Room::Open(bucket.tokens(now).min(self.allowance.room(now)).min(slots))
    }

    /// Notes that these watches were claimed at `now`, after [`Pace::room`] allowed it.
    pub fn took(&mut self, watches: &[i64], now: Tick) {
        let count = u32::try_from(watches.len()).unwrap_or(u32::MAX);
        self.bucket = self.bucket(now);
        self.bucket.take(count, now);
        self.allowance.use_up(count);
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

    /// Notes what an answer said of the API's quota. It is heard of before the poll has [`Pace::ended`].
    ///
    /// What looks used up is left alone until its reset, whatever is heard until then: answers come in any order, and one
    /// that was on its way for longer tells of more than is left. So a window may be left with as many requests as were in
    /// flight, and never with too few.
    pub fn heard(&mut self, quota: &Quota, now: Tick) {
        self.allowance.hear(quota, self.in_flight.saturating_sub(1), now);
        if let Some(until) = self.allowance.closed_until(now) {
            self.hold(until, now);
        }
    }

    /// Notes what a poll of `watch` said about the account.
    ///
    /// `alone`: no other watch of this account waits. Then one asset is enough to open the breaker.
    pub fn ended(&mut self, watch: i64, sign: Sign, alone: bool, now: Tick) -> Option<Turn> {
        self.in_flight = self.in_flight.saturating_sub(1);
        if sign != Sign::Strained {
            self.strained = Streak::default();
        }
        match sign {
            Sign::Healthy => {
                (self.last_answered, self.last_good) = (Some(watch), Some(watch));
                self.doubted = Streak::default();
                self.learned.grow(now);
                self.open(watch, now)
            }
            Sign::Neutral => {
                self.doubted = Streak::default();
                self.learned.grow(now);
                self.open(watch, now)
            }
            Sign::Unasked => {
                self.probing &= !self.is_probe(watch);
                None
            }
            Sign::Forbidden => {
                // The next 403 counts against its asset only if somebody was answered in between: with a key that has
                // been revoked nobody is, and then the account pauses instead of abandoning all its watches.
                self.last_answered = None;
                self.open(watch, now)
            }
            Sign::Doubtful => {
                let enough = self.doubted.note(watch, alone) || alone;
                if enough || self.shut.is_some() { self.close(Closure::Unauthorized, watch, now) } else { None }
            }
            Sign::Throttled(wait) => {
                let slowed = self.throttle(wait, now);
                match self.closure() {
                    Some(Closure::Broken | Closure::Untrusted) => self.open(watch, now),
                    // Some servers throttle before they look at the key.
                    Some(Closure::Unauthorized | Closure::Unpaid) => self.probe_later(watch, now),
                    None => slowed,
                }
            }
            Sign::Untrusted => self.close(Closure::Untrusted, watch, now),
            Sign::Unauthorized => self.close(Closure::Unauthorized, watch, now),
            Sign::Unpaid => self.close(Closure::Unpaid, watch, now),
            Sign::Strained if self.shut.is_some() => self.probe_later(watch, now),
            Sign::Strained => {
                let enough = self.strained.note(watch, alone);
                enough.then(|| self.close(Closure::Broken, watch, now)).flatten()
            }
        }
    }

    /// Looks at once whether a paused account works again: its key has changed, or a person asked for it.
    pub fn probe_now(&mut self) {
        if let Some(shut) = &mut self.shut {
            shut.probes = 0;
            shut.next_probe = Tick::ZERO;
            // One that is under way was asked with the old key, and says nothing of the new one.
            self.probing = false;
            self.last_probed = None;
        }
    }

    /// Why the account is closed, if it is.
    pub fn closure(&self) -> Option<Closure> {
        self.shut.as_ref().map(|shut| shut.why)
    }

    /// How the account stands.
    pub fn standing(&self, now: Tick) -> Standing {
        let closed = self.shut.as_ref();
        Standing {
            closed: closed.map(|shut| (shut.why, shut.before + now.saturating_sub(shut.since), shut.next_probe)),
            rate: self.learned.found(),
            held_until: (self.not_before > now).then_some(self.not_before),
            lost_ms: closed.map_or_else(|| self.lost_ms(now), |shut| self.lost.at(shut.since)),
        }
    }

    /// How much is asked of the account.
    pub fn load(&self, now: Tick) -> Load {
        Load { limits: self.limits, rate: self.rate(now), in_flight: self.in_flight }
    }

    /// Whether another asset than `watch` has been answered since the account was closed or an asset was forbidden.
    pub fn answered_another(&self, watch: i64) -> bool {
        self.last_answered.is_some_and(|answered| answered != watch)
    }

    /// The time that was not the assets', in milliseconds: how long the account was closed or held, and by how much the wall
    /// clock ran ahead of the monotonic one; less what it was set back by. Only differences have a meaning.
    pub fn lost_ms(&self, now: Tick) -> i64 {
        self.lost.at(self.asked_again().map_or(now, |again| again.min(now)))
    }

    /// How the wall clock was set since this process looks at it.
    pub fn jumps(&self, now: Tick) -> Jumps {
        self.lost.jumps(now)
    }

    /// Compares the clocks, and says whether the wall clock was set or the machine slept: nothing of that was an asset's
    /// time.
    pub fn keep_time(&mut self, wall: Timestamp, now: Tick) -> bool {
        self.lost.keep_time(wall, now)
    }

    /// When an account that is held is asked again; not known while it is closed.
    fn asked_again(&self) -> Option<Tick> {
        self.shut.is_none().then_some(self.not_before)
    }

    fn hold(&mut self, until: Tick, now: Tick) {
        if until > now {
            self.lost.begin(now, self.asked_again());
        }
        self.not_before = self.not_before.max(until);
    }

    /// The rate in force at `now`, in requests a second.
    pub fn rate(&self, now: Tick) -> f64 {
        self.learned.rate().min(self.allowance.rate(now))
    }

    /// The bucket at the rate in force. A learned rate has no bursts: a server that counts by the second would see twice
    /// of what it allows.
    fn bucket(&self, now: Tick) -> Bucket {
        let burst = if self.learned.is_limited() { 1.0 } else { self.limits.rate.ceil() };
        self.bucket.at(self.rate(now), burst, now)
    }

    fn throttle(&mut self, wait: Option<Duration>, now: Tick) -> Option<Turn> {
        let wait = wait.map_or(BARE_THROTTLE, |wait| wait.min(LONGEST_RETRY_AFTER));
        self.hold(now + wait, now);
        let unhindered = !self.learned.is_limited();
        self.learned.cut(now);
        self.bucket = self.bucket(now);
        self.bucket.drain(self.not_before);
        unhindered.then_some(Turn::Slowed)
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
                self.lost.begin(now, self.asked_again());
                let next_probe = now + why.probes()[0];
                self.shut = Some(Shut { why, since: now, before: Duration::ZERO, probes: 1, next_probe });
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

    /// A pause is ended by its probe only: what was in flight when it began was asked before, and a broken API by anybody.
    fn open(&mut self, watch: i64, now: Tick) -> Option<Turn> {
        if self.closure().is_some_and(Closure::is_pause) && !self.is_probe(watch) {
            return None;
        }
        self.probing = false;
        let shut = self.shut.take()?;
        self.doubted = Streak::default();
        if self.not_before <= now {
            self.lost.end(now);
        }
        if shut.why == Closure::Broken {
            self.learned.start_slowly();
        }
        // Nothing was asked for a while, and now everything is due: what was saved meanwhile is not used at once.
        self.bucket = self.bucket(now);
        self.bucket.drain(now);
        Some(Turn::Opened { after: shut.why, lost: shut.before + now.saturating_sub(shut.since) })
    }
}

#[cfg(test)]
mod tests;
