//! What a value has to be: each function here takes one apart or says what would be right.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use url::Url;

use super::Listen;
use super::document::Value;
use super::literal::{Literal, MASK, duration as shown, excerpt, quoted};

/// A tenth of a second: nothing that crosses a network can usefully be quicker.
pub(super) const TENTH: Duration = Duration::from_millis(100);
pub(super) const SECOND: Duration = Duration::from_secs(1);
pub(super) const MINUTE: Duration = Duration::from_secs(60);
pub(super) const HOUR: Duration = Duration::from_secs(3_600);
pub(super) const DAY: Duration = Duration::from_secs(24 * 3_600);

/// Event types that a hook may name, besides `asset.` and a status.
const EVENT_TYPES: [&str; 6] =
    ["watch.abandoned", "watch.cancelled", "batch.settled", "hook.disabled", "account.paused", "account.resumed"];
/// The longest value of a command's environment, in bytes: Linux refuses to start a program with one of 128 KiB.
const LONGEST_VARIABLE: usize = 32 * 1_024;

/// Why a value will not do.
#[derive(Debug)]
pub(super) struct Wrong {
    /// What would be right; it begins with `must`.
    pub right: String,
    /// The value may be a secret that was put into the wrong place, so the error does not repeat it.
    pub hidden: bool,
}

pub(super) type Judged<T> = Result<T, Wrong>;

pub(super) fn shown_with<T>(right: impl Into<String>) -> Judged<T> {
    Err(Wrong { right: right.into(), hidden: false })
}

pub(super) fn hidden_with<T>(right: impl Into<String>) -> Judged<T> {
    Err(Wrong { right: right.into(), hidden: true })
}

/// A duration in humantime's words.
pub(super) fn duration(range: RangeInclusive<Duration>) -> impl Fn(&Value) -> Judged<Duration> {
    move |value| match value.text().and_then(parse_duration).filter(|duration| range.contains(duration)) {
        Some(duration) => Ok(duration),
        None => {
            let [least, most] = [range.start(), range.end()].map(|end| shown(*end));
            shown_with(format!("must be a duration from {least} to {most}, such as \"1m 30s\""))
        }
    }
}

/// humantime panics on a sum beyond `Duration::MAX`. That takes more than 16 digits, and no sensible duration does.
fn parse_duration(text: &str) -> Option<Duration> {
    let digits = text.bytes().filter(u8::is_ascii_digit).count();
    if digits <= 16 { humantime::parse_duration(text).ok() } else { None }
}

/// A number that may have a fraction.
pub(super) fn number(range: RangeInclusive<f64>) -> impl Fn(&Value) -> Judged<f64> {
    move |value| {
        let number = value.bare().and_then(|text| text.parse().ok());
        match number.filter(|number| range.contains(number)) {
            Some(number) => Ok(number),
            None => shown_with(format!("must be a number from {} to {}", range.start(), range.end())),
        }
    }
}

/// A whole number.
pub(super) fn count(range: RangeInclusive<u32>) -> impl Fn(&Value) -> Judged<u32> {
    move |value| {
        let number = value.bare().and_then(|text| text.parse().ok());
        match number.filter(|number| range.contains(number)) {
            Some(number) => Ok(number),
            None => shown_with(format!("must be a whole number from {} to {}", range.start(), range.end())),
        }
    }
}

/// `true` or `false`.
pub(super) fn truth(value: &Value) -> Judged<bool> {
    match value.bare().and_then(|text| text.parse().ok()) {
        Some(truth) => Ok(truth),
        None => shown_with("must be true or false"),
    }
}

/// A path. One that stands in the file is relative to the file's directory, `base`; a variable's or a flag's is
/// relative to the working directory, as it is everywhere else.
pub(super) fn path(base: &Path) -> impl Fn(&Value) -> Judged<PathBuf> {
    move |value| match value {
        Value::Quoted(text) if sound(text) => Ok(base.join(text)),
        Value::Untyped(text) if !text.is_empty() => Ok(text.into()),
        _ => shown_with("must be a path"),
    }
}

/// Not empty, and nothing that ends a string of the operating system's.
pub(super) fn sound(text: &str) -> bool {
    !text.is_empty() && !text.contains('\0')
}

/// The name of an account or a hook.
pub(super) fn name(value: &Value) -> Judged<String> {
    match value.text().filter(|text| is_name(text)) {
        Some(text) => Ok(text.into()),
        None => shown_with("must be 1 to 64 of the characters a-z, 0-9, _ and -"),
    }
}

/// Whether `text` can be the name of an account or a hook.
pub(super) fn is_name(text: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'-');
    (1..=64).contains(&text.len()) && text.bytes().all(fits)
}

