//! When one asset is polled.

use assetwatch::watch::{Reason, State};

use super::*;

/// The intervals of the default backoff, in milliseconds: from 2 s, half as much again each time, up to a minute.
const GROWING: [u128; 11] = [2_000, 3_000, 4_500, 6_750, 10_125, 15_187, 22_781, 34_171, 51_257, 60_000, 60_000];

#[tokio::test(start_paused = true)]
async fn a_pending_asset_is_polled_at_growing_intervals() {
    let world = World::new().await;
    let api = Api::new(&world, |_| said("pending"));
    world.add(&["a"]).await;
    let poller = Running::poller(&world.poller(&[&api]));
    world.until(270 * SECOND).await;
    poller.stop().await;
    assert_eq!(api.instants("a"), sums(&GROWING));
    let watch = world.watch("a").await;
    assert_eq!((watch.polls, watch.streaks.waiting, watch.generation), (12, 12, 12));
    assert_eq!((watch.lease_owner, watch.due_at), (None, Some(BEGIN + 329_771 * MILLISECOND)));
}

#[tokio::test(start_paused = true)]
async fn a_change_of_status_restarts_the_backoff() {
    let world = World::new().await;
    let api = Api::new(&world, |asked| match asked.nth {
        ..=4 => said("pending"),
        5..=8 => said("processing"),
        _ => said("active"),
    });
    world.add(&["a"]).await;
    let poller = Running::poller(&world.poller(&[&api]));
    world.until(MINUTE).await;
    poller.stop().await;
    assert_eq!(api.instants("a"), sums(&[2_000, 3_000, 4_500, 6_750, 2_000, 3_000, 4_500, 6_750]));
    let watch = world.watch("a").await;
    assert_eq!((watch.state, watch.settled_at), (State::Settled, Some(BEGIN + 32_500 * MILLISECOND)));
    assert_eq!(watch.processing_at, Some(BEGIN + 16_250 * MILLISECOND));
}

#[tokio::test(start_paused = true)]
async fn failures_have_a_backoff_of_their_own_and_an_answer_ends_it() {
    let world = World::new().await;
    let api = Api::new(&world, |asked| match asked.nth {
        2..=5 => Observation::Unusable { error: "no status".into() },
        _ => said("pending"),
    });
    world.add(&["a"]).await;
    let poller = Running::poller(&world.poller(&[&api]));
    world.until(15 * SECOND).await;
    poller.stop().await;
    // Half of 2, 3, 4.5 and 6.75 s, by the dice; then the streak of waiting answers goes on where it was.
    assert_eq!(api.instants("a"), sums(&[2_000, 1_000, 1_500, 2_250, 3_375, 3_000]));
    assert_eq!(world.watch("a").await.streaks.failures, 0);
}

#[tokio::test(start_paused = true)]
async fn a_missing_asset_has_its_last_poll_exactly_at_the_end_of_the_grace() {
    let world = World::new().await;
    let api = Api::new(&world, |_| Observation::Missing { error: "404".into() });
    world.add(&["a"]).await;
    let poller = Running::poller(&world.poller(&[&api]));
    world.until(HOUR).await;
    poller.stop().await;
    let mut expected = sums(&GROWING);
    expected.push(300_000);
    assert_eq!(api.instants("a"), expected);
    let watch = world.watch("a").await;
    assert_eq!((watch.state, watch.reason), (State::Abandoned, Some(Reason::Missing)));
    assert_eq!((watch.missing.map(|first| first.at), watch.settled_at), (Some(BEGIN), Some(BEGIN + 5 * MINUTE)));
}

