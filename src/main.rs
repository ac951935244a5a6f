//! Parses, calls one function, turns the result into an exit code.

use std::io::{self, ErrorKind, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context;
use assetwatch::cli::{self, Cli, Command, ConfigCommand, HooksCommand, Output, Progress, Screen, exit};
use assetwatch::config::{self, ConfigError, Environment, Settings};
use assetwatch::control::{HookVerbError, UnpolledAccount};
use assetwatch::daemon::{self, Ending, EngineError, WaitOptions, Waited};
use assetwatch::http::GateError;
use assetwatch::signal::Signals;
use assetwatch::store::{BackupError, StoreError};
use assetwatch::telemetry::{self, Format, Verbosity};
use assetwatch::watch::{State, Watch};
use assetwatch::{clock, demo};
use clap::Parser;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let format = Format::of(cli.global.log_format);
    let result = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("the runtime cannot be started")
        .and_then(|runtime| {
            let result = runtime.block_on(dispatch(cli, format));
            // A read of stdin that nobody waits for any more must not keep the process.
            runtime.shutdown_background();
            result
        });
    ExitCode::from(result.unwrap_or_else(|error| complain(&error, format)))
}

async fn dispatch(cli: Cli, format: Format) -> anyhow::Result<u8> {
    let output = Output::new(&cli.global);
    let screen = Screen::default();
    telemetry::start(verbosity(&cli), format, !matches!(cli.global.color, cli::Color::Never), screen.clone());
    let load = || config::load(&cli.global.overrides(), &std::env::vars_os().collect::<Environment>());
    match cli.command {
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut cli::command(), "assetwatch", &mut script);
            io::stdout().write_all(&script)?;
            Ok(exit::OK)
        }
        Command::Man { command, all_to } => man(command, all_to.as_deref()),
        Command::Config(ConfigCommand::Show) => cli::show_config(&load()?, output),
        Command::Demo(args) => demo::run(args.keep, output, &screen).await,
        Command::Hooks(HooksCommand::Listen(args)) => {
            let mut signals = Signals::take_to_stop()?;
            cli::listen(args, cli.global.verbose > 0, output, signals.stopped()).await
        }
        Command::Check => cli::check(&load()?, output, &screen).await,
        Command::Backup(args) => {
            let mut signals = Signals::take_to_stop()?;
            cli::backup(&args, &load()?.database, (output, &screen), signals.stopped()).await
        }
        Command::Run => daemon::run(load()?, load).await.map(|()| exit::OK),
        Command::Wait(args) => wait(args, &load()?, output, &screen).await,
        Command::Hooks(HooksCommand::Test(args)) => {
            let mut signals = Signals::take_to_stop()?;
            let settings = load()?;
            // A command that is tried out is confined as the daemon confines it.
            daemon::confine(&settings);
            cli::test_hook(&args, &daemon::open(&settings).await?, output, signals.stopped()).await
        }
        verb => cli::perform(verb, &daemon::open(&load()?).await?, output).await,
    }
}

/// The daemon's log is the reason why it is looked at; a command's answer is on stdout.
fn verbosity(cli: &Cli) -> Verbosity {
    match (cli.global.quiet, cli.global.verbose, &cli.command) {
        (true, _, _) => Verbosity::Quiet,
        (false, 0, Command::Run) | (false, 1, _) => Verbosity::Verbose,
        (false, 0, _) => Verbosity::Normal,
        (false, _, _) => Verbosity::Debug,
    }
}

