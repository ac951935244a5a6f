//! The signals that a person or systemd sends.

use std::io;

use futures_util::StreamExt;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook_tokio::Signals as Stream;

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// TERM or INT: stop.
    Stop,
    /// HUP: read the configuration again.
    Reload,
}

/// The signals that come, from the moment of its making.
pub struct Signals(Stream);

impl Signals {
    /// Takes over TERM, INT and HUP.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn take() -> io::Result<Self> {
        Stream::new([SIGTERM, SIGINT, SIGHUP]).map(Self)
    }

    /// The next one.
    pub async fn next(&mut self) -> Signal {
        match self.0.next().await {
            Some(SIGHUP) => Signal::Reload,
            Some(_) => Signal::Stop,
            // The stream ends only when its handle is closed, and nobody has that.
            None => std::future::pending().await,
        }
    }
}