#[tokio::test(start_paused = true)]
async fn an_asset_that_appears_within_the_grace_has_a_whole_one_the_next_time() {
    let world = World::new().await;
    let api = Api::new(&world, |asked| match asked.at.as_secs() {
        200..=299 => said("pending"),
        _ => Observation::Missing { error: "404".into() },
    });
    world.add(&["a"]).await;
    let poller = Running::poller(&world.poller(&[&api]));
    world.until(HOUR).await;
    poller.stop().await;
    let first_of_the_second = api.instants("a").into_iter().find(|at| *at >= 300_000).unwrap();
    assert_eq!(api.instants("a").last(), Some(&(first_of_the_second + 300_000)));
    assert_eq!(world.watch("a").await.reason, Some(Reason::Missing));
}

#[tokio::test(start_paused = true)]
async fn patience_ends_with_one_last_poll() {
    let world = World::new().await;
    let api = Api::new(&world, |asked| match asked.asset.as_str() {
        "just_in_time" if asked.at >= 10 * SECOND => said("active"),
        "failing" => Observation::Unusable { error: "no status".into() },
        _ => said("pending"),
    });
    world.add_to("default", &["pending", "just_in_time", "failing"], Some(10 * SECOND)).await;
    let poller = Running::poller(&world.poller(&[&api]));
    world.until(HOUR).await;
    poller.stop().await;
    for asset in ["pending", "just_in_time"] {
        assert_eq!(api.instants(asset), [0, 2_000, 5_000, 9_500, 10_000], "{asset}");
    }
    assert_eq!(api.instants("failing").last(), Some(&10_000));
    for asset in ["pending", "failing"] {
        let watch = world.watch(asset).await;
        assert_eq!((watch.state, watch.reason), (State::Abandoned, Some(Reason::Patience)), "{asset}");
        assert_eq!(watch.settled_at, Some(BEGIN + 10 * SECOND), "{asset}");
    }
    assert_eq!(world.watch("just_in_time").await.state, State::Settled);
}

#[tokio::test(start_paused = true)]
async fn the_default_patience_is_a_whole_day() {
    let world = World::new().await;
    let api = Api::new(&world, |_| said("processing"));
    world.add(&["a"]).await;
    let poller = Running::poller(&world.poller(&[&api]));
    world.until(DAY + 10 * MINUTE).await;
    let instants = api.instants("a");
    assert_eq!(instants.last(), Some(&DAY.as_millis()), "the last poll is at the very end");
    assert!((1_440..1_450).contains(&instants.len()), "{} polls", instants.len());
    assert_eq!(world.watch("a").await.reason, Some(Reason::Patience));
    assert!(poller.turns() < 10 * instants.len() as u64, "{} turns for {} polls", poller.turns(), instants.len());
    poller.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_another_program_inserts_is_polled_within_a_second() {
    let world = World::new().await;
    let api = Api::new(&world, |_| said("pending"));
    world.add(&["a"]).await;
    let poller = Running::poller(&world.poller(&[&api]));
    // The pump sleeps until "a" is due, much later.
    world.until(Duration::from_millis(220_300)).await;
    world.foreign("INSERT INTO watches (asset_id) VALUES ('b')");
    world.until(225 * SECOND).await;
    poller.stop().await;
    let first = api.instants("b")[0];
    assert!((220_300..=221_300).contains(&first), "{first}");
    assert!(!api.instants("a").iter().any(|at| (220_300..=221_300).contains(at)), "that woke the pump");
}

#[tokio::test(start_paused = true)]
async fn what_we_insert_ourselves_without_a_word_is_polled_within_a_minute() {
    let world = World::new().await;
    let api = Api::new(&world, |_| said("pending"));
    let working = world.poller(&[&api]);
    let poller = Running::poller(&working);
    world.until(10 * SECOND).await;
    world.add(&["unsaid"]).await;
    world.until(100 * SECOND).await;
    world.add(&["said"]).await;
    working.wake.wake();
    world.until(101 * SECOND).await;
    poller.stop().await;
    assert_eq!(api.instants("unsaid")[0], 60_000, "the idle interval");
    assert_eq!(api.instants("said")[0], 100_000);
}