/// The name of a variable that holds a secret. People put the secret itself there.
pub(super) fn secret_variable(value: &Value) -> Judged<String> {
    match value.text().filter(|text| is_variable(text)) {
        Some(text) => Ok(text.into()),
        None => hidden_with("must be the name of a variable that holds the secret: letters, digits and _"),
    }
}

/// The name of a credential, as systemd takes it. People put the secret itself there.
pub(super) fn credential_name(value: &Value) -> Judged<String> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    match value.text() {
        Some(text) if (1..=255).contains(&text.len()) && !text.starts_with('.') && text.bytes().all(fits) => {
            Ok(text.into())
        }
        _ => hidden_with("must be the name of a systemd credential that holds the secret: letters, digits, _, - and ."),
    }
}

/// The name of a variable that a command gets from our own environment.
pub(super) fn passed_variable(value: &Value) -> Judged<String> {
    match value.text() {
        Some(name) if !is_variable(name) => shown_with("must be the name of a variable: letters, digits and _"),
        Some(name) if is_ours(name) => shown_with("must not be passed on: it is a secret, or is set by assetwatch"),
        Some(name) => Ok(name.into()),
        None => shown_with("must be the name of a variable"),
    }
}

fn is_variable(text: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    (1..=256).contains(&text.len()) && text.bytes().all(fits) && !text.as_bytes()[0].is_ascii_digit()
}

fn is_ours(name: &str) -> bool {
    name.starts_with("HOOK_")
        || name.starts_with("ASSETWATCH_")
        || matches!(name, "AFFOGATO_API_KEY" | "CREDENTIALS_DIRECTORY" | "NOTIFY_SOCKET")
}

/// What is added to a command's environment. The values may be secrets.
pub(super) fn environment(value: &Value) -> Judged<BTreeMap<String, String>> {
    let Value::Table(branch) = value else {
        return hidden_with("must be a table of strings, such as { STAGE = \"live\" }");
    };
    let mut variables = BTreeMap::new();
    for (name, node) in &branch.nodes {
        if !is_variable(name) || name.starts_with("HOOK_") {
            return hidden_with(format!(
                "must have names of letters, digits and _ that do not begin with HOOK_; {} will not do",
                excerpt(&quoted(name))
            ));
        }
        let Value::Quoted(text) = &node.value else {
            return hidden_with(format!("must have strings for values; that of {name} is none"));
        };
        if text.len() > LONGEST_VARIABLE || text.contains('\0') {
            return hidden_with(format!(
                "must have values of at most 32 KiB without a NUL; that of {name} will not do"
            ));
        }
        variables.insert(name.clone(), text.clone());
    }
    Ok(variables)
}

/// A program and its arguments.
pub(super) fn argv(value: &Value) -> Judged<Vec<String>> {
    let argv = list(1..=1_000, argument)(value)?;
    if argv.first().is_some_and(|program| Path::new(program).is_absolute()) {
        return Ok(argv);
    }
    // A bare name would be whatever comes first in somebody's PATH.
    shown_with("must begin with the absolute path of a program, such as [\"/usr/local/bin/publish\", \"--video\"]")
}

fn argument(value: &Value) -> Judged<String> {
    match value.text().filter(|text| !text.contains('\0')) {
        Some(text) => Ok(text.into()),
        None => shown_with("must be a string without a NUL"),
    }
}

/// A status of the API's, in its own word.
pub(super) fn status(value: &Value) -> Judged<String> {
    match value.text().filter(|text| is_word(text)) {
        Some(text) => Ok(text.into()),
        None => shown_with("must be a status, such as \"pending\": 1 to 64 bytes, no white space"),
    }
}

fn is_word(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && !text.contains(|character: char| character.is_whitespace() || character.is_control())
}

/// A word of a hook's `on`.
pub(super) fn topic(value: &Value) -> Judged<String> {
    const RIGHT: &str = "must be a status, `settled`, `abandoned`, `cancelled`, or an event type with a dot";
    let Some(text) = value.text().filter(|text| is_word(text)) else { return shown_with(RIGHT) };
    let asset = text.strip_prefix("asset.").is_some_and(|status| !status.is_empty());
    if text.contains('.') && !asset && !EVENT_TYPES.contains(&text) {
        return shown_with(format!("must be an event type: asset.<status>, {}", EVENT_TYPES.join(", ")));
    }
    Ok(text.into())
}

/// The name of a batch; the caller of `add` chooses it.
pub(super) fn batch(value: &Value) -> Judged<String> {
    match value.text().filter(|text| !text.is_empty() && !text.contains(char::is_control)) {
        Some(text) => Ok(text.into()),
        None => shown_with("must be the name of a batch"),
    }
}

