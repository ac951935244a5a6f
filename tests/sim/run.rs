//! One seed from its first second to the last: does what the script says, sees to it that the dead are started again, and
//! when the troubles are over waits until nothing is left to do.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use assetwatch::control::{AddOptions, Control};
use assetwatch::store::{Blocking, Store};
use rusqlite::Connection;
use tokio::sync::Notify;

use crate::audit::Audit;
use crate::clock::{DAY, MINUTE, SECOND, Time};
use crate::daemon::{self, Daemon};
use crate::disk::{self, Process, Trouble};
use crate::script::{Action, Script};
use crate::world::{Shared, World};

/// What one run of a seed brought.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub seed: u64,
    pub hash: u64,
    pub lines: usize,
    pub text: String,
    pub failure: Option<String>,
    pub virtual_time: Duration,
    pub requests: u64,
    pub attempts: u64,
    pub deaths: u64,
}

/// Two of everything that is there twice.
const DAEMONS: usize = 2;

struct Run {
    world: Shared,
    script: Arc<Script>,
    time: Time,
    database: PathBuf,
    daemons: [Option<Daemon>; DAEMONS],
    operator: Option<Control>,
    next_process: Process,
    died: Arc<Notify>,
    failed: Arc<Notify>,
    /// What is still to be done, by instant and number.
    agenda: BTreeMap<(Duration, u64), Todo>,
    number: u64,
    lock: Option<Connection>,
    /// For how long a daemon stays down after its next death.
    down: [Duration; DAEMONS],
}

#[derive(Clone, Debug)]
enum Todo {
    Do(Action),
    Start(usize),
    Unlock,
    Calm,
    /// The operator comes back.
    Seat,
}

/// Plays a seed; `database` is a name that nobody else on this thread uses.
pub fn play(seed: u64, database: &Path, keep_trace: bool) -> Outcome {
    disk::vfs::install();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let outcome = runtime.block_on(async {
        let mut run = Run::new(Arc::new(Script::of(seed)), database, keep_trace).await;
        let time = run.time.clone();
        let failed = Arc::clone(&run.failed);
        tokio::select! {
            biased;
            () = failed.notified() => {}
            () = run.play() => {}
        }
        run.outcome(&time)
    });
    drop(runtime);
    outcome
}

impl Run {
    async fn new(script: Arc<Script>, database: &Path, keep_trace: bool) -> Self {
        let (died, failed) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        disk::format(script.seed, Arc::clone(&died));
        let time = Time::begin();
        found(database).await;
        let world = World::new(Arc::clone(&script), time.clone(), Audit::default(), Arc::clone(&failed), keep_trace);
        let mut run = Self {
            world: Shared::new(world),
            time,
            database: database.to_owned(),
            daemons: Default::default(),
            operator: None,
            next_process: 1,
            died,
            failed,
            agenda: BTreeMap::new(),
            number: 0,
            lock: None,
            down: [SECOND; DAEMONS],
            script: Arc::clone(&script),
        };
        for (at, action) in &script.actions {
            run.plan(*at, Todo::Do(action.clone()));
        }
        run.plan(script.length, Todo::Calm);
        for daemon in 0..script.daemons {
            run.plan(Duration::ZERO, Todo::Start(daemon));
        }
        run
    }

    fn plan(&mut self, at: Duration, todo: Todo) {
        self.number += 1;
        self.agenda.insert((at, self.number), todo);
    }

    fn process(&mut self) -> Process {
        self.next_process += 1;
        self.next_process
    }

    async fn play(&mut self) {
        self.seat_operator().await;
        while let Some((&(at, number), _)) = self.agenda.first_key_value() {
            let died = Arc::clone(&self.died);
            tokio::select! {
                biased;
                () = died.notified() => self.bury().await,
                () = self.time.until(at) => {
                    if let Some(todo) = self.agenda.remove(&(at, number)) {
                        self.take_up(todo).await;
                    }
                }
            }
        }
        self.wind_up().await;
    }

