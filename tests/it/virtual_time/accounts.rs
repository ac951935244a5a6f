//! How an account is polled as a whole: paused, broken, throttled, limited, beside another one.

use assetwatch::watch::{Reason, State};

use super::*;

/// Sums of the gaps of a pause, in seconds: 1, 2, 5, 15 and 15 minutes.
const PAUSE_PROBES: [u64; 5] = [60, 180, 480, 1_380, 2_280];

fn names(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("ast_{n}")).collect()
}

async fn add_many(world: &World, account: &str, count: usize) {
    let names = names(count);
    world.add_to(account, &names.iter().map(String::as_str).collect::<Vec<_>>(), None).await;
}

#[tokio::test(start_paused = true)]
async fn a_refused_key_pauses_the_account_which_is_probed_and_resumes_by_itself() {
    let world = World::new().await;
    let api = Api::new(&world, |asked| match asked.at {
        at if at < HOUR => unauthorized(),
        _ => said("pending"),
    });
    world.add(&["a", "b", "c"]).await;
    let poller = Running::poller(&world.poller(&[&api]));
    world.until(50 * MINUTE).await;
    let probes: Vec<_> = api.asked().into_iter().skip(3).collect();
    assert_eq!(probes.iter().map(|probe| probe.at.as_secs()).collect::<Vec<_>>(), PAUSE_PROBES);
    assert!(probes.windows(2).all(|pair| pair[0].asset != pair[1].asset), "each with another asset: {probes:?}");
    let watch = world.watch("a").await;
    assert_eq!(
        (watch.state, watch.streaks.failures, watch.due_at.map(Timestamp::as_millis)),
        (State::Waiting, 0, Some(0))
    );
    let account = world.store.accounts().await.unwrap().remove(0);
    assert_eq!((account.closure.as_deref(), account.last_error.as_deref()), (Some("unauthorized"), Some("401")));
    assert_eq!((account.closed_at, account.next_probe_at), (Some(BEGIN), Some(BEGIN + MINUTE)));
    assert!(poller.turns() < 80, "a paused account makes the pump spin: {} turns in 50 minutes", poller.turns());
    // The probe at 38 minutes failed, so the next ones are at 53 and 68.
    world.until(68 * MINUTE + SECOND).await;
    let resumed: Vec<_> = api.asked().into_iter().filter(|asked| asked.at.as_secs() == 68 * 60).collect();
    assert_eq!(per_asset(&resumed).len(), 3, "all are polled at once: {resumed:?}");
    let account = world.store.accounts().await.unwrap().remove(0);
    assert_eq!((account.closure, account.lost_ms), (None, (68 * MINUTE).as_millis() as i64));
    poller.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_time_of_a_pause_is_not_the_assets() {
    let world = World::new().await;
    let api = Api::new(&world, |asked| match asked.at.as_secs() {
        5..=100 => Observation::Unpaid { error: "402".into() },
        _ => said("pending"),
    });
    world.add_to("default", &["a"], Some(MINUTE)).await;
    let poller = Running::poller(&world.poller(&[&api]));
    world.until(HOUR).await;
    poller.stop().await;
    // Refused at 5 s, answered again by the second probe, at 185 s: so 180 s are not the asset's.
    assert_eq!(api.instants("a")[..5], [0, 2_000, 5_000, 65_000, 185_000]);
    assert_eq!(api.instants("a").last(), Some(&240_000), "a minute of its own, and one last poll");
    assert_eq!(world.watch("a").await.reason, Some(Reason::Patience));
}

#[tokio::test(start_paused = true)]
async fn a_broken_api_is_probed_with_single_requests_and_polled_again_when_it_answers() {
    let world = World::new().await;
    let api = Api::new(&world, |asked| match asked.at {
        at if at < 100 * SECOND => broke(),
        _ => said("pending"),
    });
    world.add(&["a", "b"]).await;
    let poller = Running::poller(&world.poller(&[&api]));
    world.until(95 * SECOND).await;
    // Both fail at 0, 1 and 2.5 s; the fifth failure in a row opens the breaker, and the sixth was under way with it.
    assert_eq!(api.seconds()[..6], [0, 0, 1, 1, 2, 2]);
    let probes: Vec<_> = api.asked().split_off(6);
    let instants: Vec<_> = probes.iter().map(|probe| probe.at.as_millis()).collect();
    // The first probe, at 4.5 s, has to wait until one of them is due.
    assert_eq!(instants, [4_750, 8_750, 16_750, 31_750, 61_750], "4, 8, 15 and 30 s apart");
    assert!(probes.windows(2).all(|pair| pair[0].asset != pair[1].asset), "{probes:?}");
    assert_eq!(world.store.accounts().await.unwrap()[0].closure.as_deref(), Some("broken"));
    world.until(130 * SECOND).await;
    poller.stop().await;
    let resumed: Vec<_> = api.asked().split_off(11);
    assert_eq!(resumed[0].at, Duration::from_millis(121_750), "one probe a minute after the last");
    assert_eq!(per_asset(&resumed).len(), 2, "{resumed:?}");
    let account = world.store.accounts().await.unwrap().remove(0);
    assert_eq!((account.closure, account.lost_ms), (None, 119_250));
}

#[tokio::test(start_paused = true)]
async fn one_poisoned_asset_does_not_break_its_account() {
    let world = World::new().await;
    let api = Api::new(&world, |asked| if asked.asset == "poisoned" { broke() } else { said("pending") });
    world.add(&["poisoned", "sound"]).await;
    let poller = Running::poller(&world.poller(&[&api]));
    world.until(10 * MINUTE).await;
    poller.stop().await;
    assert!(world.store.accounts().await.unwrap().is_empty(), "the account was never closed");
    assert_eq!(api.instants("sound")[..5], [0, 2_000, 5_000, 9_500, 16_250]);
    assert!(api.instants("poisoned").len() > 15, "it has its own backoff: {:?}", api.instants("poisoned"));
}

#[tokio::test(start_paused = true)]
async fn the_only_asset_of_an_account_is_enough_to_open_the_breaker() {
    let world = World::new().await;
    let api = Api::new(&world, |_| broke());
    world.add(&["a"]).await;
    let poller = Running::poller(&world.poller(&[&api]));
    world.until(MINUTE).await;
    poller.stop().await;
    assert_eq!(world.store.accounts().await.unwrap()[0].closure.as_deref(), Some("broken"));
}

#[tokio::test(start_paused = true)]
async fn a_retry_after_holds_the_whole_account() {
    let world = World::new().await;
    let api = Api::new(&world, |asked| match asked.asset.as_str() {
        "ast_3" if asked.nth == 1 => Observation::Throttled { wait: Some(30 * SECOND), error: "429".into() },
        _ => said("pending"),
    });
    let api = Api { limits: Limits { rate: 10.0, max_in_flight: 4 }, ..api };
    add_many(&world, "default", 20).await;
    let poller = Running::poller(&world.poller(&[&api]));
    world.until(29 * SECOND).await;
    assert_eq!(api.asked().len(), 4, "those in flight with the one that was throttled");
    assert!(poller.turns() < 60, "{} turns while nothing could be done", poller.turns());
    world.until(35 * SECOND).await;
    poller.stop().await;
    assert_eq!(api.asked()[4].at, 30 * SECOND);
    assert!(
        fullest_second(&api.asked()[4..].iter().map(|asked| asked.at).collect::<Vec<_>>()) <= 14,
        "0.7 of the rate"
    );
    let watch = world.watch("ast_3").await;
    assert_eq!(
        (watch.streaks.failures, watch.streaks.rejections, watch.reason),
        (0, 0, None),
        "nothing is held against it"
    );
    assert!(world.store.accounts().await.unwrap().is_empty(), "to be throttled is no closure");
}

#[tokio::test(start_paused = true)]
async fn five_hundred_due_watches_are_polled_no_faster_than_the_rate() {
    let world = World::new().await;
    let api = Api::new(&world, |_| said("active"));
    let api = Api { limits: Limits { rate: 10.0, max_in_flight: 32 }, ..api };
    add_many(&world, "default", 500).await;
    let poller = Running::poller(&world.poller(&[&api]));
    world.until(MINUTE).await;
    poller.stop().await;
    let instants: Vec<_> = api.asked().iter().map(|asked| asked.at).collect();
    assert_eq!((instants.len(), per_asset(&api.asked()).len()), (500, 500));
    assert_eq!(fullest_second(&instants), 19, "one burst, and then a tenth of a second for each");
    assert_eq!(instants[499], 49 * SECOND, "and no slower either");
}

#[tokio::test(start_paused = true)]
async fn no_more_requests_are_in_flight_than_allowed() {
    let world = World::new().await;
    let api = Api::new(&world, |_| said("active"));
    let api = Api { limits: Limits { rate: 1_000.0, max_in_flight: 3 }, latency: 5 * SECOND, ..api };
    add_many(&world, "default", 10).await;
    let poller = Running::poller(&world.poller(&[&api]));
    world.until(MINUTE).await;
    poller.stop().await;
    assert_eq!(api.seconds(), [0, 0, 0, 5, 5, 5, 10, 10, 10, 15]);
}

#[tokio::test(start_paused = true)]
async fn a_closed_account_does_not_touch_the_pace_of_another() {
    let alone = World::new().await;
    let undisturbed = Api::new(&alone, |_| said("pending"));
    alone.add(&["a", "b"]).await;
    let poller = Running::poller(&alone.poller(&[&undisturbed]));
    alone.until(10 * MINUTE).await;
    let (turns, _) = (poller.turns(), poller.stop().await);

    let world = World::new().await;
    let healthy = Api::new(&world, |_| said("pending"));
    let refused = Api { name: "another", ..Api::new(&world, |_| unauthorized()) };
    let broken = Api { name: "broken", ..Api::new(&world, |_| broke()) };
    world.add(&["a", "b"]).await;
    add_many(&world, "another", 50).await;
    add_many(&world, "broken", 50).await;
    let poller = Running::poller(&world.poller(&[&refused, &broken, &healthy]));
    world.until(10 * MINUTE).await;
    let (disturbed, _) = (poller.turns(), poller.stop().await);
    assert_eq!(healthy.instants("a"), undisturbed.instants("a"));
    assert_eq!(healthy.instants("b"), undisturbed.instants("b"));
    assert_eq!(refused.asked().len(), 50 + 3, "all at first, then at 1, 3 and 8 minutes");
    let more = disturbed - turns;
    assert!(more < 300, "a hundred watches that cannot be polled cost {more} turns");
}

#[tokio::test(start_paused = true)]
async fn slow_requests_from_before_the_closure_are_not_taken_for_the_probe() {
    let world = World::new().await;
    let api = Api::new(&world, |_| broke());
    let api = Api { latency: 9 * SECOND, limits: Limits { rate: 1.0, max_in_flight: 20 }, ..api };
    add_many(&world, "default", 50).await;
    let poller = Running::poller(&world.poller(&[&api]));
    world.until(2 * MINUTE).await;
    poller.stop().await;
    // One request a second; the fifth fails at 13 s, when nine are in flight. They end while the first probe lasts.
    let (before, probes): (Vec<_>, Vec<_>) = api.seconds().into_iter().partition(|second| *second <= 13);
    assert!((13..=14).contains(&before.len()), "{before:?}");
    assert_eq!(probes, [15, 28, 45, 69, 108], "each begins 2, 4, 8, 15 and 30 s after the one before has ended");
}

#[tokio::test(start_paused = true)]
async fn a_changed_key_is_tried_within_a_second() {
    let world = World::new().await;
    let api = Api::new(&world, |asked| if asked.at < 100 * SECOND { unauthorized() } else { said("pending") });
    world.add(&["a"]).await;
    let mut poller = world.poller(&[&api]);
    let began = world.began;
    let rekeyed = move || (100..=101).contains(&began.elapsed().as_secs());
    Arc::get_mut(&mut poller).unwrap().accounts.get_mut("default").unwrap().rekeyed = Arc::new(rekeyed);
    let poller = Running::poller(&poller);
    world.until(102 * SECOND).await;
    poller.stop().await;
    let seconds = api.seconds();
    assert!(matches!(seconds[..], [0, 60, 100 | 101, ..]), "{seconds:?}");
}
