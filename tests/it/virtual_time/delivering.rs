//! When a hook is told.

use assetwatch::delivery::DeliveryState;

use super::*;

#[tokio::test(start_paused = true)]
async fn twelve_attempts_over_three_days_and_then_none() {
    let world = World::new().await;
    let receiver = Receiver::new(&world, "cms", |_| failed(None));
    let watch = world.settle("a", &["cms"]).await;
    let relay = Running::relay(&world.relay(&[&receiver]));
    let gaps = [5, 30, 120, 600, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400];
    let expected: Vec<_> = sums(&gaps).into_iter().map(|seconds| Duration::from_secs(seconds as u64)).collect();
    world.until(expected[11] + HOUR).await;
    assert!(relay.turns() < 10_000, "{} looks at the lanes in three days", relay.turns());
    relay.stop().await;
    let told = receiver.told();
    assert_eq!(told.iter().map(|told| told.at).collect::<Vec<_>>(), expected);
    assert!(told.iter().all(|one| one.event_id == told[0].event_id), "one id, however often it is told");
    assert_eq!(told.iter().map(|told| told.number).collect::<Vec<_>>(), Vec::from_iter(1..=12));
    let history = world.store.history(watch).await.unwrap();
    let delivery = &history.deliveries[0];
    assert_eq!((delivery.state, delivery.attempts, delivery.failures), (DeliveryState::Dead, 12, 12));
    assert_eq!(delivery.finished_at, Some(BEGIN + expected[11]));
    assert!(history.attempts.iter().all(|attempt| attempt.outcome.as_deref() == Some("failed")));
}

#[tokio::test(start_paused = true)]
async fn a_retry_after_holds_the_whole_hook_and_no_other() {
    let world = World::new().await;
    let busy = Receiver::new(&world, "busy", |told| match told.at {
        at if at < 100 * SECOND => failed(Some(300 * SECOND)),
        _ => Outcome::Delivered,
    });
    let other = Receiver::new(&world, "other", |_| Outcome::Delivered);
    world.settle("first", &["busy", "other"]).await;
    let relay = Running::relay(&world.relay(&[&busy, &other]));
    world.until(50 * SECOND).await;
    world.settle("second", &["busy", "other"]).await;
    world.until(HOUR).await;
    relay.stop().await;
    assert_eq!((busy.seconds("first"), busy.seconds("second")), (vec![0, 300], vec![300]));
    assert_eq!(other.seconds("first"), [0]);
    assert!(other.seconds("second")[0] <= 110, "{:?}", other.told());
}

#[tokio::test(start_paused = true)]
async fn the_long_gap_of_one_old_delivery_does_not_hold_its_hook() {
    let world = World::new().await;
    let receiver = Receiver::new(&world, "cms", |told| match told.asset.as_str() {
        "old" => failed(Some(SECOND)),
        _ => Outcome::Delivered,
    });
    world.settle("old", &["cms"]).await;
    let relay = Running::relay(&world.relay(&[&receiver]));
    // The old one has failed at 0, 5, 35, 155 and 755 s, and its next attempt is half an hour later.
    world.until(800 * SECOND).await;
    world.settle("new", &["cms"]).await;
    world.until(15 * MINUTE).await;
    relay.stop().await;
    assert_eq!(receiver.seconds("old"), [0, 5, 35, 155, 755]);
    let told = receiver.seconds("new");
    assert!(told.first().is_some_and(|second| *second <= 860), "the hook was to be left alone for a second: {told:?}");
}

#[tokio::test(start_paused = true)]
async fn a_hook_that_is_down_does_not_delay_another() {
    let world = World::new().await;
    let down = Receiver { latency: 20 * SECOND, ..Receiver::new(&world, "down", |_| failed(None)) };
    let healthy = Receiver::new(&world, "healthy", |_| Outcome::Delivered);
    for n in 0..40 {
        world.settle(&format!("ast_{n}"), &["down"]).await;
    }
    world.settle("a", &["down", "healthy"]).await;
    let relay = Running::relay(&world.relay(&[&down, &healthy]));
    world.until(MINUTE).await;
    relay.stop().await;
    assert_eq!(healthy.seconds("a"), [0]);
    let at_once = |second| down.told().iter().filter(|told| told.at.as_secs() == second).count();
    assert_eq!([0, 20, 40].map(at_once), [4, 4, 4], "no more at once than its concurrency");
}

#[tokio::test(start_paused = true)]
async fn a_lost_wake_up_costs_an_idle_interval() {
    let world = World::new().await;
    let receiver = Receiver::new(&world, "cms", |_| Outcome::Delivered);
    let relay = Running::relay(&world.relay(&[&receiver]));
    world.until(10 * SECOND).await;
    world.settle("ours", &["cms"]).await;
    world.until(Duration::from_millis(200_300)).await;
    let mine = World { store: world.another_store().await, ..world };
    mine.settle("another_process's", &["cms"]).await;
    mine.until(5 * MINUTE).await;
    relay.stop().await;
    assert_eq!(receiver.seconds("ours"), [60], "of a write of our own process only a wake-up tells");
    assert!(matches!(receiver.seconds("another_process's")[..], [200 | 201]), "{:?}", receiver.told());
}

#[tokio::test(start_paused = true)]
async fn an_attempt_whose_sender_died_is_made_again_when_its_lease_ends() {
    let world = World::new().await;
    let receiver = Receiver::new(&world, "cms", |_| Outcome::Delivered);
    let watch = world.settle("a", &["cms"]).await;
    let lane = Lane { name: "cms".into(), room: 1, avoid: None, lease: 30 * SECOND };
    let (now, owner) = (world.clock.now(), "who died".into());
    let terms = Terms { owner, lanes: vec![lane], now, horizon: now + DAY, only: None, live: Vec::new() };
    assert_eq!(world.store.claim_deliveries(terms).await.unwrap()[0].rows.len(), 1);
    let relay = Running::relay(&world.relay(&[&receiver]));
    world.until(MINUTE).await;
    relay.stop().await;
    let told = receiver.told();
    assert_eq!((told.len(), told[0].number, told[0].at), (1, 2, 30 * SECOND));
    let attempts = world.store.history(watch).await.unwrap().attempts;
    let outcomes: Vec<_> = attempts.iter().map(|attempt| attempt.outcome.as_deref().unwrap()).collect();
    assert_eq!(outcomes, ["unknown", "delivered"]);
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_panics_costs_one_lease_and_nobody_else() {
    let world = World::new().await;
    let receiver = Receiver::new(&world, "cms", |told| match (told.asset.as_str(), told.number) {
        ("bad", 1) => panic!("this panic is part of the test"),
        _ => Outcome::Delivered,
    });
    let receiver = Receiver { concurrency: 1, ..receiver };
    world.settle("bad", &["cms"]).await;
    world.settle("good", &["cms"]).await;
    let relay = Running::relay(&world.relay(&[&receiver]));
    world.until(MINUTE).await;
    relay.stop().await;
    assert_eq!((receiver.seconds("bad"), receiver.seconds("good")), (vec![0, 30], vec![0]));
}
