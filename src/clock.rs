//! Instants, and the one handle through which the program reads time.
//!
//! Two clocks: wall time ([`Timestamp`]) is what the database keeps, because it survives a restart; monotonic time
//! ([`Tick`]) is what a pace or a sleep is measured in, because nobody can set it back.

use std::borrow::Cow;
use std::fmt;
use std::ops::{Add, Sub};
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Serialize, Serializer};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{KnownFormat, ObjectBuilder, Schema, SchemaFormat, Type};
use utoipa::{PartialSchema, ToSchema};

/// The last millisecond of the year 9999: the end of what RFC 3339 can write.
const LAST: i64 = 253_402_300_799_999;

/// Monotonic time since the program's start.
pub type Tick = Duration;

/// An instant of the wall clock, in Unix milliseconds, as the `*_at` columns hold it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

impl Timestamp {
    /// From Unix milliseconds; any value is accepted, since other programs write to the database.
    pub const fn from_millis(millis: i64) -> Self {
        Self(millis)
    }

    /// Unix milliseconds.
    pub const fn as_millis(self) -> i64 {
        self.0
    }

    /// The time from `earlier` to this instant; zero when `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// This instant as the standard library has it, within the years 1970 to 9999.
    pub fn as_system_time(self) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(self.0.clamp(0, LAST) as u64)
    }
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        let millis = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
        Self(i64::try_from(millis).unwrap_or(LAST))
    }
}

impl Add<Duration> for Timestamp {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)))
    }
}

impl Sub<Duration> for Timestamp {
    type Output = Self;

    fn sub(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", humantime::format_rfc3339_millis(self.as_system_time()))
    }
}

impl FromStr for Timestamp {
    type Err = humantime::TimestampError;

    /// RFC 3339, with any offset; also without one, or with a blank in place of the `T`: that is UTC. What lies before 1970
    /// is the beginning of 1970.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.parse::<jiff::Timestamp>() {
            Ok(instant) => Ok(Self(instant.as_millisecond().clamp(0, LAST))),
            Err(_) => humantime::parse_rfc3339_weak(text).map(Self::from),
        }
    }
}

impl PartialSchema for Timestamp {
    fn schema() -> RefOr<Schema> {
        let description = "An instant, RFC 3339";
        let string = ObjectBuilder::new().schema_type(Type::String).description(Some(description));
        string.format(Some(SchemaFormat::KnownFormat(KnownFormat::DateTime))).into()
    }
}

impl ToSchema for Timestamp {
    fn name() -> Cow<'static, str> {
        "Instant".into()
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// By how much the wall clock runs ahead of the monotonic one, to notice when that changes: the clock was set, or the
/// machine slept, which stops the monotonic one.
#[derive(Clone, Copy, Debug, Default)]
pub struct Drift(Option<i64>);

/// Clocks that are disciplined drift by less between two looks; what has gathered is counted at once.
const SMALLEST_JUMP: i64 = 1_000;

impl Drift {
    /// The milliseconds by which the wall clock has jumped since the look before; mostly zero.
    pub fn jump(&mut self, wall: Timestamp, now: Tick) -> i64 {
        let ahead = wall.0.saturating_sub(i64::try_from(now.as_millis()).unwrap_or(i64::MAX));
        let jump = ahead.saturating_sub(*self.0.get_or_insert(ahead));
        if jump.saturating_abs() < SMALLEST_JUMP {
            return 0;
        }
        self.0 = Some(ahead);
        jump
    }
}

/// Reads both clocks. An argument wherever time is needed, so that a simulation can hand in its own.
#[derive(Clone)]
pub struct Clock {
    wall: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    started: tokio::time::Instant,
}

impl Clock {
    /// The machine's clocks.
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
    pub fn system() -> Self {
        Self::new(|| SystemTime::now().into())
    }

    /// A wall clock of the caller's; monotonic time is tokio's, which a test may pause.
    pub fn new(wall: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        Self { wall: Arc::new(wall), started: tokio::time::Instant::now() }
    }

    /// Wall time now.
    pub fn now(&self) -> Timestamp {
        (self.wall)()
    }

    /// Monotonic time since this clock was made.
    pub fn tick(&self) -> Tick {
        self.started.elapsed()
    }
}

/// A source of rolls in `0.0..1.0`. An argument, like the clock.
#[derive(Clone)]
pub struct Dice(Arc<dyn Fn() -> f64 + Send + Sync>);

impl Dice {
    /// Fair dice.
    pub fn fair() -> Self {
        Self::new(fastrand::f64)
    }

    /// Dice of the caller's; each roll has to be in `0.0..1.0`.
    pub fn new(roll: impl Fn() -> f64 + Send + Sync + 'static) -> Self {
        Self(Arc::new(roll))
    }

    /// One roll.
    pub fn roll(&self) -> f64 {
        (self.0)()
    }

    /// Random bytes, for an id that nobody has to be unable to guess.
    pub fn bytes(&self) -> [u8; 16] {
        std::array::from_fn(|_| (self.roll() * 256.0) as u8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_number_that_a_foreign_program_wrote_can_be_shown() {
        for (millis, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (1_790_000_000_123, "2026-09-21T14:13:20.123Z"),
            (i64::MIN, "1970-01-01T00:00:00.000Z"),
            (i64::MAX, "9999-12-31T23:59:59.999Z"),
        ] {
            assert_eq!(Timestamp::from_millis(millis).to_string(), text);
        }
    }

    #[test]
    fn arithmetic_saturates() {
        let late = Timestamp::from_millis(i64::MAX);
        assert_eq!(late + Duration::MAX, late);
        assert_eq!(Timestamp::from_millis(i64::MIN).since(late), Duration::ZERO);
        assert_eq!(Timestamp::from_millis(1_500).since(Timestamp::from_millis(500)), Duration::from_secs(1));
    }

    #[test]
    fn a_jump_is_counted_once_and_a_drift_when_it_has_gathered() {
        let at = Timestamp::from_millis;
        let mut drift = Drift::default();
        let jumps = [
            (1_000, 0, 0),
            (2_000, 1_000, 0),
            (86_403_000, 2_000, 86_400_000),
            (86_404_000, 3_000, 0),
            (5_000, 4_000, -86_400_000),
            (6_400, 5_000, 0),
            (7_800, 6_000, 0),
            (9_200, 7_000, 1_200),
            (10_200, 8_000, 0),
        ];
        for (wall, now, jump) in jumps {
            assert_eq!(drift.jump(at(wall), Duration::from_millis(now)), jump, "{wall}");
        }
    }

    #[test]
    fn text_round_trips() {
        let instant = Timestamp::from_millis(1_790_000_000_123);
        assert_eq!(instant.to_string().parse::<Timestamp>().unwrap(), instant);
    }
}
