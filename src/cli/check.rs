//! `check`: everything that a run depends on, each thing ok or with what to change.

mod key;

use serde::Serialize;

use super::output::{Output, exit, plain, unheard};
use super::progress::{Meter, Screen};
use crate::clock::Clock;
use crate::config::{self, Callbacks, Hook, Settings, Target, Webhook};
use crate::control::{AddOptions, Control, Running};
use crate::hook::{Hooks, check_program};
use crate::store::{Store, StoreError, free_room, size_in_words};

/// With less room than this, in bytes, a disk is as good as full: the write-ahead log alone takes several MB when it is busy.
const LEAST_ROOM: u64 = 16 << 20;

/// How one thing stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Finding {
    Ok,
    /// It works, and somebody may be surprised.
    Note,
    /// It has to be changed.
    Bad,
    /// The API refuses the key.
    Unauthorized,
}

#[derive(Serialize)]
struct Line {
    what: String,
    finding: Finding,
    says: String,
}

/// Checks everything and prints a line for each thing.
///
/// # Errors
/// When stdout cannot be written to.
pub async fn check(settings: &Settings, output: Output, screen: &Screen) -> anyhow::Result<u8> {
    let mut lines = vec![configuration(settings)];
    lines.extend(settings.warnings.iter().map(|warning| line("configuration", Finding::Note, warning.clone())));
    let meter = Meter::new("reading the database", output, screen);
    lines.extend(database(settings).await);
    drop(meter);
    for account in &settings.accounts {
        lines.push(key::line(account).await);
    }
    lines.extend(settings.hooks.iter().map(hook));
    if settings.hooks.is_empty() {
        lines.push(line("hooks", Finding::Note, "none are configured: nobody is told when an asset settles".into()));
    }
    lines.extend(settings.callbacks.iter().map(callbacks));
    let mut code = exit::OK;
    for line in &lines {
        unheard(print(line, output))?;
        code = match line.finding {
            Finding::Ok | Finding::Note => code,
            Finding::Bad => code.max(exit::FAILURE),
            Finding::Unauthorized => exit::UNAUTHORIZED,
        };
    }
    Ok(code)
}

fn line(what: &str, finding: Finding, says: String) -> Line {
    Line { what: what.into(), finding, says }
}

fn print(line: &Line, output: Output) -> std::io::Result<()> {
    if output.json {
        return output.object(line);
    }
    let (word, color) = match line.finding {
        Finding::Ok => ("ok", 32),
        Finding::Note => ("note", 33),
        Finding::Bad | Finding::Unauthorized => ("BAD", 31),
    };
    let word = if output.color { format!("\x1b[{color}m{word:<4}\x1b[0m") } else { format!("{word:<4}") };
    output.line(&format!("{word} {:<20} {}", plain(&line.what), plain(&line.says)))
}

fn configuration(settings: &Settings) -> Line {
    let says = match &settings.file {
        Some(file) => file.display().to_string(),
        None => "no file, which is fine: defaults and the environment".into(),
    };
    line("configuration", Finding::Ok, says)
}

async fn database(settings: &Settings) -> Vec<Line> {
    let store = match Store::open(&settings.database).await {
        Ok(store) => store,
        Err(error) => {
            let unusable = line("database", Finding::Bad, error.to_string());
            return std::iter::once(unusable).chain(room(settings)).collect();
        }
    };
    let accounts = settings.accounts.iter().map(|account| account.name.clone()).collect();
    let control = Control { store, clock: Clock::system(), hooks: Vec::new(), accounts, running: Running::default() };
    let unusable = |error: StoreError| line("database", Finding::Bad, error.to_string());
    let mut lines = match written(&control).await {
        Ok(waiting) => {
            let says = format!("{}: writable, {waiting} watches wait", settings.database.display());
            vec![line("database", Finding::Ok, says)]
        }
        Err(error) => vec![unusable(error)],
    };
    if let Some(migrated) = control.store.migrated() {
        lines.push(line("database", Finding::Note, migrated.to_string()));
    }
    lines.extend(integrity(&control.store).await);
    lines.extend(room(settings));
    lines.push(match control.daemon_is_alive().await {
        Ok(true) => line("daemon", Finding::Ok, "running on this database".into()),
        Ok(false) => {
            line("daemon", Finding::Note, "none is running on this database; start it with `assetwatch run`".into())
        }
        Err(error) => unusable(error),
    });
    // What a daemon has found out; the request below may find that it is over.
    for (name, says) in control.account_standings().await.unwrap_or_default() {
        lines.push(line(&format!("account {name}"), Finding::Note, says));
    }
    for name in control.store.waiting_accounts().await.unwrap_or_default() {
        if !settings.accounts.iter().any(|account| account.name == name) {
            let says = format!("watches wait for it, and nothing polls them; add `[accounts.{name}]`, or cancel them");
            lines.push(line(&format!("account {name}"), Finding::Bad, says));
        }
    }
    lines
}

