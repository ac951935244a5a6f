//! The ledger: claiming deliveries, finishing attempts, adapting to a configuration.

use assetwatch::decide::Verdict;
use assetwatch::delivery::{Attempt, DeliveryState, Outcome};
use assetwatch::store::{AttemptRow, Outstanding, StoreError};

use super::*;

/// The hooks' deliveries that can be claimed at a time, as (watch, event type).
async fn claimable(base: &Base, hook: &str, by: Duration) -> Vec<(i64, String)> {
    let parcels = base.parcels(later(by, &[(hook, 99)])).await;
    let mut found = Vec::new();
    for parcel in parcels {
        let sql = format!("SELECT watch_id FROM deliveries WHERE id = {}", parcel.delivery.id);
        found.push((base.ask(&sql), parcel.event_type));
    }
    found
}

async fn attempts(base: &Base, watch: &Watch) -> Vec<AttemptRow> {
    base.store.history(watch.id).await.unwrap().attempts
}

fn outcomes(attempts: &[AttemptRow]) -> Vec<Option<&str>> {
    attempts.iter().map(|attempt| attempt.outcome.as_deref()).collect()
}

fn failed() -> Outcome {
    Outcome::Failed { error: "503".into(), not_before: None }
}

fn again(due_at: Timestamp) -> Verdict {
    Verdict::Again { due_at, failures: 1, error: "503".into() }
}

#[tokio::test]
async fn an_attempt_is_written_before_anything_is_sent() {
    let base = Base::new().await;
    let watch = base.settled("a", &["cms"]).await;
    let parcel = base.parcels(terms(&[("cms", 9)])).await.remove(0);
    assert_eq!((parcel.number, parcel.event_type.as_str()), (1, "asset.active"));
    assert_eq!(parcel.body, b"{\"type\": \"asset.active\"}");
    assert_eq!((parcel.delivery.generation, parcel.delivery.attempts, parcel.delivery.failures), (1, 1, 0));
    let attempt = attempts(&base, &watch).await.remove(0);
    assert_eq!((attempt.number, attempt.started_at), (1, NOW));
    assert_eq!((attempt.finished_at, attempt.outcome), (None, None));
    assert_eq!(base.ask::<i64>("SELECT lease_until FROM deliveries"), (NOW + 20 * SECOND).as_millis());
    assert!(base.parcels(terms(&[("cms", 9)])).await.is_empty(), "it is leased");
}

#[tokio::test]
async fn the_attempt_of_an_expired_lease_becomes_unknown() {
    let base = Base::new().await;
    let watch = base.settled("a", &["cms"]).await;
    let first = base.parcels(terms(&[("cms", 9)])).await.remove(0);
    assert!(base.parcels(later(19 * SECOND, &[("cms", 9)])).await.is_empty());
    let second = base.parcels(later(20 * SECOND, &[("cms", 9)])).await.remove(0);
    assert_eq!((second.number, second.delivery.generation), (2, 2));
    assert_eq!(
        (&second.delivery.event_id, &second.body),
        (&first.delivery.event_id, &first.body),
        "the same id and bytes"
    );
    let attempts = attempts(&base, &watch).await;
    assert_eq!(outcomes(&attempts), [Some("unknown"), None]);
    assert_eq!(attempts[0].finished_at, Some(NOW + 20 * SECOND));
}

#[tokio::test]
async fn deliveries_are_claimed_by_hook_oldest_first() {
    let base = Base::new().await;
    let ids = [base.settled("a", &["cms", "other"]).await.id, base.settled("b", &["cms"]).await.id];
    base.settled("c", &["cms"]).await;
    base.execute("UPDATE deliveries SET due_at = due_at - 10 WHERE id > 1");
    base.execute("UPDATE deliveries SET due_at = due_at - 20 WHERE hook = 'cms' AND watch_id = 2");
    let claimed = base.store.claim_deliveries(terms(&[("cms", 2), ("nobody", 9)])).await.unwrap();
    let watches: Vec<i64> = claimed[0]
        .rows
        .iter()
        .map(|parcel| base.ask(&format!("SELECT watch_id FROM deliveries WHERE id = {}", parcel.delivery.id)))
        .collect();
    assert_eq!(watches, [ids[1], 3]);
    assert_eq!((claimed[1].lane.as_str(), claimed[1].rows.len(), claimed[1].next_due), ("nobody", 0, None));
    assert_eq!(base.parcels(terms(&[("other", 9)])).await.len(), 1, "the other hook is not concerned");
}

