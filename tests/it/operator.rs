//! What an operator does with hooks and deliveries, through the real binary and beside a real daemon.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::rig::{Daemon, Place, Reply, SECRET, Server, executable, is_signed, run, webhook};

/// A receiver that answers 503 until it is mended.
async fn flaky() -> (Server, std::sync::Arc<AtomicBool>) {
    let mended = std::sync::Arc::new(AtomicBool::new(false));
    let seen = std::sync::Arc::clone(&mended);
    let server = Server::start(move |_| Reply::status(if seen.load(Ordering::SeqCst) { 204 } else { 503 })).await;
    (server, mended)
}

const DEAD: &str = "SELECT count(*) FROM deliveries WHERE state = 'dead'";
const DELIVERED: &str = "SELECT count(*) FROM deliveries WHERE state = 'delivered'";

#[tokio::test(flavor = "multi_thread")]
async fn what_was_given_up_on_is_listed_and_retried() {
    let ((receiver, mended), api) = (flaky().await, Server::api().await);
    let place = Place::new(&api, &format!("{}schedule = []\n", webhook(&receiver)));
    let _daemon = Daemon::start(&place).await;
    run(&place, &["add", "active_1", "active_2", "active_3"]).await;
    place.until(DEAD, 3).await;
    let listed = run(&place, &["deliveries", "list", "--state", "dead"]).await.out;
    let row: Vec<&str> = listed.lines().next().unwrap().split('\t').collect();
    assert_eq!((row[1], row[3], row[4], row[5]), ("asset.active", "cms", "dead", "1"), "{listed}");
    assert!(row[7].contains("503"), "{listed}");
    let json = run(&place, &["deliveries", "list", "--hook", "cms", "--limit", "2", "--json"]).await.json();
    assert_eq!((json.len(), &json[0]["state"], &json[0]["type"]), (2, &"dead".into(), &"asset.active".into()));
    let hooks = run(&place, &["hooks", "list", "--json"]).await.json();
    assert_eq!((&hooks[0]["name"], &hooks[0]["dead"]), (&"cms".into(), &3.into()));
    mended.store(true, Ordering::SeqCst);
    let one = json[0]["id"].to_string();
    let retried = run(&place, &["deliveries", "retry", &one, "999"]).await;
    assert_eq!((retried.code, retried.out), (1, format!("delivery {one} to cms is due now\n")));
    assert!(retried.err.contains("there is no delivery 999"), "{}", retried.err);
    place.until(DELIVERED, 1).await;
    assert_eq!(run(&place, &["deliveries", "retry", "--dead", "--since", "0s"]).await.code, 0);
    let future = run(&place, &["deliveries", "retry", "--dead", "--since", "2999-01-01T00:00:00Z"]).await;
    assert_eq!(future.out, "0 dead deliveries are due now\n");
    let all = run(&place, &["deliveries", "retry", "--dead", "--hook", "cms", "--json"]).await.json();
    assert_eq!(all[0]["held"], 0);
    place.until(DELIVERED, 3).await;
    let again = run(&place, &["deliveries", "retry", &one, "--json"]).await.json();
    assert_eq!((&again[0]["result"], &again[0]["hook"]), (&"due".into(), &"cms".into()));
    place.until("SELECT max(attempts) FROM deliveries", 3).await;
    let ids = receiver.requests();
    let ids: std::collections::BTreeSet<_> = ids.iter().map(|request| request.header("webhook-id")).collect();
    assert_eq!(ids.len(), 3, "the same id on every attempt, by hand as well");
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_input_is_named() {
    let api = Server::api().await;
    let receiver = Server::receiver().await;
    let place = Place::new(&api, &webhook(&receiver));
    for args in [
        &["deliveries", "retry"][..],
        &["deliveries", "retry", "x"],
        &["deliveries", "retry", "1", "--dead"],
        &["deliveries", "retry", "1", "--hook", "cms"],
        &["deliveries", "list", "--state", "gone"],
        &["hooks", "test"],
        &["hooks"],
    ] {
        assert_eq!(run(&place, args).await.code, 2, "{args:?}");
    }
    for args in [
        &["hooks", "enable", "csm"][..],
        &["hooks", "disable", "csm"],
        &["hooks", "test", "csm"],
        &["deliveries", "list", "--hook", "csm"],
        &["deliveries", "retry", "--dead", "--hook", "csm"],
    ] {
        let wrong = run(&place, args).await;
        assert_eq!(wrong.code, 1, "{args:?}");
        assert!(wrong.err.contains("no hook is named \"csm\"; did you mean \"cms\"?"), "{args:?}: {}", wrong.err);
    }
    let hostile = run(&place, &["hooks", "enable", "\u{1b}[2J"]).await;
    assert!(hostile.code == 1 && !hostile.err.contains('\u{1b}'), "{hostile:?}");
    assert_eq!(place.ask::<i64>("SELECT count(*) FROM hooks"), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disabled_hook_is_not_told_until_it_is_enabled() {
    let (api, receiver, other) = (Server::api().await, Server::receiver().await, Server::receiver().await);
    let watching = webhook(&other).replace("\"cms\"", "\"watching\"") + "on = [\"hook.disabled\"]\n";
    let place = Place::new(&api, &format!("{}{watching}", webhook(&receiver)));
    run(&place, &["wait", "active_1"]).await;
    let disabled = run(&place, &["hooks", "disable", "cms", "--reason", "the CMS moves"]).await;
    assert!(disabled.code == 0 && disabled.out.starts_with("disabled cms; "), "{disabled:?}");
    assert_eq!(run(&place, &["hooks", "disable", "cms"]).await.out, "cms was disabled before\n");
    let daemon = Daemon::start(&place).await;
    let told = other.until(1).await.remove(0).json();
    assert_eq!((&told["type"], &told["data"]["reason"]), (&"hook.disabled".into(), &"the CMS moves".into()));
    let listed = run(&place, &["hooks", "list"]).await.out;
    let row: Vec<&str> = listed.lines().find(|line| line.starts_with("cms\t")).unwrap().split('\t').collect();
    assert!(row[1].starts_with("webhook http://127.0.0.1") && row[1].ends_with("/…"), "{listed}");
    assert!(row[2].starts_with("disabled since ") && row[2].ends_with(": the CMS moves"), "{listed}");
    let json = run(&place, &["hooks", "list", "--json"]).await.json();
    assert_eq!((&json[0]["state"], &json[1]["name"]), (&"disabled".into(), &"watching".into()));
    let held = "UPDATE deliveries SET state = 'held', finished_at = NULL WHERE hook = 'cms'";
    place.database().execute(held, []).unwrap();
    assert_eq!(run(&place, &["hooks", "list", "--json"]).await.json()[0]["held"], 1);
    let id = place.ask::<i64>("SELECT id FROM deliveries WHERE hook = 'cms'").unwrap().to_string();
    let retried = run(&place, &["deliveries", "retry", &id]).await;
    assert!(retried.code == 0 && retried.out.contains("is held: hook cms is disabled; `assetwatch hooks enable cms`"));
    let enabled = run(&place, &["hooks", "enable", "cms", "--json"]).await.json();
    assert_eq!(enabled[0], serde_json::json!({"hook": "cms", "released": 1}));
    receiver.until(2).await;
    run(&place, &["add", "active_2"]).await;
    place.until_state("active_2", "settled").await;
    place.until("SELECT count(*) FROM deliveries WHERE state <> 'delivered'", 0).await;
    assert!(daemon.stop().await.success());
    let events = run(&place, &["events"]).await.out;
    assert!(events.contains(" hook.disabled hook=cms reason=the CMS moves"), "{events}");
}

/// To be enabled ends a streak of failures, and is no success.
#[tokio::test(flavor = "multi_thread")]
async fn a_hook_that_was_enabled_is_not_said_to_fail() {
    let ((receiver, mended), api) = (flaky().await, Server::api().await);
    let place = Place::new(&api, &webhook(&receiver));
    run(&place, &["wait", "active_1"]).await;
    let state = async || {
        let listed = run(&place, &["hooks", "list"]).await.out;
        listed.split('\t').nth(2).unwrap_or_default().to_owned()
    };
    assert_eq!(state().await, "failing (1 in a row)");
    run(&place, &["hooks", "disable", "cms"]).await;
    run(&place, &["hooks", "enable", "cms"]).await;
    assert_eq!(state().await, "nothing delivered yet");
    assert_eq!(run(&place, &["hooks", "list", "--json"]).await.json()[0]["failures"], 0);
    mended.store(true, Ordering::SeqCst);
    run(&place, &["wait", "active_2"]).await;
    assert_eq!(state().await, "ok");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_test_is_a_real_delivery_with_an_entry_in_the_ledger() {
    let api = Server::api().await;
    let receiver = Server::start(|_| Reply::json("{\"thanks\": \"\u{9b}31m\"}")).await;
    let place = Place::new(&api, &webhook(&receiver));
    let tested = run(&place, &["hooks", "test", "cms", "--status", "censored"]).await;
    assert_eq!(tested.code, 0, "{tested:?}");
    let got = receiver.until(1).await.remove(0);
    assert!(is_signed(&got));
    assert_eq!((&got.json()["type"], &got.json()["data"]["status"]), (&"test".into(), &"censored".into()));
    for name in ["webhook-id", "webhook-timestamp", "webhook-signature", "content-type"] {
        let header = format!("  {name}: {}\n", got.header(name).unwrap());
        assert!(tested.out.contains(&header), "{header}: {}", tested.out);
    }
    assert!(tested.out.contains(std::str::from_utf8(&got.body).unwrap()), "the body: {}", tested.out);
    assert!(
        tested
            .out
            .contains("answered 200\n  content-type: application/json\n  body:\n    {\"thanks\": \"\u{fffd}31m\"}\n"),
        "{}",
        tested.out
    );
    let all = format!("{}{}", tested.out, tested.err);
    assert!(!all.contains(SECRET.trim_start_matches("whsec_")) && !all.contains("/hook\n"), "{all}");
    let ledger = "SELECT type || ' ' || state || ' ' || outcome || ' ' || code FROM deliveries
                  JOIN events ON seq = event_seq JOIN attempts ON delivery_id = deliveries.id";
    assert_eq!(place.ask::<String>(ledger).unwrap(), "test delivered delivered 200");
    assert_eq!(place.ask::<i64>("SELECT count(*) FROM hooks"), Some(0), "it says nothing about how the hook stands");
    let json = run(&place, &["hooks", "test", "cms", "--json"]).await.json();
    assert_eq!((&json[0]["outcome"], &json[0]["code"]), (&"delivered".into(), &200.into()));
    assert_ne!(json[0]["event_id"], got.header("webhook-id").unwrap(), "each test is an event of its own");
    assert!(run(&place, &["events"]).await.out.contains(" test ast_test "));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_test_that_fails_is_not_repeated() {
    let api = Server::api().await;
    let receiver = Server::start(|_| Reply::status(503).with_header("retry-after", "120")).await;
    let place = Place::new(&api, "");
    let script = place.path("publish").display().to_string();
    executable(&place.path("publish"), "echo \"got $HOOK_STATUS\"; echo oops >&2; exit 3");
    let hooks = format!(
        "{}[[hooks]]\nname = \"publish\"\ncommand = [{script:?}]\n\
         [[hooks]]\nname = \"gone\"\ncommand = [\"/nowhere/publish\"]\n",
        webhook(&receiver)
    );
    place.configure(&api.url(), &hooks);
    let failed = run(&place, &["hooks", "test", "cms"]).await;
    assert!(failed.code == 1 && failed.out.contains("answered 503\n  retry-after: 120\n"), "{failed:?}");
    assert!(failed.err.contains("the receiver answered 503"), "{failed:?}");
    let command = run(&place, &["hooks", "test", "publish"]).await;
    assert!(command.code == 1 && command.out.contains(&format!("stdin of command {script}\n")), "{command:?}");
    let said = "exited with 3\n  stdout:\n    got active\n  stderr:\n    oops\nfailed; ";
    assert!(command.out.contains(said), "{command:?}");
    let gone = run(&place, &["hooks", "test", "gone"]).await;
    assert!(gone.code == 1 && gone.err.contains("/nowhere/publish"), "{gone:?}");
    assert_eq!(place.ask::<i64>(DEAD), Some(3));
    let nothing = run(&place, &["deliveries", "retry", "--dead"]).await;
    assert_eq!(nothing.out, "0 dead deliveries are due now\n", "nobody misses a test");
    let daemon = Daemon::start(&place).await;
    run(&place, &["wait", "active_1"]).await;
    place.until("SELECT count(*) FROM attempts WHERE outcome = 'failed'", 4).await;
    assert_eq!(place.ask::<i64>("SELECT max(attempts) FROM deliveries WHERE watch_id IS NULL"), Some(1));
    assert!(daemon.stop().await.success());
    std::fs::remove_file(place.path("secret")).unwrap();
    let unusable = run(&place, &["hooks", "test", "cms"]).await;
    assert!(unusable.code == 1 && unusable.err.contains("the secret file"), "{unusable:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_test_ends_what_it_began() {
    let (api, receiver) = (Server::api().await, Server::start(|_| Reply::Hang).await);
    let place = Place::new(&api, &webhook(&receiver));
    let mut test = tokio::process::Command::new(crate::rig::binary());
    test.arg("--config").arg(place.config()).args(["hooks", "test", "cms", "--json"]);
    let test = test.stdout(std::process::Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    receiver.until(1).await;
    let pid = rustix::process::Pid::from_raw(test.id().unwrap() as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let ended = test.wait_with_output().await.unwrap();
    assert_eq!(ended.status.code(), Some(130));
    let said: serde_json::Value = serde_json::from_slice(&ended.stdout).unwrap();
    assert_eq!(said["outcome"], "interrupted");
    let ledger = "SELECT state || ' ' || outcome FROM deliveries JOIN attempts ON delivery_id = deliveries.id";
    assert_eq!(place.ask::<String>(ledger).unwrap(), "dead interrupted");
}

#[tokio::test(flavor = "multi_thread")]
async fn show_explains_each_hook() {
    let ((receiver, _), api) = (flaky().await, Server::api().await);
    let hook = |name: &str, more: &str| format!("[[hooks]]\nname = \"{name}\"\ncommand = [\"/bin/true\"]\n{more}");
    let hooks = [
        webhook(&receiver) + "on = [\"processing\", \"settled\"]\n",
        hook("told", ""),
        hook("other", "on = [\"censored\"]\n"),
        hook("studio", "accounts = [\"studio\"]\n"),
        hook("tuesday", "batches = [\"tuesday\"]\n"),
    ];
    let accounts = "[accounts.studio]\nkey_file = \"key\"\n";
    let place = Place::new(&api, &format!("{accounts}{}", hooks.concat()));
    let why = async |asset: &str, hook: &str| {
        let shown = run(&place, &["show", asset, "--json"]).await.json();
        let told = shown[0]["hooks"].as_array().unwrap().iter().find(|told| told["hook"] == hook).cloned();
        let told = told.unwrap_or_default();
        (told["why"].as_str().unwrap_or_default().to_owned(), told["change"].as_str().unwrap_or_default().to_owned())
    };
    run(&place, &["wait", "active_1", "-q"]).await;
    for (hook, says, change) in [
        ("told", "told, with attempt 1", ""),
        (
            "other",
            "no: its `on` names censored, and this was asset.active",
            "add \"asset.active\" to `on` of hook `other`",
        ),
        ("studio", "no: its `accounts` names studio, and this is of account default", "add \"default\" to `accounts`"),
        ("tuesday", "no: its `batches` names tuesday, and this is of no batch", "remove `batches`"),
        ("cms", "again at ", "no daemon is running on this database: start it with `assetwatch run`"),
    ] {
        let (why, changes) = why("active_1", hook).await;
        assert!(why.starts_with(says) && changes.starts_with(change), "{hook}: {why}; {changes}");
    }
    let (id, database) = ("(SELECT max(id) FROM deliveries WHERE hook = 'cms')", place.database());
    let set = |sql: &str| database.execute_batch(&format!("UPDATE deliveries SET {sql} WHERE id = {id}")).unwrap();
    let cms = async || why("active_1", "cms").await;
    database.execute_batch("INSERT OR REPLACE INTO hooks (name, held_until) VALUES ('cms', 9e12)").unwrap();
    assert!(cms().await.0.starts_with("the receiver asked to be left alone until 2255-"), "{:?}", cms().await);
    let failing = "INSERT OR REPLACE INTO hooks (name, failures, failing_since, next_probe_at, last_error)
                   VALUES ('cms', 7, 1, 9000000000000, '503')";
    database.execute_batch(failing).unwrap();
    assert!(cms().await.0.starts_with("the hook has failed 7 times in a row (503); a single attempt at 2255-"));
    set("state = 'held', due_at = NULL, last_error = 'blocked by the guard'");
    let (says, change) = cms().await;
    assert!(says.ends_with("configuration is changed: blocked by the guard") && change.contains("deliveries retry"));
    let disabled = "INSERT OR REPLACE INTO hooks (name, disabled_at, disabled_reason) VALUES ('cms', 1, '410')";
    database.execute_batch(disabled).unwrap();
    let (says, change) = cms().await;
    assert!(says.starts_with("held: the hook is disabled since 1970-01-01T00:00:00.001Z (410)"), "{says}");
    assert_eq!(change, "`assetwatch hooks enable cms` releases it");
    set("state = 'dead', finished_at = 1");
    assert!(cms().await.0.starts_with("given up on after 1 attempt: blocked by"), "{:?}", cms().await);
    let text = run(&place, &["show", "active_1"]).await.out;
    assert!(text.contains("hook cms: given up on") && text.contains("\n  `assetwatch deliveries retry "), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn show_names_what_stands_before() {
    let api = Server::api().await;
    let place = Place::new(&api, "[[hooks]]\nname = \"cms\"\ncommand = [\"/bin/true\"]\n");
    run(&place, &["wait", "active_1", "-q"]).await;
    place
        .database()
        .execute_batch(
            "UPDATE deliveries SET state = 'held', due_at = NULL, finished_at = NULL;
             INSERT INTO events (id, watch_id, type, body, created_at) SELECT 'late', 1, 'asset.late', x'', 0;
             INSERT INTO deliveries (event_seq, hook, watch_id, due_at, created_at)
                 SELECT seq, 'cms', 1, 0, 0 FROM events WHERE id = 'late';
             UPDATE watches SET status = 'late'",
        )
        .unwrap();
    let shown = run(&place, &["show", "active_1"]).await.out;
    let says = "hook cms: blocked: what came before it, delivery 1, is held, and a hook is told in order";
    assert!(shown.contains(says), "{shown}");
    place.configure(&api.url(), "");
    let shown = run(&place, &["show", "active_1"]).await.out;
    assert!(shown.contains("hook cms: blocked"), "a hook that is gone is explained as well: {shown}");
    let retried = run(&place, &["deliveries", "retry", "1"]).await;
    assert!(retried.err.contains("names no hook \"cms\"; nothing attempts it"), "{retried:?}");
    assert!(retried.err.contains("No daemon is running"), "{retried:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_came_from_outside_is_obeyed_by_a_terminal() {
    let api = Server::api().await;
    let place = Place::new(&api, "[[hooks]]\nname = \"cms\"\ncommand = [\"/bin/true\"]\n");
    run(&place, &["add", "active_1", "--batch", "b", "--close"]).await;
    run(&place, &["wait", "active_1", "-q"]).await;
    let evil = "char(27) || '[2J' || char(155) || char(8238) || char(10)";
    place
        .database()
        .execute_batch(&format!(
            "UPDATE deliveries SET state = 'dead', due_at = NULL, finished_at = 1, last_error = {evil};
             UPDATE events SET id = {evil}, type = {evil} WHERE watch_id IS NULL;
             UPDATE watches SET status = {evil};
             INSERT OR REPLACE INTO hooks (name, disabled_at, disabled_reason, last_error) VALUES ('cms', 1, {evil}, {evil});
             INSERT INTO hooks (name) VALUES ({evil});
             INSERT INTO batches (name, created_at) VALUES ({evil}, 1)"
        ))
        .unwrap();
    for args in [
        &["hooks", "list"][..],
        &["deliveries", "list"],
        &["show", "active_1"],
        &["events"],
        &["batch", "list"],
        &["batch", "show", "b"],
    ] {
        for json in [false, true] {
            let said = run(&place, &[args, if json { &["--json"] } else { &[] }].concat()).await;
            let obeyed = |c: &char| (c.is_control() && !"\n\t".contains(*c)) || (!json && *c == '\u{202e}');
            assert_eq!((said.code, (said.out + &said.err).chars().find(obeyed)), (0, None), "{args:?}");
        }
    }
}
