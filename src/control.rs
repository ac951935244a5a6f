//! The verbs, once: what the command line and the HTTP interface do to watches.

mod checks;
mod deliveries;
mod hooks;
mod overview;
mod show;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::Serialize;
use utoipa::ToSchema;

pub use checks::{check_account, check_batch, check_callback_url, check_metadata, duration, instant, parse_duration};
pub use hooks::{HookShown, HookState, HookVerbError, Tested};
pub use overview::{AccountShown, DeliveryCounts, OverviewShown, WatchCounts};
pub use show::{Shown, Told, unknown_watch};

use crate::clock::{Clock, Timestamp};
use crate::config::Hook;
use crate::decide;
use crate::event::{Batch, Event, Fact, Subscription, Telling};
use crate::pace::Pace;
use crate::pump::Wake;
pub use crate::store::AddOptions;
use crate::store::{AccountRow, Added, DaemonRow, EventRow, Filter, Store, StoreError, TellBatch};
use crate::watch::{State, Watch};

/// A daemon whose latest sign of life is older is taken for dead.
const FRESH: Duration = Duration::from_secs(20);
/// Cancelled in one transaction: each may tell its hooks, and settle its batch.
pub const CANCELLED_AT_ONCE: usize = 1_000;

/// Does what an operator asks for.
#[derive(Clone)]
pub struct Control {
    /// The truth.
    pub store: Store,
    /// What time it is.
    pub clock: Clock,
    /// The hooks that the configuration names.
    pub hooks: Vec<Hook>,
    /// The accounts that the configuration names.
    pub accounts: Vec<String>,
    /// The poller and the relay of this process, if it has them: whatever a verb makes due is worked at once.
    pub running: Running,
}

/// What a daemon's verbs know of its own poller and relay; nothing of it where none runs.
#[derive(Clone, Default)]
pub struct Running {
    /// Has the poller look again.
    pub polling: Wake,
    /// Has the relay look again.
    pub telling: Wake,
    /// How each account is paced.
    pub paces: BTreeMap<String, Arc<Mutex<Pace>>>,
}

/// What `add` did with one id. As JSON it has `asset_id`, `result`, and `watch` or `error`.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct AddResult {
    /// The id as it was given.
    pub asset_id: String,
    /// In one word.
    pub result: AddOutcome,
    /// Its newest watch, where there is one.
    pub watch: Option<Box<Watch>>,
    /// Why it was not added.
    pub error: Option<String>,
}

/// What `add` did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum AddOutcome {
    /// It is watched now.
    Added,
    /// It was being watched already.
    Watching,
    /// It has settled before.
    Settled,
    /// It is being watched with other options, or its batch is closed.
    Conflict,
    /// Its id is none.
    Refused,
}

/// What `cancel` did with one asset.
#[derive(Clone, Debug, PartialEq)]
pub enum Cancelled {
    /// It is not followed any more.
    Now(Box<Watch>),
    /// It had ended before.
    Ended(Box<Watch>),
    /// No watch of it is known.
    Unknown,
}

/// Nothing polls for an account: the configuration does not name it, and no daemon is there that may know it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the configuration names no account {name:?}, and no daemon is running: nothing polls for it; add its table \
     `[accounts.{name}]`, or name another account"
)]
pub struct UnpolledAccount {
    /// Its name.
    pub name: String,
}

impl Control {
    /// Starts to watch each of these assets. What is wrong with one does not keep the others from being added.
    ///
    /// # Errors
    /// When the database cannot be written to; of each [`AddOptions::ids_at_once`] of them all are added or none.
    pub async fn add(&self, asset_ids: Vec<String>, options: &AddOptions) -> Result<Vec<AddResult>, StoreError> {
        let mut results = Vec::with_capacity(asset_ids.len());
        for ids in asset_ids.chunks(options.ids_at_once()) {
            let added = self.store.add(ids.to_vec(), options.clone(), self.clock.now()).await?;
            results.extend(ids.iter().zip(added).map(|(id, added)| result(id, added)));
        }
        self.running.polling.wake();
        Ok(results)
    }

