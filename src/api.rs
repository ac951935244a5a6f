//! The media API: one endpoint, `GET /pub/v2/assets/{asset_id}` (the vendor's page "Get Asset V2").
//!
//! An answer is turned into an [`Observation`] here; what it means is decided elsewhere. The vendor's schema requires no
//! field, and nothing that comes from there is trusted: a field that is not what it should be is dropped and noted.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::header::{HeaderValue, RETRY_AFTER};
use reqwest::{Client, Response, StatusCode};
use serde_json::Value;
use serde_json::value::RawValue;
use url::Url;

use crate::client;
use crate::clock::{Clock, Timestamp};
use crate::decide::{Contact, Observation, Polled};
use crate::pace::Quota;
use crate::watch::{Asset, check_asset_id};

/// The largest answer that is read.
pub const LARGEST_ANSWER: usize = 1024 * 1024;
/// How much of an answer that is an error is read, for its text.
const LARGEST_ERROR: usize = 16 * 1024;
/// The longest text that is taken from an error.
const LONGEST_ERROR: usize = 300;
/// What stands where a text was cut.
const CUT: char = '…';
/// A shorter key is not looked for in what the API says.
const SHORTEST_SECRET: usize = 6;
/// The longest status and type that are taken for words.
const LONGEST_WORD: usize = 64;
/// The longest URL that is taken.
const LONGEST_URL: usize = 8 * 1024;

/// What may stand in a path segment as it is (RFC 3986, unreserved); everything else of an asset's id is encoded.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// One account at the API.
pub struct Api {
    client: Client,
    /// Its path ends where the asset's id begins.
    base: Url,
    key: Mutex<HeaderValue>,
    /// For a Retry-After that names an instant.
    clock: Clock,
}

/// Why there can be no such account.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// No TLS, or no such thing as a client here.
    #[error("no HTTP client can be built: {0}")]
    Client(#[from] reqwest::Error),
    /// The key cannot stand in a header.
    #[error("the API key contains characters that cannot be sent in a header")]
    Key,
}

impl Api {
    /// An account at the API under `url` (a path in it is a prefix), with `key`; `timeout` is for a whole request.
    ///
    /// # Errors
    /// When no client can be built, or the key is none.
    pub fn new(url: &Url, key: &str, timeout: Duration, clock: Clock) -> Result<Self, ApiError> {
        let mut base = url.clone();
        base.set_path(&format!("{}/pub/v2/assets/", url.path().trim_end_matches('/')));
        Ok(Self { client: client::builder(timeout).build()?, base, key: Mutex::new(header(key)?), clock })
    }

    /// Takes another key; whether it is another one.
    ///
    /// # Errors
    /// When it cannot stand in a header; the old one stays.
    pub fn set_key(&self, key: &str) -> Result<bool, ApiError> {
        let key = header(key)?;
        let mut current = self.key.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = *current != key;
        *current = key;
        Ok(changed)
    }

    /// Asks about one asset.
    pub async fn poll(&self, asset_id: &str) -> Polled {
        if let Err(error) = check_asset_id(asset_id) {
            return Observation::Unaskable { error: error.to_string() }.into();
        }
        let mut url = self.base.clone();
        url.set_path(&format!("{}{}", self.base.path(), utf8_percent_encode(asset_id, SEGMENT)));
        let key = self.key.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut polled = match self.client.get(url).header("x-api-key", key.clone()).send().await {
            Ok(response) => observe(asset_id, response, self.clock.now()).await,
            Err(error) => unanswered(error),
        };
        // Some servers repeat the key that they refuse, and what they say goes to logs and to the database. A very
        // short one is no secret, and a piece of many words.
        let key = key.to_str().ok().filter(|key| key.len() >= SHORTEST_SECRET);
        if let (Some(text), Some(key)) = (polled.observation.text_mut(), key) {
            *text = without(text, key);
        }
        polled
    }
}

