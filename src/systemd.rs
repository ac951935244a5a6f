//! What systemd is told (sd_notify); nothing happens where there is no systemd.

use rustix::time::{ClockId, clock_gettime};
use sd_notify::NotifyState;

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

/// The service stops.
pub fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("stopping: what is in flight may end")]);
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
