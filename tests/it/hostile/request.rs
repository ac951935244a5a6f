//! Requests to the control API: whatever is asked, the answer is a good one or a problem document, and only what was
//! reported as added is in the database.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use assetwatch::clock::Clock;
use assetwatch::config::{Http, Listen};
use assetwatch::control::{Control, Running};
use assetwatch::http::{Face, Gate, bind, serve};
use assetwatch::store::Store;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::watch;

const METHODS: [&str; 5] = ["GET", "POST", "DELETE", "PUT", "OPTIONS"];
/// A long poll is not waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// The server on a socket in the file system, and nobody who polls.
pub struct Served {
    directory: TempDir,
    /// The number of the newest watch when it was last looked.
    seen: AtomicI64,
    _face: watch::Sender<Face>,
}

/// What came back.
pub struct Answer {
    pub status: u16,
    pub kind: String,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}

impl Served {
    pub async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listen = Listen::Unix(directory.path().join("socket"));
        let store = Store::open(&directory.path().join("assetwatch.db")).await.unwrap();
        let gate = Arc::new(Gate::new(&Http { listen: listen.clone(), token: None, hosts: Vec::new() }).unwrap());
        let accounts = vec!["default".to_owned()];
        let control =
            Control { store, clock: Clock::system(), hooks: Vec::new(), accounts, running: Running::default() };
        let (face, shown) = watch::channel(Face { control, gate, metrics: Arc::new(String::new) });
        let bound = bind(&listen).await.unwrap();
        tokio::spawn(serve(bound, shown, std::future::pending()));
        Self { directory, seen: AtomicI64::new(0), _face: face }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// What holds for any request: its first byte says the method, its first line is the target, the rest is the body.
    pub async fn check(&self, data: &[u8]) {
        let Some((method, rest)) = data.split_first() else { return };
        let end = rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
        let target = target(&rest[..end]);
        // What waits for something to happen is not for here.
        if target.contains("wait") || target.contains("stream") || target.parse::<http::Uri>().is_err() {
            return;
        }
        let method = METHODS[usize::from(*method) % METHODS.len()];
        let body = rest.get(end + 1..).unwrap_or_default();
        let Some(answer) = self.ask(method, &target, body).await else { return };
        assert_good_or_problem(method, &target, &answer);
        self.assert_only_what_was_added(&answer);
    }

    /// Asks as a program does; none when there is no answer yet.
    pub async fn ask(&self, method: &str, target: &str, body: &[u8]) -> Option<Answer> {
        let mut stream = UnixStream::connect(self.path("socket")).await.unwrap();
        let length = body.len();
        let head = format!(
            "{method} {target} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
             content-type: application/json\r\ncontent-length: {length}\r\n\r\n"
        );
        // A server that refuses may not read the body.
        let _ = stream.write_all(&[head.as_bytes(), body].concat()).await;
        let mut received = Vec::new();
        let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut received)).await.ok()?;
        let end = received
            .windows(4)
            .position(|bytes| bytes == b"\r\n\r\n")
            .unwrap_or_else(|| panic!("{method} {target} was answered with {:?}", String::from_utf8_lossy(&received)));
        let head = String::from_utf8_lossy(&received[..end]).into_owned();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let kind = head.lines().find_map(|line| line.strip_prefix("content-type: ")).unwrap_or_default().to_owned();
        Some(Answer { status, kind, body: received[end + 4..].to_vec() })
    }

    /// All that is new in the database was reported in this answer as added, and the other way round.
    fn assert_only_what_was_added(&self, answer: &Answer) {
        let said = answer.json();
        let results = said["results"].as_array().cloned().unwrap_or_else(|| vec![said]);
        let added = results.iter().filter(|result| result["result"] == "added");
        let reported: BTreeSet<String> = added.map(|result| result["asset_id"].as_str().unwrap().to_owned()).collect();
        let database = rusqlite::Connection::open(self.path("assetwatch.db")).unwrap();
        let mut newer = database.prepare("SELECT id, asset_id FROM watches WHERE id > ?1 ORDER BY id").unwrap();
        let rows = newer.query_map([self.seen.load(Ordering::Relaxed)], |row| Ok((row.get(0)?, row.get(1)?)));
        let rows: Vec<(i64, String)> = rows.unwrap().map(Result::unwrap).collect();
        if let Some((newest, _)) = rows.last() {
            self.seen.store(*newest, Ordering::Relaxed);
        }
        let there: BTreeSet<String> = rows.into_iter().map(|(_, id)| id).collect();
        assert_eq!(there, reported, "in the database, and reported as added");
    }
}

pub fn assert_good_or_problem(method: &str, target: &str, answer: &Answer) {
    let Answer { status, kind, body } = answer;
    let said = String::from_utf8_lossy(body);
    if (200..300).contains(status) {
        return assert!(kind != "application/problem+json", "{method} {target}: {status} {said}");
    }
    assert!((400..500).contains(status), "{method} {target}: {status} {said}");
    assert_eq!(kind, "application/problem+json", "{method} {target}: {status} {said}");
    let problem = answer.json();
    assert_eq!(problem["status"], *status, "{said}");
    assert!(problem["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{said}");
}

/// Bytes as the target of a request: what cannot stand in one is encoded.
fn target(bytes: &[u8]) -> String {
    let encoded = bytes.iter().map(|byte| match byte {
        b'!'..=b'~' => char::from(*byte).to_string(),
        byte => format!("%{byte:02x}"),
    });
    let target: String = encoded.collect();
    if target.starts_with('/') { target } else { format!("/{target}") }
}
