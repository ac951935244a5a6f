//! Polling: claim → poll → decide → record. The pump's first use.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::clock::{Clock, Dice, Timestamp};
use crate::decide::{self, Moment, Observation, Rules};
use crate::event::{Event, Fact, Subscription, Telling};
use crate::pace::{Closure, Pace, Room, Sign, Turn};
use crate::pump::{Gate, Live, Wake, Work, insist};
use crate::store::{AccountRow, Claimed, Lane, Store, StoreError, Terms};
use crate::watch::{Reason, State, Watch};

/// A lease lasts as long as a request may, and this much for the writing.
const MARGIN: Duration = Duration::from_secs(10);
/// Final statuses that are not worth a warning.
const KNOWN: [&str; 3] = ["active", "archive", "censored"];
/// So many unknown statuses are warned of once each.
const MOST_UNKNOWN: usize = 100;

/// Asks the API about one asset. The seam at which a simulation stands in for the world.
pub type Poll = Arc<dyn Fn(String) -> Pin<Box<dyn Future<Output = Observation> + Send>> + Send + Sync>;

/// One account, as the poller works it.
pub struct Account {
    /// Its name: the lane.
    pub name: String,
    /// What an answer means.
    pub rules: Rules,
    /// The longest that a request takes.
    pub timeout: Duration,
    /// How fast, and whether at all.
    pub pace: Arc<Mutex<Pace>>,
    /// Asks the API with this account's key.
    pub poll: Poll,
    /// Whether the key has changed since it was last asked.
    pub rekeyed: Arc<dyn Fn() -> bool + Send + Sync>,
}

/// What a poller needs.
pub struct Poller {
    /// The truth.
    pub store: Store,
    /// What time it is.
    pub clock: Clock,
    /// For jitter.
    pub dice: Dice,
    /// The name in our leases.
    pub owner: String,
    /// The lanes.
    pub accounts: BTreeMap<String, Account>,
    /// Who is told.
    pub subscriptions: Vec<Subscription>,
    /// Only these watches; all when absent.
    pub only: Option<Vec<i64>>,
    /// Our own pump, for when a request has ended but its worker has not.
    pub wake: Wake,
    /// The relay, for when there is something to deliver.
    pub told: Wake,
    /// What our workers are at.
    pub live: Live,
    /// Which unknown statuses were warned of.
    pub unknown: Mutex<BTreeSet<String>>,
}

impl Account {
    fn pace(&self) -> MutexGuard<'_, Pace> {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request that is under way; if its worker is dropped, the account has its slot back.
struct InFlight<'a> {
    account: &'a Account,
    watch: i64,
    ended: bool,
}

impl InFlight<'_> {
    fn end(mut self, sign: Sign, alone: bool, clock: &Clock) -> Option<Turn> {
        self.ended = true;
        self.account.pace().ended(self.watch, sign, alone, clock.tick())
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        if !self.ended {
            self.account.pace().dropped(self.watch);
        }
    }
}

impl Work for Poller {
    /// A leased watch, and whether it is the only one of its account that waits.
    type Item = (Watch, bool);

    const NAME: &'static str = "poller";

    fn store(&self) -> &Store {
        &self.store
    }

    fn clock(&self) -> &Clock {
        &self.clock
    }

    fn gates(&self) -> Vec<Gate> {
        self.accounts.values().map(|account| self.gate(account)).collect()
    }

    async fn claim(&self, lanes: Vec<Lane>) -> Result<Vec<Claimed<Self::Item>>, StoreError> {
        let now = self.clock.now();
        let longest = self.accounts.values().map(|account| account.rules.longest_wait()).max().unwrap_or_default();
        let owner = self.owner.clone();
        let terms = Terms { owner, lanes, now, horizon: now + longest, only: self.only.clone(), live: self.live.ids() };
        let claimed = self.store.claim_watches(terms).await?;
        Ok(claimed.into_iter().map(|claimed| self.took(claimed)).collect())
    }

    async fn work(self: Arc<Self>, lane: String, (watch, alone): Self::Item) {
        // A lane that was claimed from is one of ours.
        let Some(account) = self.accounts.get(&lane) else { return };
        let _working = self.live.until_dropped(watch.id);
        let in_flight = InFlight { account, watch: watch.id, ended: false };
        let mut observation = (account.poll)(watch.asset_id.clone()).await;
        let (now, tick) = (self.clock.now(), self.clock.tick());
        let (others_answered, lost) = {
            let pace = account.pace();
            (pace.answered_another(watch.id), pace.lost(tick))
        };
        let sign = decide::sign(&observation, others_answered);
        let said = observation.text_mut().cloned().unwrap_or_default();
        let moment = Moment { now, roll: self.dice.roll(), lost, others_answered };
        let decision = decide::after_poll(&watch, observation, &account.rules, &moment);
        let (after, facts) = decide::apply(&watch, decision, lost, now);
        let turn = in_flight.end(sign, alone, &self.clock);
        self.wake.wake();
        if let Some(turn) = turn {
            self.turned(account, turn, &said).await;
        }
        self.record(&watch, after, facts, now).await;
    }

    fn stirred(&self) -> bool {
        let closed = self.accounts.values().filter(|account| account.pace().closure().is_some());
        let rekeyed: Vec<_> = closed.filter(|account| (account.rekeyed)()).collect();
        for account in &rekeyed {
            tracing::info!(account = account.name, "the key has changed; trying it");
            account.pace().probe_now();
        }
        !rekeyed.is_empty()
    }
}

