//! The running line: a poller, a relay and a janitor on one database, from a configuration, until they are stopped.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::DumpableBehavior;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::api::{Api, ApiError};
use crate::clock::{Clock, Dice, Tick, Timestamp};
use crate::config::{self, KeyError, KeySource, Settings, Target};
use crate::control::{Control, Running, hostname};
use crate::decide;
use crate::event::base32;
use crate::hook::{self, HookError, Hooks};
use crate::janitor::{self, Janitor};
use crate::meter::{Attempts, CALLBACKS, Polls};
use crate::pace::{Closure, Known, LONGEST_RETRY_AFTER, Pace};
use crate::poller::{Account, Poll, Poller};
use crate::pump::{self, Live, Phase, Pulse, Stop, Wake, Work};
use crate::relay::{HookLane, Perform, Relay, Slots};
use crate::store::{AccountRow, StoreError};

/// How long work may take to end after it was told to hurry: a command's own `kill_after`, and this.
const HURRY: Duration = Duration::from_secs(1);

/// The paces of the accounts: what a reload keeps.
pub(super) type Paces = BTreeMap<String, Arc<Mutex<Pace>>>;

/// What a callback gets, whose origin no configuration names.
pub(super) const CALLBACK_TIMEOUT: Duration = Duration::from_secs(20);
const CALLBACK_CONCURRENCY: u32 = 4;

/// Why the line cannot be set up. Each says what to change.
#[expect(missing_docs, reason = "each variant's sentence names its fields")]
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// An account has no usable key.
    #[error("account `{account}`: {error}")]
    Key { account: String, error: KeyError },
    /// An account cannot be asked for.
    #[error("account `{account}`: {error}")]
    Api { account: String, error: ApiError },
    /// Nothing was handed in to ask for an account.
    #[error("account `{account}`: there is nobody to ask")]
    Unasked { account: String },
    /// A hook cannot be set up.
    #[error(transparent)]
    Hook(#[from] HookError),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl EngineError {
    /// Whether the configuration has to be changed, and another try would not help.
    pub fn is_configuration(&self) -> bool {
        !matches!(self, Self::Store(_))
    }
}

/// What an engine takes of the world. A simulation hands in its own.
pub struct Edges {
    /// The name in its leases, which no other engine has.
    pub owner: String,
    /// For jitter.
    pub dice: Dice,
    /// The API of each account.
    pub apis: BTreeMap<String, Asked>,
    /// Makes attempts, and ends them early when the stop has come as far as [`Phase::Hurry`].
    pub perform: Box<dyn FnOnce(Stop) -> Perform + Send>,
}

/// The API, as it is asked with the key of one account.
pub struct Asked {
    /// Asks about one asset.
    pub poll: Poll,
    /// Whether the key has changed since it was last asked.
    pub rekeyed: Arc<dyn Fn() -> bool + Send + Sync>,
}

impl Edges {
    /// The real ones: HTTP and child processes.
    fn of(settings: &Settings, clock: &Clock) -> Result<Self, EngineError> {
        let hooks = Hooks::new(&settings.hooks, settings.callbacks.as_ref(), |name| std::env::var_os(name))?;
        let named = |account: &config::Account| Ok((account.name.clone(), Asked::by_http(account, clock.clone())?));
        let apis = settings.accounts.iter().map(named).collect::<Result<_, EngineError>>()?;
        let clock = clock.clone();
        Ok(Self {
            owner: owner()?,
            dice: Dice::fair(),
            apis,
            perform: Box::new(move |stop| perform(Arc::new(hooks), clock, stop)),
        })
    }
}

impl Asked {
    fn by_http(account: &config::Account, clock: Clock) -> Result<Self, EngineError> {
        let key = read_key(&account.key);
        let key = key.map_err(|error| EngineError::Key { account: account.name.clone(), error })?;
        let api = Api::new(&account.url, key.expose(), account.timeout, clock);
        let api = Arc::new(api.map_err(|error| EngineError::Api { account: account.name.clone(), error })?);
        let (asked, source) = (Arc::clone(&api), account.key.clone());
        Ok(Self {
            poll: Arc::new(move |asset_id| {
                let api = Arc::clone(&asked);
                Box::pin(async move { api.poll(&asset_id).await })
            }),
            // A key that cannot be read or sent is not a new one: the account stays as it is.
            rekeyed: Arc::new(move || read_key(&source).is_ok_and(|key| api.set_key(key.expose()).unwrap_or(false))),
        })
    }
}

