//! A daemon: the real engine on a store of its own, from a start to a stop or a crash.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use assetwatch::config::{Account, Hook, KeySource, Settings, Target, Webhook};
use assetwatch::control::Control;
use assetwatch::daemon::{Asked, Edges, Engine};
use assetwatch::decide::Rules;
use assetwatch::event::{Subscription, Topic};
use assetwatch::pace::Limits;
use assetwatch::store::{Blocking, DaemonRow, Store};
use tokio::task::JoinSet;

use crate::clock::{self, SECOND};
use crate::disk::{self, Process};
use crate::script::Script;
use crate::world::Shared;
use crate::{api, receivers};

/// For work in flight when a daemon stops.
const GRACE: Duration = Duration::from_secs(20);

pub struct Daemon {
    pub process: Process,
    control: Control,
    settings: Settings,
    engine: Engine,
    engines: u32,
    /// Engines that a reload has replaced.
    retired: JoinSet<()>,
}

/// Work on the database is done one piece after the other, in the order in which it was asked for, each as a task: so
/// writes that are asked for at the same instant share a transaction.
pub fn blocking(world: &Shared, process: Process) -> Blocking {
    let world = world.clone();
    Blocking::new(move |work| {
        let world = world.clone();
        let waits = world.lock().disk_waits();
        let doing = async move {
            if !waits.is_zero() {
                tokio::time::sleep(waits).await;
            }
            if disk::step(process) {
                disk::set_wall(world.lock().time.wall());
                disk::by(process, work);
                world.lock().look(false);
            }
        };
        drop(tokio::spawn(doing));
    })
}

/// What the configuration file of this seed says; the rates are `faster` times what the script says.
pub fn settings(script: &Script, database: &Path, faster: f64) -> Settings {
    let account = |plan: &crate::script::AccountPlan| Account {
        name: plan.name.clone(),
        url: "http://api.example".parse().unwrap(),
        key: KeySource::Absent,
        timeout: plan.timeout,
        limits: Limits { rate: plan.rate * faster, max_in_flight: plan.max_in_flight },
        rules: Rules { patience: plan.patience, missing_grace: plan.missing_grace, ..Rules::default() },
    };
    let hook = |plan: &crate::script::HookPlan| Hook {
        subscription: Subscription {
            hook: plan.name.clone(),
            on: plan.on.iter().map(|word| Topic::parse(word)).collect(),
            accounts: Vec::new(),
            batches: Vec::new(),
            body: None,
        },
        target: Target::Webhook(Webhook {
            url: "http://hook.example".parse().unwrap(),
            secrets: None,
            headers: Vec::new(),
            proxy: None,
        }),
        timeout: receivers::TIMEOUT,
        concurrency: plan.concurrency,
        rate: plan.rate,
        schedule: plan.schedule.clone(),
    };
    Settings {
        database: database.to_owned(),
        retention: 30 * clock::DAY,
        grace: GRACE,
        accounts: script.accounts.iter().map(account).collect(),
        hooks: script.hooks.iter().map(hook).collect(),
        http: None,
        callbacks: None,
        file: None,
        warnings: Vec::new(),
        entries: Vec::new(),
    }
}

/// The verbs, as a process has them.
pub async fn control(world: &Shared, process: Process, settings: &Settings) -> Result<Control, String> {
    let opened = Store::open_with(&settings.database, blocking(world, process)).await;
    let store = opened.map_err(|error| error.to_string())?;
    let clock = world.lock().time.of(process);
    let accounts = settings.accounts.iter().map(|account| account.name.clone()).collect();
    let hooks = settings.hooks.clone();
    Ok(Control { store, clock, hooks, accounts, running: assetwatch::control::Running::default() })
}

fn edges(world: &Shared, process: Process, engines: u32, settings: &Settings) -> Edges {
    let seed = world.lock().script.seed;
    let owner = format!("daemon-{process}-{engines}");
    let apis = settings.accounts.iter().enumerate().map(|(at, account)| {
        let poll = api::poll(world, process, at, &owner);
        (account.name.clone(), Asked { poll, rekeyed: Arc::new(|| false) })
    });
    let apis = apis.collect();
    let (world, performing) = (world.clone(), owner.clone());
    Edges {
        owner,
        dice: clock::dice(seed ^ u64::from(process) << 32 ^ u64::from(engines)),
        apis,
        perform: Box::new(move |stop| receivers::perform(&world, process, &performing, stop)),
    }
}

impl Daemon {
    /// What `assetwatch run` does until it is ready.
    pub async fn start(world: &Shared, process: Process, database: PathBuf) -> Result<Self, String> {
        let settings = settings(&world.lock().script, &database, 1.0);
        let control = control(world, process, &settings).await?;
        begin(world, process, &settings);
        let edges = edges(world, process, 0, &settings);
        let engine = Engine::with(&control, &settings, (None, None), edges).await.map_err(|error| error.to_string())?;
        let daemon = Self { process, control, settings, engine, engines: 1, retired: JoinSet::new() };
        daemon.adopt().await;
        Ok(daemon)
    }

    async fn adopt(&self) {
        let Control { store, clock, .. } = &self.control;
        let hooks = self.settings.hooks.iter().map(|hook| hook.subscription.hook.clone()).collect();
        // What cannot be written now is no harm.
        let _ = store.adopt_hooks(hooks, false, clock.now()).await;
        self.engine.wake();
        let (owner, host) = (self.engine.owner().to_owned(), "here".to_owned());
        let _ = store.note_daemon(DaemonRow { owner, pid: self.process, host, heartbeat_at: clock.now() }).await;
    }

    /// What it does on HUP.
    pub async fn reload(&mut self, world: &Shared, faster: f64) -> Result<(), String> {
        let settings = settings(&world.lock().script, &self.settings.database, faster);
        begin(world, self.process, &settings);
        let edges = edges(world, self.process, self.engines, &settings);
        let next = Engine::with(&self.control, &settings, (None, Some(&self.engine)), edges).await;
        let next = next.map_err(|error| error.to_string())?;
        let old = std::mem::replace(&mut self.engine, next);
        old.drain();
        let grace = GRACE.max(old.longest());
        self.retired.spawn(async move {
            let _ = old.stop(grace, std::future::pending()).await;
        });
        (self.settings, self.engines) = (settings, self.engines + 1);
        self.adopt().await;
        Ok(())
    }

    /// What it does on TERM.
    pub async fn stop(mut self) {
        self.engine.drain();
        while self.retired.join_next().await.is_some() {}
        let _ = self.engine.stop(GRACE, std::future::pending()).await;
    }
}

/// The pace that a process has promised with these settings.
fn begin(world: &Shared, process: Process, settings: &Settings) {
    let mut world = world.lock();
    let now = world.time.now();
    for (at, account) in settings.accounts.iter().enumerate() {
        world.paces.begin(process, at, account.limits.rate, now);
    }
    world.calm.disturb(now + 5 * SECOND);
}
