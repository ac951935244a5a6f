//! Who may ask: the programs and the people of this machine, or whoever shows the token; never a page of another site that
//! is open in a browser of theirs.

use std::net::IpAddr;

use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::Server;
use super::problem::Problem;
use crate::config::{Http, KeyError};

/// A token is not guessed within the life of the universe, however fast this server answers.
const SHORTEST_TOKEN: usize = 16;
/// What says nothing that is not public, so that a browser can load the page that asks for the token.
const PUBLIC: [&str; 4] = ["/", "/healthz", "/readyz", "/openapi.json"];

/// Why nobody could be let in.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    /// The token cannot be read.
    #[error("http.token_file: {0}")]
    Token(#[from] KeyError),
    /// It could be guessed.
    #[error(
        "http.token_file: the token has {0} characters, and must have 16 at least; `openssl rand -hex 32` makes a good one"
    )]
    Short(usize),
}

/// What a request has to show.
#[derive(Debug)]
pub struct Gate {
    /// The digest of the token, so that comparing takes the same time whatever is shown, its length included.
    token: Option<[u8; 32]>,
    /// Names by which the server is reached, besides `localhost` and addresses.
    hosts: Vec<String>,
}

impl Gate {
    /// The gate of these settings, whose token is read now.
    ///
    /// # Errors
    /// When there should be a token and there is none to rely on.
    pub fn new(http: &Http) -> Result<Self, GateError> {
        let token = http.token.as_ref().map(|source| source.read(|name| std::env::var_os(name))).transpose()?;
        let digest = match token.as_ref().map(|token| token.expose()) {
            Some(token) if token.chars().count() < SHORTEST_TOKEN => {
                return Err(GateError::Short(token.chars().count()));
            }
            token => token.map(|token| digest(token.as_bytes())),
        };
        Ok(Self { token: digest, hosts: http.hosts.clone() })
    }

    fn judge(&self, request: &Request) -> Result<(), Problem> {
        let headers = request.headers();
        let host = self.host(request)?;
        check_site(headers, &host, request.uri().path())?;
        match &self.token {
            Some(token) if !PUBLIC.contains(&request.uri().path()) => check_token(headers, token),
            Some(_) | None => Ok(()),
        }
    }

    /// The host that is asked for. A name that an attacker owns may resolve to this machine, so it has to be a known one;
    /// an address cannot be made to. That holds for a socket in the file system as well: ssh brings one to a port.
    fn host(&self, request: &Request) -> Result<Authority, Problem> {
        let mut named = request.headers().get_all(header::HOST).iter();
        let (first, second) = (named.next(), named.next());
        let text = first.filter(|_| second.is_none()).and_then(|host| host.to_str().ok());
        let authority =
            text.and_then(|host| host.parse::<Authority>().ok()).filter(|host| !host.as_str().contains('@'));
        let known = |name: &str| {
            let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
            let address = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(&name);
            address.parse::<IpAddr>().is_ok() || name == "localhost" || self.hosts.contains(&name)
        };
        match authority {
            Some(authority) if known(authority.host()) => Ok(authority),
            _ => {
                Err(forbidden("the Host is none that this server is known by; add it to `http.hosts` if it should be"))
            }
        }
    }
}

/// Lets a request through, or answers it.
pub(super) async fn guard(State(server): State<Server>, request: Request, next: Next) -> Response {
    let gate = server.face.borrow().gate.clone();
    let mut response = match gate.judge(&request) {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    };
    let headers = response.headers_mut();
    for (name, value) in [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    headers
        .entry(header::CONTENT_SECURITY_POLICY)
        .or_insert(HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'"));
    response
}

/// Browsers say which site a request comes from; programs say nothing.
fn check_site(headers: &HeaderMap, host: &Authority, path: &str) -> Result<(), Problem> {
    let refused = || forbidden("a page of another site may not ask");
    if let Some(origin) = headers.get(header::ORIGIN) {
        let origin = origin.to_str().map_err(|_| refused())?;
        let own = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
        let same = own.is_some_and(|own| own.eq_ignore_ascii_case(host.as_str()));
        if !same {
            return Err(refused());
        }
    }
    let word = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    match word("sec-fetch-site") {
        None | Some("same-origin" | "none") => Ok(()),
        // A link to the dashboard is followed; it shows nothing to the page that it stands on.
        Some(_) if path == "/" && word("sec-fetch-mode") == Some("navigate") => Ok(()),
        Some(_) => Err(refused()),
    }
}

fn check_token(headers: &HeaderMap, token: &[u8; 32]) -> Result<(), Problem> {
    let shown = headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes).unwrap_or_default();
    let (scheme, shown) = shown.split_at(shown.len().min("bearer ".len()));
    let right = digest(shown.trim_ascii()).ct_eq(token);
    if scheme.eq_ignore_ascii_case(b"bearer ") && bool::from(right) {
        return Ok(());
    }
    Err(Problem::new(StatusCode::UNAUTHORIZED, "show the token of `http.token_file`: `Authorization: Bearer TOKEN`"))
}

fn digest(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

fn forbidden(why: &str) -> Problem {
    Problem::new(StatusCode::FORBIDDEN, why)
}