/// A poller and a relay that run, and a janitor where everything is ours to look after.
pub struct Engine {
    owner: String,
    control: Control,
    announce: watch::Sender<Phase>,
    pumps: JoinSet<()>,
    wakes: [Wake; 2],
    pulses: [(&'static str, Pulse); 2],
    paces: Paces,
    slots: Slots,
    kill_after: Duration,
    longest: Duration,
}

impl Engine {
    /// Sets the line up and starts it; with `only`, for these watches alone. `paces` are those of the engine before.
    ///
    /// # Errors
    /// When the configuration cannot be used; nothing has been started then.
    pub async fn start(
        control: &Control,
        settings: &Settings,
        only: Option<Vec<i64>>,
        before: Option<&Self>,
    ) -> Result<Self, EngineError> {
        confine(settings);
        let edges = Edges::of(settings, &control.clock)?;
        Self::with(control, settings, (only, before), edges).await
    }

    /// [`Engine::start`], with other edges than those of the configuration.
    ///
    /// # Errors
    /// When an account has no API among the edges, or the database fails; nothing has been started then.
    pub async fn with(
        control: &Control,
        settings: &Settings,
        (only, before): (Option<Vec<i64>>, Option<&Self>),
        edges: Edges,
    ) -> Result<Self, EngineError> {
        let Control { store, clock, .. } = control;
        let Edges { owner, dice, apis, perform } = edges;
        let everything = only.is_none();
        let (announce, stop) = Stop::channel();
        let (polling, telling) = (Wake::default(), Wake::default());
        let accounts = accounts(control, settings, before, apis).await?;
        let paces = accounts.values().map(|account| (account.name.clone(), Arc::clone(&account.pace))).collect();
        let slots = before.map(|engine| engine.slots.clone()).unwrap_or_default();
        let poller = Poller {
            store: store.clone(),
            clock: clock.clone(),
            dice: dice.clone(),
            owner: owner.clone(),
            accounts,
            subscriptions: settings.hooks.iter().map(|hook| hook.subscription.clone()).collect(),
            tell_batch: control.tell_batch(),
            only: only.clone(),
            wake: polling.clone(),
            told: telling.clone(),
            live: Live::default(),
            unknown: Mutex::default(),
        };
        let relay = Relay {
            store: store.clone(),
            clock: clock.clone(),
            dice,
            owner: owner.clone(),
            hooks: settings.hooks.iter().map(lane).collect(),
            callbacks: Some(callback_lane()),
            slots: slots.clone(),
            subscriptions: settings.hooks.iter().map(|hook| hook.subscription.clone()).collect(),
            looked_at: Mutex::default(),
            perform: perform(stop.clone()),
            only,
            live: Live::default(),
        };
        let wakes = [polling.clone(), telling.clone()];
        // Nothing can fail any more; and two pollers of one account would claim more than there is room for.
        before.into_iter().for_each(Self::drain);
        let mut pumps = JoinSet::new();
        let pulses = [(Poller::NAME, Pulse::default()), (Relay::NAME, Pulse::default())];
        pumps.spawn(pump::run(Arc::new(poller), polling, stop.clone(), pulses[0].1.clone()));
        pumps.spawn(pump::run(Arc::new(relay), telling, stop.clone(), pulses[1].1.clone()));
        if everything {
            let janitor = Janitor { store: store.clone(), clock: clock.clone(), retention: settings.retention };
            pumps.spawn(janitor::run(janitor, stop));
        }
        let kill_after = settings.hooks.iter().map(kill_after).max().unwrap_or_default();
        let longest = settings.hooks.iter().map(|hook| hook.timeout).max().unwrap_or_default().max(CALLBACK_TIMEOUT);
        Ok(Self { owner, control: control.clone(), announce, pumps, wakes, pulses, paces, slots, kill_after, longest })
    }

    /// The longest that an attempt takes.
    pub fn longest(&self) -> Duration {
        self.longest
    }

    /// The name in its leases.
    pub fn owner(&self) -> &str {
        &self.owner
    }

    /// Waits until one of its tasks ends by itself, which it never should.
    pub async fn ended(&mut self) -> String {
        match self.pumps.join_next().await {
            Some(Err(error)) => format!("the poller, the relay or the janitor failed: {error}"),
            Some(Ok(())) | None => "the poller, the relay or the janitor ended by itself".into(),
        }
    }

    /// Has both pumps look again: something may be due of which no worker of theirs has told them.
    pub fn wake(&self) {
        self.wakes.iter().for_each(Wake::wake);
    }

    /// What the verbs of this process know of it.
    pub fn running(&self) -> Running {
        let [polling, telling] = self.wakes.clone();
        Running { polling, telling, paces: self.paces.clone() }
    }

    /// The pump that has not turned since everything last did, if there is one; none when all have turned again.
    pub fn stuck(&self) -> Option<&'static str> {
        let stuck = self.pulses.iter().find(|(_, pulse)| !pulse.is_felt()).map(|(name, _)| *name);
        if stuck.is_none() {
            self.pulses.iter().for_each(|(_, pulse)| pulse.clear());
        }
        stuck
    }

    /// Claims no more.
    pub fn drain(&self) {
        self.announce.send_replace(Phase::Drain);
    }

    /// Stops: no more claims, `grace` for what is in flight, then what is left is ended and its leases handed back.
    /// `abort` ends the waiting at once.
    ///
    /// # Errors
    /// When the leases could not be handed back; they expire by themselves.
    pub async fn stop(mut self, grace: Duration, abort: impl Future<Output = ()>) -> Result<(), StoreError> {
        self.drain();
        tokio::pin!(abort);
        for (phase, patience) in [(Phase::Hurry, grace), (Phase::Abort, self.kill_after + HURRY)] {
            tokio::select! {
                biased;
                () = &mut abort => break,
                in_time = timeout(patience, all_ended(&mut self.pumps)) => if in_time.is_ok() { break },
            }
            tracing::warn!("work is still in flight; it is ended, and is due again at the next start");
            self.announce.send_replace(phase);
        }
        self.announce.send_replace(Phase::Abort);
        all_ended(&mut self.pumps).await;
        self.control.store.release(self.owner, self.control.clock.now()).await
    }
}

/// What the process is from now on, once it holds keys and runs commands. Both are precautions: without them it works.
pub fn confine(settings: &Settings) {
    // A command of the same user could read our environment in /proc, or attach to us.
    if let Err(error) = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        tracing::warn!("commands of the same user can read this process's environment: {error}");
    }
    if settings.hooks.iter().any(|hook| matches!(hook.target, Target::Command(_)))
        && let Err(error) = hook::adopt_orphans()
    {
        tracing::warn!("processes that escape from their command are not ended: {error}");
    }
}

