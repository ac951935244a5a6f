//! Where the log goes: stderr, one line for each change of state. And what is measured.

mod measure;

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::time::SystemTime;

pub use measure::{Metrics, measure, registry};

use crate::cli::Screen;

/// How much is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verbosity {
    /// Errors only.
    Quiet,
    /// Changes that an operator should see.
    Normal,
    /// Every change of state.
    Verbose,
    /// Every poll and attempt.
    Debug,
}

/// Starts the log of this process. `ASSETWATCH_LOG` (`tracing`'s filter syntax) takes precedence over `verbosity`.
///
/// Lines stand above what `screen` shows at the moment. Without colour where stderr is no terminal or `color` is off, and without times where the journal adds its own.
pub fn start(verbosity: Verbosity, color: bool, screen: Screen) {
    let level = match verbosity {
        Verbosity::Quiet => "error",
        Verbosity::Normal => "warn",
        Verbosity::Verbose => "info",
        Verbosity::Debug => "assetwatch=debug,info",
    };
    let filter = EnvFilter::try_from_env("ASSETWATCH_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(color && std::io::stderr().is_terminal())
        .with_writer(move || screen.clone());
    // The second start in one process, as in a test, keeps the first one's settings.
    let _ = match std::env::var_os("JOURNAL_STREAM") {
        Some(_) => log.without_time().try_init(),
        None => log.with_timer(SystemTime).try_init(),
    };
}
