//! SIGKILL at random moments under load, while assets are inserted, added over HTTP and followed there.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::json;
use tokio::task::JoinHandle;

use crate::rig::{
    Caller, Daemon, MARGIN, Place, Reply, SOON, Server, all_told, assert_leases_at_most, assert_sound, breaches,
    eventually, executable, ids, now, seed, tally,
};

const ROUNDS: usize = 300;
/// Inserted by another program in each round; what is added over HTTP comes on top.
const ASSETS_A_ROUND: usize = 2;
/// One caller adds at most so many in a round, so that the polls keep up.
const POSTS_A_ROUND: usize = 3;
/// The polls that an asset takes, when none is cut off.
const POLLS: usize = 4;
/// Shorter than elsewhere, since a killed daemon's work waits for the end of its leases.
const SHORT: Duration = Duration::from_secs(2);
/// `kill_after` of the command hook.
const KILL_AFTER: Duration = Duration::from_millis(500);
/// A round is at most so long after the daemon has started; within it that listens, claims, polls, records and tells.
const AT_WORK: Duration = Duration::from_millis(230);

#[tokio::test(flavor = "multi_thread")]
async fn kills_at_random_moments_under_load_lose_nothing() {
    let seed = seed();
    let mut random = fastrand::Rng::with_seed(seed);
    let api = slow_api(random.u64(..)).await;
    let receiver = slow_receiver(random.u64(..)).await;
    let place = place(&api, &receiver);
    let caller = Caller::at_socket(&place.path("http.sock"));
    // The database is there before the first INSERT; and a busy machine has longer rounds.
    let begun = Instant::now();
    Daemon::start(&place).await.kill().await;
    let longest_round = begun.elapsed() * 2 + AT_WORK;
    let mut answered = BTreeSet::new();
    for round in 0..ROUNDS {
        let daemon = Daemon::spawn(&place);
        let adding = add_until_killed(caller.clone(), place.path("http.sock"), round, longest_round);
        for asset in 0..ASSETS_A_ROUND {
            let id = format!("active_{round}_{asset}");
            place.database().execute("INSERT INTO watches (asset_id) VALUES (?1)", [id]).unwrap();
        }
        // No event is awaited: the moment is the experiment.
        tokio::time::sleep(longest_round.mul_f64(random.f64())).await;
        daemon.kill().await;
        answered.extend(adding.await.unwrap());
        assert_leases_at_most(&place, SHORT + MARGIN, SHORT + KILL_AFTER + MARGIN);
    }
    let daemon = Daemon::start(&place).await;
    let longest = SHORT + KILL_AFTER + MARGIN;
    all_told(&place, longest, || assert_leases_at_most(&place, SHORT + MARGIN, longest)).await;
    assert_sound(&place);
    assert_nothing_is_lost(&place, &receiver, &answered, seed);
    assert_all_is_streamed(&place, &caller).await;
    assert!(daemon.stop().await.success());
    assert_checks_catch_what_is_planted(&place);
}

/// In the database, at both hooks, and of what was answered with 201.
fn assert_nothing_is_lost(place: &Place, receiver: &Server, answered: &BTreeSet<String>, seed: u64) {
    let known = watched(place);
    let forgotten: Vec<_> = answered.difference(&known).collect();
    assert!(forgotten.is_empty(), "added over HTTP and lost (seed {seed}): {forgotten:?}");
    let inserted =
        (0..ROUNDS).flat_map(|round| (0..ASSETS_A_ROUND).map(move |asset| format!("active_{round}_{asset}")));
    assert!(inserted.into_iter().all(|id| known.contains(&id)), "inserted and lost (seed {seed})");
    let commands = std::fs::read_to_string(place.path("runs")).unwrap();
    let commands: Vec<_> = commands.lines().map(str::to_owned).collect();
    let mut recovered = 0;
    for (hook, received) in [("cms", ids(receiver)), ("publish", commands)] {
        let wanted = place.ask(&format!("SELECT count(*) FROM deliveries WHERE hook = '{hook}'"));
        assert_eq!(wanted, Some(known.len() as i64), "one delivery an asset for {hook}");
        let tally = tally(place, hook, &received);
        println!(
            "seed {seed}: {ROUNDS} kills, {} assets ({} of them answered with 201), hook {hook}: {} lost, {} unexpected, {} \
             duplicated, {} recovered",
            known.len(),
            answered.len(),
            tally.lost,
            tally.unexpected,
            tally.duplicated,
            tally.recovered
        );
        assert_eq!((tally.lost, tally.unexpected), (0, 0), "{hook}, seed {seed}: {tally:?}");
        recovered += tally.recovered;
    }
    let cut_off: i64 = place.ask("SELECT sum(generation - polls) FROM watches").unwrap();
    println!("seed {seed}: {cut_off} polls were cut off and repeated");
    assert!(cut_off > 0, "no kill hit a poll: this was no experiment (seed {seed})");
    assert!(recovered > 0, "no kill hit an attempt (seed {seed})");
    let unanswered = known.len() - ROUNDS * ASSETS_A_ROUND - answered.len();
    println!("seed {seed}: {unanswered} adds over HTTP were committed and their answer cut off");
    assert!(!answered.is_empty(), "no round reached the HTTP server: this was no experiment (seed {seed})");
}