async fn all_ended(pumps: &mut JoinSet<()>) {
    while pumps.join_next().await.is_some() {}
}

/// A name that no other process and no other engine of this one has.
fn owner() -> Result<String, StoreError> {
    let mut bytes = [0; 5];
    getrandom::fill(&mut bytes).map_err(|error| StoreError::Broken(format!("no random numbers: {error}")))?;
    Ok(format!("{}-{}-{}", hostname(), std::process::id(), base32(&bytes)))
}

/// Sets up every account before it changes any: those of the engine before go on as they are if one cannot be.
async fn accounts(
    control: &Control,
    settings: &Settings,
    before: Option<&Engine>,
    mut apis: BTreeMap<String, Asked>,
) -> Result<BTreeMap<String, Account>, EngineError> {
    let (now, tick) = (control.clock.now(), control.clock.tick());
    let rows = control.store.accounts().await?;
    let mut accounts = BTreeMap::new();
    for account in &settings.accounts {
        let row = rows.iter().find(|row| row.name == account.name).cloned();
        let row = row.unwrap_or_else(|| AccountRow { name: account.name.clone(), ..AccountRow::default() });
        let kept = before.and_then(|engine| engine.paces.get(&account.name)).cloned();
        let resumed = || Arc::new(Mutex::new(Pace::resumed(account.limits, &known(&row, now, tick), tick)));
        let pace = kept.unwrap_or_else(resumed);
        let asked = apis.remove(&account.name).ok_or_else(|| EngineError::Unasked { account: account.name.clone() })?;
        accounts.insert(account.name.clone(), set_up(account, pace, row, asked));
    }
    for account in accounts.values() {
        // It is tried now: what an earlier process planned is over.
        let planned = {
            let mut noted = account.noted.lock().unwrap_or_else(PoisonError::into_inner);
            noted.next_probe_at = noted.next_probe_at.map(|_| now);
            noted.clone()
        };
        if planned.closure.is_some() {
            control.store.note_account(planned, Vec::new()).await?;
        }
    }
    for account in &settings.accounts {
        if let Some(set_up) = accounts.get(&account.name) {
            let mut pace = set_up.pace.lock().unwrap_or_else(PoisonError::into_inner);
            pace.set_limits(account.limits);
            // A start or a reload is a person's word that it is worth a try.
            pace.probe_now();
        }
    }
    Ok(accounts)
}