    /// The operator and the auditor, again after the power has failed.
    async fn seat_operator(&mut self) {
        let (auditor, operator) = (self.process(), self.process());
        self.world.lock().audit.open(&self.database, auditor);
        let settings = daemon::settings(&self.script, &self.database, 1.0);
        self.operator = daemon::control(&self.world, operator, &settings).await.ok();
        if self.operator.is_none() || !self.world.lock().audit.is_open() {
            // The disk is in trouble as well.
            self.plan(self.time.now() + SECOND, Todo::Seat);
        }
        self.world.lock().look(true);
    }

    /// Clears away who has died, and has it started again.
    async fn bury(&mut self) {
        let restored = disk::restore_power();
        if restored {
            self.world.lock().note(format_args!("the power is back"));
            (self.operator, self.lock) = (None, None);
        }
        for at in 0..self.daemons.len() {
            let dead = self.daemons[at].as_ref().is_some_and(|daemon| !disk::is_alive(daemon.process));
            if !dead {
                continue;
            }
            self.daemons[at] = None;
            let again = self.time.now() + self.down[at];
            let mut world = self.world.lock();
            world.note(format_args!("daemon {at} has died"));
            world.ended();
            // What it had leased is due again when the leases have run out.
            world.calm.disturb(again + MINUTE);
            drop(world);
            self.plan(again, Todo::Start(at));
        }
        if restored {
            self.seat_operator().await;
        }
    }

    async fn take_up(&mut self, todo: Todo) {
        self.world.lock().note(format_args!("{todo:?}"));
        disk::set_wall(self.time.wall());
        match todo {
            Todo::Start(at) => self.start(at).await,
            Todo::Unlock => {
                self.lock = None;
                self.disturb(5 * SECOND);
            }
            Todo::Calm => {
                disk::set_trouble(Trouble::default());
                self.world.lock().slow_disk = Duration::ZERO;
                self.disturb(20 * SECOND);
            }
            Todo::Seat => self.seat_operator().await,
            Todo::Do(action) => {
                if let Err(later) = self.act(action.clone()).await {
                    self.world.lock().note(format_args!("later: {later}"));
                    let at = self.time.now() + 7 * SECOND;
                    self.plan(at, Todo::Do(action));
                }
            }
        }
    }

    fn disturb(&self, lasts: Duration) {
        let until = self.time.now() + lasts;
        self.world.lock().calm.disturb(until);
    }

    async fn start(&mut self, at: usize) {
        if self.daemons[at].is_some() {
            return;
        }
        let process = self.process();
        match Daemon::start(&self.world, process, self.database.clone()).await {
            Ok(daemon) => self.daemons[at] = Some(daemon),
            Err(error) => {
                self.world.lock().note(format_args!("daemon {at} did not start: {error}"));
                disk::kill(process);
                let again = self.time.now() + SECOND;
                self.plan(again, Todo::Start(at));
            }
        }
    }

