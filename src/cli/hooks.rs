//! `hooks`: how they stand, switched on and off, and tried out.

use std::io;

use clap::{Args, Subcommand};
use serde_json::json;

use super::Listen;
use super::output::{Output, complain, exit, plain, print_kept, span, unheard};
use crate::clock::Timestamp;
use crate::control::{Control, HookShown, HookState, HookVerbError, Tested};
use crate::delivery::Outcome;

/// What is written down, and told, of a hook that was disabled by hand without a reason.
const BY_HAND: &str = "by hand";

/// `hooks`
#[derive(Debug, Subcommand)]
pub enum HooksCommand {
    /// List hooks: how each stands, and what is not delivered yet
    #[command(after_help = "Examples:\n  assetwatch hooks list\n  \
        assetwatch hooks list --json | jq 'select(.dead > 0)'")]
    List,
    /// Have a hook attempted again, with everything that was held for it
    #[command(after_help = "Examples:\n  assetwatch hooks enable cms\n  \
        assetwatch deliveries retry --dead --hook cms   # what was given up on, too")]
    Enable(OneHook),
    /// Have nothing more attempted at a hook: what is under way ends, what comes later is held
    #[command(after_help = "Examples:\n  assetwatch hooks disable cms --reason 'the CMS moves'\n  \
        assetwatch hooks enable cms   # releases what was held")]
    Disable(DisableHook),
    /// Make one real delivery of a `test` event, and show what was sent and what came back
    #[command(
        after_help = "Examples:\n  assetwatch hooks test cms\n  assetwatch hooks test publish --status censored\n\n\
        The event is in the ledger like any other. It is not repeated, and says nothing about how the hook stands; a \
        disabled hook can be tested as well. The exit code is 0 only when it was delivered."
    )]
    Test(TestHook),
    /// Receive webhooks here, verify them and print what comes, until interrupted
    #[command(after_help = "Examples:\n  assetwatch hooks listen --secret-file cms-secret\n  \
        assetwatch hooks listen 9000 --status 503      (to see how it is tried again)\n\n\
        A good webhook is answered with 204 or --status, one with a bad signature with 400.")]
    Listen(Listen),
}

/// `hooks enable`
#[derive(Args, Debug)]
pub struct OneHook {
    /// The hook's name, or `callback:` and an origin
    #[arg(value_name = "NAME")]
    pub name: String,
}

/// `hooks disable`
#[derive(Args, Debug)]
pub struct DisableHook {
    /// The hook's name, or `callback:` and an origin
    #[arg(value_name = "NAME")]
    pub name: String,
    /// Why, for those who look at it later
    #[arg(long, value_name = "TEXT", default_value = BY_HAND)]
    pub reason: String,
}

/// `hooks test`
#[derive(Args, Debug)]
pub struct TestHook {
    /// The hook's name
    #[arg(value_name = "NAME")]
    pub name: String,
    /// The status of the sample asset
    #[arg(long, value_name = "STATUS", default_value = "active")]
    pub status: String,
}

pub(super) async fn perform(command: HooksCommand, control: &Control, output: Output) -> anyhow::Result<u8> {
    match command {
        HooksCommand::List => list(control, output).await,
        HooksCommand::Enable(args) => enable(&args.name, control, output).await,
        HooksCommand::Disable(args) => disable(&args, control, output).await,
        HooksCommand::Test(_) | HooksCommand::Listen(_) => {
            anyhow::bail!("this command waits for others, and a signal ends it: it is not a verb of the database alone")
        }
    }
}

async fn list(control: &Control, output: Output) -> anyhow::Result<u8> {
    let hooks = control.hooks_shown().await?;
    if output.json {
        hooks.iter().try_for_each(|hook| output.object(hook))?;
        return Ok(exit::OK);
    }
    if hooks.is_empty() {
        output.say("The configuration names no hook; `[[hooks]]` adds one.");
    }
    let now = control.clock.now();
    let rows = hooks.iter().map(|hook| row(hook, now)).collect();
    let head = ["hook", "target", "state", "last success", "waiting", "held", "dead", "oldest", "last error"];
    output.rows(&head, rows)?;
    Ok(exit::OK)
}

fn row(hook: &HookShown, now: Timestamp) -> Vec<String> {
    let ago = |at: Option<Timestamp>| at.map_or_else(|| "-".to_owned(), |at| span(at, now));
    vec![
        plain(&hook.row.name),
        plain(&hook.target),
        plain(&state(hook)),
        hook.row.last_success_at.map_or_else(|| "-".to_owned(), |at| at.to_string()),
        hook.waiting.to_string(),
        hook.held.to_string(),
        hook.dead.to_string(),
        ago(hook.oldest_waiting_at),
        plain(hook.row.last_error.as_deref().unwrap_or("-")),
    ]
}

fn state(hook: &HookShown) -> String {
    let at = |at: Option<Timestamp>| at.unwrap_or_default();
    match hook.state {
        HookState::Ok => "ok".into(),
        HookState::Unused => "never used".into(),
        HookState::Held => format!("held until {}, as its receiver asked", at(hook.row.held_until)),
        HookState::Disabled => {
            let why = hook.row.disabled_reason.as_deref().unwrap_or_default();
            format!("disabled since {}: {why}", at(hook.row.disabled_at))
        }
        // It was enabled since, or its receiver wanted none of what it was told.
        HookState::Failing if hook.row.failures == 0 => "nothing delivered yet".into(),
        HookState::Failing => {
            let probe = hook.row.next_probe_at.map(|probe| format!(", probing at {probe}"));
            format!("failing ({} in a row{})", hook.row.failures, probe.unwrap_or_default())
        }
    }
}

