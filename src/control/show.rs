//! One watch with everything that was told about it, and for each hook why it was or was not told.

use serde::Serialize;
use utoipa::ToSchema;

use super::Control;
use crate::clock::Timestamp;
use crate::delivery::{Delivery, DeliveryState};
use crate::event::{CALLBACK, Fact, Subscription, callback_lane};
use crate::store::{AccountRow, History, HookRow, StoreError};
use crate::watch::Watch;

/// A watch with everything that was told about it.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Shown {
    /// The watch.
    pub watch: Watch,
    /// Its account, when that is not polled.
    pub account_closed: Option<AccountRow>,
    /// Events, deliveries, attempts.
    #[serde(flatten)]
    pub history: History,
    /// For each configured hook, and for the watch's own callback, why it was or was not told.
    pub hooks: Vec<Told>,
}

/// Why a hook was or was not told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Told {
    /// The hook.
    pub hook: String,
    /// In a sentence: how it stands, when it goes on, and what blocks it.
    pub why: String,
    /// Which line to change or which command to give, if it does not go on by itself or not as it was meant.
    pub change: Option<String>,
}

/// That a watch is not known: the newest of an asset, of one account where that was asked for, or the one of this number.
/// It may have been watched all the same: for another account, or so long ago that it was pruned.
pub fn unknown_watch(asset_id: &str, account: Option<&str>, number: Option<i64>) -> String {
    let number = number.map(|number| format!(" with the number {number}")).unwrap_or_default();
    let account = account.map(|account| format!(" for the account {account:?}")).unwrap_or_default();
    format!("no watch of {asset_id:?}{account}{number} is known")
}

/// What a delivery's own row does not say.
struct Around {
    rows: Vec<HookRow>,
    configured: Vec<String>,
    daemon: bool,
    now: Timestamp,
}

impl Control {
    /// The newest watch of an asset with everything that was told about it.
    pub async fn show(&self, asset_id: &str, account: Option<&str>) -> Result<Option<Shown>, StoreError> {
        match self.newest(asset_id, account).await? {
            Some(watch) => self.show_watch(watch).await.map(Some),
            None => Ok(None),
        }
    }

    /// This watch with everything that was told about it.
    pub async fn show_watch(&self, watch: Watch) -> Result<Shown, StoreError> {
        let history = self.store.history(watch.id).await?;
        let accounts = self.store.accounts().await?;
        let account_closed = accounts.into_iter().find(|row| row.name == watch.account && row.closure.is_some());
        let subscriptions = self.subscriptions();
        let around = Around {
            rows: self.store.hook_rows().await?,
            configured: subscriptions.iter().map(|subscription| subscription.hook.clone()).collect(),
            daemon: self.daemon_is_alive().await?,
            now: self.clock.now(),
        };
        let mut hooks: Vec<Told> = subscriptions
            .iter()
            .map(|subscription| {
                let told = around.told(&subscription.hook, &watch, &history);
                told.unwrap_or_else(|| not_told(subscription, &watch))
            })
            .collect();
        hooks.extend(watch.callback_url.as_deref().map(|url| {
            let lane = callback_lane(url);
            around.told(&lane, &watch, &history).unwrap_or_else(|| callback_not_told(lane, &watch))
        }));
        let gone = history.deliveries.iter().map(|delivery| &delivery.hook);
        let gone: std::collections::BTreeSet<&String> =
            gone.filter(|name| !hooks.iter().any(|told| told.hook == **name)).collect();
        let gone: Vec<Told> = gone.into_iter().filter_map(|name| around.told(name, &watch, &history)).collect();
        hooks.extend(gone);
        Ok(Shown { watch, account_closed, history, hooks })
    }
}

impl Around {
    /// What became of the latest fact that `hook` was to be told; none if that is not the end, and the watch has ended.
    fn told(&self, hook: &str, watch: &Watch, history: &History) -> Option<Told> {
        let delivery = history.deliveries.iter().rev().find(|delivery| delivery.hook == hook)?;
        let event = history.events.iter().find(|event| event.id == delivery.event_id)?;
        let end = Fact::of_end(watch).map(|fact| fact.event_type());
        if end.is_some_and(|end| end != event.event_type) {
            return None;
        }
        let (why, change) = self.stands(delivery, history);
        Some(Told { hook: hook.into(), why, change })
    }

    fn stands(&self, delivery: &Delivery, history: &History) -> (String, Option<String>) {
        let error = delivery.last_error.as_deref().map(|error| format!(": {error}")).unwrap_or_default();
        let (id, attempts) = (delivery.id, delivery.attempts);
        let retry = format!("`assetwatch deliveries retry {id}`");
        match delivery.state {
            DeliveryState::Delivered => (format!("told, with attempt {attempts}"), None),
            DeliveryState::Dead => {
                (format!("given up on after {}{error}", tries(attempts)), Some(format!("{retry} begins anew")))
            }
            DeliveryState::Held => self.held(delivery, &error),
            DeliveryState::Waiting => {
                let (why, change) = self.waits(delivery, history, &error);
                (why, change.or_else(|| self.daemonless()))
            }
        }
    }

    fn row(&self, hook: &str) -> Option<&HookRow> {
        self.rows.iter().find(|row| row.name == hook)
    }

    fn disabled(&self, hook: &str) -> Option<(String, Option<String>)> {
        let row = self.row(hook).filter(|row| row.disabled_at.is_some())?;
        let since = row.disabled_at.unwrap_or_default();
        let reason = row.disabled_reason.as_deref().unwrap_or_default();
        let enable = format!("`assetwatch hooks enable {hook}` releases it");
        Some((format!("held: the hook is disabled since {since} ({reason})"), Some(enable)))
    }

