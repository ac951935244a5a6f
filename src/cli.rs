//! The command line: what can be typed, and how answers are shown. What is done is done by `control`.

mod backup;
mod batches;
mod check;
mod deliveries;
mod hooks;
mod ids;
mod listen;
mod output;
mod progress;
mod show;
mod verbs;

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

pub use backup::backup;
pub use batches::{BatchCommand, known_batch};
pub use check::check;
pub use deliveries::DeliveriesCommand;
pub use hooks::{HooksCommand, test_hook};
pub use ids::all_ids;
pub use listen::listen;
pub use output::{Output, complain, exit, plain, show_config};
pub use progress::{Progress, Screen};
pub use verbs::{perform, print_waited, watches_for};

use crate::config::Overrides;
use crate::control::{check_account, check_batch, check_metadata, duration};
use crate::watch::State;

const EXIT_CODES: &str = "\
Exit codes:
  0    ok (wait: all `active`; with --any, the first that settled is)
  1    something went wrong
  2    wrong usage
  3    wait: settled, but not all `active` (`censored`, `archive`, …)
  4    wait: abandoned or cancelled
  5    not authorized: the API refuses the key
  65   the database is damaged, another program's, a newer version's, or was taken away
  78   bad configuration; wait: it does not name the account, and no daemon is running
  124  wait: --timeout ran out
  130  interrupted
With several outcomes the first in the order 5, 4, 3, 124 wins.";

/// Follows Affogato (RenderNet) assets until they are ready, and tells whoever waits for them.
#[derive(Debug, Parser)]
#[command(name = "assetwatch", version = env!("ASSETWATCH_VERSION"), after_help = EXIT_CODES, max_term_width = 100, propagate_version = true)]
pub struct Cli {
    /// What every command takes.
    #[command(flatten)]
    pub global: Global,
    /// The verb.
    #[command(subcommand)]
    pub command: Command,
}

/// What every command takes.
#[derive(Args, Clone, Debug)]
pub struct Global {
    /// The configuration file [default: $ASSETWATCH_CONFIG, ~/.config/assetwatch/config.toml or
    /// /etc/assetwatch/config.toml, the first that exists]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The database file, over the configured one
    #[arg(long, global = true, value_name = "PATH")]
    pub database: Option<PathBuf>,
    /// The API's address, over the configured one
    #[arg(long, global = true, value_name = "URL")]
    pub api_url: Option<String>,
    /// Print JSON, one object a line
    #[arg(long, global = true)]
    pub json: bool,
    /// Log more (-v: every change of state, -vv: every poll and attempt)
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Log errors only, and show no progress
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// When to use colour
    #[arg(long, global = true, value_enum, default_value_t = Color::Auto, value_name = "WHEN")]
    pub color: Color,
    /// Where the log goes: lines on stderr, fields to journald, one JSON object a line on stderr, or `auto`: journald
    /// where systemd has connected stderr with it, and else text
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Auto, value_name = "FORMAT",
        env = "ASSETWATCH_LOG_FORMAT")]
    pub log_format: LogFormat,
}

impl Global {
    /// The part that the configuration takes.
    pub fn overrides(&self) -> Overrides {
        Overrides { config: self.config.clone(), database: self.database.clone(), api_url: self.api_url.clone() }
    }
}

/// Where the log goes, and in which form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// To journald where stderr is connected with it, and else as text.
    Auto,
    /// Lines on stderr.
    Text,
    /// Fields to journald.
    Journald,
    /// One JSON object a line on stderr.
    Json,
}