async fn wait(mut args: cli::Wait, settings: &Settings, output: Output, screen: &Screen) -> anyhow::Result<u8> {
    let control = daemon::open(settings).await?;
    let began = Instant::now();
    let watches = match &args.batch {
        Some(name) => cli::known_batch(name, &control).await.map(|_| Vec::new())?,
        None => match cli::all_ids(args.ids, args.timeout).await? {
            Some(ids) => {
                let read = began.elapsed();
                args.timeout = args.timeout.map(|timeout| timeout.saturating_sub(read));
                cli::watches_for(ids, &args.account, &control).await?
            }
            None => {
                cli::complain("--timeout ran out before the ids on stdin had come to their end; none is waited for");
                return Ok(exit::TIMED_OUT);
            }
        },
    };
    let options = WaitOptions { watches, batch: args.batch, timeout: args.timeout, any: args.any };
    let mut progress = Progress::new(&output, screen, clock::Clock::system());
    let waited = daemon::wait(&control, settings, &options, |watches| progress.show(watches)).await?;
    progress.end();
    cli::print_waited(&options.watches, &waited.watches, args.output, output)?;
    for left in &waited.left {
        let (hook, count) = (&left.hook, left.waiting);
        output.say(&format!("{count} deliveries to hook {hook} are left for a running daemon (`assetwatch run`)"));
    }
    match &waited.ending {
        Ending::Unauthorized(said) => cli::complain(&format!("not authorized: {said}")),
        Ending::Unpolled(account) => cli::complain(&cli::plain(&account.to_string())),
        Ending::Ended | Ending::TimedOut | Ending::Interrupted => {}
    }
    Ok(wait_code(&waited, args.any))
}

/// With several outcomes the first in the order 5, 4, 3, 124 wins.
fn wait_code(waited: &Waited, any: bool) -> u8 {
    let ended = |watch: &&Watch| watch.state != State::Waiting;
    let mut counted: Vec<&Watch> = waited.watches.iter().filter(ended).collect();
    if any && waited.ending == Ending::Ended {
        counted.sort_by_key(|watch| watch.settled_at);
        counted.truncate(1);
    }
    let is_active = |watch: &&Watch| watch.asset.status.as_deref() == Some("active");
    match &waited.ending {
        Ending::Interrupted => exit::INTERRUPTED,
        Ending::Unauthorized(_) => exit::UNAUTHORIZED,
        Ending::Unpolled(_) => exit::CONFIGURATION,
        _ if counted.iter().any(|watch| watch.state != State::Settled) => exit::NOT_SETTLED,
        _ if !counted.iter().all(is_active) => exit::NOT_ACTIVE,
        Ending::TimedOut => exit::TIMED_OUT,
        Ending::Ended => exit::OK,
    }
}

fn man(command: Option<String>, all_to: Option<&Path>) -> anyhow::Result<u8> {
    let mut all = cli::command();
    if let Some(directory) = all_to {
        clap_mangen::generate_to(all, directory).with_context(|| directory.display().to_string())?;
        return Ok(exit::OK);
    }
    all.build();
    let page = match command {
        None => all,
        Some(name) => all.find_subcommand(&name).cloned().with_context(|| format!("there is no command {name:?}"))?,
    };
    clap_mangen::Man::new(page).render(&mut io::stdout())?;
    Ok(exit::OK)
}

/// One line, or one entry of a log for machines: what happened, to what, and why.
fn complain(error: &anyhow::Error, format: Format) -> u8 {
    let is_broken_pipe = |cause: &(dyn std::error::Error + 'static)| {
        cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
    };
    if error.chain().any(is_broken_pipe) {
        // Whoever read our output has seen enough.
        return exit::OK;
    }
    if format.is_structured() && tracing::enabled!(tracing::Level::ERROR) {
        tracing::error!("{error:#}");
    } else {
        cli::complain(&format!("{error:#}"));
    }
    let engine = error.downcast_ref::<EngineError>();
    let is_configuration = engine.is_some_and(EngineError::is_configuration);
    if is_configuration || error.is::<ConfigError>() || error.is::<GateError>() || error.is::<UnpolledAccount>() {
        return exit::CONFIGURATION;
    }
    if matches!(store_error(error), Some(StoreError::Unfit { .. })) { exit::UNFIT } else { exit::FAILURE }
}

/// What the database said, whoever hands it on.
fn store_error(error: &anyhow::Error) -> Option<&StoreError> {
    if let Some(EngineError::Store(store)) = error.downcast_ref() {
        return Some(store);
    }
    if let Some(BackupError::Store(store)) = error.downcast_ref() {
        return Some(store);
    }
    if let Some(HookVerbError::Store(store)) = error.downcast_ref() {
        return Some(store);
    }
    error.downcast_ref()
}