fn watched(place: &Place) -> BTreeSet<String> {
    let connection = place.database();
    let mut statement = connection.prepare("SELECT asset_id FROM watches").unwrap();
    statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
}

/// Every event is in the stream, once, from its beginning.
async fn assert_all_is_streamed(place: &Place, caller: &Caller) {
    let all: i64 = place.ask("SELECT count(*) FROM events").unwrap();
    let mut stream = caller.stream("/v1/events/stream", Some("0")).await;
    let mut seen = BTreeSet::new();
    for _ in 0..all {
        let sent = stream.next().await.expect("the stream goes on");
        assert!(seen.insert(sent.data["id"].as_str().unwrap().to_owned()), "streamed twice: {sent:?}");
    }
}

/// Adds assets over HTTP from the moment the daemon listens until it is killed, and returns those answered with 201.
fn add_until_killed(caller: Caller, socket: PathBuf, round: usize, longest: Duration) -> JoinHandle<Vec<String>> {
    // A killed daemon leaves its socket behind.
    let _ = std::fs::remove_file(&socket);
    tokio::spawn(async move {
        let mut answered = Vec::new();
        // A daemon that was killed before that never does.
        let listens = eventually(SOON, "the daemon listens", async || socket.exists().then_some(()));
        if tokio::time::timeout(longest, listens).await.is_err() {
            return answered;
        }
        for post in 0..POSTS_A_ROUND {
            let id = format!("active_{round}_http_{post}");
            let body = json!({ "asset_id": id }).to_string();
            let request = caller.request(Method::POST, "/v1/watches").header("content-type", "application/json");
            match request.body(body).send().await {
                Ok(answer) => {
                    assert_eq!(answer.status(), 201, "{id}");
                    answered.push(id);
                }
                Err(_) => return answered,
            }
        }
        answered
    })
}

/// Answers take some milliseconds, so that a kill may come between a request and its answer.
async fn slow_api(seed: u64) -> Server {
    let state = Mutex::new((fastrand::Rng::with_seed(seed), HashMap::<String, usize>::new()));
    Server::start(move |request| {
        let (random, polls) = &mut *state.lock().unwrap();
        let polls = polls.entry(request.asset().to_owned()).or_default();
        *polls += 1;
        let status = if *polls < POLLS { "processing" } else { "active" };
        let answer = Reply::asset(request.asset(), status);
        answer.later(Duration::from_millis(random.u64(0..80)))
    })
    .await
}

async fn slow_receiver(seed: u64) -> Server {
    let random = Mutex::new(fastrand::Rng::with_seed(seed));
    Server::start(move |_| Reply::status(204).later(Duration::from_millis(random.lock().unwrap().u64(0..80)))).await
}

/// A webhook `cms`, and a command `publish` that appends the id of its event to the file `runs`.
fn place(api: &Server, receiver: &Server) -> Place {
    let place = Place::new(api, "");
    let command = place.path("publish");
    executable(&command, &format!("echo \"$HOOK_EVENT_ID\" >> '{}'", place.path("runs").display()));
    let timeout = humantime::format_duration(SHORT);
    let text = format!(
        "database = \"assetwatch.db\"\n\
         [http]\nlisten = \"unix:{}\"\n\
         [api]\nurl = \"{}\"\nkey_file = \"key\"\nrate = 10000\ntimeout = \"{timeout}\"\n\
         [backoff]\ninitial = \"100ms\"\nmax = \"300ms\"\n\
         [[hooks]]\nname = \"cms\"\nurl = \"{}/hook\"\nsecret_file = \"secret\"\ntimeout = \"{timeout}\"\n\
         schedule = [\"1s\", \"1s\", \"1s\", \"1s\", \"1s\", \"1s\"]\n\
         [[hooks]]\nname = \"publish\"\ncommand = [{:?}]\nconcurrency = 4\ntimeout = \"{timeout}\"\nkill_after = \"{}\"\n",
        place.path("http.sock").display(),
        api.url(),
        receiver.url(),
        command.display().to_string(),
        humantime::format_duration(KILL_AFTER),
    );
    std::fs::write(place.config(), text).unwrap();
    place
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
