//! `show`: one watch with everything that was told about it.

use std::io;

use super::One;
use super::output::{Output, complain, exit, plain, print_kept, word};
use crate::clock::Timestamp;
use crate::control::{Control, Shown, Told, account_standing, unknown_watch};
use crate::store::History;

pub(super) async fn show(args: One, control: &Control, output: Output) -> anyhow::Result<u8> {
    let Some(shown) = control.show(&args.id, args.account.as_deref()).await? else {
        let unknown = unknown_watch(&plain(&args.id), args.account.as_deref().map(plain).as_deref(), None);
        complain(&format!("{unknown}; `assetwatch add` starts one"));
        return Ok(exit::FAILURE);
    };
    if output.json {
        output.object(&shown)?
    } else {
        print_shown(&shown, control.clock.now(), output)?
    }
    Ok(exit::OK)
}

fn print_shown(shown: &Shown, now: Timestamp, output: Output) -> io::Result<()> {
    let watch = &shown.watch;
    let instant = |at: Option<Timestamp>| at.map(|at| at.to_string());
    let number = |number: Option<i64>| number.map(|number| number.to_string());
    let fields = [
        ("asset", Some(plain(&watch.asset_id))),
        ("state", Some(word(watch))),
        ("account", Some(plain(&watch.account))),
        ("url", watch.asset.url.as_deref().map(plain)),
        ("type", watch.asset.kind.as_deref().map(plain)),
        ("width", number(watch.asset.width)),
        ("height", number(watch.asset.height)),
        ("duration", number(watch.asset.duration)),
        ("frames", number(watch.asset.frames)),
        ("batch", watch.batch.as_deref().map(plain)),
        ("metadata", watch.metadata.as_deref().map(plain)),
        ("polls", Some(watch.polls.to_string())),
        ("last error", watch.last_error.as_deref().map(plain)),
        ("added", instant(Some(watch.created_at))),
        ("first polled", instant(watch.first_polled_at)),
        ("processing", instant(watch.processing_at)),
        ("last polled", instant(watch.last_polled_at)),
        ("next poll", instant(watch.due_at.filter(|due| due.as_millis() > 0))),
        ("ended", instant(watch.settled_at)),
    ];
    for (name, value) in fields {
        if let Some(value) = value {
            output.line(&format!("{name:<13} {value}"))?;
        }
    }
    if let Some(standing) = shown.account_closed.as_ref().and_then(|row| account_standing(row, now)) {
        output.line(&format!("{:<13} {}", "its account", plain(&standing)))?;
    }
    print_history(&shown.history, output)?;
    print_told(&shown.hooks, output)
}

fn print_history(history: &History, output: Output) -> io::Result<()> {
    for event in &history.events {
        output.line(&format!("\nevent {} {} at {}", plain(&event.event_type), plain(&event.id), event.created_at))?;
        for delivery in history.deliveries.iter().filter(|delivery| delivery.event_id == event.id) {
            let state = delivery.state.as_str();
            output.line(&format!("  delivery {} to {}: {state}", delivery.id, plain(&delivery.hook)))?;
            for attempt in history.attempts.iter().filter(|attempt| attempt.delivery_id == delivery.id) {
                let outcome = attempt.outcome.as_deref().unwrap_or("under way");
                let code = attempt.code.map(|code| format!(" ({code})")).unwrap_or_default();
                let error = attempt.error.as_deref().map(|error| format!(": {}", plain(error))).unwrap_or_default();
                output.line(&format!("    {} {} {outcome}{code}{error}", attempt.number, attempt.started_at))?;
                print_kept((6, "stdout or answer"), attempt.output.as_deref(), output)?;
                print_kept((6, "stderr"), attempt.errors.as_deref(), output)?;
            }
        }
    }
    Ok(())
}

fn print_told(hooks: &[Told], output: Output) -> io::Result<()> {
    if !hooks.is_empty() {
        output.line("")?;
    }
    for Told { hook, why, change } in hooks {
        output.line(&format!("hook {}: {}", plain(hook), plain(why)))?;
        if let Some(change) = change {
            output.line(&format!("  {}", plain(change)))?;
        }
    }
    Ok(())
}
