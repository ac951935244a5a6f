//! `cargo bench --bench faces`: what it costs the daemon that 200 streams of server-sent events and 1,000 long polls are
//! open: memory, and polls a second.
//!
//! Server, daemon and callers are processes of their own. One daemon is measured with and without callers in turns, since a
//! machine's speed drifts; its watches are polled over and over as fast as it can, and twenty a second settle, which is told
//! to every stream.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark ends at a surprise, and prints what it measured"
)]

mod rig;

use std::path::Path;
use std::time::Instant;

use rig::{child, first_line, pause, stop};
use rusqlite::Connection;

const STREAMS: usize = 200;
const LONG_POLLS: usize = 1_000;
const WATCHES: usize = 2_000;
const TURNS: usize = 5;
/// Of one measurement, in milliseconds.
const SPAN: u64 = 5_000;
/// Between two assets that settle, in milliseconds.
const GAP: u64 = 50;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    match args.get(1).map(String::as_str) {
        Some("serve") => serve(),
        Some("call") => call(&args[2]),
        _ => compare(),
    }
}

fn compare() {
    let mut server = child(&["serve"]);
    let url = first_line(&mut server);
    let place = tempfile::tempdir().unwrap();
    let database = rig::database(place.path(), "faces");
    let mut connection = Connection::open(&database).unwrap();
    connection.busy_timeout(std::time::Duration::from_secs(10)).unwrap();
    fill(&mut connection);
    let port = free_port();
    let config = format!(
        "[api]\nurl = \"{url}\"\nkey_env = \"KEY\"\nrate = 100000\nmax_in_flight = 64\n\
         [backoff]\ninitial = \"100ms\"\nmax = \"100ms\"\n[http]\nlisten = \"127.0.0.1:{port}\"\n"
    );
    let mut daemon = rig::daemon(place.path(), &database, &config);
    let base = format!("http://127.0.0.1:{port}");
    // Everything has been polled once, so that what is told from now on are the twenty a second.
    let unpolled = "SELECT EXISTS (SELECT 1 FROM watches WHERE processing_at IS NULL AND state = 'waiting')";
    while connection.query_row(unpolled, [], |row| row.get::<_, bool>(0)).unwrap() {
        pause(50);
    }
    println!("{STREAMS} streams and {LONG_POLLS} long polls; {WATCHES} watches, polled without a pause\n");
    println!("turn  polls/s without  polls/s with  ratio  memory without  memory with (MiB)");
    let (mut ratios, mut costs) = (Vec::new(), Vec::new());
    for turn in 1..=TURNS {
        let (without, small) = (polls(&connection, turn * 2), memory(daemon.id()));
        let mut callers = child(&["call", &base]);
        assert_eq!(first_line(&mut callers), "all are open");
        let (with, large) = (polls(&connection, turn * 2 + 1), memory(daemon.id()));
        callers.kill().unwrap();
        callers.wait().unwrap();
        println!("{turn:>4} {without:>16.0} {with:>13.0} {:>6.2} {small:>15.1} {large:>12.1}", with / without);
        ratios.push(with / without);
        costs.push(large - small);
    }
    ratios.sort_by(f64::total_cmp);
    println!("\npolls a second with callers against without: median ratio {:.2}", ratios[TURNS / 2]);
    println!("memory of the callers: {:.1} MiB at first, when nothing of it was there before", costs[0]);
    stop(&mut daemon);
    server.kill().unwrap();
}

fn fill(connection: &mut Connection) {
    let transaction = connection.transaction().unwrap();
    for number in 0..WATCHES {
        transaction.execute("INSERT INTO watches (asset_id) VALUES (?1)", [format!("stays-{number}")]).unwrap();
    }
    transaction.commit().unwrap();
}

/// Polls a second, by what the watches say, while some are added that settle.
fn polls(connection: &Connection, turn: usize) -> f64 {
    let sum = || -> i64 {
        connection
            .query_row("SELECT sum(polls) FROM watches WHERE id <= ?1", [WATCHES as i64], |row| row.get(0))
            .unwrap()
    };
    let (before, begun) = (sum(), Instant::now());
    for number in 0..SPAN / GAP {
        connection.execute("INSERT INTO watches (asset_id) VALUES (?1)", [format!("ends-{turn}-{number}")]).unwrap();
        pause(GAP);
    }
    (sum() - before) as f64 / begun.elapsed().as_secs_f64()
}

/// Resident memory in MiB.
fn memory(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    let kib: f64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib / 1024.0
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// An API in which an asset is what its name says.
#[tokio::main]
async fn serve() {
    use axum::extract::Path;
    use axum::routing::get;
    let asset = async |Path(id): Path<String>| {
        let status = if id.starts_with("ends") { "active" } else { "processing" };
        let body = format!(r#"{{"data":{{"id":"{id}","status":"{status}","type":"image"}},"err":{{}}}}"#);
        ([("content-type", "application/json")], body)
    };
    let router = axum::Router::new().route("/pub/v2/assets/{id}", get(asset));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("http://{}", listener.local_addr().unwrap());
    axum::serve(listener, router).await.unwrap();
}

/// All callers, who read what they get and throw it away.
#[tokio::main(flavor = "current_thread")]
async fn call(base: &str) {
    let client = assetwatch::client::builder(std::time::Duration::from_secs(600)).build().unwrap();
    let paths = (0..STREAMS)
        .map(|number| if number % 2 == 0 { "/v1/events/stream".into() } else { "/v1/overview/stream".into() })
        .chain((0..LONG_POLLS).map(|number| format!("/v1/watches/stays-{number}?wait=5m")));
    let mut calls = Vec::new();
    for path in paths {
        let (client, url) = (client.clone(), format!("{base}{path}"));
        calls.push(tokio::spawn(async move {
            let mut response = client.get(url).send().await.unwrap();
            assert!(response.status().is_success());
            while let Ok(Some(_)) = response.chunk().await {}
        }));
    }
    // A long poll says nothing until it ends, so the kernel is asked.
    while open_connections() < STREAMS + LONG_POLLS {
        assert!(calls.iter().all(|call| !call.is_finished()), "a caller was turned away");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    tokio::time::sleep(std::time::Duration::from_millis(1_000)).await;
    println!("all are open");
    for call in calls {
        call.await.unwrap();
    }
}

fn open_connections() -> usize {
    let is_socket = |link: &Path| std::fs::read_link(link).is_ok_and(|to| to.to_string_lossy().starts_with("socket:"));
    let links = std::fs::read_dir("/proc/self/fd").unwrap();
    links.filter(|link| link.as_ref().is_ok_and(|link| is_socket(&link.path()))).count()
}
