//! Stage three, settled: every value in its type, and the rules that take more than one of them.

use std::path::PathBuf;
use std::time::Duration;

use url::{Host, Url};

use super::document::Branch;
use super::find::{self, FoundKey};
use super::hooks;
use super::kind::{self, DAY, HOUR, MINUTE, SECOND, TENTH};
use super::literal::{duration, excerpt, repeated};
use super::reader::Reader;
use super::secret::CREDENTIALS;
use super::section::{KEY, SECRET, Section, TOKEN};
use super::{Account, Callbacks, HeaderText, Hook, Http, KeySource, Origin, Settings, Target, Webhook};
use crate::backoff::Policy;
use crate::decide::Rules;
use crate::event::{Subscription, Topic};
use crate::pace::Limits;

/// The host on the vendor's own pages.
const API: &str = "https://api.rendernet.ai";
/// The account that `[api]` describes.
pub const DEFAULT_ACCOUNT: &str = "default";

/// Reads everything. None when there is no sensible value to go on with; the reader has the problems.
pub(super) fn settle(reader: &mut Reader<'_>, file: Branch) -> Option<Settings> {
    let mut root = reader.section("", file);
    let database = database(&mut root);
    let retention = root.setting_or("retention", 30 * DAY, kind::duration(HOUR..=3_650 * DAY));
    let grace = root.setting_or("grace", 20 * SECOND, kind::duration(Duration::ZERO..=HOUR));
    let [api, backoff, http, callbacks] = ["api", "backoff", "http", "callbacks"].map(|key| root.table(key));
    let accounts = root.tables_by_name("accounts");
    let hooks = root.array_of_tables("hooks");
    root.finish();

    let rules = rules(reader.section("backoff", backoff));
    let accounts = all_accounts(reader, api, accounts, rules);
    let http = http_server(reader.section("http", http));
    let hooks = hooks.into_iter().enumerate().filter_map(|(at, branch)| hooks::hook(reader, at, branch)).collect();
    let callbacks = callbacks_of(reader, callbacks);
    let settings = Settings {
        file: None,
        database: database.unwrap_or_default(),
        retention,
        grace,
        accounts: accounts?,
        hooks,
        http,
        callbacks,
        warnings: Vec::new(),
        entries: Vec::new(),
    };
    // Of values that are wrong by themselves no rule can say anything sensible.
    if reader.is_content() {
        cross_check(&settings, reader);
        warn(&settings, reader);
    }
    Some(settings)
}

fn database(root: &mut Section<'_, '_>) -> Option<PathBuf> {
    if root.has("database") {
        return root.path("database");
    }
    match find::database(root.reader.environment) {
        Some((origin, path)) => {
            root.note("database", &path, origin);
            Some(path)
        }
        None => {
            root.lacks(
                "database",
                "must be set in the file, by $ASSETWATCH_DATABASE or by --database, since there is no $HOME",
            );
            None
        }
    }
}

fn rules(mut section: Section<'_, '_>) -> Rules {
    let default = Rules::default();
    let Policy { initial, multiplier, max, jitter } = default.backoff;
    let rules = Rules {
        waiting_statuses: default.waiting_statuses,
        backoff: Policy {
            initial: section.setting_or("initial", initial, kind::duration(TENTH..=HOUR)),
            multiplier: section.setting_or("multiplier", multiplier, kind::number(1.0..=10.0)),
            max: section.setting_or("max", max, kind::duration(TENTH..=DAY)),
            jitter: section.setting_or("jitter", jitter, kind::number(0.0..=1.0)),
        },
        patience: section.setting_or("patience", default.patience, kind::duration(SECOND..=365 * DAY)),
        missing_grace: section.setting_or("missing_grace", default.missing_grace, kind::duration(Duration::ZERO..=DAY)),
    };
    section.finish();
    rules
}

