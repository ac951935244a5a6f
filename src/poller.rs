//! Polling: claim → poll → decide → record. The pump's first use.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::clock::{Clock, Dice, Tick, Timestamp};
use crate::decide::{self, Moment, Polled, Rules};
use crate::event::{Batch, Event, Fact, Notice, Subscription, Telling};
use crate::meter::Polls;
use crate::pace::{Closure, Pace, Room, Turn};
use crate::pump::{Gate, Lanes, Live, Wake, Work, insist};
use crate::store::{AccountRow, Claimed, Lane, Store, StoreError, TellBatch, Terms};
use crate::watch::{Reason, State, Watch};

/// A lease lasts as long as a request may, and this much for the writing.
const MARGIN: Duration = Duration::from_secs(10);
/// Final statuses that are not worth a warning.
const KNOWN: [&str; 3] = ["active", "archive", "censored"];
/// So many unknown statuses are warned of once each.
const MOST_UNKNOWN: usize = 100;

/// Asks the API about one asset. The seam at which a simulation stands in for the world.
pub type Poll = Arc<dyn Fn(String) -> Pin<Box<dyn Future<Output = Polled> + Send>> + Send + Sync>;

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
    /// How it stands, as far as that was written down.
    pub noted: Mutex<AccountRow>,
    /// What its polls are counted with.
    pub meter: Polls,
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
    /// How they are told when a watch was the last of its batch.
    pub tell_batch: TellBatch,
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

/// What a poll means for its account, and the account for the decision.
struct Ended {
    moment: Moment,
    turn: Option<Turn>,
}

impl InFlight<'_> {
    /// Takes note of what was seen, in one step: two polls that end at once do not see half of each other.
    fn end(mut self, polled: &Polled, alone: bool, (now, tick): (Timestamp, Tick), roll: f64) -> Ended {
        self.ended = true;
        let mut pace = self.account.pace();
        pace.keep_time(now, tick);
        pace.heard(&polled.quota, tick);
        let others_answered = pace.answered_another(self.watch);
        let turn = pace.ended(self.watch, decide::sign(&polled.observation, others_answered), alone, tick);
        let (lost_ms, jumps, closed) = (pace.lost_ms(tick), pace.jumps(tick), pace.closure().is_some());
        Ended { moment: Moment { now, roll, lost_ms, jumps, others_answered, closed }, turn }
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

    async fn lanes(&self) -> Result<Lanes, StoreError> {
        Ok(Lanes { names: self.accounts.keys().cloned().collect(), more: None })
    }

    fn gate(&self, lane: &str) -> Gate {
        // A lane that was named is one of ours.
        self.accounts.get(lane).map_or(Gate::Full, |account| self.gate_of(account))
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
        let begun = self.clock.tick();
        let mut polled = (account.poll)(watch.asset_id.clone()).await;
        let (now, tick) = (self.clock.now(), self.clock.tick());
        account.meter.polled(&polled.observation, &account.rules, tick.saturating_sub(begun));
        let said = polled.observation.text_mut().cloned().unwrap_or_default();
        let Ended { moment, turn } = in_flight.end(&polled, alone, (now, tick), self.dice.roll());
        let decision = decide::after_poll(&watch, polled.observation, &account.rules, &moment);
        let (after, facts) = decide::apply(&watch, decision, moment.lost_ms, now);
        self.wake.wake();
        self.note(account, turn, &said).await;
        self.record(account, &watch, (after, facts), now).await;
    }

    fn stirred(&self) -> bool {
        let (now, tick) = (self.clock.now(), self.clock.tick());
        let mut stirred = false;
        for account in self.accounts.values() {
            // After a jump of the clock what is due has to be looked for anew.
            stirred |= account.pace().keep_time(now, tick);
            if account.pace().closure().is_some() && (account.rekeyed)() {
                tracing::info!(account = account.name, "the key has changed; trying it");
                account.pace().probe_now();
                stirred = true;
            }
        }
        stirred
    }
}

