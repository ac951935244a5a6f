//! SIGKILL at each station of the line. Nothing is lost, and nothing settles twice.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::rig::{
    Daemon, Latch, MARGIN, Place, Reply, Request, Server, Tally, WriteLock, all_told, assert_leases_at_most,
    assert_sound, ids, tally,
};

/// The deadline of polls and attempts here: a kill comes before it, even on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(4);

/// Each waits for a lease to expire, so they wait at the same time.
#[tokio::test(flavor = "multi_thread")]
async fn a_kill_at_any_station_loses_nothing_and_settles_nothing_twice() {
    tokio::join!(
        killed_while_the_api_stalls(),
        killed_while_a_foreign_lock_keeps_it_from_recording(),
        killed_while_the_receiver_stalls(),
        killed_before_the_answer_was_noted(),
        killed_before_the_first_attempt()
    );
}

async fn killed_while_the_api_stalls() {
    let api = first_and_then(Reply::Hang, asset).await;
    let receiver = Server::receiver().await;
    let place = place(&api, &receiver, TIMEOUT, "");
    let daemon = Daemon::start(&place).await;
    insert(&place, "active_1");
    api.until(1).await;
    let lease = kill(daemon, &place, "watches").await;

    let _daemon = restart(&place, TIMEOUT).await;
    assert_sound(&place);
    assert_eq!(api.count(), 2);
    assert_eq!(place.ask("SELECT polls FROM watches"), Some(1), "the poll that was cut off is not counted");
    assert!(place.ask::<i64>("SELECT last_polled_at FROM watches").unwrap() >= lease, "polled under another's lease");
    assert_eq!(tally(&place, "cms", &ids(&receiver)), Tally::default());
}

async fn killed_while_a_foreign_lock_keeps_it_from_recording() {
    let answer = Latch::closed();
    let latch = answer.clone();
    let api = Server::start(move |request| asset(request).when(&latch)).await;
    let receiver = Server::receiver().await;
    let place = place(&api, &receiver, TIMEOUT, "");
    let daemon = Daemon::start(&place).await;
    insert(&place, "active_1");
    api.until(1).await;
    let lock = WriteLock::take(&place);
    answer.open();
    daemon.until_logged("what was seen is kept and written later").await;
    let lease = kill(daemon, &place, "watches").await;
    drop(lock);
    assert_eq!(place.state("active_1").as_deref(), Some("waiting"));
    assert_eq!(place.ask("SELECT count(*) FROM events"), Some(0));

    let _daemon = restart(&place, TIMEOUT).await;
    assert_sound(&place);
    assert_eq!(api.count(), 2);
    assert!(place.ask::<i64>("SELECT last_polled_at FROM watches").unwrap() >= lease, "polled under another's lease");
    assert_eq!(tally(&place, "cms", &ids(&receiver)), Tally::default());
}

async fn killed_while_the_receiver_stalls() {
    let api = Server::start(asset).await;
    let receiver = first_and_then(Reply::Hang, |_| Reply::status(204)).await;
    let place = place(&api, &receiver, TIMEOUT, "");
    let daemon = Daemon::start(&place).await;
    insert(&place, "active_1");
    receiver.until(1).await;
    let lease = kill(daemon, &place, "deliveries").await;

    let _daemon = restart(&place, TIMEOUT).await;
    assert_repeated_after(lease, &place);
    assert_eq!(tally(&place, "cms", &ids(&receiver)), Tally { duplicated: 1, recovered: 1, ..Tally::default() });
}

async fn killed_before_the_answer_was_noted() {
    let api = Server::start(asset).await;
    let answer = Latch::closed();
    let receiver = first_and_then(Reply::status(204).when(&answer), |_| Reply::status(204)).await;
    let place = place(&api, &receiver, TIMEOUT, "");
    let daemon = Daemon::start(&place).await;
    insert(&place, "active_1");
    receiver.until(1).await;
    let lock = WriteLock::take(&place);
    answer.open();
    daemon.until_logged("what was seen is kept and written later").await;
    let lease = kill(daemon, &place, "deliveries").await;
    drop(lock);

    let _daemon = restart(&place, TIMEOUT).await;
    assert_repeated_after(lease, &place);
    assert_eq!(tally(&place, "cms", &ids(&receiver)), Tally { duplicated: 1, recovered: 1, ..Tally::default() });
}

