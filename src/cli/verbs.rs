//! The verbs that need no daemon: they open the database directly, so they work while it is down.

use std::collections::HashMap;
use std::io;
use std::time::Duration;

use serde::Serialize;

use super::ids::Ids;
use super::output::{Output, complain, exit, plain, span, summary, unheard, word};
use super::{Add, Cancel, Command, Events, List, WaitOutput};
use super::{batches, deliveries, hooks, show};
use crate::clock::Timestamp;
use crate::control::{AddOptions, AddOutcome, AddResult, Cancelled, Control, UnpolledAccount};
use crate::control::{CANCELLED_AT_ONCE, check_callback_url, instant, unknown_watch};
use crate::event::{Batch, Gist};
use crate::store::{EventRow, Filter};
use crate::watch::{State, Watch};

/// Rows are read in pages of this size.
pub(super) const PAGE: u32 = 1_000;
/// What `list` shows on a terminal unless told otherwise.
pub(super) const SCREENFUL: u32 = 50;
/// How often `events --follow` looks.
const LOOK: Duration = Duration::from_millis(200);

/// Does what `command` asks for, and returns the exit code. `run`, `wait`, `demo` and the verbs that need no database are
/// somebody else's.
///
/// # Errors
/// When the database fails or stdout is closed.
pub async fn perform(command: Command, control: &Control, output: Output) -> anyhow::Result<u8> {
    match command {
        Command::Add(args) => add(args, control, output).await,
        Command::List(args) => list(args, control, output).await,
        Command::Show(args) => show::show(args, control, output).await,
        Command::Hooks(args) => hooks::perform(args, control, output).await,
        Command::Deliveries(args) => deliveries::perform(args, control, output).await,
        Command::Cancel(args) => cancel(args, control, output).await,
        Command::Events(args) => events(args, control, output).await,
        Command::Batch(args) => batches::perform(args, control, output).await,
        Command::Run
        | Command::Wait(_)
        | Command::Check
        | Command::Backup(_)
        | Command::Config(_)
        | Command::Demo(_)
        | Command::Completions { .. }
        | Command::Man { .. } => anyhow::bail!("this command is not a verb of the database"),
    }
}

async fn add(args: Add, control: &Control, output: Output) -> anyhow::Result<u8> {
    // Here and not where arguments are read: that repeats what was given, and a token may stand in it.
    if let Some(Err(problem)) = args.callback.as_deref().map(check_callback_url) {
        complain(&format!("--callback: {problem}"));
        return Ok(exit::USAGE);
    }
    warn_of_account(&args.account, control, output);
    let options = AddOptions {
        account: args.account,
        patience: args.patience,
        metadata: args.metadata,
        batch: args.batch,
        callback_url: args.callback,
        again: args.again,
    };
    let mut ids = Ids::of(args.ids);
    let mut good = true;
    loop {
        let portion = ids.portion(options.ids_at_once()).await?;
        if portion.is_empty() {
            break;
        }
        for result in control.add(portion, &options).await? {
            good &= result.error.is_none();
            // Ids that are still to come are added, whoever listens.
            unheard(print_added(&result, &options, output))?;
        }
    }
    if let Some(batch) = options.batch.filter(|_| args.close) {
        good = batches::close_after(&batch, good, control, output).await?;
    }
    Ok(if good { exit::OK } else { exit::FAILURE })
}

/// The daemon may have another configuration, so it is only said.
fn warn_of_account(account: &str, control: &Control, output: Output) {
    if !control.names_account(account) {
        output.say(&format!(
            "The configuration names no account {:?}; nothing polls for it until it does.",
            plain(account)
        ));
    }
}

fn print_added(result: &AddResult, options: &AddOptions, output: Output) -> io::Result<()> {
    if output.json {
        return output.object(result);
    }
    let id = plain(&result.asset_id);
    if let Some(error) = &result.error {
        complain(&format!("{:?}: {error}", shortened(&id)));
        return Ok(());
    }
    match (&result.watch, result.result) {
        (Some(watch), AddOutcome::Watching) => output.line(&format!("watching {id} since {}", watch.created_at)),
        (Some(watch), AddOutcome::Settled) => {
            let elsewhere = options.batch.is_some() && watch.batch != options.batch;
            let but = if elsewhere { ", in this batch" } else { "" };
            output.line(&format!("settled {}; `--again` watches it once more{but}", summary(watch)))
        }
        _ => output.line(&format!("added {id}")),
    }
}

/// Enough of a long id to find it by.
fn shortened(id: &str) -> String {
    const ENOUGH: usize = 60;
    let mut short: String = id.chars().take(ENOUGH).collect();
    if short.len() < id.len() {
        short.push('…');
    }
    short
}

