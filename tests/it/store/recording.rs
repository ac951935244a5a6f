//! What `record` and `end` write, and when they must not.

use assetwatch::store::StoreError;
use assetwatch::watch::{Reason, Streaks};

use super::*;

#[tokio::test]
async fn every_field_of_a_poll_is_written() {
    let base = Base::new().await;
    let watch = base.leased("a").await;
    let at = |seconds| Some(NOW + seconds * SECOND);
    let after = Watch {
        due_at: at(7),
        lease_owner: None,
        lease_until: None,
        polls: 3,
        streaks: Streaks { waiting: 4, failures: 5, rejections: 6 },
        missing: Some(Since { at: NOW + SECOND, base: -7 }),
        asset: Asset {
            status: Some("processing".into()),
            kind: Some("video".into()),
            url: Some("https://cdn.example/1".into()),
            width: Some(-1),
            height: Some(i64::MAX),
            duration: Some(30),
            frames: Some(200),
        },
        last_error: Some("odd".into()),
        first_polled_at: at(2),
        last_polled_at: at(3),
        processing_at: at(4),
        waiting_at: at(5),
        lost_base: Some(77),
        ..watch
    };
    base.store.record(after.clone(), Vec::new(), nobody()).await.unwrap();
    assert_eq!(base.watch(after.id).await, after);
    let claimed = base.claim(later(7 * SECOND, &[("default", 1)])).await.remove(0).rows.remove(0);
    let ended = Watch {
        state: State::Abandoned,
        reason: Some(Reason::Patience),
        due_at: None,
        lease_owner: None,
        lease_until: None,
        settled_at: at(8),
        ..claimed
    };
    base.store.record(ended.clone(), Vec::new(), nobody()).await.unwrap();
    assert_eq!(base.watch(ended.id).await, ended);
}

#[tokio::test]
async fn what_was_given_to_add_is_not_changed_by_a_poll() {
    let base = Base::new().await;
    let watch = base.leased("a").await;
    let other = Watch {
        asset_id: "b".into(),
        account: "studio".into(),
        patience: Some(MINUTE),
        batch: Some("b".into()),
        metadata: Some("1".into()),
        created_at: NOW + DAY,
        ..settled(&watch)
    };
    base.store.record(other, Vec::new(), nobody()).await.unwrap();
    let expected = Watch { lease_owner: None, lease_until: None, ..settled(&watch) };
    assert_eq!(base.watch(watch.id).await, expected);
}

#[tokio::test]
async fn a_watch_its_event_and_its_deliveries_are_one() {
    let base = Base::new().await;
    let watch = settled(&base.leased("a").await);
    base.store.record(watch.clone(), vec![event(&watch, "asset.active", &["cms", "publish"])], nobody()).await.unwrap();
    let history = base.store.history(watch.id).await.unwrap();
    let told = &history.events[0];
    assert_eq!((history.events.len(), told.id.as_str()), (1, format!("evt_{}_asset.active", watch.id).as_str()));
    assert_eq!((told.event_type.as_str(), told.body.as_str()), ("asset.active", "{\"type\": \"asset.active\"}"));
    assert_eq!((told.watch_id, told.created_at), (Some(watch.id), NOW));
    let deliveries: Vec<_> =
        history.deliveries.iter().map(|delivery| (delivery.hook.as_str(), delivery.due_at)).collect();
    assert_eq!(deliveries, [("cms", Some(NOW)), ("publish", Some(NOW))], "due at once");
    assert!(history.deliveries.iter().all(|delivery| delivery.event_id == told.id && delivery.attempts == 0));
}

/// Two deliveries of one event to one hook are not allowed: the second event's failure undoes the first, and the watch.
#[tokio::test]
async fn nothing_is_written_when_a_part_of_it_cannot_be() {
    let base = Base::new().await;
    let watch = base.leased("a").await;
    let after = settled(&watch);
    let events = vec![event(&after, "asset.processing", &["cms"]), event(&after, "asset.active", &["cms", "cms"])];
    let error = base.store.record(after, events, nobody()).await.unwrap_err();
    assert!(matches!(error, StoreError::Refused(_)), "{error}");
    assert_eq!(base.watch(watch.id).await, watch, "the lease is still held");
    assert_eq!(base.ask::<i64>("SELECT (SELECT count(*) FROM events) + (SELECT count(*) FROM deliveries)"), 0);
}

