//! A wall clock that is set, leases that were left behind, and two daemons on one database.

use assetwatch::watch::State;

use super::*;

const A_DAY: i64 = 86_400_000;

#[tokio::test(start_paused = true)]
async fn a_wall_clock_that_is_set_back_strands_nothing() {
    let world = World::new().await;
    let api = Api::new(&world, |asked| if asked.at < 2 * HOUR { said("pending") } else { said("active") });
    let receiver = Receiver::new(&world, "cms", |told| match told.number {
        1..=4 => failed(None),
        _ => Outcome::Delivered,
    });
    world.settle("told", &["cms"]).await;
    world.add(&["a", "b"]).await;
    let (poller, relay) = (Running::poller(&world.poller(&[&api])), Running::relay(&world.relay(&[&receiver])));
    // Three minutes in, the fifth attempt is ten minutes away, and the polls a minute.
    world.until(3 * MINUTE).await;
    world.set_wall_clock_by(-2 * A_DAY);
    world.until(HOUR).await;
    assert_eq!(receiver.seconds("told").len(), 5);
    assert!(receiver.seconds("told")[4] <= 240, "{:?}", receiver.seconds("told"));
    for asset in ["a", "b"] {
        let instants = api.instants(asset);
        let longest = instants.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
        assert!(longest <= 121_000, "{asset} was not polled for {longest} ms");
    }
    world.until(2 * HOUR + 2 * MINUTE).await;
    for asset in ["a", "b"] {
        assert_eq!(world.watch(asset).await.state, State::Settled, "{asset}");
    }
    poller.stop().await;
    relay.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_wall_clock_that_is_set_forward_strands_nothing() {
    let world = World::new().await;
    let api = Api::new(&world, |asked| if asked.at < HOUR { said("pending") } else { said("active") });
    world.add_to("default", &["a", "b"], Some(3 * DAY)).await;
    let poller = Running::poller(&world.poller(&[&api]));
    world.until(3 * MINUTE).await;
    world.set_wall_clock_by(A_DAY);
    world.until(HOUR + 2 * MINUTE).await;
    poller.stop().await;
    for asset in ["a", "b"] {
        let instants = api.instants(asset);
        let longest = instants.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
        assert!(longest <= 60_000, "{asset} was not polled for {longest} ms");
        assert!(instants.len() < 75, "{asset} was polled {} times", instants.len());
        assert_eq!(world.watch(asset).await.state, State::Settled, "{asset}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_leases_of_a_daemon_that_died_end_by_themselves() {
    let world = World::new().await;
    let api = Api::new(&world, |_| said("active"));
    world.add(&["a", "b", "free"]).await;
    world.claim("a", "who died", 20 * SECOND).await;
    world.claim("b", "who died", 35 * SECOND).await;
    let poller = Running::poller(&world.poller(&[&api]));
    world.until(HOUR).await;
    poller.stop().await;
    assert_eq!(["free", "a", "b"].map(|asset| api.instants(asset)), [vec![0], vec![20_000], vec![35_000]]);
    assert_eq!(world.watch("a").await.generation, 2);
}

#[tokio::test(start_paused = true)]
async fn two_daemons_on_one_database_poll_each_asset_once_each_time() {
    let world = World::new().await;
    let api = Api { latency: SECOND, ..Api::new(&world, |_| said("pending")) };
    let names: Vec<_> = (0..20).map(|n| format!("ast_{n}")).collect();
    world.add(&names.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let mut theirs = world.poller(&[&api]);
    {
        let theirs = Arc::get_mut(&mut theirs).unwrap();
        (theirs.store, theirs.owner) = (world.another_store().await, "them".into());
    }
    let (ours, theirs) = (Running::poller(&world.poller(&[&api])), Running::poller(&theirs));
    world.until(5 * MINUTE).await;
    ours.stop().await;
    theirs.stop().await;
    // Each poll lasts a second, after which the backoff counts.
    let gaps =
        [2_000, 3_000, 4_500, 6_750, 10_125, 15_187, 22_781, 34_171, 51_257, 60_000, 60_000].map(|gap| gap + 1_000);
    for name in names {
        assert_eq!(api.instants(&name), sums(&gaps), "{name}");
        assert_eq!(world.watch(&name).await.generation, 12, "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn two_daemons_on_one_database_tell_a_hook_once() {
    let world = World::new().await;
    let receiver = Receiver::new(&world, "cms", |told| if told.number < 4 { failed(None) } else { Outcome::Delivered });
    let receiver = Receiver { latency: SECOND, ..receiver };
    for n in 0..10 {
        world.settle(&format!("ast_{n}"), &["cms"]).await;
    }
    let mut theirs = world.relay(&[&receiver]);
    {
        let theirs = Arc::get_mut(&mut theirs).unwrap();
        (theirs.store, theirs.owner) = (world.another_store().await, "them".into());
    }
    let (ours, theirs) = (Running::relay(&world.relay(&[&receiver])), Running::relay(&theirs));
    // They fail together, so the breaker has them tried one by one.
    world.until(12 * HOUR).await;
    ours.stop().await;
    theirs.stop().await;
    for n in 0..10 {
        let told: Vec<_> = receiver.told().into_iter().filter(|told| told.asset == format!("ast_{n}")).collect();
        assert_eq!(told.iter().map(|told| told.number).collect::<Vec<_>>(), [1, 2, 3, 4]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_jumps_abandons_nothing_for_time_that_did_not_pass() {
    for jump in [A_DAY, -A_DAY, 40 * 60_000, -40 * 60_000] {
        let world = World::new().await;
        let api = Api::new(&world, |asked| match asked.asset.as_str() {
            "missing" => Observation::Missing { error: "404".into() },
            _ => said("pending"),
        });
        world.add_to("default", &["patient", "missing"], Some(HOUR)).await;
        let poller = Running::poller(&world.poller(&[&api]));
        world.until(2 * MINUTE).await;
        world.set_wall_clock_by(jump);
        world.until(4 * MINUTE).await;
        world.add_to("default", &["between"], Some(HOUR)).await;
        world.until(10 * MINUTE).await;
        world.set_wall_clock_by(-jump);
        world.until(3 * HOUR).await;
        poller.stop().await;
        // To the second: the grace is five minutes and the patience an hour, by the monotonic clock.
        for (asset, end) in [("missing", 300), ("patient", 3_600), ("between", 240 + 3_600)] {
            let last = *api.instants(asset).last().unwrap() / 1_000;
            assert!(last.abs_diff(end) <= 1, "{asset} ended after {last} s, not {end}, with a jump by {jump}");
        }
        let longest = |asset| api.instants(asset).windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
        assert!(longest("patient") <= 61_000, "{} ms between two polls, with a jump by {jump}", longest("patient"));
    }
}

#[tokio::test(start_paused = true)]
async fn the_time_that_the_machine_slept_is_not_the_assets() {
    let world = World::new().await;
    let api = Api::new(&world, |_| said("pending"));
    world.add_to("default", &["a"], Some(HOUR)).await;
    let poller = Running::poller(&world.poller(&[&api]));
    world.until(10 * MINUTE + SECOND).await;
    let before = api.asked().len();
    // While a machine sleeps, the monotonic clock stands still.
    world.set_wall_clock_by(8 * 3_600_000);
    world.until(10 * MINUTE + 5 * SECOND).await;
    assert!(api.asked().len() > before, "what became due meanwhile is polled within a second or two");
    world.until(2 * HOUR).await;
    poller.stop().await;
    assert_eq!(*api.instants("a").last().unwrap() / 1_000, 3_600);
    let account = world.store.accounts().await.unwrap().remove(0);
    assert!(account.lost_ms.abs_diff(8 * 3_600_000) < 2_000, "and it is written down: {}", account.lost_ms);
}
