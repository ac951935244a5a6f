//! Events: facts told to others, who wants to be told of which, and the exact bytes that they are told.

mod template;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use crate::clock::Timestamp;
use crate::watch::{State, Watch, raw_json};

pub use template::Template;

/// What happened to a watch, as far as hooks are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fact {
    /// `processing` was seen for the first time.
    Processing,
    /// The asset has this final status.
    Settled(String),
    /// We stopped following it.
    Abandoned,
    /// The operator stopped it.
    Cancelled,
}

impl Fact {
    /// The event's type: the API's own word is in it for a final status, known or not.
    pub fn event_type(&self) -> String {
        match self {
            Self::Processing => "asset.processing".into(),
            Self::Settled(status) => format!("asset.{status}"),
            Self::Abandoned => "watch.abandoned".into(),
            Self::Cancelled => "watch.cancelled".into(),
        }
    }

    /// The fact that ends `watch`, if it has ended.
    pub fn of_end(watch: &Watch) -> Option<Self> {
        match watch.state {
            State::Waiting => None,
            State::Settled => Some(Self::Settled(watch.asset.status.clone().unwrap_or_default())),
            State::Abandoned => Some(Self::Abandoned),
            State::Cancelled => Some(Self::Cancelled),
        }
    }
}

/// What happened to something else than a watch: for the operator, and told only to hooks that name its type.
#[expect(missing_docs, reason = "each variant's sentence names its fields")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The API refuses the account's key, or wants to be paid; `reason` is the word of its closure.
    AccountPaused { account: String, reason: &'static str, error: String },
    /// The account is polled again.
    AccountResumed { account: String, paused_for: Duration },
    /// Nothing is attempted any more at this hook.
    HookDisabled { hook: String, reason: String },
    /// The last watch of a closed batch has ended.
    BatchSettled(Batch),
}

/// How a batch stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Batch {
    /// Its name, which the caller of `add` chose.
    #[serde(rename = "batch")]
    pub name: String,
    /// When its first watch was added.
    pub created_at: Timestamp,
    /// Since when it takes no more watches.
    pub closed_at: Option<Timestamp>,
    /// When the last of its watches had ended, after it was closed.
    pub settled_at: Option<Timestamp>,
    /// How many watches it has.
    pub watches: i64,
    /// How many of them still wait.
    pub waiting: i64,
    /// How many were abandoned.
    pub abandoned: i64,
    /// How many were cancelled.
    pub cancelled: i64,
    /// How many settled, by the API's word.
    pub statuses: BTreeMap<String, i64>,
}

impl Notice {
    /// The event's type.
    pub const fn event_type(&self) -> &'static str {
        match self {
            Self::AccountPaused { .. } => "account.paused",
            Self::AccountResumed { .. } => "account.resumed",
            Self::HookDisabled { .. } => "hook.disabled",
            Self::BatchSettled(_) => "batch.settled",
        }
    }

    fn data(&self) -> serde_json::Value {
        match self {
            Self::AccountPaused { account, reason, error } => {
                json!({"account": account, "reason": reason, "error": error})
            }
            Self::AccountResumed { account, paused_for } => {
                json!({"account": account, "paused_for_seconds": paused_for.as_secs()})
            }
            Self::HookDisabled { hook, reason } => json!({"hook": hook, "reason": reason}),
            // Strings, numbers and instants: nothing in it can fail to serialize.
            Self::BatchSettled(batch) => serde_json::to_value(batch).unwrap_or_default(),
        }
    }
}

/// One word of a hook's `on`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Topic {
    /// Any final status.
    Settled,
    /// `watch.abandoned`.
    Abandoned,
    /// `watch.cancelled`.
    Cancelled,
    /// One status of the API's.
    Status(String),
    /// One event type, with its dot.
    Type(String),
}

impl Topic {
    /// The topic that a word in the configuration names; every word names one.
    pub fn parse(word: &str) -> Self {
        match word {
            "settled" => Self::Settled,
            "abandoned" => Self::Abandoned,
            "cancelled" => Self::Cancelled,
            _ if word.contains('.') => Self::Type(word.into()),
            _ => Self::Status(word.into()),
        }
    }

