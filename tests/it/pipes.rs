//! Terminals that are closed and readers who leave: what was done and what the exit code says do not depend on them.

use std::process::Stdio;

use assetwatch::control::AddOptions;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};

use crate::rig::{Place, Reply, SOON, Server, binary, eventually};

const LEASED: &str = "SELECT count(*) FROM watches WHERE lease_owner IS NOT NULL";

fn spawn(program: &mut Command) -> Child {
    program.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true).spawn().unwrap()
}

fn assetwatch(place: &Place, args: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.arg("--config").arg(place.config()).args(args).env_clear();
    command
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_raw(child.id().unwrap() as i32).unwrap(), signal).unwrap();
}

async fn ended(mut child: Child) -> Option<i32> {
    tokio::time::timeout(SOON, child.wait()).await.expect("it ends").unwrap().code()
}

/// The exit code where nobody reads what is printed.
async fn unheard(place: &Place, args: &[&str], stdin: &str) -> Option<i32> {
    let mut child = spawn(&mut assetwatch(place, args));
    drop(child.stdout.take());
    let mut input = child.stdin.take().unwrap();
    let stdin = stdin.to_owned();
    tokio::spawn(async move { drop(input.write_all(stdin.as_bytes()).await) });
    ended(child).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_exit_code_is_the_same_when_nobody_reads() {
    let api = Server::api().await;
    let place = Place::new(&api, "[[hooks]]\nname = \"gone\"\ncommand = [\"/nowhere/publish\"]\n");
    for (args, code) in [
        (&["wait", "active_1"][..], 0),
        (&["wait", "censored_1", "--output", "url"], 3),
        (&["wait", "processing_1", "--timeout", "100ms", "--json"], 124),
        (&["cancel", "processing_1", "active_1"], 1),
        (&["check"], 1),
        (&["list"], 0),
    ] {
        assert_eq!(unheard(&place, args, "").await, Some(code), "{args:?}");
    }
    assert_eq!(place.state("processing_1").as_deref(), Some("cancelled"));
}

#[tokio::test(flavor = "multi_thread")]
async fn all_ids_are_added_when_nobody_reads() {
    let api = Server::api().await;
    let place = Place::new(&api, "");
    let ids: String = (0..25_000).map(|number| format!("ast_{number}\n")).collect();
    let metadata = format!("{:?}", "m".repeat(2_048));
    let options = AddOptions { metadata: Some(metadata.clone()), ..AddOptions::default() };
    assert!(options.ids_at_once() < 25_000, "they do not stand in one transaction");
    assert_eq!(unheard(&place, &["add", "-", "--metadata", &metadata], &ids).await, Some(0));
    assert_eq!(place.ask::<i64>("SELECT count(*) FROM watches"), Some(25_000));
    assert_eq!(unheard(&place, &["add", "-", "--json"], "..\nlast\n").await, Some(1));
    assert_eq!(place.state("last").as_deref(), Some("waiting"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_terminal_ends_a_wait_and_its_leases_are_handed_back() {
    let api = Server::start(|_| Reply::Hang).await;
    let place = Place::new(&api, "");
    let wait = spawn(&mut assetwatch(&place, &["wait", "ast_1"]));
    api.until(1).await;
    assert_eq!(place.ask::<i64>(LEASED), Some(1));
    signal(&wait, Signal::HUP);
    assert_eq!(ended(wait).await, Some(130));
    assert_eq!(place.ask::<i64>(LEASED), Some(0));
}

/// `nohup assetwatch wait …` is to outlive its terminal.
#[tokio::test(flavor = "multi_thread")]
async fn a_wait_that_is_to_ignore_a_closed_terminal_does() {
    let api = Server::api().await;
    let place = Place::new(&api, "");
    let mut command = Command::new("/bin/sh");
    command.args(["-c", r#"trap "" HUP; exec "$0" "$@""#]).arg(binary()).arg("--config").arg(place.config());
    let wait = spawn(command.args(["wait", "processing_1"]));
    api.until(1).await;
    signal(&wait, Signal::HUP);
    let polls = api.count();
    api.until(polls + 3).await;
    signal(&wait, Signal::TERM);
    assert_eq!(ended(wait).await, Some(130));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_terminal_ends_a_demo() {
    let api = Server::api().await;
    let place = Place::new(&api, "");
    let err = place.path("demo");
    let mut command = assetwatch(&place, &["demo", "--keep"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(std::fs::File::create(&err).unwrap());
    let demo = command.kill_on_drop(true).spawn().unwrap();
    eventually(SOON, "it has begun", async || {
        std::fs::read_to_string(&err).unwrap().contains("processing").then_some(())
    })
    .await;
    signal(&demo, Signal::HUP);
    assert_eq!(ended(demo).await, Some(130));
}

/// What is seen of a text that moves the cursor and clears lines.
fn printable(text: &str) -> String {
    let mut parts = text.split('\u{1b}');
    let first = parts.next().unwrap().to_owned();
    first + &parts.map(|part| part.split_once(|c: char| c.is_ascii_alphabetic()).unwrap().1).collect::<String>()
}

/// On a terminal: util-linux's `script` is one.
#[tokio::test(flavor = "multi_thread")]
async fn log_lines_and_live_lines_do_not_tear_each_other() {
    let api = Server::api().await;
    let place = Place::new(&api, "");
    let line = format!(
        "{} --config {} wait active_1 active_2 active_3 -v --color never",
        binary().display(),
        place.config().display()
    );
    let mut command = Command::new("script");
    command.args(["-qec", &line, "/dev/null"]).env("TERM", "xterm").stdin(Stdio::null());
    let output = match command.output().await {
        Ok(output) => output,
        Err(error) => return println!("skipped, there is no script(1): {error}"),
    };
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let logged: Vec<_> = text.match_indices("  INFO settled").collect();
    assert_eq!(logged.len(), 3, "{text:?}");
    for (at, _) in logged {
        let before = text[..at].rsplit(['\r', '\n']).next().unwrap();
        assert!(printable(before).starts_with("20"), "torn: {before:?}");
        let after = text[at..].split_once('\n').unwrap().0;
        assert!(after.trim_end().ends_with(|c: char| c.is_ascii_digit()), "torn: {after:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn to_wait_for_nothing_is_no_success_and_ends() {
    let api = Server::api().await;
    let place = Place::new(&api, "");
    for args in [&["wait", "-"][..], &["wait", "--any", "-"]] {
        assert_eq!(unheard(&place, args, "\n").await, Some(1), "{args:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_cannot_be_written_ends_nothing() {
    let api = Server::api().await;
    for format in ["text", "json"] {
        let place = Place::new(&api, "");
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let mut run = assetwatch(&place, &["--log-format", format, "run"]);
        let daemon = run.stdin(Stdio::null()).stdout(Stdio::null()).stderr(full).kill_on_drop(true).spawn().unwrap();
        assert_eq!(unheard(&place, &["add", "active_1"], "").await, Some(0));
        place.until("SELECT count(*) FROM watches WHERE state = 'settled'", 1).await;
        signal(&daemon, Signal::TERM);
        assert_eq!(ended(daemon).await, Some(0), "{format}");
    }
}
