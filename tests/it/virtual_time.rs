//! The real poller and the real relay on the real store, in virtual time: tokio's clock is paused and jumps to the next
//! timer whenever nothing is left to do, while SQLite, in its blocking tasks, holds it still. So instants are exact, and
//! a day passes in seconds. Only the API and the hooks are simulated, through the two seams.

mod accounts;
mod clocks;
mod delivering;
mod measured;
mod polling;
mod pruning;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use assetwatch::clock::{Clock, Dice, Timestamp};
use assetwatch::decide::{self, Moment, Observation, Polled, Rules};
use assetwatch::delivery::{Attempt, Outcome};
use assetwatch::event::{Event, Subscription, Telling, Topic};
use assetwatch::meter::{Attempts, CALLBACKS, Polls};
use assetwatch::pace::{Jumps, Limits, Pace};
use assetwatch::poller::{Account, Poller};
use assetwatch::pump::{self, Gate, Lanes, Live, Phase, Pulse, Stop, Wake, Work};
use assetwatch::relay::{HookLane, Perform, Relay, Slots};
use assetwatch::store::{AccountRow, AddOptions, Added, Claimed, Filter, Lane, Store, StoreError, TellBatch, Terms};
use assetwatch::watch::{Asset, Watch};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// The wall clock when virtual time begins.
const BEGIN: Timestamp = Timestamp::from_millis(1_790_000_000_000);
const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(86_400);

/// A database, and the clocks.
struct World {
    directory: tempfile::TempDir,
    store: Store,
    clock: Clock,
    /// Milliseconds by which the wall clock was set.
    set_by: Arc<AtomicI64>,
    began: Instant,
}