#[tokio::test]
async fn a_hook_is_told_of_one_watch_in_order() {
    use DeliveryState::{Dead, Delivered, Held, Waiting};
    let base = Base::new().await;
    let (watch, other) = (base.settled("a", &["cms"]).await, base.settled("b", &["cms"]).await);
    // A second and a third fact about the same watch.
    base.execute(
        "INSERT INTO events (id, watch_id, type, body, created_at) SELECT 'second', watch_id, 'second', body, 0 FROM events
             WHERE watch_id = 1;
         INSERT INTO deliveries (event_seq, hook, watch_id, due_at, created_at)
             SELECT seq, hook, 1, 0, 0 FROM events, (SELECT 'cms' AS hook UNION ALL SELECT 'another') WHERE id = 'second';",
    );
    let mut by = Duration::ZERO;
    for (state, blocks) in [(Waiting, true), (Held, true), (Dead, false), (Delivered, false)] {
        base.execute(&format!(
            "UPDATE deliveries SET state = '{}', due_at = {}, finished_at = {}, lease_owner = NULL, lease_until = NULL
             WHERE id = 1",
            state.as_str(),
            if state == Waiting { "9e12" } else { "NULL" },
            if blocks { "NULL" } else { "1" },
        ));
        by += MINUTE;
        let mut expected = vec![(other.id, "asset.active".to_owned())];
        if !blocks {
            expected.push((watch.id, "second".into()));
        }
        let horizon = Timestamp::from_millis(i64::MAX);
        let mut claimed = Vec::new();
        for parcel in base.parcels(Terms { horizon, ..later(by, &[("cms", 9)]) }).await {
            let watch = base.ask(&format!("SELECT watch_id FROM deliveries WHERE id = {}", parcel.delivery.id));
            claimed.push((watch, parcel.event_type));
        }
        claimed.sort_by_key(|(watch, _)| *watch != other.id);
        assert_eq!(claimed, expected, "the first one is {state:?}");
    }
    assert_eq!(claimable(&base, "another", by).await, [(watch.id, "second".into())], "of this hook");
}

/// A person may retry what was given up on while a later one is under way.
#[tokio::test]
async fn a_lease_that_expires_behind_an_earlier_delivery_is_not_due() {
    let base = Base::new().await;
    let watch = base.leased("a").await;
    base.store.record(waiting(&watch, NOW), vec![event(&watch, "first", &["cms"])], nobody()).await.unwrap();
    base.execute("UPDATE deliveries SET state = 'dead', due_at = NULL, finished_at = 1");
    let again = base.claim(terms(&[("default", 1)])).await.remove(0).rows.remove(0);
    base.store.record(settled(&again), vec![event(&again, "second", &["cms"])], nobody()).await.unwrap();
    assert_eq!(claimable(&base, "cms", Duration::ZERO).await, [(watch.id, "second".into())]);
    let retried = (NOW + HOUR).as_millis();
    base.execute(&format!(
        "UPDATE deliveries SET state = 'waiting', due_at = {retried}, finished_at = NULL WHERE id = 1"
    ));
    let claimed = base.store.claim_deliveries(later(MINUTE, &[("cms", 9)])).await.unwrap().remove(0);
    assert!(claimed.rows.is_empty(), "it would overtake the first one");
    assert_eq!(claimed.next_due, Some(NOW + HOUR), "an instant that has passed would make the pump spin");
}