    async fn act(&mut self, action: Action) -> Result<(), String> {
        match action {
            Action::Add { assets, again, batch, patience } => self.add(&assets, (again, batch, patience)).await,
            Action::Insert(asset) => self.insert(asset),
            Action::Cancel(asset) => self.cancel(asset).await,
            Action::CloseBatch(batch) => {
                let closed = self.operator()?.close_batch(&batch).await;
                closed.map(drop).map_err(|error| error.to_string())
            }
            Action::Reload(at, faster) => {
                if let Some(daemon) = &mut self.daemons[at] {
                    daemon.reload(&self.world, faster).await.unwrap_or_else(|error| {
                        self.world.lock().note(format_args!("not reloaded: {error}"));
                    });
                    self.disturb(30 * SECOND);
                }
                Ok(())
            }
            Action::Restart(at, down) => {
                self.restart(at, down).await;
                Ok(())
            }
            Action::Crash { daemon, steps, power, down } => {
                self.down = [down; DAEMONS];
                if let Some(daemon) = &self.daemons[daemon] {
                    disk::doom(daemon.process, steps, power);
                }
                Ok(())
            }
            Action::SetClock(by) => {
                self.time.set_wall_by(by);
                let mut world = self.world.lock();
                world.set_at = self.time.now();
                world.set_unseen |= self.daemons.iter().flatten().count() < self.script.daemons;
                world.set_unseen |= by < 0 && self.script.daemons > 1;
                // Leases, due instants and holds lie so much further ahead then.
                let ahead = Duration::from_millis(u64::try_from(-by).unwrap_or(0));
                world.calm.put_off(self.time.now(), ahead);
                drop(world);
                self.disturb(ahead + MINUTE + 5 * SECOND);
                Ok(())
            }
            Action::Enable(hook) => {
                let (name, now) =
                    (self.script.hooks[hook].name.clone(), assetwatch::clock::Timestamp::from_millis(self.time.wall()));
                let enabled = self.operator()?.store.enable_hook(name, now).await;
                self.world.lock().calm.disturb_hook(hook, self.time.now() + 2 * MINUTE);
                enabled.map(drop).map_err(|error| error.to_string())
            }
            Action::RetryDead(hook) => {
                let (name, now) =
                    (self.script.hooks[hook].name.clone(), assetwatch::clock::Timestamp::from_millis(self.time.wall()));
                let began = assetwatch::clock::Timestamp::from_millis(0);
                self.world.lock().retried = true;
                let retried = self.operator()?.store.retry_dead(name, began, 0, now).await;
                retried.map(drop).map_err(|error| error.to_string())
            }
            disk => {
                self.trouble(disk);
                Ok(())
            }
        }
    }

    /// Stops a daemon that runs, and starts it again after a while.
    async fn restart(&mut self, at: usize, down: Duration) {
        let Some(daemon) = self.daemons[at].take() else { return };
        self.disturb(down + MINUTE);
        self.world.lock().ended();
        let (process, died) = (daemon.process, Arc::clone(&self.died));
        tokio::select! {
            biased;
            // It may die while it stops, and the others with it.
            () = died.notified() => died.notify_one(),
            () = daemon.stop() => {}
        }
        disk::kill(process);
        let again = self.time.now() + down;
        self.plan(again, Todo::Start(at));
        self.disturb(down + MINUTE);
    }

    /// Something happens to the disk, or to the file.
    fn trouble(&mut self, action: Action) {
        let lasts = match action {
            Action::Lock(lasts) => {
                let process = self.process();
                self.lock = disk::by(process, || {
                    let lock = Connection::open(&self.database).ok()?;
                    lock.execute_batch("BEGIN IMMEDIATE").is_ok().then_some(lock)
                });
                let at = self.time.now() + lasts;
                self.plan(at, Todo::Unlock);
                lasts
            }
            Action::DiskFull(lasts) => {
                disk::set_trouble(Trouble { full: true, sync_fails: 0 });
                lasts
            }
            Action::SyncFails(lasts, one_of) => {
                disk::set_trouble(Trouble { full: false, sync_fails: one_of });
                lasts
            }
            Action::SlowDisk(lasts, wait) => {
                self.world.lock().slow_disk = wait;
                lasts
            }
            _ => return,
        };
        let end = self.time.now() + lasts;
        self.plan(end, Todo::Calm);
        self.disturb(lasts + 20 * SECOND);
    }

    fn operator(&self) -> Result<&Control, String> {
        self.operator.as_ref().ok_or_else(|| "nobody can reach the database".into())
    }

    async fn add(
        &self,
        assets: &[usize],
        (again, batch, patience): (bool, Option<String>, Option<Duration>),
    ) -> Result<(), String> {
        for (at, account) in self.script.accounts.iter().enumerate() {
            let of_account = assets.iter().filter(|asset| self.script.assets[**asset].account == at);
            let ids: Vec<String> = of_account.map(|asset| self.script.assets[*asset].id.clone()).collect();
            let (batch, account) = (batch.clone(), account.name.clone());
            let options = AddOptions { account, again, batch, patience, ..AddOptions::default() };
            if !ids.is_empty() {
                self.operator()?.add(ids, &options).await.map_err(|error| error.to_string())?;
            }
        }
        Ok(())
    }