/// The account of `[api]`, and the others, which have its values where they have none of their own.
fn all_accounts(
    reader: &mut Reader<'_>,
    api: Branch,
    others: Vec<(String, Branch)>,
    rules: Rules,
) -> Option<Vec<Account>> {
    let built_in = Account {
        name: DEFAULT_ACCOUNT.into(),
        url: Url::parse(API).ok()?, // it is one, as every test of this module shows
        key: KeySource::Absent,
        timeout: 10 * SECOND,
        limits: Limits::default(),
        rules,
    };
    let mut section = reader.section("api", api);
    let key = section.secret(&KEY).unwrap_or_else(|| usual_key(&mut section));
    let default = account(section, Account { key, ..built_in });
    let mut accounts = vec![default.clone()];
    for (name, branch) in others {
        let mut section = reader.section(format!("accounts.{}", excerpt(&name)), branch).inheriting("api");
        if name == DEFAULT_ACCOUNT {
            section.complain("must have another name: the account `default` is [api]");
        } else if !kind::is_name(&name) {
            section.complain("must be named by 1 to 64 of the characters a-z, 0-9, _ and -");
        }
        section.claim_name();
        if !KEY.iter().any(|(key, _)| section.has(key)) {
            section.complain("must have `key_file`, `key_credential` or `key_env`: an account is a key of its own");
        }
        let key = section.secret(&KEY).unwrap_or(KeySource::Absent);
        accounts.push(account(section, Account { name, key, ..default.clone() }));
    }
    Some(accounts)
}

fn account(mut section: Section<'_, '_>, default: Account) -> Account {
    let Limits { rate, max_in_flight } = default.limits;
    let statuses = kind::list(1..=50, kind::status);
    let account = Account {
        url: section.setting_or("url", default.url, kind::api_url),
        timeout: section.setting_or("timeout", default.timeout, kind::duration(TENTH..=10 * MINUTE)),
        limits: Limits {
            max_in_flight: section.setting_or("max_in_flight", max_in_flight, kind::count(1..=1_024)),
            rate: section.setting_or("rate", rate, kind::number(0.01..=100_000.0)),
        },
        rules: Rules {
            waiting_statuses: section.written_or("waiting_statuses", default.rules.waiting_statuses, statuses),
            ..default.rules
        },
        ..default
    };
    section.finish();
    account
}

fn usual_key(section: &mut Section<'_, '_>) -> KeySource {
    match find::key(section.reader.environment) {
        FoundKey::Credential(name) => {
            section.note("key_credential", &name.to_owned(), Origin::Env(CREDENTIALS.into()));
            KeySource::Credential(name.into())
        }
        FoundKey::Variable { name, is_set: true } => {
            section.note("key_env", &name.to_owned(), Origin::Default);
            KeySource::Env(name.into())
        }
        FoundKey::Variable { is_set: false, .. } => KeySource::Absent,
    }
}

fn http_server(mut section: Section<'_, '_>) -> Option<Http> {
    let listen = section.setting("listen", kind::listen);
    let token = section.secret(&TOKEN).or_else(|| {
        let name = find::token(section.reader.environment)?;
        section.note("token_credential", &name.to_owned(), Origin::Env(CREDENTIALS.into()));
        Some(KeySource::Credential(name.into()))
    });
    let hosts = section.written_or("hosts", Vec::new(), kind::list(0..=100, kind::host));
    section.finish();
    Some(Http { listen: listen?, token, hosts })
}

fn callbacks_of(reader: &mut Reader<'_>, branch: Branch) -> Option<Callbacks> {
    let is_written = branch.line > 0;
    let mut section = reader.section("callbacks", branch);
    let secrets = section.secret(&SECRET);
    let allow_nets = section.written_or("allow_nets", Vec::new(), kind::list(0..=1_000, kind::net));
    let allow_http = section.setting_or("allow_http", false, kind::truth);
    section.finish();
    let is_meant = is_written || secrets.is_some() || allow_http;
    is_meant.then_some(Callbacks { secrets, allow_nets, allow_http })
}

