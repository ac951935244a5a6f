//! What `/metrics` says of a daemon, and what reads it: promtool, the alerts and the dashboard in `docs/`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use assetwatch::meter::{INSTRUMENTS, Kind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;

use crate::rig::{Daemon, Place, Reply, SOON, Server, eventually, run, webhook};

/// Where `.ci/run` puts it, or else where the machine has it.
fn promtool() -> Option<PathBuf> {
    let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/bin/promtool");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = [ours].into_iter().chain(std::env::split_paths(&path).map(|place| place.join("promtool")));
    let found = found.into_iter().find(|path| path.exists());
    if found.is_none() {
        println!("skipped: there is no promtool (`.ci/run` gets it from Debian's package prometheus)");
    }
    found
}

/// Runs promtool, which has to be content and to say nothing but `said`.
async fn assert_content(promtool: &Path, args: &[&str], stdin: &str, said: &str) {
    let mut child = Command::new(promtool)
        .args(args)
        .current_dir(docs())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(stdin.as_bytes()).await.unwrap();
    drop(input);
    let output = child.wait_with_output().await.unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && err.is_empty() && out.contains(said), "{args:?}: {out}{err}");
    assert!(!said.is_empty() || out.is_empty(), "{args:?}: {out}");
}

fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs")
}

fn read(name: &str) -> String {
    std::fs::read_to_string(docs().join(name)).unwrap()
}

/// What the daemon says at `/metrics`.
async fn scrape(address: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
    body.to_owned()
}

