//! The forms of the log: lines, fields for journald, JSON.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Stdio;

use serde_json::Value;
use tokio::net::UnixDatagram;
use tokio::process::{Child, Command};

use crate::rig::{Daemon, KEY, Place, Reply, SOON, Server, binary, eventually, run, run_with};

/// An API that calls everybody names.
async fn hostile() -> Server {
    let said = "no\\n2026-09-21T10:13:20.123Z  INFO settled\\u001b[2K\\u009b1m\\u202e\\u2028";
    let body = format!(r#"{{"err":{{"message":"{said}"}}}}"#).into_bytes();
    let headers = "content-type: application/json\r\n".to_owned();
    Server::start(move |_| Reply::Http { status: 400, headers: headers.clone(), body: body.clone() }).await
}

#[tokio::test(flavor = "multi_thread")]
async fn json_is_one_object_a_line_and_nothing_else() {
    let api = hostile().await;
    let place = Place::new(&api, "");
    let daemon = Daemon::spawn_with(&place, &[("ASSETWATCH_LOG_FORMAT", "json")]);
    daemon.until_logged("\"started\"").await;
    assert_eq!(run(&place, &["add", "ast_1"]).await.code, 0);
    daemon.until_logged("abandoned").await;
    let log = daemon.log();
    assert!(daemon.stop().await.success());
    let entries: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    let abandoned = entries.iter().find(|entry| entry["reason"] == "rejected").unwrap();
    assert_eq!((&abandoned["level"], &abandoned["asset.id"]), (&"WARN".into(), &"ast_1".into()));
    assert_eq!((&abandoned["watch.polls"], &abandoned["target"]), (&3.into(), &"assetwatch::poller".into()));
    assert!(abandoned["message"].as_str().unwrap().starts_with("abandoned: the API answered 400"), "{abandoned}");
    assert!(abandoned["timestamp"].as_str().unwrap().ends_with('Z'), "{abandoned}");
    assert_harmless(&log);
}

#[tokio::test(flavor = "multi_thread")]
async fn text_is_one_line_an_entry() {
    let api = hostile().await;
    let place = Place::new(&api, "");
    let daemon = Daemon::start(&place).await;
    assert_eq!(run(&place, &["add", "ast_1"]).await.code, 0);
    daemon.until_logged("abandoned").await;
    let log = daemon.log();
    assert!(daemon.stop().await.success());
    assert_harmless(&log);
    // Each line begins with a time of ours and a level.
    let is_ours = |line: &str| {
        let mut words = line.split_whitespace();
        let time =
            words.next().is_some_and(|time| time.ends_with('Z') && time.len() == "2026-09-21T10:13:20.123456Z".len());
        time && words.next().is_some_and(|level| ["ERROR", "WARN", "INFO", "DEBUG"].contains(&level))
    };
    assert!(log.lines().all(is_ours), "{log}");
}

/// Nothing is obeyed by a terminal, and nothing is secret.
fn assert_harmless(log: &str) {
    let harmful =
        |c: char| c.is_control() && c != '\n' || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    assert!(!log.contains(harmful), "{log:?}");
    assert!(!log.contains(KEY), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_fails_is_an_entry_as_well() {
    let place = Place::at("not a URL", "");
    let ended = run_with(&place, &["run"], "", &[("ASSETWATCH_LOG_FORMAT", "json")]).await;
    assert_eq!(ended.code, 78);
    let entry: Value = serde_json::from_str(&ended.err).expect(&ended.err);
    assert_eq!(entry["level"], "ERROR");
    assert!(entry["message"].as_str().unwrap().contains("api.url"), "{entry}");
    let text = run(&place, &["run", "--log-format", "text"]).await;
    assert_eq!((text.code, text.err.starts_with("assetwatch: ")), (78, true), "{text:?}");
    let usage = run(&place, &["run", "--log-format", "xml"]).await;
    assert_eq!((usage.code, usage.err.contains("journald")), (2, true), "{usage:?}");
}

/// A daemon that sees another `/run`, in which `journal` (a directory) is journald's; none where that cannot be made.
struct Confined {
    child: Child,
    log: std::path::PathBuf,
}

impl Confined {
    fn start(place: &Place, journal: &Path, stream: impl Fn(&File) -> String, more: &[&str]) -> Self {
        let mount = "mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/journal &&
            mount --bind \"$1\" /run/systemd/journal && shift && exec \"$@\"";
        let log = place.path("confined.log");
        let stderr = File::create(&log).unwrap();
        let child = Command::new("unshare")
            .args(["--mount", "--map-root-user", "sh", "-c", mount, "sh"])
            .arg(journal)
            .arg(binary())
            .arg("--config")
            .arg(place.config())
            .arg("run")
            .args(more)
            .env_clear()
            .envs([("HOME", place.path("home")), ("PATH", "/usr/bin:/bin:/usr/sbin:/sbin".into())])
            .env("JOURNAL_STREAM", stream(&stderr))
            .stdout(Stdio::null())
            .stderr(stderr)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Self { child, log }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    async fn until_logged(&self, text: &str) {
        eventually(SOON, text, async || self.log().contains(text).then_some(())).await;
    }
}

/// Whether a process may have a `/run` of its own here.
async fn may_mount() -> bool {
    let mount = ["--mount", "--map-root-user", "mount", "-t", "tmpfs", "tmpfs", "/run"];
    let tried = Command::new("unshare").args(mount).stderr(Stdio::null()).status().await;
    let may = tried.is_ok_and(|status| status.success());
    if !may {
        println!("skipped: `unshare` cannot give a process a /run of its own here");
    }
    may
}

fn stream_of(file: &File) -> String {
    let metadata = file.metadata().unwrap();
    format!("{}:{}", metadata.dev(), metadata.ino())
}

/// The fields of a datagram of journald's native protocol: `NAME=value`, or the name, a length and the value.
fn fields(mut datagram: &[u8]) -> BTreeMap<String, String> {
    let mut fields = BTreeMap::new();
    while let Some(end) = datagram.iter().position(|byte| *byte == b'\n') {
        let line = std::str::from_utf8(&datagram[..end]).unwrap();
        datagram = &datagram[end + 1..];
        let (name, value) = match line.split_once('=') {
            Some((name, value)) => (name, value.to_owned()),
            None => {
                let length = u64::from_le_bytes(datagram[..8].try_into().unwrap()) as usize;
                let value = std::str::from_utf8(&datagram[8..8 + length]).unwrap().to_owned();
                assert_eq!(datagram[8 + length], b'\n');
                datagram = &datagram[9 + length..];
                (line, value)
            }
        };
        assert!(name.bytes().all(|byte| byte == b'_' || byte.is_ascii_uppercase() || byte.is_ascii_digit()), "{name}");
        assert!(fields.insert(name.to_owned(), value).is_none(), "{name} comes twice");
    }
    fields
}

/// Waits for the entry whose message begins so.
async fn entry(socket: &UnixDatagram, message: &str) -> BTreeMap<String, String> {
    let found = async {
        let mut datagram = vec![0; 65_536];
        loop {
            let length = socket.recv(&mut datagram).await.unwrap();
            let fields = fields(&datagram[..length]);
            if fields.get("MESSAGE").is_some_and(|found| found.starts_with(message)) {
                return fields;
            }
        }
    };
    tokio::time::timeout(SOON, found).await.unwrap_or_else(|_| panic!("no entry {message:?}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn journald_gets_fields_where_stderr_goes_to_it() {
    if !may_mount().await {
        return;
    }
    let api = hostile().await;
    let place = Place::new(&api, "");
    let journal = tempfile::tempdir().unwrap();
    let socket = UnixDatagram::bind(journal.path().join("socket")).unwrap();
    let daemon = Confined::start(&place, journal.path(), stream_of, &[]);
    let started = entry(&socket, "started").await;
    assert_eq!((started["PRIORITY"].as_str(), started["SYSLOG_IDENTIFIER"].as_str()), ("6", "assetwatch"));
    assert_eq!(run(&place, &["add", "ast_1"]).await.code, 0);
    let abandoned = entry(&socket, "abandoned: the API answered 400").await;
    for (name, value) in [("PRIORITY", "4"), ("ASSET_ID", "ast_1"), ("WATCH_POLLS", "3"), ("REASON", "rejected")] {
        assert_eq!(abandoned[name], value, "{abandoned:?}");
    }
    assert!(!abandoned["MESSAGE"].contains(KEY));
    assert_eq!(daemon.log(), "", "nothing is said twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_journal_the_log_goes_to_stderr() {
    if !may_mount().await {
        return;
    }
    let api = Server::api().await;
    let place = Place::new(&api, "");
    let journal = tempfile::tempdir().unwrap();
    let mut daemon = Confined::start(&place, journal.path(), stream_of, &[]);
    daemon.until_logged("journald cannot be reached, so the log goes to stderr").await;
    daemon.until_logged(" INFO started").await;
    daemon.child.kill().await.unwrap();
    // A variable that was inherited says nothing of where stderr goes.
    let socket = UnixDatagram::bind(journal.path().join("socket")).unwrap();
    let mut daemon = Confined::start(&place, journal.path(), |_| "1:2".into(), &[]);
    daemon.until_logged(" INFO started").await;
    assert!(socket.try_recv(&mut [0; 16]).is_err(), "the journal was told");
    daemon.child.kill().await.unwrap();
    // Who asks for it gets it.
    let daemon = Confined::start(&place, journal.path(), |_| String::new(), &["--log-format", "journald"]);
    entry(&socket, "started").await;
    assert_eq!(daemon.log(), "");
}
