//! Where events go: webhooks and commands. One attempt at one delivery goes in, what it brought comes out; nothing here
//! decides what that means. `spec/hooks.md` is the contract.

mod command;
mod group;
mod guard;
mod kept;
mod orphans;
mod program;
mod signature;
mod webhook;

use std::collections::BTreeMap;
use std::ffi::OsString;

use crate::clock::Timestamp;
use crate::config::{Hook, Target};
use crate::delivery::{Attempt, Outcome, Parcel};

pub use orphans::adopt as adopt_orphans;
pub use signature::{Signer, verify};

use command::Command;
use webhook::Webhook;

/// Every configured hook, ready to be told.
pub struct Hooks(BTreeMap<String, Edge>);

enum Edge {
    Webhook(Webhook),
    Command(Command),
}

/// A hook that cannot be used as it is configured.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("hook `{hook}`: {problem}")]
pub struct HookError {
    /// The hook's name.
    pub hook: String,
    /// What is wrong with what, and what to do. A secret is never in it.
    pub problem: String,
}

impl Hooks {
    /// Reads the secrets of `hooks` and builds their client. `env` reads a variable of our environment: for secrets
    /// that are kept there, and for what a command's `env_pass` names.
    pub fn new(hooks: &[Hook], env: impl Fn(&str) -> Option<OsString>) -> Result<Self, HookError> {
        // One client for all webhooks, so that hooks on one host share its connections; built only if there are any.
        let mut client = None;
        let mut edges = BTreeMap::new();
        for hook in hooks {
            let name = hook.subscription.hook.clone();
            let failed = |problem| HookError { hook: name.clone(), problem };
            let edge = match &hook.target {
                Target::Command(command) => Edge::Command(Command::new(hook, command, &env)),
                Target::Webhook { url, secrets } => {
                    let signer = Signer::read(secrets.as_ref(), &env).map_err(failed)?;
                    let client = match &client {
                        Some(client) => client,
                        None => client.insert(webhook::client(guard::Guard::system()).map_err(failed)?),
                    };
                    Edge::Webhook(Webhook { client: client.clone(), url: url.clone(), timeout: hook.timeout, signer })
                }
            };
            edges.insert(name, edge);
        }
        Ok(Self(edges))
    }

    /// The headers with which [`Hooks::perform`] sends `parcel` at that instant, the values that are secret masked; none
    /// for a command.
    pub fn headers(&self, hook: &str, parcel: &Parcel, now: Timestamp) -> Vec<(String, String)> {
        match self.0.get(hook) {
            Some(Edge::Webhook(webhook)) => webhook.headers(parcel, now),
            Some(Edge::Command(_)) | None => Vec::new(),
        }
    }

    /// One attempt at delivering `parcel` to the hook of that name. It always brings something, failure included.
    ///
    /// `hurry` resolves when the daemon has to stop: a command is then ended, with its `kill_after`, and a webhook that
    /// has not been answered is dropped; both are [`Outcome::Interrupted`]. To drop the future ends what it began, too,
    /// but without any grace.
    pub async fn perform(
        &self,
        hook: &str,
        parcel: &Parcel,
        now: Timestamp,
        hurry: impl Future<Output = ()>,
    ) -> Attempt {
        match self.0.get(hook) {
            Some(Edge::Webhook(webhook)) => webhook.perform(parcel, now, hurry).await,
            Some(Edge::Command(command)) => command.perform(parcel, now, hurry).await,
            None => {
                let error =
                    format!("no hook of the configuration is named `{hook}`: add it again, or rename one to it");
                Attempt::bare(Outcome::Blocked { error })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::KeySource;
    use crate::delivery::{Delivery, DeliveryState};
    use crate::event::Subscription;

    pub const BODY: &str = r#"{"type":"asset.active","timestamp":"2026-09-21T10:13:20.123Z","data":{"asset_id":"ast_1","status":"active","previous_status":"processing","type":"video","url":"https://cdn.example/ü.mp4","metadata":{"status":"no"}}}"#;

    /// An attempt with `body`, the second one, at a delivery to the hook `test`.
    pub fn parcel(body: impl Into<Vec<u8>>) -> Parcel {
        let delivery = Delivery {
            id: 7,
            event_id: "evt_abc".into(),
            hook: "test".into(),
            state: DeliveryState::Waiting,
            due_at: None,
            generation: 1,
            attempts: 2,
            failures: 1,
            last_error: None,
            created_at: Timestamp::from_millis(0),
            finished_at: None,
        };
        Parcel { delivery, number: 2, event_type: "asset.active".into(), body: body.into(), callback_url: None }
    }

    /// The hook `test` with that target.
    pub fn hook(target: Target, timeout: Duration) -> Hook {
        let on = Vec::new();
        let subscription = Subscription { hook: "test".into(), on, accounts: Vec::new(), batches: Vec::new() };
        Hook { subscription, target, timeout, concurrency: 1, schedule: Vec::new() }
    }

    /// Wall time: the independent verifier of signatures looks at the clock.
    pub fn now() -> Timestamp {
        crate::clock::Clock::system().now()
    }

    fn webhook(secrets: Option<KeySource>) -> Hook {
        let url = "https://hooks.example/services/T0/B0/hunter2hunter2".parse().unwrap();
        hook(Target::Webhook { url, secrets }, Duration::from_secs(1))
    }

    #[test]
    fn a_hook_that_cannot_be_used_is_named() {
        let missing = webhook(Some(KeySource::File("/nonexistent/secret".into())));
        let error = Hooks::new(&[webhook(None), missing], |_| None).err().unwrap().to_string();
        let says = "hook `test`: the secret file /nonexistent/secret cannot be read: No such file or directory";
        assert!(error.starts_with(says), "{error}");
    }

    #[tokio::test]
    async fn a_hook_that_is_gone_blocks_its_deliveries() {
        let hooks = Hooks::new(&[webhook(None)], |_| None).unwrap();
        let attempt = sendable(hooks.perform("gone", &parcel(BODY), now(), std::future::pending())).await;
        let Outcome::Blocked { error } = attempt.outcome else { panic!("{attempt:?}") };
        assert!(error.starts_with("no hook of the configuration is named `gone`"), "{error}");
    }

    /// A worker runs on any thread.
    fn sendable<T>(future: impl Future<Output = T> + Send) -> impl Future<Output = T> + Send {
        future
    }
}
