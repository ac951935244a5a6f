//! Whoever asks the control API.

use std::path::Path;
use std::time::Duration;

use reqwest::{Client, ClientBuilder, Method, RequestBuilder, StatusCode};
use serde_json::Value;

use super::{Daemon, Place, SOON, Server, eventually};

/// A client of a daemon's control API.
#[derive(Clone)]
pub struct Caller {
    client: Client,
    pub base: String,
}

/// What came back.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: http::HeaderMap,
    pub body: Value,
}

impl Answer {
    pub fn detail(&self) -> &str {
        assert_eq!(self.headers["content-type"], "application/problem+json", "{self:?}");
        assert_eq!(self.body["status"], self.status.as_u16(), "{self:?}");
        self.body["detail"].as_str().unwrap()
    }
}

/// A daemon that listens on loopback, and a caller of it.
pub async fn served(api: &Server, more: &str) -> (Place, Daemon, Caller) {
    let place = Place::new(api, &format!("[http]\nlisten = \"127.0.0.1:0\"\n{more}"));
    let daemon = Daemon::start(&place).await;
    let caller = Caller::of(&daemon).await;
    (place, daemon, caller)
}

impl Caller {
    /// Of a daemon, wherever it listens.
    pub async fn of(daemon: &Daemon) -> Self {
        let base = eventually(SOON, "the daemon listens", async || {
            let log = daemon.log();
            let (_, rest) = log.split_once("listening on ")?;
            Some(rest.split_whitespace().next()?.to_owned())
        });
        Self::at(&base.await)
    }

    pub fn at(base: &str) -> Self {
        Self { client: client().build().unwrap(), base: base.into() }
    }

    /// Of a daemon that listens on a Unix socket.
    pub fn at_socket(path: &Path) -> Self {
        Self { client: client().unix_socket(path).build().unwrap(), base: "http://localhost".into() }
    }

    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}{path}", self.base)).timeout(SOON)
    }

    pub async fn get(&self, path: &str) -> Answer {
        answer(self.request(Method::GET, path)).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        answer(self.request(Method::DELETE, path)).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Answer {
        let request = self.request(Method::POST, path).header("content-type", "application/json");
        answer(request.body(body.to_string())).await
    }

    /// Opens a stream of server-sent events.
    pub async fn stream(&self, path: &str, last: Option<&str>) -> Stream {
        let mut request = self.client.get(format!("{}{path}", self.base));
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Stream { response, buffer: String::new() }
    }
}

fn client() -> ClientBuilder {
    // An error means that another test has done it.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder().no_proxy()
}

/// Sends a request, and reads the whole answer.
pub async fn answer(request: RequestBuilder) -> Answer {
    let response = request.send().await.unwrap();
    let (status, headers) = (response.status(), response.headers().clone());
    let bytes = response.bytes().await.unwrap();
    let body = serde_json::from_slice(&bytes).unwrap_or_else(|_| String::from_utf8_lossy(&bytes).into());
    Answer { status, headers, body }
}

/// A stream of server-sent events.
pub struct Stream {
    response: reqwest::Response,
    buffer: String,
}

/// One of them.
#[derive(Clone, Debug, PartialEq)]
pub struct Sent {
    pub id: String,
    pub event: String,
    pub data: Value,
}

impl Stream {
    /// The next event; none when the server has ended the stream.
    pub async fn next(&mut self) -> Option<Sent> {
        loop {
            while let Some((frame, rest)) = self.buffer.split_once("\n\n") {
                let field = |name: &str| {
                    let line = frame.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
                    line.unwrap_or_default().to_owned()
                };
                let sent = Sent {
                    id: field("id"),
                    event: field("event"),
                    data: serde_json::from_str(&field("data")).unwrap_or_default(),
                };
                self.buffer = rest.to_owned();
                if !sent.event.is_empty() {
                    return Some(sent);
                }
            }
            let chunk = tokio::time::timeout(Duration::from_secs(60), self.response.chunk()).await;
            match chunk.expect("the stream goes on or ends") {
                Ok(Some(chunk)) => self.buffer.push_str(&String::from_utf8_lossy(&chunk)),
                Ok(None) | Err(_) => return None,
            }
        }
    }
}