    fn covers(&self, fact: &Fact) -> bool {
        match self {
            Self::Settled => matches!(fact, Fact::Settled(_)),
            Self::Abandoned => *fact == Fact::Abandoned,
            Self::Cancelled => *fact == Fact::Cancelled,
            Self::Status(status) => match fact {
                Fact::Settled(settled) => settled == status,
                Fact::Processing => status == "processing",
                Fact::Abandoned | Fact::Cancelled => false,
            },
            Self::Type(event_type) => fact.event_type() == *event_type,
        }
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Settled => "settled",
            Self::Abandoned => "abandoned",
            Self::Cancelled => "cancelled",
            Self::Status(word) | Self::Type(word) => word,
        })
    }
}

/// Which facts one hook wants to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscription {
    /// The hook's name.
    pub hook: String,
    /// What it wants; any one of these is enough.
    pub on: Vec<Topic>,
    /// Only watches of these accounts; all when empty.
    pub accounts: Vec<String>,
    /// Only watches of these batches; all when empty.
    pub batches: Vec<String>,
    /// What it is sent in place of the event's own body.
    pub body: Option<Template>,
}

impl Subscription {
    /// Whether the hook is told that `fact` happened to `watch`.
    pub fn wants(&self, fact: &Fact, watch: &Watch) -> bool {
        let in_batches = watch.batch.as_ref().is_some_and(|batch| self.batches.contains(batch));
        self.on.iter().any(|topic| topic.covers(fact))
            && (self.accounts.is_empty() || self.accounts.contains(&watch.account))
            && (self.batches.is_empty() || in_batches)
    }

    /// Whether the hook is told of `notice`: only if it names its type, and never of itself. A filter lets through what
    /// it speaks of and no account's or batch's but its own.
    pub fn wants_notice(&self, notice: &Notice) -> bool {
        let named = self.on.iter().any(|topic| matches!(topic, Topic::Type(kind) if kind == notice.event_type()));
        let passes = |filter: &[String], name: &String| filter.is_empty() || filter.contains(name);
        named
            && match notice {
                Notice::AccountPaused { account, .. } | Notice::AccountResumed { account, .. } => {
                    passes(&self.accounts, account)
                }
                Notice::HookDisabled { hook, .. } => *hook != self.hook,
                Notice::BatchSettled(batch) => passes(&self.batches, &batch.name),
            }
    }
}

/// A fact told to others: one row of `events`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// `evt_` and the fact's own hash, see [`event_id`].
    pub id: String,
    /// The watch that it speaks of, if it speaks of one.
    pub watch_id: Option<i64>,
    /// `asset.<status>`, `watch.abandoned`, …
    pub event_type: String,
    /// The exact bytes that are signed and sent.
    pub body: Vec<u8>,
    /// When it happened.
    pub created_at: Timestamp,
    /// Who is told: one delivery each.
    pub addressees: Vec<Addressee>,
}

/// One who is told of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addressee {
    /// The hook's name, or the lane of a watch's own callback, see [`callback_lane`].
    pub hook: String,
    /// What it is sent in place of the event's body.
    pub body: Option<Vec<u8>>,
    /// Why it is sent the event's body after all.
    pub problem: Option<String>,
}

/// What the lanes of callbacks begin with; no hook has such a name.
pub const CALLBACK: &str = "callback:";

/// The lane of deliveries to a callback URL: all of one origin share it. What is no URL has a lane too, so that it is seen.
pub fn callback_lane(url: &str) -> String {
    let origin = url::Url::parse(url).map(|url| url.origin().ascii_serialization());
    format!("{CALLBACK}{}", origin.as_deref().unwrap_or("null"))
}

impl Event {
    /// The event that tells `fact` of `watch`, which is the watch as it stands after the fact.
    ///
    /// `install_id` is the database's own; `previous_status` is the API's word before this one.
    pub fn new(
        fact: &Fact,
        watch: &Watch,
        previous_status: Option<&str>,
        now: Timestamp,
        telling: &Telling<'_>,
    ) -> Self {
        let event_type = fact.event_type();
        let callback = watch.callback_url.as_deref().filter(|_| matches!(fact, Fact::Settled(_) | Fact::Abandoned));
        let hooks = telling.subscriptions.iter().filter(|subscription| subscription.wants(fact, watch));
        let id = event_id(telling.install_id, watch, &event_type);
        let body = body(&event_type, watch, previous_status, now);
        let addressees = hooks
            .map(|hook| addressee(hook, &id, &body))
            .chain(callback.map(|url| Addressee { hook: callback_lane(url), body: None, problem: None }))
            .collect();
        Self { id, watch_id: Some(watch.id), event_type, body, created_at: now, addressees }
    }

