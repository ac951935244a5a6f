//! The table of answers, each row over a socket: what the API says, and what is written of it. `src/decide/tests.rs` has
//! the same rows as pure rules.

use std::time::{Duration, Instant};

use crate::rig::{Daemon, KEY, Place, Reply, SOON, Server, eventually};

/// Answers `odd` so many times, and then that the asset is active.
async fn odd_at_first(odd: Reply, times: usize) -> Server {
    let asked = std::sync::atomic::AtomicUsize::new(0);
    Server::start(move |request| match asked.fetch_add(1, std::sync::atomic::Ordering::SeqCst) < times {
        true => odd.clone(),
        false => Reply::asset(request.asset(), "active"),
    })
    .await
}

/// A daemon that watches `ast_1` at this API.
async fn watching(api: &Server, more: &str) -> (Place, Daemon) {
    let place = Place::new(api, more);
    let daemon = Daemon::start(&place).await;
    place.database().execute("INSERT INTO watches (asset_id) VALUES ('ast_1')", []).unwrap();
    (place, daemon)
}

fn json(text: &str) -> Reply {
    Reply::json(text)
}

#[tokio::test(flavor = "multi_thread")]
async fn final_statuses_settle_with_the_word_as_it_is() {
    let api = Server::start(|request| Reply::asset(request.asset(), request.asset())).await;
    let place = Place::new(&api, "");
    let daemon = Daemon::start(&place).await;
    for word in ["active", "archive", "censored", "moderated"] {
        place.database().execute("INSERT INTO watches (asset_id) VALUES (?1)", [word]).unwrap();
    }
    for word in ["active", "archive", "censored", "moderated"] {
        place.until_state(word, "settled").await;
        assert_eq!(
            place.ask::<String>(&format!("SELECT status FROM watches WHERE asset_id = '{word}'")).unwrap(),
            word
        );
        let kind = place.ask::<String>(&format!("SELECT type FROM events WHERE body LIKE '%\"{word}\"%'")).unwrap();
        assert_eq!(kind, format!("asset.{word}"));
    }
    daemon.until_logged("does not know").await;
    assert_eq!(daemon.log().matches("does not know").count(), 1, "only the new word, and once");
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_are_polled_again_until_the_api_recovers() {
    let large = vec![b' '; 1024 * 1024 + 1];
    let chunked = [
        b"HTTP/1.1 200 X\r\ntransfer-encoding: chunked\r\n\r\n100001\r\n".to_vec(),
        large.clone(),
        b"\r\n0\r\n\r\n".to_vec(),
    ];
    let large = Reply::Http { status: 200, headers: String::new(), body: large };
    let rows = [
        ("err and no status", json(r#"{"data":{},"err":{"code":"E7","message":"later"}}"#), "E7: later"),
        ("not JSON", json("<html>"), "not JSON"),
        ("no status", json("{}"), "no status"),
        ("another id", json(r#"{"data":{"id":"ast_2","status":"active"}}"#), "another asset"),
        ("over 1 MiB", large, "larger than 1048576 bytes"),
        ("over 1 MiB, chunked", Reply::Raw(chunked.concat()), "larger than 1048576 bytes"),
        ("202", Reply::status(202), "202"),
        ("204", Reply::status(204), "204"),
        ("408", Reply::status(408), "408"),
        ("425", Reply::status(425), "425"),
        ("500", Reply::status(500), "500"),
        ("503 without Retry-After", Reply::status(503), "503"),
        ("a reset", Reply::Reset, "error"),
        ("a body that is cut off", Reply::Raw(b"HTTP/1.1 200 X\r\ncontent-length: 99\r\n\r\n{".to_vec()), "body"),
        ("no HTTP", Reply::Raw(b"hello\r\n\r\n".to_vec()), "error"),
        ("no answer in time", Reply::Hang, "timed out"),
        ("a drip", Reply::Drip(b"HTTP/1.1 200 X\r\ncontent-length: 9999\r\n\r\n".to_vec()), "timed out"),
    ];
    let mut tests = tokio::task::JoinSet::new();
    for (name, reply, error) in rows {
        tests.spawn(async move {
            let api = odd_at_first(reply, 2).await;
            let (place, _daemon) = watching(&api, "").await;
            let failed = "SELECT failures FROM watches WHERE failures = 2 OR state = 'settled'";
            eventually(SOON, name, async || place.ask::<i64>(failed)).await;
            let noted: Option<Option<String>> = place.ask("SELECT last_error FROM watches WHERE failures > 0");
            if let Some(Some(noted)) = noted {
                assert!(noted.contains(error), "{name}: {noted}");
            }
            place.until_state("ast_1", "settled").await;
            assert_eq!(place.ask::<i64>("SELECT failures FROM watches"), Some(2), "{name}: kept as it was at the end");
            assert_eq!(place.ask::<i64>("SELECT polls FROM watches"), Some(3), "{name}");
        });
    }
    while let Some(ended) = tests.join_next().await {
        ended.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_status_counts_even_beside_an_error() {
    let api = Server::start(|_| json(r#"{"data":{"status":"active"},"err":{"message":"slow"}}"#)).await;
    let (place, daemon) = watching(&api, "").await;
    place.until_state("ast_1", "settled").await;
    assert!(place.ask::<String>("SELECT last_error FROM watches").unwrap().contains("slow"));
    daemon.until_logged("its last answer was odd").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_is_not_followed_and_takes_no_key_along() {
    let other = Server::start(|request| Reply::asset(request.asset(), "active")).await;
    let moved = Reply::status(302).with_header("location", &format!("{}/pub/v2/assets/ast_1", other.url()));
    let api = odd_at_first(moved, 2).await;
    let (place, _daemon) = watching(&api, "").await;
    place.until_state("ast_1", "settled").await;
    assert_eq!((place.ask::<i64>("SELECT polls FROM watches"), other.count()), (Some(3), 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_abandon_after_three_in_a_row() {
    for status in [400, 410, 418, 422] {
        let api = Server::start(move |_| Reply::status(status)).await;
        let (place, _daemon) = watching(&api, "").await;
        place.until_state("ast_1", "abandoned").await;
        assert_eq!(place.ask::<String>("SELECT reason FROM watches").unwrap(), "rejected");
        assert_eq!((api.count(), place.ask::<i64>("SELECT polls FROM watches")), (3, Some(3)), "{status}");
        let body: String = place.ask("SELECT CAST(body AS TEXT) FROM events").unwrap();
        assert!(body.contains(r#""type":"watch.abandoned""#) && body.contains(r#""reason":"rejected""#), "{body}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_404_is_waited_for_and_then_missing() {
    let api = Server::start(|_| Reply::status(404)).await;
    let (place, _daemon) = watching(&api, "missing_grace = \"1s\"\n").await;
    place.until_state("ast_1", "abandoned").await;
    assert_eq!(place.ask::<String>("SELECT reason FROM watches").unwrap(), "missing");
    let grace = place.ask::<i64>("SELECT settled_at - missing_at FROM watches").unwrap();
    assert!(grace >= 1_000, "{grace}");
    let api = odd_at_first(Reply::status(404), 2).await;
    let (place, _daemon) = watching(&api, "").await;
    place.until_state("ast_1", "settled").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_key_pauses_the_account_and_blames_no_watch() {
    for (status, closure) in [(401, "unauthorized"), (403, "unauthorized"), (402, "unpaid")] {
        let body = format!(r#"{{"err":{{"message":"bad key {KEY}"}}}}"#).into_bytes();
        let api = Server::start(move |_| Reply::Http { status, headers: String::new(), body: body.clone() }).await;
        let (place, daemon) = watching(&api, "").await;
        let closed = "SELECT closure FROM accounts WHERE closure IS NOT NULL";
        let noted: String = eventually(SOON, "the account is closed", async || place.ask(closed)).await;
        assert_eq!(noted, closure);
        place.until("SELECT polls FROM watches WHERE lease_owner IS NULL", 1).await;
        let untouched = "SELECT failures + rejections + waiting_streak FROM watches WHERE state = 'waiting'";
        assert_eq!((place.ask::<i64>(untouched), api.count()), (Some(0), 1), "{status}");
        let told = format!("{}{}", daemon.log(), place.ask::<String>("SELECT last_error FROM accounts").unwrap());
        assert!(told.contains("bad key ***") && !told.contains(KEY), "{told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_key_file_resumes_at_once() {
    let api = Server::start(|request| match request.header("x-api-key") {
        Some("another-key") => Reply::asset(request.asset(), "active"),
        _ => Reply::status(401),
    })
    .await;
    let (place, daemon) = watching(&api, "").await;
    daemon.until_logged("paused").await;
    std::fs::write(place.path("key"), "another-key\n").unwrap();
    place.until_state("ast_1", "settled").await;
    daemon.until_logged("polled again").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_403_for_one_asset_among_others_is_a_rejection() {
    let api = Server::start(|request| match request.asset() {
        "ast_1" => Reply::status(403),
        id => Reply::asset(id, "processing"),
    })
    .await;
    let (place, _daemon) = watching(&api, "").await;
    let others = "INSERT INTO watches (asset_id) VALUES ('ast_2'), ('ast_3')";
    place.database().execute(others, []).unwrap();
    // Whether the very first answer was one for another asset is a matter of chance; a pause would last a minute.
    let ended = "SELECT 1 FROM watches WHERE asset_id = 'ast_1' AND state = 'abandoned'
                 UNION ALL SELECT 2 FROM accounts WHERE closure IS NOT NULL";
    if eventually(SOON, "abandoned, or paused at the start", async || place.ask::<i64>(ended)).await == 1 {
        assert_eq!(place.ask::<String>("SELECT reason FROM watches WHERE asset_id = 'ast_1'").unwrap(), "rejected");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_throttle_is_obeyed_and_costs_nothing() {
    for (name, reply, wait) in [
        ("429 with Retry-After", Reply::status(429).with_header("retry-after", "2"), Duration::from_secs(2)),
        ("503 with Retry-After", Reply::status(503).with_header("retry-after", "2"), Duration::from_secs(2)),
        ("429", Reply::status(429), Duration::from_secs(1)),
    ] {
        let api = odd_at_first(reply, 1).await;
        let (place, _daemon) = watching(&api, "").await;
        place.until_state("ast_1", "settled").await;
        let requests = api.requests();
        let gap = requests[1].at - requests[0].at;
        assert!(gap >= wait, "{name}: polled again after {gap:?}");
        assert_eq!(place.ask::<i64>("SELECT failures + rejections FROM watches"), Some(0), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn patience_ends_a_watch() {
    let api = Server::start(|request| Reply::asset(request.asset(), "processing")).await;
    let place = Place::new(&api, "");
    let _daemon = Daemon::start(&place).await;
    let insert = "INSERT INTO watches (asset_id, patience) VALUES ('ast_1', 1000)";
    place.database().execute(insert, []).unwrap();
    place.until_state("ast_1", "abandoned").await;
    assert_eq!(place.ask::<String>("SELECT reason FROM watches").unwrap(), "patience");
    let followed = place.ask::<i64>("SELECT settled_at - first_polled_at FROM watches").unwrap();
    assert!(followed >= 1_000, "{followed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_id_reaches_the_server_as_one_segment() {
    let api = Server::start(|_| Reply::json(r#"{"data":{"status":"active"}}"#)).await;
    let place = Place::new(&api, "");
    let _daemon = Daemon::start(&place).await;
    let longest = "x".repeat(512);
    let ids =
        ["../x", "a/b?c", "é", "%2e%2e", "a b", "...", "a#b", "\\", "a;b=c", "<img src=x onerror=alert(1)>", &longest];
    for id in ids {
        place.database().execute("INSERT INTO watches (asset_id) VALUES (?1)", [id]).unwrap();
    }
    let requests = api.until(ids.len()).await;
    let mut asked: Vec<String> = requests
        .iter()
        .map(|request| {
            let segments: Vec<&str> = request.path.split('/').collect();
            assert_eq!(segments[..4], ["", "pub", "v2", "assets"], "{}", request.path);
            assert_eq!(segments.len(), 5, "{}", request.path);
            percent_encoding::percent_decode_str(segments[4]).decode_utf8().unwrap().into_owned()
        })
        .collect();
    asked.sort();
    let mut expected = ids.map(str::to_owned).to_vec();
    expected.sort();
    assert_eq!(asked, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_table_refuses_the_ids_that_add_refuses() {
    let api = Server::api().await;
    let place = Place::new(&api, "");
    crate::rig::run(&place, &["list"]).await;
    let database = place.database();
    let insert = |value: &str| database.execute(&format!("INSERT INTO watches (asset_id) VALUES ({value})"), []);
    for bad in ["''", "'.'", "'..'", "char(10)", "'a' || char(0) || 'b'", "'a' || char(155)", "CAST(x'ff' AS TEXT)"] {
        assert!(insert(bad).is_err(), "{bad}");
    }
    assert!(database.execute("INSERT INTO watches (asset_id) VALUES (?1)", ["é".repeat(257)]).is_err());
    insert("'a'").unwrap();
}

/// Not an assertion about time: it shows that a foreign insert does not wait for the idle minute.
#[tokio::test(flavor = "multi_thread")]
async fn an_insert_is_noticed_by_an_idle_daemon() {
    let api = Server::api().await;
    let (place, _daemon) = watching(&api, "").await;
    place.until_state("ast_1", "settled").await;
    let started = Instant::now();
    place.database().execute("INSERT INTO watches (asset_id) VALUES ('active_2')", []).unwrap();
    api.until(api.count() + 1).await;
    assert!(started.elapsed() < SOON);
}
