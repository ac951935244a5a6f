//! How everything stands, in a few numbers: what a dashboard and a monitoring system look at first.

use std::collections::BTreeMap;
use std::sync::PoisonError;

use serde::Serialize;
use utoipa::ToSchema;

use super::{Control, HookShown, account_standing};
use crate::clock::Timestamp;
use crate::store::{AccountRow, Lateness, Overview, Settled, StoreError, WaitingTime};
use crate::watch::State;

/// So many minutes are counted.
const MINUTES: u32 = 60;
/// So many accounts that are not configured are shown: another program may have written any number of names.
const MOST_UNNAMED: usize = 20;

/// How everything stands.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct OverviewShown {
    /// The version of this program.
    pub version: &'static str,
    /// When this was looked at.
    pub now: Timestamp,
    /// How many watches there are.
    pub watches: WatchCounts,
    /// How many settled, by the API's word: the 20 most frequent ones.
    pub statuses: BTreeMap<String, i64>,
    /// Since when the longest overdue watch has been due, if one is.
    pub oldest_due_at: Option<Timestamp>,
    /// For how long the longest overdue watch has been due, in seconds.
    pub lag_seconds: f64,
    /// How many deliveries have not reached their hook.
    pub deliveries: DeliveryCounts,
    /// How many watches settled in each of the last 60 minutes, oldest first; the last one still goes on.
    pub settled_per_minute: Vec<Settled>,
    /// How long the assets waited that settled in the last 60 minutes, by their type; the latest 1,000 of each status count.
    pub waiting_times: Vec<WaitingTime>,
    /// How each account stands.
    pub accounts: Vec<AccountShown>,
    /// How each hook stands.
    pub hooks: Vec<HookShown>,
}

/// How many watches there are in each state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
#[expect(missing_docs, reason = "the words of `watch::State`")]
pub struct WatchCounts {
    pub waiting: i64,
    pub settled: i64,
    pub abandoned: i64,
    pub cancelled: i64,
}

/// How many deliveries have not reached their hook.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
#[expect(missing_docs, reason = "the words of `delivery::DeliveryState`")]
pub struct DeliveryCounts {
    pub waiting: i64,
    pub held: i64,
    pub dead: i64,
}

/// How an account stands.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct AccountShown {
    /// What is known of it, with the names of the columns of `accounts`.
    #[serde(flatten)]
    pub row: AccountRow,
    /// Whether the configuration names it; nothing is polled for one that it does not name.
    pub configured: bool,
    /// How it stands, in a sentence; null when all is well.
    pub standing: Option<String>,
    /// The highest rate, in requests a second, by the configuration of the daemon that answers.
    pub configured_rate: Option<f64>,
    /// The rate that is kept to at the moment, in requests a second.
    pub allowed_rate: Option<f64>,
    /// How many of its polls are under way.
    pub in_flight: Option<u32>,
    /// Since when the longest overdue of its watches has been due, if one is.
    pub oldest_due_at: Option<Timestamp>,
}

impl Control {
    /// How everything stands.
    pub async fn overview(&self) -> Result<OverviewShown, StoreError> {
        let now = self.clock.now();
        let Overview { states, statuses, settled, waiting_times } = self.store.overview(MINUTES, now).await?;
        let count = |state: State| states.get(state.as_str()).copied().unwrap_or_default();
        let late = self.store.lateness(now).await?;
        let oldest_due_at = late.iter().map(|late| late.oldest_due_at).min();
        let hooks = self.hooks_shown().await?;
        Ok(OverviewShown {
            version: env!("CARGO_PKG_VERSION"),
            now,
            watches: WatchCounts {
                waiting: count(State::Waiting),
                settled: count(State::Settled),
                abandoned: count(State::Abandoned),
                cancelled: count(State::Cancelled),
            },
            statuses,
            oldest_due_at,
            lag_seconds: oldest_due_at.map_or(0.0, |due| now.since(due).as_secs_f64()),
            deliveries: DeliveryCounts {
                waiting: hooks.iter().map(|hook| hook.waiting).sum(),
                held: hooks.iter().map(|hook| hook.held).sum(),
                dead: hooks.iter().map(|hook| hook.dead).sum(),
            },
            settled_per_minute: settled,
            waiting_times,
            accounts: self.accounts_late(&late, now).await?,
            hooks,
        })
    }

    /// How each account stands: the configured ones in their order, then those for which watches wait all the same.
    pub async fn accounts_shown(&self) -> Result<Vec<AccountShown>, StoreError> {
        let now = self.clock.now();
        self.accounts_late(&self.store.lateness(now).await?, now).await
    }

    async fn accounts_late(&self, late: &[Lateness], now: Timestamp) -> Result<Vec<AccountShown>, StoreError> {
        let rows = self.store.accounts().await?;
        let mut unnamed = self.unnamed_accounts().await?;
        unnamed.truncate(MOST_UNNAMED);
        let known = |name: &str| {
            let row = rows.iter().find(|row| row.name == name).cloned();
            row.unwrap_or_else(|| AccountRow { name: name.into(), ..AccountRow::default() })
        };
        let oldest_due_at = |name: &str| late.iter().find(|late| late.account == name).map(|late| late.oldest_due_at);
        let configured = self.accounts.iter().map(|name| self.account_shown(known(name), oldest_due_at(name), now));
        let unnamed = unnamed.iter().map(|name| AccountShown {
            row: known(name),
            configured: false,
            standing: Some("not configured, so its watches are not polled".into()),
            configured_rate: None,
            allowed_rate: None,
            in_flight: None,
            oldest_due_at: oldest_due_at(name),
        });
        Ok(configured.chain(unnamed).collect())
    }

    fn account_shown(&self, row: AccountRow, oldest_due_at: Option<Timestamp>, now: Timestamp) -> AccountShown {
        let pace = self.running.paces.get(&row.name);
        let pace = pace.map(|pace| pace.lock().unwrap_or_else(PoisonError::into_inner).load(self.clock.tick()));
        AccountShown {
            standing: account_standing(&row, now),
            row,
            configured: true,
            configured_rate: pace.map(|pace| pace.limits.rate),
            allowed_rate: pace.map(|pace| pace.rate),
            in_flight: pace.map(|pace| pace.in_flight),
            oldest_due_at,
        }
    }
}