impl World {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("assetwatch.db")).await.unwrap();
        let (began, set_by) = (Instant::now(), Arc::new(AtomicI64::new(0)));
        let set = Arc::clone(&set_by);
        let wall = move || {
            let elapsed = BEGIN + began.elapsed();
            Timestamp::from_millis(elapsed.as_millis() + set.load(Ordering::Relaxed))
        };
        Self { directory, store, clock: Clock::new(wall), set_by, began }
    }

    /// The store as another process has it: with connections of its own.
    async fn another_store(&self) -> Store {
        Store::open(self.store.path()).await.unwrap()
    }

    /// What another program would do.
    fn foreign(&self, sql: &str) {
        let connection = rusqlite::Connection::open(self.directory.path().join("assetwatch.db")).unwrap();
        connection.busy_timeout(Duration::from_secs(10)).unwrap();
        connection.execute_batch(sql).unwrap();
    }

    /// The first column of the first row, as another program sees it.
    fn ask<T: rusqlite::types::FromSql>(&self, sql: &str) -> T {
        let connection = rusqlite::Connection::open(self.directory.path().join("assetwatch.db")).unwrap();
        connection.query_row(sql, [], |row| row.get(0)).unwrap()
    }

    /// Lets time pass until so long after the beginning.
    async fn until(&self, instant: Duration) {
        tokio::time::sleep_until(self.began + instant).await;
    }

    fn set_wall_clock_by(&self, millis: i64) {
        self.set_by.fetch_add(millis, Ordering::Relaxed);
    }

    async fn add(&self, asset_ids: &[&str]) {
        self.add_to("default", asset_ids, None).await;
    }

    async fn add_to(&self, account: &str, asset_ids: &[&str], patience: Option<Duration>) {
        let asset_ids = asset_ids.iter().map(|id| (*id).into()).collect();
        let options = AddOptions { account: account.into(), patience, ..AddOptions::default() };
        let added = self.store.add(asset_ids, options, self.clock.now()).await.unwrap();
        assert!(added.iter().all(|added| matches!(added, Added::New(_))), "{added:?}");
    }

    /// An asset that has settled just now, and of which `hooks` are to be told.
    async fn settle(&self, asset_id: &str, hooks: &[&str]) -> i64 {
        self.add(&[asset_id]).await;
        let (watch, now) = (self.claim(asset_id, "who settles it", MINUTE).await, self.clock.now());
        let jumps = Jumps::default();
        let moment = Moment { now, roll: 0.5, lost_ms: 0, jumps, others_answered: false, closed: false };
        let decision = decide::after_poll(&watch, said("active"), &Rules::default(), &moment);
        let (after, facts) = decide::apply(&watch, decision, 0, now);
        let subscriptions: Vec<_> = hooks.iter().map(|hook| subscription(hook)).collect();
        let telling = Telling { install_id: self.store.install_id(), subscriptions: &subscriptions };
        let events: Vec<_> = facts.iter().map(|fact| Event::new(fact, &after, None, now, &telling)).collect();
        self.store.record(after, events, self.tell_batch()).await.unwrap();
        watch.id
    }

    /// A lease on this watch alone, for an owner that never works it.
    async fn claim(&self, asset_id: &str, owner: &str, lease: Duration) -> Watch {
        let watch = self.watch(asset_id).await;
        let (now, lane) = (self.clock.now(), lane(&watch.account, lease));
        let terms = Terms {
            owner: owner.into(),
            lanes: vec![lane],
            now,
            horizon: now + DAY,
            only: Some(vec![watch.id]),
            live: Vec::new(),
        };
        self.store.claim_watches(terms).await.unwrap().remove(0).rows.remove(0)
    }

    /// The newest watch of an asset.
    async fn watch(&self, asset_id: &str) -> Watch {
        let filter = Filter { asset_id: Some(asset_id.into()), ..Filter::default() };
        self.store.watches(filter).await.unwrap().remove(0)
    }

    /// A poller of these accounts.
    fn poller(&self, apis: &[&Api]) -> Arc<Poller> {
        Arc::new(Poller {
            live: Live::default(),
            store: self.store.clone(),
            clock: self.clock.clone(),
            dice: Dice::new(|| 0.5),
            owner: "us".into(),
            accounts: apis.iter().map(|api| (api.name.into(), api.account())).collect(),
            subscriptions: vec![subscription("cms")],
            tell_batch: self.tell_batch(),
            only: None,
            wake: Wake::default(),
            told: Wake::default(),
            unknown: Mutex::default(),
        })
    }

    /// No hook of theirs hears of batches.
    fn tell_batch(&self) -> TellBatch {
        let install_id = self.store.install_id().to_owned();
        Arc::new(move |batch| Event::batch_settled(batch, &Telling { install_id: &install_id, subscriptions: &[] }))
    }

    /// A relay for these receivers.
    fn relay(&self, receivers: &[&Receiver]) -> Arc<Relay> {
        let performs: BTreeMap<_, _> = receivers.iter().map(|receiver| (receiver.name, receiver.perform())).collect();
        Arc::new(Relay {
            live: Live::default(),
            store: self.store.clone(),
            clock: self.clock.clone(),
            dice: Dice::new(|| 0.0),
            owner: "us".into(),
            hooks: receivers.iter().map(|receiver| (receiver.name.into(), receiver.lane())).collect(),
            callbacks: Some(HookLane {
                timeout: 20 * SECOND,
                concurrency: 4,
                schedule: decide::SCHEDULE.into(),
                rate: None,
                meter: Attempts::of(CALLBACKS),
            }),
            slots: Slots::default(),
            subscriptions: vec![Subscription { on: vec![Topic::parse("hook.disabled")], ..subscription("operator") }]
                .into(),
            looked_at: Mutex::default(),
            perform: Arc::new(move |parcel| performs[parcel.delivery.hook.as_str()](parcel)),
            only: None,
        })
    }
}

/// Room for one row.
fn lane(name: &str, lease: Duration) -> Lane {
    Lane { name: name.into(), room: 1, avoid: None, prefer: None, lease, again: 1, again_first: false }
}

fn subscription(hook: &str) -> Subscription {
    let on = vec![Topic::Settled, Topic::Abandoned];
    Subscription { hook: hook.into(), on, accounts: Vec::new(), batches: Vec::new(), body: None }
}

/// An answer with this status.
fn said(status: &str) -> Observation {
    Observation::Answered { asset: Asset { status: Some(status.into()), ..Asset::default() }, note: None }
}

/// The answer of an API that broke.
fn broke() -> Observation {
    Observation::Unavailable { error: "503".into() }
}

/// The answer to a key that is not valid.
fn unauthorized() -> Observation {
    Observation::Unauthorized { error: "401".into() }
}

/// One request, as the simulated API sees it.
#[derive(Clone, Debug, PartialEq)]
struct Asked {
    asset: String,
    /// How often it was asked about this asset, this time included.
    nth: usize,
    /// Since the beginning.
    at: Duration,
}