/// When to use colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// On a terminal, unless NO_COLOR is set.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the daemon in the foreground (systemd runs this)
    Run,
    /// Start watching assets
    #[command(
        after_help = "Examples:\n  assetwatch add ast_1 ast_2\n  upload *.mp4 | assetwatch add - --patience 2h\n  \
        assetwatch add ast_1 --metadata '{\"post\": 7}'\n  \
        assetwatch add --batch tuesday --close - < ids.txt\n\n\
        Good ids are added and bad ones named; then the exit code is 1, and --close leaves the batch open."
    )]
    Add(Add),
    /// Block until assets have settled; adds them if need be
    #[command(after_help = "Examples:\n  assetwatch wait ast_1 ast_2 && ./publish.sh\n  \
        URL=$(assetwatch wait ast_1 --output url)\n  assetwatch wait ast_1 ast_2 --any --timeout 10m\n  assetwatch wait --batch tuesday\n\n\
        Beside a running daemon it only looks; alone it polls by itself and makes the first attempt of each delivery.")]
    Wait(Wait),
    /// List watches, newest first
    #[command(after_help = "Examples:\n  assetwatch list --state waiting\n  assetwatch list --status censored --json")]
    List(List),
    /// Show an asset's watch, its events, deliveries and attempts, and why each hook was or was not told
    Show(One),
    /// Stop following assets
    #[command(
        after_help = "Examples:\n  assetwatch cancel ast_1 ast_2\n  assetwatch cancel - --json < ids.txt | jq 'select(.error)'\n\n\
        What waits is cancelled, and the rest named; then the exit code is 1. As JSON each id has its object, with \
        `result` (cancelled, ended or unknown), `watch` and `error`."
    )]
    Cancel(Cancel),
    /// Print what happened
    #[command(after_help = "Examples:\n  assetwatch events --since 2h\n  assetwatch events --follow --json")]
    Events(Events),
    /// Hooks: how they stand, switched on and off, tried out, and a receiver to try them with
    #[command(subcommand)]
    Hooks(HooksCommand),
    /// Deliveries: what was told to whom, and what is attempted once more
    #[command(subcommand)]
    Deliveries(DeliveriesCommand),
    /// Batches: what belongs together, and when all of it has ended
    #[command(subcommand)]
    Batch(BatchCommand),
    /// Check configuration, database, key (one real request) and hooks; each line is ok or says what to change
    #[command(after_help = "The database is read as a whole, beside a running daemon and without keeping it waiting.")]
    Check,
    /// Copy the database into a file, while others go on using it
    #[command(after_help = "Examples:\n  assetwatch backup /backup/assetwatch-$(date +%F).db\n  \
        assetwatch backup --force /backup/assetwatch.db\n\n\
        The file is there when it is whole, was read again and found to be sound, and is on the disk; not before.\n\n\
        To restore it, stop every assetwatch on the database, and then:\n  \
        rm -f /var/lib/assetwatch/assetwatch.db-wal /var/lib/assetwatch/assetwatch.db-shm\n  \
        install -o assetwatch -g assetwatch -m 640 FILE /var/lib/assetwatch/assetwatch.db\n\
        What was delivered since the backup is delivered again, under the same webhook-id.")]
    Backup(Backup),
    /// The configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// See it work without a key: a simulated API, the daemon and two hooks on loopback
    Demo(Demo),
    /// Print completions for a shell
    Completions {
        /// The shell
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Print a manual page (troff)
    Man {
        /// The command to print the page of [default: assetwatch itself]
        command: Option<String>,
        /// Write the pages of all commands into this directory
        #[arg(long, value_name = "DIRECTORY", conflicts_with = "command")]
        all_to: Option<PathBuf>,
    },
}

/// `add`
#[derive(Args, Debug)]
pub struct Add {
    /// Asset ids; `-` reads them from stdin, one a line, without the blanks around them and a byte order mark
    #[arg(required = true, value_name = "ID", value_parser = asset_id())]
    pub ids: Vec<String>,
    /// The account (API key) to poll with
    #[arg(long, value_name = "NAME", default_value = "default", value_parser = account)]
    pub account: String,
    /// The longest to follow them, e.g. `2h` [default: the configured one]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub patience: Option<Duration>,
    /// JSON that is handed on with every event, at most 16 KiB
    #[arg(long, value_name = "JSON", value_parser = metadata)]
    pub metadata: Option<String>,
    /// A name for what belongs together
    #[arg(long, value_name = "NAME", value_parser = batch)]
    pub batch: Option<String>,
    /// Close the batch once all ids are added: it takes no more, and `batch.settled` is told when the last one has ended
    #[arg(long, requires = "batch")]
    pub close: bool,
    /// A URL that is told when they settle or are abandoned, besides the hooks
    #[arg(long, value_name = "URL")]
    pub callback: Option<String>,
    /// Watch assets that have settled once more
    #[arg(long)]
    pub again: bool,
}

/// `wait`
#[derive(Args, Debug)]
pub struct Wait {
    /// Asset ids; `-` reads them from stdin, one a line, without the blanks around them and a byte order mark
    #[arg(required_unless_present = "batch", value_name = "ID", value_parser = asset_id())]
    pub ids: Vec<String>,
    /// All watches of this batch instead, those added meanwhile included
    #[arg(long, value_name = "NAME", value_parser = batch, conflicts_with_all = ["ids", "account"])]
    pub batch: Option<String>,
    /// The account (API key) to poll with
    #[arg(long, value_name = "NAME", default_value = "default", value_parser = account)]
    pub account: String,
    /// The longest to wait, e.g. `10m`; then the exit code is 124
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub timeout: Option<Duration>,
    /// Be content with the first that ends
    #[arg(long)]
    pub any: bool,
    /// What to print of each asset, a line for each id, in their order
    #[arg(long, value_enum, value_name = "WHAT")]
    pub output: Option<WaitOutput>,
}