async fn list(args: List, control: &Control, output: Output) -> anyhow::Result<u8> {
    let screen = output.terminal && !output.json;
    let limit = args.limit.or(screen.then_some(SCREENFUL));
    let mut filter = Filter {
        state: args.state,
        status: args.status,
        batch: args.batch,
        account: args.account,
        ..Filter::default()
    };
    let mut left = limit.unwrap_or(u32::MAX);
    let mut more = false;
    while left > 0 {
        // One more than asked for tells whether there are more.
        let page = left.min(PAGE);
        filter.limit = Some(page.saturating_add(1));
        let mut watches = control.list(filter.clone()).await?;
        more = watches.len() > page as usize;
        watches.truncate(page as usize);
        left -= u32::try_from(watches.len()).unwrap_or(left);
        filter.before = watches.last().map(|watch| watch.id);
        print_watches(&watches, control.clock.now(), output)?;
        if !more {
            break;
        }
    }
    if more && args.limit.is_none() {
        output.say(&format!("The newest {SCREENFUL}; `--limit N` shows more."));
    }
    for (name, standing) in control.account_standings().await? {
        output.say(&format!("Account {}: {}.", plain(&name), plain(&standing)));
    }
    for name in control.unnamed_accounts().await? {
        output
            .say(&format!("Account {:?}: no such account is configured, so its watches are not polled.", plain(&name)));
    }
    Ok(exit::OK)
}

fn print_watches(watches: &[Watch], now: Timestamp, output: Output) -> io::Result<()> {
    if output.json {
        return watches.iter().try_for_each(|watch| output.object(watch));
    }
    let rows = watches
        .iter()
        .map(|watch| {
            let next = watch.due_at.map(|due| if due > now { span(now, due) } else { "now".into() });
            vec![
                plain(&watch.asset_id),
                watch.state.to_string(),
                plain(watch.asset.status.as_deref().unwrap_or("-")),
                watch.polls.to_string(),
                span(watch.created_at, watch.settled_at.unwrap_or(now)),
                next.unwrap_or_else(|| "-".into()),
                plain(watch.asset.url.as_deref().or(watch.last_error.as_deref()).unwrap_or("-")),
            ]
        })
        .collect();
    output.rows(&["asset", "state", "status", "polls", "age", "next poll", "url or error"], rows)
}

async fn cancel(args: Cancel, control: &Control, output: Output) -> anyhow::Result<u8> {
    let mut ids = Ids::of(args.ids);
    let mut good = true;
    loop {
        let portion = ids.portion(CANCELLED_AT_ONCE).await?;
        if portion.is_empty() {
            break;
        }
        let cancelled = control.cancel(&portion, args.account.as_deref()).await?;
        for (id, cancelled) in portion.iter().zip(cancelled) {
            good &= matches!(cancelled, Cancelled::Now(_));
            // Ids that are still to come are cancelled, whoever listens.
            unheard(print_cancelled((id, args.account.as_deref()), &cancelled, output))?;
        }
    }
    Ok(if good { exit::OK } else { exit::FAILURE })
}

/// What `cancel` did with one id, as JSON: an object like those of `add`.
#[derive(Serialize)]
struct CancelResult<'a> {
    asset_id: &'a str,
    result: &'static str,
    watch: Option<&'a Watch>,
    error: Option<String>,
}

fn print_cancelled((id, account): (&str, Option<&str>), cancelled: &Cancelled, output: Output) -> io::Result<()> {
    let shown = plain(id);
    let (result, watch, error) = match cancelled {
        Cancelled::Now(watch) => ("cancelled", Some(&**watch), None),
        Cancelled::Ended(watch) => {
            ("ended", Some(&**watch), Some(format!("not cancelled, it had ended: {}", word(watch))))
        }
        Cancelled::Unknown => ("unknown", None, Some(unknown_watch(&shown, account.map(plain).as_deref(), None))),
    };
    match (error, watch) {
        (error, watch) if output.json => output.object(&CancelResult { asset_id: id, result, watch, error })?,
        (None, _) => output.line(&format!("cancelled {shown}"))?,
        (Some(error), Some(_)) => complain(&format!("{shown}: {error}")),
        (Some(error), None) => complain(&error),
    }
    Ok(())
}

async fn events(args: Events, control: &Control, output: Output) -> anyhow::Result<u8> {
    let since = match &args.since {
        Some(text) => instant(text, control.clock.now()).map_err(anyhow::Error::msg)?,
        None if args.follow => control.clock.now(),
        None => Timestamp::from_millis(i64::MIN),
    };
    let mut after = 0;
    loop {
        let version = control.store.version().await?;
        loop {
            let events = control.events(after, since, PAGE).await?;
            let Some(last) = events.last() else { break };
            after = last.seq;
            events.iter().try_for_each(|event| print_event(event, output))?;
        }
        if !args.follow {
            return Ok(exit::OK);
        }
        while control.store.version().await? == version {
            tokio::time::sleep(LOOK).await;
        }
    }
}

