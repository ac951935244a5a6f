//! How an account is polled as a whole: paused, broken, throttled, limited, beside another one.

use assetwatch::event::Topic;
use assetwatch::pace::{Known, Quota};
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
    assert_eq!((watch.state, watch.streaks.failures, watch.polls), (State::Waiting, 0, 3));
    assert_eq!(watch.due_at, watch.last_polled_at, "due as soon as the account is polled again");
    let account = world.store.accounts().await.unwrap().remove(0);
    assert_eq!((account.closure.as_deref(), account.last_error.as_deref()), (Some("unauthorized"), Some("401")));
    assert_eq!((account.closed_at, account.next_probe_at), (Some(BEGIN), Some(BEGIN + 53 * MINUTE)));
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
    assert_eq!(instants, [4_500, 8_500, 16_500, 31_500, 61_500], "2 s later, then 4, 8, 15 and 30 s apart");
    let watch = world.watch("a").await;
    assert_eq!(watch.streaks.failures, 2, "no counter moves while the breaker is open");
    assert!(probes.windows(2).all(|pair| pair[0].asset != pair[1].asset), "{probes:?}");
    assert_eq!(world.store.accounts().await.unwrap()[0].closure.as_deref(), Some("broken"));
    world.until(130 * SECOND).await;
    poller.stop().await;
    let resumed: Vec<_> = api.asked().split_off(11);
    assert_eq!(resumed[0].at, Duration::from_millis(121_500), "one probe a minute after the last");
    assert_eq!(per_asset(&resumed).len(), 2, "{resumed:?}");
    let account = world.store.accounts().await.unwrap().remove(0);
    assert_eq!((account.closure, account.lost_ms), (None, 119_000));
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
    let account = world.store.accounts().await.unwrap().remove(0);
    assert_eq!((account.rate, account.held_until), (Some(7.0), Some(BEGIN + 30 * SECOND)));
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
    let account = world.store.accounts().await.unwrap().remove(0);
    assert!(account.closure.is_none() && account.rate.is_some(), "to be throttled is no closure: {account:?}");
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

/// Requests begun in each minute since the beginning.
fn per_minute(api: &Api, minutes: usize) -> Vec<usize> {
    let mut counts = vec![0; minutes];
    for asked in api.asked_at() {
        counts[(asked.as_secs() / 60) as usize] += 1;
    }
    counts
}

#[tokio::test(start_paused = true)]
async fn an_hour_of_outage_over_ten_thousand_watches_abandons_none_and_stampedes_nobody() {
    let world = World::new().await;
    let api = Api::new(&world, |asked| match asked.at {
        at if (10 * MINUTE..70 * MINUTE).contains(&at) => broke(),
        _ => said("processing"),
    });
    let api = Api { limits: Limits { rate: 20.0, max_in_flight: 32 }, latency: 20 * MILLISECOND, ..api };
    // Less than the outage: time that was not the assets' must not count.
    let names = names(10_000);
    world.add_to("default", &names.iter().map(String::as_str).collect::<Vec<_>>(), Some(50 * MINUTE)).await;
    let poller = Running::poller(&world.poller(&[&api]));
    world.until(80 * MINUTE).await;
    poller.stop().await;
    let asked = api.asked_at();
    let outage: Vec<_> = asked.iter().filter(|at| (10 * MINUTE..70 * MINUTE).contains(*at)).collect();
    // Those in flight when it began, and then one probe a minute at the end of the growing gaps.
    assert!((60..=110).contains(&outage.len()), "{} requests in an hour of outage", outage.len());
    let after: Vec<_> = asked.iter().copied().filter(|at| *at >= 70 * MINUTE).collect();
    assert!(fullest_second(&after) <= 40, "{} requests in one second after it", fullest_second(&after));
    let minutes = per_minute(&api, 81);
    assert!(minutes.iter().all(|count| *count <= 20 * 60 + 20), "{minutes:?}");
    assert_eq!(minutes[75], 20 * 60, "and soon all of the rate is used again");
    let abandoned = Filter { state: Some(State::Abandoned), ..Filter::default() };
    assert_eq!(world.store.watches(abandoned).await.unwrap().len(), 0);
    let failures: i64 = world.ask("SELECT max(failures) FROM watches");
    assert!(failures <= 1, "no counter moves while the breaker is open: {failures}");
    let account = world.store.accounts().await.unwrap().remove(0);
    assert!((3_500_000..=3_700_000).contains(&account.lost_ms), "{}", account.lost_ms);
}

