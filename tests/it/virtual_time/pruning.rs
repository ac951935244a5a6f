//! What has ended is pruned by the clock, beside the polling.

use assetwatch::janitor::{self, Janitor};

use super::*;

/// A janitor that runs.
fn keep_house(world: &World, retention: Duration) -> (watch::Sender<Phase>, JoinHandle<()>) {
    let (announce, stop) = Stop::channel();
    let janitor = Janitor { store: world.store.clone(), clock: world.clock.clone(), retention };
    (announce, tokio::spawn(janitor::run(janitor, stop)))
}

/// So many watches that have settled long ago, with their ledger.
fn long_ended(count: u32) -> String {
    format!(
        "WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {count})
         INSERT INTO watches (asset_id, state, status, due_at, created_at, settled_at)
             SELECT 'old_' || n, 'settled', 'active', NULL, n, n FROM n;
         INSERT INTO events (id, watch_id, type, body, created_at)
             SELECT 'evt_' || id, id, 'asset.active', zeroblob(300), created_at FROM watches WHERE state = 'settled';
         INSERT INTO deliveries (event_seq, hook, watch_id, state, created_at, finished_at, attempts)
             SELECT seq, 'cms', watch_id, 'delivered', 1, 1, 1 FROM events;
         INSERT INTO attempts (delivery_id, number, owner, started_at, finished_at, outcome)
             SELECT id, 1, 'us', 1, 1, 'delivered' FROM deliveries;"
    )
}

const OLD: &str = "SELECT count(*) FROM watches WHERE asset_id GLOB 'old_*'";

#[tokio::test(start_paused = true)]
async fn what_has_ended_goes_after_retention_and_no_sooner() {
    let world = World::new().await;
    world.settle("first", &[]).await;
    world.settle("untold", &["cms"]).await;
    world.add(&["waiting"]).await;
    let (announce, task) = keep_house(&world, 3 * HOUR);
    world.until(90 * MINUTE).await;
    world.settle("second", &[]).await;
    let left = || world.ask::<String>("SELECT group_concat(asset_id) FROM (SELECT asset_id FROM watches ORDER BY id)");
    world.until(3 * HOUR - MINUTE).await;
    assert_eq!(left(), "first,untold,waiting,second");
    world.until(4 * HOUR + MINUTE).await;
    assert_eq!(left(), "untold,waiting,second");
    world.until(5 * HOUR + MINUTE).await;
    assert_eq!(left(), "untold,waiting");
    // Given up on only now: it can be retried for as long as anything.
    let at = world.clock.now().as_millis();
    world.foreign(&format!("UPDATE deliveries SET state = 'dead', due_at = NULL, finished_at = {at}"));
    world.until(8 * HOUR).await;
    assert_eq!(left(), "untold,waiting");
    world.until(10 * HOUR).await;
    assert_eq!(left(), "waiting");
    world.until(365 * DAY).await;
    assert_eq!(left(), "waiting");
    announce.send_replace(Phase::Drain);
    task.await.unwrap();
}

/// It rests after each piece, so polls come when they are due, and the space goes back.
#[tokio::test(start_paused = true)]
async fn polling_goes_on_while_much_is_pruned() {
    let world = World::new().await;
    world.foreign(&long_ended(10_000));
    world.store.checkpoint().await.unwrap();
    let full = world.store.path().metadata().unwrap().len();
    world.add(&["a"]).await;
    let mut api = Api::new(&world, |_| said("processing"));
    api.rules.backoff = assetwatch::backoff::Policy {
        initial: 100 * MILLISECOND,
        multiplier: 1.0,
        max: 100 * MILLISECOND,
        jitter: 0.0,
    };
    let polling = Running::poller(&world.poller(&[&api]));
    let began = world.began.elapsed();
    let (announce, task) = keep_house(&world, DAY);
    world.until(began + 300 * MILLISECOND).await;
    let left = world.ask::<i64>(OLD);
    assert!(left > 2_000 && left < 9_900, "by and by: {left}");
    world.until(began + 5 * SECOND).await;
    assert_eq!(world.ask::<i64>(OLD), 0);
    for table in ["events WHERE type = 'asset.active'", "deliveries", "attempts"] {
        assert_eq!(world.ask::<i64>(&format!("SELECT count(*) FROM {table}")), 0, "{table}");
    }
    let asked: Vec<Duration> = api.asked.lock().unwrap().iter().map(|asked| asked.at).collect();
    assert!(asked.len() > 45, "{asked:?}");
    assert!(asked.windows(2).all(|pair| pair[1] - pair[0] <= 102 * MILLISECOND), "{asked:?}");
    assert!(world.store.path().metadata().unwrap().len() < full / 4, "the disk has it back");
    announce.send_replace(Phase::Drain);
    task.await.unwrap();
    polling.stop().await;
}

/// Longer than a write waits.
#[tokio::test(start_paused = true)]
async fn a_lock_of_another_program_is_waited_out() {
    let world = World::new().await;
    world.foreign(&long_ended(10));
    let locker = rusqlite::Connection::open(world.store.path()).unwrap();
    locker.execute_batch("BEGIN IMMEDIATE").unwrap();
    let (announce, task) = keep_house(&world, DAY);
    world.until(5 * SECOND).await;
    assert_eq!(world.ask::<i64>(OLD), 10);
    locker.execute_batch("ROLLBACK").unwrap();
    world.until(11 * SECOND).await;
    assert_eq!(world.ask::<i64>(OLD), 0);
    announce.send_replace(Phase::Drain);
    task.await.unwrap();
}

/// What was inserted by a clock that ran ahead stands before what is old: the daily sweep goes through everything.
#[tokio::test(start_paused = true)]
async fn what_stands_behind_younger_rows_is_found_within_a_day() {
    let world = World::new().await;
    let future = (BEGIN + 365 * DAY).as_millis();
    world.foreign(&format!(
        "WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 1200)
         INSERT INTO watches (asset_id, state, status, due_at, created_at, settled_at)
             SELECT 'future_' || n, 'settled', 'active', NULL, {future}, {future} FROM n"
    ));
    world.foreign(&long_ended(3));
    let (announce, task) = keep_house(&world, DAY);
    world.until(2 * HOUR).await;
    assert_eq!(world.ask::<i64>(OLD), 3);
    world.until(DAY + HOUR).await;
    assert_eq!(world.ask::<i64>(OLD), 0);
    assert_eq!(world.ask::<i64>("SELECT count(*) FROM watches"), 1_200);
    announce.send_replace(Phase::Drain);
    task.await.unwrap();
}