#[tokio::test]
async fn the_tables_invariants_hold_against_ourselves() {
    let base = Base::new().await;
    let watch = base.leased("a").await;
    for wrong in [
        Watch { state: State::Settled, ..watch.clone() },
        Watch { asset: Asset::default(), ..settled(&watch) },
        Watch { state: State::Abandoned, reason: None, ..settled(&watch) },
        Watch { due_at: None, ..watch.clone() },
        Watch { settled_at: Some(NOW), ..watch.clone() },
    ] {
        let error = base.store.record(wrong.clone(), Vec::new(), nobody()).await.unwrap_err();
        assert!(matches!(error, StoreError::Refused(_)), "{error}: {wrong:?}");
    }
    assert_eq!(base.watch(watch.id).await, watch);
}

#[tokio::test]
async fn a_worker_that_was_too_slow_writes_nothing() {
    let base = Base::new().await;
    let slow = base.leased("a").await;
    let quick = base.claim(later(MINUTE, &[("default", 1)])).await.remove(0).rows.remove(0);
    let told = |watch: &Watch| vec![event(watch, "asset.active", &["cms"])];
    let lost = base.store.record(settled(&slow), told(&slow), nobody()).await;
    assert_eq!(lost, Err(StoreError::LeaseLost), "while the other one works");
    assert_eq!(base.watch(quick.id).await, quick);
    base.store.record(waiting(&quick, NOW), Vec::new(), nobody()).await.unwrap();
    assert_eq!(
        base.store.record(settled(&slow), told(&slow), nobody()).await,
        Err(StoreError::LeaseLost),
        "after it as well"
    );
    assert_eq!(base.ask::<i64>("SELECT count(*) FROM events"), 0);
}

/// A lease that has expired and was not claimed again is still the only one.
#[tokio::test]
async fn a_lease_that_nobody_took_over_still_writes() {
    let base = Base::new().await;
    let watch = base.leased("a").await;
    base.store.record(Watch { settled_at: Some(NOW + DAY), ..settled(&watch) }, Vec::new(), nobody()).await.unwrap();
    assert_eq!(base.watch(watch.id).await.state, State::Settled);
}

#[tokio::test]
async fn a_settled_watch_cannot_settle_twice() {
    let base = Base::new().await;
    let watch = base.leased("a").await;
    let twice = [settled(&watch), settled(&watch)].map(|after| {
        let told = vec![event(&after, "asset.active", &["cms"])];
        base.store.record(after, told, nobody())
    });
    let [first, second] = twice;
    let results = [first.await, second.await];
    assert_eq!(results, [Ok(None), Err(StoreError::LeaseLost)]);
    assert_eq!(base.ask::<i64>("SELECT count(*) FROM deliveries"), 1);
}

#[tokio::test]
async fn the_same_fact_is_told_once() {
    let base = Base::new().await;
    let watch = base.leased("a").await;
    let told = event(&watch, "asset.processing", &["cms"]);
    base.store.record(waiting(&watch, NOW), vec![told.clone()], nobody()).await.unwrap();
    let again = base.claim(terms(&[("default", 1)])).await.remove(0).rows.remove(0);
    let later = assetwatch::event::Event {
        body: b"other".into(),
        addressees: vec![addressee("cms"), addressee("new")],
        ..told
    };
    base.store.record(waiting(&again, NOW), vec![later], nobody()).await.unwrap();
    let history = base.store.history(watch.id).await.unwrap();
    assert_eq!((history.events.len(), history.deliveries.len()), (1, 1));
    assert_eq!(history.events[0].body, "{\"type\": \"asset.processing\"}", "the bytes of the first time");
    assert_eq!(base.watch(watch.id).await.polls, 2, "and the poll is recorded all the same");
}

#[tokio::test]
async fn the_end_supersedes_an_undelivered_processing() {
    let base = Base::new().await;
    let watch = base.leased("a").await;
    let hooks = ["waits", "held", "leased", "delivered", "unconcerned"];
    base.store.record(waiting(&watch, NOW), vec![event(&watch, "asset.processing", &hooks)], nobody()).await.unwrap();
    base.execute("UPDATE deliveries SET state = 'held', due_at = NULL WHERE hook = 'held'");
    base.execute("UPDATE deliveries SET lease_owner = 'us', lease_until = 9e12 WHERE hook = 'leased'");
    base.execute("UPDATE deliveries SET state = 'delivered', due_at = NULL, finished_at = 1 WHERE hook = 'delivered'");
    let other = base.settled("other", &["waits"]).await;
    let again = base.claim(terms(&[("default", 1)])).await.remove(0).rows.remove(0);
    base.store.record(settled(&again), vec![event(&again, "asset.active", &hooks[..4])], nobody()).await.unwrap();
    let states: Vec<_> = base.deliveries(watch.id).await.iter().map(|delivery| delivery.state.as_str()).collect();
    assert_eq!(states[..5], ["dead", "dead", "waiting", "delivered", "dead"], "also where the end is not told");
    assert_eq!(states[5..], ["waiting"; 4], "the end itself is to be delivered");
    let superseded = &base.deliveries(watch.id).await[0];
    assert_eq!((superseded.finished_at, superseded.attempts), (Some(NOW), 0));
    assert!(superseded.last_error.as_deref().unwrap().starts_with("superseded"), "{superseded:?}");
    assert_eq!(base.deliveries(other.id).await[0].state.as_str(), "waiting", "of this watch only");
}

