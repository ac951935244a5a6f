//! What systemd is told (sd_notify); nothing happens where there is no systemd.

use rustix::time::{ClockId, clock_gettime};
use sd_notify::NotifyState;

/// The service works; `status` says how, in plain words.
pub fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// How the service stands, in plain words.
pub fn status(status: &str) {
    tell(&[NotifyState::Status(status)]);
}

/// The configuration is being read again; [`ready`] ends it.
pub fn reloading() {
    let now = clock_gettime(ClockId::Monotonic);
    let micros = now.tv_sec * 1_000_000 + now.tv_nsec / 1_000;
    tell(&[NotifyState::Reloading, NotifyState::MonotonicUsec(micros.into())]);
}

/// The service stops.
pub fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("stopping: what is in flight may end")]);
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!("systemd was not told: {error}");
    }
}
