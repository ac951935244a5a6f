//! Streams of events and of the overview.

use reqwest::Method;
use rustix::process::Signal;
use serde_json::json;

use super::slow_api;
use crate::rig::{SOON, served};

#[tokio::test]
async fn a_stream_is_resumed_without_a_gap_or_a_repetition() {
    let api = slow_api().await;
    let (place, daemon, caller) = served(&api, "").await;
    let mut stream = caller.stream("/v1/events/stream", None).await;
    // More than a page of the feed, and cut off again and again.
    let ids: Vec<String> = (0..1_200).map(|n| format!("active_{n}")).collect();
    caller.post("/v1/watches", json!({"asset_ids": ids})).await;
    let mut seen = Vec::new();
    while seen.len() < 1_200 {
        let Some(sent) = stream.next().await else { panic!("the stream ended") };
        assert_eq!((sent.event.as_str(), sent.data["seq"].to_string()), ("asset.active", sent.id.clone()));
        seen.push(sent.data["body"]["data"]["asset_id"].as_str().unwrap().to_owned());
        if seen.len() % 97 == 0 {
            drop(stream);
            stream = caller.stream("/v1/events/stream", Some(&sent.id)).await;
        }
    }
    let mut unique = seen.clone();
    unique.sort();
    unique.dedup();
    assert_eq!(unique.len(), 1_200);
    // From another process, while nothing happens in ours.
    place.database().execute("INSERT INTO watches (asset_id) VALUES ('active_foreign')", []).unwrap();
    assert_eq!(stream.next().await.unwrap().data["body"]["data"]["asset_id"], "active_foreign");
    // By the parameter, for those who cannot set headers; and from the very beginning.
    let mut resumed = caller.stream("/v1/events/stream?last_event_id=0", None).await;
    assert_eq!(resumed.next().await.unwrap().id, "1");
    // A backup was restored, and the caller has seen more than it holds: it is not left waiting for what never comes.
    let mut ahead = caller.stream("/v1/events/stream", Some("999999")).await;
    place.database().execute("INSERT INTO watches (asset_id) VALUES ('active_restored')", []).unwrap();
    assert_eq!(ahead.next().await.unwrap().data["body"]["data"]["asset_id"], "active_restored");
    let bad = crate::rig::answer(caller.request(Method::GET, "/v1/events/stream").header("last-event-id", "x"));
    assert_eq!(bad.await.status, 400);
    assert!(daemon.stop().await.success());
}

/// As after a restore of a backup: whoever was told more than the database knows would wait for numbers that come again.
#[tokio::test]
async fn a_stream_that_is_ahead_of_the_database_is_set_back_to_it() {
    let api = slow_api().await;
    let (place, daemon, caller) = served(&api, "").await;
    caller.post("/v1/watches", json!({"asset_id": "active_1"})).await;
    place.until_state("active_1", "settled").await;
    let begins = async |last: &str| {
        let request = caller.request(Method::GET, "/v1/events/stream").header("last-event-id", last);
        let begin = request.send().await.unwrap().chunk().await.unwrap().unwrap();
        String::from_utf8(begin.to_vec()).unwrap()
    };
    let begin = begins("1000").await;
    assert!(begin.lines().any(|line| line == "id: 1") && begin.ends_with("\n\n"), "a browser takes that: {begin:?}");
    assert!(begin.contains(": there is no event 1000 yet"), "{begin:?}");
    let mut stream = caller.stream("/v1/events/stream", Some("1000")).await;
    caller.post("/v1/watches", json!({"asset_id": "active_2"})).await;
    assert_eq!(stream.next().await.unwrap().id, "2");

    let page = caller.get("/v1/events?cursor=3e8").await;
    assert_eq!(page.status, 409, "{page:?}");
    assert!(page.detail().contains("the latest event is 2") && page.detail().contains("`since`"), "{page:?}");
    // Events that were pruned have been there all the same.
    place.database().execute("DELETE FROM events", []).unwrap();
    assert_eq!(begins("2").await, "retry: 2000\n\n");
    assert_eq!(caller.get("/v1/events?cursor=2").await.body["events"], json!([]));
    assert!(daemon.stop().await.success());
}

#[tokio::test]
async fn the_overview_is_pushed_when_another_program_inserts() {
    let api = slow_api().await;
    let (place, daemon, caller) = served(&api, "").await;
    let mut stream = caller.stream("/v1/overview/stream", None).await;
    let mut other = caller.stream("/v1/overview/stream", None).await;
    assert_eq!(stream.next().await.unwrap().data["watches"]["waiting"], 0);
    place.database().execute("INSERT INTO watches (asset_id) VALUES ('slow_1')", []).unwrap();
    for stream in [&mut stream, &mut other] {
        while stream.next().await.unwrap().data["watches"]["waiting"] != 1 {}
    }
    assert!(daemon.stop().await.success());
}

#[tokio::test]
async fn a_stop_ends_streams_and_long_polls() {
    let api = slow_api().await;
    let (_place, daemon, caller) = served(&api, "").await;
    caller.post("/v1/watches", json!({"asset_id": "slow_1"})).await;
    let mut events = caller.stream("/v1/events/stream", Some("0")).await;
    let mut overview = caller.stream("/v1/overview/stream", None).await;
    let polling = tokio::spawn(async move { caller.get("/v1/watches/slow_1?wait=5m").await });
    while events.next().await.unwrap().event != "asset.processing" {}
    daemon.signal(Signal::TERM);
    assert_eq!(polling.await.unwrap().body["state"], "waiting");
    while overview.next().await.is_some() {}
    while events.next().await.is_some() {}
    let mut daemon = daemon;
    assert!(tokio::time::timeout(SOON, daemon.ended()).await.unwrap().success());
}
