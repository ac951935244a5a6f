//! The configuration, in three stages: raw (what the file says), merged (each key answered by the flag, the variable,
//! the file or the default), settled (what the program takes). The other edges and the layers above take the settled
//! types and know nothing of files.
//!
//! Nothing here reads the process's own environment or command line: both are arguments.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use url::Url;

use crate::decide::Rules;
use crate::event::Subscription;
use crate::pace::Limits;

mod changes;
mod document;
mod find;
mod headers;
mod hooks;
mod kind;
mod literal;
mod origin;
mod reader;
mod secret;
mod section;
mod settle;
#[cfg(test)]
mod tests;

pub use changes::{Change, Reload};
pub use origin::{Entry, Origin};
pub use reader::closest;
pub use secret::{KeyError, KeySource, Secret};
pub(crate) use secret::{credential, read_at_most};
pub use settle::DEFAULT_ACCOUNT;

/// The file of the whole machine.
const SYSTEM_FILE: &str = "/etc/assetwatch/config.toml";
/// The variable that names the file.
const CONFIG_VARIABLE: &str = "ASSETWATCH_CONFIG";
/// The variables that filter and form the log. They are no settings, and read elsewhere.
const LOG_VARIABLES: [&str; 2] = ["ASSETWATCH_LOG", "ASSETWATCH_LOG_FORMAT"];

/// Finds and reads the configuration.
///
/// The file is `--config`, else `$ASSETWATCH_CONFIG` (both have to exist), else the first that exists of
/// `$XDG_CONFIG_HOME/assetwatch/config.toml` and `/etc/assetwatch/config.toml`; none is fine.
///
/// A variable `ASSETWATCH_<TABLE>_<KEY>` overrides the file, a flag overrides both; an empty variable counts as unset.
/// Accounts and hooks have their names in the variable: `ASSETWATCH_ACCOUNTS_STUDIO_KEY_FILE`,
/// `ASSETWATCH_HOOKS_CMS_TIMEOUT`. Lists and tables stand in the file only.
///
/// The secrets themselves are not read, see [`KeySource::read`].
///
/// # Errors
///
/// All problems at once, each with file and line, key, value and what would be right. Rules that take more than one
/// value are asked only when every value is right by itself.
pub fn load(overrides: &Overrides, environment: &Environment) -> Result<Settings, ConfigError> {
    load_or(overrides, environment, Path::new(SYSTEM_FILE))
}

/// [`load`], with another place for the machine's own file.
fn load_or(overrides: &Overrides, environment: &Environment, system: &Path) -> Result<Settings, ConfigError> {
    let mut warnings = Vec::new();
    let file = find::find(overrides, environment, system, &mut warnings)
        .map_err(|problem| ConfigError { problems: vec![problem] })?;
    let mut settings = settle(file.as_ref(), overrides, environment)?;
    settings.warnings.splice(..0, warnings);
    settings.file = file.map(|file| file.path);
    Ok(settings)
}

fn settle(
    file: Option<&find::File>,
    overrides: &Overrides,
    environment: &Environment,
) -> Result<Settings, ConfigError> {
    let raw = match file {
        None => document::Branch::default(),
        Some(file) => document::parse(&file.text).map_err(|problems| {
            let place = literal::printable(&file.path.to_string_lossy());
            let lines = problems.into_iter().map(|(line, problem)| format!("{place}:{line}: {problem}"));
            ConfigError { problems: lines.collect() }
        })?,
    };
    let mut reader = reader::Reader::new(file, overrides, environment);
    match settle::settle(&mut reader, raw) {
        Some(settings) if reader.is_content() => {
            Ok(Settings { warnings: reader.warnings, entries: reader.entries, ..settings })
        }
        _ => Err(ConfigError { problems: reader.into_problems() }),
    }
}

/// Why there are no settings: one line for each thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", problems.join("\n"))]
pub struct ConfigError {
    problems: Vec<String>,
}

impl ConfigError {
    /// The lines, in the order of the file.
    pub fn problems(&self) -> &[String] {
        &self.problems
    }
}

/// What the command line says; it overrides everything else.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// `--config`: the file, which has to exist.
    pub config: Option<PathBuf>,
    /// `--database`.
    pub database: Option<PathBuf>,
    /// `--api-url`: of `[api]`, and of all accounts that have no `url` of their own.
    pub api_url: Option<String>,
}

