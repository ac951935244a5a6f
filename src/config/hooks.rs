//! The hooks of the configuration.

use std::collections::BTreeMap;
use std::time::Duration;

use super::document::Branch;
use super::headers;
use super::kind::{self, DAY, HOUR, HookUrl, MINUTE, ProxyUrl, SECOND, TENTH};
use super::literal::printable;
use super::reader::Reader;
use super::section::{SECRET, Section};
use super::{Command, Hook, Target, Webhook};
use crate::decide::SCHEDULE;
use crate::event::{Subscription, Template, Topic};

const FOR_WEBHOOKS: [&str; 7] = ["url", "secret_file", "secret_credential", "secret_env", "headers", "body", "proxy"];
const FOR_COMMANDS: [&str; 4] = ["command", "kill_after", "env", "env_pass"];

/// One `[[hooks]]`; `at` is its place among them. None when it cannot be told what it is.
pub(super) fn hook(reader: &mut Reader<'_>, at: usize, branch: Branch) -> Option<Hook> {
    let proper = branch.nodes.get("name").and_then(|node| kind::name(&node.value).ok());
    let path = proper.map_or_else(|| format!("hooks[{at}]"), |name| format!("hooks.{name}"));
    let mut section = reader.section(path, branch);
    section.claim_name();
    let subscription = subscription(&mut section);
    let target = target(&mut section);
    let (target, body) = target.map_or((None, None), |(target, body)| (Some(target), body));
    let (timeout, concurrency) = match &target {
        None | Some(Target::Webhook(_)) => (20 * SECOND, 4),
        Some(Target::Command(_)) => (60 * SECOND, 1),
    };
    let timeout = section.setting_or("timeout", timeout, kind::duration(TENTH..=HOUR));
    let concurrency = section.setting_or("concurrency", concurrency, kind::count(1..=256));
    let rate = section.setting("rate", kind::number(0.01..=100_000.0));
    let gaps = kind::list(0..=50, kind::duration(SECOND..=7 * DAY));
    let schedule = section.written_or("schedule", SCHEDULE.to_vec(), gaps);
    section.finish();
    let subscription = Subscription { body, ..subscription };
    Some(Hook { subscription, target: target?, timeout, concurrency, rate, schedule })
}

fn subscription(section: &mut Section<'_, '_>) -> Subscription {
    if !section.has_written("name") {
        section.complain("must have a name");
    }
    let name = section.written("name", kind::name).unwrap_or_default();
    let default = vec!["settled".to_owned(), "abandoned".to_owned()];
    let on = section.written_or("on", default, kind::list(1..=100, kind::topic));
    let accounts = section.written("accounts", kind::list(0..=1_000, kind::name));
    let batches = section.written("batches", kind::list(0..=1_000, kind::batch));
    Subscription {
        hook: name,
        on: on.iter().map(|word| Topic::parse(word)).collect(),
        accounts: accounts.unwrap_or_default(),
        batches: batches.unwrap_or_default(),
        body: None,
    }
}

/// What the hook is, and its own body if it has one.
fn target(section: &mut Section<'_, '_>) -> Option<(Target, Option<Template>)> {
    match (section.has("url"), section.has_written("command")) {
        (true, false) => {
            section.refuse(&FOR_COMMANDS, "must not be beside `url`: it belongs to a hook with `command`");
            webhook(section)
        }
        (false, true) => {
            section.refuse(&FOR_WEBHOOKS, "must not be beside `command`: it belongs to a hook with `url`");
            command(section).map(|target| (target, None))
        }
        (given, _) => {
            let found = if given { "has both" } else { "has neither" };
            section.complain(&format!("must have either `url` or `command`, but {found}"));
            for key in FOR_WEBHOOKS.iter().chain(&FOR_COMMANDS) {
                section.forget(key);
            }
            None
        }
    }
}

fn webhook(section: &mut Section<'_, '_>) -> Option<(Target, Option<Template>)> {
    let url = section.setting("url", kind::hook_url);
    let secrets = section.secret(&SECRET);
    // Without a body of its own a hook is sent JSON, whatever a header says.
    let has_body = section.has("body");
    let base = section.base();
    let headers = section.written("headers", headers::headers(&base, has_body)).unwrap_or_default();
    let body = section.setting("body", headers::template);
    let proxy = section.setting("proxy", kind::proxy_url).map(|ProxyUrl(proxy)| proxy);
    url.map(|HookUrl(url)| (Target::Webhook(Webhook { url, secrets, headers, proxy }), body))
}

fn command(section: &mut Section<'_, '_>) -> Option<Target> {
    if let Some(path) = section.writable_by_others() {
        let path = printable(&path.to_string_lossy());
        section.complain(&format!("names a command, but others may write this file: chmod o-w {path}"));
    }
    let argv = section.written("command", kind::argv);
    let kill_after = section.setting_or("kill_after", 5 * SECOND, kind::duration(Duration::ZERO..=5 * MINUTE));
    let env = section.written_or("env", BTreeMap::new(), kind::environment);
    let env_pass = section.written_or("env_pass", Vec::new(), kind::list(0..=100, kind::passed_variable));
    argv.map(|argv| Target::Command(Command { argv, kill_after, env, env_pass }))
}