/// Waits until it says all of these lines at once.
async fn until_said(address: &str, lines: &[&str]) -> String {
    let what = format!("/metrics says {lines:?}");
    eventually(SOON, &what, async || {
        let text = scrape(address).await;
        lines.iter().all(|line| text.lines().any(|found| found == *line)).then_some(text)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_says_how_it_stands() {
    let api = Server::api().await;
    let receiver = Server::start(|_| Reply::status(503)).await;
    let more = format!(
        "[accounts.studio]\nkey_file = \"key\"\n[http]\nlisten = \"127.0.0.1:0\"\n[callbacks]\nsecret_file = \"secret\"\n{}",
        webhook(&receiver)
    );
    let place = Place::new(&api, &more);
    let daemon = Daemon::start(&place).await;
    let log = daemon.log();
    let address = log.split_once("listening on http://").unwrap().1.lines().next().unwrap().to_owned();
    let callback = ["add", "active_2", "--callback", "http://127.0.0.1:9/x"];
    for args in [&["add", "active_1", "pending_1"][..], &callback, &["add", "pending_2", "--account", "studio"]] {
        assert_eq!(run(&place, args).await.code, 0);
    }
    let odd = "INSERT INTO watches (asset_id, account) VALUES ('x', 'lost\n{}'), ('y', 'gone');
         INSERT INTO hooks (name, last_error) VALUES ('old', 'x');
         UPDATE events SET type = type;";
    place.database().execute_batch(odd).unwrap();
    let lines = [
        r#"assetwatch_watches_waiting{account="(not configured)"} 2"#,
        r#"assetwatch_watches_waiting{account="default"} 1"#,
        r#"assetwatch_watches_waiting{account="studio"} 1"#,
        r#"assetwatch_watches_settled_total{account="default",status="active"} 2"#,
        r#"assetwatch_polls_total{account="default",outcome="settled"} 2"#,
        r#"assetwatch_account_allowed_polls_per_second{account="studio"} 10000"#,
        r#"assetwatch_account_closed{account="default",reason="unauthorized"} 0"#,
        r#"assetwatch_deliveries{hook="cms",state="waiting"} 2"#,
        r#"assetwatch_deliveries{hook="callback:*",state="held"} 1"#,
        r#"assetwatch_deliveries{hook="(not configured)",state="held"} 0"#,
        r#"assetwatch_hook_state{hook="cms",state="failing"} 1"#,
        r#"assetwatch_leases_lost_total{pump="poller"} 0"#,
    ];
    let text = until_said(&address, &lines).await;
    assert_bounded(&text);
    if let Some(promtool) = promtool() {
        assert_content(&promtool, &["check", "metrics"], &text, "").await;
    }
    // The watches of the others do not count for ever.
    place.database().execute_batch("DELETE FROM watches WHERE account NOT IN ('default', 'studio')").unwrap();
    until_said(&address, &[r#"assetwatch_watches_waiting{account="(not configured)"} 0"#]).await;
    assert!(daemon.stop().await.success());
}

/// Every series is one of ours, with help and type, and no label value comes from outside.
fn assert_bounded(text: &str) {
    let base = |series: &str| {
        let name = series.split(['{', ' ']).next().unwrap().to_owned();
        let of_histogram = |instrument: &&assetwatch::meter::Instrument| {
            let parts = ["_bucket", "_sum", "_count"];
            matches!(instrument.kind, Kind::Histogram(_))
                && parts.iter().any(|part| name.strip_suffix(part) == Some(instrument.name))
        };
        INSTRUMENTS.iter().find(of_histogram).map_or(name.clone(), |instrument| instrument.name.to_owned())
    };
    for series in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let name = base(series);
        assert!(INSTRUMENTS.iter().any(|instrument| instrument.name == name), "{series}");
        for comment in ["HELP", "TYPE"] {
            assert!(text.contains(&format!("# {comment} {name} ")), "{comment} {name}");
        }
        for foreign in ["lost", "gone", "old", "127.0.0.1", "_1", "_2"] {
            assert!(!series.split('}').next().unwrap().contains(&format!("\"{foreign}")), "{series}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_alerts_are_what_prometheus_takes_and_fire_when_they_should() {
    let Some(promtool) = promtool() else { return };
    assert_content(&promtool, &["check", "rules", "alerts.yml"], "", "SUCCESS").await;
    assert_content(&promtool, &["test", "rules", "alerts.test.yml"], "", "SUCCESS").await;
}

/// The names of series in a text.
fn names(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| ["assetwatch_", "process_"].iter().any(|prefix| word.starts_with(prefix))).collect()
}

#[test]
fn alerts_dashboard_and_documentation_name_what_there_is() {
    let known: BTreeSet<String> = INSTRUMENTS
        .iter()
        .flat_map(|instrument| match instrument.kind {
            Kind::Histogram(_) => {
                ["", "_bucket", "_sum", "_count"].map(|part| format!("{}{part}", instrument.name)).into()
            }
            Kind::Counter | Kind::Gauge => vec![instrument.name.to_owned()],
        })
        .collect();
    for file in ["alerts.yml", "alerts.test.yml", "dashboard.json", "monitoring.md"] {
        let text = read(file);
        let unknown: Vec<&str> = names(&text).into_iter().filter(|name| !known.contains(*name)).collect();
        assert!(unknown.is_empty(), "{file} names what there is not: {unknown:?}");
    }
    let documentation = read("monitoring.md");
    let documented = names(&documentation);
    for instrument in INSTRUMENTS {
        assert!(documented.contains(instrument.name), "docs/monitoring.md does not name {}", instrument.name);
    }
}

#[test]
fn each_alert_is_tested_and_says_what_to_do() {
    let (alerts, tests) = (read("alerts.yml"), read("alerts.test.yml"));
    let named: Vec<&str> = alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(named.len() > 10, "{named:?}");
    for name in &named {
        assert!(tests.contains(&format!("alertname=\"{name}\"")), "{name} is not tested");
    }
    for field in ["summary: ", "description: ", "severity: "] {
        assert_eq!(alerts.matches(field).count(), named.len(), "{field}");
    }
}

#[test]
fn the_dashboard_is_whole() {
    let dashboard: serde_json::Value = serde_json::from_str(&read("dashboard.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len(), "an id comes twice");
    for panel in panels.iter().filter(|panel| panel["type"] != "row") {
        let targets = panel["targets"].as_array().unwrap();
        assert!(!targets.is_empty() && !panel["description"].as_str().unwrap().is_empty(), "{panel}");
        assert!(targets.iter().all(|target| target["expr"].as_str().is_some_and(|expr| !expr.is_empty())), "{panel}");
    }
}
