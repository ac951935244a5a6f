//! The signals that a person or systemd sends.

use std::io;

use futures_util::StreamExt;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook_tokio::Signals as Stream;

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// TERM or INT, and HUP where nothing is reloaded: stop.
    Stop,
    /// HUP: read the configuration again.
    Reload,
}

/// The signals that come, from the moment of its making.
pub struct Signals {
    stream: Stream,
    hangup: Signal,
}

impl Signals {
    /// Takes over TERM, INT and HUP, for a service.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn take() -> io::Result<Self> {
        Ok(Self { stream: Stream::new([SIGTERM, SIGINT, SIGHUP])?, hangup: Signal::Reload })
    }

    /// Takes over TERM, INT and HUP, for what a person runs in a terminal: it ends with it. Not HUP where that is ignored,
    /// as under `nohup`: then it is to outlive the terminal.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn take_to_stop() -> io::Result<Self> {
        let hangup = (!is_ignored(SIGHUP)).then_some(SIGHUP);
        Ok(Self { stream: Stream::new([SIGTERM, SIGINT].into_iter().chain(hangup))?, hangup: Signal::Stop })
    }

    /// The next one.
    pub async fn next(&mut self) -> Signal {
        match self.stream.next().await {
            Some(SIGHUP) => self.hangup,
            Some(_) => Signal::Stop,
            // The stream ends only when its handle is closed, and nobody has that.
            None => std::future::pending().await,
        }
    }

    /// Resolves when it is to stop.
    pub async fn stopped(&mut self) {
        while self.next().await != Signal::Stop {}
    }
}

/// Whether our parent has us ignore `signal`. The kernel tells; to ask by `sigaction` would take unsafe code.
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default();
    mask & (1 << (signal - 1)) != 0
}