    /// An event that tells of nothing, for one hook: that a sample asset has this status. Its type is `test`, and its id a
    /// `random` one.
    pub fn test(subscription: &Subscription, status: &str, random: [u8; 16], now: Timestamp) -> Self {
        let event_type = "test";
        let data = Data {
            asset_id: "ast_test",
            status: Some(status),
            previous_status: Some("processing"),
            reason: None,
            kind: Some("video"),
            url: Some("https://assetwatch.example/ast_test.mp4"),
            size: Some(Size { width: Some(512), height: Some(512) }),
            duration: Some(30),
            frames: Some(720),
            account: "default",
            batch: None,
            metadata: None,
            watched_at: now,
            settled_at: Some(now),
            polls: 2,
        };
        // As in `body`: nothing in it can fail to serialize.
        let body = serde_json::to_vec(&Body { event_type, timestamp: now, data }).unwrap_or_default();
        let id = format!("evt_{}", base32(&random));
        let addressees = vec![addressee(subscription, &id, &body)];
        Self { id, watch_id: None, event_type: event_type.into(), body, created_at: now, addressees }
    }

    /// The event that tells that `batch` has settled.
    pub fn batch_settled(batch: &Batch, telling: &Telling<'_>) -> Self {
        let now = batch.settled_at.unwrap_or(batch.created_at);
        Self::of_notice(&Notice::BatchSettled(batch.clone()), [0; 16], now, telling)
    }

    /// The event that tells of `notice`. A batch settles once, so its event has an id that can be computed again; the
    /// others have a `random` one.
    pub fn of_notice(notice: &Notice, random: [u8; 16], now: Timestamp, telling: &Telling<'_>) -> Self {
        let event_type = notice.event_type().to_owned();
        let id = match notice {
            Notice::BatchSettled(batch) => {
                let created = batch.created_at.as_millis().to_string();
                hashed(&[telling.install_id, &batch.name, &created, &event_type])
            }
            Notice::AccountPaused { .. } | Notice::AccountResumed { .. } | Notice::HookDisabled { .. } => {
                format!("evt_{}", base32(&random))
            }
        };
        let body = json!({"type": event_type, "timestamp": now, "data": notice.data()}).to_string().into_bytes();
        let hooks = telling.subscriptions.iter().filter(|subscription| subscription.wants_notice(notice));
        let addressees = hooks.map(|hook| addressee(hook, &id, &body)).collect();
        Self { id, watch_id: None, event_type, body, created_at: now, addressees }
    }
}

/// A template that cannot be rendered for this one event must not keep the hook from hearing of it: it is sent the event's
/// own body then.
fn addressee(subscription: &Subscription, id: &str, body: &[u8]) -> Addressee {
    let rendered = subscription.body.as_ref().map(|template| template.render(id, body));
    let (body, problem) = match rendered {
        None => (None, None),
        Some(Ok(body)) => (Some(body), None),
        Some(Err(error)) => (None, Some(format!("`body` cannot be rendered, the event itself is sent: {error}"))),
    };
    Addressee { hook: subscription.hook.clone(), body, problem }
}

/// Who is told, and under which name of the sender.
#[derive(Clone, Copy, Debug)]
pub struct Telling<'a> {
    /// The database's own id: part of every event's id.
    pub install_id: &'a str,
    /// The hooks and what they want.
    pub subscriptions: &'a [Subscription],
}

/// The id of the event of type `event_type` about `watch`: the same fact has the same id after a retry, a crash or a
/// restored backup, and two facts never share one.
pub fn event_id(install_id: &str, watch: &Watch, event_type: &str) -> String {
    let (created, id) = (watch.created_at.as_millis().to_string(), watch.id.to_string());
    hashed(&[install_id, &watch.account, &watch.asset_id, &created, &id, event_type])
}

fn hashed(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        // The length before each part keeps two different lists of parts from giving the same bytes.
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    format!("evt_{}", base32(&hash.finalize()[..16]))
}

/// RFC 4648 base32 in lower case without padding: an id that survives headers, file names and double clicks.
pub fn base32(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let bit = |at: usize| bytes.get(at / 8).is_some_and(|byte| byte >> (7 - at % 8) & 1 == 1);
    (0..bytes.len() * 8)
        .step_by(5)
        .map(|start| (start..start + 5).fold(0, |digit, at| digit << 1 | usize::from(bit(at))))
        .map(|digit| char::from(ALPHABET[digit]))
        .collect()
}

