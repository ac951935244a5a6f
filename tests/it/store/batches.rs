//! Batches: made by their first watch, closed by hand, settled once.

use std::collections::BTreeMap;

use assetwatch::store::StoreError;

use super::*;

async fn add_to(base: &Base, batch: &str, asset_ids: &[&str]) -> Vec<Added> {
    base.store.add(owned(asset_ids), AddOptions { batch: Some(batch.into()), ..plain() }, NOW).await.unwrap()
}

/// All of `default`'s watches, leased.
async fn leased(base: &Base) -> Vec<Watch> {
    base.claim(terms(&[("default", 100)])).await.remove(0).rows
}

fn settled_events(base: &Base) -> i64 {
    base.ask("SELECT count(*) FROM events WHERE type = 'batch.settled'")
}

#[tokio::test]
async fn the_first_watch_makes_a_batch_whoever_inserts_it() {
    let base = Base::new().await;
    add_to(&base, "ours", &["a", "b"]).await;
    base.execute("INSERT INTO watches (asset_id, batch) VALUES ('c', 'theirs')");
    let ours = base.store.batch("ours".into()).await.unwrap().unwrap();
    assert_eq!((ours.watches, ours.waiting, ours.created_at, ours.closed_at), (2, 2, NOW, None));
    assert_eq!(base.store.batch("theirs".into()).await.unwrap().unwrap().watches, 1);
    assert_eq!(base.store.batch("nobody's".into()).await.unwrap(), None);
    let names: Vec<String> = base.store.batches(1).await.unwrap().into_iter().map(|batch| batch.name).collect();
    let newest: String = base.ask("SELECT name FROM batches ORDER BY created_at DESC");
    assert_eq!(names, [newest], "the newest first");
}

#[tokio::test]
async fn a_closed_batch_takes_no_more_watches_and_still_knows_its_own() {
    let base = Base::new().await;
    add_to(&base, "b", &["a"]).await;
    let closed = base.store.close_batch("b".into(), NOW, nobody()).await.unwrap().unwrap();
    assert_eq!((closed.closed_at, closed.settled_at, closed.waiting), (Some(NOW), None, 1));
    let added = add_to(&base, "b", &["a", "late"]).await;
    assert!(matches!(&added[0], Added::Known(_)), "{:?}", added[0]);
    assert_eq!(added[1], Added::BatchClosed);
    let foreign = base.foreign().execute("INSERT INTO watches (asset_id, batch) VALUES ('x', 'b')", []).unwrap_err();
    assert!(foreign.to_string().contains("the batch is closed"), "{foreign}");
    let again = base.store.close_batch("b".into(), NOW + DAY, nobody()).await.unwrap().unwrap();
    assert_eq!(again.closed_at, Some(NOW), "since it was closed first");
    assert_eq!(base.store.close_batch("nobody's".into(), NOW, nobody()).await.unwrap(), None);
}

#[tokio::test]
async fn it_settles_with_the_last_watch_of_a_closed_batch_and_counts() {
    let base = Base::new().await;
    add_to(&base, "b", &["active", "abandoned", "cancelled"]).await;
    base.add(&["of_no_batch"]).await;
    let watches = leased(&base).await;
    assert_eq!(base.store.record(settled(&watches[0]), Vec::new(), told_to(&["cms"])).await, Ok(None), "it is open");
    base.store.close_batch("b".into(), NOW, told_to(&["cms"])).await.unwrap();
    let abandoned =
        Watch { state: State::Abandoned, reason: Some(assetwatch::watch::Reason::Patience), ..settled(&watches[1]) };
    assert_eq!(base.store.record(abandoned, Vec::new(), told_to(&["cms"])).await, Ok(None), "one waits");
    assert_eq!(settled_events(&base), 0);
    let cancel = |watch: &Watch| {
        let settled_at = Some(NOW + SECOND);
        (Watch { state: State::Cancelled, due_at: None, settled_at, ..watch.clone() }, Vec::new())
    };
    base.store.end(vec![watches[2].id], cancel, told_to(&["cms"])).await.unwrap();
    let batch = base.store.batch("b".into()).await.unwrap().unwrap();
    assert_eq!(batch.settled_at, Some(NOW + SECOND));
    assert_eq!((batch.watches, batch.waiting, batch.abandoned, batch.cancelled), (3, 0, 1, 1));
    assert_eq!(batch.statuses, BTreeMap::from([("active".into(), 1)]));
    let body: Vec<u8> = base.ask("SELECT body FROM events WHERE type = 'batch.settled'");
    assert_eq!(body, serde_json::to_vec(&batch).unwrap(), "the event tells the counts of that moment");
    let delivery = "SELECT hook FROM deliveries WHERE watch_id IS NULL AND state = 'waiting'";
    assert_eq!(base.ask::<String>(delivery), "cms");
}

#[tokio::test]
async fn closing_what_has_ended_settles_it_and_closing_twice_tells_once() {
    let base = Base::new().await;
    add_to(&base, "b", &["a"]).await;
    let watch = leased(&base).await.remove(0);
    base.store.record(settled(&watch), Vec::new(), nobody()).await.unwrap();
    for at in [NOW + SECOND, NOW + DAY] {
        let closed = base.store.close_batch("b".into(), at, nobody()).await.unwrap().unwrap();
        assert_eq!((closed.closed_at, closed.settled_at), (Some(NOW + SECOND), Some(NOW + SECOND)));
    }
    assert_eq!(settled_events(&base), 1);
}

#[tokio::test]
async fn twenty_ends_at_once_settle_a_batch_once() {
    for closed_before in [true, false] {
        let base = Base::new().await;
        let ids: Vec<String> = (0..20).map(|number| format!("a{number}")).collect();
        add_to(&base, "b", &ids.iter().map(String::as_str).collect::<Vec<_>>()).await;
        let watches = leased(&base).await;
        let close = || base.store.close_batch("b".into(), NOW, nobody());
        if closed_before {
            close().await.unwrap();
        }
        let ends = watches.iter().map(|watch| base.store.record(settled(watch), Vec::new(), nobody()));
        let (ends, closed) = tokio::join!(futures_util::future::join_all(ends), close());
        let with = ends.iter().filter(|end| matches!(end, Ok(Some(_)))).count();
        assert!(with == 1 || (with == 0 && closed.unwrap().unwrap().settled_at.is_some()), "{with}");
        assert_eq!(settled_events(&base), 1);
    }
}

/// The event cannot be written, so neither is the end of the watch: all or nothing.
#[tokio::test]
async fn a_batch_never_settles_without_its_event() {
    let base = Base::new().await;
    add_to(&base, "b", &["a"]).await;
    base.store.close_batch("b".into(), NOW, nobody()).await.unwrap();
    let watch = leased(&base).await.remove(0);
    let error = base.store.record(settled(&watch), Vec::new(), told_to(&["cms", "cms"])).await.unwrap_err();
    assert!(matches!(error, StoreError::Refused(_)), "{error}");
    assert_eq!(base.watch(watch.id).await, watch, "the lease is still held");
    assert_eq!(base.store.batch("b".into()).await.unwrap().unwrap().settled_at, None);
    let batch = base.store.record(settled(&watch), Vec::new(), told_to(&["cms"])).await.unwrap().unwrap();
    assert_eq!((batch.name.as_str(), settled_events(&base)), ("b", 1));
}
