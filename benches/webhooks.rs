//! `cargo bench --bench webhooks`: how many webhooks a second the relay delivers through the ledger, each attempt on the
//! disk before it is sent and each outcome after it, against a bare reqwest loop with the same concurrency against the
//! same receiver; and how long after the final status was observed the first byte of its webhook is at the receiver.
//!
//! Receiver, daemon and loop are processes of their own. The two sides take turns, and what is compared is the ratio of
//! each turn, since a machine's speed drifts.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark ends at a surprise, and prints what it measured"
)]

mod rig;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Child;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rig::{child, cpu, database, first_line, now_millis, pause, stop};
use rusqlite::Connection;

const WEBHOOKS: usize = 10_000;
const CONCURRENCY: usize = 64;
const TURNS: usize = 5;
/// Assets whose latency is measured, one after the other.
const SINGLE: usize = 100;
const BODY: &str =
    r#"{"type":"asset.active","timestamp":"2026-09-21T10:13:20.123Z","data":{"asset_id":"ast_1","status":"active"}}"#;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    match args.get(1).map(String::as_str) {
        Some("serve") => serve(),
        Some("bare") => bare(&args[2]),
        _ => compare(),
    }
}

fn compare() {
    let mut server = child(&["serve"]);
    let url = first_line(&mut server);
    let place = tempfile::tempdir().unwrap();
    println!("{WEBHOOKS} webhooks a turn, {CONCURRENCY} in flight; both against the same receiver on loopback\n");
    println!("turn  daemon webhooks/s  bare webhooks/s  ratio  daemon CPU µs/webhook  bare CPU µs/webhook");
    let mut ratios: Vec<f64> = (1..=TURNS).map(|turn| ratio(place.path(), &url, turn)).collect();
    ratios.sort_by(f64::total_cmp);
    println!("\nwebhooks a second through the ledger against a bare loop: median ratio {:.2}", ratios[TURNS / 2]);
    let mut latencies = latencies(place.path(), &url, &mut server);
    latencies.sort_unstable();
    let (median, worst) = (latencies[latencies.len() / 2], latencies[latencies.len() * 95 / 100]);
    println!("from the final status to the receiver: median {median} ms, 95 of 100 within {worst} ms");
    server.kill().unwrap();
    server.wait().unwrap();
}

fn ratio(place: &Path, url: &str, turn: usize) -> f64 {
    let (daemon, daemon_cpu) = each(daemon_turn(place, url, turn));
    let mut loop_ = child(&["bare", url]);
    let line = first_line(&mut loop_);
    let (took, used) = line.split_once(' ').unwrap();
    let (bare, bare_cpu) = each((took.parse().unwrap(), used.parse().unwrap()));
    loop_.wait().unwrap();
    let ratio = daemon / bare;
    println!("{turn:>4} {daemon:>18.0} {bare:>16.0} {ratio:>6.2} {daemon_cpu:>22.0} {bare_cpu:>20.0}");
    ratio
}

/// Webhooks a second, and the microseconds of processor time of each, of a turn that took and used so many seconds.
fn each((took, used): (f64, f64)) -> (f64, f64) {
    (WEBHOOKS as f64 / took, used * 1e6 / WEBHOOKS as f64)
}

/// Seconds from the first attempt until all is delivered, as another process sees it; and of processor time.
fn daemon_turn(place: &Path, url: &str, turn: usize) -> (f64, f64) {
    let database = database(place, &format!("turn-{turn}"));
    let mut connection = Connection::open(&database).unwrap();
    let transaction = connection.transaction().unwrap();
    for number in 1..=WEBHOOKS {
        let event = "INSERT INTO events (id, type, body, created_at) VALUES (?1, 'asset.active', ?2, 0)";
        transaction.execute(event, rusqlite::params![format!("evt_{number}"), BODY.as_bytes()]).unwrap();
        let delivery = "INSERT INTO deliveries (event_seq, hook, due_at, created_at) VALUES (?1, 'cms', 0, 0)";
        transaction.execute(delivery, [transaction.last_insert_rowid()]).unwrap();
    }
    transaction.commit().unwrap();
    let mut daemon = daemon(place, url, &database);
    let waiting = "SELECT EXISTS (SELECT 1 FROM deliveries WHERE state = 'waiting')";
    while connection.query_row(waiting, [], |row| row.get::<_, bool>(0)).unwrap() {
        pause(5);
    }
    let took: i64 =
        connection.query_row("SELECT max(finished_at) - min(started_at) FROM attempts", [], |row| row.get(0)).unwrap();
    let attempts: i64 = connection.query_row("SELECT count(*) FROM attempts", [], |row| row.get(0)).unwrap();
    assert_eq!(attempts, WEBHOOKS as i64, "no webhook took more than one attempt");
    let used = cpu(daemon.id()).as_secs_f64();
    stop(&mut daemon);
    (took as f64 / 1_000.0, used)
}

