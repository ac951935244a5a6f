//! `batch`, and what `add --close` and `wait --batch` need of it.

use std::io;

use clap::{Args, Subcommand};

use super::output::{Output, complain, exit, plain, span, unheard};
use crate::clock::Timestamp;
use crate::control::Control;
use crate::event::Batch;

/// `batch`
#[derive(Debug, Subcommand)]
pub enum BatchCommand {
    /// List batches, newest first
    #[command(after_help = "Examples:\n  assetwatch batch list\n  assetwatch batch list --limit 10 --json")]
    List(ListBatches),
    /// Show how a batch stands: how many of its watches wait, and how the others ended
    #[command(after_help = "Examples:\n  assetwatch batch show tuesday\n  \
        assetwatch list --batch tuesday --state waiting   # what it waits for")]
    Show(OneBatch),
    /// Close a batch: it takes no more watches, and `batch.settled` is told once its last one has ended
    #[command(after_help = "Examples:\n  assetwatch batch close tuesday\n  \
        assetwatch add --batch tuesday --close ast_1 ast_2   # adds and closes\n\n\
        A batch is made by its first watch. To close a closed one again changes nothing; none is opened again.")]
    Close(OneBatch),
}

/// `batch list`
#[derive(Args, Debug)]
pub struct ListBatches {
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 50)]
    pub limit: u32,
}

/// `batch show` and `batch close`
#[derive(Args, Debug)]
pub struct OneBatch {
    /// The batch's name
    #[arg(value_name = "NAME")]
    pub name: String,
}

pub(super) async fn perform(command: BatchCommand, control: &Control, output: Output) -> anyhow::Result<u8> {
    match command {
        BatchCommand::List(args) => list(args.limit, control, output).await,
        BatchCommand::Show(args) => {
            let batch = known_batch(&args.name, control).await?;
            print_batch(&batch, output)?;
            Ok(exit::OK)
        }
        BatchCommand::Close(args) => {
            let closed = control.close_batch(&args.name).await?;
            let Some(batch) = closed else { return Err(unknown(&args.name)) };
            print_closed(&batch, output)?;
            Ok(exit::OK)
        }
    }
}

/// The batch of that name.
///
/// # Errors
/// When there is none.
pub async fn known_batch(name: &str, control: &Control) -> anyhow::Result<Batch> {
    control.store.batch(name.to_owned()).await?.ok_or_else(|| unknown(name))
}

fn unknown(name: &str) -> anyhow::Error {
    let name = plain(name);
    anyhow::anyhow!(
        "there is no batch {name:?}; a batch is made by its first watch, `assetwatch batch list` shows them"
    )
}

/// Closes the batch after `add`, unless one of the ids was bad: what is closed stays closed, and an event that tells of
/// too few would be told in vain. Returns whether all is good.
pub(super) async fn close_after(name: &str, good: bool, control: &Control, output: Output) -> anyhow::Result<bool> {
    let shown = plain(name);
    if !good {
        complain(&format!(
            "batch {shown:?} is left open, since not all ids were added; add the rest, or give `assetwatch batch close`"
        ));
        return Ok(false);
    }
    match control.close_batch(name).await? {
        Some(batch) => unheard(print_closed(&batch, output))?,
        None => {
            complain(&format!("nothing was added to batch {shown:?}, so there is none to close"));
            return Ok(false);
        }
    }
    Ok(true)
}

async fn list(limit: u32, control: &Control, output: Output) -> anyhow::Result<u8> {
    // One more than asked for tells whether there are more.
    let mut batches = control.store.batches(limit.saturating_add(1)).await?;
    let more = batches.len() > limit as usize;
    batches.truncate(limit as usize);
    if output.json {
        batches.iter().try_for_each(|batch| output.object(batch))?;
    } else {
        let now = control.clock.now();
        let rows = batches.iter().map(|batch| row(batch, now)).collect();
        output.rows(&["batch", "state", "watches", "waiting", "age", "ended"], rows)?;
    }
    if more {
        output.say(&format!("The newest {limit}; `--limit N` shows more."));
    }
    Ok(exit::OK)
}

fn row(batch: &Batch, now: Timestamp) -> Vec<String> {
    vec![
        plain(&batch.name),
        state(batch).into(),
        batch.watches.to_string(),
        batch.waiting.to_string(),
        span(batch.created_at, batch.settled_at.unwrap_or(now)),
        ended(batch),
    ]
}

const fn state(batch: &Batch) -> &'static str {
    match (batch.closed_at, batch.settled_at) {
        (_, Some(_)) => "settled",
        (Some(_), None) => "closed",
        (None, None) => "open",
    }
}

/// How its watches have ended: `3 active, 1 abandoned`.
pub(super) fn ended(batch: &Batch) -> String {
    let statuses = batch.statuses.iter().map(|(status, count)| (plain(status), *count));
    let ours = [("abandoned".to_owned(), batch.abandoned), ("cancelled".to_owned(), batch.cancelled)];
    let counts = statuses.chain(ours).filter(|(_, count)| *count > 0);
    let counts: Vec<String> = counts.map(|(word, count)| format!("{count} {word}")).collect();
    if counts.is_empty() { "-".into() } else { counts.join(", ") }
}

fn print_batch(batch: &Batch, output: Output) -> io::Result<()> {
    if output.json {
        return output.object(batch);
    }
    let at = |instant: Option<Timestamp>| instant.map_or_else(|| "-".to_owned(), |at| at.to_string());
    for (name, value) in [
        ("batch", plain(&batch.name)),
        ("state", state(batch).into()),
        ("watches", batch.watches.to_string()),
        ("waiting", batch.waiting.to_string()),
        ("ended", ended(batch)),
        ("created", batch.created_at.to_string()),
        ("closed", at(batch.closed_at)),
        ("settled", at(batch.settled_at)),
    ] {
        output.line(&format!("{name:<13} {value}"))?;
    }
    Ok(())
}

fn print_closed(batch: &Batch, output: Output) -> io::Result<()> {
    if output.json {
        return output.object(batch);
    }
    let how = match batch.settled_at {
        Some(at) => format!("settled at {at}: {}", ended(batch)),
        None => format!("{} of {} watches wait", batch.waiting, batch.watches),
    };
    output.line(&format!("closed {}; {how}", plain(&batch.name)))
}