impl Overrides {
    /// The flag that gives this key's value, and the value.
    fn value(&self, key: &str) -> Option<(&'static str, OsString)> {
        match key {
            "database" => self.database.clone().map(|path| ("--database", path.into())),
            "api.url" => self.api_url.clone().map(|url| ("--api-url", url.into())),
            _ => None,
        }
    }
}

/// The variables of the environment, as a value: `std::env::vars_os().collect()` makes the process's own into one.
#[derive(Clone, Default)]
pub struct Environment(BTreeMap<OsString, OsString>);

impl Environment {
    /// The value of a variable; an empty one counts as unset.
    pub fn get(&self, name: &str) -> Option<OsString> {
        self.0.get(OsStr::new(name)).filter(|value| !value.is_empty()).cloned()
    }

    /// The names of all variables that are set. Names that are not UTF-8 are nobody's that is known here.
    fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter(|(_, value)| !value.is_empty()).filter_map(|(name, _)| name.to_str())
    }
}

impl<N: Into<OsString>, V: Into<OsString>> FromIterator<(N, V)> for Environment {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(variables: I) -> Self {
        Self(variables.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}

/// Only the names: some of the values are secrets.
impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

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
    /// The HTTP server, if one is configured.
    pub http: Option<Http>,
    /// What holds for callback URLs, if they are configured.
    pub callbacks: Option<Callbacks>,
    /// The file that was read, if there was one.
    pub file: Option<PathBuf>,
    /// What is probably not meant, one sentence each.
    pub warnings: Vec<String>,
    /// Every value in effect and where it comes from, for `config show`.
    pub entries: Vec<Entry>,
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
    /// Attempts a second, 0.01 to 100,000; without a limit when absent.
    pub rate: Option<f64>,
    /// The gaps after the first attempt.
    pub schedule: Vec<Duration>,
}

/// What a hook is.
#[derive(Clone, PartialEq)]
pub enum Target {
    /// A POST to a URL.
    Webhook(Webhook),
    /// A process, see `hook::command`.
    Command(Command),
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Webhook(webhook) => webhook.fmt(f),
            Self::Command(command) => command.fmt(f),
        }
    }
}

/// A URL that events are posted to.
#[derive(Clone, PartialEq)]
pub struct Webhook {
    /// Where to; its path may be a secret.
    pub url: Url,
    /// What requests are signed with (none: unsigned).
    pub secrets: Option<KeySource>,
    /// Sent with every request.
    pub headers: Vec<Header>,
    /// The proxy to go through; only if it is configured. It may hold a password.
    pub proxy: Option<Url>,
}

/// The URLs without what may be secret in them (chat services, passwords).
impl fmt::Debug for Webhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Webhook")
            .field("url", &kind::masked(&self.url))
            .field("secrets", &self.secrets)
            .field("headers", &self.headers)
            .field("proxy", &self.proxy.as_ref().map(kind::masked))
            .finish()
    }
}

/// A header of a webhook's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Its name, in lower case.
    pub name: String,
    /// Its value.
    pub value: HeaderText,
}

/// The value of a header, which may be a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeaderText {
    /// As it stands in the file.
    Plain(Secret),
    /// Read from there when the hooks are set up.
    From(KeySource),
}

/// A command that is run for each delivery.
#[derive(Clone, PartialEq)]
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

/// Only the names of `env`: its values may be secrets.
impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Command")
            .field("argv", &self.argv)
            .field("kill_after", &self.kill_after)
            .field("env", &self.env.keys())
            .field("env_pass", &self.env_pass)
            .finish()
    }
}

/// The HTTP server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Http {
    /// Where it listens.
    pub listen: Listen,
    /// What callers have to show; always there when other machines can reach the server.
    pub token: Option<KeySource>,
    /// Names by which callers reach it, in lower case, besides `localhost` and addresses.
    pub hosts: Vec<String>,
}

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// An address of this machine and a port.
    Tcp(SocketAddr),
    /// A socket in the file system; its directory says who may connect.
    Unix(PathBuf),
}

impl Listen {
    /// Whether other machines can reach it.
    pub fn is_exposed(&self) -> bool {
        matches!(self, Self::Tcp(address) if !address.ip().to_canonical().is_loopback())
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// What holds for callback URLs, which come with a watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Callbacks {
    /// What deliveries to them are signed with (none: unsigned).
    pub secrets: Option<KeySource>,
    /// Private nets that they may reach.
    pub allow_nets: Vec<IpNet>,
    /// Whether they may be plain http.
    pub allow_http: bool,
}
