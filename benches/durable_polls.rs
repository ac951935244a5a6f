//! `cargo bench --bench durable_polls`: how many polls a second the daemon makes, each outcome on the disk before anything
//! acts on it, and the processor time of each, against a bare reqwest loop with the same concurrency against the same
//! server.
//!
//! Server, daemon and loop are processes of their own. The two sides take turns, and what is compared is the ratio of
//! each turn, since a machine's speed drifts.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark ends at a surprise, and prints what it measured"
)]

#[path = "rig/api.rs"]
mod api;
mod rig;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rig::{child, cpu, first_line, now_millis, pause, stop};
use rusqlite::Connection;

const POLLS: usize = 20_000;
/// Requests in flight: many, and more than anybody needs.
const CONCURRENCIES: [usize; 2] = [64, 256];
const TURNS: usize = 5;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    match args.get(1).map(String::as_str) {
        Some("serve") => api::serve(),
        Some("bare") => bare(&args[2], args[3].parse().unwrap()),
        _ => compare(),
    }
}

fn compare() {
    let mut server = child(&["serve"]);
    let url = first_line(&mut server);
    let place = tempfile::tempdir().unwrap();
    println!("{POLLS} polls a turn; both against the same server on loopback\n");
    println!("in flight  turn  daemon polls/s  bare polls/s  ratio  daemon CPU µs/poll  bare CPU µs/poll");
    let medians = CONCURRENCIES.map(|in_flight| {
        let mut ratios: Vec<f64> = (1..=TURNS).map(|turn| ratio(place.path(), &url, in_flight, turn)).collect();
        ratios.sort_by(f64::total_cmp);
        (in_flight, ratios[TURNS / 2])
    });
    println!();
    for (in_flight, median) in medians {
        println!("durable polls a second against a bare loop, {in_flight} in flight: median ratio {median:.2}");
    }
    server.kill().unwrap();
}

fn ratio(place: &Path, url: &str, in_flight: usize, turn: usize) -> f64 {
    let daemon = daemon_turn(place, url, in_flight, turn);
    let bare = bare_turn(url, in_flight);
    let ratio = daemon.rate() / bare.rate();
    println!(
        "{in_flight:>9} {turn:>5} {:>15.0} {:>13.0} {ratio:>6.2} {:>19.0} {:>17.0}",
        daemon.rate(),
        bare.rate(),
        daemon.cpu_micros(),
        bare.cpu_micros()
    );
    ratio
}

struct Turn {
    took: Duration,
    cpu: Duration,
}

impl Turn {
    fn rate(&self) -> f64 {
        POLLS as f64 / self.took.as_secs_f64()
    }

    fn cpu_micros(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / POLLS as f64
    }
}

/// From the first poll until all watches have settled, as another process sees it.
fn daemon_turn(place: &Path, url: &str, in_flight: usize, turn: usize) -> Turn {
    let database = database(place, &format!("turn-{in_flight}-{turn}"), POLLS);
    let connection = Connection::open(&database).unwrap();
    let mut daemon = rig::daemon(place, &database, &api::config(url, in_flight));
    let waiting = "SELECT EXISTS (SELECT 1 FROM watches WHERE state = 'waiting')";
    while connection.query_row(waiting, [], |row| row.get::<_, bool>(0)).unwrap() {
        pause(5);
    }
    let ended = now_millis();
    let first = "SELECT min(first_polled_at) FROM watches";
    let started: i64 = connection.query_row(first, [], |row| row.get(0)).unwrap();
    let took = Duration::from_millis((ended - started).try_into().unwrap());
    let cpu = cpu(daemon.id());
    stop(&mut daemon);
    Turn { took, cpu }
}

fn bare_turn(url: &str, in_flight: usize) -> Turn {
    let mut loop_ = child(&["bare", url, &in_flight.to_string()]);
    let line = first_line(&mut loop_);
    let numbers: Vec<f64> = line.split(' ').map(|number| number.parse().unwrap()).collect();
    loop_.wait().unwrap();
    Turn { took: Duration::from_secs_f64(numbers[0]), cpu: Duration::from_secs_f64(numbers[1]) }
}

/// A database with so many watches that are due, filled as any other program would.
fn database(place: &Path, name: &str, count: usize) -> PathBuf {
    let path = rig::database(place, name);
    let mut connection = Connection::open(&path).unwrap();
    let transaction = connection.transaction().unwrap();
    for number in 0..count {
        let id = format!("asset-{number}");
        transaction.execute("INSERT INTO watches (asset_id) VALUES (?1)", [id]).unwrap();
    }
    transaction.commit().unwrap();
    path
}

/// What is left when everything but the requests is taken away.
#[tokio::main]
async fn bare(url: &str, in_flight: usize) {
    let client = assetwatch::client::builder(Duration::from_secs(10)).build().unwrap();
    let next = Arc::new(AtomicUsize::new(0));
    let started = Instant::now();
    let workers: Vec<_> = (0..in_flight)
        .map(|_| {
            let (client, next, url) = (client.clone(), Arc::clone(&next), url.to_owned());
            tokio::spawn(async move {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= POLLS {
                        return;
                    }
                    let request = client.get(format!("{url}/pub/v2/assets/asset-{number}"));
                    let answer = request.header("x-api-key", "key").send().await.unwrap().bytes().await.unwrap();
                    let answer: serde_json::Value = serde_json::from_slice(&answer).unwrap();
                    assert_eq!(answer["data"]["status"], "active");
                }
            })
        })
        .collect();
    for worker in workers {
        worker.await.unwrap();
    }
    println!("{} {}", started.elapsed().as_secs_f64(), cpu(std::process::id()).as_secs_f64());
}
