//! Batches, end to end: made, closed, waited for, and told of once.

use crate::rig::{Daemon, Latch, Place, Reply, Server, is_signed, run, run_with};

/// A hook that hears of batches, and nothing else.
fn told_of_batches(receiver: &Server, more: &str) -> String {
    let url = receiver.url();
    format!("[[hooks]]\nname = \"cms\"\non = [\"batch.settled\"]\nurl = \"{url}\"\nsecret_file = \"secret\"\n{more}")
}

const SETTLED: &str = "SELECT count(*) FROM events WHERE type = 'batch.settled'";

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_batch_is_told_of_when_its_last_watch_has_ended() {
    let (api, receiver) = (Server::api().await, Server::receiver().await);
    let place = Place::new(&api, &told_of_batches(&receiver, ""));
    let daemon = Daemon::start(&place).await;
    let added = run(&place, &["add", "--batch", "b", "active_1", "active_2", "censored_1", "processing_1"]).await;
    assert_eq!(added.code, 0, "{added:?}");
    place.until("SELECT count(*) FROM watches WHERE state = 'settled'", 3).await;
    let closed = run(&place, &["batch", "close", "b"]).await;
    assert_eq!((closed.code, closed.out.as_str()), (0, "closed b; 1 of 4 watches wait\n"), "{closed:?}");
    assert_eq!(place.ask::<i64>(SETTLED), Some(0));
    run(&place, &["cancel", "processing_1"]).await;
    let told = receiver.until(1).await.remove(0);
    assert!(is_signed(&told));
    let body = told.json();
    assert_eq!((&body["type"], &body["data"]["batch"]), (&"batch.settled".into(), &"b".into()));
    let expected = serde_json::json!({"active": 2, "censored": 1});
    assert_eq!((&body["data"]["statuses"], &body["data"]["cancelled"]), (&expected, &1.into()));
    let again = run(&place, &["batch", "close", "b"]).await;
    assert!(again.code == 0 && again.out.contains("2 active, 1 censored, 1 cancelled"), "{again:?}");
    place.until("SELECT count(*) FROM deliveries WHERE state = 'delivered'", 1).await;
    assert!(daemon.stop().await.success());
    assert_eq!((place.ask::<i64>(SETTLED), receiver.count()), (Some(1), 1));
    let events = run(&place, &["events"]).await.out;
    assert!(events.contains(" batch.settled b: 4 watches, 2 active, 1 censored, 1 cancelled"), "{events}");
}