#[tokio::test(start_paused = true)]
async fn two_poisoned_assets_do_not_keep_a_breaker_open() {
    let world = World::new().await;
    // The API breaks, and when it is back, the two that are asked for first stay broken.
    let api = Api::new(&world, |asked| match asked.asset.as_str() {
        "a" | "b" => broke(),
        _ if asked.at < MINUTE => broke(),
        _ => said("pending"),
    });
    world.add(&["a", "b", "c", "d"]).await;
    let poller = Running::poller(&world.poller(&[&api]));
    world.until(10 * MINUTE).await;
    poller.stop().await;
    assert!(api.instants("c").len() > 8, "the probes reach the others: {:?}", api.instants("c"));
    assert_eq!(world.store.accounts().await.unwrap()[0].closure, None);
}

#[tokio::test(start_paused = true)]
async fn a_poisoned_asset_among_others_runs_out_of_patience() {
    let world = World::new().await;
    let api = Api::new(&world, |asked| if asked.asset == "poisoned" { broke() } else { said("pending") });
    world.add_to("default", &["poisoned"], Some(HOUR)).await;
    world.add(&["sound"]).await;
    let poller = Running::poller(&world.poller(&[&api]));
    world.until(2 * HOUR).await;
    poller.stop().await;
    let watch = world.watch("poisoned").await;
    assert_eq!((watch.reason, watch.settled_at), (Some(Reason::Patience), Some(BEGIN + HOUR)));
}

#[tokio::test(start_paused = true)]
async fn a_limit_that_nobody_told_of_is_found_out() {
    let world = World::new().await;
    let window = Mutex::new(Vec::<Duration>::new());
    // No more than five in any second, whoever asks too often included.
    let api = Api::new(&world, move |asked| {
        let mut window = window.lock().unwrap();
        window.retain(|before| *before + SECOND > asked.at);
        window.push(asked.at);
        if window.len() > 5 { throttled(None) } else { said("processing") }
    });
    let api = Api { limits: Limits { rate: 10.0, max_in_flight: 32 }, latency: 100 * MILLISECOND, ..api };
    add_many(&world, "default", 1_000).await;
    let poller = Running::poller(&world.poller(&[&api]));
    world.until(20 * MINUTE).await;
    poller.stop().await;
    let asked = api.answered();
    let late: Vec<_> = asked.iter().filter(|(at, _)| *at >= MINUTE).collect();
    let refused = late.iter().filter(|(_, answer)| matches!(answer, Observation::Throttled { .. })).count();
    assert!(refused * 50 < late.len(), "{refused} of {} requests were throttled after the first minute", late.len());
    assert!(refused > 0, "the limit has to be found out again from time to time");
    let rate = late.len() as f64 / (19.0 * 60.0);
    assert!((3.5..=5.0).contains(&rate), "and the limit is used: {rate} requests a second");
}

fn throttled(wait: Option<Duration>) -> Observation {
    Observation::Throttled { wait, error: "429".into() }
}

#[tokio::test(start_paused = true)]
async fn what_was_found_out_survives_a_restart() {
    let world = World::new().await;
    let api = Api::new(&world, |asked| match asked.at {
        at if at < 10 * SECOND && asked.asset == "ast_0" => throttled(Some(100 * SECOND)),
        _ => said("pending"),
    });
    let api = Api { limits: Limits { rate: 10.0, max_in_flight: 1 }, ..api };
    add_many(&world, "default", 50).await;
    let poller = Running::poller(&world.poller(&[&api]));
    world.until(10 * SECOND).await;
    poller.stop().await;
    let row = world.store.accounts().await.unwrap().remove(0);
    assert_eq!((row.rate, row.held_until), (Some(7.0), Some(BEGIN + 100 * SECOND)));
    let before = api.asked().len();
    let mut again = world.poller(&[&api]);
    let tick = world.clock.tick();
    let known = Known { rate: row.rate, held_until: tick + 90 * SECOND, lost_ms: row.lost_ms, closed: None };
    let resumed = Pace::resumed(api.limits, &known, tick);
    Arc::get_mut(&mut again).unwrap().accounts.get_mut("default").unwrap().pace = Arc::new(Mutex::new(resumed));
    let poller = Running::poller(&again);
    world.until(110 * SECOND).await;
    poller.stop().await;
    let after: Vec<_> = api.asked_at().split_off(before);
    assert_eq!(after[0], 100 * SECOND, "the API asked for it before the restart");
    assert!((65..=72).contains(&after.len()), "at 7 a second and without a burst: {}", after.len());
}

