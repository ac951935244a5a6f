//! How hooks stand: read and written with what their attempts brought, and heeded by every claim.

use assetwatch::delivery::{Attempt, DeliveryState, Outcome};

use super::*;

fn row(name: &str) -> Standing {
    Standing { name: name.into(), ..Standing::default() }
}

fn notice() -> Event {
    let event_type = "hook.disabled".to_owned();
    let addressees = vec![addressee("operator")];
    Event { id: "evt_n".into(), watch_id: None, event_type, body: b"{}".into(), created_at: NOW, addressees }
}

/// What a claim of one lane brings at a time: how many rows, and when there is something next.
async fn claimed(base: &Base, by: Duration) -> (usize, Option<Timestamp>) {
    let claimed = base.store.claim_deliveries(later(by, &[("cms", 9)])).await.unwrap().remove(0);
    (claimed.rows.len(), claimed.next_due)
}

#[tokio::test]
async fn a_standing_is_written_with_the_verdict_or_not_at_all() {
    let base = Base::new().await;
    base.settled("a", &["cms"]).await;
    let slow = base.parcels(terms(&[("cms", 9)])).await.remove(0);
    let quick = base.parcels(later(MINUTE, &[("cms", 9)])).await.remove(0);
    let failed = Attempt::bare(Outcome::Failed { error: "503".into(), not_before: None });
    let rule = |events: Vec<Event>| {
        move |before: &Standing| {
            assert_eq!(*before, row("cms"), "nothing was known");
            let standing = Standing { failures: 1, failing_since: Some(NOW), ..before.clone() };
            Ending { verdict: Verdict::Held { error: "503".into() }, standing, turn: None, events: events.clone() }
        }
    };
    let lost = base.store.finish(slow, failed.clone(), NOW, rule(vec![notice()])).await;
    assert_eq!(lost, Err(StoreError::LeaseLost));
    assert_eq!(base.store.hook_rows().await.unwrap(), [], "who lost the lease has nothing to say of the hook");
    base.store.finish(quick, failed, NOW, rule(vec![notice()])).await.unwrap();
    let known = Standing { failures: 1, failing_since: Some(NOW), ..row("cms") };
    assert_eq!(base.store.hook_rows().await.unwrap(), [known]);
    assert_eq!(base.ask::<i64>("SELECT count(*) FROM deliveries WHERE hook = 'operator' AND watch_id IS NULL"), 1);
}

#[tokio::test]
async fn a_disabled_hook_is_held_until_it_is_enabled() {
    let base = Base::new().await;
    base.settled("in flight", &["cms"]).await;
    let in_flight = base.parcels(terms(&[("cms", 1)])).await.remove(0);
    base.settled("before", &["cms", "other"]).await;
    let disable = async || base.store.disable_hook("cms".into(), "410".into(), NOW, notice()).await.unwrap();
    assert_eq!((disable().await, disable().await), (true, false), "told once");
    assert_eq!(base.ask::<i64>("SELECT count(*) FROM deliveries WHERE hook = 'operator'"), 1);
    base.settled("after", &["cms"]).await;
    assert_eq!(claimed(&base, SECOND).await, (0, None));
    let states = "SELECT group_concat(state) FROM (SELECT state FROM deliveries WHERE hook = 'cms' ORDER BY id)";
    assert_eq!(base.ask::<String>(states), "waiting,held,held", "the first one is under way");
    let error: String = base.ask("SELECT last_error FROM deliveries WHERE state = 'held'");
    assert!(error.contains("`assetwatch hooks enable cms`"), "{error}");
    // Its sender is gone.
    assert_eq!(claimed(&base, MINUTE).await, (0, None));
    assert_eq!(base.ask::<String>(states), "held,held,held");
    assert_eq!(base.ask::<String>("SELECT outcome FROM attempts"), "unknown");
    let late = base.finish(in_flight, Attempt::bare(Outcome::Delivered), Verdict::Delivered, NOW).await;
    assert_eq!(late, Err(StoreError::LeaseLost));
    assert_eq!(base.ask::<String>("SELECT outcome FROM attempts"), "delivered", "what is known now");
    base.store.adopt_hooks(vec!["cms".into(), "other".into(), "operator".into()], true, NOW).await.unwrap();
    assert_eq!(base.ask::<String>(states), "held,held,held", "a reload enables nothing");
    assert_eq!(base.parcels(terms(&[("other", 9)])).await.len(), 1, "the other hook is not concerned");
    assert_eq!(base.store.enable_hook("cms".into(), NOW + MINUTE).await.unwrap(), 3);
    assert_eq!(base.store.hook_rows().await.unwrap(), [row("cms")]);
    assert_eq!(claimed(&base, MINUTE).await.0, 3);
}