#[tokio::test]
async fn a_claim_of_deliveries_says_when_the_hook_has_something_next() {
    let base = Base::new().await;
    let ids = [base.settled("a", &["cms"]).await.id, base.settled("b", &["cms"]).await.id];
    base.execute(&format!("UPDATE deliveries SET due_at = {} WHERE watch_id = 2", (NOW + HOUR).as_millis()));
    let next = async |by, only| {
        let claimed = base.store.claim_deliveries(Terms { only, ..later(by, &[("cms", 9)]) }).await.unwrap().remove(0);
        (claimed.rows.len(), claimed.next_due)
    };
    assert_eq!(next(Duration::ZERO, Some(vec![ids[1]])).await, (0, Some(NOW + HOUR)), "limited to the second watch");
    assert_eq!(next(Duration::ZERO, None).await, (1, Some(NOW + 20 * SECOND)), "the end of the first one's lease");
    assert_eq!(next(20 * SECOND, Some(Vec::new())).await, (0, None));
}

/// Claims the only delivery there is, and finishes it.
async fn finish(base: &Base, outcome: Outcome, verdict: Verdict) -> Delivery {
    let parcel = base.parcels(terms(&[("cms", 9)])).await.remove(0);
    let attempt =
        Attempt { code: Some(418), output: b"out\xff".into(), errors: b"err".into(), ..Attempt::bare(outcome) };
    base.finish(parcel, attempt, verdict, NOW + SECOND).await.unwrap();
    base.deliveries(1).await.remove(0)
}

#[tokio::test]
async fn each_verdict_writes_its_row() {
    use DeliveryState::{Dead, Delivered, Held, Waiting};
    let (due, ended) = (Some(NOW), Some(NOW + SECOND));
    let error = || "503".to_owned();
    let blocked = Outcome::Blocked { error: error() };
    let refused = Outcome::Refused { error: error() };
    for (outcome, word, verdict, state, due_at, finished_at, failures) in [
        (Outcome::Delivered, "delivered", Verdict::Delivered, Delivered, None, ended, 0),
        (failed(), "failed", again(NOW + HOUR), Waiting, Some(NOW + HOUR), None, 1),
        (failed(), "failed", Verdict::Dead { error: error() }, Dead, None, ended, 1),
        (refused, "refused", Verdict::Dead { error: error() }, Dead, None, ended, 1),
        (blocked, "blocked", Verdict::Held { error: error() }, Held, None, None, 0),
        (Outcome::Interrupted, "interrupted", Verdict::Interrupted, Waiting, due, None, 0),
    ] {
        let base = Base::new().await;
        let watch = base.settled("a", &["cms"]).await;
        let written = finish(&base, outcome, verdict.clone()).await;
        assert_eq!((written.state, written.due_at, written.finished_at), (state, due_at, finished_at), "{verdict:?}");
        assert_eq!((written.failures, written.attempts, written.generation), (failures, 1, 1), "{verdict:?}");
        let is_good = matches!(verdict, Verdict::Delivered | Verdict::Interrupted);
        assert_eq!(written.last_error, (!is_good).then(error), "{verdict:?}");
        assert_eq!(base.ask::<Option<i64>>("SELECT lease_until FROM deliveries"), None);
        let attempt = attempts(&base, &watch).await.remove(0);
        assert_eq!((attempt.outcome.as_deref(), attempt.finished_at, attempt.code), (Some(word), ended, Some(418)));
        let interrupted = "it was stopped before its end: it may have been received".to_owned();
        let doubt = (verdict == Verdict::Interrupted).then_some(interrupted);
        assert_eq!(attempt.error, (!is_good).then(error).or(doubt), "{verdict:?}");
        assert_eq!((attempt.output.as_deref(), attempt.errors.as_deref()), (Some("out\u{fffd}"), Some("err")));
    }
}

#[tokio::test]
async fn a_delivery_that_works_at_last_forgets_its_error_but_not_its_failures() {
    let base = Base::new().await;
    base.settled("a", &["cms"]).await;
    finish(&base, failed(), again(NOW)).await;
    let delivered = finish(&base, Outcome::Delivered, Verdict::Delivered).await;
    assert_eq!((delivered.last_error, delivered.failures, delivered.attempts), (None, 1, 2));
}

