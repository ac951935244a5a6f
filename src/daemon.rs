//! Wiring: from settings to a running line, and from a signal to a stop, in order.

mod engine;
mod gauges;
mod run;
mod server;
mod wait;

use std::path::Path;

pub use engine::{Asked, Edges, Engine, EngineError, confine};
pub use run::run;
pub use wait::{Ending, WaitOptions, Waited, wait};

use crate::clock::Clock;
use crate::config::Settings;
use crate::control::{Control, Running};
use crate::store::{Store, StoreError};

/// Opens the database of `settings`, for the verbs.
///
/// # Errors
/// When it cannot be opened.
pub async fn open(settings: &Settings) -> Result<Control, StoreError> {
    let store = Store::open(Path::new(&settings.database)).await?;
    Ok(control(store, Clock::system(), settings))
}

/// What the verbs take of these settings.
fn control(store: Store, clock: Clock, settings: &Settings) -> Control {
    let accounts = settings.accounts.iter().map(|account| account.name.clone()).collect();
    Control { store, clock, hooks: settings.hooks.clone(), accounts, running: Running::default() }
}