/// `text` without the key, and without the beginning of one that is left where something was cut.
fn without(text: &str, key: &str) -> String {
    let whole = text.replace(key, "***");
    let mut pieces: Vec<&str> = whole.split(CUT).collect();
    let last = pieces.pop().unwrap_or_default();
    let mut clean: String = pieces.into_iter().map(|piece| client::without_beginning(piece, key) + "…").collect();
    clean += last;
    clean
}

fn header(key: &str) -> Result<HeaderValue, ApiError> {
    let mut value = HeaderValue::from_str(key).map_err(|_| ApiError::Key)?;
    value.set_sensitive(true);
    Ok(value)
}

fn unanswered(error: reqwest::Error) -> Polled {
    let contact = if client::is_unreachable(&error) { Contact::Nobody } else { Contact::Unanswered };
    let untrusted = client::is_untrusted(&error);
    let error = client::reason(error);
    let observation = if untrusted { Observation::Untrusted { error } } else { Observation::Unavailable { error } };
    Polled { observation, quota: Quota::default(), contact }
}

async fn observe(asset_id: &str, mut response: Response, now: Timestamp) -> Polled {
    let quota = client::quota(response.headers(), now);
    if response.status() != StatusCode::OK {
        let (observation, contact) = refusal(&mut response, now).await;
        return Polled { observation, quota, contact };
    }
    let (observation, contact) = match read(&mut response, LARGEST_ANSWER).await {
        Ok(body) => {
            let answer = answer(&body);
            let contact = contact(&answer, &body);
            (understood(asset_id, answer), contact)
        }
        Err(error) => (Observation::Unavailable { error }, Contact::Stranger),
    };
    Polled { observation, quota, contact }
}

/// A body that is JSON, and its fields if it is an object.
type Answer<'a> = Result<Option<Object<'a>>, serde_json::Error>;

fn answer(body: &[u8]) -> Answer<'_> {
    // Almost always it is an object, and then it is read once.
    serde_json::from_slice(body).map(Some).or_else(|_| serde_json::from_slice(body).map(object))
}

/// What a body says of who has written it.
fn contact(answer: &Answer<'_>, body: &[u8]) -> Contact {
    match answer {
        Ok(Some(answer)) if answer.contains_key("data") || answer.contains_key("err") => Contact::Api,
        Err(_) if !body.is_empty() => Contact::Stranger,
        Ok(_) | Err(_) => Contact::Silent,
    }
}

/// What any other status than 200 means.
async fn refusal(response: &mut Response, now: Timestamp) -> (Observation, Contact) {
    let status = response.status();
    let wait = client::retry_after(response.headers(), now);
    let asked_to_wait = response.headers().contains_key(RETRY_AFTER);
    let (error, contact) = complaint(response).await;
    let observation = match status.as_u16() {
        300..=399 => Observation::Unusable { error },
        401 => Observation::Unauthorized { error },
        402 => Observation::Unpaid { error },
        403 => Observation::Forbidden { error },
        404 => Observation::Missing { error },
        429 => Observation::Throttled { wait, error },
        503 if asked_to_wait => Observation::Throttled { wait, error },
        408 | 425 => Observation::Unavailable { error },
        400..=499 => Observation::Rejected { error },
        _ => Observation::Unavailable { error },
    };
    let contact = match contact {
        _ if status.is_redirection() => Contact::Elsewhere,
        // A gateway in front of the API says that in its own words.
        Contact::Stranger if status.is_server_error() => Contact::Silent,
        contact => contact,
    };
    (observation, contact)
}

