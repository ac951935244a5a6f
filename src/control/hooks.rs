//! Hooks: how they stand, switched on and off by hand, and tried out.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::Serialize;
use utoipa::ToSchema;

use super::{Control, hostname};
use crate::clock::Timestamp;
use crate::config::{Hook, Target, closest};
use crate::decide::Verdict;
use crate::delivery::{Attempt, Outcome, Parcel};
use crate::event::{CALLBACK, Event, Notice, Telling, base32};
use crate::hook::{HookError, Hooks};
use crate::pump::insist;
use crate::store::{Backlog, HookRow, StoreError};

/// A lease lasts as long as an attempt may, and this much for the writing.
const MARGIN: Duration = Duration::from_secs(10);

/// How a hook stands. As JSON it has the names of the columns of `hooks`, and what is in its lane.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct HookShown {
    /// What it is: `webhook` and where to, without what may be secret of its URL, or `command` and which program.
    pub target: String,
    /// In a word.
    pub state: HookState,
    /// What is known of it.
    #[serde(flatten)]
    pub row: HookRow,
    /// How many of its deliveries wait or are under way.
    pub waiting: i64,
    /// How many are held.
    pub held: i64,
    /// How many were given up on.
    pub dead: i64,
    /// When the oldest of those that wait was made.
    pub oldest_waiting_at: Option<Timestamp>,
}

/// How a hook stands, in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum HookState {
    /// Its latest attempt delivered.
    Ok,
    /// Its latest attempts failed; with no failures in a row, it has never delivered.
    Failing,
    /// Its receiver asked to be left alone for a while.
    Held,
    /// Nothing is attempted until a person enables it.
    Disabled,
    /// Nothing is known of it yet.
    Unused,
}

impl HookState {
    /// All states.
    pub const ALL: [Self; 5] = [Self::Ok, Self::Failing, Self::Held, Self::Disabled, Self::Unused];

    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Failing => "failing",
            Self::Held => "held",
            Self::Disabled => "disabled",
            Self::Unused => "unused",
        }
    }

    fn of(row: &HookRow, now: Timestamp) -> Self {
        if row.disabled_at.is_some() {
            Self::Disabled
        } else if row.held_until.is_some_and(|until| until > now) {
            Self::Held
        } else if row.failures > 0 || (row.last_success_at.is_none() && row.last_error.is_some()) {
            Self::Failing
        } else if row.last_success_at.is_some() {
            Self::Ok
        } else {
            Self::Unused
        }
    }
}

