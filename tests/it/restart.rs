//! SIGKILL: at each station of the line, and at random moments under load. Nothing is lost, and nothing settles twice.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::rig::{
    Daemon, Latch, Place, Reply, Request, SOON, Server, Tally, WriteLock, assert_leases_at_most, assert_sound,
    breaches, eventually, executable, now, tally,
};

/// What a lease lasts beyond a poll or an attempt.
const MARGIN: Duration = Duration::from_secs(10);
/// The deadline of polls and attempts here: a kill comes before it, even on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(4);

/// Five of the 200 kills. Each waits for a lease to expire, so they wait at the same time.
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
    let open = "SELECT (SELECT count(*) FROM watches WHERE state = 'waiting')
                     + (SELECT count(*) FROM deliveries WHERE state = 'waiting')";
    eventually(SOON + timeout + MARGIN, "everything is settled and told", async || {
        assert_leases_at_most(place, timeout + MARGIN, timeout + MARGIN);
        (place.ask(open) == Some(0)).then_some(())
    })
    .await;
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

/// The id of each webhook, as it came.
fn ids(receiver: &Server) -> Vec<String> {
    let requests = receiver.requests();
    requests.iter().map(|request| request.header("webhook-id").unwrap().to_owned()).collect()
}

const ROUNDS: usize = 195;
const ASSETS_A_ROUND: usize = 2;
/// The polls that an asset takes, when none is cut off.
const POLLS: usize = 4;
/// Shorter than at the stations, since a killed daemon's work waits for the end of its leases.
const SHORT: Duration = Duration::from_secs(2);
/// `kill_after` of the command hook.
const KILL_AFTER: Duration = Duration::from_millis(500);
/// A round is at most so long; within it the daemon starts, claims, polls, records and tells.
const LONGEST_ROUND_MS: u64 = 450;

#[tokio::test(flavor = "multi_thread")]
async fn kills_at_random_moments_under_load_lose_nothing() {
    let seed = seed();
    let mut random = fastrand::Rng::with_seed(seed);
    let api = slow_api(random.u64(..)).await;
    let receiver = slow_receiver(random.u64(..)).await;
    let place = place(&api, &receiver, SHORT, "schedule = [\"1s\", \"1s\", \"1s\", \"1s\", \"1s\", \"1s\"]\n");
    add_command_hook(&place);
    // The database is there before the first INSERT.
    Daemon::start(&place).await.kill().await;
    for round in 0..ROUNDS {
        let daemon = Daemon::spawn(&place);
        for asset in 0..ASSETS_A_ROUND {
            insert(&place, &format!("active_{round}_{asset}"));
        }
        // No event is awaited: the moment is the experiment.
        tokio::time::sleep(Duration::from_millis(random.u64(0..LONGEST_ROUND_MS))).await;
        daemon.kill().await;
        assert_leases_at_most(&place, SHORT + MARGIN, SHORT + KILL_AFTER + MARGIN);
    }
    let _daemon = restart(&place, SHORT + KILL_AFTER).await;
    assert_sound(&place);
    let assets = i64::try_from(ROUNDS * ASSETS_A_ROUND).unwrap();
    for hook in ["cms", "publish"] {
        let told = format!("SELECT count(*) FROM deliveries WHERE hook = '{hook}'");
        assert_eq!(place.ask(&told), Some(assets), "one delivery an asset for {hook}");
    }
    let commands = std::fs::read_to_string(place.path("runs")).unwrap();
    let tallies = [
        ("cms", tally(&place, "cms", &ids(&receiver))),
        ("publish", tally(&place, "publish", &commands.lines().map(str::to_owned).collect::<Vec<_>>())),
    ];
    for (hook, tally) in &tallies {
        println!("seed {seed}, {ROUNDS} kills, {assets} assets, hook {hook}: {tally:?}");
        assert_eq!((tally.lost, tally.unexpected), (0, 0), "{hook}, seed {seed}: {tally:?}");
    }
    let cut_off: i64 = place.ask("SELECT sum(generation - polls) FROM watches").unwrap();
    println!("{cut_off} polls were cut off and repeated");
    assert!(cut_off > 0, "no kill hit a poll: this was no experiment (seed {seed})");
    assert!(tallies.iter().any(|(_, tally)| tally.recovered > 0), "no kill hit an attempt (seed {seed})");
    assert_checks_catch_what_is_planted(&place);
}