/// Also where the database cannot be opened: that may be the reason.
fn room(settings: &Settings) -> Option<Line> {
    const WHAT: &str = "database room";
    let free = free_room(&settings.database)?;
    let size = size_in_words(free);
    Some(if free >= LEAST_ROOM {
        line(WHAT, Finding::Ok, format!("{size} are free in its file system"))
    } else {
        let says = format!("only {size} are free in its file system; make room, or soon nothing more can be recorded");
        line(WHAT, Finding::Bad, says)
    })
}

async fn integrity(store: &Store) -> Vec<Line> {
    let what = "database inside";
    let found = match store.integrity().await {
        Ok(found) => found,
        Err(error) => return vec![line(what, Finding::Bad, error.to_string())],
    };
    if !found.problems.is_empty() {
        let says = format!(
            "it is damaged; stop every assetwatch, keep a copy of the files, and restore a backup or recover it with \
             `sqlite3 FILE .recover`: {}",
            found.problems.join("; ")
        );
        return vec![line(what, Finding::Bad, says)];
    }
    let mut lines = vec![line(what, Finding::Ok, "every page, index and reference is sound".into())];
    if !found.shrinks {
        let says = "space that pruning frees is used again, but the file does not get smaller; to change that, stop every \
                    assetwatch and run `sqlite3 FILE 'PRAGMA auto_vacuum = INCREMENTAL; VACUUM'` once";
        lines.push(line(what, Finding::Note, says.into()));
    }
    lines
}

/// An empty write shows that the file can be written to.
async fn written(control: &Control) -> Result<i64, StoreError> {
    control.store.add(Vec::new(), AddOptions::default(), control.clock.now()).await?;
    control.store.waiting().await
}

fn hook(hook: &Hook) -> Line {
    let name = &hook.subscription.hook;
    let what = format!("hook {name}");
    if let Err(error) = Hooks::new(std::slice::from_ref(hook), None, |name| std::env::var_os(name)) {
        return line(&what, Finding::Bad, error.to_string());
    }
    let span = hook.schedule.iter().sum::<std::time::Duration>().mul_f64(1.2);
    let span = std::time::Duration::from_secs(span.as_secs().div_ceil(60) * 60);
    let (attempts, span) = (hook.schedule.len() + 1, humantime::format_duration(span));
    let tries = format!("at most {attempts} attempts over up to {span}");
    let (finding, says) = match &hook.target {
        Target::Webhook(target) => webhook(target),
        Target::Command(target) => command(target),
    };
    line(&what, finding, format!("{says}; {tries}"))
}

fn webhook(webhook: &Webhook) -> (Finding, String) {
    let Webhook { url, secrets, proxy, .. } = webhook;
    let mut says = format!("webhook to {}", url.host_str().unwrap_or_default());
    if let Some(proxy) = proxy.as_ref().and_then(|proxy| proxy.host_str()) {
        says += &format!(" through the proxy {proxy}");
    }
    let mut finding = Finding::Ok;
    if secrets.is_some() {
        says += ", signed";
    } else {
        finding = Finding::Note;
        says += ", unsigned: add `secret_file`, so that the receiver can verify it";
    }
    if url.scheme() == "http" && !is_private(url) {
        finding = Finding::Note;
        says += ", over plain http: everybody on the way can read it";
    }
    (finding, says)
}

fn command(command: &config::Command) -> (Finding, String) {
    let program = command.argv.first().map(String::as_str).unwrap_or_default();
    let templated = command.argv.iter().skip(1).any(|argument| argument.contains('{'))
        && command.argv.iter().any(|argument| argument.starts_with('-') && argument.ends_with('c'));
    if let Err(problem) = check_program(program) {
        return (Finding::Bad, problem);
    }
    if templated {
        let says = "an argument contains `{`; nothing is filled in there, use \"$HOOK_URL\" and its like";
        return (Finding::Note, format!("command {program}: {says}"));
    }
    (Finding::Ok, format!("command {program}"))
}

/// The URLs that come with watches; without a table they work, too.
fn callbacks(callbacks: &Callbacks) -> Line {
    const WHAT: &str = "callbacks";
    if let Err(error) = Hooks::new(&[], Some(callbacks), |name| std::env::var_os(name)) {
        return line(WHAT, Finding::Bad, error.to_string());
    }
    let (finding, signed) = match callbacks.secrets {
        Some(_) => (Finding::Ok, "signed"),
        None => (Finding::Note, "unsigned: add `secret_file`, so that receivers can verify them"),
    };
    let nets: Vec<String> = callbacks.allow_nets.iter().map(ToString::to_string).collect();
    let reach = if nets.is_empty() { String::new() } else { format!(" and {}", nets.join(", ")) };
    let scheme = if callbacks.allow_http { "https and plain http" } else { "https" };
    line(WHAT, finding, format!("{signed}; they reach public addresses{reach}, by {scheme}"))
}

fn is_private(url: &url::Url) -> bool {
    match url.host() {
        Some(url::Host::Ipv4(address)) => address.is_private() || address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback() || address.is_unique_local(),
        Some(url::Host::Domain(name)) => name == "localhost" || !name.contains('.'),
        None => false,
    }
}
