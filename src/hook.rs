//! Where events go: webhooks and commands. One attempt at one delivery goes in, what it brought comes out; nothing here
//! decides what that means. `spec/hooks.md` is the contract.

mod address;
mod callback;
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

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};

use crate::clock::Timestamp;
use crate::config::{self, Hook, Target};
use crate::delivery::{Attempt, Outcome, Parcel};
use crate::event::CALLBACK;

pub use guard::{Admission, Guard};
pub use orphans::adopt as adopt_orphans;
pub use signature::{Signer, verify};

use callback::Callbacks;
use command::Command;
use webhook::Webhook;

/// Every configured hook, and the callbacks of watches, ready to be told.
pub struct Hooks {
    edges: BTreeMap<String, Edge>,
    callbacks: Callbacks,
}

enum Edge {
    Webhook(Box<Webhook>),
    Command(Command),
}

/// Whether the program of a command can and may be run.
///
/// # Errors
/// A sentence that says why not, and what to do: what would hold its deliveries.
pub fn check_program(program: &str) -> Result<(), String> {
    program::find(program, std::ffi::OsStr::new("")).map(drop)
}

/// A hook that cannot be used as it is configured.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {problem}", placed(hook))]
pub struct HookError {
    /// The hook's name, or `[callbacks]` for what all callbacks have in common.
    pub hook: String,
    /// What is wrong with what, and what to do. A secret is never in it.
    pub problem: String,
}

/// The place of what all callbacks have in common; no hook can have this name.
const CALLBACKS: &str = "[callbacks]";

/// What an error calls a hook, or the callbacks.
fn placed(hook: &str) -> String {
    if hook == CALLBACKS { hook.into() } else { format!("hook `{hook}`") }
}

impl Hooks {
    /// Reads the secrets of `hooks` and of the callbacks, and builds the hooks' clients. `env` reads a variable of our
    /// environment: for secrets that are kept there, and for what a command's `env_pass` names.
    pub fn new(
        hooks: &[Hook],
        callbacks: Option<&config::Callbacks>,
        env: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self, HookError> {
        // One client for all webhooks, so that hooks on one host share its connections; built only if there are any.
        let mut shared = None;
        let mut edges = BTreeMap::new();
        for hook in hooks {
            let name = hook.subscription.hook.clone();
            let edge = match &hook.target {
                Target::Command(command) => Edge::Command(Command::new(hook, command, &env)),
                Target::Webhook(target) => webhook_edge(hook, target, &mut shared, &env)
                    .map_err(|problem| HookError { hook: name.clone(), problem })?,
            };
            edges.insert(name, edge);
        }
        let callbacks = Callbacks::new(callbacks, &env);
        let callbacks = callbacks.map_err(|problem| HookError { hook: CALLBACKS.into(), problem })?;
        Ok(Self { edges, callbacks })
    }

    /// The headers with which [`Hooks::perform`] sends `parcel` at that instant, the values that are secret masked; none
    /// for a command.
    pub fn headers(&self, hook: &str, parcel: &Parcel, now: Timestamp) -> Vec<(String, String)> {
        match self.edges.get(hook) {
            Some(Edge::Webhook(webhook)) => webhook.headers(parcel, now),
            Some(Edge::Command(_)) | None => Vec::new(),
        }
    }

    /// One attempt at delivering `parcel` to the hook of that name, or to the watch's own callback if it is the lane of
    /// one. It always brings something, failure included.
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
        if hook.starts_with(CALLBACK) {
            return self.callbacks.perform(parcel, now, hurry).await;
        }
        match self.edges.get(hook) {
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

fn webhook_edge(
    hook: &Hook,
    target: &config::Webhook,
    shared: &mut Option<reqwest::Client>,
    env: &impl Fn(&str) -> Option<OsString>,
) -> Result<Edge, String> {
    let client = match (&target.proxy, &shared) {
        (Some(proxy), _) => webhook::client(Guard::system(), Some(proxy))?,
        (None, Some(client)) => client.clone(),
        (None, None) => shared.insert(webhook::client(Guard::system(), None)?).clone(),
    };
    Ok(Edge::Webhook(Box::new(Webhook {
        client,
        url: target.url.clone(),
        timeout: hook.timeout,
        signer: Signer::read(target.secrets.as_ref(), env)?,
        headers: headers(&target.headers, env)?,
        proxy: target.proxy.clone(),
        moved: webhook::MOVED,
    })))
}

/// The headers of the configuration with their values, which may be secrets.
fn headers(headers: &[config::Header], env: &impl Fn(&str) -> Option<OsString>) -> Result<HeaderMap, String> {
    let mut map = HeaderMap::new();
    for config::Header { name, value } in headers {
        let secret = match value {
            config::HeaderText::Plain(text) => text.clone(),
            config::HeaderText::From(source) => {
                source.read(env).map_err(|error| format!("the header {name}: {error}"))?
            }
        };
        let unusable = || format!("the header {name} cannot be sent as it is configured");
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| unusable())?;
        let mut value = HeaderValue::from_str(secret.expose()).map_err(|_| unusable())?;
        value.set_sensitive(true);
        map.insert(name, value);
    }
    Ok(map)
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
        let subscription =
            Subscription { hook: "test".into(), on, accounts: Vec::new(), batches: Vec::new(), body: None };
        Hook { subscription, target, timeout, concurrency: 1, rate: None, schedule: Vec::new() }
    }

    /// Wall time: the independent verifier of signatures looks at the clock.
    pub fn now() -> Timestamp {
        crate::clock::Clock::system().now()
    }

    /// A webhook and nothing besides.
    pub fn target(url: &str, secrets: Option<KeySource>) -> Target {
        let url = url.parse().unwrap();
        Target::Webhook(config::Webhook { url, secrets, headers: Vec::new(), proxy: None })
    }

    fn webhook(secrets: Option<KeySource>) -> Hook {
        hook(target("https://hooks.example/services/T0/B0/hunter2hunter2", secrets), Duration::from_secs(1))
    }

    #[test]
    fn a_hook_that_cannot_be_used_is_named() {
        let missing = webhook(Some(KeySource::File("/nonexistent/secret".into())));
        let error = Hooks::new(&[webhook(None), missing], None, |_| None).err().unwrap().to_string();
        let says = "hook `test`: the secret file /nonexistent/secret cannot be read: No such file or directory";
        assert!(error.starts_with(says), "{error}");
    }

    #[tokio::test]
    async fn a_hook_that_is_gone_blocks_its_deliveries() {
        let hooks = Hooks::new(&[webhook(None)], None, |_| None).unwrap();
        let attempt = sendable(hooks.perform("gone", &parcel(BODY), now(), std::future::pending())).await;
        let Outcome::Blocked { error } = attempt.outcome else { panic!("{attempt:?}") };
        assert!(error.starts_with("no hook of the configuration is named `gone`"), "{error}");
    }

    /// A worker runs on any thread.
    fn sendable<T>(future: impl Future<Output = T> + Send) -> impl Future<Output = T> + Send {
        future
    }
}