/// The rules that take more than one value.
fn cross_check(settings: &Settings, reader: &mut Reader<'_>) {
    check_backoff(settings, reader);
    for hook in &settings.hooks {
        check_hook(settings, hook, reader);
    }
    if let Some(Http { listen, token: None, .. }) = &settings.http
        && listen.is_exposed()
    {
        reader.blame(
            "http.listen",
            "must have http.token_file or http.token_credential beside it, since other machines can reach it",
        );
    }
}

fn check_backoff(settings: &Settings, reader: &mut Reader<'_>) {
    let Some(Policy { initial, max, .. }) = settings.accounts.first().map(|account| &account.rules.backoff) else {
        return;
    };
    if initial <= max {
        return;
    }
    if reader.origin_of("backoff.max") == Some(&Origin::Default) {
        let text = format!("must not be longer than backoff.max, which is {}", duration(*max));
        reader.blame("backoff.initial", &text);
    } else {
        let text = format!("must not be shorter than backoff.initial, which is {}", duration(*initial));
        reader.blame("backoff.max", &text);
    }
}

fn check_hook(settings: &Settings, hook: &Hook, reader: &mut Reader<'_>) {
    let Subscription { hook: name, accounts, .. } = &hook.subscription;
    let names: Vec<&str> = settings.accounts.iter().map(|account| account.name.as_str()).collect();
    if let Some(unknown) = accounts.iter().find(|account| !names.contains(&account.as_str())) {
        let text = format!(
            "must name configured accounts ({}); there is no `{}`",
            excerpt(&names.join(", ")),
            repeated(unknown)
        );
        reader.blame(&format!("hooks.{name}.accounts"), &text);
    }
    if let Target::Command(command) = &hook.target {
        let secrets = secret_variables(settings);
        if let Some(secret) = command.env_pass.iter().find(|name| secrets.contains(&name.as_str())) {
            reader.blame(&format!("hooks.{name}.env_pass"), &format!("must not pass {secret} on: it holds a secret"));
        }
    }
}

/// What works, and is probably not meant.
fn warn(settings: &Settings, reader: &mut Reader<'_>) {
    reader.warn_of_unknown_variables(&secret_variables(settings));
    for account in settings.accounts.iter().filter(|account| is_in_the_clear(&account.url)) {
        let name = &account.name;
        let key = if name == DEFAULT_ACCOUNT { "api.url".into() } else { format!("accounts.{name}.url") };
        reader.warn(&key, "the key is sent without encryption; https:// keeps it secret");
    }
    for Subscription { hook, on, .. } in settings.hooks.iter().map(|hook| &hook.subscription) {
        let waits = |word: &String| settings.accounts.iter().all(|a| a.rules.waiting_statuses.contains(word));
        let never = on.iter().find(|topic| matches!(topic, Topic::Status(word) if word != "processing" && waits(word)));
        if let Some(topic) = never {
            let text = format!("`{topic}` is never told: it is one of waiting_statuses");
            reader.warn(&format!("hooks.{hook}.on"), &text);
        }
    }
}

fn is_in_the_clear(url: &Url) -> bool {
    let is_local = match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    };
    url.scheme() == "http" && !is_local
}

/// The variables that the configuration says hold secrets.
fn secret_variables(settings: &Settings) -> Vec<&str> {
    let keys = settings.accounts.iter().map(|account| Some(&account.key));
    let webhooks = || settings.hooks.iter().filter_map(|hook| webhook_of(&hook.target));
    let signing = webhooks().map(|webhook| webhook.secrets.as_ref());
    let headers = webhooks().flat_map(|webhook| &webhook.headers).map(|header| match &header.value {
        HeaderText::From(source) => Some(source),
        HeaderText::Plain(_) => None,
    });
    let callbacks = settings.callbacks.iter().map(|callbacks| callbacks.secrets.as_ref());
    let sources = keys.chain(signing).chain(headers).chain(callbacks).flatten();
    sources.filter_map(|source| if let KeySource::Env(name) = source { Some(name.as_str()) } else { None }).collect()
}

fn webhook_of(target: &Target) -> Option<&Webhook> {
    match target {
        Target::Webhook(webhook) => Some(webhook),
        Target::Command(_) => None,
    }
}