impl Poller {
    fn gate_of(&self, account: &Account) -> Gate {
        let lane = |room, avoid, prefer| Lane {
            name: account.name.clone(),
            room,
            avoid,
            prefer,
            lease: account.timeout + MARGIN,
            again: 0,
            again_first: false,
        };
        match account.pace().room(self.clock.tick()) {
            Room::Open(0) => Gate::Full,
            Room::Open(room) => Gate::Open(lane(room, None, None)),
            Room::Probe { avoid, prefer } => Gate::Open(lane(1, avoid, prefer)),
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

    async fn record(&self, account: &Account, before: &Watch, (after, facts): (Watch, Vec<Fact>), now: Timestamp) {
        let telling = Telling { install_id: self.store.install_id(), subscriptions: &self.subscriptions };
        let previous = before.asset.status.as_deref();
        let events: Arc<[Event]> = facts.iter().map(|fact| Event::new(fact, &after, previous, now, &telling)).collect();
        let after = Arc::new(after);
        let write = || self.store.record(Arc::clone(&after), Arc::clone(&events), self.tell_batch.clone());
        match insist(write).await {
            Ok(batch) => {
                account.meter.recorded(before, &after);
                self.log(&after, now);
                if let Some(Batch { name, watches, .. }) = &batch {
                    tracing::info!(batch = name, batch.watches = watches, "the batch has settled");
                }
                if batch.is_some() || events.iter().any(|event| !event.addressees.is_empty()) {
                    self.told.wake();
                }
            }
            Err(StoreError::LeaseLost) => {
                account.meter.lease_lost();
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

    /// Writes down how the account stands, if that has changed, for those who look from outside and for the next start.
    async fn note(&self, account: &Account, turn: Option<Turn>, said: &str) {
        let name = account.name.as_str();
        let (changed, said) = {
            let mut noted = account.noted.lock().unwrap_or_else(PoisonError::into_inner);
            // Why it was closed, and not what any later poll said.
            let kept = noted.last_error.clone().filter(|_| !matches!(turn, Some(Turn::Closed(_))));
            let said = kept.unwrap_or_else(|| said.to_owned());
            let row = self.account_row(account, &said);
            let changed = differs(&noted, &row);
            if changed {
                *noted = row;
            }
            (changed, said)
        };
        let said = said.as_str();
        let events: Vec<Event> = turn.and_then(|turn| self.turned(account, turn, said)).into_iter().collect();
        if !changed && events.is_empty() {
            return;
        }
        // As it stands when it can be written: another turn may have come meanwhile.
        let note = || self.store.note_account(self.account_row(account, said), events.clone());
        match insist(note).await {
            Ok(()) if !events.is_empty() => self.told.wake(),
            Ok(()) => {}
            Err(error) => tracing::error!(account = name, "its standing was not recorded: {error}"),
        }
    }

    /// An account was closed or opened: said once, and told to the hooks that want to hear of it.
    fn turned(&self, account: &Account, turn: Turn, said: &str) -> Option<Event> {
        let name = account.name.clone();
        let notice = match turn {
            Turn::Closed(Closure::Unauthorized) => {
                tracing::error!(account = name, "paused: the API refuses the key ({said}); put a valid one in place");
                Notice::AccountPaused { account: name, reason: Closure::Unauthorized.as_str(), error: said.into() }
            }
            Turn::Closed(Closure::Unpaid) => {
                tracing::error!(account = name, "paused: the account has to be paid ({said})");
                Notice::AccountPaused { account: name, reason: Closure::Unpaid.as_str(), error: said.into() }
            }
            Turn::Closed(Closure::Untrusted) => {
                tracing::error!(
                    account = name,
                    "ALERT, paused: whoever answers at the API's address has no valid certificate ({said}); the key was \
                     not sent. Look at `api.url`, the machine's clock and its CA certificates"
                );
                Notice::AccountPaused { account: name, reason: Closure::Untrusted.as_str(), error: said.into() }
            }
            Turn::Closed(Closure::Broken) => {
                tracing::warn!(account = name, "the API cannot be used ({said}); trying with single polls");
                return None;
            }
            Turn::Slowed => {
                tracing::info!(account = name, "polled more slowly: the API throttles ({said})");
                return None;
            }
            Turn::Opened { after, lost } => {
                let lost = Duration::from_secs(lost.as_secs());
                let pause = humantime::format_duration(lost).to_string();
                tracing::info!(account = name, after = pause, "polled again");
                if !after.is_pause() {
                    return None;
                }
                Notice::AccountResumed { account: name, paused_for: lost }
            }
        };
        let telling = Telling { install_id: self.store.install_id(), subscriptions: &self.subscriptions };
        Some(Event::of_notice(&notice, self.dice.bytes(), self.clock.now(), &telling))
    }

    fn account_row(&self, account: &Account, said: &str) -> AccountRow {
        let (now, tick) = (self.clock.now(), self.clock.tick());
        let standing = account.pace().standing(tick);
        let (closure, since, probe) = standing.closed.map_or((None, None, None), |(why, lasts, probe)| {
            let since = Timestamp::from_millis(now.as_millis().saturating_sub(millis(lasts)));
            (Some(why), Some(since), Some(now + probe.saturating_sub(tick)))
        });
        AccountRow {
            name: account.name.clone(),
            closure: closure.map(|closure| closure.as_str().into()),
            closed_at: since,
            next_probe_at: probe,
            last_error: closure.map(|_| said.to_owned()),
            rate: standing.rate,
            held_until: standing.held_until.map(|until| now + until.saturating_sub(tick)),
            lost_ms: standing.lost_ms,
        }
    }
}

/// Whether `row` says something new; not for each small step of a rate, nor for what passes by itself.
fn differs(noted: &AccountRow, row: &AccountRow) -> bool {
    const CLOSE: Duration = Duration::from_secs(1);
    let apart = |a: Option<Timestamp>, b: Option<Timestamp>| match (a, b) {
        (Some(a), Some(b)) => a.since(b).max(b.since(a)) > CLOSE,
        (a, b) => a != b,
    };
    let rates = match (noted.rate, row.rate) {
        (Some(before), Some(after)) => (before - after).abs() > before / 10.0,
        (before, after) => before != after,
    };
    noted.closure != row.closure
        || apart(noted.next_probe_at, row.next_probe_at)
        || row.held_until.is_some() && apart(noted.held_until, row.held_until)
        || rates
        || noted.lost_ms.abs_diff(row.lost_ms) >= 1_000
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