#[tokio::test]
async fn an_interrupted_attempt_costs_nothing_and_is_due_at_once() {
    let base = Base::new().await;
    base.settled("a", &["cms"]).await;
    let before = finish(&base, failed(), again(NOW)).await;
    let after = finish(&base, Outcome::Interrupted, Verdict::Interrupted).await;
    assert_eq!((after.failures, after.last_error, after.due_at), (before.failures, before.last_error, before.due_at));
    assert_eq!((after.attempts, after.state), (2, DeliveryState::Waiting));
}

#[tokio::test]
async fn a_sender_that_was_too_slow_keeps_its_outcome_and_nothing_else() {
    let base = Base::new().await;
    let watch = base.settled("a", &["cms"]).await;
    let slow = base.parcels(terms(&[("cms", 9)])).await.remove(0);
    let quick = base.parcels(later(MINUTE, &[("cms", 9)])).await.remove(0);
    let lost = base.finish(slow, Attempt::bare(Outcome::Delivered), Verdict::Delivered, NOW + HOUR).await;
    assert_eq!(lost, Err(StoreError::LeaseLost));
    let all = attempts(&base, &watch).await;
    assert_eq!(outcomes(&all), [Some("delivered"), None], "what is known now replaces `unknown`");
    assert_eq!(base.deliveries(watch.id).await[0].state, DeliveryState::Waiting);
    base.finish(quick, Attempt::bare(failed()), again(NOW + DAY), NOW).await.unwrap();
    assert_eq!(outcomes(&attempts(&base, &watch).await), [Some("delivered"), Some("failed")]);
}

#[tokio::test]
async fn who_stops_hands_back_its_own_leases_only() {
    let base = Base::new().await;
    base.settled("a", &["cms", "other"]).await;
    base.add(&["b", "c"]).await;
    let theirs = |lanes| Terms { owner: "them".into(), ..terms(lanes) };
    base.claim(terms(&[("default", 1)])).await;
    base.claim(theirs(&[("default", 1)])).await;
    base.parcels(terms(&[("cms", 1)])).await;
    base.parcels(theirs(&[("other", 1)])).await;
    let row =
        |owner: &str| assetwatch::store::DaemonRow { owner: owner.into(), pid: 1, host: "h".into(), heartbeat_at: NOW };
    base.store.note_daemon(row("us")).await.unwrap();
    base.store.note_daemon(row("them")).await.unwrap();
    base.store.release("us".into(), NOW + SECOND).await.unwrap();
    let leases = |table| base.ask::<String>(&format!("SELECT group_concat(coalesce(lease_owner, '-')) FROM {table}"));
    assert_eq!((leases("watches"), leases("deliveries")), ("-,-,them".into(), "-,them".into()));
    assert_eq!(outcomes(&attempts(&base, &base.watch(1).await).await), [Some("unknown"), None]);
    assert_eq!(base.store.daemons().await.unwrap(), [row("them")]);
    assert_eq!(asset_ids(&base.claim(terms(&[("default", 9)])).await[0].rows), ["b"], "due again at once");
    assert_eq!(base.parcels(terms(&[("cms", 9)])).await[0].number, 2);
}

#[tokio::test]
async fn daemons_that_gave_no_sign_of_life_for_a_day_are_forgotten() {
    let base = Base::new().await;
    let row = |owner: &str, heartbeat_at| assetwatch::store::DaemonRow {
        owner: owner.into(),
        pid: 7,
        host: "h".into(),
        heartbeat_at,
    };
    base.store.note_daemon(row("old", NOW)).await.unwrap();
    base.store.note_daemon(row("older", NOW)).await.unwrap();
    base.store.note_daemon(row("old", NOW + HOUR)).await.unwrap();
    base.store.note_daemon(row("new", NOW + DAY + SECOND)).await.unwrap();
    let mut owners: Vec<_> = base.store.daemons().await.unwrap().into_iter().map(|row| row.owner).collect();
    owners.sort();
    assert_eq!(owners, ["new", "old"]);
}

