//! The daemon: start in order, serve signals, stop in order.

use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::engine::{Engine, EngineError};
use crate::config::Settings;
use crate::control::{Control, hostname};
use crate::signal::{Signal, Signals};
use crate::store::{DaemonRow, StoreError};
use crate::systemd;

/// Between two signs of life.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// STATUS is brought up to date with each so-many-th sign of life.
const STATUS_EVERY: u32 = 12;

/// Runs the daemon in the foreground until TERM or INT, `reload` being how it reads its configuration again on HUP.
///
/// # Errors
/// When the configuration or the database cannot be used, or when a part of the daemon ends by itself.
pub async fn run(
    mut settings: Settings,
    reload: impl Fn() -> Result<Settings, crate::config::ConfigError>,
) -> anyhow::Result<()> {
    // First of all: a signal that comes while we start is not lost.
    let mut signals = Signals::take()?;
    let control = super::open(&settings).await?;
    let mut engine = start(&control, &settings, None).await?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), database = %settings.database.display(), "started");
    warn_of_unnamed(&control, &settings).await?;
    systemd::ready(&describe(&control).await);
    let mut heartbeat = interval(HEARTBEAT);
    heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut beats = 0;
    // Engines that a reload has replaced, while what they have in flight ends.
    let mut retired = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            signal = signals.next() => match signal {
                Signal::Stop => break,
                Signal::Reload => {
                    systemd::reloading();
                    let next = reloaded(&control, &settings, &reload, &engine).await;
                    if let Some((new_settings, new_engine)) = next {
                        let old = std::mem::replace(&mut engine, new_engine);
                        old.drain();
                        retired.spawn(old.stop(settings.grace, std::future::pending()));
                        settings = new_settings;
                    }
                    systemd::ready(&describe(&control).await);
                }
            },
            _ = heartbeat.tick() => {
                beat(&control, &engine).await;
                if !retired.is_empty() {
                    // Workers of a replaced engine wake its own pumps.
                    engine.wake();
                }
                beats += 1;
                if beats % STATUS_EVERY == 0 {
                    systemd::status(&describe(&control).await);
                }
            }
            Some(_) = retired.join_next() => {
                // Its last attempts may have been of a hook that is gone.
                if let Err(error) = adopt_hooks(&control, &settings).await {
                    tracing::warn!("deliveries of hooks that are gone were not held: {error}");
                }
                engine.wake();
            }
            why = engine.ended() => anyhow::bail!(why),
        }
    }
    stop(engine, retired, &settings, &mut signals).await
}

async fn stop(
    engine: Engine,
    mut retired: JoinSet<Result<(), StoreError>>,
    settings: &Settings,
    signals: &mut Signals,
) -> anyhow::Result<()> {
    systemd::stopping();
    tracing::info!("stopping: no more claims, what is in flight may end; a second signal ends it at once");
    let second = async {
        while signals.next().await != Signal::Stop {}
        tracing::warn!("a second signal: what is in flight is ended");
    };
    engine.stop(settings.grace, second).await?;
    // They have had their grace already; a second signal has ended it.
    while timeout(settings.grace, retired.join_next()).await.is_ok_and(|ended| ended.is_some()) {}
    tracing::info!("stopped");
    Ok(())
}

async fn start(control: &Control, settings: &Settings, before: Option<&Engine>) -> Result<Engine, EngineError> {
    for warning in &settings.warnings {
        tracing::warn!("{warning}");
    }
    let control = Control {
        subscriptions: settings.hooks.iter().map(|hook| hook.subscription.clone()).collect(),
        ..control.clone()
    };
    let engine = Engine::start(&control, settings, None, before).await?;
    if let Err(error) = adopt_hooks(&control, settings).await {
        tracing::warn!("the deliveries of hooks that are new or gone stay as they are for now: {error}");
    }
    engine.wake();
    beat(&control, &engine).await;
    Ok(engine)
}

async fn adopt_hooks(control: &Control, settings: &Settings) -> Result<(), StoreError> {
    let hooks = settings.hooks.iter().map(|hook| hook.subscription.hook.clone()).collect();
    control.store.adopt_hooks(hooks, control.clock.now()).await
}

/// The new settings and what runs by them, unless there is something wrong with them: then the old ones stay.
async fn reloaded(
    control: &Control,
    old: &Settings,
    reload: impl Fn() -> Result<Settings, crate::config::ConfigError>,
    engine: &Engine,
) -> Option<(Settings, Engine)> {
    let mut settings = match reload() {
        Ok(settings) => settings,
        Err(error) => {
            tracing::error!("not reloaded, the old settings stay: {error}");
            return None;
        }
    };
    if settings.database != old.database {
        tracing::warn!("`database` takes effect at the next start; it stays {}", old.database.display());
        settings.database.clone_from(&old.database);
    }
    match start(control, &settings, Some(engine)).await {
        Ok(engine) => {
            tracing::info!("reloaded");
            Some((settings, engine))
        }
        Err(error) => {
            tracing::error!("not reloaded, the old settings stay: {error}");
            None
        }
    }
}

/// A sign of life: `wait` leaves the polling to a daemon that gives one. Missing one is no harm.
async fn beat(control: &Control, engine: &Engine) {
    let daemon = DaemonRow {
        owner: engine.owner().to_owned(),
        pid: std::process::id(),
        host: hostname(),
        heartbeat_at: control.clock.now(),
    };
    if let Err(error) = control.store.note_daemon(daemon).await {
        tracing::debug!("no sign of life was given: {error}");
    }
}

/// A watch of an account that the configuration does not name is kept, and said.
async fn warn_of_unnamed(control: &Control, settings: &Settings) -> Result<(), StoreError> {
    for name in control.store.waiting_accounts().await? {
        if !settings.accounts.iter().any(|account| account.name == name) {
            tracing::warn!(
                account = name,
                "watches wait for an account that the configuration does not name; add `[accounts.{name}]`, or cancel them"
            );
        }
    }
    Ok(())
}

/// How the service stands, in plain words.
async fn describe(control: &Control) -> String {
    let waiting = control.store.waiting().await;
    let closed = control.store.accounts().await.unwrap_or_default().into_iter().filter(|row| row.closure.is_some());
    let mut status = match waiting {
        Ok(1) => "watching 1 asset".to_owned(),
        Ok(count) => format!("watching {count} assets"),
        Err(error) => error.to_string(),
    };
    for row in closed {
        let why = row.closure.unwrap_or_default();
        status += &format!("; account {} is not polled: {why}", row.name);
    }
    status
}