    /// Stops following the newest watch of each of these assets; hooks that want to hear of it are told. What became of
    /// each, in their order.
    ///
    /// # Errors
    /// When the database cannot be written to; of each [`CANCELLED_AT_ONCE`] of them all are cancelled or none.
    pub async fn cancel(&self, asset_ids: &[String], account: Option<&str>) -> Result<Vec<Cancelled>, StoreError> {
        let mut results = Vec::with_capacity(asset_ids.len());
        for ids in asset_ids.chunks(CANCELLED_AT_ONCE) {
            let newest = self.store.newest(ids.to_vec(), account.map(str::to_owned)).await?;
            results.extend(self.cancel_watches(newest).await?);
        }
        Ok(results)
    }

    /// Stops following this watch; hooks that want to hear of it are told.
    pub async fn cancel_watch(&self, newest: Watch) -> Result<Cancelled, StoreError> {
        let cancelled = self.cancel_watches(vec![Some(newest)]).await?.pop();
        Ok(cancelled.unwrap_or(Cancelled::Unknown))
    }

    async fn cancel_watches(&self, newest: Vec<Option<Watch>>) -> Result<Vec<Cancelled>, StoreError> {
        let (now, subscriptions) = (self.clock.now(), self.subscriptions());
        let install_id = self.store.install_id().to_owned();
        let rule = move |watch: &Watch| {
            let after = decide::cancelled(watch, now);
            let telling = Telling { install_id: &install_id, subscriptions: &subscriptions };
            let event = Event::new(&Fact::Cancelled, &after, watch.asset.status.as_deref(), now, &telling);
            (after, vec![event])
        };
        let ids = newest.iter().flatten().map(|watch| watch.id).collect();
        let mut ended = self.store.end(ids, rule, self.tell_batch()).await?.into_iter();
        self.running.telling.wake();
        let mut before = BTreeSet::new();
        let became = |newest: Option<Watch>| match newest.and_then(|newest| Some((newest.state, ended.next()??))) {
            None => Cancelled::Unknown,
            // It may have settled between the look and the write, or stand among them twice: then it was not cancelled.
            Some((State::Waiting, watch)) if watch.state == State::Cancelled && before.insert(watch.id) => {
                Cancelled::Now(Box::new(watch))
            }
            Some((_, watch)) => Cancelled::Ended(Box::new(watch)),
        };
        Ok(newest.into_iter().map(became).collect())
    }

    /// Has a waiting watch polled now, as far as its account's pace allows. The watch as it stands then, which may have
    /// ended; none when there is no such watch.
    pub async fn poll_now(&self, watch: i64) -> Result<Option<Watch>, StoreError> {
        let watch = self.store.poll_now(watch, self.clock.now()).await?;
        self.running.polling.wake();
        Ok(watch)
    }

    /// Closes a batch, which may settle with it; none when there is no such batch.
    pub async fn close_batch(&self, name: &str) -> Result<Option<Batch>, StoreError> {
        let closed = self.store.close_batch(name.to_owned(), self.clock.now(), self.tell_batch()).await?;
        self.running.telling.wake();
        Ok(closed)
    }

    /// The watch of this number.
    pub async fn watch(&self, id: i64) -> Result<Option<Watch>, StoreError> {
        let filter = Filter { ids: Some(vec![id]), ..Filter::default() };
        Ok(self.store.watches(filter).await?.pop())
    }

    /// The newest watch of an asset.
    pub async fn newest(&self, asset_id: &str, account: Option<&str>) -> Result<Option<Watch>, StoreError> {
        let mut newest = self.store.newest(vec![asset_id.into()], account.map(str::to_owned)).await?;
        Ok(newest.pop().flatten())
    }

    /// Watches, newest first.
    pub async fn list(&self, filter: Filter) -> Result<Vec<Watch>, StoreError> {
        self.store.watches(filter).await
    }

    /// A page of them, which ends after so many bytes of text, and whether there may be more.
    pub async fn page(&self, filter: Filter, bytes: usize) -> Result<(Vec<Watch>, bool), StoreError> {
        self.store.page(filter, bytes).await
    }

    /// How the configured accounts stand that are not as they should be: name and sentence.
    pub async fn account_standings(&self) -> Result<Vec<(String, String)>, StoreError> {
        let (rows, now) = (self.store.accounts().await?, self.clock.now());
        let configured = rows.into_iter().filter(|row| self.accounts.contains(&row.name));
        Ok(configured.filter_map(|row| account_standing(&row, now).map(|standing| (row.name, standing))).collect())
    }

    /// The accounts for which watches wait and which the configuration does not name: nothing polls for them.
    pub async fn unnamed_accounts(&self) -> Result<Vec<String>, StoreError> {
        let waiting = self.store.waiting_accounts().await?;
        Ok(waiting.into_iter().filter(|name| !self.accounts.contains(name)).collect())
    }