/// `ASSETWATCH_TEST_SEED` replays a run, as far as the machine's own timing allows.
fn seed() -> u64 {
    let seed = std::env::var("ASSETWATCH_TEST_SEED").ok().map(|seed| seed.parse().expect("a number"));
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    println!("ASSETWATCH_TEST_SEED={seed}");
    seed
}

/// Answers take some milliseconds, so that a kill may come between a request and its answer.
async fn slow_api(seed: u64) -> Server {
    let state = Mutex::new((fastrand::Rng::with_seed(seed), HashMap::<String, usize>::new()));
    Server::start(move |request| {
        let (random, polls) = &mut *state.lock().unwrap();
        let polls = polls.entry(request.asset().to_owned()).or_default();
        *polls += 1;
        let answer = if *polls < POLLS { Reply::asset(request.asset(), "processing") } else { asset(request) };
        answer.later(Duration::from_millis(random.u64(0..80)))
    })
    .await
}

async fn slow_receiver(seed: u64) -> Server {
    let random = Mutex::new(fastrand::Rng::with_seed(seed));
    Server::start(move |_| Reply::status(204).later(Duration::from_millis(random.lock().unwrap().u64(0..80)))).await
}

/// A command `publish` that appends the id of its event to the file `runs`.
fn add_command_hook(place: &Place) {
    let command = place.path("publish");
    executable(&command, &format!("echo \"$HOOK_EVENT_ID\" >> '{}'", place.path("runs").display()));
    let text = format!(
        "{}[[hooks]]\nname = \"publish\"\ncommand = [{:?}]\nconcurrency = 4\ntimeout = \"{}\"\nkill_after = \"{}\"\n",
        std::fs::read_to_string(place.config()).unwrap(),
        command.display().to_string(),
        humantime::format_duration(SHORT),
        humantime::format_duration(KILL_AFTER),
    );
    std::fs::write(place.config(), text).unwrap();
}

/// A check that cannot fail says nothing: each of these is what a broken daemon would leave.
fn assert_checks_catch_what_is_planted(place: &Place) {
    let long = (now() + Duration::from_secs(3_600)).as_millis();
    for (bug, rule) in [
        ("UPDATE attempts SET outcome = NULL, finished_at = NULL WHERE id = 1".to_owned(), "every attempt has ended"),
        ("UPDATE attempts SET outcome = 'delivered', finished_at = 0".into(), "the last attempt delivered"),
        ("DELETE FROM attempts WHERE number = 1".into(), "every attempt is in the ledger"),
        ("DELETE FROM events WHERE type = 'asset.active' AND watch_id = 1".into(), "every settled watch has exactly"),
        ("INSERT INTO watches (asset_id) SELECT asset_id FROM watches WHERE id = 1".into(), "every asset is settled"),
        (
            "UPDATE deliveries SET state = 'dead' WHERE id = (SELECT max(id) FROM deliveries)".into(),
            "every delivery is delivered",
        ),
        (
            format!(
                "UPDATE deliveries SET state = 'waiting', due_at = 0, finished_at = NULL, lease_owner = 'gone',
                     lease_until = {long} WHERE id = (SELECT max(id) FROM deliveries)"
            ),
            "nothing is leased",
        ),
        ("UPDATE events SET type = 'asset.censored' WHERE type = 'asset.active'".into(), "the event of its end"),
    ] {
        let connection = place.database();
        connection.execute_batch("PRAGMA foreign_keys = ON; BEGIN").unwrap();
        connection.execute(&bug, []).unwrap();
        connection.execute_batch("COMMIT").unwrap();
        assert!(breaches(place).iter().any(|breach| breach.starts_with(rule)), "{bug} was not caught");
    }
}