/// Reads a body up to a limit; reqwest has none.
async fn read(response: &mut Response, limit: usize) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(client::reason)? {
        if body.len() + chunk.len() > limit {
            return Err(format!("the answer is larger than {limit} bytes"));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// What an answer that is an error says, in one line, and who has written it.
async fn complaint(response: &mut Response) -> (String, Contact) {
    let status = response.status();
    let mut text = format!("the API answered {status}");
    if let Some(location) = response.headers().get("location") {
        text += &format!(" to {}", one_line(&String::from_utf8_lossy(location.as_bytes())));
    }
    let body = read(response, LARGEST_ERROR).await.unwrap_or_default();
    let answer = answer(&body);
    if let Some(said) = answer.as_ref().ok().and_then(|answer| err_of(answer.as_ref()?)) {
        text += &format!(": {said}");
    }
    (text, contact(&answer, &body))
}

/// What the body of a 200 says of the asset: pure, so that it can be tried with anything.
///
/// [`Observation::Answered`] when it has a status, which is then the body's own word; what else is in it is taken as far
/// as it is what it should be, and noted otherwise.
pub fn understand(asset_id: &str, body: &[u8]) -> Observation {
    understood(asset_id, answer(body))
}

fn understood(asset_id: &str, answer: Answer<'_>) -> Observation {
    let answer = match answer {
        Ok(answer) => answer.unwrap_or_default(),
        Err(error) => return Observation::Unavailable { error: format!("the answer is not JSON: {error}") },
    };
    let err = err_of(&answer);
    let data = answer.get("data").and_then(|data| object(data)).unwrap_or_default();
    let mut fields = Fields { data, notes: Vec::new() };
    let id = fields.take("id", "a string", |value| value.as_str().map(str::to_owned));
    if let Some(id) = id.filter(|id| id != asset_id) {
        let error = format!("the answer is about another asset, {:?}", one_line(&id));
        return Observation::Unavailable { error };
    }
    let Some(status) = fields.take("status", "a word", word) else {
        return match err {
            Some(err) => Observation::Unusable { error: format!("the API answered with an error: {err}") },
            None => {
                let malformed = fields.notes.pop();
                Observation::Unavailable { error: malformed.unwrap_or_else(|| "the answer has no status".into()) }
            }
        };
    };
    let kind = fields.take("type", "a word", word);
    let url = fields.take("url", "a text of at most 8 KiB", url);
    let [width, height] = fields.size(["width", "height"]);
    let asset = Asset {
        status: Some(status),
        kind,
        url,
        width,
        height,
        duration: fields.take("duration", "a number of seconds", count),
        frames: fields.take("frames", "a number of frames", count),
    };
    let mut notes = fields.notes;
    notes.extend(err.map(|err| format!("beside the status, the API gave an error: {err}")));
    Observation::Answered { asset, note: (!notes.is_empty()).then(|| notes.join("; ")) }
}

/// The fields of a JSON object as they stand in the text: a number that no type holds, or nesting without end, is then
/// the trouble of its own field and of no other.
type Object<'a> = BTreeMap<String, &'a RawValue>;

fn object(text: &RawValue) -> Option<Object<'_>> {
    serde_json::from_str(text.get()).ok()
}

/// Takes fields out of `data`; what is there and not as it should be is noted.
struct Fields<'a> {
    data: Object<'a>,
    notes: Vec<String>,
}

impl Fields<'_> {
    fn take<T>(&mut self, name: &str, kind: &str, read: impl Fn(&Value) -> Option<T>) -> Option<T> {
        let text = self.data.get(name).copied();
        self.checked(name, kind, text, read)
    }

    fn size<const N: usize>(&mut self, names: [&str; N]) -> [Option<i64>; N] {
        let Some(text) = present(self.data.get("size").copied()) else { return [None; N] };
        let Some(size) = object(text) else {
            self.notes.push(format!("dropped `size`: {} is not an object", one_line(text.get())));
            return [None; N];
        };
        names.map(|name| self.checked(&format!("size.{name}"), "a number of pixels", size.get(name).copied(), count))
    }

    fn checked<T>(
        &mut self,
        name: &str,
        kind: &str,
        text: Option<&RawValue>,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Option<T> {
        let text = present(text)?.get();
        let taken = serde_json::from_str(text).ok().and_then(|value| read(&value));
        if taken.is_none() {
            self.notes.push(format!("dropped `{name}`: {} is not {kind}", one_line(text)));
        }
        taken
    }
}

fn present(text: Option<&RawValue>) -> Option<&RawValue> {
    text.filter(|text| text.get() != "null")
}

