//! How fast the real daemon asks, as a server on a socket sees it.

use std::time::Duration;

use crate::rig::{Daemon, KEY, Place, Reply, Server, eventually};

/// A place whose accounts have this rate, and that backs off slowly enough for no asset to be asked for twice.
fn limited(api: &Server, rate: u32) -> Place {
    let place = Place::new(api, "");
    let text = std::fs::read_to_string(place.config()).unwrap();
    let text = text.replace("rate = 10000", &format!("rate = {rate}")).replace("\"100ms\"", "\"60s\"");
    std::fs::write(place.config(), text.replace("\"400ms\"", "\"60s\"")).unwrap();
    place
}

fn insert(place: &Place, from: u32, count: u32) {
    let sql = format!(
        "WITH RECURSIVE number (n) AS (SELECT {from} UNION ALL SELECT n + 1 FROM number WHERE n < {from} + {count} - 1)
         INSERT INTO watches (asset_id) SELECT 'ast_' || n FROM number"
    );
    place.database().execute_batch(&sql).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn no_second_sees_more_requests_than_the_rate_and_the_burst() {
    const RATE: usize = 50;
    /// A tenth of a second's worth: so much later than others may a request arrive on a busy machine.
    const ON_THE_WAY: usize = 5;
    let api = Server::start(|request| Reply::asset(request.asset(), "processing")).await;
    let place = limited(&api, 50);
    let _daemon = Daemon::start(&place).await;
    insert(&place, 0, 1_000);
    let requests = api.until(500).await;
    let instants: Vec<_> = requests.iter().map(|request| request.at).collect();
    for (at, first) in instants.iter().enumerate() {
        let within = instants[at..].iter().take_while(|later| **later - *first < Duration::from_secs(1)).count();
        assert!(within <= 2 * RATE + ON_THE_WAY, "{within} requests in one second");
        let whole = instants[at..].len() as f64 - 1.0;
        let seconds = (*instants.last().unwrap() - *first).as_secs_f64();
        assert!(whole <= RATE as f64 * (seconds + 1.0) + ON_THE_WAY as f64, "{whole} requests in {seconds} s");
    }
    let mut assets: Vec<&str> = requests.iter().map(|request| request.asset()).collect();
    assets.sort_unstable();
    assets.dedup();
    assert_eq!(assets.len(), requests.len(), "none is asked for twice while others wait");
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_used_again_and_every_request_names_us() {
    let api = Server::start(|request| Reply::asset(request.asset(), "processing")).await;
    let place = Place::new(&api, "");
    let _daemon = Daemon::start(&place).await;
    insert(&place, 0, 3);
    let requests = api.until(30).await;
    assert!(api.connections() <= 6, "{} connections for {} requests", api.connections(), requests.len());
    let agent = concat!("assetwatch/", env!("CARGO_PKG_VERSION"));
    assert!(requests.iter().all(|request| request.header("user-agent") == Some(agent)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_thousand_overdue_watches_take_no_more_memory_than_a_hundred() {
    let memory = async |count| {
        let api = Server::start(|request| Reply::asset(request.asset(), "processing")).await;
        let place = limited(&api, 100);
        // The database is there before any daemon looks at it.
        crate::rig::run(&place, &["list"]).await;
        insert(&place, 0, count);
        let daemon = Daemon::start(&place).await;
        api.until(100).await;
        // It has claimed and recorded as many in both cases.
        place.until("SELECT count(*) >= 100 FROM watches WHERE polls > 0", 1).await;
        daemon.memory()
    };
    let (few, many) = (memory(100).await, memory(100_000).await);
    assert!(many < few + 16 * 1_024, "{few} KiB with a hundred, {many} KiB with a hundred thousand");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_api_says_of_its_quota_is_obeyed() {
    let api = Server::start(|request| {
        Reply::asset(request.asset(), "processing").with_header("ratelimit", "\"default\";r=0;t=3600")
    })
    .await;
    let place = limited(&api, 1);
    let daemon = Daemon::start(&place).await;
    insert(&place, 0, 5);
    api.until(1).await;
    place.until("SELECT count(*) FROM watches WHERE polls = 1 AND lease_owner IS NULL", 1).await;
    // A sign of life later it still holds: nothing else would have kept the daemon from asking.
    let beaten = "SELECT heartbeat_at FROM daemons";
    let first: i64 = place.ask(beaten).unwrap();
    let later = async || place.ask::<i64>(beaten).filter(|beat| *beat > first);
    eventually(crate::rig::SOON, "another sign of life", later).await;
    assert_eq!(api.count(), 1);
    assert!(api.requests()[0].header("x-api-key") == Some(KEY) && !daemon.log().contains("throttles"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_of_an_account_that_is_not_configured_is_kept_said_and_resumed_when_it_is() {
    let api = Server::api().await;
    let place = Place::new(&api, "");
    let daemon = Daemon::start(&place).await;
    place.database().execute("INSERT INTO watches (asset_id, account) VALUES ('active_1', 'studio')", []).unwrap();
    daemon.until_logged("an account that the configuration does not name; add `[accounts.studio]`").await;
    let listed = crate::rig::run(&place, &["list"]).await;
    assert!(listed.err.contains("no such account is configured"), "{}", listed.err);
    assert_eq!(place.state("active_1").as_deref(), Some("waiting"));
    std::fs::write(place.path("studio-key"), "studio").unwrap();
    place.configure(&api.url(), "[accounts.studio]\nkey_file = \"studio-key\"\n");
    daemon.signal(rustix::process::Signal::HUP);
    place.until_state("active_1", "settled").await;
    assert_eq!(daemon.log().matches("does not name").count(), 1, "it is said once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_goes_on_with_what_was_found_out() {
    let api = Server::start(|request| match request.header("x-api-key") {
        Some("another-key") => Reply::asset(request.asset(), "active"),
        _ => Reply::status(401),
    })
    .await;
    let place = Place::new(&api, "");
    let hook = "[[hooks]]\nname = \"ops\"\non = [\"account.paused\", \"account.resumed\"]\ncommand = [\"/bin/true\"]\n";
    place.configure(&api.url(), hook);
    let daemon = Daemon::start(&place).await;
    insert(&place, 0, 5);
    place.until("SELECT count(*) FROM accounts WHERE closure = 'unauthorized'", 1).await;
    place.until("SELECT count(*) FROM watches WHERE lease_owner IS NOT NULL", 0).await;
    daemon.stop().await;
    let before = api.count();
    let closed: i64 = place.ask("SELECT closed_at FROM accounts").unwrap();
    let daemon = Daemon::start(&place).await;
    api.until(before + 1).await;
    place
        .until("SELECT next_probe_at > CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER) FROM accounts", 1)
        .await;
    assert_eq!(api.count(), before + 1, "one probe, and no burst with a key that is refused");
    let since: i64 = place.ask("SELECT closed_at FROM accounts").unwrap();
    assert!(since.abs_diff(closed) < 1_000, "paused since {closed}, and not since {since}");
    daemon.stop().await;
    std::fs::write(place.path("key"), "another-key\n").unwrap();
    let _daemon = Daemon::start(&place).await;
    place.until("SELECT count(*) FROM watches WHERE state = 'settled'", 5).await;
    let told = "SELECT group_concat(type, ' ') FROM (SELECT type FROM events WHERE type GLOB 'account.*' ORDER BY seq)";
    assert_eq!(place.ask::<String>(told).unwrap(), "account.paused account.resumed", "each once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_after_and_the_learned_rate_survive_a_restart() {
    let api = Server::start(|_| Reply::status(429).with_header("retry-after", "3600")).await;
    let place = limited(&api, 10);
    let daemon = Daemon::start(&place).await;
    insert(&place, 0, 3);
    place.until("SELECT count(*) FROM accounts WHERE held_until IS NOT NULL AND rate < 10", 1).await;
    place.until("SELECT count(*) FROM watches WHERE lease_owner IS NOT NULL", 0).await;
    daemon.stop().await;
    let (before, rate) = (api.count(), place.ask::<f64>("SELECT rate FROM accounts").unwrap());
    let daemon = Daemon::start(&place).await;
    let beaten = "SELECT heartbeat_at FROM daemons";
    let first: i64 = place.ask(beaten).unwrap();
    let later = async || place.ask::<i64>(beaten).filter(|beat| *beat > first);
    eventually(crate::rig::SOON, "another sign of life", later).await;
    assert_eq!((api.count(), place.ask::<f64>("SELECT rate FROM accounts").unwrap()), (before, rate));
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_that_is_refused_changes_nothing_and_one_that_is_not_does() {
    let api = Server::start(|request| Reply::asset(request.asset(), "processing")).await;
    let place = limited(&api, 1);
    let daemon = Daemon::start(&place).await;
    insert(&place, 0, 2_000);
    api.until(2).await;
    let slow = std::fs::read_to_string(place.config()).unwrap();
    let fast = slow.replace("rate = 1\n", "rate = 2000\n");
    std::fs::write(place.config(), format!("{fast}[accounts.zed]\nkey_file = \"no-such-key\"\n")).unwrap();
    daemon.signal(rustix::process::Signal::HUP);
    daemon.until_logged("not reloaded, the old settings stay").await;
    let count = api.count();
    api.until(count + 2).await;
    assert!(api.count() < count + 20, "the rate stays: {} requests more", api.count() - count);
    std::fs::write(place.config(), fast).unwrap();
    daemon.signal(rustix::process::Signal::HUP);
    daemon.until_logged("INFO reloaded: ").await;
    api.until(1_000).await;
}