#[derive(Serialize)]
struct Body<'a> {
    #[serde(rename = "type")]
    event_type: &'a str,
    timestamp: Timestamp,
    data: Data<'a>,
}

#[derive(Serialize)]
struct Data<'a> {
    asset_id: &'a str,
    status: Option<&'a str>,
    previous_status: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    #[serde(rename = "type")]
    kind: Option<&'a str>,
    url: Option<&'a str>,
    size: Option<Size>,
    duration: Option<i64>,
    frames: Option<i64>,
    account: &'a str,
    batch: Option<&'a str>,
    metadata: Option<Box<RawValue>>,
    watched_at: Timestamp,
    settled_at: Option<Timestamp>,
    polls: i64,
}

#[derive(Serialize)]
struct Size {
    width: Option<i64>,
    height: Option<i64>,
}

/// Serialized once: what is stored here is signed and sent, byte for byte, on every attempt.
fn body(event_type: &str, watch: &Watch, previous_status: Option<&str>, now: Timestamp) -> Vec<u8> {
    let asset = &watch.asset;
    let size = Size { width: asset.width, height: asset.height };
    let body = Body {
        event_type,
        timestamp: now,
        data: Data {
            asset_id: &watch.asset_id,
            status: asset.status.as_deref(),
            previous_status,
            reason: watch.reason.map(crate::watch::Reason::as_str),
            kind: asset.kind.as_deref(),
            url: asset.url.as_deref(),
            size: (size.width.is_some() || size.height.is_some()).then_some(size),
            duration: asset.duration,
            frames: asset.frames,
            account: &watch.account,
            batch: watch.batch.as_deref(),
            metadata: watch.metadata.as_deref().and_then(raw_json),
            watched_at: watch.created_at,
            settled_at: watch.settled_at,
            polls: watch.polls,
        },
    };
    // Strings, numbers and already valid JSON: nothing in it can fail to serialize.
    serde_json::to_vec(&body).unwrap_or_default()
}

/// What an event says in short: for the environment of a command, and for a line on a terminal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gist {
    /// The asset that it speaks of.
    pub asset_id: Option<String>,
    /// The API's word.
    pub status: Option<String>,
    /// The API's word before this one.
    pub previous_status: Option<String>,
    /// Where the media is.
    pub url: Option<String>,
}

impl Gist {
    /// The gist of an event with this body; empty when it is none of ours. Each field is read by itself, and the metadata
    /// is stepped over: it may be JSON that no type can hold, such as 1e400.
    pub fn of(body: &[u8]) -> Self {
        #[derive(Deserialize)]
        struct Told<'a> {
            #[serde(borrow)]
            data: BTreeMap<String, &'a RawValue>,
        }
        let data = serde_json::from_slice(body).map(|told: Told<'_>| told.data).unwrap_or_default();
        let text = |name: &str| data.get(name).and_then(|value| serde_json::from_str(value.get()).ok());
        Self {
            asset_id: text("asset_id"),
            status: text("status"),
            previous_status: text("previous_status"),
            url: text("url"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base32_agrees_with_rfc_4648() {
        for (plain, text) in
            [("", ""), ("f", "my"), ("fo", "mzxq"), ("foo", "mzxw6"), ("foob", "mzxw6yq"), ("foobar", "mzxw6ytboi")]
        {
            assert_eq!(base32(plain.as_bytes()), text);
        }
    }

    #[test]
    fn topics_cover_what_their_words_say() {
        let active = Fact::Settled("active".into());
        let new_word = Fact::Settled("moderated".into());
        let facts = [&active, &new_word, &Fact::Processing, &Fact::Abandoned, &Fact::Cancelled];
        for (word, covered) in [
            ("settled", [true, true, false, false, false]),
            ("active", [true, false, false, false, false]),
            ("asset.active", [true, false, false, false, false]),
            ("moderated", [false, true, false, false, false]),
            ("processing", [false, false, true, false, false]),
            ("abandoned", [false, false, false, true, false]),
            ("watch.abandoned", [false, false, false, true, false]),
            ("cancelled", [false, false, false, false, true]),
        ] {
            let topic = Topic::parse(word);
            assert_eq!(facts.map(|fact| topic.covers(fact)), covered, "{word}");
            assert_eq!(topic.to_string(), word);
        }
    }
}
