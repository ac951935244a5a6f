//! `hooks listen`: the daemon delivers to it, and what is not as it should be is said.

use std::process::Stdio;

use raw::{post, try_to_post};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use crate::rig::{Daemon, Place, SECRET, SOON, Server, binary, eventually, run, webhook};

/// A listener that has said where it listens.
struct Listener {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    said: String,
    address: String,
}

impl Listener {
    async fn start(place: &Place, args: &[&str]) -> Self {
        let mut child = Command::new(binary())
            .arg("--config")
            .arg(place.config())
            .args(["hooks", "listen", "0"])
            .args(args)
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(place.path("listener")).unwrap())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let said = eventually(SOON, "it listens", async || {
            Some(std::fs::read_to_string(place.path("listener")).unwrap()).filter(|said| said.ends_with("\n\n"))
        })
        .await;
        let address = said.split_once("http://").unwrap().1.split(' ').next().unwrap().to_owned();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines, said, address }
    }

    async fn line(&mut self) -> String {
        tokio::time::timeout(SOON, self.lines.next_line()).await.expect("in time").unwrap().expect("a line")
    }

    async fn ended(&mut self) -> Option<i32> {
        tokio::time::timeout(SOON, self.child.wait()).await.expect("it ends").unwrap().code()
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.child.id().unwrap() as i32).unwrap(), signal).unwrap();
    }
}

/// One request, as bytes, so that it can be as wrong as it likes.
mod raw {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// The status of the answer.
    pub async fn post(address: &str, headers: &[(&str, &str)], body: &str) -> u16 {
        try_to_post(address, headers, body).await.unwrap()
    }

    /// The same, if the receiver is still there to answer.
    pub async fn try_to_post(address: &str, headers: &[(&str, &str)], body: &str) -> std::io::Result<u16> {
        let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let length = body.len();
        let head =
            format!("POST /x HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}content-length: {length}\r\n\r\n");
        let mut stream = tokio::net::TcpStream::connect(address).await?;
        // One that is too large is answered before it is read, and then the connection may be reset.
        let _ = stream.write_all(&[head.as_bytes(), body.as_bytes()].concat()).await;
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await?;
        Ok(std::str::from_utf8(&answer[9..]).unwrap().parse().unwrap())
    }
}

const BODY: &str = r#"{"type":"asset.active","data":{"asset_id":"ast_1"}}"#;

/// Headers as an implementation that is not ours signs them, `age` seconds ago.
fn signed(body: &str, age: i64) -> Vec<(&'static str, String)> {
    let at = crate::rig::now().as_millis() / 1_000 - age;
    let signature = standardwebhooks::Webhook::new(SECRET).unwrap().sign("evt_1", at, body.as_bytes()).unwrap();
    vec![("webhook-id", "evt_1".into()), ("webhook-timestamp", at.to_string()), ("webhook-signature", signature)]
}