/// What `wait` prints of each asset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum WaitOutput {
    /// The status; the watch's state where it has not settled.
    Status,
    /// The URL; an empty line where there is none.
    Url,
    /// The whole watch.
    Json,
}

/// `list`
#[derive(Args, Debug)]
pub struct List {
    /// Only watches in this state
    #[arg(long, value_name = "STATE", value_parser = state)]
    pub state: Option<State>,
    /// Only assets with this status
    #[arg(long, value_name = "STATUS")]
    pub status: Option<String>,
    /// Only watches of this batch
    #[arg(long, value_name = "NAME")]
    pub batch: Option<String>,
    /// Only watches of this account
    #[arg(long, value_name = "NAME")]
    pub account: Option<String>,
    /// At most so many [default: 50 on a terminal, else all]
    #[arg(long, value_name = "N")]
    pub limit: Option<u32>,
}

/// `show`
#[derive(Args, Debug)]
pub struct One {
    /// The asset's id
    #[arg(value_name = "ID", value_parser = asset_id())]
    pub id: String,
    /// The account, where several watch this asset
    #[arg(long, value_name = "NAME")]
    pub account: Option<String>,
}

/// `cancel`
#[derive(Args, Debug)]
pub struct Cancel {
    /// Asset ids; `-` reads them from stdin, one a line, without the blanks around them and a byte order mark
    #[arg(required = true, value_name = "ID", value_parser = asset_id())]
    pub ids: Vec<String>,
    /// The account, where several watch an asset
    #[arg(long, value_name = "NAME")]
    pub account: Option<String>,
}

/// `events`
#[derive(Args, Debug)]
pub struct Events {
    /// Go on with what happens from now on
    #[arg(long, short)]
    pub follow: bool,
    /// Only what happened since then: an instant (RFC 3339) or a time ago, e.g. `2h`
    #[arg(long, value_name = "WHEN", value_parser = verbs::since)]
    pub since: Option<String>,
}

/// `hooks listen`
#[derive(Args, Debug)]
pub struct Listen {
    /// Where to listen: an address with a port, or a port on loopback
    #[arg(value_name = "ADDR", default_value = "127.0.0.1:8000")]
    pub address: String,
    /// The file with the secrets to verify with, one a line
    #[arg(long, value_name = "FILE", conflicts_with = "secret_env")]
    pub secret_file: Option<PathBuf>,
    /// The variable that holds the secrets
    #[arg(long, value_name = "NAME")]
    pub secret_env: Option<String>,
    /// What to answer a good webhook with
    #[arg(long, value_name = "CODE", default_value_t = 204, value_parser = clap::value_parser!(u16).range(200..=599))]
    pub status: u16,
    /// End after so many webhooks
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
}

/// `config`
#[derive(Clone, Copy, Debug, Subcommand)]
pub enum ConfigCommand {
    /// Print each setting, and where its value comes from
    Show,
}

/// `backup`
#[derive(Args, Clone, Debug)]
pub struct Backup {
    /// The file to write
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Replace FILE if it exists
    #[arg(long)]
    pub force: bool,
}

/// `demo`
#[derive(Args, Clone, Copy, Debug)]
pub struct Demo {
    /// Stay when all has settled, until interrupted, with the files for a look
    #[arg(long)]
    pub keep: bool,
}

/// The command line as clap knows it, for completions and manual pages.
pub fn command() -> clap::Command {
    Cli::command()
}

/// What is not UTF-8 becomes an id that is refused like any other bad one, so that it does not keep the good ones from
/// being added.
fn asset_id() -> impl TypedValueParser<Value = String> {
    OsStringValueParser::new().map(|id| id.to_string_lossy().into_owned())
}

fn account(text: &str) -> Result<String, String> {
    check_account(text).map(|()| text.to_owned())
}

fn metadata(text: &str) -> Result<String, String> {
    check_metadata(text).map(|()| text.to_owned())
}

fn batch(text: &str) -> Result<String, String> {
    check_batch(text).map(|()| text.to_owned())
}

fn state(text: &str) -> Result<State, String> {
    State::parse(text).ok_or_else(|| format!("it must be one of {}", State::ALL.map(State::as_str).join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }
}
