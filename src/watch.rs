//! A watch: our row about one asset, followed until it settles.

use std::fmt;
use std::time::Duration;

use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

use crate::clock::Timestamp;

/// The longest asset id that is accepted, in bytes.
pub const LONGEST_ID: usize = 512;

/// The longest metadata that is accepted, in bytes: an event has to stay under 20 kB.
pub const LONGEST_METADATA: usize = 16 * 1024;

/// Why a text cannot be an asset's id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadAssetId {
    /// Nothing at all.
    #[error("an asset id must not be empty")]
    Empty,
    /// `.` and `..` mean something else in a URL's path, and every client resolves them before it sends.
    #[error("an asset id must not be `.` or `..`: no HTTP client can ask for it")]
    Dots,
    /// Over [`LONGEST_ID`].
    #[error("an asset id has at most {LONGEST_ID} bytes")]
    TooLong,
    /// A control character.
    #[error("an asset id must not contain control characters")]
    Control,
    /// Not valid UTF-8, or the character that stands for it.
    #[error("an asset id must be valid UTF-8")]
    Encoding,
}

/// Whether `text` can be an asset's id; the table's CHECKs refuse the same.
pub fn check_asset_id(text: &str) -> Result<(), BadAssetId> {
    match text {
        "" => Err(BadAssetId::Empty),
        "." | ".." => Err(BadAssetId::Dots),
        _ if text.len() > LONGEST_ID => Err(BadAssetId::TooLong),
        _ if text.chars().any(char::is_control) => Err(BadAssetId::Control),
        _ if text.contains(char::REPLACEMENT_CHARACTER) => Err(BadAssetId::Encoding),
        _ => Ok(()),
    }
}

/// Where a watch stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Followed: the asset has not left its waiting statuses yet.
    Waiting,
    /// The asset reached a final status.
    Settled,
    /// We stopped without its settling; the [`Reason`] says why.
    Abandoned,
    /// The operator stopped it.
    Cancelled,
}

impl State {
    /// All states, in the order in which people meet them.
    pub const ALL: [Self; 4] = [Self::Waiting, Self::Settled, Self::Abandoned, Self::Cancelled];

    /// The word in the database and on the command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Settled => "settled",
            Self::Abandoned => "abandoned",
            Self::Cancelled => "cancelled",
        }
    }

    /// The state that `word` names.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == word)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Why a watch was abandoned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Reason {
    /// The API did not know the asset for longer than the grace.
    Missing,
    /// The API refused the request several times in a row.
    Rejected,
    /// The asset was followed for as long as its patience allows.
    Patience,
}

impl Reason {
    /// The word in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Rejected => "rejected",
            Self::Patience => "patience",
        }
    }

    /// The reason that `word` names.
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Missing, Self::Rejected, Self::Patience].into_iter().find(|reason| reason.as_str() == word)
    }
}

/// What the API says of an asset. Only a status is needed; everything else may be absent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, utoipa::ToSchema)]
pub struct Asset {
    /// The API's word, verbatim.
    pub status: Option<String>,
    /// `image`, `audio`, `video`, or a new word of the API's.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// Where the media is.
    pub url: Option<String>,
    /// Pixels.
    pub width: Option<i64>,
    /// Pixels.
    pub height: Option<i64>,
    /// Seconds, of audio and video.
    pub duration: Option<i64>,
    /// The number of frames of a video.
    pub frames: Option<i64>,
}

impl Asset {
    /// This asset with the gaps filled from what was known `before`; the status is this one's.
    pub fn over(self, before: &Self) -> Self {
        Self {
            status: self.status,
            kind: self.kind.or_else(|| before.kind.clone()),
            url: self.url.or_else(|| before.url.clone()),
            width: self.width.or(before.width),
            height: self.height.or(before.height),
            duration: self.duration.or(before.duration),
            frames: self.frames.or(before.frames),
        }
    }
}

/// The streaks that the rules count; each is of polls in a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Streaks {
    /// Answers with the same waiting status.
    #[serde(rename = "waiting_streak")]
    pub waiting: u32,
    /// Polls without a usable answer.
    pub failures: u32,
    /// Answers that refuse the request.
    pub rejections: u32,
}

/// Since when something is so, by a clock that may be set meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Since {
    /// By the wall clock.
    pub at: Timestamp,
    /// The account's lost time then, in milliseconds.
    pub base: i64,
}

/// How [`Watch::missing`] is written.
#[derive(Serialize, utoipa::ToSchema)]
struct Missing {
    /// The first of the 404s in a row.
    missing_at: Option<Timestamp>,
    /// The account's lost time then, in milliseconds.
    missing_base: Option<i64>,
}

