//! The control API, as programs use it.

mod admission;
mod in_process;
mod streams;

use std::collections::BTreeSet;

use reqwest::Method;
use serde_json::json;

use crate::rig::{Caller, Latch, Reply, SOON, Server, answer, eventually, served, webhook};

/// An API in which what is called `active_…` is active at once and everything else is being processed.
async fn slow_api() -> Server {
    Server::start(|request| {
        let id = request.asset();
        Reply::asset(id, if id.starts_with("active") { "active" } else { "processing" })
    })
    .await
}

#[tokio::test]
async fn an_asset_is_added_once_however_often_it_is_posted() {
    let api = slow_api().await;
    let (place, daemon, caller) = served(&api, "").await;
    let new = json!({"asset_id": "slow/1 ?", "patience": "2h 30m", "metadata": {"post": 7}, "batch": "b"});
    let added = caller.post("/v1/watches", new.clone()).await;
    assert_eq!(added.status, 201, "{added:?}");
    assert_eq!((&added.body["result"], &added.body["watch"]["metadata"]), (&json!("added"), &json!({"post": 7})));
    let location = added.headers["location"].to_str().unwrap();
    assert_eq!(caller.get(location).await.body["asset_id"], "slow/1 ?");

    let again = caller.post("/v1/watches", new).await;
    assert_eq!((again.status.as_u16(), &again.body["result"]), (200, &json!("watching")));
    let other = caller.post("/v1/watches", json!({"asset_id": "slow/1 ?", "batch": "c"})).await;
    assert_eq!(other.status, 409);
    assert!(other.detail().contains("another batch"), "{other:?}");
    assert_eq!(place.ask::<i64>("SELECT count(*) FROM watches"), Some(1));
    assert!(daemon.stop().await.success());
}

#[tokio::test]
async fn ten_thousand_ids_come_in_one_request_and_bad_ones_do_no_harm() {
    let api = slow_api().await;
    let (place, daemon, caller) = served(&api, "").await;
    let mut ids: Vec<String> = (0..9_998).map(|n| format!("slow_{n}_{}", "x".repeat(490))).collect();
    ids.extend(["".to_owned(), "slow_\u{7}".to_owned()]);
    let added = caller.post("/v1/watches", json!({"asset_ids": ids, "batch": "big", "close": true})).await;
    assert_eq!(added.status, 200);
    let results = added.body["results"].as_array().unwrap();
    let refused: Vec<_> = results.iter().filter(|result| result["result"] == "refused").collect();
    assert_eq!((results.len(), refused.len()), (10_000, 2));
    assert_eq!(refused[1]["error"], "an asset id must not contain control characters");
    assert_eq!(added.body["closed"], false, "a batch is not closed over a bad id");
    assert_eq!(place.ask::<i64>("SELECT count(*) FROM watches"), Some(9_998));
    ids.push("slow_one_too_many".into());
    let refused = caller.post("/v1/watches", json!({"asset_ids": ids})).await;
    assert_eq!(
        (refused.status.as_u16(), refused.detail()),
        (422, "`asset_ids` has 1 to 10000 ids, and this has 10001")
    );
    assert!(daemon.stop().await.success());
}

#[tokio::test]
async fn what_many_have_in_common_is_not_answered_with_each_of_them() {
    let api = slow_api().await;
    let (_place, daemon, caller) = served(&api, "").await;
    let ids: Vec<String> = (0..1_200).map(|n| format!("slow_{n}")).collect();
    let callback = "https://cms.example/callback";
    let new = json!({"asset_ids": ids, "metadata": "m".repeat(16_000), "callback_url": callback});
    // The second time they are known, and theirs is what the first request gave.
    for (new, result) in [(new, "added"), (json!({"asset_ids": ids}), "watching")] {
        let added = caller.post("/v1/watches", new).await;
        assert_eq!(added.status, 200);
        let size = added.body.to_string().len();
        assert!(size < 1_200 * 1_500, "{size}");
        let results = added.body["results"].as_array().unwrap();
        assert!(results.iter().map(|one| one["asset_id"].as_str().unwrap()).eq(&ids), "in their order");
        for one in results {
            let watch = one["watch"].as_object().unwrap();
            assert_eq!((&one["result"], &watch["asset_id"]), (&json!(result), &one["asset_id"]));
            assert!(!watch.contains_key("metadata") && !watch.contains_key("callback_url"), "{one}");
        }
    }
    let watch = caller.get("/v1/watches/slow_1199").await.body;
    assert_eq!((watch["metadata"].as_str().unwrap().len(), &watch["callback_url"]), (16_000, &json!(callback)));
    let document = caller.get("/openapi.json").await.body;
    let columns = &document["components"]["schemas"]["Watch"]["allOf"][3];
    assert!(columns["properties"]["metadata"].is_object(), "{columns}");
    let required = columns["required"].as_array().unwrap();
    assert!(required.contains(&json!("asset_id")) && !required.contains(&json!("metadata")), "{columns}");
    assert!(daemon.stop().await.success());
}