    /// Whether the configuration names this account.
    pub fn names_account(&self, name: &str) -> bool {
        self.accounts.iter().any(|known| known == name)
    }

    /// Who is told of what, by the configuration.
    pub fn subscriptions(&self) -> Vec<Subscription> {
        self.hooks.iter().map(|hook| hook.subscription.clone()).collect()
    }

    /// How hooks are told of a batch that has settled.
    pub fn tell_batch(&self) -> TellBatch {
        let (install_id, subscriptions) = (self.store.install_id().to_owned(), self.subscriptions());
        Arc::new(move |batch| {
            Event::batch_settled(batch, &Telling { install_id: &install_id, subscriptions: &subscriptions })
        })
    }

    /// Events after `after`, oldest first.
    pub async fn events(&self, after: i64, since: Timestamp, limit: u32) -> Result<Vec<EventRow>, StoreError> {
        Ok(self.store.events(after, since, limit, usize::MAX).await?.0)
    }

    /// Whether a daemon of another process works on this database.
    pub async fn another_daemon_is_alive(&self) -> Result<bool, StoreError> {
        let ours = (hostname(), std::process::id());
        self.is_alive(|daemon| (daemon.host.clone(), daemon.pid) != ours).await
    }

    /// Whether a daemon works on this database: one that gave a sign of life lately, and is still there if it runs on
    /// this machine.
    pub async fn daemon_is_alive(&self) -> Result<bool, StoreError> {
        self.is_alive(|_| true).await
    }

    async fn is_alive(&self, which: impl Fn(&DaemonRow) -> bool) -> Result<bool, StoreError> {
        let now = self.clock.now();
        let here = hostname();
        let daemons = self.store.daemons().await?;
        Ok(daemons.iter().filter(|daemon| which(daemon)).any(|daemon| {
            let fresh = now.since(daemon.heartbeat_at).max(daemon.heartbeat_at.since(now)) < FRESH;
            fresh && (daemon.host != here || process_exists(daemon.pid))
        }))
    }
}

/// How an account stands, in plain words; nothing where all is well.
pub fn account_standing(row: &AccountRow, now: Timestamp) -> Option<String> {
    let again = row.next_probe_at.filter(|at| *at > now).map(|at| format!("; tried again at {at}")).unwrap_or_default();
    let error = row.last_error.as_deref().unwrap_or_default();
    let sentence = match row.closure.as_deref() {
        Some("unauthorized") => format!("paused, the API refuses its key ({error}){again}, or when the key changes"),
        Some("unpaid") => format!("paused, it has to be paid ({error}){again}"),
        Some("untrusted") => {
            format!("paused, whoever answers at the API's address has no valid certificate ({error}){again}")
        }
        Some(_) => format!("the API cannot be used ({error}){again}"),
        None => match (row.held_until.filter(|until| *until > now), row.rate) {
            (Some(until), _) => format!("not polled until {until}, as the API asked"),
            (None, Some(rate)) => format!("polled {rate:.2} times a second at most, since the API throttles"),
            (None, None) => return None,
        },
    };
    Some(sentence)
}

/// The name of this machine, as `daemons` and leases have it.
pub fn hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

fn process_exists(pid: u32) -> bool {
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
    // EPERM: it is there, and somebody else's.
    pid.is_some_and(|pid| rustix::process::test_kill_process(pid) != Err(rustix::io::Errno::SRCH))
}

fn result(asset_id: &str, added: Added) -> AddResult {
    let (result, watch, error) = match added {
        Added::New(watch) => (AddOutcome::Added, Some(watch), None),
        Added::Known(watch) if watch.state == State::Waiting => (AddOutcome::Watching, Some(watch), None),
        Added::Known(watch) => (AddOutcome::Settled, Some(watch), None),
        Added::Conflict { watch, column } => {
            let error = format!(
                "it is being watched with another {column}, which is not changed; cancel it first, or leave that out"
            );
            (AddOutcome::Conflict, Some(watch), Some(error))
        }
        Added::BatchClosed => {
            let error = "the batch is closed: it takes no more watches";
            (AddOutcome::Conflict, None, Some(error.into()))
        }
        Added::Refused(why) => (AddOutcome::Refused, None, Some(why)),
    };
    AddResult { asset_id: asset_id.into(), result, watch, error }
}