/// Why a hook could not be tried out, or be switched.
#[derive(Debug, thiserror::Error)]
pub enum HookVerbError {
    /// Nobody knows it; perhaps another name was meant.
    #[error("no hook is named {name:?}{}", meant.as_ref().map(|meant| format!("; did you mean {meant:?}?")).unwrap_or_default())]
    Unknown {
        /// What was asked for.
        name: String,
        /// The most alike of the names that are known.
        meant: Option<String>,
    },
    /// It cannot be set up.
    #[error(transparent)]
    Hook(#[from] HookError),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What a test sent, and what came back.
#[derive(Clone, Debug)]
pub struct Tested {
    /// What the hook is, as [`HookShown::target`].
    pub target: String,
    /// The delivery, with the body that was sent.
    pub parcel: Parcel,
    /// The headers that were sent with it; none for a command.
    pub headers: Vec<(String, String)>,
    /// What it brought.
    pub attempt: Attempt,
}

impl Control {
    /// How each hook stands: first the configured ones in their order, then the lanes of callbacks and those that are not
    /// configured any more.
    pub async fn hooks_shown(&self) -> Result<Vec<HookShown>, StoreError> {
        let now = self.clock.now();
        let (rows, backlogs) = (self.store.hook_rows().await?, self.store.backlogs().await?);
        let configured: Vec<&str> = self.hooks.iter().map(|hook| hook.subscription.hook.as_str()).collect();
        let found = rows.iter().map(|row| row.name.as_str()).chain(backlogs.iter().map(|lane| lane.hook.as_str()));
        let others: BTreeSet<&str> = found.filter(|name| !configured.contains(name)).collect();
        let shown = configured.iter().copied().chain(others).map(|name| {
            let row = rows.iter().find(|row| row.name == name).cloned();
            let row = row.unwrap_or_else(|| HookRow { name: name.into(), ..HookRow::default() });
            let backlog = backlogs.iter().find(|lane| lane.hook == name).cloned().unwrap_or_default();
            let Backlog { waiting, held, dead, oldest_waiting_at, .. } = backlog;
            let (target, state) = (self.target(name), HookState::of(&row, now));
            HookShown { target, state, row, waiting, held, dead, oldest_waiting_at }
        });
        Ok(shown.collect())
    }

    /// Has a hook attempted again with what was held for it, and says how many deliveries that are.
    pub async fn enable_hook(&self, name: &str) -> Result<u64, HookVerbError> {
        self.known_hook(name).await?;
        let released = self.store.enable_hook(name.into(), self.clock.now()).await?;
        self.running.telling.wake();
        Ok(released)
    }

    /// Has nothing more attempted at a hook: what is under way ends as it ends, what comes later is held. Whether it was
    /// enabled before.
    pub async fn disable_hook(&self, name: &str, reason: &str) -> Result<bool, HookVerbError> {
        self.known_hook(name).await?;
        let (now, subscriptions) = (self.clock.now(), self.subscriptions());
        let telling = Telling { install_id: self.store.install_id(), subscriptions: &subscriptions };
        let notice = Notice::HookDisabled { hook: name.into(), reason: reason.into() };
        let told = Event::of_notice(&notice, random()?, now, &telling);
        Ok(self.store.disable_hook(name.into(), reason.into(), now, told).await?)
    }

    /// One real delivery of a `test` event, with everything that a delivery has but a second attempt: the guard, the
    /// signature, an entry in the ledger. It says nothing about how the hook stands. `hurry` resolves when it has to end.
    pub async fn test_hook(
        &self,
        name: &str,
        status: &str,
        hurry: impl Future<Output = ()>,
    ) -> Result<Tested, HookVerbError> {
        let known = self.hooks.iter().find(|hook| hook.subscription.hook == name);
        let hook = known.ok_or_else(|| self.unknown(name, Vec::new()))?;
        let hooks = Hooks::new(std::slice::from_ref(hook), None, |name| std::env::var_os(name))?;
        let now = self.clock.now();
        let event = Event::test(&hook.subscription, status, random()?, now);
        let owner = format!("{}-{}-test-{}", hostname(), std::process::id(), base32(&random()?[..5]));
        let parcel = self.store.begin_test(event, owner, longest(hook) + MARGIN, now).await?;
        let headers = hooks.headers(name, &parcel, now);
        let attempt = hooks.perform(name, &parcel, now, hurry).await;
        let finish = || self.store.finish_test(parcel.clone(), attempt.clone(), verdict(&attempt), self.clock.now());
        insist(finish).await?;
        Ok(Tested { target: self.target(name), parcel, headers, attempt })
    }

    /// Whether attempts are made at a hook of that name: it is in the configuration, or the lane of callbacks.
    pub fn is_configured(&self, name: &str) -> bool {
        name.starts_with(CALLBACK) || self.hooks.iter().any(|hook| hook.subscription.hook == name)
    }

    /// What a hook is, without what may be secret.
    fn target(&self, name: &str) -> String {
        let hook = self.hooks.iter().find(|hook| hook.subscription.hook == name);
        match hook.map(|hook| &hook.target) {
            Some(Target::Webhook(webhook)) => format!("webhook {}/…", webhook.url.origin().ascii_serialization()),
            Some(Target::Command(command)) => {
                format!("command {}", command.argv.first().map(String::as_str).unwrap_or_default())
            }
            None if name.starts_with(CALLBACK) => "callbacks of watches".into(),
            None => "not configured".into(),
        }
    }

    /// Whether anything is known of a hook of that name.
    ///
    /// # Errors
    /// When nothing is; the sentence has the most alike name.
    pub async fn known_hook(&self, name: &str) -> Result<(), HookVerbError> {
        let names: Vec<String> = self.hooks_shown().await?.into_iter().map(|shown| shown.row.name).collect();
        if names.iter().any(|known| known == name) { Ok(()) } else { Err(self.unknown(name, names)) }
    }

    fn unknown(&self, name: &str, mut names: Vec<String>) -> HookVerbError {
        names.extend(self.hooks.iter().map(|hook| hook.subscription.hook.clone()));
        let meant = closest(name, names.iter().map(String::as_str)).map(str::to_owned);
        HookVerbError::Unknown { name: name.into(), meant }
    }
}

/// The longest that an attempt takes.
fn longest(hook: &Hook) -> Duration {
    match &hook.target {
        Target::Webhook(_) => hook.timeout,
        Target::Command(command) => hook.timeout + command.kill_after,
    }
}

/// A test is not attempted again: what has not delivered is given up on.
fn verdict(attempt: &Attempt) -> Verdict {
    match &attempt.outcome {
        Outcome::Delivered => Verdict::Delivered,
        Outcome::Failed { error, .. }
        | Outcome::Refused { error }
        | Outcome::Gone { error }
        | Outcome::Blocked { error } => Verdict::Dead { error: error.clone() },
        Outcome::Interrupted => Verdict::Dead { error: "the test was interrupted".into() },
    }
}

fn random() -> Result<[u8; 16], StoreError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| StoreError::Broken(format!("no random numbers: {error}")))?;
    Ok(bytes)
}
