//! Events as signed POST requests (Standard Webhooks 1.0).

use std::error::Error;
use std::pin::pin;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, LOCATION, RETRY_AFTER, SERVER};
use reqwest::{Client, Proxy, RequestBuilder, Response, StatusCode};
use url::{Position, Url};

use super::guard::{Blocked, Guard};
use super::signature::Signer;
use crate::client;
use crate::clock::Timestamp;
use crate::delivery::{Attempt, Outcome, Parcel};

/// So much of an answer's body is kept for the log.
const BODY_LIMIT: usize = 16 * 1_024;
/// So long is waited for it.
const BODY_TIME: Duration = Duration::from_secs(2);
/// The headers of an answer that a person looks for who tries a hook out.
const ESSENTIALS: [HeaderName; 4] = [CONTENT_TYPE, LOCATION, RETRY_AFTER, SERVER];
/// So many characters of a header are shown.
const HEADER_LIMIT: usize = 200;
/// Parts of a URL that are shorter than this are no secrets.
const SECRET_LENGTH: usize = 8;
/// Below the 5 s after which common servers close an idle connection: to write into one that is just being closed would
/// cost an attempt.
const IDLE_TIME: Duration = Duration::from_secs(4);
/// Every request has its hook's own timeout; this one only bounds what would have none.
const LONGEST: Duration = Duration::from_secs(600);

/// A URL that events are posted to.
pub struct Webhook {
    /// Shared by all webhooks that go straight to their receivers.
    pub client: Client,
    /// May itself be a secret: it is never shown.
    pub url: Url,
    /// For a whole request.
    pub timeout: Duration,
    /// Holds the secrets.
    pub signer: Signer,
    /// Sent with every request.
    pub headers: HeaderMap,
    /// The proxy that it goes through, which may hold a password.
    pub proxy: Option<Url>,
    /// What to do with the address that a redirect names.
    pub moved: &'static str,
}

/// What to do about a redirect of an operator's hook.
pub const MOVED: &str = "put the final address into `url`";

/// A client for webhooks; behind `proxy`, which then looks the names up, if there is one.
pub fn client(guard: Guard, proxy: Option<&Url>) -> Result<Client, String> {
    let mut builder = client::builder(LONGEST).pool_idle_timeout(IDLE_TIME).dns_resolver(guard);
    if let Some(proxy) = proxy {
        // What is wrong with it may be its password.
        builder = builder.proxy(Proxy::all(proxy.clone()).map_err(|_| "`proxy` cannot be used".to_owned())?);
    }
    builder.build().map_err(|error| format!("the HTTP client cannot be made: {}", client::reason(error)))
}

impl Webhook {
    /// One request; see [`super::Hooks::perform`].
    pub async fn perform(&self, parcel: &Parcel, now: Timestamp, hurry: impl Future<Output = ()>) -> Attempt {
        let mut hurry = pin!(hurry);
        let answer = tokio::select! {
            biased;
            answer = self.send(parcel, now) => answer,
            () = &mut hurry => return Attempt::bare(Outcome::Interrupted),
        };
        match answer {
            Ok(response) => self.heard(response, now, hurry).await,
            Err(error) => Attempt::bare(self.unanswered(error)),
        }
    }

    /// Decided at the headers: a body that fails after a 2xx must not cause a repeat.
    async fn heard(&self, mut response: Response, now: Timestamp, hurry: impl Future<Output = ()>) -> Attempt {
        let status = response.status();
        let outcome = self.answered(status, response.headers(), now);
        let headers = self.essentials(response.headers());
        let mut output = Vec::new();
        tokio::select! {
            () = keep_body(&mut response, &mut output) => {}
            () = tokio::time::sleep(BODY_TIME) => {}
            () = hurry => {}
        }
        Attempt { outcome, code: Some(status.as_u16().into()), headers, output: self.kept(output), errors: Vec::new() }
    }

    /// What is sent with the body; a value that is marked as sensitive is masked.
    pub fn headers(&self, parcel: &Parcel, now: Timestamp) -> Vec<(String, String)> {
        let Ok(request) = self.request(parcel, now).build() else { return Vec::new() };
        let shown = |value: &HeaderValue| match value.is_sensitive() {
            true => "***".to_owned(),
            false => String::from_utf8_lossy(value.as_bytes()).into_owned(),
        };
        request.headers().iter().map(|(name, value)| (name.to_string(), shown(value))).collect()
    }

    async fn send(&self, parcel: &Parcel, now: Timestamp) -> reqwest::Result<Response> {
        self.request(parcel, now).send().await
    }

    fn request(&self, parcel: &Parcel, now: Timestamp) -> RequestBuilder {
        let id = &parcel.delivery.event_id;
        let timestamp = now.as_millis().div_euclid(1_000);
        let mut headers = self.headers.clone();
        headers.entry(CONTENT_TYPE).or_insert(HeaderValue::from_static("application/json"));
        let mut request = self
            .client
            .post(self.url.clone())
            .timeout(self.timeout)
            .headers(headers)
            .header("webhook-id", id)
            .header("webhook-timestamp", timestamp);
        if let Some(signature) = self.signer.sign(id, timestamp, &parcel.body) {
            request = request.header("webhook-signature", signature);
        }
        request.body(parcel.body.clone())
    }

