//! What systemd is told (sd_notify); nothing happens where there is no systemd.

use std::future::{Future, pending};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use sd_notify::NotifyState;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

/// What a stop takes besides what is waited for: closing, and ending.
const MARGIN: Duration = Duration::from_secs(5);

/// So much more time is asked for, each so often.
const MORE: Duration = Duration::from_secs(60);
const ASK_EVERY: Duration = Duration::from_secs(15);

/// Does what a start may take long for, and asks for more time meanwhile: to be ended half-way would only begin it anew.
pub async fn starting<T>(work: impl Future<Output = T>) -> T {
    tokio::pin!(work);
    loop {
        tell(&[NotifyState::ExtendTimeoutUsec(u32::try_from(MORE.as_micros()).unwrap_or(u32::MAX))]);
        tokio::select! {
            biased;
            done = &mut work => return done,
            () = tokio::time::sleep(ASK_EVERY) => {}
        }
    }
}

/// The service works; `status` says how, in plain words.
pub fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(&one_line(status))]);
}

/// How the service stands, in plain words.
pub fn status(status: &str) {
    tell(&[NotifyState::Status(&one_line(status))]);
}

/// The configuration is being read again; [`ready`] ends it.
pub fn reloading() {
    let now = clock_gettime(ClockId::Monotonic);
    let micros = now.tv_sec * 1_000_000 + now.tv_nsec / 1_000;
    tell(&[NotifyState::Reloading, NotifyState::MonotonicUsec(micros.into())]);
}

/// The service stops, which may take so long, whatever `TimeoutStopSec=` says.
pub fn stopping(longest: Duration) {
    let micros = u32::try_from((longest + MARGIN).as_micros()).unwrap_or(u32::MAX);
    tell(&[
        NotifyState::Stopping,
        NotifyState::Status("stopping: what is in flight may end"),
        NotifyState::ExtendTimeoutUsec(micros),
    ]);
}

/// systemd's watchdog: it has us started again when it is not petted for long enough. Never due where there is none.
pub struct Watchdog {
    interval: Option<Interval>,
    missed: u32,
}

impl Watchdog {
    /// The one that systemd has set for this process, if it has (`WATCHDOG_USEC`, `WATCHDOG_PID`).
    pub fn of_this_process() -> Self {
        let patience = sd_notify::watchdog_enabled().filter(|patience| !patience.is_zero());
        let interval = patience.map(|patience| {
            // Four times in its patience: what was late once is still in time.
            let period = (patience / 4).max(Duration::from_millis(1));
            let mut interval = interval_at(Instant::now() + period, period);
            interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
            interval
        });
        Self { interval, missed: 0 }
    }

    /// Waits until it is time to look whether everything works.
    pub async fn is_due(&mut self) {
        match &mut self.interval {
            Some(interval) => drop(interval.tick().await),
            None => pending().await,
        }
    }

    /// Pets it, unless something is stuck. That is said when it was late twice: it may only just have begun.
    pub fn pet_unless(&mut self, stuck: Option<&str>) {
        match stuck {
            None => {
                self.missed = 0;
                tell(&[NotifyState::Watchdog]);
            }
            Some(pump) => {
                self.missed += 1;
                tracing::debug!(pump, missed = self.missed, "no sign of life");
                if self.missed == 2 {
                    tracing::warn!(pump, "no sign of life; unless one comes soon, the watchdog has us started again");
                }
            }
        }
    }
}

/// A line break would begin another assignment of the protocol, and what an API or another program says may hold one.
fn one_line(status: &str) -> String {
    status.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!("systemd was not told: {error}");
    }
}