    fn is_unknown(&self, hook: &str) -> bool {
        !hook.starts_with(CALLBACK) && !self.configured.iter().any(|known| known == hook)
    }

    fn held(&self, delivery: &Delivery, error: &str) -> (String, Option<String>) {
        let hook = &delivery.hook;
        if let Some(disabled) = self.disabled(hook) {
            return disabled;
        }
        if self.is_unknown(hook) {
            let add = format!("add the hook again, with `name = \"{hook}\"`, and have the daemon reload");
            return ("held: the configuration names no hook of this name".into(), Some(add));
        }
        let retry =
            format!("change that and have the daemon reload, or give `assetwatch deliveries retry {}`", delivery.id);
        (format!("held until the configuration is changed{error}"), Some(retry))
    }

    /// What a waiting delivery waits for, what is nearest first.
    fn waits(&self, delivery: &Delivery, history: &History, error: &str) -> (String, Option<String>) {
        let under_way =
            |attempt: &&crate::store::AttemptRow| attempt.delivery_id == delivery.id && attempt.finished_at.is_none();
        if let Some(attempt) = history.attempts.iter().rfind(under_way) {
            return (format!("attempt {} is under way since {}", attempt.number, attempt.started_at), None);
        }
        if let Some((why, change)) = self.disabled(&delivery.hook) {
            return (why, change);
        }
        let before = |other: &&Delivery| {
            let open = matches!(other.state, DeliveryState::Waiting | DeliveryState::Held);
            other.hook == delivery.hook && other.id < delivery.id && open
        };
        if let Some(earlier) = history.deliveries.iter().find(before) {
            let (id, state) = (earlier.id, earlier.state.as_str());
            return (
                format!("blocked: what came before it, delivery {id}, is {state}, and a hook is told in order"),
                None,
            );
        }
        if self.is_unknown(&delivery.hook) {
            let add = format!("add the hook again, with `name = \"{}\"`, and have the daemon reload", delivery.hook);
            return ("the configuration names no hook of this name".into(), Some(add));
        }
        let row = self.row(&delivery.hook);
        if let Some(until) = row.and_then(|row| row.held_until).filter(|until| *until > self.now) {
            return (format!("the receiver asked to be left alone until {until}{error}"), None);
        }
        if let Some(row) = row
            && let Some(probe) = row.next_probe_at
        {
            let (failures, last) = (row.failures, row.last_error.as_deref().unwrap_or_default());
            let why = format!(
                "the hook has failed {failures} times in a row ({last}); a single attempt at {probe} sees whether it \
                 works again, the others wait and burn none of theirs"
            );
            return (why, None);
        }
        let why = match delivery.due_at {
            Some(due_at) if delivery.attempts > 0 => {
                format!("again at {due_at}, after {}{error}", tries(delivery.attempts))
            }
            Some(_) | None => "not attempted yet; a running daemon does it".into(),
        };
        (why, None)
    }

    fn daemonless(&self) -> Option<String> {
        let start = "no daemon is running on this database: start it with `assetwatch run`";
        (!self.daemon).then(|| start.to_owned())
    }
}

fn tries(attempts: i64) -> String {
    if attempts == 1 { "1 attempt".into() } else { format!("{attempts} attempts") }
}

/// Why the end of a watch, or its not having ended, was no event for a hook.
fn not_told(subscription: &Subscription, watch: &Watch) -> Told {
    let hook = subscription.hook.clone();
    let Some(fact) = Fact::of_end(watch) else {
        return Told { hook, why: "not yet: the watch still waits".into(), change: None };
    };
    let event_type = fact.event_type();
    let anywhere = Subscription { accounts: Vec::new(), batches: Vec::new(), ..subscription.clone() };
    let words = |words: Vec<String>| words.join(", ");
    let (why, change) = if subscription.wants(&fact, watch) {
        (
            "no: it was not in the configuration of whoever saw it happen".to_owned(),
            "`assetwatch add --again` watches the asset once more".to_owned(),
        )
    } else if !anywhere.wants(&fact, watch) {
        let on = words(subscription.on.iter().map(ToString::to_string).collect());
        (
            format!("no: its `on` names {on}, and this was {event_type}"),
            format!("add \"{event_type}\" to `on` of hook `{hook}`"),
        )
    } else if !subscription.accounts.is_empty() && !subscription.accounts.contains(&watch.account) {
        let (accounts, account) = (words(subscription.accounts.clone()), &watch.account);
        (
            format!("no: its `accounts` names {accounts}, and this is of account {account}"),
            format!("add \"{account}\" to `accounts` of hook `{hook}`"),
        )
    } else {
        let batches = words(subscription.batches.clone());
        match &watch.batch {
            Some(batch) => (
                format!("no: its `batches` names {batches}, and this is of batch {batch}"),
                format!("add \"{batch}\" to `batches` of hook `{hook}`"),
            ),
            None => (
                format!("no: its `batches` names {batches}, and this is of no batch"),
                format!("remove `batches` of hook `{hook}`, or add with `--batch`"),
            ),
        }
    };
    Told { hook, why, change: Some(change) }
}

fn callback_not_told(hook: String, watch: &Watch) -> Told {
    let why = match Fact::of_end(watch) {
        None => "not yet: the watch still waits".into(),
        Some(fact) => format!("no: a callback is told of settled and abandoned, and this was {}", fact.event_type()),
    };
    Told { hook, why, change: None }
}