#[tokio::test]
async fn a_hook_that_asked_for_it_is_left_alone() {
    let base = Base::new().await;
    base.settled("a", &["cms"]).await;
    let until =
        |by: Duration| format!("REPLACE INTO hooks (name, held_until) VALUES ('cms', {})", (NOW + by).as_millis());
    base.execute(&until(HOUR));
    assert_eq!(claimed(&base, Duration::ZERO).await, (0, Some(NOW + HOUR)));
    base.execute(&until(2 * DAY));
    assert_eq!(claimed(&base, Duration::ZERO).await.0, 1, "written by a clock that was set back since");
    base.settled("b", &["cms"]).await;
    base.execute(&until(HOUR));
    assert_eq!(claimed(&base, HOUR).await.0, 2, "its time has come");
}

#[tokio::test]
async fn an_open_breaker_lets_one_attempt_through_for_all_processes() {
    let base = Base::new().await;
    for asset in ["a", "b", "c"] {
        base.settled(asset, &["cms"]).await;
    }
    let probe = (NOW + 5 * SECOND).as_millis();
    base.execute(&format!(
        "INSERT INTO hooks (name, failures, failing_since, next_probe_at) VALUES ('cms', 5, 0, {probe})"
    ));
    assert_eq!(claimed(&base, Duration::ZERO).await, (0, Some(NOW + 5 * SECOND)));
    assert_eq!(claimed(&base, 5 * SECOND).await, (1, None));
    assert_eq!(claimed(&base, 6 * SECOND).await, (0, Some(NOW + 25 * SECOND)), "until the lease ends");
    assert_eq!(base.ask::<i64>("SELECT sum(attempts) FROM deliveries"), 1, "the rest burn none");
    let live = vec![base.ask("SELECT id FROM deliveries WHERE attempts = 1")];
    let terms = Terms { live, ..later(MINUTE, &[("cms", 9)]) };
    assert!(base.parcels(terms).await.is_empty(), "a worker of ours is still at it");
    assert_eq!(claimed(&base, MINUTE).await.0, 1, "its sender is gone");
}

#[tokio::test]
async fn first_attempts_and_later_ones_take_turns() {
    let base = Base::new().await;
    for asset in 0..8 {
        base.settled(&asset.to_string(), &["cms"]).await;
    }
    base.execute("UPDATE deliveries SET attempts = 1, due_at = due_at - 10 WHERE id > 4");
    base.execute(
        "INSERT INTO attempts (delivery_id, number, owner, started_at, finished_at, outcome)
                      SELECT id, 1, 'us', 0, 0, 'failed' FROM deliveries WHERE id > 4",
    );
    let ids = async |lane: Lane| {
        let parcels = base.parcels(Terms { lanes: vec![lane], ..terms(&[]) }).await;
        parcels.iter().map(|parcel| parcel.delivery.id).collect::<Vec<_>>()
    };
    assert_eq!(ids(Lane { again: 0, ..lane("cms", 1) }).await, [1], "however long the later ones are due");
    assert_eq!(ids(lane("cms", 2)).await, [2, 5]);
    assert_eq!(ids(Lane { again_first: true, ..lane("cms", 1) }).await, [6]);
    let claimed = base.store.claim_deliveries(Terms { lanes: vec![Lane { again: 0, ..lane("cms", 9) }], ..terms(&[]) });
    let claimed = claimed.await.unwrap().remove(0);
    assert_eq!(
        (claimed.rows.len(), claimed.next_due),
        (2, None),
        "what has no slot is not due, or the pump would spin"
    );
    assert_eq!(ids(lane("cms", 9)).await, [7, 8]);
}

#[tokio::test]
async fn the_lanes_of_callbacks_are_found_in_portions() {
    let base = Base::new().await;
    let lanes = ["callback:https://a.example", "callback:https://b.example", "callback:https://c.example", "cms"];
    base.settled("a", &lanes).await;
    base.settled("b", &lanes[..2]).await;
    let found = async |after: &str, limit| base.store.callback_lanes(after.into(), limit).await.unwrap();
    assert_eq!(found("", 9).await, lanes[..3]);
    assert_eq!(found("", 2).await, lanes[..2]);
    assert_eq!(found(lanes[1], 2).await, lanes[2..3]);
    base.execute(&format!("UPDATE deliveries SET state = 'held', due_at = NULL WHERE hook = '{}'", lanes[0]));
    base.execute(&format!("UPDATE deliveries SET attempts = 1 WHERE hook = '{}'", lanes[1]));
    base.execute(&format!("UPDATE deliveries SET lease_owner = 'x', lease_until = 1 WHERE hook = '{}'", lanes[2]));
    assert_eq!(found("", 9).await, lanes[1..3], "whatever waits in one");
    base.store.adopt_hooks(vec!["cms".into()], true, NOW).await.unwrap();
    let states = "SELECT count(*) FROM deliveries WHERE state = 'waiting'";
    assert_eq!(base.ask::<i64>(states), 6, "no configuration names them; what was held is tried by the new one");
    assert_eq!(base.deliveries(1).await[0].state, DeliveryState::Waiting);
}
