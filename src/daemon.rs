//! Wiring: from settings to a running line, and from a signal to a stop, in order.

mod engine;
mod gauges;
mod run;
mod server;
mod wait;

use std::path::Path;
use std::time::Duration;

pub use engine::{Asked, Edges, Engine, EngineError, confine};
pub use run::run;
pub use wait::{Ending, WaitOptions, Waited, wait};

use crate::clock::Clock;
use crate::config::Settings;
use crate::control::{Control, Running};
use crate::store::{Store, StoreError};

/// Who waits longer for the database is told why.
const SOON: Duration = Duration::from_secs(3);

/// Opens the database of `settings`, for the verbs.
///
/// # Errors
/// When it cannot be opened.
pub async fn open(settings: &Settings) -> Result<Control, StoreError> {
    let opening = Store::open(Path::new(&settings.database));
    tokio::pin!(opening);
    let store = tokio::select! {
        biased;
        opened = &mut opening => opened?,
        () = tokio::time::sleep(SOON) => {
            let path = settings.database.display();
            tracing::warn!("the database {path} is not open yet: it is brought up to date, or another program holds its lock");
            opening.await?
        }
    };
    if let Some(migrated) = store.migrated() {
        // To whoever started us, and to a log that keeps warnings: it is done once, and a file is left behind.
        tracing::warn!("the database {}: {migrated}", store.path().display());
    }
    Ok(control(store, Clock::system(), settings))
}

/// What the verbs take of these settings.
fn control(store: Store, clock: Clock, settings: &Settings) -> Control {
    let accounts = settings.accounts.iter().map(|account| account.name.clone()).collect();
    Control { store, clock, hooks: settings.hooks.clone(), accounts, running: Running::default() }
}