impl Poller {
    fn gate(&self, account: &Account) -> Gate {
        let lane = |room, avoid| Lane { name: account.name.clone(), room, avoid, lease: account.timeout + MARGIN };
        match account.pace().room(self.clock.tick()) {
            Room::Open(0) => Gate::Full(account.name.clone()),
            Room::Open(room) => Gate::Open(lane(room, None)),
            Room::Probe { avoid } => Gate::Open(lane(1, avoid)),
            Room::Closed(until) => Gate::Closed(until),
        }
    }

    fn took(&self, claimed: Claimed<Watch>) -> Claimed<(Watch, bool)> {
        let Claimed { lane, rows, next_due, alone } = claimed;
        if let Some(account) = self.accounts.get(&lane) {
            let ids: Vec<i64> = rows.iter().map(|watch| watch.id).collect();
            account.pace().took(&ids, self.clock.tick());
            self.live.begin(ids);
        }
        let rows = rows.into_iter().map(|watch| (watch, alone)).collect();
        Claimed { lane, rows, next_due, alone }
    }

    async fn record(&self, before: &Watch, after: Watch, facts: Vec<Fact>, now: Timestamp) {
        let telling = Telling { install_id: self.store.install_id(), subscriptions: &self.subscriptions };
        let previous = before.asset.status.as_deref();
        let events: Vec<Event> = facts.iter().map(|fact| Event::new(fact, &after, previous, now, &telling)).collect();
        match insist(|| self.store.record(after.clone(), events.clone())).await {
            Ok(()) => {
                self.log(&after, now);
                if events.iter().any(|event| !event.addressees.is_empty()) {
                    self.told.wake();
                }
            }
            Err(StoreError::LeaseLost) => {
                tracing::debug!(asset.id = after.asset_id, "another worker has taken over, or it was cancelled");
            }
            Err(error) => {
                tracing::error!(asset.id = after.asset_id, "the poll was not recorded and will be repeated: {error}");
            }
        }
    }

    /// One line for each change of state.
    fn log(&self, watch: &Watch, now: Timestamp) {
        let seconds = watch.first_polled_at.map_or(0, |first| now.since(first).as_secs());
        let (asset, polls) = (watch.asset_id.as_str(), watch.polls);
        let status = watch.asset.status.as_deref().unwrap_or_default();
        let error = watch.last_error.as_deref().unwrap_or_default();
        match watch.state {
            State::Settled => {
                tracing::info!(asset.id = asset, asset.status = status, watch.polls = polls, seconds, "settled");
                if !error.is_empty() {
                    tracing::warn!(asset.id = asset, "its last answer was odd: {error}");
                }
                self.warn_of_unknown(status);
            }
            State::Abandoned => {
                let reason = watch.reason.map_or("", Reason::as_str);
                tracing::warn!(asset.id = asset, watch.polls = polls, seconds, reason, "abandoned: {error}");
            }
            State::Waiting | State::Cancelled => {
                tracing::debug!(asset.id = asset, asset.status = status, watch.polls = polls, error, "still waiting");
            }
        }
    }

    fn warn_of_unknown(&self, status: &str) {
        let mut unknown = self.unknown.lock().unwrap_or_else(PoisonError::into_inner);
        if !KNOWN.contains(&status) && unknown.len() < MOST_UNKNOWN && unknown.insert(status.into()) {
            tracing::warn!(
                asset.status = status,
                "the API has a status that this version does not know; it is taken as final. \
                 If it is not, add it to `api.waiting_statuses`"
            );
        }
    }

    /// An account was closed or opened: said once, and written down for those who look from outside.
    async fn turned(&self, account: &Account, turn: Turn, said: &str) {
        let name = account.name.as_str();
        match turn {
            Turn::Closed(Closure::Unauthorized) => tracing::error!(
                account = name,
                "paused: the API refuses the key ({said}); put a valid one in place, it is tried again by itself"
            ),
            Turn::Closed(Closure::Unpaid) => {
                tracing::error!(account = name, "paused: the account has to be paid ({said})");
            }
            Turn::Closed(Closure::Broken) => {
                tracing::warn!(account = name, "the API cannot be used ({said}); trying with single polls");
            }
            Turn::Opened { lost, .. } => {
                let after = humantime::format_duration(Duration::from_secs(lost.as_secs())).to_string();
                tracing::info!(account = name, after, "polled again");
            }
        }
        // As it stands when it can be written: another turn may have come meanwhile.
        if let Err(error) = insist(|| self.store.note_account(self.account_row(account, said))).await {
            tracing::error!(account = name, "its standing was not recorded: {error}");
        }
    }

    fn account_row(&self, account: &Account, said: &str) -> AccountRow {
        let (now, tick) = (self.clock.now(), self.clock.tick());
        let pace = account.pace();
        let closure = pace.closure();
        AccountRow {
            name: account.name.clone(),
            closure: closure.map(|closure| closure.as_str().into()),
            closed_at: closure.map(|_| now),
            next_probe_at: pace.next_probe().map(|probe| now + probe.saturating_sub(tick)),
            last_error: closure.map(|_| said.to_owned()),
            lost_ms: i64::try_from(pace.lost(tick).as_millis()).unwrap_or(i64::MAX),
        }
    }
}