/// The simulated API of one account.
struct Api {
    name: &'static str,
    rules: Rules,
    limits: Limits,
    latency: Duration,
    answer: Arc<dyn Fn(&Asked) -> Polled + Send + Sync>,
    asked: Arc<Mutex<Vec<Asked>>>,
    answered: Arc<Mutex<Vec<(Duration, Observation)>>>,
    counts: Arc<Mutex<BTreeMap<String, usize>>>,
    began: Instant,
}

impl Api {
    /// The API of the account `default`, whose limits no test meets by chance.
    fn new(world: &World, answer: impl Fn(&Asked) -> Observation + Send + Sync + 'static) -> Self {
        Self::with_quotas(world, move |asked| answer(asked).into())
    }

    /// One whose answers speak of a quota.
    fn with_quotas(world: &World, answer: impl Fn(&Asked) -> Polled + Send + Sync + 'static) -> Self {
        Self {
            name: "default",
            rules: Rules::default(),
            limits: Limits { rate: 1_000.0, max_in_flight: 1_000 },
            latency: Duration::ZERO,
            answer: Arc::new(answer),
            asked: Arc::default(),
            answered: Arc::default(),
            counts: Arc::default(),
            began: world.began,
        }
    }

    fn account(&self) -> Account {
        let (answer, asked, began, latency) =
            (Arc::clone(&self.answer), Arc::clone(&self.asked), self.began, self.latency);
        let (answered, counts) = (Arc::clone(&self.answered), Arc::clone(&self.counts));
        Account {
            name: self.name.into(),
            rules: self.rules.clone(),
            timeout: 10 * SECOND,
            pace: Arc::new(Mutex::new(Pace::new(self.limits))),
            poll: Arc::new(move |asset| {
                let observation = {
                    let mut asked = asked.lock().unwrap();
                    let nth =
                        counts.lock().unwrap().entry(asset.clone()).and_modify(|nth| *nth += 1).or_insert(1).to_owned();
                    let request = Asked { asset, nth, at: began.elapsed() };
                    let polled = answer(&request);
                    answered.lock().unwrap().push((request.at, polled.observation.clone()));
                    asked.push(request);
                    polled
                };
                Box::pin(async move {
                    tokio::time::sleep(latency).await;
                    observation
                })
            }),
            rekeyed: Arc::new(|| false),
            meter: Polls::of(self.name),
            noted: Mutex::new(AccountRow { name: self.name.into(), ..AccountRow::default() }),
        }
    }

    fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    /// When it was asked at all, since the beginning.
    fn asked_at(&self) -> Vec<Duration> {
        self.asked.lock().unwrap().iter().map(|asked| asked.at).collect()
    }

    /// What it answered, and when.
    fn answered(&self) -> Vec<(Duration, Observation)> {
        self.answered.lock().unwrap().clone()
    }

    /// When it was asked about `asset`, in milliseconds since the beginning.
    fn instants(&self, asset: &str) -> Vec<u128> {
        self.asked().iter().filter(|asked| asked.asset == asset).map(|asked| asked.at.as_millis()).collect()
    }

    /// When it was asked at all, in seconds since the beginning.
    fn seconds(&self) -> Vec<u64> {
        self.asked().iter().map(|asked| asked.at.as_secs()).collect()
    }
}

/// One attempt, as the simulated receiver sees it.
#[derive(Clone, Debug, PartialEq)]
struct Told {
    asset: String,
    event_id: String,
    number: i64,
    /// Since the beginning.
    at: Duration,
}

/// The simulated receiver of one hook.
struct Receiver {
    name: &'static str,
    concurrency: u32,
    schedule: Vec<Duration>,
    rate: Option<f64>,
    latency: Duration,
    answer: Arc<dyn Fn(&Told) -> Outcome + Send + Sync>,
    told: Arc<Mutex<Vec<Told>>>,
    began: Instant,
}

impl Receiver {
    fn new(world: &World, name: &'static str, answer: impl Fn(&Told) -> Outcome + Send + Sync + 'static) -> Self {
        Self {
            name,
            concurrency: 4,
            schedule: decide::SCHEDULE.into(),
            rate: None,
            latency: Duration::ZERO,
            answer: Arc::new(answer),
            told: Arc::default(),
            began: world.began,
        }
    }

    fn lane(&self) -> HookLane {
        let (concurrency, schedule) = (self.concurrency, self.schedule.clone());
        HookLane { timeout: 20 * SECOND, concurrency, schedule, rate: self.rate, meter: Attempts::of(self.name) }
    }