#[tokio::test]
async fn who_closes_a_batch_with_one_asset_is_told_whether_it_is_closed() {
    let api = slow_api().await;
    let (place, daemon, caller) = served(&api, "").await;
    let new = json!({"asset_id": "active_1", "batch": "b"});
    assert_eq!(caller.post("/v1/watches", new).await.body["closed"], json!(null), "nobody asked for it");
    let closing = json!({"asset_id": "slow_1", "batch": "b", "close": true});
    let closed = caller.post("/v1/watches", closing).await;
    assert_eq!((closed.status.as_u16(), &closed.body["closed"]), (201, &json!(true)), "{closed:?}");
    // Nothing is wrong with the request: it comes too late.
    let late = caller.post("/v1/watches", json!({"asset_id": "slow_2", "batch": "b"})).await;
    assert_eq!(
        (late.status.as_u16(), &late.body["detail"]),
        (409, &json!("the batch is closed: it takes no more watches"))
    );
    // It has settled and is not watched again, so nothing is in the batch that there would be.
    place.until_state("active_1", "settled").await;
    let closing = json!({"asset_id": "active_1", "batch": "c", "close": true});
    let known = caller.post("/v1/watches", closing).await;
    let told = (known.status.as_u16(), &known.body["result"], &known.body["closed"]);
    assert_eq!(told, (200, &json!("settled"), &json!(false)), "{known:?}");
    assert!(daemon.stop().await.success());
}

#[tokio::test]
async fn bad_requests_are_told_what_is_wrong_and_change_nothing() {
    let api = slow_api().await;
    let (place, daemon, caller) = served(&api, "").await;
    for (body, status, says) in [
        (json!({}), 422, "give either `asset_id` or `asset_ids`"),
        (json!({"asset_id": "a", "asset_ids": ["b"]}), 422, "give either"),
        (json!({"asset_id": "a", "patiense": "2h"}), 422, "patiense"),
        (json!({"asset_id": "a", "patience": "soon"}), 422, "`patience`"),
        (json!({"asset_id": "a", "patience": "1ns"}), 422, "`patience`: it must be at least a millisecond"),
        (json!({"asset_id": "a", "account": "Studio!"}), 422, "`account`"),
        (json!({"asset_id": "a", "callback_url": "ftp://x/"}), 422, "`callback_url`"),
        (json!({"asset_id": "a", "close": true}), 422, "name it in `batch`"),
        (json!({"asset_id": "a", "metadata": "x".repeat(17_000)}), 422, "`metadata`"),
        (json!({"asset_id": ".."}), 422, "no HTTP client can ask for it"),
        (json!({"asset_ids": []}), 422, "1 to 10000"),
        (json!([]), 422, "struct NewWatches"),
    ] {
        let refused = caller.post("/v1/watches", body.clone()).await;
        assert_eq!(refused.status, status, "{body}: {refused:?}");
        assert!(refused.detail().contains(says), "{body}: {refused:?}");
    }
    let post = || caller.request(Method::POST, "/v1/watches");
    let json_type = "application/json";
    for (request, status) in [
        (post().header("content-type", json_type).body("{\"asset_id\": "), 400),
        (post().header("content-type", "text/plain").body("{\"asset_id\": \"a\"}"), 415),
        (post().body("{\"asset_id\": \"a\"}"), 415),
        // The server hangs up on the rest of it, so the connection is not for others.
        (
            Caller::at(&caller.base)
                .request(Method::POST, "/v1/watches")
                .header("content-type", json_type)
                .body(" ".repeat(9 * 1024 * 1024)),
            413,
        ),
        (caller.request(Method::GET, "/v1/watches?limit=0"), 400),
        (caller.request(Method::GET, "/v1/watches?limits=5"), 400),
        (caller.request(Method::GET, "/v1/watches?state=done"), 400),
        (caller.request(Method::GET, "/v1/watches?cursor=-1"), 400),
        (caller.request(Method::GET, "/v1/events?since=yesterday"), 400),
        (caller.request(Method::GET, "/v1/nothing"), 404),
        (caller.request(Method::PUT, "/v1/watches"), 405),
        (caller.request(Method::GET, "/v1/watches/never"), 404),
        (caller.request(Method::DELETE, "/v1/watches/never"), 404),
        (caller.request(Method::POST, "/v1/watches/never/poll"), 404),
        (caller.request(Method::POST, "/v1/deliveries/7/retry"), 404),
        (caller.request(Method::POST, "/v1/deliveries/x/retry"), 400),
    ] {
        let refused = answer(request).await;
        assert_eq!(refused.status, status, "{refused:?}");
        assert!(!refused.detail().is_empty());
    }
    assert_eq!(place.ask::<i64>("SELECT count(*) FROM watches"), Some(0));
    assert!(daemon.stop().await.success());
}