#[tokio::test(flavor = "multi_thread")]
async fn add_closes_what_it_has_added_and_loses_nothing() {
    let api = Server::api().await;
    let place = Place::new(&api, "");
    let bad = run_with(&place, &["add", "--batch", "b", "--close", "-"], "ast_1\n..\n", &[]).await;
    assert!(bad.code == 1 && bad.err.contains("is left open, since not all ids were added"), "{bad:?}");
    let good = run(&place, &["add", "--batch", "b", "--close", "ast_1", "ast_2"]).await;
    assert!(good.code == 0 && good.out.ends_with("closed b; 2 of 2 watches wait\n"), "{good:?}");
    let late = run(&place, &["add", "--batch", "b", "ast_1", "ast_3"]).await;
    assert!(late.code == 1 && late.out.starts_with("watching ast_1 since "), "{late:?}");
    assert!(late.err.contains("\"ast_3\": the batch is closed: it takes no more watches"), "{late:?}");
    let listed = run(&place, &["list", "--batch", "b"]).await;
    assert_eq!(listed.out.lines().count(), 2);
    assert_eq!(run(&place, &["add", "ast_1", "--close"]).await.code, 2, "what is to be closed?");
    let filled = run(&place, &["add", "--batch", "c", "--close", "--json", "ast_4"]).await.json();
    assert_eq!((&filled[1]["batch"], &filled[1]["waiting"]), (&"c".into(), &1.into()));
    run(&place, &["wait", "active_1"]).await;
    let nothing = run(&place, &["add", "--batch", "d", "--close", "active_1"]).await;
    assert!(nothing.code == 1 && nothing.err.contains("nothing was added to batch \"d\""), "{nothing:?}");
    assert!(nothing.out.contains("`--again` watches it once more, in this batch"), "{nothing:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_are_listed_and_shown() {
    let api = Server::api().await;
    let place = Place::new(&api, "");
    run(&place, &["add", "--batch", "first", "active_1", "censored_1"]).await;
    run(&place, &["wait", "--batch", "first", "-q"]).await;
    run(&place, &["add", "--batch", "sec\u{202e}ond", "ast_3"]).await;
    let listed = run(&place, &["batch", "list"]).await.out;
    let rows: Vec<Vec<&str>> = listed.lines().map(|line| line.split('\t').collect()).collect();
    assert_eq!(rows[0][..4], ["sec\u{fffd}ond", "open", "1", "1"], "newest first, and never obeyed");
    assert_eq!((rows[1][0], rows[1][5]), ("first", "1 active, 1 censored"));
    assert_eq!(run(&place, &["batch", "list", "--limit", "1"]).await.out.lines().count(), 1);
    let json = run(&place, &["batch", "list", "--json"]).await.json();
    assert_eq!((&json[1]["batch"], &json[1]["statuses"]["active"]), (&"first".into(), &1.into()));
    let shown = run(&place, &["batch", "show", "first"]).await.out;
    assert!(shown.contains("waiting       0\n") && shown.contains("state         open\n"), "{shown}");
    assert_eq!(run(&place, &["batch", "show", "first", "--json"]).await.json()[0]["watches"], 2);
    let ended = run(&place, &["batch", "close", "first"]).await;
    assert!(ended.out.starts_with("closed first; settled at 2"), "it settles with its closing: {ended:?}");
    assert_eq!(place.ask::<i64>(SETTLED), Some(1));
    for args in [&["batch", "show", "nope"][..], &["batch", "close", "nope"], &["wait", "--batch", "nope"]] {
        let unknown = run(&place, args).await;
        assert!(unknown.code == 1 && unknown.err.contains("there is no batch \"nope\""), "{args:?}: {unknown:?}");
    }
    for args in [&["wait", "--batch", "first", "ast_1"][..], &["wait"], &["batch", "close"], &["batch"]] {
        assert_eq!(run(&place, args).await.code, 2, "{args:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lone_wait_for_a_batch_polls_what_is_added_meanwhile() {
    let latch = Latch::closed();
    let held = latch.clone();
    let api = Server::start(move |request| match request.asset() {
        "late" => Reply::asset("late", "active"),
        id if held.is_open() => Reply::asset(id, "active"),
        id => Reply::asset(id, "processing"),
    })
    .await;
    let place = Place::new(&api, "");
    run(&place, &["add", "--batch", "b", "early"]).await;
    let meanwhile = async {
        api.until(1).await;
        run(&place, &["add", "--batch", "b", "late"]).await;
        place.until_state("late", "settled").await;
        latch.open();
    };
    let (waited, ()) = tokio::join!(run(&place, &["wait", "--batch", "b", "--output", "status"]), meanwhile);
    assert_eq!((waited.code, waited.out.as_str()), (0, "active\nactive\n"), "{waited:?}");
    let any = run(&place, &["wait", "--batch", "b", "--any", "--output", "url"]).await;
    assert_eq!((any.code, any.out.lines().count()), (0, 2));
    run(&place, &["add", "--batch", "b", "stuck"]).await;
    run(&place, &["cancel", "stuck"]).await;
    assert_eq!(run(&place, &["wait", "--batch", "b", "-q"]).await.code, 4, "one was cancelled");
}

#[tokio::test(flavor = "multi_thread")]
async fn beside_a_daemon_a_wait_sees_the_whole_batch() {
    let api = Server::api().await;
    let place = Place::new(&api, "");
    let _daemon = Daemon::start(&place).await;
    place.until("SELECT count(*) FROM daemons", 1).await;
    run(&place, &["add", "--batch", "b", "processing_1"]).await;
    let timed_out = run(&place, &["wait", "--batch", "b", "--timeout", "300ms", "-q"]).await;
    assert_eq!(timed_out.code, 124);
    place.database().execute("INSERT INTO watches (asset_id, batch) VALUES ('censored_1', 'b')", []).unwrap();
    place.until_state("censored_1", "settled").await;
    let end = async { run(&place, &["cancel", "processing_1"]).await };
    let (waited, _) = tokio::join!(run(&place, &["wait", "--batch", "b", "--output", "status"]), end);
    assert_eq!((waited.code, waited.out.as_str()), (4, "cancelled\ncensored\n"), "{waited:?}");
}

/// Twenty assets settle at the same moment, in a daemon that is killed at it; what was recorded has its event, and the
/// batch is told of once.
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_settles_once_whatever_is_killed() {
    for kill_after in [1, 11, 20] {
        let latch = Latch::closed();
        let held = latch.clone();
        let api = Server::start(move |request| Reply::asset(request.asset(), "active").when(&held)).await;
        let receiver = Server::receiver().await;
        let place = Place::new(&api, &told_of_batches(&receiver, ""));
        let ids: Vec<String> = (0..20).map(|number| format!("ast_{number}")).collect();
        let mut add = vec!["add", "--batch", "b", "--close"];
        add.extend(ids.iter().map(String::as_str));
        assert_eq!(run(&place, &add).await.code, 0);
        let daemon = Daemon::start(&place).await;
        api.until(20).await;
        latch.open();
        let ended = format!("SELECT count(*) >= {kill_after} FROM watches WHERE state = 'settled'");
        place.until(&ended, 1).await;
        daemon.kill().await;
        let all = place.ask::<i64>("SELECT count(*) FROM watches WHERE state = 'settled'").unwrap() == 20;
        assert_eq!(place.ask::<i64>(SETTLED), Some(i64::from(all)), "with the last one, never before");
        place.database().execute("UPDATE watches SET lease_owner = NULL, lease_until = NULL", []).unwrap();
        place.database().execute("UPDATE deliveries SET lease_owner = NULL, lease_until = NULL", []).unwrap();
        let daemon = Daemon::start(&place).await;
        place.until("SELECT count(*) FROM deliveries WHERE state = 'delivered'", 1).await;
        assert!(daemon.stop().await.success());
        assert_eq!(place.ask::<i64>(SETTLED), Some(1));
        let told = receiver.requests();
        let id = told[0].header("webhook-id").unwrap();
        assert!(told.iter().all(|request| request.header("webhook-id") == Some(id)), "the same fact, if told again");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_filter_lets_its_own_batches_through() {
    let (api, receiver) = (Server::api().await, Server::receiver().await);
    let place = Place::new(&api, &told_of_batches(&receiver, "batches = [\"mine\"]\n"));
    let _daemon = Daemon::start(&place).await;
    run(&place, &["add", "--batch", "theirs", "--close", "active_1"]).await;
    run(&place, &["add", "--batch", "mine", "--close", "active_2"]).await;
    place.until(SETTLED, 2).await;
    let told = receiver.until(1).await.remove(0).json();
    assert_eq!(told["data"]["batch"], "mine");
    assert_eq!(place.ask::<i64>("SELECT count(*) FROM deliveries"), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lone_wait_says_that_the_batchs_own_event_is_left() {
    let (api, receiver) = (Server::api().await, Server::receiver().await);
    let place = Place::new(&api, &told_of_batches(&receiver, ""));
    run(&place, &["add", "--batch", "b", "--close", "active_1"]).await;
    let waited = run(&place, &["wait", "--batch", "b"]).await;
    assert_eq!((waited.code, place.ask::<i64>(SETTLED)), (0, Some(1)), "{waited:?}");
    assert!(waited.err.contains("1 deliveries to hook cms are left for a running daemon"), "{waited:?}");
    let _daemon = Daemon::start(&place).await;
    receiver.until(1).await;
}