/// One row of `watches`. As JSON it has the names of the columns.
#[derive(Clone, Debug, PartialEq, Serialize, utoipa::ToSchema)]
pub struct Watch {
    /// Our number for it; never used again.
    pub id: i64,
    /// The asset's id in the API.
    pub asset_id: String,
    /// The API key that it is polled with.
    pub account: String,
    /// Where it stands.
    pub state: State,
    /// When it is to be polled next; only while it waits.
    pub due_at: Option<Timestamp>,
    /// The fencing number of its lease: each claim adds one.
    pub generation: i64,
    /// Who holds its lease.
    pub lease_owner: Option<String>,
    /// When that lease ends.
    pub lease_until: Option<Timestamp>,
    /// Its own patience, when it is not the configured one.
    #[serde(serialize_with = "as_text")]
    #[schema(value_type = Option<String>, examples("2h"))]
    pub patience: Option<Duration>,
    /// How often it was polled.
    pub polls: i64,
    /// See [`Streaks`].
    #[serde(flatten)]
    pub streaks: Streaks,
    /// The first of the 404s in a row.
    #[serde(flatten, serialize_with = "as_missing")]
    #[schema(value_type = Missing)]
    pub missing: Option<Since>,
    /// What the API said last.
    #[serde(flatten)]
    pub asset: Asset,
    /// Why it was abandoned.
    pub reason: Option<Reason>,
    /// What was wrong with the latest poll.
    pub last_error: Option<String>,
    /// The batch that it belongs to.
    pub batch: Option<String>,
    /// The caller's JSON, handed on untouched.
    #[serde(serialize_with = "as_json")]
    #[schema(value_type = Option<serde_json::Value>)]
    pub metadata: Option<String>,
    /// The caller's own webhook.
    pub callback_url: Option<String>,
    /// When it was added.
    pub created_at: Timestamp,
    /// Its first poll; patience counts from here.
    pub first_polled_at: Option<Timestamp>,
    /// Its latest poll.
    pub last_polled_at: Option<Timestamp>,
    /// When `processing` was seen first.
    pub processing_at: Option<Timestamp>,
    /// The latest waiting answer.
    pub waiting_at: Option<Timestamp>,
    /// When it ended, however it ended.
    pub settled_at: Option<Timestamp>,
    /// The account's lost time, in milliseconds, when this watch was first claimed.
    pub lost_base: Option<i64>,
}

/// Text that came from outside as a JSON value; as a JSON string if it is not one after all.
pub fn raw_json(text: &str) -> Option<Box<RawValue>> {
    // A line break can only stand between tokens, never inside a JSON string; as a blank it keeps one object on one line.
    let line = text.replace(['\n', '\r'], " ");
    RawValue::from_string(line).or_else(|_| serde_json::value::to_raw_value(text)).ok()
}

fn as_json<S: Serializer>(metadata: &Option<String>, serializer: S) -> Result<S::Ok, S::Error> {
    metadata.as_deref().and_then(raw_json).serialize(serializer)
}

fn as_missing<S: Serializer>(missing: &Option<Since>, serializer: S) -> Result<S::Ok, S::Error> {
    let columns = Missing { missing_at: missing.map(|first| first.at), missing_base: missing.map(|first| first.base) };
    columns.serialize(serializer)
}

fn as_text<S: Serializer>(patience: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    patience.map(|patience| humantime::format_duration(patience).to_string()).serialize(serializer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asset_ids() {
        let longest = "x".repeat(LONGEST_ID);
        for good in ["ast_1", "../x", "a/b?c", "é", "...", "<img src=x>", " ", &longest] {
            assert_eq!(check_asset_id(good), Ok(()), "{good:?}");
        }
        let too_long = "é".repeat(LONGEST_ID / 2 + 1);
        for (bad, why) in [
            ("", BadAssetId::Empty),
            (".", BadAssetId::Dots),
            ("..", BadAssetId::Dots),
            (&too_long, BadAssetId::TooLong),
            ("a\nb", BadAssetId::Control),
            ("a\0", BadAssetId::Control),
            ("a\u{7f}", BadAssetId::Control),
            ("a\u{9b}31m", BadAssetId::Control),
            ("a\u{fffd}", BadAssetId::Encoding),
        ] {
            assert_eq!(check_asset_id(bad), Err(why), "{bad:?}");
        }
    }

    #[test]
    fn metadata_is_one_line_of_json_whatever_it_was() {
        let shown = |text| raw_json(text).unwrap().get().to_owned();
        assert_eq!(shown("{\"a\":\n1.000000000000000000001}"), "{\"a\": 1.000000000000000000001}");
        assert_eq!(shown("not\njson"), r#""not\njson""#);
    }
}
