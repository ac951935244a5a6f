//! Webhooks against receivers that behave badly, and in the eyes of the official libraries.

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::process::Command;

use crate::rig::{Daemon, Place, Reply, Request, SECRET, Server, is_signed, now, run, webhook};

/// Reads `{"secret", "headers", "body"}` and exits 0 when the library approves.
const PYTHON: &str = "
import json, sys
from standardwebhooks.webhooks import Webhook
told = json.load(sys.stdin)
Webhook(told['secret']).verify(told['body'].encode(), told['headers'])
";
const NODE: &str = "
const { Webhook } = require('standardwebhooks');
const told = JSON.parse(require('fs').readFileSync(0, 'utf8'));
new Webhook(told.secret).verify(told.body, told.headers);
";

/// Whether the library approves of what was received; none where there is no such library.
async fn approved(language: &str, request: &Request, body: &str) -> Option<bool> {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("target");
    let (program, flag, script, variable, packages) = match language {
        "python" => ("python3", "-c", PYTHON, "PYTHONPATH", target.join("python")),
        _ => ("node", "-e", NODE, "NODE_PATH", target.join("node/node_modules")),
    };
    if !packages.join("standardwebhooks").exists() {
        println!("skipped: standardwebhooks is not in {} (`.ci/run` puts it there)", packages.display());
        return None;
    }
    let mut child = Command::new(program);
    child.args([flag, script]).env(variable, packages);
    let child = child.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true).spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) => {
            println!("skipped: {program} cannot be run: {error}");
            return None;
        }
    };
    let headers: std::collections::BTreeMap<_, _> = request.headers.iter().cloned().collect();
    let told = serde_json::json!({"secret": SECRET, "headers": headers, "body": body}).to_string();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(told.as_bytes()).await.unwrap();
    drop(stdin);
    Some(child.wait().await.unwrap().success())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_official_libraries_verify_what_is_sent() {
    let (api, receiver, chat) = (Server::api().await, Server::receiver().await, Server::receiver().await);
    let body = "body = '{\"text\": {{ (data.asset_id ~ \" – \" ~ data.status) | tojson }}}'\n";
    let chat_hook = webhook(&chat).replace("\"cms\"", "\"chat\"");
    let headers = "[hooks.headers]\nX-Token = { file = \"secret\" }\nContent-Type = \"text/plain\"\n";
    let place = Place::new(&api, &format!("{}{chat_hook}{body}{headers}", webhook(&receiver)));
    let daemon = Daemon::start(&place).await;
    let metadata = r#"{"title": "ü „quoted“ \u0000 \\"}"#;
    assert_eq!(run(&place, &["add", "active_1", "--metadata", metadata]).await.code, 0);
    let (told, chatted) = (receiver.until(1).await, chat.until(1).await);
    assert_eq!(chatted[0].body, "{\"text\": \"active_1 – active\"}".as_bytes());
    assert_eq!((chatted[0].header("x-token"), chatted[0].header("content-type")), (Some(SECRET), Some("text/plain")));
    for request in [&told[0], &chatted[0]] {
        assert!(is_signed(request));
        let body = String::from_utf8(request.body.clone()).unwrap();
        for language in ["python", "node"] {
            if let Some(approved) = approved(language, request, &body).await {
                assert!(approved, "{language}: {request:?}");
            }
            // A library that approves of anything would prove nothing.
            assert_ne!(self::approved(language, request, &format!("{body} ")).await, Some(true), "{language}");
        }
    }
    assert!(!daemon.log().contains(SECRET));
}

/// Answers every request with 200 and a body without an end, and counts what it got rid of.
async fn endless() -> (String, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (url, written) = (format!("http://{}/", listener.local_addr().unwrap()), Arc::<AtomicU64>::default());
    let counter = Arc::clone(&written);
    tokio::spawn(async move {
        let chunk = [b"10000\r\n".as_slice(), &[b'x'; 65_536], b"\r\n"].concat();
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 16_384];
            assert_ne!(stream.read(&mut request).await.unwrap(), 0);
            stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await.unwrap();
            // 10 GiB are as good as no end.
            while counter.load(Ordering::SeqCst) < 10 << 30 && stream.write_all(&chunk).await.is_ok() {
                counter.fetch_add(65_536, Ordering::SeqCst);
            }
        }
    });
    (url, written)
}

