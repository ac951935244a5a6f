//! The daemon prunes what has ended: as it is configured, and whatever happens to it meanwhile.

use rustix::process::Signal;

use crate::rig::{Daemon, Place, Server};

/// So many watches that settled two hours ago, with an event, a delivery and an attempt each.
fn ended(place: &Place, count: u32) {
    let at = crate::rig::now().as_millis() - 2 * 3_600_000;
    place
        .database()
        .execute_batch(&format!(
            "BEGIN;
             WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {count})
             INSERT INTO watches (asset_id, state, status, due_at, created_at, settled_at)
                 SELECT 'old_' || n, 'settled', 'active', NULL, {at}, {at} FROM n;
             INSERT INTO events (id, watch_id, type, body, created_at)
                 SELECT 'evt_' || id, id, 'asset.active', zeroblob(300), {at} FROM watches WHERE state = 'settled';
             INSERT INTO deliveries (event_seq, hook, watch_id, state, created_at, finished_at, attempts)
                 SELECT seq, 'cms', watch_id, 'delivered', {at}, {at}, 1 FROM events;
             INSERT INTO attempts (delivery_id, number, owner, started_at, finished_at, outcome)
                 SELECT id, 1, 'us', {at}, {at}, 'delivered' FROM deliveries;
             COMMIT"
        ))
        .unwrap();
}

/// Puts a retention at the head of the configuration, where there is none yet.
fn keep_for(place: &Place, retention: &str) {
    let before = std::fs::read_to_string(place.config()).unwrap();
    std::fs::write(place.config(), format!("retention = \"{retention}\"\n{before}")).unwrap();
}

const OLD: &str = "SELECT count(*) FROM watches WHERE asset_id GLOB 'old_*'";

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_takes_another_retention() {
    let api = Server::api().await;
    let place = Place::new(&api, "");
    let daemon = Daemon::start(&place).await;
    ended(&place, 3);
    daemon.signal(Signal::HUP);
    daemon.until_logged("reloaded").await;
    // A month is the retention that it has.
    assert_eq!(place.ask::<i64>(OLD), Some(3));
    keep_for(&place, "1h");
    daemon.signal(Signal::HUP);
    daemon.until_logged("pruned what had ended before").await;
    assert_eq!(place.ask::<i64>(OLD), Some(0));
    assert!(daemon.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_while_it_prunes_leaves_whole_watches_and_the_next_goes_on() {
    let api = Server::api().await;
    let place = Place::new(&api, "");
    keep_for(&place, "1h");
    assert_eq!(crate::rig::run(&place, &["add", "active_1"]).await.code, 0);
    ended(&place, 4_000);
    let daemon = Daemon::start(&place).await;
    place.until(&format!("SELECT ({OLD}) < 4000"), 1).await;
    daemon.kill().await;
    let left = place.ask::<i64>(OLD).unwrap();
    for table in ["events", "deliveries", "attempts"] {
        let of_old = format!("SELECT count(*) FROM {table}");
        let more = if table == "events" { "SELECT count(*) FROM events WHERE watch_id = 1" } else { "SELECT 0" };
        let count = place.ask::<i64>(&of_old).unwrap() - place.ask::<i64>(more).unwrap();
        assert_eq!(count, left, "{table}");
    }
    assert_eq!(place.ask::<String>("PRAGMA integrity_check").as_deref(), Some("ok"));
    let daemon = Daemon::start(&place).await;
    place.until(OLD, 0).await;
    place.until_state("active_1", "settled").await;
    daemon.until_logged("pruned what had ended before").await;
    assert!(daemon.stop().await.success());
}
