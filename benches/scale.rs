//! `cargo bench --bench scale`: what a thousand, a hundred thousand and a million waiting watches cost: to add them from
//! stdin, to claim and to poll beside them, to start, and to wait. Takes about three minutes and a gigabyte of disk.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark ends at a surprise, and prints what it measured"
)]

#[path = "rig/api.rs"]
mod api;
mod rig;

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use assetwatch::clock::Clock;
use assetwatch::store::{Lane, Store, Terms};
use rig::{assetwatch, child, cpu, first_line, now_millis, pause, stop};
use rusqlite::Connection;

const SIZES: [i64; 3] = [1_000, 100_000, 1_000_000];
/// Watches that are due, besides those that wait.
const DUE: i64 = 10_000;
const IN_FLIGHT: usize = 64;
const CLAIMS: usize = 100;
const CLAIMED: u32 = 32;
/// Long enough for what a daemon does once a minute.
const IDLE: Duration = Duration::from_secs(65);
/// So long after the last poll is a daemon at rest.
const SETTLED: Duration = Duration::from_secs(3);

/// A database and what was measured with it.
struct Case {
    size: i64,
    database: PathBuf,
    added: Duration,
    claims: Vec<Duration>,
}

/// A daemon on it that has polled what was due.
struct Running {
    daemon: Child,
    first_poll: i64,
    rate: f64,
    cpu_micros: f64,
}

fn main() {
    if std::env::args().nth(1).as_deref() == Some("serve") {
        return api::serve();
    }
    let mut server = child(&["serve"]);
    let url = first_line(&mut server);
    let place = tempfile::tempdir().unwrap();
    let cases = SIZES.map(|size| fill(place.path(), size));
    let running: Vec<Running> = cases.iter().map(|case| start(place.path(), case, &url)).collect();
    pause(SETTLED.as_millis().try_into().unwrap());
    let before: Vec<Duration> = running.iter().map(|running| cpu(running.daemon.id())).collect();
    pause(IDLE.as_millis().try_into().unwrap());
    println!(
        "  waiting  add s  claim ms (median, worst)  start to first poll ms  polls/s  CPU µs/poll  resident MiB (now, most)  CPU % when idle"
    );
    for ((case, mut running), before) in cases.iter().zip(running).zip(before) {
        let pid = running.daemon.id();
        let idle = (cpu(pid) - before).as_secs_f64() * 100.0 / IDLE.as_secs_f64();
        let (median, worst) = (millis(case.claims[CLAIMS / 2]), millis(case.claims[CLAIMS - 1]));
        println!(
            "{:>9} {:>6.2} {median:>15.2} {worst:>9.2} {:>23} {:>8.0} {:>12.0} {:>15.1} {:>9.1} {idle:>16.2}",
            case.size,
            case.added.as_secs_f64(),
            running.first_poll,
            running.rate,
            running.cpu_micros,
            resident(pid, "VmRSS:"),
            resident(pid, "VmHWM:"),
        );
        stop(&mut running.daemon);
    }
    server.kill().unwrap();
    server.wait().unwrap();
}

/// Watches that wait for later, added by the program itself, and some that are due.
fn fill(place: &Path, size: i64) -> Case {
    let database = rig::database(place, &size.to_string());
    let began = Instant::now();
    let mut command = assetwatch();
    command.arg("--database").arg(&database).args(["add", "-"]);
    let mut add = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut ids = BufWriter::new(add.stdin.take().unwrap());
    (0..size).for_each(|number| writeln!(ids, "{}", id(number)).unwrap());
    drop(ids);
    assert!(add.wait().unwrap().success());
    let added = began.elapsed();
    let mut connection = Connection::open(&database).unwrap();
    let transaction = connection.transaction().unwrap();
    // Each at its own time, and none later than a backoff makes it: the daemon would take that for a clock set back.
    let later = now_millis() + 3_600_000;
    transaction.execute("UPDATE watches SET due_at = ?1 + id % 1000000", [later]).unwrap();
    for number in size..size + DUE {
        transaction.execute("INSERT INTO watches (asset_id) VALUES (?1)", [id(number)]).unwrap();
    }
    transaction.commit().unwrap();
    let claims = claims(&database);
    Case { size, database, added, claims }
}

/// An id as an API makes them: no two of a time stand beside each other in an index.
fn id(number: i64) -> String {
    format!("ast_{:016x}", number.wrapping_add(1).wrapping_mul(0x1e37_79b9_7f4a_7c15))
}

/// How long each of some claims takes, its commit included; sorted.
#[tokio::main]
async fn claims(database: &Path) -> Vec<Duration> {
    let store = Store::open(database).await.unwrap();
    let lane = Lane {
        name: "default".into(),
        room: CLAIMED,
        avoid: None,
        prefer: None,
        lease: Duration::from_secs(60),
        again: 0,
        again_first: false,
    };
    let clock = Clock::system();
    let mut took = Vec::with_capacity(CLAIMS);
    for _ in 0..CLAIMS {
        let now = clock.now();
        let horizon = now + Duration::from_secs(24 * 3_600);
        let (owner, lanes) = ("bench".to_owned(), vec![lane.clone()]);
        let began = Instant::now();
        let terms = Terms { owner, lanes, now, horizon, only: None, live: Vec::new() };
        let claimed = store.claim_watches(terms).await.unwrap();
        took.push(began.elapsed());
        assert_eq!(claimed[0].rows.len(), CLAIMED as usize);
    }
    store.release("bench".into(), clock.now()).await.unwrap();
    took.sort();
    took
}

/// Starts a daemon and waits until it has polled what is due.
fn start(place: &Path, case: &Case, url: &str) -> Running {
    let connection = Connection::open(&case.database).unwrap();
    let began = now_millis();
    let config = api::config(url, IN_FLIGHT) + "[backoff]\nmax = \"12h\"\n";
    let daemon = rig::daemon(place, &case.database, &config);
    let counted = "SELECT count(*), min(first_polled_at), max(last_polled_at) FROM watches WHERE id > ?1";
    let (first, last): (i64, i64) = loop {
        let told = "SELECT coalesce(max(seq), 0) FROM events";
        let counts = connection.query_row(told, [], |row| row.get::<_, i64>(0)).unwrap();
        if counts >= DUE {
            let row = connection.query_row(counted, [case.size], |row| {
                assert_eq!(row.get::<_, i64>(0)?, DUE);
                Ok((row.get(1)?, row.get(2)?))
            });
            break row.unwrap();
        }
        pause(5);
    };
    let cpu_micros = cpu(daemon.id()).as_secs_f64() * 1e6 / DUE as f64;
    let rate = DUE as f64 * 1_000.0 / (last - first).max(1) as f64;
    Running { daemon, first_poll: first - began, rate, cpu_micros }
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1_000.0
}

/// A size of a process from its status, in MiB.
fn resident(pid: u32, name: &str) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
}