fn print_event(event: &EventRow, output: Output) -> io::Result<()> {
    if output.json {
        return output.object(event);
    }
    let gist = Gist::of(event.body.as_bytes());
    let says = match gist.asset_id {
        Some(asset) => format!("{} {}", plain(&asset), plain(&gist.url.unwrap_or_default())),
        None => plain(&notice(event)),
    };
    output.line(format!("{} {} {says}", event.created_at, plain(&event.event_type)).trim_end())
}

/// What an event says that speaks of no asset: its fields, in a line.
fn notice(event: &EventRow) -> String {
    let told = serde_json::from_str::<serde_json::Value>(&event.body).unwrap_or_default();
    let data = &told["data"];
    let text = |value: &serde_json::Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let count = |value: &serde_json::Value| value.as_i64().unwrap_or(0);
    if event.event_type == "batch.settled" {
        let statuses = data["statuses"].as_object().into_iter().flatten();
        let batch = Batch {
            abandoned: count(&data["abandoned"]),
            cancelled: count(&data["cancelled"]),
            statuses: statuses.map(|(status, value)| (status.clone(), count(value))).collect(),
            ..Batch::default()
        };
        return format!("{}: {} watches, {}", text(&data["batch"]), count(&data["watches"]), batches::ended(&batch));
    }
    let fields = data.as_object().into_iter().flatten();
    fields.map(|(name, value)| format!("{name}={}", text(value))).collect::<Vec<_>>().join(" ")
}

/// Whether `--since` can be understood; what it means depends on the time.
pub(super) fn since(text: &str) -> Result<String, String> {
    instant(text, Timestamp::default()).map(|_| text.to_owned())
}

/// Watches for assets that are waited for, one for each id: those that are there, and new ones for the rest.
///
/// # Errors
/// When one of the ids is none, or there is none at all, or a new watch would be polled by nobody; nothing is waited for
/// then.
pub async fn watches_for(ids: Vec<String>, account: &str, control: &Control) -> anyhow::Result<Vec<i64>> {
    // Whoever was to print them has failed, as a rule: that all of none are active would let what comes next begin.
    anyhow::ensure!(!ids.is_empty(), "no ids came on stdin; there is nothing to wait for");
    if !control.names_account(account) && !control.daemon_is_alive().await? {
        // What is known may have ended; but a name that was misspelt is to leave nothing behind that waits for ever.
        for id in &ids {
            let known = control.newest(id, Some(account)).await?;
            let is_one = known.is_some_and(|known| matches!(known.state, State::Waiting | State::Settled));
            anyhow::ensure!(is_one, UnpolledAccount { name: account.into() });
        }
    }
    let options = AddOptions { account: account.into(), ..AddOptions::default() };
    let mut watches = Vec::with_capacity(ids.len());
    for result in control.add(ids, &options).await? {
        match result.watch {
            Some(watch) => watches.push(watch.id),
            None => anyhow::bail!("{:?}: {}", shortened(&plain(&result.asset_id)), result.error.unwrap_or_default()),
        }
    }
    Ok(watches)
}

/// Prints what was waited for: a line for each of the ids that were asked for, however often, or for each watch of a batch.
///
/// # Errors
/// When it cannot be written; a reader who has left is none.
pub fn print_waited(asked: &[i64], watches: &[Watch], what: Option<WaitOutput>, output: Output) -> io::Result<()> {
    let by_id: HashMap<i64, &Watch> = watches.iter().map(|watch| (watch.id, watch)).collect();
    let each: Vec<&Watch> = match asked {
        [] => watches.iter().collect(),
        asked => asked.iter().filter_map(|id| by_id.get(id).copied()).collect(),
    };
    unheard(print_each(&each, what, output))
}

fn print_each(watches: &[&Watch], what: Option<WaitOutput>, output: Output) -> io::Result<()> {
    for watch in watches {
        match what {
            Some(WaitOutput::Json) => output.object(watch)?,
            None if output.json => output.object(watch)?,
            None => output.line(&summary(watch))?,
            Some(WaitOutput::Url) => {
                let url = watch.asset.url.as_deref().filter(|_| watch.state == State::Settled);
                output.line(&plain(url.unwrap_or_default()))?;
            }
            Some(WaitOutput::Status) => {
                let status = watch.asset.status.as_deref().filter(|_| watch.state == State::Settled);
                output.line(&plain(status.unwrap_or(watch.state.as_str())))?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_are_given_absolutely_or_as_a_time_ago() {
        let now: Timestamp = "2026-09-21T10:00:00Z".parse().unwrap();
        for (text, expected) in [
            ("2026-09-20T00:00:00Z", "2026-09-20T00:00:00.000Z"),
            ("2h 30m", "2026-09-21T07:30:00.000Z"),
            ("9999y", "1970-01-01T00:00:00.000Z"),
        ] {
            assert_eq!(instant(text, now).unwrap().to_string(), expected, "{text}");
        }
        assert!(instant("yesterday", now).is_err());
    }
}