fn hook(name: &str, url: &str) -> String {
    format!(
        "[[hooks]]\nname = \"{name}\"\nurl = \"{url}\"\nsecret_file = \"secret\"\ntimeout = \"3s\"\nschedule = [\"1s\"]\n"
    )
}

/// Each row of the contract's table: how the receiver behaves, where its delivery ends, after how many requests, and
/// what is shown.
#[tokio::test(flavor = "multi_thread")]
async fn no_receiver_hangs_or_swells_the_daemon_and_a_2xx_is_not_repeated() {
    let elsewhere = Server::receiver().await;
    let later = httpdate::fmt_http_date(now().as_system_time() + Duration::from_secs(600));
    let asking = |status, wait: &str| Reply::status(status).with_header("retry-after", wait);
    let cut = "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n";
    let rows = [
        ("taken", Reply::status(204), "delivered", 1, ""),
        ("cut", Reply::Raw(cut.into()), "delivered", 1, ""),
        ("drips", Reply::Drip(cut.into()), "delivered", 1, ""),
        ("hangs", Reply::Hang, "dead", 2, "did not answer within 3s"),
        ("resets", Reply::Reset, "dead", 2, ""),
        (
            "moved",
            Reply::status(302).with_header("location", &elsewhere.url()),
            "dead",
            2,
            "302 Found to http://127.0.0.1",
        ),
        ("gone", Reply::status(410), "dead", 1, "410 Gone"),
        ("fails", Reply::status(500), "dead", 2, "500"),
        ("malformed", asking(429, "soon"), "dead", 2, "429"),
        ("past", asking(503, "Sun, 06 Nov 1994 08:49:37 GMT"), "dead", 2, "503"),
        ("seconds", asking(429, "600"), "waiting", 1, "429"),
        ("date", asking(503, &later), "waiting", 1, "503"),
    ];
    let mut receivers = Vec::new();
    for (name, reply, ..) in &rows {
        let reply = reply.clone();
        receivers.push((*name, Server::start(move |_| reply.clone()).await));
    }
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let (endless_url, written) = endless().await;
    let hooks: String = receivers.iter().map(|(name, server)| hook(name, &server.url())).collect();
    let more = [hook("refuses", &format!("http://{closed}/")), hook("endless", &endless_url)].concat();
    let api = Server::api().await;
    let place = Place::new(&api, &format!("{hooks}{more}"));
    let daemon = Daemon::start(&place).await;
    let before = daemon.memory();
    assert_eq!(run(&place, &["add", "active_1"]).await.code, 0);
    let outcome = |name: &str, state: &str| {
        format!(
            "SELECT count(*) FROM deliveries WHERE hook = '{name}' AND state = '{state}' AND attempts > 0 AND lease_owner IS NULL"
        )
    };
    place.until(&outcome("refuses", "dead"), 1).await;
    place.until(&outcome("endless", "delivered"), 1).await;
    for ((name, _, state, requests, says), (_, server)) in rows.iter().zip(&receivers) {
        place.until(&outcome(name, state), 1).await;
        let error: Option<String> =
            place.ask(&format!("SELECT last_error FROM deliveries WHERE hook = '{name}'")).unwrap();
        assert!(error.clone().unwrap_or_default().contains(says), "{name}: {error:?}");
        assert_eq!(server.count(), *requests, "{name}");
        assert!(server.requests().iter().all(is_signed), "{name}");
    }
    for name in ["seconds", "date"] {
        let due: i64 = place.ask(&format!("SELECT due_at FROM deliveries WHERE hook = '{name}'")).unwrap();
        let wait = Duration::from_millis(u64::try_from(due).unwrap())
            .saturating_sub(now().as_system_time().duration_since(UNIX_EPOCH).unwrap());
        assert!(wait > Duration::from_secs(400), "{name}: {wait:?}");
    }
    let (grown, sent) = (daemon.memory().saturating_sub(before), written.load(Ordering::SeqCst));
    println!("grown by {grown} KiB; {sent} bytes of an endless body were taken");
    assert!(grown < 32 * 1_024 && sent < 64 << 20, "grown by {grown} KiB; {sent} bytes were taken");
    assert_eq!(elsewhere.count(), 0, "a redirect was followed");
    let kept: Vec<u8> = place
        .ask("SELECT output FROM attempts JOIN deliveries ON deliveries.id = delivery_id WHERE hook = 'endless'")
        .unwrap();
    assert_eq!(kept.len(), 16 * 1_024);
}
