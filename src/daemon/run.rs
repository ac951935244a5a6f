//! The daemon: start in order, serve signals, stop in order.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep_until};

use super::engine::{Engine, EngineError};
use super::gauges::Gauges;
use super::server::Server;
use crate::cli::plain;
use crate::clock::Clock;
use crate::config::{Reload, Settings};
use crate::control::{Control, hostname};
use crate::signal::{Signal, Signals};
use crate::store::{DaemonRow, StoreError};
use crate::systemd::{self, Watchdog};
use crate::telemetry;

/// Between two signs of life.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// After the grace of a stop, for what is told to end: a command's usual `kill_after`, and the writing.
const LEFT_TO_END: Duration = Duration::from_secs(10);
/// With more watches than this, they are counted anew only with each so-many-th sign of life: it takes a while.
const MANY: i64 = 10_000;
const COUNT_EVERY: u32 = 12;
/// So many accounts that are not configured are named.
const MOST_UNNAMED: usize = 5;

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
    // Before what is measured is set up. Without a listener nobody could ask for it.
    let metrics = settings.http.as_ref().map(|_| telemetry::measure(Clock::system().now())).transpose()?;
    let mut control = systemd::starting(super::open(&settings)).await?;
    control.store.writable().await?;
    let store = control.store.clone();
    let mut server = Server::bind(&settings, metrics.clone()).await?;
    let mut engine = start(&control, &settings, None).await?;
    server.show(&control, &engine);
    let gauges = metrics.map(|metrics| Gauges::start(metrics, &control, &engine));
    tracing::info!(version = env!("ASSETWATCH_VERSION"), database = %settings.database.display(), "started");
    let mut report = Report::of(&control).await;
    systemd::ready(&report.text());
    let mut heartbeat = heartbeat();
    let mut watchdog = Watchdog::of_this_process();
    // Engines that a reload has replaced, while what they have in flight ends.
    let (abort, aborted) = watch::channel(None);
    let mut retired = JoinSet::new();
    // Beside the loop: a locked database must not keep a signal waiting.
    let mut beating = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            signal = signals.next() => match signal {
                Signal::Stop => break,
                Signal::Reload => {
                    systemd::reloading();
                    if let Some(next) = reloaded(&control, &settings, &reload, &engine, &mut server).await {
                        let (new_settings, new_engine) = next;
                        let old = std::mem::replace(&mut engine, new_engine);
                        old.drain();
                        beating.shutdown().await;
                        // To reload is not to stop: what is under way has all of its time.
                        retired.spawn(retire(settings.grace.max(old.longest()), old, aborted.clone()));
                        settings = new_settings;
                        control = super::control(control.store, control.clock, &settings);
                        server.show(&control, &engine);
                        gauges.iter().for_each(|gauges| gauges.follow(&control, &engine));
                    }
                    report.renew(&control).await;
                    systemd::ready(&report.text());
                }
            },
            _ = heartbeat.tick(), if beating.is_empty() => {
                beating.spawn(beat(control.clone(), engine.owner().to_owned()));
                if !retired.is_empty() {
                    // Workers of a replaced engine wake its own pumps.
                    engine.wake();
                }
                if report.renew(&control).await {
                    systemd::status(&report.text());
                }
            }
            // In this loop, so that it has to turn, too.
            () = watchdog.is_due() => watchdog.pet_unless(engine.stuck()),
            Some(_) = beating.join_next() => {}
            Some(_) = retired.join_next() => {
                // Its last attempts may have been of a hook that is gone.
                adopt_hooks(&control, &settings).await;
                engine.wake();
            }
            lost = store.lost() => return Err(lost.into()),
            why = engine.ended() => anyhow::bail!(why),
            () = server.ended() => anyhow::bail!("the HTTP server ended by itself"),
        }
    }
    systemd::stopping(settings.grace + LEFT_TO_END);
    tracing::info!("stopping: no more claims, what is in flight may end; a second signal ends it at once");
    // A sign of life that is under way is written before the leases are handed back, and none comes after it.
    beating.shutdown().await;
    retired.spawn(server.stop());
    retired.spawn(retire(settings.grace, engine, aborted));
    abort.send_replace(Some(Instant::now() + settings.grace + LEFT_TO_END));
    all_retired(retired, &abort, &mut signals).await;
    tracing::info!("stopped");
    Ok(())
}

/// Stops an engine. To be stopped is not a failure, and leases that cannot be handed back are none either.
async fn retire(grace: Duration, engine: Engine, mut abort: watch::Receiver<Option<Instant>>) {
    let aborted = async {
        // The instant may be brought forward while it is waited for. An error means that whoever could abort is gone.
        while abort.wait_for(Option::is_some).await.is_ok() {
            let at = abort.borrow_and_update().unwrap_or_else(Instant::now);
            tokio::select! {
                () = sleep_until(at) => return,
                changed = abort.changed() => if changed.is_err() { return },
            }
        }
    };
    if let Err(error) = engine.stop(grace, aborted).await {
        tracing::warn!("the leases could not be handed back, and end by themselves: {error}");
    }
}

/// Waits until all engines have stopped; a signal to stop, which is the second one, aborts them.
async fn all_retired(mut retired: JoinSet<()>, abort: &watch::Sender<Option<Instant>>, signals: &mut Signals) {
    let mut aborted = false;
    loop {
        tokio::select! {
            biased;
            signal = signals.next() => if signal == Signal::Stop && !std::mem::replace(&mut aborted, true) {
                abort.send_replace(Some(Instant::now()));
                tracing::warn!("a second signal: what is in flight is ended");
            },
            ended = retired.join_next() => if ended.is_none() { return },
        }
    }
}