/// The address of the API; a path in it is a prefix.
pub(super) fn api_url(value: &Value) -> Judged<Url> {
    let url = web_url(value)?;
    // The query may be where somebody has put the key.
    if url.query().is_some() { hidden_with("must not have a query (`?…`)") } else { Ok(url) }
}

/// The address of a webhook. Its path may be the secret itself (chat services), so it is never shown.
pub(super) struct HookUrl(pub Url);

impl Literal for HookUrl {
    fn literal(&self) -> String {
        quoted(&masked(&self.0))
    }
}

/// `url` without its path.
pub(super) fn masked(url: &Url) -> String {
    let is_bare = url.path() == "/" && url.query().is_none();
    format!("{}/{}", url.origin().ascii_serialization(), if is_bare { "" } else { MASK })
}

/// The address of a proxy, which may hold a password.
pub(super) struct ProxyUrl(pub Url);

impl Literal for ProxyUrl {
    fn literal(&self) -> String {
        let bare = masked(&self.0);
        let has_user = !self.0.username().is_empty() || self.0.password().is_some();
        quoted(&if has_user { bare.replacen("://", &format!("://{MASK}@"), 1) } else { bare })
    }
}

/// The address of a proxy.
pub(super) fn proxy_url(value: &Value) -> Judged<ProxyUrl> {
    let url = value.text().and_then(|text| Url::parse(text).ok());
    let right = |url: &Url| {
        matches!(url.scheme(), "http" | "https") && url.host().is_some() && url.path() == "/" && url.query().is_none()
    };
    match url.filter(right) {
        Some(url) => Ok(ProxyUrl(url)),
        None => hidden_with("must be the http or https URL of a proxy, such as \"http://proxy.example:3128\""),
    }
}

/// The address of a webhook.
pub(super) fn hook_url(value: &Value) -> Judged<HookUrl> {
    web_url(value).map(HookUrl).map_err(|wrong| Wrong { hidden: true, ..wrong })
}

fn web_url(value: &Value) -> Judged<Url> {
    const RIGHT: &str = "must be an http or https URL with a host, such as \"https://example.com\"";
    let Some(text) = value.text() else { return shown_with(RIGHT) };
    let wrong = |right: &str| Wrong { right: right.into(), hidden: text.contains(['@', '?']) };
    let url = Url::parse(text).map_err(|_| wrong(RIGHT))?;
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
        return Err(wrong(RIGHT));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(wrong("must not have a user or a password in it"));
    }
    if url.fragment().is_some() {
        return Err(wrong("must not have a fragment (`#…`)"));
    }
    Ok(url)
}

/// Where the HTTP server listens.
pub(super) fn listen(value: &Value) -> Judged<Listen> {
    let listen = value.text().and_then(|text| match text.strip_prefix("unix:") {
        Some(path) => (Path::new(path).is_absolute() && sound(path)).then(|| Listen::Unix(path.into())),
        None => text.parse::<SocketAddr>().ok().map(Listen::Tcp),
    });
    listen.map_or_else(
        || {
            shown_with(
                "must be an IP address and a port, such as \"127.0.0.1:8787\", or \"unix:\" and an absolute path",
            )
        },
        Ok,
    )
}

/// The name of a machine, as callers write it, without a port.
pub(super) fn host(value: &Value) -> Judged<String> {
    let fits = |text: &&str| {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        (1..=253).contains(&text.len()) && text.bytes().all(fits) && !text.ends_with('.')
    };
    match value.text().filter(fits) {
        Some(text) => Ok(text.to_ascii_lowercase()),
        None => shown_with("must be a host's name without a port, such as \"assetwatch.example\""),
    }
}

/// A net in CIDR notation.
pub(super) fn net(value: &Value) -> Judged<IpNet> {
    let Some(net) = value.text().and_then(|text| text.parse::<IpNet>().ok()) else {
        return shown_with("must be a net, such as \"10.1.2.0/24\"");
    };
    if net.trunc() != net {
        return shown_with(format!("must end in zeros after the prefix: \"{}\"", net.trunc()));
    }
    Ok(net)
}

/// A list of so many elements of one kind.
pub(super) fn list<T>(
    sizes: RangeInclusive<usize>,
    kind: impl Fn(&Value) -> Judged<T>,
) -> impl Fn(&Value) -> Judged<Vec<T>> {
    move |value| match value {
        Value::List(nodes) if sizes.contains(&nodes.len()) => nodes
            .iter()
            .map(|node| {
                kind(&node.value).map_err(|wrong| Wrong { right: format!("{} {}", node.written, wrong.right), ..wrong })
            })
            .collect(),
        _ => shown_with(format!("must be a list of {} to {} elements, in [ ]", sizes.start(), sizes.end())),
    }
}
