//! What callers may give, whichever face they speak to.

use std::time::{Duration, SystemTime};

use crate::clock::Timestamp;
use crate::watch::LONGEST_METADATA;

/// Nobody waits longer, and no clock overflows.
const LONGEST: Duration = Duration::from_secs(10 * 366 * 24 * 3_600);

/// The database and the schedules count in milliseconds.
const SHORTEST: Duration = Duration::from_millis(1);

/// A time to wait, as people write it: `90s`, `2h 30m`; from a millisecond to ten years.
///
/// # Errors
/// What is wrong with it.
pub fn duration(text: &str) -> Result<Duration, String> {
    match parse_duration(text) {
        Ok(duration) if duration < SHORTEST => Err("it must be at least a millisecond".into()),
        Ok(duration) if duration > LONGEST => Err("it must be at most ten years".into()),
        Ok(duration) => Ok(duration),
        Err(error) => Err(format!("{error}; write it like `90s`, `10m` or `2h 30m`")),
    }
}

/// As humantime has it, which panics on a sum beyond what a `Duration` holds; that takes more digits than make sense.
///
/// # Errors
/// When it is none.
pub fn parse_duration(text: &str) -> Result<Duration, humantime::DurationError> {
    let digits = text.bytes().filter(u8::is_ascii_digit).count();
    if digits > 16 { Err(humantime::DurationError::NumberOverflow) } else { humantime::parse_duration(text) }
}

/// An instant: RFC 3339, or a time ago.
///
/// # Errors
/// When it is neither.
pub fn instant(text: &str, now: Timestamp) -> Result<Timestamp, String> {
    if let Ok(instant) = text.parse() {
        return Ok(instant);
    }
    let ago = parse_duration(text)
        .map_err(|_| "it must be an instant like `2026-09-21T10:00:00Z` or a time ago like `2h`".to_owned())?;
    Ok(now.as_system_time().checked_sub(ago).unwrap_or(SystemTime::UNIX_EPOCH).into())
}

/// Whether `text` can be an account's name. No configuration could name any other one.
///
/// # Errors
/// What is wrong with it.
pub fn check_account(text: &str) -> Result<(), String> {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'-');
    match text.len() {
        1..=64 if text.bytes().all(fits) => Ok(()),
        _ => Err("an account's name has 1 to 64 of the characters a-z, 0-9, _ and -".into()),
    }
}

/// Whether `text` can be a batch's name.
///
/// # Errors
/// What is wrong with it.
pub fn check_batch(text: &str) -> Result<(), String> {
    match text.chars().count() {
        1..=128 if !text.chars().any(char::is_control) => Ok(()),
        _ => Err("a batch's name has 1 to 128 characters, none of them a control character".into()),
    }
}

/// Whether `text` is JSON that an event can carry.
///
/// # Errors
/// What is wrong with it.
pub fn check_metadata(text: &str) -> Result<(), String> {
    if text.len() > LONGEST_METADATA {
        return Err(format!("metadata has at most {LONGEST_METADATA} bytes, and this has {}", text.len()));
    }
    let json = serde_json::from_str::<serde::de::IgnoredAny>(text);
    json.map(drop).map_err(|error| format!("metadata must be JSON: {error}"))
}

/// The longest callback URL, in bytes.
const LONGEST_CALLBACK: usize = 2_048;

/// Whether `text` can be a callback URL. Where it may lead is judged when it is called: what is allowed may change.
///
/// # Errors
/// What is wrong with it, without repeating it: its query may be a secret.
pub fn check_callback_url(text: &str) -> Result<(), String> {
    if text.len() > LONGEST_CALLBACK {
        return Err(format!("a callback URL has at most {LONGEST_CALLBACK} bytes, and this has {}", text.len()));
    }
    // The parser would take white space and control characters out, and so call another address than was written.
    if text.contains(|character: char| character.is_control() || character.is_whitespace()) {
        return Err("a callback URL has no white space and no control characters".into());
    }
    let url = url::Url::parse(text).map_err(|error| format!("a callback must be an http or https URL: {error}"))?;
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
        return Err("a callback must be an http or https URL, such as https://cms.example/done".into());
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("a callback URL must not have a user or a password in it".into());
    }
    Ok(())
}
