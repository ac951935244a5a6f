//! The wall clock, which may be set, and the dice.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use assetwatch::clock::{Clock, Dice, Timestamp};
use tokio::time::Instant;

use crate::disk;

pub const SECOND: Duration = Duration::from_secs(1);
pub const MINUTE: Duration = Duration::from_secs(60);
pub const HOUR: Duration = Duration::from_secs(3_600);
pub const DAY: Duration = Duration::from_secs(86_400);

/// The wall clock when virtual time begins.
const BEGIN: i64 = 1_790_000_000_000;

/// Both clocks of the simulation: one that nobody can set, and one that is set now and then.
#[derive(Clone)]
pub struct Time {
    began: Instant,
    set_by: Arc<AtomicI64>,
}

impl Time {
    pub fn begin() -> Self {
        let time = Self { began: Instant::now(), set_by: Arc::default() };
        disk::set_wall(time.wall());
        time
    }

    /// Since the beginning.
    pub fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// The wall clock, in Unix milliseconds.
    pub fn wall(&self) -> i64 {
        BEGIN + self.now().as_millis() as i64 + self.set_by.load(Ordering::Relaxed)
    }

    pub async fn until(&self, instant: Duration) {
        tokio::time::sleep_until(self.began + instant).await;
    }

    pub fn set_wall_by(&self, millis: i64) {
        self.set_by.fetch_add(millis, Ordering::Relaxed);
        disk::set_wall(self.wall());
    }

    /// The clock of one process, which may die whenever it looks.
    pub fn of(&self, process: disk::Process) -> Clock {
        let time = self.clone();
        Clock::new(move || {
            disk::step(process);
            Timestamp::from_millis(time.wall())
        })
    }
}

/// Dice whose rolls follow from a seed.
pub fn dice(seed: u64) -> Dice {
    let rolls = Mutex::new(fastrand::Rng::with_seed(seed));
    Dice::new(move || rolls.lock().unwrap().f64())
}

/// What a seed says, drawn one after the other.
pub struct Draw(pub fastrand::Rng);

impl Draw {
    pub fn new(seed: u64) -> Self {
        Self(fastrand::Rng::with_seed(seed))
    }

    /// True in this share of all cases.
    pub fn chance(&mut self, share: f64) -> bool {
        self.0.f64() < share
    }

    pub fn between(&mut self, low: Duration, high: Duration) -> Duration {
        let (low, high) = (low.as_millis() as u64, high.as_millis() as u64);
        Duration::from_millis(if low < high { self.0.u64(low..high) } else { low })
    }

    /// Small values as often as large ones.
    pub fn scale(&mut self, low: f64, high: f64) -> f64 {
        (low.ln() + (high.ln() - low.ln()) * self.0.f64()).exp()
    }

    pub fn of<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[self.0.usize(..choices.len())].clone()
    }
}
