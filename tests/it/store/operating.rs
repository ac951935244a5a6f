//! What an operator does to deliveries: looks through them, has them attempted once more, and tests.

use assetwatch::decide::Verdict;
use assetwatch::delivery::{Attempt, DeliveryState, Outcome};
use assetwatch::store::{Backlog, DeliveryFilter, Portion, Retried};

use super::*;

/// A delivery to `cms` of a watch that has settled, given up on after three attempts.
async fn dead(base: &Base, asset_id: &str) -> Delivery {
    let watch = base.settled(asset_id, &["cms"]).await;
    base.execute(&format!(
        "UPDATE deliveries SET state = 'dead', due_at = NULL, finished_at = 1, attempts = 3, failures = 3,
             last_error = '503' WHERE watch_id = {}",
        watch.id
    ));
    base.deliveries(watch.id).await.remove(0)
}

async fn delivery(base: &Base, id: i64) -> Delivery {
    let all = base.store.deliveries(DeliveryFilter::default()).await.unwrap();
    all.into_iter().map(|row| row.delivery).find(|delivery| delivery.id == id).unwrap()
}

fn due() -> Retried {
    Retried::Due { hook: "cms".into() }
}

#[tokio::test]
async fn a_retried_delivery_begins_its_schedule_anew_and_goes_on_counting() {
    for state in ["dead', finished_at = 1, due_at = NULL", "held', due_at = NULL", "waiting', due_at = 9e15"] {
        let base = Base::new().await;
        let watch = base.settled("a", &["cms"]).await;
        let sql = format!("UPDATE deliveries SET attempts = 3, failures = 3, last_error = '503', state = '{state}");
        base.execute(&sql);
        let id = base.deliveries(watch.id).await[0].id;
        assert_eq!(base.store.retry(vec![id], NOW + SECOND).await.unwrap(), [due()], "{state}");
        let again = base.parcels(later(SECOND, &[("cms", 9)])).await.remove(0);
        assert_eq!((again.number, again.delivery.failures, again.delivery.finished_at), (4, 0, None), "{state}");
        assert_eq!(again.delivery.event_id, format!("evt_{}_asset.active", watch.id), "under the same id");
    }
}

#[tokio::test]
async fn a_delivered_one_can_be_repeated_and_one_under_way_is_left() {
    let base = Base::new().await;
    base.settled("a", &["cms"]).await;
    let parcel = base.parcels(terms(&[("cms", 9)])).await.remove(0);
    let id = parcel.delivery.id;
    let under_way = Retried::UnderWay { hook: "cms".into() };
    assert_eq!(base.store.retry(vec![id, 999], NOW).await.unwrap(), [under_way, Retried::Unknown]);
    assert_eq!(delivery(&base, id).await.generation, 1, "its lease still holds");
    base.execute(
        "UPDATE deliveries SET state = 'delivered', due_at = NULL, lease_owner = NULL, lease_until = NULL, finished_at = 1",
    );
    assert_eq!(base.store.retry(vec![id], NOW).await.unwrap(), [due()]);
    assert_eq!(delivery(&base, id).await.state, DeliveryState::Waiting);
}

#[tokio::test]
async fn what_a_disabled_hook_was_to_be_told_is_held() {
    let base = Base::new().await;
    let (one, two) = (dead(&base, "a").await, dead(&base, "b").await);
    base.execute("INSERT INTO hooks (name, disabled_at, disabled_reason) VALUES ('cms', 1, '410')");
    let held = Retried::Held { hook: "cms".into() };
    assert_eq!(base.store.retry(vec![one.id], NOW).await.unwrap(), [held]);
    let all = base.store.retry_dead("cms".into(), NOW, 0, NOW).await.unwrap();
    assert_eq!((all.due, all.held), (0, 1));
    for id in [one.id, two.id] {
        let delivery = delivery(&base, id).await;
        assert_eq!((delivery.state, delivery.failures, delivery.due_at), (DeliveryState::Held, 0, None));
    }
    assert_eq!(base.store.enable_hook("cms".into(), NOW).await.unwrap(), 2);
    assert_eq!(base.parcels(terms(&[("cms", 9)])).await.len(), 2);
}

#[tokio::test]
async fn the_dead_are_retried_in_portions_and_by_when_it_happened() {
    let base = Base::new().await;
    base.settled("a", &["cms", "other"]).await;
    base.execute(
        "WITH RECURSIVE number (n) AS (SELECT 2 UNION ALL SELECT n + 1 FROM number WHERE n < 2500)
             INSERT INTO events (id, watch_id, type, body, created_at) SELECT n, NULL, 'x', x'', 0 FROM number;
         INSERT INTO deliveries (event_seq, hook, due_at, created_at)
             SELECT seq, 'cms', 0, iif(seq % 2, 100, 200) FROM events WHERE type = 'x';
         UPDATE deliveries SET state = 'dead', due_at = NULL, finished_at = 1",
    );
    let since = Timestamp::from_millis(200);
    let (mut after, mut portions, mut total) = (Some(0), 0, 0);
    while let Some(id) = after {
        let portion: Portion = base.store.retry_dead("cms".into(), since, id, NOW).await.unwrap();
        assert!(portion.due <= 1_000, "{portion:?}");
        (after, portions, total) = (portion.after, portions + 1, total + portion.due);
    }
    assert_eq!((total, portions), (1_251, 4), "those at 200, and the settled one; and the last portion is empty");
    assert_eq!(base.ask::<i64>("SELECT count(*) FROM deliveries WHERE state = 'dead' AND hook = 'other'"), 1);
    assert_eq!(base.ask::<i64>("SELECT count(*) FROM deliveries WHERE state = 'dead' AND created_at = 100"), 1_249);
}