#[tokio::test(start_paused = true)]
async fn a_quota_that_the_api_tells_of_is_never_exceeded() {
    let world = World::new().await;
    let used = Mutex::new((0_u64, 0_u64));
    // Sixty a minute, counted anew each minute.
    let api = Api::with_quotas(&world, move |asked| {
        let mut used = used.lock().unwrap();
        let minute = asked.at.as_secs() / 60;
        *used = if used.0 == minute { (minute, used.1 + 1) } else { (minute, 1) };
        let reset = Duration::from_secs(60 - asked.at.as_secs() % 60);
        let quota = Quota { left: Some((60_u64.saturating_sub(used.1), reset)), rate: None };
        let observation = if used.1 > 60 { throttled(None) } else { said("processing") };
        Polled { quota, ..observation.into() }
    });
    let api = Api { limits: Limits { rate: 10.0, max_in_flight: 8 }, latency: 50 * MILLISECOND, ..api };
    add_many(&world, "default", 500).await;
    let poller = Running::poller(&world.poller(&[&api]));
    world.until(10 * MINUTE).await;
    poller.stop().await;
    let minutes = per_minute(&api, 11);
    assert!(minutes[..10].iter().all(|count| (45..=60).contains(count)), "{minutes:?}");
    assert!(!api.answered().iter().any(|(_, answer)| matches!(answer, Observation::Throttled { .. })));
}

#[tokio::test(start_paused = true)]
async fn the_longest_overdue_goes_first_and_none_starves() {
    let world = World::new().await;
    let api = Api::new(&world, |_| said("processing"));
    let api = Api { limits: Limits { rate: 5.0, max_in_flight: 32 }, ..api };
    // A thousand want two polls a minute and more each; three hundred a minute are allowed.
    add_many(&world, "default", 1_000).await;
    let poller = Running::poller(&world.poller(&[&api]));
    world.until(10 * MINUTE).await;
    world.add(&["late"]).await;
    world.until(30 * MINUTE).await;
    poller.stop().await;
    let counts = per_asset(&api.asked()).into_values().collect::<Vec<_>>();
    let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
    assert!(most - least <= 3, "from {least} to {most} polls each");
    // It has to wait for its turn behind those that were overdue before it: at most as long as one round.
    let first = api.instants("late")[0];
    assert!((600_000..=810_000).contains(&first), "{first}");
}

#[tokio::test(start_paused = true)]
async fn a_hundred_thousand_overdue_watches_are_polled_no_faster_than_the_rate_and_then_out_of_step() {
    let world = World::new().await;
    let api = Api::new(&world, |_| said("processing"));
    let api = Api { limits: Limits { rate: 100.0, max_in_flight: 32 }, ..api };
    world.foreign(
        "WITH RECURSIVE number (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < 100000)
         INSERT INTO watches (asset_id, due_at) SELECT 'ast_' || n, 1789990000000 FROM number",
    );
    let poller = Running::poller(&world.poller(&[&api]));
    world.until(2 * MINUTE).await;
    poller.stop().await;
    let asked = api.asked_at();
    assert!(fullest_second(&asked) <= 200, "the burst and a second of the rate: {}", fullest_second(&asked));
    assert!((11_900..=12_100).contains(&asked.len()), "{} requests in 2 minutes", asked.len());
    let most_due: i64 = world
        .ask("SELECT max(count) FROM (SELECT count(*) AS count FROM watches WHERE polls > 0 GROUP BY due_at / 1000)");
    assert!(most_due <= 250, "{most_due} are due in the same second");
}