async fn send(listener: &Listener, headers: &[(&str, String)], body: &str) -> u16 {
    let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
    post(&listener.address, &headers, body).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_daemon_delivers_to_it_by_the_lines_that_it_prints() {
    let api = Server::api().await;
    let place = Place::new(&api, "");
    let secret = place.path("secret").display().to_string();
    let mut listener = Listener::start(&place, &["--secret-file", &secret, "--count", "2"]).await;
    let hook = listener.said.split_once("\n\n").unwrap().1.to_owned();
    place.configure(&api.url(), &hook);
    let daemon = Daemon::start(&place).await;
    run(&place, &["add", "active_1"]).await;
    let line = listener.line().await;
    assert!(line.ends_with(" asset.active active_1 signature verified"), "{line}");
    place.until("SELECT count(*) FROM attempts WHERE outcome = 'delivered' AND code = 204", 1).await;
    run(&place, &["add", "censored_2"]).await;
    assert!(listener.line().await.contains(" asset.censored censored_2 "));
    assert_eq!(listener.ended().await, Some(0));
    place.until("SELECT count(*) FROM attempts WHERE outcome = 'delivered'", 2).await;
    assert!(daemon.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_webhook_is_said() {
    let api = Server::api().await;
    let place = Place::new(&api, "");
    let two = format!("whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD\n{SECRET}\n");
    std::fs::write(place.path("secret"), two).unwrap();
    let secret = place.path("secret").display().to_string();
    let mut listener = Listener::start(&place, &["--secret-file", &secret]).await;
    assert!(listener.said.contains("verified with 2 secrets"), "{}", listener.said);
    let tampered = BODY.replace("ast_1", "ast_2\\u001b[31m");
    for (headers, body, answer, says) in [
        (signed(BODY, 0), BODY, 204, " asset.active ast_1 signature verified"),
        (signed(BODY, 280), BODY, 204, " asset.active ast_1 signature verified"),
        (signed(BODY, 0), &tampered, 400, " asset.active ast_2\u{fffd}[31m BAD: the signature does not fit"),
        (signed(BODY, 330), BODY, 400, " BAD: it was signed more than 5 min from now"),
        (signed(BODY, -330), BODY, 400, " BAD: it was signed more than 5 min from now"),
        (vec![], BODY, 400, " BAD: unsigned"),
        (vec![("webhook-signature", "v1,x".into())], "no JSON", 400, " - - BAD: its `webhook-timestamp` is no number"),
        (vec![], &"x".repeat(65_537), 413, " - - BAD: its body is larger than 64 KiB"),
    ] {
        assert_eq!(send(&listener, &headers, body).await, answer, "{says}");
        let line = listener.line().await;
        assert!(line.contains(says), "{line} instead of {says}");
    }
    let in_use = run(&place, &["hooks", "listen", &listener.address]).await;
    assert!(in_use.code == 1 && in_use.err.contains("another program listens there"), "{in_use:?}");
    listener.signal(Signal::INT);
    assert_eq!(listener.ended().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_secret_it_says_so_and_as_json_everything_is_there() {
    let api = Server::api().await;
    let place = Place::new(&api, "");
    let mut listener = Listener::start(&place, &["--json", "-v", "--status", "503"]).await;
    assert!(listener.said.contains("Signatures are not verified"), "{}", listener.said);
    assert_eq!(send(&listener, &signed(BODY, 0), BODY).await, 503);
    let arrival: serde_json::Value = serde_json::from_str(&listener.line().await).unwrap();
    assert_eq!((&arrival["verified"], &arrival["answered"]), (&serde_json::Value::Null, &503.into()));
    assert_eq!(
        (&arrival["asset_id"], &arrival["id"], &arrival["body"]),
        (&"ast_1".into(), &"evt_1".into(), &BODY.into())
    );
    assert!(arrival["headers"].as_array().unwrap().contains(&serde_json::json!(["webhook-id", "evt_1"])));
    listener.signal(Signal::TERM);
    assert_eq!(listener.ended().await, Some(0));
    let mut listener = Listener::start(&place, &["-v"]).await;
    assert_eq!(send(&listener, &signed(BODY, 0), BODY).await, 204);
    assert!(listener.line().await.ends_with(" asset.active ast_1 signature not verified"));
    drop(listener.lines);
    let mut others = 0;
    while others < 100 && try_to_post(&listener.address, &[], BODY).await.is_ok() {
        others += 1;
    }
    let code = tokio::time::timeout(SOON, listener.child.wait()).await.unwrap().unwrap().code();
    assert_eq!(code, Some(0), "its reader has left");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_listened_with_is_named() {
    let api = Server::api().await;
    let place = Place::new(&api, &webhook(&api));
    std::fs::write(place.path("secret"), "hunter2\n").unwrap();
    let secret = place.path("secret").display().to_string();
    for (args, code, says) in [
        (&["nonsense"][..], 1, "nonsense: this is no address"),
        (&["192.0.2.1:80"], 1, "192.0.2.1:80 cannot be listened at"),
        (&["0", "--secret-file", "/nowhere"], 1, "/nowhere cannot be read"),
        (&["0", "--secret-file", &secret], 1, "line 1 of the secret file"),
        (&["0", "--secret-env", "UNSET"], 1, "$UNSET is to hold its secret, but is not set"),
        (&["0", "--secret-env", "A", "--secret-file", "b"], 2, "cannot be used with"),
        (&["0", "--status", "100"], 2, "200..=599"),
        (&["0", "--count", "0"], 2, "invalid value"),
    ] {
        let refused = run(&place, &[&["hooks", "listen"], args].concat()).await;
        assert!(refused.code == code && refused.err.contains(says), "{says}: {refused:?}");
        assert!(!refused.err.contains("hunter2"));
    }
}