fn word(value: &Value) -> Option<String> {
    let fits = |word: &&str| !word.is_empty() && word.len() <= LONGEST_WORD && !word.chars().any(char::is_control);
    value.as_str().filter(fits).map(str::to_owned)
}

fn url(value: &Value) -> Option<String> {
    value.as_str().filter(|url| url.len() <= LONGEST_URL && !url.chars().any(char::is_control)).map(str::to_owned)
}

/// A whole number that is not negative; `30.0` is one.
fn count(value: &Value) -> Option<i64> {
    let whole = |number: f64| (number.fract() == 0.0 && number.abs() < 2f64.powi(53)).then_some(number as i64);
    value.as_i64().or_else(|| value.as_f64().and_then(whole)).filter(|count| *count >= 0)
}

/// The `err` of an answer, if it is not empty: its code and message where it has them.
fn err_of(answer: &Object<'_>) -> Option<String> {
    let err = present(answer.get("err").copied())?;
    let text = match object(err) {
        None => plain(err),
        Some(fields) if fields.is_empty() => return None,
        Some(fields) => {
            let parts: Vec<String> =
                ["code", "message"].into_iter().filter_map(|name| Some(plain(fields.get(name)?))).collect();
            if parts.is_empty() { err.get().to_owned() } else { parts.join(": ") }
        }
    };
    (!text.is_empty()).then(|| one_line(&text))
}

/// A JSON string without its quotes, and anything else as it is written.
fn plain(text: &RawValue) -> String {
    serde_json::from_str(text.get()).unwrap_or_else(|_| text.get().to_owned())
}