#[tokio::test(start_paused = true)]
async fn hooks_that_ask_for_it_are_told_of_a_pause_and_its_end() {
    let world = World::new().await;
    let api = Api::new(&world, |asked| match asked.at {
        at if at < 30 * SECOND => unauthorized(),
        _ => said("pending"),
    });
    let other = Api { name: "studio", ..Api::new(&world, |_| said("pending")) };
    world.add(&["a", "b"]).await;
    add_many(&world, "studio", 3).await;
    let mut poller = world.poller(&[&api, &other]);
    let operator = |name: &str, accounts: &[&str]| Subscription {
        on: vec![Topic::parse("account.paused"), Topic::parse("account.resumed")],
        accounts: accounts.iter().map(|account| (*account).to_owned()).collect(),
        ..subscription(name)
    };
    Arc::get_mut(&mut poller).unwrap().subscriptions =
        vec![subscription("cms"), operator("ops", &[]), operator("studio-ops", &["studio"])];
    let poller = Running::poller(&poller);
    world.until(5 * MINUTE).await;
    poller.stop().await;
    let told = "SELECT group_concat(hook || ' ' || type || ' ' || (events.body ->> '$.data.account'), ', ')
                FROM deliveries JOIN events ON seq = event_seq";
    assert_eq!(world.ask::<String>(told), "ops account.paused default, ops account.resumed default");
    let reason: String = world.ask("SELECT body ->> '$.data.reason' FROM events WHERE type = 'account.paused'");
    assert_eq!(reason, "unauthorized");
    assert_eq!(other.instants("ast_0")[..5], [0, 2_000, 5_000, 9_500, 16_250], "the other account goes on");
}

#[tokio::test(start_paused = true)]
async fn a_certificate_that_is_not_valid_pauses_the_account_at_once() {
    let world = World::new().await;
    let api = Api::new(&world, |asked| match asked.at {
        at if at < 30 * SECOND => Observation::Untrusted { error: "expired".into() },
        _ => said("pending"),
    });
    world.add(&["a"]).await;
    let poller = Running::poller(&world.poller(&[&api]));
    world.until(20 * SECOND).await;
    let account = world.store.accounts().await.unwrap().remove(0);
    assert_eq!((account.closure.as_deref(), account.last_error.as_deref()), (Some("untrusted"), Some("expired")));
    world.until(2 * MINUTE).await;
    poller.stop().await;
    assert_eq!(api.seconds()[..3], [0, 60, 62]);
    assert_eq!(world.watch("a").await.streaks.failures, 0);
}

#[tokio::test(start_paused = true)]
async fn three_forbidden_assets_beside_three_good_ones_stop_nobody() {
    let world = World::new().await;
    let api = Api::new(&world, |asked| match asked.asset.as_str() {
        good if good.starts_with("good") => said("processing"),
        _ => Observation::Forbidden { error: "403".into() },
    });
    world.add(&["good_1", "good_2", "good_3"]).await;
    let poller = Running::poller(&world.poller(&[&api]));
    world.until(MINUTE).await;
    world.add(&["bad_1", "bad_2", "bad_3"]).await;
    world.until(30 * MINUTE).await;
    poller.stop().await;
    for good in ["good_1", "good_2", "good_3"] {
        let longest = api.instants(good).windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
        assert!(longest <= 61_000, "{good} was not polled for {longest} ms");
    }
    for bad in ["bad_1", "bad_2", "bad_3"] {
        assert_eq!(world.watch(bad).await.reason, Some(Reason::Rejected), "{bad}");
        assert!(api.instants(bad).len() < 60, "and nobody is hammered: {}", api.instants(bad).len());
    }
}

#[tokio::test(start_paused = true)]
async fn the_time_for_which_the_api_asked_to_be_left_alone_is_not_the_assets() {
    let world = World::new().await;
    let api = Api::new(&world, |asked| match (asked.asset.as_str(), asked.at) {
        ("busy", at) if at < 10 * SECOND => throttled(Some(600 * SECOND)),
        ("missing", _) => Observation::Missing { error: "404".into() },
        _ => said("pending"),
    });
    world.add(&["missing"]).await;
    let working = world.poller(&[&api]);
    let poller = Running::poller(&working);
    world.until(4 * SECOND).await;
    world.add(&["busy"]).await;
    working.wake.wake();
    world.until(2 * HOUR).await;
    poller.stop().await;
    assert_eq!(*api.instants("missing").last().unwrap() / 1_000, 900, "five minutes, and ten that were not its own");
}
