//! `deliveries`: what was told to whom, and what is attempted once more.

use clap::{Args, Subcommand};
use serde::Serialize;

use super::output::{Output, complain, exit, plain, span, unheard};
use super::verbs::{PAGE, SCREENFUL, since};
use crate::clock::Timestamp;
use crate::control::{Control, instant};
use crate::delivery::DeliveryState;
use crate::store::{DeliveryFilter, DeliveryRow, Portion, Retried, StoreError};

/// `deliveries`
#[derive(Debug, Subcommand)]
pub enum DeliveriesCommand {
    /// List deliveries, newest first
    #[command(after_help = "Examples:\n  assetwatch deliveries list --state dead\n  \
        assetwatch deliveries list --hook cms --limit 10 --json\n\n\
        STATE is waiting, delivered, dead (given up on) or held (until something is changed).")]
    List(ListDeliveries),
    /// Have deliveries attempted once more, by a fresh schedule
    #[command(after_help = "Examples:\n  assetwatch deliveries retry 17 18\n  \
        assetwatch deliveries retry --dead --hook cms --since 2d\n\n\
        Dead, held and delivered ones are due now; so are those that wait for a later attempt. Receivers see the same \
        webhook-id again. --dead leaves out what nobody misses: tests, and an asset's `processing` whose end is known.")]
    Retry(RetryDeliveries),
}

/// `deliveries list`
#[derive(Args, Debug)]
pub struct ListDeliveries {
    /// Only deliveries in this state
    #[arg(long, value_name = "STATE", value_parser = state)]
    pub state: Option<DeliveryState>,
    /// Only deliveries to this hook
    #[arg(long, value_name = "NAME")]
    pub hook: Option<String>,
    /// At most so many [default: 50 on a terminal, else all]
    #[arg(long, value_name = "N")]
    pub limit: Option<u32>,
}

/// `deliveries retry`
#[derive(Args, Debug)]
pub struct RetryDeliveries {
    /// Deliveries, by the numbers that `deliveries list` and `show` print
    #[arg(required_unless_present = "dead", conflicts_with = "dead", value_name = "DELIVERY")]
    pub ids: Vec<i64>,
    /// All dead ones
    #[arg(long)]
    pub dead: bool,
    /// With --dead: only those of this hook
    #[arg(long, requires = "dead", conflicts_with = "ids", value_name = "NAME")]
    pub hook: Option<String>,
    /// With --dead: only those whose event happened since then: an instant (RFC 3339) or a time ago, e.g. `2h`
    #[arg(long, requires = "dead", conflicts_with = "ids", value_name = "WHEN", value_parser = since)]
    pub since: Option<String>,
}

fn state(text: &str) -> Result<DeliveryState, String> {
    let states = DeliveryState::ALL.map(DeliveryState::as_str).join(", ");
    DeliveryState::parse(text).ok_or_else(|| format!("it must be one of {states}"))
}

pub(super) async fn perform(command: DeliveriesCommand, control: &Control, output: Output) -> anyhow::Result<u8> {
    match command {
        DeliveriesCommand::List(args) => list(args, control, output).await,
        DeliveriesCommand::Retry(args) if args.dead => retry_dead(args, control, output).await,
        DeliveriesCommand::Retry(args) => retry(args.ids, control, output).await,
    }
}

async fn list(args: ListDeliveries, control: &Control, output: Output) -> anyhow::Result<u8> {
    if let Some(hook) = &args.hook {
        control.known_hook(hook).await?;
    }
    let screen = output.terminal && !output.json;
    let mut left = args.limit.or(screen.then_some(SCREENFUL)).unwrap_or(u32::MAX);
    let mut filter = DeliveryFilter { state: args.state, hook: args.hook, ..DeliveryFilter::default() };
    let mut more = true;
    while more && left > 0 {
        // One more than asked for tells whether there are more.
        let page = left.min(PAGE);
        filter.limit = Some(page.saturating_add(1));
        let mut rows = control.store.deliveries(filter.clone()).await?;
        more = rows.len() > page as usize;
        rows.truncate(page as usize);
        left -= u32::try_from(rows.len()).unwrap_or(left);
        filter.before = rows.last().map(|row| row.delivery.id);
        print(&rows, control.clock.now(), output)?;
    }
    if more && args.limit.is_none() && screen {
        output.say(&format!("The newest {SCREENFUL}; `--limit N` shows more."));
    }
    Ok(exit::OK)
}