async fn start(control: &Control, settings: &Settings, before: Option<&Engine>) -> Result<Engine, EngineError> {
    for warning in &settings.warnings {
        tracing::warn!("{warning}");
    }
    let control = super::control(control.store.clone(), control.clock.clone(), settings);
    let engine = Engine::start(&control, settings, None, before).await?;
    adopt_hooks(&control, settings).await;
    engine.wake();
    beat(control, engine.owner().to_owned()).await;
    Ok(engine)
}

async fn adopt_hooks(control: &Control, settings: &Settings) {
    if let Err(error) = try_to_adopt_hooks(control, settings).await {
        tracing::warn!("the deliveries of hooks that are new or gone stay as they are for now: {error}");
    }
}

async fn try_to_adopt_hooks(control: &Control, settings: &Settings) -> Result<(), StoreError> {
    let hooks = settings.hooks.iter().map(|hook| hook.subscription.hook.clone()).collect();
    // Another one may have other hooks, and what waits for those is not ours to hold.
    let hold = !control.another_daemon_is_alive().await?;
    let held = control.store.adopt_hooks(hooks, hold, control.clock.now()).await?;
    if held > 0 {
        tracing::warn!(held, "deliveries are held: the configuration does not name their hooks any more");
    }
    Ok(())
}

/// The new settings and what runs by them, unless there is something wrong with them: then the old ones stay.
async fn reloaded(
    control: &Control,
    old: &Settings,
    reload: impl Fn() -> Result<Settings, crate::config::ConfigError>,
    engine: &Engine,
    server: &mut Server,
) -> Option<(Settings, Engine)> {
    let new = match reload() {
        Ok(settings) => settings,
        Err(error) => {
            tracing::error!("not reloaded, the old settings stay: {error}");
            return None;
        }
    };
    let Reload { settings, now, later } = old.reload(new);
    // Nothing is taken over before all of it can be.
    let set_up = async { anyhow::Ok((Server::gate(&settings)?, start(control, &settings, Some(engine)).await?)) };
    match set_up.await {
        Ok((gate, engine)) => {
            server.admit(gate);
            later.iter().for_each(|later| tracing::warn!("{later}"));
            let now: Vec<String> = now.iter().map(ToString::to_string).collect();
            let changes =
                if now.is_empty() { "nothing is changed; secrets were read anew".into() } else { now.join("; ") };
            tracing::info!("reloaded: {changes}");
            Some((settings, engine))
        }
        Err(error) => {
            tracing::error!("not reloaded, the old settings stay: {error:#}");
            None
        }
    }
}

fn heartbeat() -> Interval {
    let mut heartbeat = interval(HEARTBEAT);
    heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    heartbeat
}

/// A sign of life: `wait` leaves the polling to a daemon that gives one. Missing one is no harm.
async fn beat(control: Control, owner: String) {
    let daemon = DaemonRow { owner, pid: std::process::id(), host: hostname(), heartbeat_at: control.clock.now() };
    if let Err(error) = control.store.note_daemon(daemon).await {
        tracing::debug!("no sign of life was given: {error}");
    }
}

/// How the service stands, in plain words.
#[derive(Default)]
struct Report {
    /// How many assets are watched.
    watching: String,
    count: i64,
    beats: u32,
    /// How the accounts stand that are not as they should be.
    standings: String,
    /// The accounts that were warned of: nothing polls for them.
    unnamed: BTreeSet<String>,
}

impl Report {
    async fn of(control: &Control) -> Self {
        let mut report = Self::default();
        report.renew(control).await;
        report
    }

    fn text(&self) -> String {
        format!("{}{}", self.watching, self.standings)
    }

    /// Looks anew, and says whether there is something new to tell.
    async fn renew(&mut self, control: &Control) -> bool {
        let before = self.text();
        if self.count < MANY || self.beats.is_multiple_of(COUNT_EVERY) {
            self.watching = match control.store.waiting().await {
                Ok(count) => {
                    self.count = count;
                    if count == 1 { "watching 1 asset".to_owned() } else { format!("watching {count} assets") }
                }
                Err(error) => error.to_string(),
            };
        }
        self.beats = self.beats.wrapping_add(1);
        // What cannot be read now stays as it was.
        if let (Ok(standings), Ok(unnamed)) = (control.account_standings().await, control.unnamed_accounts().await) {
            self.standings = standings.iter().map(|(name, standing)| format!("; account {name}: {standing}")).collect();
            self.warn_of(unnamed);
        }
        self.text() != before
    }

    /// A watch of an account that the configuration does not name is kept, and said once.
    fn warn_of(&mut self, mut unnamed: Vec<String>) {
        let count = unnamed.len();
        // Another program may have written any number of names.
        unnamed.truncate(MOST_UNNAMED);
        for name in unnamed.iter().map(|name| plain(name)) {
            self.standings += &format!("; account {name} is not configured, its watches are not polled");
            if self.unnamed.len() < MOST_UNNAMED && self.unnamed.insert(name.clone()) {
                tracing::warn!(
                    account = name,
                    "watches wait for an account that the configuration does not name; add `[accounts.{name}]`, or cancel them"
                );
            }
        }
        if count > MOST_UNNAMED {
            self.standings += &format!(" and so are {} more", count - MOST_UNNAMED);
        }
    }
}
