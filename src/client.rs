//! The HTTP client that polls and webhooks are made with: one builder, so that no safeguard is forgotten in one of them.

use std::sync::Once;
use std::time::Duration;

use reqwest::{Certificate, ClientBuilder, redirect, retry};

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
    let mut cause: Option<&dyn std::error::Error> = Some(&error);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_can_be_built() {
        builder(Duration::from_secs(1)).build().unwrap();
    }
}