    fn perform(&self) -> Perform {
        let (answer, told, began, latency) =
            (Arc::clone(&self.answer), Arc::clone(&self.told), self.began, self.latency);
        Arc::new(move |parcel| {
            let body: serde_json::Value = serde_json::from_slice(&parcel.body).unwrap();
            let asset = body["data"]["asset_id"].as_str().unwrap_or_default().to_owned();
            let attempt =
                Told { asset, event_id: parcel.delivery.event_id, number: parcel.number, at: began.elapsed() };
            told.lock().unwrap().push(attempt.clone());
            let answer = Arc::clone(&answer);
            Box::pin(async move {
                tokio::time::sleep(latency).await;
                Attempt::bare(answer(&attempt))
            })
        })
    }

    fn told(&self) -> Vec<Told> {
        self.told.lock().unwrap().clone()
    }

    /// When it was told of `asset`, in seconds since the beginning.
    fn seconds(&self, asset: &str) -> Vec<u64> {
        self.told().iter().filter(|told| told.asset == asset).map(|told| told.at.as_secs()).collect()
    }
}

/// An attempt that failed.
fn failed(not_before: Option<Duration>) -> Outcome {
    Outcome::Failed { error: "503".into(), not_before }
}

/// A pump that runs.
struct Running {
    announce: watch::Sender<Phase>,
    task: JoinHandle<()>,
    turns: Arc<AtomicU64>,
}

impl Running {
    fn start<W: Work>(work: Arc<W>, wake: Wake) -> Self {
        let (announce, stop) = Stop::channel();
        let turns = Arc::new(AtomicU64::new(0));
        let counted = Counted { work, claims: Arc::clone(&turns) };
        Self { announce, task: tokio::spawn(pump::run(Arc::new(counted), wake, stop, Pulse::default())), turns }
    }

    fn poller(poller: &Arc<Poller>) -> Self {
        Self::start(Arc::clone(poller), poller.wake.clone())
    }

    fn relay(relay: &Arc<Relay>) -> Self {
        Self::start(Arc::clone(relay), Wake::default())
    }

    /// How often the pump has looked at its lanes: once a turn.
    fn turns(&self) -> u64 {
        self.turns.load(Ordering::Relaxed)
    }

    /// Lets what is in flight end; a panic of the pump is the test's.
    async fn stop(self) {
        self.announce.send_replace(Phase::Drain);
        self.task.await.unwrap();
    }
}

/// The work, and how often the pump asked for its lanes.
struct Counted<W> {
    work: Arc<W>,
    claims: Arc<AtomicU64>,
}

impl<W: Work> Work for Counted<W> {
    type Item = W::Item;

    const NAME: &'static str = W::NAME;

    fn store(&self) -> &Store {
        self.work.store()
    }

    fn clock(&self) -> &Clock {
        self.work.clock()
    }

    async fn lanes(&self) -> Result<Lanes, StoreError> {
        self.claims.fetch_add(1, Ordering::Relaxed);
        self.work.lanes().await
    }

    fn gate(&self, lane: &str) -> Gate {
        self.work.gate(lane)
    }

    async fn claim(&self, lanes: Vec<Lane>) -> Result<Vec<Claimed<Self::Item>>, StoreError> {
        self.work.claim(lanes).await
    }

    async fn work(self: Arc<Self>, lane: String, item: Self::Item) {
        Arc::clone(&self.work).work(lane, item).await;
    }

    fn stirred(&self) -> bool {
        self.work.stirred()
    }
}

/// The sums of `gaps`, from zero.
fn sums(gaps: &[u128]) -> Vec<u128> {
    let sum = |at: &mut u128, gap: &u128| {
        *at += gap;
        Some(*at)
    };
    std::iter::once(0).chain(gaps.iter().scan(0, sum)).collect()
}

/// How many of `instants` there are in the fullest second that begins with one of them.
fn fullest_second(instants: &[Duration]) -> usize {
    let from = |first: usize| instants[first..].iter().take_while(|later| **later < instants[first] + SECOND).count();
    (0..instants.len()).map(from).max().unwrap_or(0)
}

/// How many requests there were about each asset.
fn per_asset(asked: &[Asked]) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    asked.iter().for_each(|asked| *counts.entry(asked.asset.as_str()).or_default() += 1);
    counts
}