/// For each asset, the milliseconds from the poll that found it settled until its webhook was at the receiver.
fn latencies(place: &Path, url: &str, server: &mut Child) -> Vec<i64> {
    let database = database(place, "single");
    let connection = Connection::open(&database).unwrap();
    connection.busy_timeout(Duration::from_secs(10)).unwrap();
    let mut daemon = daemon(place, url, &database);
    let mut arrivals = BufReader::new(server.stdout.take().unwrap()).lines();
    let latencies = (0..SINGLE).map(|number| {
        connection.execute("INSERT INTO watches (asset_id) VALUES (?1)", [format!("ast_{number}")]).unwrap();
        let id = format!("ast_{number} ");
        let arrived: i64 = loop {
            if let Some(at) = arrivals.next().unwrap().unwrap().strip_prefix(&id) {
                break at.parse().unwrap();
            }
        };
        let settled = "SELECT settled_at FROM watches ORDER BY id DESC LIMIT 1";
        arrived - connection.query_row(settled, [], |row| row.get::<_, i64>(0)).unwrap()
    });
    let latencies = latencies.collect();
    stop(&mut daemon);
    latencies
}

fn daemon(place: &Path, url: &str, database: &Path) -> Child {
    let config = format!(
        "[api]\nurl = \"{url}\"\nkey_env = \"KEY\"\nrate = 100000\n\
         [[hooks]]\nname = \"cms\"\nurl = \"{url}/hook\"\nconcurrency = {CONCURRENCY}\n"
    );
    rig::daemon(place, database, &config)
}

/// An API in which everything is active, and a receiver that says when it was told of which new asset.
#[tokio::main]
async fn serve() {
    use axum::extract::Path;
    use axum::routing::{get, post};
    let asset = async |Path(id): Path<String>| {
        let body = format!(r#"{{"data":{{"id":"{id}","status":"active","type":"image"}},"err":{{}}}}"#);
        ([("content-type", "application/json")], body)
    };
    let hook = async |body: axum::body::Bytes| {
        let at = now_millis();
        let event: serde_json::Value = serde_json::from_slice(&body).unwrap();
        if event["data"]["watched_at"].is_string() {
            println!("{} {at}", event["data"]["asset_id"].as_str().unwrap());
        }
        axum::http::StatusCode::NO_CONTENT
    };
    let router = axum::Router::new().route("/pub/v2/assets/{id}", get(asset)).route("/hook", post(hook));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("http://{}", listener.local_addr().unwrap());
    axum::serve(listener, router).await.unwrap();
}

/// What is left when everything but the requests is taken away.
#[tokio::main]
async fn bare(url: &str) {
    let client = assetwatch::client::builder(Duration::from_secs(10)).build().unwrap();
    let next = Arc::new(AtomicUsize::new(0));
    let started = Instant::now();
    let workers: Vec<_> = (0..CONCURRENCY)
        .map(|_| {
            let (client, next, url) = (client.clone(), Arc::clone(&next), format!("{url}/hook"));
            tokio::spawn(async move {
                while next.fetch_add(1, Ordering::Relaxed) < WEBHOOKS {
                    let request = client.post(&url).header("content-type", "application/json").body(BODY);
                    assert_eq!(request.send().await.unwrap().status(), 204);
                }
            })
        })
        .collect();
    for worker in workers {
        worker.await.unwrap();
    }
    println!("{} {}", started.elapsed().as_secs_f64(), cpu(std::process::id()).as_secs_f64());
}
