//! The HTTP client that polls and webhooks are made with: one builder, so that no safeguard is forgotten in one of them.

use std::error::Error;
use std::io;
use std::sync::Once;
use std::time::{Duration, SystemTime};

use reqwest::header::{DATE, HeaderMap, RETRY_AFTER};
use reqwest::{Certificate, ClientBuilder, redirect, retry};

use crate::clock::Timestamp;

mod quota;

pub use quota::quota;

/// The name under which every request is sent.
pub const USER_AGENT: &str = concat!("assetwatch/", env!("CARGO_PKG_VERSION"));

/// How long a connection, TLS included, may take to open.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A client that goes exactly where it is told to, once, and not for ever.
///
/// No redirect is followed: a custom header such as `X-API-KEY` would go along to another host. No proxy is taken from
/// the environment, and nothing is retried behind the ledger's back. `timeout` bounds a whole request; reqwest has no
/// bound of its own, and one on each read would let a drip go on for ever.
pub fn builder(timeout: Duration) -> ClientBuilder {
    install_crypto();
    let bundled = webpki_root_certs::TLS_SERVER_ROOT_CERTS.iter();
    ClientBuilder::new()
        .user_agent(USER_AGENT)
        .redirect(redirect::Policy::none())
        .no_proxy()
        .retry(retry::never())
        .referer(false)
        .connect_timeout(CONNECT_TIMEOUT.min(timeout))
        .timeout(timeout)
        // The platform's own roots are used as well; alone they would fail on a machine without ca-certificates.
        .tls_certs_merge(bundled.filter_map(|root| Certificate::from_der(root).ok()))
}

/// rustls takes its cryptography from a process-wide default; whoever builds a client first sets it.
fn install_crypto() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        // An error means that the program which uses this library has chosen one already.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
}

/// An error and all its causes in one line: reqwest's own text leaves out why. The URL is left out, since it may be the
/// secret itself (chat services).
pub fn reason(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = String::new();
    let mut cause: Option<&dyn Error> = Some(&error);
    while let Some(error) = cause {
        let part = error.to_string();
        if !text.contains(&part) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&part);
        }
        cause = error.source();
    }
    text
}

/// A shorter beginning of a secret gives nothing away, and may be a word.
const SHORTEST_BEGINNING: usize = 6;

/// `text`, which was cut where it ends, with a mask for the beginning of `secret` that is left there.
pub fn without_beginning(text: &str, secret: &str) -> String {
    let lengths = (SHORTEST_BEGINNING..=secret.len()).rev().filter(|length| secret.is_char_boundary(*length));
    let rest = lengths.filter_map(|length| text.strip_suffix(&secret[..length])).next();
    rest.map_or_else(|| text.to_owned(), |rest| format!("{rest}***"))
}

/// Whether there was no connection: no such host, nobody who listens there, no way to it.
pub fn is_unreachable(error: &reqwest::Error) -> bool {
    error.is_connect() && !is_untrusted(error)
}

/// Whether whoever answered could not show a valid certificate.
pub fn is_untrusted(error: &reqwest::Error) -> bool {
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if matches!(error.downcast_ref(), Some(rustls::Error::InvalidCertificate(_))) {
            return true;
        }
        // What an I/O error wraps is not its source.
        cause = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(wrapped) => Some(wrapped),
            None => error.source(),
        };
    }
    false
}

/// How long the answer with these `headers` asks us to wait (RFC 9110, section 10.2.3), without an upper bound.
///
/// A date is judged against the answer's own `Date`, so that a receiver whose clock is wrong still means the same
/// wait; against `now` where there is none. A date that has passed is no wait, and what is neither a number of seconds
/// nor a date is ignored.
pub fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // Digits fail to parse only when they are too many.
        return Some(Duration::from_secs(text.parse().unwrap_or(u64::MAX)));
    }
    let until = httpdate::parse_http_date(text).ok()?;
    let from = date(headers).unwrap_or_else(|| now.as_system_time());
    Some(until.duration_since(from).unwrap_or_default())
}

fn date(headers: &HeaderMap) -> Option<SystemTime> {
    httpdate::parse_http_date(headers.get(DATE)?.to_str().ok()?.trim()).ok()
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderValue;

    use super::*;

    #[test]
    fn retry_after_is_read_in_both_forms() {
        let now = Timestamp::from_millis(784_111_777_000); // Sun, 06 Nov 1994 08:49:37 GMT
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        for (retry_after_text, date_text, wait) in [
            (None, None, None),
            (Some("120"), None, seconds(120)),
            (Some(" 0 "), None, seconds(0)),
            (Some("18446744073709551616"), None, seconds(u64::MAX)),
            (Some("Sun, 06 Nov 1994 08:50:37 GMT"), None, seconds(60)),
            (Some("Sunday, 06-Nov-94 08:50:37 GMT"), None, seconds(60)),
            (Some("Sun Nov  6 08:50:37 1994"), None, seconds(60)),
            (Some("Sun, 06 Nov 1994 08:48:37 GMT"), None, seconds(0)),
            // A clock that is a day ahead of ours, and one that is a day behind it.
            (Some("Mon, 07 Nov 1994 08:50:37 GMT"), Some("Mon, 07 Nov 1994 08:49:37 GMT"), seconds(60)),
            (Some("Sat, 05 Nov 1994 08:50:37 GMT"), Some("Sat, 05 Nov 1994 08:49:37 GMT"), seconds(60)),
            (Some("Sun, 06 Nov 1994 08:50:37 GMT"), Some("yesterday"), seconds(60)),
            (Some(""), None, None),
            (Some("-1"), None, None),
            (Some("+1"), None, None),
            (Some("1.5"), None, None),
            (Some("1, 2"), None, None),
            (Some("soon"), None, None),
            (Some("Sun, 06 Nov 1994 08:50:37"), None, None),
        ] {
            let mut headers = HeaderMap::new();
            if let Some(text) = retry_after_text {
                headers.insert(RETRY_AFTER, text.parse().unwrap());
            }
            if let Some(text) = date_text {
                headers.insert(DATE, text.parse().unwrap());
            }
            assert_eq!(retry_after(&headers, now), wait, "{retry_after_text:?} with {date_text:?}");
        }
        let headers = HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from_bytes(b"\xff1").unwrap())]);
        assert_eq!(retry_after(&headers, now), None);
    }

    #[test]
    fn a_client_can_be_built() {
        builder(Duration::from_secs(1)).build().unwrap();
    }
}