#[tokio::test]
async fn nobody_wants_a_processing_whose_end_is_known() {
    let base = Base::new().await;
    let watch = base.leased("a").await;
    base.store.record(waiting(&watch, NOW), vec![event(&watch, "asset.processing", &["cms"])], nobody()).await.unwrap();
    base.execute("UPDATE deliveries SET state = 'dead', due_at = NULL, finished_at = 1");
    let retried = || base.store.retry_dead("cms".into(), Timestamp::from_millis(0), 0, NOW);
    assert_eq!(base.store.backlogs().await.unwrap()[0].dead, 1, "while the asset has not ended it is a loss");
    let again = base.claim(terms(&[("default", 1)])).await.remove(0).rows.remove(0);
    base.store.record(settled(&again), vec![event(&again, "asset.active", &["cms"])], nobody()).await.unwrap();
    assert_eq!(retried().await.unwrap().due, 0);
    assert_eq!(base.store.backlogs().await.unwrap()[0].dead, 0);
    let id = base.ask("SELECT min(id) FROM deliveries");
    assert_eq!(base.store.retry(vec![id], NOW).await.unwrap(), [due()], "who names it gets it");
}

#[tokio::test]
async fn deliveries_are_listed_with_what_they_are_about() {
    let base = Base::new().await;
    let one = dead(&base, "a").await;
    base.settled("b", &["cms", "other"]).await;
    base.parcels(terms(&[("other", 9)])).await;
    let listed = base.store.deliveries(DeliveryFilter::default()).await.unwrap();
    let about: Vec<_> = listed
        .iter()
        .map(|row| (row.delivery.hook.as_str(), row.asset_id.as_deref().unwrap(), row.lease_until.is_some()))
        .collect();
    assert_eq!(about, [("other", "b", true), ("cms", "b", false), ("cms", "a", false)], "newest first");
    assert!(listed.iter().all(|row| row.event_type.as_deref() == Some("asset.active")));
    let only = |filter| async { base.store.deliveries(filter).await.unwrap().len() };
    assert_eq!(only(DeliveryFilter { state: Some(DeliveryState::Dead), ..DeliveryFilter::default() }).await, 1);
    assert_eq!(only(DeliveryFilter { hook: Some("cms".into()), ..DeliveryFilter::default() }).await, 2);
    assert_eq!(only(DeliveryFilter { before: Some(one.id + 1), ..DeliveryFilter::default() }).await, 1);
    assert_eq!(only(DeliveryFilter { limit: Some(2), ..DeliveryFilter::default() }).await, 2);
}

#[tokio::test]
async fn a_backlog_counts_what_is_not_delivered() {
    let base = Base::new().await;
    for (asset, state) in [
        ("a", "waiting', due_at = 5"),
        ("b", "waiting', due_at = 1"),
        ("c", "held', due_at = NULL"),
        ("d", "dead', due_at = NULL, finished_at = 1"),
        ("e", "delivered', due_at = NULL, finished_at = 1"),
    ] {
        let watch = base.settled(asset, &["cms"]).await;
        base.execute(&format!(
            "UPDATE deliveries SET created_at = {0}, state = '{state} WHERE watch_id = {0}",
            watch.id
        ));
    }
    base.settled("f", &["other"]).await;
    base.parcels(terms(&[("other", 9)])).await;
    let backlogs = base.store.backlogs().await.unwrap();
    let oldest_waiting_at = Some(Timestamp::from_millis(1));
    assert_eq!(backlogs[0], Backlog { hook: "cms".into(), waiting: 2, held: 1, dead: 1, oldest_waiting_at });
    let under_way = Backlog { hook: "other".into(), waiting: 1, oldest_waiting_at: Some(NOW), ..Backlog::default() };
    assert_eq!(backlogs[1..], [under_way], "what is under way is not delivered yet");
}

#[tokio::test]
async fn a_test_is_in_the_ledger_and_nobody_elses_to_attempt() {
    let base = Base::new().await;
    base.execute("INSERT INTO hooks (name, failures, failing_since) VALUES ('cms', 2, 1)");
    let test = Event { watch_id: None, ..event(&base.add(&["a"]).await[0], "test", &["cms"]) };
    let parcel = base.store.begin_test(test, "tester".into(), 30 * SECOND, NOW).await.unwrap();
    assert_eq!(
        (parcel.number, parcel.event_type.as_str(), parcel.body.as_slice()),
        (1, "test", &b"{\"type\": \"test\"}"[..])
    );
    assert!(base.parcels(later(29 * SECOND, &[("cms", 9)])).await.is_empty(), "it is leased");
    assert_eq!(base.ask::<i64>("SELECT count(*) FROM attempts WHERE outcome IS NULL AND owner = 'tester'"), 1);
    let attempt = Attempt::bare(Outcome::Failed { error: "500".into(), not_before: None });
    let verdict = Verdict::Dead { error: "500".into() };
    base.store.finish_test(parcel.clone(), attempt.clone(), verdict.clone(), NOW).await.unwrap();
    let told = delivery(&base, parcel.delivery.id).await;
    assert_eq!((told.state, told.attempts, told.last_error.as_deref()), (DeliveryState::Dead, 1, Some("500")));
    assert_eq!(base.ask::<i64>("SELECT failures FROM hooks WHERE name = 'cms'"), 2, "it says nothing about the hook");
    assert_eq!(base.ask::<String>("SELECT outcome FROM attempts"), "failed");
    let again = base.store.finish_test(parcel, attempt, verdict, NOW).await;
    assert_eq!(again, Err(assetwatch::store::StoreError::LeaseLost));
}