#[tokio::test]
async fn a_cancelled_watch_wins_against_its_worker() {
    let base = Base::new().await;
    let watch = base.leased("a").await;
    let end = |before: &Watch| {
        let after = Watch { state: State::Cancelled, due_at: None, settled_at: Some(NOW), ..before.clone() };
        let told = event(&after, "watch.cancelled", &["cms"]);
        (after, vec![told])
    };
    let ended = base.store.end(vec![watch.id], end, nobody()).await.unwrap().remove(0).unwrap();
    assert_eq!((ended.state, ended.generation), (State::Cancelled, watch.generation));
    let stored = base.watch(watch.id).await;
    assert_eq!((stored.state, stored.lease_owner, stored.lease_until), (State::Cancelled, None, None));
    let told = vec![event(&watch, "asset.active", &["cms"])];
    assert_eq!(base.store.record(settled(&watch), told, nobody()).await, Err(StoreError::LeaseLost));
    assert_eq!(base.store.history(watch.id).await.unwrap().events.len(), 1, "only the cancelling is told");
}

#[tokio::test]
async fn only_what_waits_can_be_ended() {
    let base = Base::new().await;
    let watch = base.settled("a", &[]).await;
    let stands = base.watch(watch.id).await;
    let ended = base.store.end(vec![watch.id], |_| panic!("the rule is not asked"), nobody()).await.unwrap();
    assert_eq!(ended, [Some(stands.clone())]);
    assert_eq!(base.watch(watch.id).await, stands);
    assert_eq!(base.store.end(vec![999], |_| panic!("the rule is not asked"), nobody()).await.unwrap(), [None]);
}

#[tokio::test]
async fn what_is_ended_at_once_ends_as_a_whole_or_not_at_all() {
    let base = Base::new().await;
    let [a, b, c] = base.add(&["a", "b", "c"]).await.try_into().unwrap();
    let end = |before: &Watch| {
        let after = Watch { state: State::Cancelled, due_at: None, settled_at: Some(NOW), ..before.clone() };
        (after.clone(), vec![event(&after, "watch.cancelled", &["cms"])])
    };
    let refused = a.id;
    let wrong = move |before: &Watch| {
        let (after, events) = end(before);
        (Watch { settled_at: after.settled_at.filter(|_| after.id != refused), ..after }, events)
    };
    let failed = base.store.end(vec![c.id, a.id, b.id], wrong, nobody()).await;
    assert!(matches!(failed, Err(StoreError::Refused(_))), "{failed:?}");
    assert_eq!(base.watch(c.id).await, c, "what came before the bad one is undone");
    let ended = base.store.end(vec![c.id, 999, a.id, c.id], end, nobody()).await.unwrap();
    let ids: Vec<Option<i64>> = ended.iter().map(|watch| watch.as_ref().map(|watch| watch.id)).collect();
    assert_eq!(ids, [Some(c.id), None, Some(a.id), Some(c.id)], "in the order of the ids");
    assert_eq!((base.watch(b.id).await, ended[0].clone()), (b, ended[3].clone()), "only these, and each once");
    assert_eq!(base.store.history(c.id).await.unwrap().events.len(), 1);
}

#[tokio::test]
async fn a_rule_that_cannot_be_written_leaves_the_watch_as_it_was() {
    let base = Base::new().await;
    let watch = base.add(&["a"]).await.remove(0);
    let wrong = |before: &Watch| (Watch { state: State::Settled, ..before.clone() }, Vec::new());
    assert!(matches!(base.store.end(vec![watch.id], wrong, nobody()).await, Err(StoreError::Refused(_))));
    assert_eq!(base.watch(watch.id).await, watch);
}