async fn enable(name: &str, control: &Control, output: Output) -> anyhow::Result<u8> {
    let released = control.enable_hook(name).await.map_err(shown)?;
    if output.json {
        output.object(&json!({"hook": name, "released": released}))?;
        return Ok(exit::OK);
    }
    output.line(&format!("enabled {}; {released} held deliveries are due now", plain(name)))?;
    super::deliveries::say_if_alone(released, control, output).await?;
    Ok(exit::OK)
}

async fn disable(args: &DisableHook, control: &Control, output: Output) -> anyhow::Result<u8> {
    let changed = control.disable_hook(&args.name, &args.reason).await.map_err(shown)?;
    let name = plain(&args.name);
    match (output.json, changed) {
        (true, _) => output.object(&json!({"hook": args.name, "disabled": true, "changed": changed}))?,
        (false, true) => output.line(&format!(
            "disabled {name}; what is under way ends, what comes later is held until `assetwatch hooks enable {name}`"
        ))?,
        (false, false) => output.line(&format!("{name} was disabled before"))?,
    }
    Ok(exit::OK)
}

/// A name that was given is shown, never obeyed.
fn shown(error: HookVerbError) -> anyhow::Error {
    match error {
        HookVerbError::Unknown { .. } => anyhow::anyhow!("{error}; `assetwatch hooks list` shows them"),
        other => other.into(),
    }
}

/// Delivers a test event and prints what was sent and what came back; `hurry` resolves when it has to end.
///
/// # Errors
/// When the hook is unknown or cannot be set up, the database fails or stdout is closed.
pub async fn test_hook(
    args: &TestHook,
    control: &Control,
    output: Output,
    hurry: impl Future<Output = ()>,
) -> anyhow::Result<u8> {
    let tested = control.test_hook(&args.name, &args.status, hurry).await.map_err(shown)?;
    unheard(if output.json { print_object(&tested, output) } else { print_tested(&tested, output) })?;
    Ok(match tested.attempt.outcome {
        Outcome::Delivered => exit::OK,
        Outcome::Interrupted => exit::INTERRUPTED,
        Outcome::Failed { .. } | Outcome::Refused { .. } | Outcome::Gone { .. } | Outcome::Blocked { .. } => {
            exit::FAILURE
        }
    })
}

/// The word of the ledger, and what went wrong.
fn outcome(outcome: &Outcome) -> (&'static str, Option<&str>) {
    match outcome {
        Outcome::Delivered => ("delivered", None),
        Outcome::Failed { error, .. } => ("failed", Some(error)),
        Outcome::Refused { error } | Outcome::Gone { error } => ("refused", Some(error)),
        Outcome::Blocked { error } => ("blocked", Some(error)),
        Outcome::Interrupted => ("interrupted", None),
    }
}

fn print_object(tested: &Tested, output: Output) -> io::Result<()> {
    let Tested { target, parcel, headers, attempt } = tested;
    let (word, error) = outcome(&attempt.outcome);
    let text = |bytes: &[u8]| (!bytes.is_empty()).then(|| String::from_utf8_lossy(bytes).into_owned());
    let object = |headers: &[(String, String)]| -> serde_json::Map<_, _> {
        headers.iter().map(|(name, value)| (name.clone(), json!(value))).collect()
    };
    output.object(&json!({
        "hook": parcel.delivery.hook, "target": target, "event_id": parcel.delivery.event_id,
        "delivery_id": parcel.delivery.id, "headers": object(headers), "body": String::from_utf8_lossy(&parcel.body),
        "outcome": word, "code": attempt.code, "error": error, "answer_headers": object(&attempt.headers),
        "output": text(&attempt.output), "errors": text(&attempt.errors),
    }))
}

fn print_tested(tested: &Tested, output: Output) -> io::Result<()> {
    let Tested { target, parcel, headers, attempt } = tested;
    let webhook = target.starts_with("webhook");
    let sent = if webhook { "POST to" } else { "the event on stdin of" };
    output.line(&format!("sent {sent} {}", plain(target)))?;
    for (name, value) in headers {
        output.line(&format!("  {name}: {}", plain(value)))?;
    }
    if webhook && !headers.iter().any(|(name, _)| name == "webhook-signature") {
        output.line("  (unsigned: the hook has no secret)")?;
    }
    output.line(&format!("  {}", plain(&String::from_utf8_lossy(&parcel.body))))?;
    let (word, error) = outcome(&attempt.outcome);
    match attempt.code {
        Some(code) if webhook => output.line(&format!("answered {code}"))?,
        Some(code) => output.line(&format!("exited with {code}"))?,
        None => {}
    }
    for (name, value) in &attempt.headers {
        output.line(&format!("  {name}: {}", plain(value)))?;
    }
    let text = |bytes: &[u8]| (!bytes.is_empty()).then(|| String::from_utf8_lossy(bytes).into_owned());
    let name = if webhook { "body" } else { "stdout" };
    print_kept((2, name), text(&attempt.output).as_deref(), output)?;
    print_kept((2, "stderr"), text(&attempt.errors).as_deref(), output)?;
    output.line(&format!("{word}; delivery {} in the ledger", parcel.delivery.id))?;
    if let Some(error) = error {
        complain(&plain(error));
    }
    Ok(())
}