#[tokio::test]
async fn pages_go_through_everything_once_while_more_is_added() {
    let api = slow_api().await;
    let (_place, daemon, caller) = served(&api, "").await;
    let ids: Vec<String> = (0..25).map(|n| format!("slow_{n}")).collect();
    caller.post("/v1/watches", json!({"asset_ids": ids})).await;
    caller.post("/v1/watches", json!({"asset_ids": ["odd", "Odd"], "batch": "few"})).await;

    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = caller.get(&format!("/v1/watches?limit=10&search=slow{cursor}")).await;
        seen.extend(page.body["watches"].as_array().unwrap().iter().map(|watch| watch["asset_id"].to_string()));
        caller.post("/v1/watches", json!({"asset_id": format!("slow_later_{}", seen.len())})).await;
        match page.body["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!((seen.len(), seen.iter().collect::<BTreeSet<_>>().len()), (25, 25), "{seen:?}");

    for (query, found) in [
        ("search=odd", 1),
        ("search=dd", 2),
        ("search=%25", 0),
        ("batch=few", 2),
        ("batch=few&search=Odd", 1),
        ("state=cancelled", 0),
        ("account=studio", 0),
        ("account=default&batch=few&state=waiting", 2),
    ] {
        let page = caller.get(&format!("/v1/watches?{query}")).await;
        assert_eq!(page.body["watches"].as_array().unwrap().len(), found, "{query}");
    }
    assert!(daemon.stop().await.success());
}

#[tokio::test]
async fn a_long_poll_answers_when_the_watch_ends_and_not_before() {
    let ready = Latch::closed();
    let held = ready.clone();
    let api = Server::start(move |request| {
        let active = request.asset() == "mine" && held.is_open();
        Reply::asset(request.asset(), if active { "active" } else { "processing" })
    })
    .await;
    let (_place, daemon, caller) = served(&api, "").await;
    caller.post("/v1/watches", json!({"asset_ids": ["mine", "other"]})).await;
    let waiting = caller.get("/v1/watches/other?wait=1s").await;
    assert_eq!(waiting.body["state"], "waiting", "after the time it is told as it stands");

    let asking = tokio::spawn({
        let caller = caller.clone();
        async move { caller.get("/v1/watches/mine?wait=5m").await }
    });
    api.until(api.count() + 3).await;
    assert!(!asking.is_finished());
    ready.open();
    let settled = asking.await.unwrap();
    assert_eq!((&settled.body["state"], &settled.body["status"]), (&json!("settled"), &json!("active")));
    assert_eq!(caller.get("/v1/watches/mine?wait=5m").await.body["state"], "settled", "at once");
    assert!(daemon.stop().await.success());
}

/// A caller's metadata may be most of a watch, and so of a page.
#[tokio::test]
async fn pages_of_large_watches_and_events_are_shorter_and_go_on_where_they_ended() {
    let api = slow_api().await;
    let (place, daemon, caller) = served(&api, "").await;
    let large = "x".repeat(16_000);
    let ids: Vec<String> = (0..60).map(|n| format!("active_{n}")).collect();
    caller.post("/v1/watches", json!({"asset_ids": ids, "metadata": {"large": large}})).await;
    place.until("SELECT count(*) FROM events", 60).await;
    for (list, key) in [("watches", "asset_id"), ("events", "id")] {
        let (mut seen, mut pages, mut cursor) = (BTreeSet::new(), 0, String::new());
        loop {
            let page = caller.get(&format!("/v1/{list}?limit=1000{cursor}")).await;
            assert!(page.body.to_string().len() < 300 * 1_024, "{list}: {}", page.body.to_string().len());
            let rows = page.body[list].as_array().unwrap();
            assert!(rows.iter().all(|row| seen.insert(row[key].to_string())), "{list}: told twice");
            pages += 1;
            match page.body["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => break,
            }
        }
        assert_eq!(seen.len(), 60, "{list}");
        assert!((4..=8).contains(&pages), "{list}: {pages} pages");
    }
    assert!(daemon.stop().await.success());
}

#[tokio::test]
async fn a_watch_is_polled_now_and_cancelled() {
    let api = slow_api().await;
    let (place, daemon, caller) = served(&api, "").await;
    // Polled once, and then not for an hour.
    let api_url = api.url();
    place.configure(&api_url, "initial = \"1h\"\nmax = \"1h\"\n[http]\nlisten = \"127.0.0.1:0\"\n");
    let text = std::fs::read_to_string(place.config()).unwrap();
    std::fs::write(place.config(), text.replace("initial = \"100ms\"\nmax = \"400ms\"\n", "")).unwrap();
    daemon.signal(rustix::process::Signal::HUP);
    daemon.until_logged("reloaded").await;
    caller.post("/v1/watches", json!({"asset_id": "slow_1"})).await;
    api.until(1).await;
    place.until("SELECT polls FROM watches", 1).await;
    let polled = caller.post("/v1/watches/slow_1/poll", json!(null)).await;
    assert_eq!((polled.status.as_u16(), &polled.body["state"]), (202, &json!("waiting")), "{polled:?}");
    api.until(2).await;

    place.until("SELECT polls FROM watches", 2).await;
    let cancelled = caller.delete("/v1/watches/slow_1").await;
    assert_eq!((cancelled.status.as_u16(), &cancelled.body["state"]), (200, &json!("cancelled")), "{cancelled:?}");
    for refused in
        [caller.delete("/v1/watches/slow_1").await, caller.post("/v1/watches/slow_1/poll", json!(null)).await]
    {
        assert_eq!(refused.status, 409);
        assert!(refused.detail().contains("cancelled already"), "{refused:?}");
    }
    // A second watch of the asset is the newest, and the first one is still there by its number.
    caller.post("/v1/watches", json!({"asset_id": "slow_1", "again": true})).await;
    assert_eq!(caller.get("/v1/watches/slow_1").await.body["state"], "waiting");
    assert_eq!(caller.get("/v1/watches/slow_1?watch=1").await.body["state"], "cancelled");
    for (path, says) in [
        ("other?watch=1", "no watch of \"other\" with the number 1 is known"),
        ("slow_1?watch=77", "no watch of \"slow_1\" with the number 77 is known"),
        ("slow_1?account=studio", "no watch of \"slow_1\" for the account \"studio\" is known"),
        ("other", "no watch of \"other\" is known; POST /v1/watches starts one"),
    ] {
        for path in [format!("/v1/watches/{path}"), format!("/v1/watches/{}", path.replacen('?', "/history?", 1))] {
            let unknown = caller.get(&path).await;
            assert!(unknown.status == 404 && unknown.detail().contains(says), "{path}: {unknown:?}");
        }
    }
    assert!(daemon.stop().await.success());
}

#[tokio::test]
async fn a_history_shows_attempts_and_a_dead_delivery_is_retried() {
    let api = slow_api().await;
    let works = Latch::closed();
    let mended = works.clone();
    let receiver = Server::start(move |_| Reply::status(if mended.is_open() { 204 } else { 500 })).await;
    let (_place, daemon, caller) = served(&api, &format!("{}schedule = []\n", webhook(&receiver))).await;
    caller.post("/v1/watches", json!({"asset_id": "active_1"})).await;
    let dead = eventually(SOON, "the delivery is dead", async || {
        let page = caller.get("/v1/deliveries?state=dead&hook=cms").await;
        page.body["deliveries"][0]["id"].as_i64()
    })
    .await;
    let history = caller.get("/v1/watches/active_1/history").await;
    assert_eq!(history.body["attempts"][0]["code"], 500, "{history:?}");
    assert!(history.body["hooks"][0]["why"].as_str().unwrap().contains("given up on"), "{history:?}");
    let hooks = caller.get("/v1/hooks").await;
    assert_eq!((&hooks.body["hooks"][0]["name"], &hooks.body["hooks"][0]["dead"]), (&json!("cms"), &json!(1)));

    works.open();
    let retried = caller.post(&format!("/v1/deliveries/{dead}/retry"), json!(null)).await;
    assert_eq!((retried.status.as_u16(), &retried.body["result"]), (202, &json!("due")));
    eventually(SOON, "it is delivered", async || {
        let page = caller.get("/v1/deliveries?state=delivered").await;
        page.body["deliveries"].as_array().filter(|rows| rows.len() == 1).map(drop)
    })
    .await;
    assert!(daemon.stop().await.success());
}

#[tokio::test]
async fn the_overview_and_the_description_cover_everything() {
    let api = slow_api().await;
    let (_place, daemon, caller) = served(&api, "[accounts.studio]\nkey_file = \"key\"\n").await;
    caller.post("/v1/watches", json!({"asset_ids": ["active_1", "active_2", "slow_1"]})).await;
    let overview = eventually(SOON, "two have settled", async || {
        let overview = caller.get("/v1/overview").await;
        (overview.body["watches"]["settled"] == 2).then_some(overview)
    })
    .await;
    assert_eq!(overview.body["watches"], json!({"waiting": 1, "settled": 2, "abandoned": 0, "cancelled": 0}));
    assert_eq!(overview.body["statuses"], json!({"active": 2}));
    let minutes = overview.body["settled_per_minute"].as_array().unwrap();
    assert_eq!(minutes.iter().map(|minute| minute["settled"].as_i64().unwrap()).sum::<i64>(), 2);
    assert_eq!((minutes.len(), &overview.body["waiting_times"][0]["type"]), (60, &json!("image")));
    let accounts = overview.body["accounts"].as_array().unwrap();
    assert_eq!((accounts.len(), &accounts[0]["configured_rate"]), (2, &json!(10_000.0)), "{accounts:?}");
    assert_eq!(caller.get("/v1/accounts").await.body["accounts"][1]["name"], "studio");

    let document = caller.get("/openapi.json").await;
    assert_eq!(document.body["openapi"], "3.1.0");
    let operations = document.body["paths"].as_object().unwrap().values().flat_map(|path| path.as_object().unwrap());
    for (method, operation) in operations.filter(|(method, _)| ["get", "post", "delete"].contains(&method.as_str())) {
        let problem = &operation["responses"]["default"]["content"]["application/problem+json"];
        assert!(problem.is_object(), "a wrong Host is refused everywhere: {method} {operation}");
    }
    for path in document.body["paths"].as_object().unwrap().keys().filter(|path| !path.contains('{')) {
        if !path.ends_with("/stream") {
            assert_eq!(caller.get(path).await.status, 200, "{path}");
        }
    }
    assert!(daemon.stop().await.success());
}
