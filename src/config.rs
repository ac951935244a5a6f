//! The configuration, in three stages: raw (what the file and the environment say), merged, settled (what the program
//! takes). The other edges and the layers above take these settled types and know nothing of files.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use url::Url;

use crate::decide::Rules;
use crate::delivery::Subscription;
use crate::pace::Limits;

/// Everything that a run of the program takes from its configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The database file.
    pub database: PathBuf,
    /// Ended watches are pruned after this.
    pub retention: Duration,
    /// For work in flight when the daemon stops.
    pub grace: Duration,
    /// The API keys; `default` is the first, and always there.
    pub accounts: Vec<Account>,
    /// Where events go.
    pub hooks: Vec<Hook>,
}

/// A named API key with its own pace.
#[derive(Clone, Debug, PartialEq)]
pub struct Account {
    /// `default`, or the name of its table.
    pub name: String,
    /// The API's address; a path in it is a prefix.
    pub url: Url,
    /// Where the key comes from.
    pub key: KeySource,
    /// For a whole request, 100 ms to 10 min.
    pub timeout: Duration,
    /// Rate and requests in flight.
    pub limits: Limits,
    /// What an answer means.
    pub rules: Rules,
}

/// Where a secret is read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySource {
    /// A file; white space around the key is ignored.
    File(PathBuf),
    /// A variable of the environment.
    Env(String),
    /// Nothing is configured and nothing was found.
    Absent,
}

/// Text that is never shown: `Debug` and `Display` print a mask.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

/// A destination: a webhook or a command.
#[derive(Clone, Debug, PartialEq)]
pub struct Hook {
    /// Its name and what it wants to be told.
    pub subscription: Subscription,
    /// Where it goes.
    pub target: Target,
    /// For one attempt: webhooks 20 s, commands 60 s unless said.
    pub timeout: Duration,
    /// Attempts at once: webhooks 4, commands 1 unless said.
    pub concurrency: u32,
    /// The gaps after the first attempt.
    pub schedule: Vec<Duration>,
}

/// What a hook is.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    /// A POST to a URL, signed with each of the secrets (none: unsigned).
    Webhook { url: Url, secrets: Option<KeySource> },
    /// A process, see `hook::command`.
    Command(Command),
}

/// A command that is run for each delivery.
#[derive(Clone, Debug, PartialEq)]
pub struct Command {
    /// The program and its arguments, as they are.
    pub argv: Vec<String>,
    /// Between TERM and KILL at the deadline.
    pub kill_after: Duration,
    /// Added to its environment.
    pub env: BTreeMap<String, String>,
    /// Variables of ours that it gets too, by name.
    pub env_pass: Vec<String>,
}
