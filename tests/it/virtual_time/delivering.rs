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
    assert_eq!([0, 20, 40, 45].map(at_once), [4, 4, 0, 1], "its concurrency, and then one at a time");
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
    let lane = lane("cms", 30 * SECOND);
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

fn names(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|n| format!("{prefix}_{n}")).collect()
}

#[tokio::test(start_paused = true)]
async fn behind_an_open_breaker_the_rest_waits_and_burns_no_attempts() {
    let world = World::new().await;
    let receiver = Receiver::new(&world, "cms", |told| match told.at {
        at if at < 100 * SECOND => failed(None),
        _ => Outcome::Delivered,
    });
    for asset in names("ast", 20) {
        world.settle(&asset, &["cms"]).await;
    }
    let relay = Running::relay(&world.relay(&[&receiver]));
    world.until(99 * SECOND).await;
    let seconds: Vec<_> = receiver.told().iter().map(|told| told.at.as_secs()).collect();
    let (at_once, probes) = seconds.split_at(seconds.iter().filter(|second| **second == 0).count());
    // A slot that is free before the fifth failure is written may be used once more.
    assert!((5..=8).contains(&at_once.len()), "{seconds:?}");
    assert_eq!(probes, [5, 15, 35, 75], "one at a time");
    world.until(3 * MINUTE).await;
    relay.stop().await;
    let told = receiver.told();
    assert_eq!(told.iter().filter(|told| told.at >= 100 * SECOND).count(), 20, "all resume when it works again");
    assert!(told.iter().all(|told| told.at < 160 * SECOND), "{told:?}");
    assert_eq!(world.store.hook_rows().await.unwrap()[0].failures, 0);
}

#[tokio::test(start_paused = true)]
async fn five_days_of_nothing_but_failures_disable_a_hook_and_tell_the_operator() {
    let world = World::new().await;
    let receiver = Receiver::new(&world, "cms", |_| failed(None));
    let operator = Receiver::new(&world, "operator", |_| Outcome::Delivered);
    world.settle("first", &["cms"]).await;
    let relay = Running::relay(&world.relay(&[&receiver, &operator]));
    world.until(4 * DAY).await;
    let watch = world.settle("second", &["cms"]).await;
    world.until(8 * DAY).await;
    relay.stop().await;
    let row = world.store.hook_rows().await.unwrap().remove(0);
    let disabled_after = row.disabled_at.unwrap().since(BEGIN);
    assert!(disabled_after >= 5 * DAY && disabled_after < 6 * DAY, "{row:?}");
    assert!(receiver.told().iter().all(|told| told.at <= disabled_after), "nothing is attempted after that");
    assert_eq!(operator.told().len(), 1, "the notice");
    assert_eq!(world.store.history(watch).await.unwrap().deliveries[0].state, DeliveryState::Held);
}

#[tokio::test(start_paused = true)]
async fn a_receiver_that_is_gone_disables_its_hook_until_a_person_enables_it() {
    let world = World::new().await;
    let receiver = Receiver::new(&world, "cms", |told| match told.asset.as_str() {
        "first" => Outcome::Gone { error: "410".into() },
        _ => Outcome::Delivered,
    });
    let operator = Receiver::new(&world, "operator", |_| Outcome::Delivered);
    let first = world.settle("first", &["cms"]).await;
    let relay = Running::relay(&world.relay(&[&receiver, &operator]));
    world.until(MINUTE).await;
    let second = world.settle("second", &["cms"]).await;
    world.until(HOUR).await;
    let state = async |watch| world.store.history(watch).await.unwrap().deliveries[0].state;
    assert_eq!((state(first).await, state(second).await), (DeliveryState::Dead, DeliveryState::Held));
    assert_eq!((receiver.told().len(), operator.told().len()), (1, 1));
    world.store.enable_hook("cms".into(), world.clock.now()).await.unwrap();
    world.until(2 * HOUR).await;
    relay.stop().await;
    assert_eq!(state(second).await, DeliveryState::Delivered);
}

#[tokio::test(start_paused = true)]
async fn a_retry_after_holds_over_a_restart() {
    let world = World::new().await;
    let receiver = Receiver::new(&world, "cms", |told| match told.at {
        at if at < HOUR => failed(Some(HOUR)),
        _ => Outcome::Delivered,
    });
    world.settle("first", &["cms"]).await;
    let relay = Running::relay(&world.relay(&[&receiver]));
    world.until(MINUTE).await;
    relay.stop().await;
    let again = World { store: world.another_store().await, ..world };
    again.settle("second", &["cms"]).await;
    let relay = Running::relay(&again.relay(&[&receiver]));
    again.until(2 * HOUR).await;
    relay.stop().await;
    assert_eq!((receiver.seconds("first"), receiver.seconds("second")), (vec![0, 3_600], vec![3_600]));
}

/// Has deliveries of a hook look as if they had been attempted before.
fn make_old(world: &World, hook: &str) {
    world.foreign(&format!(
        "INSERT INTO attempts (delivery_id, number, owner, started_at, finished_at, outcome)
             SELECT id, 1, 'x', 0, 0, 'failed' FROM deliveries WHERE hook = '{hook}' AND attempts = 0;
         UPDATE deliveries SET attempts = 1, failures = 1, due_at = due_at - 60000
             WHERE hook = '{hook}' AND attempts = 0"
    ));
}