/// What an earlier process has found out. Another program may have written anything.
fn known(row: &AccountRow, now: Timestamp, tick: Tick) -> Known {
    let hold = row.held_until.map_or(Duration::ZERO, |until| until.since(now)).min(LONGEST_RETRY_AFTER);
    let closed = row.closure.as_deref().and_then(Closure::parse);
    Known {
        rate: row.rate,
        held_until: tick + hold,
        lost_ms: row.lost_ms.saturating_add(match row.closed_at {
            Some(closed_at) if closed.is_some() => i64::try_from(now.since(closed_at).as_millis()).unwrap_or(i64::MAX),
            Some(_) | None => 0,
        }),
        closed: closed.map(|why| (why, row.closed_at.map_or(Duration::ZERO, |closed_at| now.since(closed_at)))),
    }
}

fn set_up(account: &config::Account, pace: Arc<Mutex<Pace>>, noted: AccountRow, asked: Asked) -> Account {
    Account {
        name: account.name.clone(),
        rules: account.rules.clone(),
        timeout: account.timeout,
        pace,
        poll: asked.poll,
        rekeyed: asked.rekeyed,
        meter: Polls::of(&account.name),
        noted: Mutex::new(noted),
    }
}

fn read_key(source: &KeySource) -> Result<config::Secret, KeyError> {
    source.read(|name| std::env::var_os(name))
}

fn lane(hook: &config::Hook) -> (String, HookLane) {
    let timeout = hook.timeout + kill_after(hook);
    let (schedule, meter) = (hook.schedule.clone(), Attempts::of(&hook.subscription.hook));
    let lane = HookLane { timeout, concurrency: hook.concurrency, schedule, rate: hook.rate, meter };
    (hook.subscription.hook.clone(), lane)
}

fn callback_lane() -> HookLane {
    let schedule = decide::SCHEDULE.into();
    let meter = Attempts::of(CALLBACKS);
    HookLane { timeout: CALLBACK_TIMEOUT, concurrency: CALLBACK_CONCURRENCY, schedule, rate: None, meter }
}

fn kill_after(hook: &config::Hook) -> Duration {
    match &hook.target {
        Target::Webhook(_) => Duration::ZERO,
        Target::Command(command) => command.kill_after,
    }
}

fn perform(hooks: Arc<Hooks>, clock: Clock, stop: Stop) -> Perform {
    Arc::new(move |parcel| {
        let (hooks, now, stop) = (Arc::clone(&hooks), clock.now(), stop.clone());
        let performing = async move {
            let hook = parcel.delivery.hook.clone();
            hooks.perform(&hook, &parcel, now, stop.reached(Phase::Hurry)).await
        };
        Box::pin(performing) as Pin<Box<dyn Future<Output = _> + Send>>
    })
}