fn print(deliveries: &[DeliveryRow], now: Timestamp, output: Output) -> std::io::Result<()> {
    if output.json {
        return deliveries.iter().try_for_each(|row| output.object(row));
    }
    let or_dash = |text: Option<&str>| plain(text.unwrap_or("-"));
    let rows = deliveries.iter().map(|row| {
        let delivery = &row.delivery;
        vec![
            delivery.id.to_string(),
            or_dash(row.event_type.as_deref()),
            or_dash(row.asset_id.as_deref()),
            plain(&delivery.hook),
            delivery.state.as_str().into(),
            delivery.attempts.to_string(),
            when(row, now),
            or_dash(delivery.last_error.as_deref()),
        ]
    });
    output.rows(&["id", "event", "asset", "hook", "state", "attempts", "when", "last error"], rows.collect())
}

/// When it was finished, or when it is due.
fn when(row: &DeliveryRow, now: Timestamp) -> String {
    let delivery = &row.delivery;
    match (delivery.finished_at, delivery.due_at) {
        (Some(finished_at), _) => finished_at.to_string(),
        (None, Some(_)) if row.lease_until.is_some_and(|until| until > now) => "under way".into(),
        (None, Some(due_at)) if due_at > now => format!("in {}", span(now, due_at)),
        (None, Some(_)) => "now".into(),
        (None, None) => "-".into(),
    }
}

#[derive(Serialize)]
struct Line<'a> {
    id: i64,
    #[serde(flatten)]
    retried: &'a Retried,
}

async fn retry(ids: Vec<i64>, control: &Control, output: Output) -> anyhow::Result<u8> {
    let results = control.retry(ids).await?;
    let (mut code, mut due) = (exit::OK, 0);
    for (id, retried) in &results {
        match retried {
            Retried::Due { .. } => due += 1,
            Retried::Unknown => code = exit::FAILURE,
            Retried::Held { .. } | Retried::UnderWay { .. } => {}
        }
        if let Retried::Due { hook } = retried
            && !control.is_configured(hook)
        {
            output
                .say(&format!("The configuration names no hook {:?}; nothing attempts it until it does.", plain(hook)));
        }
        let line = match retried {
            _ if output.json => {
                unheard(output.object(&Line { id: *id, retried }))?;
                continue;
            }
            Retried::Due { hook } => format!("delivery {id} to {} is due now", plain(hook)),
            Retried::Held { hook } => {
                let hook = plain(hook);
                format!("delivery {id} is held: hook {hook} is disabled; `assetwatch hooks enable {hook}` releases it")
            }
            Retried::UnderWay { hook } => {
                format!("delivery {id} to {} is left as it is: an attempt is under way", plain(hook))
            }
            Retried::Unknown => {
                complain(&format!("there is no delivery {id}; `assetwatch deliveries list` shows them"));
                continue;
            }
        };
        unheard(output.line(&line))?;
    }
    say_if_alone(due, control, output).await?;
    Ok(code)
}

async fn retry_dead(args: RetryDeliveries, control: &Control, output: Output) -> anyhow::Result<u8> {
    if let Some(hook) = &args.hook {
        control.known_hook(hook).await?;
    }
    let since =
        args.since.as_deref().map(|text| instant(text, control.clock.now())).transpose().map_err(anyhow::Error::msg)?;
    let since = since.unwrap_or(Timestamp::from_millis(i64::MIN));
    let Portion { due, held, .. } = control.retry_dead(args.hook.as_deref(), since).await?;
    if output.json {
        output.object(&serde_json::json!({"due": due, "held": held}))?;
        return Ok(exit::OK);
    }
    output.line(&format!("{due} dead deliveries are due now"))?;
    if held > 0 {
        output.line(&format!(
            "{held} more are held: their hooks are disabled; `assetwatch hooks list` shows which, `hooks enable NAME` \
             releases them"
        ))?;
    }
    say_if_alone(due, control, output).await?;
    Ok(exit::OK)
}

/// Whoever has made something due wants to know that nobody is there to attempt it.
pub(super) async fn say_if_alone(due: u64, control: &Control, output: Output) -> Result<(), StoreError> {
    if due > 0 && !control.daemon_is_alive().await? {
        output.say("No daemon is running on this database; `assetwatch run` makes the attempts.");
    }
    Ok(())
}