#[tokio::test(start_paused = true)]
async fn neither_first_attempts_nor_later_ones_starve() {
    for concurrency in [1, 4] {
        let world = World::new().await;
        let slow = Receiver::new(&world, "cms", |_| Outcome::Delivered);
        let receiver = Receiver { concurrency, latency: SECOND, ..slow };
        for asset in names("old", 40) {
            world.settle(&asset, &["cms"]).await;
        }
        make_old(&world, "cms");
        for asset in names("new", 40) {
            world.settle(&asset, &["cms"]).await;
        }
        let relay = Running::relay(&world.relay(&[&receiver]));
        world.until(Duration::from_millis(10_500)).await;
        relay.stop().await;
        let told = receiver.told();
        let old = told.iter().filter(|told| told.asset.starts_with("old")).count();
        let few = told.len() / 4;
        assert!(old >= few && told.len() - old >= few, "{concurrency}: {old} of {}", told.len());
    }
}

#[tokio::test(start_paused = true)]
async fn later_attempts_leave_a_slot_to_a_first_one() {
    let world = World::new().await;
    let receiver = Receiver::new(&world, "cms", |_| Outcome::Delivered);
    let receiver = Receiver { latency: 20 * SECOND, ..receiver };
    for asset in names("old", 40) {
        world.settle(&asset, &["cms"]).await;
    }
    make_old(&world, "cms");
    let relay = Running::relay(&world.relay(&[&receiver]));
    world.until(SECOND).await;
    assert_eq!(receiver.told().len(), 3, "of four slots one is kept");
    let mine = World { store: world.another_store().await, ..world };
    mine.settle("new", &["cms"]).await;
    mine.until(5 * SECOND).await;
    assert!(relay.turns() < 100, "{} turns", relay.turns());
    relay.stop().await;
    assert!(receiver.seconds("new")[0] <= 3, "{:?}", receiver.told());
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_deliveries_of_a_dead_hook_do_not_delay_another() {
    let world = World::new().await;
    let dead = Receiver { latency: 20 * SECOND, ..Receiver::new(&world, "dead", |_| failed(None)) };
    let healthy = Receiver::new(&world, "healthy", |_| Outcome::Delivered);
    world.settle("ast", &["dead"]).await;
    world.foreign(
        "WITH RECURSIVE number (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < 10000)
         INSERT INTO events (id, type, body, created_at)
             SELECT 'evt_' || n, 'test', (SELECT body FROM events WHERE seq = 1), 0 FROM number;
         INSERT INTO deliveries (event_seq, hook, due_at, created_at) SELECT seq, 'dead', 0, 0 FROM events WHERE seq > 1",
    );
    let relay = world.relay(&[&dead, &healthy]);
    let wake = Wake::default();
    let running = Running::start(relay, wake.clone());
    for n in 0..5_u32 {
        let at = 13 * SECOND * n + Duration::from_millis(500);
        world.until(at).await;
        world.settle(&format!("live_{n}"), &["healthy"]).await;
        wake.wake();
    }
    world.until(2 * MINUTE).await;
    running.stop().await;
    for n in 0..5_u32 {
        let asked = 13 * SECOND * n + Duration::from_millis(500);
        let told = healthy.told().into_iter().find(|told| told.asset == format!("live_{n}")).unwrap();
        assert!(told.at.saturating_sub(asked) < SECOND, "{told:?}, asked for at {asked:?}");
    }
    assert!(dead.told().len() < 20, "{} attempts at a dead hook", dead.told().len());
}

#[tokio::test(start_paused = true)]
async fn every_origin_of_callbacks_has_its_turn() {
    let world = World::new().await;
    let lanes: Vec<String> = (0..450).map(|n| format!("callback:https://{n:03}.example")).collect();
    let told = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&told);
    let mut relay = Arc::into_inner(world.relay(&[])).unwrap();
    relay.perform = Arc::new(move |parcel| {
        seen.lock().unwrap().push(parcel.delivery.hook);
        Box::pin(async { Attempt::bare(Outcome::Gone { error: "410".into() }) })
    });
    world.settle("a", &lanes.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let relay = Running::relay(&Arc::new(relay));
    world.until(5 * SECOND).await;
    let turns = relay.turns();
    world.until(DAY).await;
    assert!(relay.turns() - turns < 2_000, "a quiet day is quiet");
    relay.stop().await;
    let mut told = told.lock().unwrap().clone();
    told.sort();
    assert_eq!(told, lanes, "each once: only that delivery is dead");
    assert!(world.store.hook_rows().await.unwrap().is_empty(), "no lane of callbacks is ever disabled");
}

#[tokio::test(start_paused = true)]
async fn a_hook_may_have_a_rate() {
    let world = World::new().await;
    let receiver = Receiver { rate: Some(2.0), ..Receiver::new(&world, "cms", |_| Outcome::Delivered) };
    for asset in names("ast", 30) {
        world.settle(&asset, &["cms"]).await;
    }
    let relay = Running::relay(&world.relay(&[&receiver]));
    world.until(MINUTE).await;
    relay.stop().await;
    let told: Vec<Duration> = receiver.told().iter().map(|told| told.at).collect();
    assert_eq!(told.len(), 30);
    assert!(told[29] >= 13 * SECOND && told[29] <= 15 * SECOND, "{told:?}");
    assert!(fullest_second(&told) <= 4, "{told:?}");
}