    fn answered(&self, status: StatusCode, headers: &HeaderMap, now: Timestamp) -> Outcome {
        let mut error = format!("the receiver answered {}", described(status));
        let not_before = match status.as_u16() {
            200..300 => return Outcome::Delivered,
            410 => return Outcome::Gone { error },
            300..400 => {
                let location = headers.get(LOCATION).map(|location| self.shown(location.as_bytes()));
                error += &location.map(|location| format!(" to {location}")).unwrap_or_default();
                error += &format!("; redirects are not followed, {}", self.moved);
                None
            }
            429 | 503 => client::retry_after(headers, now),
            _ => None,
        };
        Outcome::Failed { error, not_before }
    }

    fn essentials(&self, headers: &HeaderMap) -> Vec<(String, String)> {
        let found = ESSENTIALS.iter().filter_map(|name| Some((name, headers.get(name)?)));
        found.map(|(name, value)| (name.to_string(), self.shown(value.as_bytes()))).collect()
    }

    /// A header's value as one short line, without what it repeats of ours.
    fn shown(&self, value: &[u8]) -> String {
        let text = String::from_utf8_lossy(value);
        let text = self.masked(&text).unwrap_or_else(|| text.into_owned());
        text.chars().take(HEADER_LIMIT).flat_map(char::escape_debug).collect()
    }

    /// What is kept of an answer, as it is unless it repeats what may be a secret.
    fn kept(&self, body: Vec<u8>) -> Vec<u8> {
        let text = String::from_utf8_lossy(&body);
        let masked = self.masked(&text);
        if body.len() < BODY_LIMIT {
            return masked.map_or(body, String::into_bytes);
        }
        // It was cut there, perhaps amid a secret.
        let text = masked.as_deref().unwrap_or(&text);
        let clean =
            self.secrets().iter().fold(text.to_owned(), |text, secret| client::without_beginning(&text, secret));
        if masked.is_none() && clean == text { body } else { clean.into_bytes() }
    }

    /// `text` without what it repeats of [`Self::secrets`]; none if that is nothing.
    fn masked(&self, text: &str) -> Option<String> {
        let secrets = self.secrets();
        let repeats = secrets.iter().any(|secret| text.contains(secret));
        repeats.then(|| secrets.iter().fold(text.to_owned(), |text, secret| text.replace(secret, "…")))
    }

    /// What may be secret of all that is sent: parts of our own URL, headers and words in them (`Bearer` says nothing, what
    /// follows it does), and what the proxy is told. The longest come first.
    fn secrets(&self) -> Vec<String> {
        let ours = [&self.url[Position::BeforeUsername..Position::AfterPassword], &self.url[Position::BeforePath..]];
        let parts = ours.into_iter().flat_map(|text| text.split(['/', '?', '&', '=', ':', '#'])).map(str::to_owned);
        let sensitive = self.headers.iter().filter(|(name, value)| value.is_sensitive() && *name != CONTENT_TYPE);
        let values = sensitive.filter_map(|(_, value)| value.to_str().ok());
        let words = values.flat_map(|value| std::iter::once(value).chain(value.split(' '))).map(str::to_owned);
        let proxy = self.proxy.iter().flat_map(told_to);
        let mut secrets: Vec<String> =
            parts.chain(words).chain(proxy).filter(|part| part.len() >= SECRET_LENGTH).collect();
        secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        secrets
    }

    fn unanswered(&self, error: reqwest::Error) -> Outcome {
        if let Some(blocked) = blocked(&error) {
            return Outcome::Blocked { error: blocked.to_string() };
        }
        if error.is_builder() {
            let reason = client::reason(error);
            return Outcome::Blocked { error: format!("no request can be made: {reason}") };
        }
        let error = if error.is_timeout() && !error.is_connect() {
            format!("the receiver did not answer within {}", humantime::format_duration(self.timeout))
        } else {
            client::reason(error)
        };
        Outcome::Failed { error, not_before: None }
    }
}

/// The password of a proxy, as it is written, as it is meant, and as it is sent (RFC 7617).
fn told_to(proxy: &Url) -> Vec<String> {
    let Some(written) = proxy.password() else { return Vec::new() };
    let decoded = |text: &str| percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned();
    let (user, password) = (decoded(proxy.username()), decoded(written));
    let sent = STANDARD.encode(format!("{user}:{password}"));
    vec![written.to_owned(), password, sent]
}

fn described(status: StatusCode) -> String {
    match status.canonical_reason() {
        Some(reason) => format!("{} {reason}", status.as_u16()),
        None => status.as_u16().to_string(),
    }
}

/// The guard's own error, which reqwest and hyper have wrapped.
fn blocked(error: &reqwest::Error) -> Option<&Blocked> {
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(blocked) = error.downcast_ref() {
            return Some(blocked);
        }
        cause = error.source();
    }
    None
}

async fn keep_body(response: &mut Response, output: &mut Vec<u8>) {
    while output.len() < BODY_LIMIT
        && let Ok(Some(chunk)) = response.chunk().await
    {
        let room = BODY_LIMIT - output.len();
        output.extend_from_slice(&chunk[..chunk.len().min(room)]);
    }
}

#[cfg(test)]
mod tests;