    /// As another program does it, with the defaults that the table gives.
    fn insert(&mut self, asset: usize) -> Result<(), String> {
        let process = self.process();
        let plan = &self.script.assets[asset];
        let row = [&plan.id, &self.script.accounts[plan.account].name];
        let inserted = disk::by(process, || {
            let connection = Connection::open(&self.database)?;
            connection.execute("INSERT INTO watches (asset_id, account) VALUES (?1, ?2) ON CONFLICT DO NOTHING", row)
        });
        inserted.map(drop).map_err(|error| error.to_string())
    }

    async fn cancel(&self, asset: usize) -> Result<(), String> {
        let plan = &self.script.assets[asset];
        self.world.lock().cancelled.insert((plan.account, plan.id.clone()));
        let account = &self.script.accounts[plan.account].name;
        let cancelled = self.operator()?.cancel(std::slice::from_ref(&plan.id), Some(account)).await;
        cancelled.map(drop).map_err(|error| error.to_string())
    }

    /// The troubles are over: what is still open has to come to its end.
    async fn wind_up(&mut self) {
        self.world.lock().note(format_args!("the troubles are over"));
        let end = self.time.now() + 3 * DAY;
        for hook in 0..self.script.hooks.len() {
            self.plan(self.time.now() + SECOND, Todo::Do(Action::Enable(hook)));
        }
        loop {
            let next = (self.time.now() + MINUTE, u64::MAX);
            let at = self.agenda.first_key_value().map_or(next, |(key, _)| (*key).min(next));
            let died = Arc::clone(&self.died);
            tokio::select! {
                biased;
                () = died.notified() => self.bury().await,
                () = self.time.until(at.0) => if let Some(todo) = self.agenda.remove(&at) {
                    self.take_up(todo).await;
                }
            }
            let mut world = self.world.lock();
            world.look(true);
            let open = world.audit.count("watches WHERE state = 'waiting'")
                + world.audit.count("deliveries WHERE state IN ('waiting', 'held')");
            if open == 0 && self.agenda.is_empty() || world.time.now() > end {
                break;
            }
        }
        for daemon in &mut self.daemons {
            if let Some(daemon) = daemon.take() {
                daemon.stop().await;
            }
        }
        self.world.lock().settle_accounts();
    }

    fn outcome(self, time: &Time) -> Outcome {
        let world = self.world.lock();
        Outcome {
            seed: self.script.seed,
            hash: world.trace.hash(),
            lines: world.trace.lines,
            text: world.trace.text().to_owned(),
            failure: world.failure().map(str::to_owned),
            virtual_time: time.now(),
            requests: world.requests,
            attempts: world.attempts,
            deaths: world.deaths,
        }
    }
}

/// A new database with small pages, which are written faster, and with an id that is the same each time.
async fn found(database: &Path) {
    let sql = |sql: &str| {
        let connection = disk::by(1, || Connection::open(database)).unwrap();
        connection.execute_batch(sql).unwrap();
    };
    sql("PRAGMA page_size = 1024; VACUUM");
    drop(Store::open_with(database, Blocking::new(|work| disk::by(1, work))).await.unwrap());
    sql("UPDATE meta SET value = 'simulation' WHERE key = 'install_id'");
}

impl Outcome {
    /// The failure, and how to see it again.
    pub fn report(&self) -> String {
        let mut text = String::new();
        if let Some(failure) = &self.failure {
            let _ = writeln!(text, "seed {} FAILED {failure}", self.seed);
            let _ = writeln!(
                text,
                "replay it, with its whole trace ({:016x}):\n    SIM_SEED={} cargo test --profile sim --test sim -- replay --nocapture",
                self.hash, self.seed
            );
        }
        text
    }
}