/// Foreign text for a log or a column: cut, and without control characters.
fn one_line(text: &str) -> String {
    let clean = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut line: String = clean.take(LONGEST_ERROR).collect();
    if text.chars().count() > LONGEST_ERROR {
        line.push(CUT);
    }
    line
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn note(body: &str) -> String {
        match understand("ast_1", body.as_bytes()) {
            Observation::Answered { note, .. } => note.unwrap_or_default(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_field_of_the_vendors_page_is_read() {
        let body = r#"{"data":{"id":"ast_1","status":"active","type":"video","url":"https://cdn.example/v",
            "size":{"width":512,"height":256},"duration":30,"frames":200},"err":{}}"#;
        let asset = Asset {
            status: Some("active".into()),
            kind: Some("video".into()),
            url: Some("https://cdn.example/v".into()),
            width: Some(512),
            height: Some(256),
            duration: Some(30),
            frames: Some(200),
        };
        assert_eq!(understand("ast_1", body.as_bytes()), Observation::Answered { asset, note: None });
    }

    #[test]
    fn only_a_status_is_needed() {
        let asset = Asset { status: Some("censored".into()), ..Asset::default() };
        let expected = Observation::Answered { asset, note: None };
        for body in [
            r#"{"data":{"status":"censored"}}"#,
            r#"{"data":{"status":"censored","id":null,"url":null,"size":null,"duration":null},"err":null}"#,
            r#"{"data":{"status":"censored","new":{"deep":[1]}},"err":"","more":1}"#,
        ] {
            assert_eq!(understand("ast_1", body.as_bytes()), expected, "{body}");
        }
    }

    #[test]
    fn malformed_optional_fields_are_dropped_and_noted() {
        for (field, noted) in [
            (r#""id":7"#, "dropped `id`: 7 is not a string"),
            (r#""type":"""#, "dropped `type`: \"\" is not a word"),
            (r#""url":["x"]"#, "dropped `url`: [\"x\"] is not a text of at most 8 KiB"),
            (r#""size":"big""#, "dropped `size`: \"big\" is not an object"),
            (r#""size":{"width":-1}"#, "dropped `size.width`: -1 is not a number of pixels"),
            (r#""duration":1e300"#, "dropped `duration`: 1e300 is not a number of seconds"),
            (r#""duration":1e400"#, "dropped `duration`: 1e400 is not a number of seconds"),
            (r#""size":{"height":-1e999}"#, "dropped `size.height`: -1e999 is not a number of pixels"),
            (r#""frames":99999999999999999999"#, "dropped `frames`: 99999999999999999999 is not a number of frames"),
            (r#""new":1e400"#, ""),
            (&format!(r#""new":{}{}"#, "[".repeat(1_000), "]".repeat(1_000)), ""),
        ] {
            assert_eq!(note(&format!(r#"{{"data":{{"status":"active",{field}}}}}"#)), noted);
        }
        assert_eq!(note(r#"{"data":{"status":"active","duration":30.0}}"#), "");
    }

    #[test]
    fn a_status_counts_even_beside_an_error() {
        let body = r#"{"data":{"status":"active"},"err":{"code":"E1","message":"slow"}}"#;
        assert_eq!(note(body), "beside the status, the API gave an error: E1: slow");
        let body = r#"{"data":{"status":"active"},"err":{"code":1e400,"new":[[]]}}"#;
        assert_eq!(note(body), "beside the status, the API gave an error: 1e400");
    }

    #[test]
    fn answers_that_say_nothing_of_the_asset() {
        for (body, error) in [
            ("", "the answer is not JSON: EOF while parsing a value at line 1 column 0"),
            ("{}", "the answer has no status"),
            ("[]", "the answer has no status"),
            (r#"{"data":null}"#, "the answer has no status"),
            (r#"{"data":{"status":""}}"#, "dropped `status`: \"\" is not a word"),
            (r#"{"data":{"status":5}}"#, "dropped `status`: 5 is not a word"),
            (r#"{"data":{"status":"a\nb"}}"#, "dropped `status`: \"a\\nb\" is not a word"),
            (r#"{"data":{"id":"ast_2","status":"active"}}"#, "the answer is about another asset, \"ast_2\""),
        ] {
            let expected = Observation::Unavailable { error: error.into() };
            assert_eq!(understand("ast_1", body.as_bytes()), expected, "{body}");
        }
        let body = br#"{"data":{},"err":{"code":404,"message":"no such asset\u001b[31m"}}"#;
        let error = "the API answered with an error: 404: no such asset [31m".into();
        assert_eq!(understand("ast_1", body), Observation::Unusable { error });
    }

    #[test]
    fn a_key_is_not_left_in_pieces_where_a_text_was_cut() {
        let key = "rn_0123456789";
        for (text, clean) in [
            ("a rn_0123456789 b", "a *** b"),
            ("a rn_01234567… b rn_012345…", "a ***… b ***…"),
            ("a rn_01… b", "a rn_01… b"),
            ("a rn_0123456", "a rn_0123456"),
            ("…", "…"),
        ] {
            assert_eq!(without(text, key), clean);
        }
    }

    proptest! {
        #[test]
        fn no_answer_is_too_strange(body: Vec<u8>, id in "[a-z]{1,3}") {
            understand(&id, &body);
        }

        #[test]
        fn no_field_is_too_strange(status in ".*", value in "-?[0-9]{1,40}(\\.[0-9]+)?", text in ".*") {
            let text = Value::from(text);
            let data = format!(
                r#"{{"data":{{"status":{},"size":{{"width":{value},"height":{text}}},"duration":{value},"url":{text}}},
                    "err":{{"code":{text}}}}}"#,
                Value::from(status));
            understand("x", data.as_bytes());
        }

        #[test]
        fn an_id_is_one_segment_and_comes_back_whole(id in "\\PC{1,80}") {
            prop_assume!(check_asset_id(&id).is_ok());
            let url = Url::parse(&format!("http://h/pub/v2/assets/{}", utf8_percent_encode(&id, SEGMENT))).unwrap();
            let segments: Vec<_> = url.path_segments().unwrap().collect();
            prop_assert_eq!(segments.len(), 4);
            let decoded = percent_encoding::percent_decode_str(segments[3]).decode_utf8().unwrap();
            prop_assert_eq!(decoded.as_ref(), id.as_str());
        }
    }
}
