//! The command line: what it prints, and what it exits with.

use std::time::Duration;

use crate::rig::{Daemon, KEY, Place, Reply, SECRET, SOON, Server, eventually, run, run_with, webhook};

#[tokio::test(flavor = "multi_thread")]
async fn add_says_what_it_did_with_each_id() {
    let api = Server::api().await;
    let place = Place::new(&api, "");
    let ids = "ast_1\r\n\nast_2\n..\nast_1\n";
    let added = run_with(&place, &["add", "-"], ids, &[]).await;
    assert_eq!(added.code, 1, "a bad one is among them");
    let lines: Vec<&str> = added.out.lines().collect();
    assert_eq!(lines[..2], ["added ast_1", "added ast_2"]);
    assert!(lines[2].starts_with("watching ast_1 since "), "{lines:?}");
    assert!(added.err.contains("\"..\": an asset id must not be `.` or `..`"), "{}", added.err);
    let as_json = run(&place, &["add", "ast_1", "", "--json"]).await;
    assert_eq!(as_json.code, 1);
    let objects = as_json.json();
    assert_eq!((&objects[0]["result"], &objects[0]["watch"]["state"]), (&"watching".into(), &"waiting".into()));
    assert_eq!(objects[1]["result"], "refused");
}

#[tokio::test(flavor = "multi_thread")]
async fn options_of_a_waiting_watch_are_not_dropped_silently() {
    let api = Server::api().await;
    let place = Place::new(&api, "");
    assert_eq!(run(&place, &["add", "ast_1", "--metadata", r#"{"a":1}"#, "--patience", "2h"]).await.code, 0);
    assert_eq!(run(&place, &["add", "ast_1", "--metadata", r#"{"a":1}"#]).await.code, 0);
    let conflict = run(&place, &["add", "ast_1", "--metadata", r#"{"a":2}"#]).await;
    assert!(conflict.code == 1 && conflict.err.contains("another metadata"), "{conflict:?}");
    assert_eq!(place.ask::<i64>("SELECT patience FROM watches"), Some(7_200_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lone_wait_polls_and_tells_its_outcome() {
    let api = Server::api().await;
    let place = Place::new(&api, "");
    for (args, code, out) in [
        (
            &["wait", "active_1", "active_2"][..],
            0,
            "active_1 active https://cdn.example/active_1\nactive_2 active https://cdn.example/active_2\n",
        ),
        (&["wait", "active_1", "--output", "url"], 0, "https://cdn.example/active_1\n"),
        (&["wait", "active_1", "censored_1", "--output", "status"], 3, "active\ncensored\n"),
        (&["wait", "archive_1", "active_1", "--any", "--output", "status"], 0, "waiting\nactive\n"),
        (
            &["wait", "processing_1", "active_1", "--timeout", "1s", "--output", "url"],
            124,
            "\nhttps://cdn.example/active_1\n",
        ),
        (
            &["wait", "processing_1", "censored_1", "--timeout", "1s", "-q", "--output", "status"],
            3,
            "waiting\ncensored\n",
        ),
    ] {
        let waited = run(&place, args).await;
        assert_eq!((waited.code, waited.out.as_str()), (code, out), "{args:?}: {}", waited.err);
    }
    assert_eq!(run(&place, &["cancel", "processing_1"]).await.code, 0);
    let json = run(&place, &["wait", "active_1", "--json"]).await.json();
    assert_eq!((&json[0]["status"], &json[0]["batch"]), (&"active".into(), &serde_json::Value::Null));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_abandoned_or_unauthorized_wait_has_its_own_code() {
    let api = Server::start(|_| Reply::status(422)).await;
    let place = Place::new(&api, "");
    assert_eq!(run(&place, &["wait", "ast_1"]).await.code, 4);
    let api = Server::start(|_| Reply::status(401)).await;
    let place = Place::new(&api, "");
    let refused = run(&place, &["wait", "ast_1"]).await;
    assert!(refused.code == 5 && refused.err.contains("not authorized"), "{refused:?}");
    assert_eq!(place.state("ast_1").as_deref(), Some("waiting"), "it is not the asset's fault");
}

#[tokio::test(flavor = "multi_thread")]
async fn beside_a_daemon_a_wait_only_looks() {
    let api = Server::api().await;
    let place = Place::new(&api, "");
    let daemon = Daemon::start(&place).await;
    place.until("SELECT count(*) FROM daemons", 1).await;
    let waits = (0..3).map(|_| run(&place, &["wait", "active_1", "active_2"]));
    let waits = futures_util::future::join_all(waits).await;
    assert!(waits.iter().all(|wait| wait.code == 0), "{waits:?}");
    assert_eq!(api.count() as i64, place.ask::<i64>("SELECT sum(polls) FROM watches").unwrap());
    assert_eq!(api.count(), 4, "each is processing once and then active, however many wait");
    let owners = "SELECT count(DISTINCT owner) FROM daemons";
    assert_eq!(place.ask::<i64>(owners), Some(1));
    assert!(daemon.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn lone_waits_for_one_asset_poll_it_once() {
    let api = Server::api().await;
    let place = Place::new(&api, "");
    let waits = (0..3).map(|_| run(&place, &["wait", "active_1"]));
    let waits = futures_util::future::join_all(waits).await;
    assert!(waits.iter().all(|wait| wait.code == 0), "{waits:?}");
    assert_eq!((api.count(), place.ask::<i64>("SELECT polls FROM watches")), (2, Some(2)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_goes_on_when_the_daemon_is_gone() {
    let done = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let seen = std::sync::Arc::clone(&done);
    let api = Server::start(move |request| {
        let status = if seen.load(std::sync::atomic::Ordering::SeqCst) { "active" } else { "processing" };
        Reply::asset(request.asset(), status)
    })
    .await;
    let place = Place::new(&api, "");
    let daemon = Daemon::start(&place).await;
    place.until("SELECT count(*) FROM daemons", 1).await;
    let wait = run(&place, &["wait", "ast_1"]);
    let kill = async {
        api.until(2).await;
        daemon.kill().await;
        done.store(true, std::sync::atomic::Ordering::SeqCst);
    };
    let (wait, ()) = tokio::join!(wait, kill);
    assert_eq!((wait.code, place.state("ast_1").as_deref()), (0, Some("settled")), "{wait:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lone_wait_makes_the_first_attempt_and_leaves_the_rest() {
    let (api, receiver) = (Server::api().await, Server::start(|_| Reply::status(500)).await);
    let place = Place::new(&api, &webhook(&receiver));
    let waited = run(&place, &["wait", "active_1"]).await;
    assert_eq!((waited.code, receiver.count()), (0, 1), "{waited:?}");
    assert!(waited.err.contains("hook cms are left for a running daemon"), "{}", waited.err);
    let shown = run(&place, &["show", "active_1"]).await;
    assert!(shown.out.contains("hook cms: again at "), "{}", shown.out);
}

#[tokio::test(flavor = "multi_thread")]
async fn list_show_cancel_and_events() {
    let api = Server::api().await;
    let place = Place::new(&api, "");
    assert_eq!(run(&place, &["wait", "active_1", "censored_1"]).await.code, 3);
    assert_eq!(run(&place, &["add", "ast_3", "--batch", "tuesday"]).await.code, 0);
    let listed = run(&place, &["list"]).await;
    let first: Vec<&str> = listed.out.lines().next().unwrap().split('\t').collect();
    assert_eq!(first[..4], ["ast_3", "waiting", "-", "0"], "newest first, and tabs in a pipe");
    for (filter, expected) in [
        (["--state", "settled"], vec!["censored_1", "active_1"]),
        (["--status", "censored"], vec!["censored_1"]),
        (["--batch", "tuesday"], vec!["ast_3"]),
        (["--account", "nobody"], vec![]),
        (["--limit", "1"], vec!["ast_3"]),
    ] {
        let listed = run(&place, &["list", "--json", filter[0], filter[1]]).await.json();
        let ids: Vec<&str> = listed.iter().map(|watch| watch["asset_id"].as_str().unwrap()).collect();
        assert_eq!(ids, expected, "{filter:?}");
    }
    assert_eq!(run(&place, &["list", "--state", "gone"]).await.code, 2);
    let cancelled = run(&place, &["cancel", "ast_3", "active_1", "nobody"]).await;
    assert_eq!((cancelled.code, cancelled.out.as_str()), (1, "cancelled ast_3\n"));
    assert!(cancelled.err.contains("active_1: not cancelled, it had ended: active"), "{}", cancelled.err);
    assert!(cancelled.err.contains("no watch of \"nobody\" is known"), "{}", cancelled.err);
    let events = run(&place, &["events", "--json"]).await.json();
    let mut kinds: Vec<&str> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    kinds.sort_unstable();
    assert_eq!(kinds, ["asset.active", "asset.censored", "asset.processing", "asset.processing", "watch.cancelled"]);
    assert_eq!(events[0]["body"]["data"]["account"], "default");
    assert_eq!(run(&place, &["events", "--since", "2999-01-01T00:00:00Z"]).await.out, "");
    assert_eq!(run(&place, &["show", "nobody"]).await.code, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn check_tells_what_to_change() {
    let missing =
        || Reply::Http { status: 404, headers: String::new(), body: br#"{"err":{"code":"NOT_FOUND"}}"#.into() };
    let api = Server::start(move |_| missing()).await;
    let hooks = "[[hooks]]\nname = \"gone\"\ncommand = [\"/nowhere/publish\"]\n";
    let place = Place::new(&api, hooks);
    let checked = run(&place, &["check"]).await;
    assert_eq!(checked.code, 1);
    for line in [
        "ok   configuration",
        "ok   database",
        "ok   account default",
        "BAD  hook gone            the command /nowhere/publish cannot be run: No such file",
    ] {
        assert!(checked.out.contains(line), "{line}: {}", checked.out);
    }
    let refusing = Server::start(|_| Reply::status(401)).await;
    let checked = run(&Place::new(&refusing, ""), &["check"]).await;
    assert!(checked.code == 5 && checked.out.contains("the key is refused"), "{checked:?}");
    let nobody = Place::at("http://127.0.0.1:9", "");
    let checked = run(&nobody, &["check", "--json"]).await;
    assert_eq!(checked.code, 1);
    assert!(checked.json().iter().any(|line| line["finding"] == "bad" && line["what"] == "account default"));
}

/// What `check` says of the account, and its exit code.
async fn checked(url: &str) -> (String, i32) {
    let checked = run(&Place::at(url, ""), &["check", "--json"]).await;
    let line = checked.json().into_iter().find(|line| line["what"] == "account default").unwrap();
    (format!("{} {}", line["finding"].as_str().unwrap(), line["says"].as_str().unwrap()), checked.code)
}

#[tokio::test(flavor = "multi_thread")]
async fn check_tells_a_wrong_key_an_unreachable_host_and_a_wrong_host_apart() {
    let page = |status: u16| {
        let body = b"<html><h1>It works</h1></html>".to_vec();
        move |_: &crate::rig::Request| Reply::Http {
            status,
            headers: "content-type: text/html\r\n".into(),
            body: body.clone(),
        }
    };
    let refused = |status| Server::start(move |_| Reply::status(status));
    for status in [401, 403] {
        let (says, code) = checked(&refused(status).await.url()).await;
        assert!(says.starts_with("unauthorized ") && says.contains("put a valid one into "), "{says}");
        assert!(says.contains("/key, or"), "it says where: {says}");
        assert_eq!(code, 5);
    }
    let (says, code) = checked("http://127.0.0.1:9").await;
    assert!(says.contains("cannot be reached") && says.contains("look at the host and port in `api.url`"), "{says}");
    assert_eq!(code, 1);
    let (says, code) = checked("http://no-such-host.invalid").await;
    assert!(says.contains("cannot be reached") && says.contains("DNS"), "{says}");
    assert_eq!(code, 1);
    for status in [200, 404] {
        let (says, code) = checked(&Server::start(page(status)).await.url()).await;
        assert!(says.contains("it is not the API") && says.contains("put the API's address into `api.url`"), "{says}");
        assert_eq!(code, 1, "{status}");
    }
    // A gateway that has lost the API behind it says so in its own words.
    let (says, code) = checked(&Server::start(page(502)).await.url()).await;
    assert!(says.contains("502") && says.contains("or wait if it is in trouble") && code == 1, "{says}");
    let (says, code) = checked(&Server::start(|_| Reply::json(r#"{"hello":"world"}"#)).await.url()).await;
    assert!(says.contains("not as the API does") && code == 1, "{says}");
    let moved = || Reply::status(301).with_header("location", "https://elsewhere.example/");
    let (says, code) = checked(&Server::start(move |_| moved()).await.url()).await;
    assert!(says.contains("https://elsewhere.example/") && says.contains("redirects are not followed"), "{says}");
    assert_eq!(code, 1);
    let (says, code) = checked(&Server::start(|_| Reply::Hang).await.url()).await;
    assert!(says.contains("can be connected to, but does not answer") && code == 1, "{says}");
    let (says, code) = checked(&refused(404).await.url()).await;
    assert!(says.starts_with("note ") && says.contains("cannot be told") && code == 0, "{says}");
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_usage_and_bad_configurations_have_their_codes() {
    let api = Server::api().await;
    let place = Place::new(&api, "");
    for args in [&["frobnicate"][..], &["add"], &["wait", "x", "--timeout", "soon"], &["add", "x", "--metadata", "{"]] {
        assert_eq!(run(&place, args).await.code, 2, "{args:?}");
    }
    place.configure(&api.url(), "multiplyer = 2\n");
    for args in [&["list"][..], &["run"], &["check"], &["wait", "x"]] {
        let bad = run(&place, args).await;
        assert_eq!(bad.code, 78, "{args:?}");
        assert!(bad.err.contains("assetwatch.toml:11: backoff.multiplyer: unknown key"), "{}", bad.err);
    }
    let keyless = Place::new(&api, "");
    std::fs::remove_file(keyless.path("key")).unwrap();
    let bad = run(&keyless, &["run"]).await;
    assert!(bad.code == 78 && bad.err.contains("key"), "{bad:?}");
    std::fs::write(keyless.path("assetwatch.db"), "this is no database, and nobody overwrites it").unwrap();
    let refused = run(&keyless, &["list"]).await;
    assert!(refused.code == 65 && refused.err.contains("not a SQLite database"), "{refused:?}");
    let kept = std::fs::read_to_string(keyless.path("assetwatch.db")).unwrap();
    assert_eq!(kept, "this is no database, and nobody overwrites it");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_ever_shown() {
    let api = Server::start(|_| Reply::json(format!(r#"{{"err":{{"message":"bad key {KEY}"}}}}"#))).await;
    let receiver = Server::receiver().await;
    let place = Place::new(&api, &webhook(&receiver));
    let daemon = Daemon::start(&place).await;
    run(&place, &["add", "ast_1"]).await;
    place.until("SELECT failures >= 2 FROM watches", 1).await;
    let mut seen = daemon.log();
    for args in
        [&["list"][..], &["show", "ast_1"], &["check"], &["config", "show"], &["events"], &["list", "--json", "-vv"]]
    {
        let said = run(&place, args).await;
        seen += &(said.out + &said.err);
    }
    assert!(daemon.stop().await.success());
    seen += &String::from_utf8_lossy(&std::fs::read(place.path("assetwatch.db")).unwrap());
    assert!(seen.contains("bad key ***"));
    for secret in [KEY, SECRET, SECRET.trim_start_matches("whsec_")] {
        assert!(!seen.contains(secret), "a secret was shown");
    }
}

/// What comes from outside may hold what a terminal obeys.
#[tokio::test(flavor = "multi_thread")]
async fn control_characters_are_never_printed() {
    let api = Server::api().await;
    let place = Place::new(&api, "");
    assert_eq!(run(&place, &["wait", "active_1"]).await.code, 0);
    let evil = "UPDATE watches SET url = 'x' || char(27) || '[31m', last_error = char(7) || char(155), type = char(13)";
    place.database().execute(evil, []).unwrap();
    for args in [&["list"][..], &["show", "active_1"], &["wait", "active_1"], &["wait", "active_1", "--output", "url"]]
    {
        let shown = run(&place, args).await;
        let bad = (shown.out + &shown.err).chars().find(|c| c.is_control() && !"\n\t".contains(*c));
        assert_eq!(bad, None, "{args:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn completions_manual_and_help_name_every_command() {
    let api = Server::api().await;
    let place = Place::new(&api, "");
    let help = run(&place, &["--help"]).await.out;
    let man = run(&place, &["man"]).await.out;
    for shell in ["bash", "zsh", "fish"] {
        assert!(run(&place, &["completions", shell]).await.out.contains("events"), "{shell}");
    }
    let commands = [
        "run",
        "add",
        "wait",
        "list",
        "show",
        "cancel",
        "events",
        "hooks",
        "deliveries",
        "batch",
        "check",
        "config",
        "demo",
        "completions",
        "man",
    ];
    let pages = place.path("pages");
    std::fs::create_dir(&pages).unwrap();
    assert_eq!(run(&place, &["man", "--all-to", pages.to_str().unwrap()]).await.code, 0);
    assert!(pages.join("assetwatch.1").exists() && pages.join("assetwatch-hooks-test.1").exists());
    for command in commands {
        assert!(pages.join(format!("assetwatch-{command}.1")).exists(), "{command}");
        assert!(help.contains(&format!("  {command}")), "{command}: {help}");
        assert!(man.contains(command), "{command}");
        assert!(run(&place, &["man", command]).await.out.contains(".TH"), "{command}");
    }
    assert!(help.contains("124") && man.contains("124"), "the exit codes");
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_followed() {
    let api = Server::api().await;
    let place = Place::new(&api, "");
    run(&place, &["list"]).await;
    let out = std::fs::File::create(place.path("followed")).unwrap();
    let mut follower = tokio::process::Command::new(crate::rig::binary())
        .arg("--config")
        .arg(place.config())
        .args(["events", "--follow"])
        .stdout(out)
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let followed = || std::fs::read_to_string(place.path("followed")).unwrap();
    let number = std::sync::atomic::AtomicU32::new(0);
    // What happened before it looked is not followed, so there has to be something new until it does.
    eventually(SOON, "an event is followed", async || {
        let number = number.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        run(&place, &["wait", &format!("active_{number}")]).await;
        followed().contains(" asset.active active_").then_some(())
    })
    .await;
    follower.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_ends_by_itself() {
    let api = Server::api().await;
    let place = Place::new(&api, "");
    let demo = tokio::time::timeout(Duration::from_secs(120), run(&place, &["demo", "--json"])).await.unwrap();
    assert_eq!(demo.code, 0, "{demo:?}");
    let summary = &demo.json()[0];
    assert_eq!((&summary["webhooks_verified"], &summary["webhooks_forged"]), (&8.into(), &0.into()));
    assert_eq!((&summary["answered_500"], &summary["answered_429"]), (&2.into(), &1.into()));
    assert_eq!(summary["commands_run"], 6);
}

/// Each of these was found by trying to break it.
#[tokio::test(flavor = "multi_thread")]
async fn odd_arguments_have_clear_errors() {
    let api = Server::api().await;
    let place = Place::new(&api, "");
    let long = "a".repeat(100_000);
    for (args, code, said) in [
        (&["wait", "x", "--timeout", "18446744073709551615s"][..], 2, "too large"),
        (&["wait", "x", "--timeout", "99y"], 2, "at most ten years"),
        (&["add", "x", "--patience", "1ns"], 2, "at least a millisecond"),
        (&["add", "x", "--patience", "0s"], 2, "at least a millisecond"),
        (&["add", "x", "--patience", "999us"], 2, "at least a millisecond"),
        (&["events", "--since", "yesterday"], 2, "must be an instant"),
        (&["add", &long], 1, "at most 512 bytes"),
        (&["add", "x", "--account", ""], 2, "1 to 64 of the characters"),
        (&["add", "x", "--account", "a\nb"], 2, "1 to 64 of the characters"),
        (&["add", "y", "--account", "nope"], 0, "names no account \"nope\""),
        (&["list", "--database", "/dev/null"], 1, "not a regular file"),
    ] {
        let run = run(&place, args).await;
        assert_eq!(run.code, code, "{args:.60?}: {run:?}");
        assert!(run.err.to_lowercase().contains(&said.to_lowercase()), "{said}: {}", run.err);
        assert!(run.err.len() < 1_000, "{}", run.err.len());
    }
    let odd = place.path(":memory:").display().to_string();
    assert_eq!(run(&place, &["add", "x", "--database", &odd]).await.code, 0);
    assert_eq!(run(&place, &["list", "--database", &odd]).await.out.lines().count(), 1);
    let fifo = std::process::Command::new("mkfifo").arg(place.path("fifo")).status().unwrap();
    assert!(fifo.success());
    std::fs::remove_file(place.path("key")).unwrap();
    std::os::unix::fs::symlink(place.path("fifo"), place.path("key")).unwrap();
    let bad = run(&place, &["run"]).await;
    assert!(bad.code == 78 && bad.err.contains("a pipe, not a file"), "{bad:?}");
}