#[tokio::test]
async fn the_ledger_adapts_to_the_hooks_that_are_configured() {
    let base = Base::new().await;
    let watch = base.settled("a", &["kept", "gone", "gone_in_flight", "delivered", "held"]).await;
    base.execute("UPDATE deliveries SET lease_owner = 'us', lease_until = 9e12 WHERE hook = 'gone_in_flight'");
    base.execute("UPDATE deliveries SET state = 'delivered', due_at = NULL, finished_at = 1 WHERE hook = 'delivered'");
    base.execute("UPDATE deliveries SET state = 'held', due_at = NULL WHERE hook = 'held'");
    let hooks = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let states = async || {
        let deliveries = base.deliveries(watch.id).await;
        deliveries.iter().map(|delivery| (delivery.state.as_str(), delivery.due_at)).collect::<Vec<_>>()
    };
    base.store.adopt_hooks(hooks(&["kept", "held"]), true, NOW + HOUR).await.unwrap();
    let (at_first, later) = (Some(NOW), Some(NOW + HOUR));
    let expected =
        [("waiting", at_first), ("held", None), ("waiting", at_first), ("delivered", None), ("waiting", later)];
    assert_eq!(states().await, expected);
    assert!(base.deliveries(watch.id).await[1].last_error.as_deref().unwrap().contains("no hook of this name"));
    base.store.adopt_hooks(hooks(&["kept", "held", "gone"]), true, NOW + DAY).await.unwrap();
    assert_eq!(states().await[1], ("waiting", Some(NOW + DAY)), "the hook is back");
}

#[tokio::test]
async fn what_is_outstanding_by_hook() {
    let base = Base::new().await;
    let a = base.settled("a", &["cms", "publish"]).await;
    let b = base.settled("b", &["cms"]).await;
    let c = base.settled("c", &["cms"]).await;
    let row = |hook: &str, waiting, untried| Outstanding { hook: hook.into(), waiting, untried };
    let outstanding = async |ids: &[i64]| base.store.outstanding(ids.to_vec()).await.unwrap();
    assert_eq!(outstanding(&[a.id, b.id]).await, [row("cms", 2, 2), row("publish", 1, 1)]);
    let only = Some(vec![a.id]);
    let parcel = base.parcels(Terms { only, ..terms(&[("cms", 1)]) }).await.remove(0);
    assert_eq!(outstanding(&[a.id, b.id, c.id]).await[0], row("cms", 3, 3), "one is being attempted");
    base.finish(parcel, Attempt::bare(failed()), again(NOW + DAY), NOW).await.unwrap();
    assert_eq!(outstanding(&[a.id, b.id, c.id]).await[0], row("cms", 3, 2), "one has failed and waits");
    base.execute("UPDATE deliveries SET state = 'delivered', due_at = NULL, finished_at = 1");
    assert_eq!(outstanding(&[a.id, b.id, c.id]).await, []);
}

/// It was under way when its asset ended, so the end could not supersede it then.
#[tokio::test]
async fn an_undelivered_processing_does_not_keep_the_end_waiting() {
    let undelivered = [
        Verdict::Again { due_at: NOW + HOUR, failures: 1, error: "500".into() },
        Verdict::Held { error: "no such program".into() },
        Verdict::Interrupted,
    ];
    for verdict in undelivered {
        let base = Base::new().await;
        let watch = base.leased("a").await;
        base.store
            .record(waiting(&watch, NOW), vec![event(&watch, "asset.processing", &["cms"])], nobody())
            .await
            .unwrap();
        let parcel = base.parcels(terms(&[("cms", 1)])).await.remove(0);
        let again = base.claim(terms(&[("default", 1)])).await.remove(0).rows.remove(0);
        base.store.record(settled(&again), vec![event(&again, "asset.active", &["cms"])], nobody()).await.unwrap();
        assert!(base.parcels(terms(&[("cms", 9)])).await.is_empty(), "in order: the first one is under way");
        let attempt = Attempt::bare(Outcome::Interrupted);
        base.finish(parcel, attempt, verdict, NOW).await.unwrap();
        let next = base.parcels(terms(&[("cms", 9)])).await;
        assert_eq!(next.iter().map(|parcel| parcel.event_type.as_str()).collect::<Vec<_>>(), ["asset.active"]);
    }
}