/// The event was committed, and its delivery waits behind another one for the hook's only slot.
async fn killed_before_the_first_attempt() {
    let api = Server::start(asset).await;
    let receiver = first_and_then(Reply::Hang, |_| Reply::status(204)).await;
    let place = place(&api, &receiver, TIMEOUT, "concurrency = 1\n");
    let daemon = Daemon::start(&place).await;
    insert(&place, "active_1");
    receiver.until(1).await;
    insert(&place, "active_2");
    place.until("SELECT count(*) FROM deliveries", 2).await;
    let lease = kill(daemon, &place, "deliveries").await;
    assert_eq!(place.ask("SELECT attempts FROM deliveries ORDER BY id DESC"), Some(0), "it was not to be attempted");

    let _daemon = restart(&place, TIMEOUT).await;
    assert_repeated_after(lease, &place);
    assert_eq!(place.ask("SELECT attempts FROM deliveries ORDER BY id DESC"), Some(1));
    assert_eq!(tally(&place, "cms", &ids(&receiver)), Tally { duplicated: 1, recovered: 1, ..Tally::default() });
}

/// The first delivery: its interrupted attempt is `unknown`, and the next one came when the lease was over.
fn assert_repeated_after(lease: i64, place: &Place) {
    assert_sound(place);
    let attempts = "SELECT group_concat(outcome, ' then ') FROM (SELECT outcome FROM attempts
                    WHERE delivery_id = 1 ORDER BY number)";
    assert_eq!(place.ask::<String>(attempts).unwrap(), "unknown then delivered");
    let again: i64 = place.ask("SELECT started_at FROM attempts WHERE delivery_id = 1 AND number = 2").unwrap();
    assert!(again >= lease, "attempted at {again} under another's lease, which ends at {lease}");
    assert_eq!(place.ask("SELECT failures FROM deliveries WHERE id = 1"), Some(0), "to be killed is no failure");
}

/// Kills the daemon while it holds a lease in `table`, and returns when that ends.
async fn kill(daemon: Daemon, place: &Place, table: &str) -> i64 {
    daemon.kill().await;
    place.ask(&format!("SELECT lease_until FROM {table} WHERE lease_owner IS NOT NULL")).expect("a lease is held")
}

/// Starts the daemon again and waits until all is told; no lease is longer than it may be, meanwhile.
async fn restart(place: &Place, timeout: Duration) -> Daemon {
    let daemon = Daemon::start(place).await;
    all_told(place, timeout + MARGIN, || assert_leases_at_most(place, timeout + MARGIN, timeout + MARGIN)).await;
    daemon
}

/// A server whose first answer is `first`.
async fn first_and_then(first: Reply, then: fn(&Request) -> Reply) -> Server {
    let asked = AtomicBool::new(false);
    Server::start(move |request| if asked.swap(true, Ordering::SeqCst) { then(request) } else { first.clone() }).await
}

/// Every asset has the status in its name at once.
fn asset(request: &Request) -> Reply {
    let id = request.asset();
    Reply::asset(id, id.split('_').next().unwrap())
}

/// A webhook `cms`, which goes on with `more`.
fn place(api: &Server, receiver: &Server, timeout: Duration, more: &str) -> Place {
    let place = Place::new(api, "");
    let timeout = humantime::format_duration(timeout);
    let text = format!(
        "database = \"assetwatch.db\"\n\
         [api]\nurl = \"{}\"\nkey_file = \"key\"\nrate = 10000\ntimeout = \"{timeout}\"\n\
         [backoff]\ninitial = \"100ms\"\nmax = \"300ms\"\n\
         [[hooks]]\nname = \"cms\"\nurl = \"{}/hook\"\nsecret_file = \"secret\"\ntimeout = \"{timeout}\"\n{more}",
        api.url(),
        receiver.url()
    );
    std::fs::write(place.config(), text).unwrap();
    place
}

fn insert(place: &Place, asset_id: &str) {
    place.database().execute("INSERT INTO watches (asset_id) VALUES (?1)", [asset_id]).unwrap();
}
