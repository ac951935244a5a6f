//! Our own ground shakes: a lock that is held for long, a full disk, no more descriptors. It is said, and waited out.

use std::collections::BTreeMap;
use std::time::Duration;

use reqwest::Method;
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use serde_json::json;
use tokio::io::AsyncWriteExt;

use crate::rig::{
    Caller, Daemon, Latch, Place, Reply, Run, SOON, Server, Tally, Tmpfs, WriteLock, all_told, answer, assert_sound,
    eventually, ids, run, tally, webhook,
};

/// More than two of the daemon's waits for a lock, and longer than the leases below.
const HELD: Duration = Duration::from_secs(13);
/// A lease here: a deadline of 1 s, and the margin.
const LEASE: Duration = Duration::from_secs(11);
/// With this variable the lock is held for a whole minute.
const LONG: &str = "ASSETWATCH_TEST_LONG";

/// What was seen before the lock is written after it: nothing is asked for or told again, though the leases ran out.
#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_lock_is_waited_out_however_long_it_is_held() {
    let (polled, told) = (Latch::closed(), Latch::closed());
    let (answer_of_the_api, receipt) = (polled.clone(), told.clone());
    let api = Server::start(move |request| match request.asset() {
        "slow" => Reply::asset("slow", "active").when(&answer_of_the_api),
        id => Reply::asset(id, "active"),
    })
    .await;
    let receiver = Server::start(move |_| Reply::status(204).when(&receipt)).await;
    let listen = "[http]\nlisten = \"127.0.0.1:0\"\n";
    let place = Place::new(&api, &format!("{listen}{}timeout = \"1s\"\n", webhook(&receiver)));
    let daemon = Daemon::start(&place).await;
    let caller = Caller::of(&daemon).await;
    run(&place, &["add", "quick", "slow"]).await;
    receiver.until(1).await;
    api.until(2).await;
    let lock = WriteLock::take(&place);
    let taken = std::time::Instant::now();
    polled.open();
    told.open();
    let refused = caller.post("/v1/watches", json!({"asset_id": "late"})).await;
    assert_eq!(refused.status, 503, "{refused:?}");
    assert!(refused.detail().contains("another program holds its write lock"), "{refused:?}");
    assert_eq!(caller.get("/v1/watches/quick").await.body["state"], "settled", "what is only read is answered");
    let added = run(&place, &["add", "late"]).await;
    assert!(added.code == 1 && added.err.contains("another program holds its write lock"), "{added:?}");
    let held = if std::env::var_os(LONG).is_some() { Duration::from_secs(60) } else { HELD };
    assert!(held > LEASE);
    eventually(held + SOON, "the lock is held", async || (taken.elapsed() > held).then_some(())).await;
    drop(lock);
    all_told(&place, LEASE, || ()).await;
    assert_sound(&place);
    assert_eq!(api.count(), 2, "each asset was polled once");
    assert_eq!(tally(&place, "cms", &ids(&receiver)), Tally::default(), "and told once");
    let log = daemon.log();
    for pump in ["poller", "relay"] {
        let said = log.lines().filter(|line| line.contains("work pauses") && line.contains(pump)).count();
        assert!(said <= 1, "the {pump} said it {said} times: {log}");
    }
    assert_eq!(caller.post("/v1/watches", json!({"asset_id": "late"})).await.status, 201);
    assert!(daemon.stop().await.success());
}

/// Who asks for the daemon's end need not wait for the lock's.
#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_can_be_stopped_under_a_foreign_lock() {
    let api = Server::start(|request| Reply::asset(request.asset(), "active")).await;
    let place = Place::new(&api, "");
    let daemon = Daemon::start(&place).await;
    let lock = WriteLock::take(&place);
    let begun = std::time::Instant::now();
    assert!(daemon.stop().await.success());
    // The grace, what a write waits for the lock, and room.
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    drop(lock);
}

/// A full disk is found before something is lost on it: what is written next needs room, and nothing is written to see it.
#[tokio::test(flavor = "multi_thread")]
async fn check_says_how_much_room_is_left() {
    let api = Server::api().await;
    let place = Place::new(&api, "");
    let Some(disk) = Tmpfs::mount(place.path("disk"), 65_536) else { return };
    let database = disk.path().join("assetwatch.db").display().to_string();
    let check = async || run(&place, &["check", "--database", &database]).await;
    let roomy = check().await;
    let room = |run: &Run| run.out.lines().find(|line| line.contains(" room ")).unwrap_or_default().to_owned();
    assert!(roomy.code == 0 && room(&roomy).starts_with("ok   database room "), "{roomy:?}");
    assert!(room(&roomy).ends_with(" MB are free in its file system"), "{roomy:?}");
    assert!(std::fs::write(disk.path().join("filler"), vec![0; 128 << 20]).is_err(), "the disk is full");
    let full = check().await;
    assert_eq!(full.code, 1, "{full:?}");
    assert!(
        room(&full).starts_with("BAD  database room ") && room(&full).contains("only 0 bytes are free"),
        "{full:?}"
    );
}

/// A disk that fills up again and again while assets are added, polled and told; and a start on a full one.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fills_up_again_and_again_loses_nothing() {
    let (api, receiver) = (Server::api().await, Server::receiver().await);
    let place = Place::new(&api, &format!("[http]\nlisten = \"127.0.0.1:0\"\n{}", webhook(&receiver)));
    let Some(disk) = Tmpfs::mount(place.path("disk"), 65_536) else { return };
    // The rig looks for the database beside the configuration.
    for end in ["", "-wal", "-shm"] {
        let name = format!("assetwatch.db{end}");
        std::os::unix::fs::symlink(disk.path().join(&name), place.path(&name)).unwrap();
    }
    let text = std::fs::read_to_string(place.config()).unwrap();
    std::fs::write(place.config(), text.replace("\"assetwatch.db\"", "\"disk/assetwatch.db\"")).unwrap();
    let filler = disk.path().join("filler");
    let fill = || assert!(std::fs::write(&filler, vec![0; 128 << 20]).is_err(), "the disk is full");
    let daemon = Daemon::start(&place).await;
    let caller = Caller::of(&daemon).await;
    let mut added = BTreeMap::new();
    for round in 0..6 {
        fill();
        // What the log has room for is still taken.
        let refused = eventually(SOON, "the disk is full", async || {
            let number = added.len();
            let answered = caller.post("/v1/watches", json!({"asset_id": format!("active_{round}_{number}")})).await;
            (answered.status == 503).then_some(answered)
        });
        let refused = refused.await;
        assert!(refused.detail().contains("the disk is full"), "{refused:?}");
        std::fs::remove_file(&filler).unwrap();
        for number in 0..20 {
            let id = format!("active_{round}_more_{number}");
            let request = caller.request(Method::POST, "/v1/watches").header("content-type", "application/json");
            let answered = answer(request.body(json!({ "asset_id": id }).to_string())).await;
            assert_eq!(answered.status, 201, "{answered:?}");
            added.insert(id, round);
        }
    }
    let known = |id: &String| place.state(id).is_some();
    assert!(added.keys().all(known), "added and lost");
    all_told(&place, LEASE, || ()).await;
    assert_sound(&place);
    let Tally { lost, unexpected, .. } = tally(&place, "cms", &ids(&receiver));
    assert_eq!((lost, unexpected), (0, 0));
    daemon.kill().await;
    fill();
    let mut refused = Daemon::spawn(&place);
    eventually(SOON, "it says that the disk is full", || {
        let said = refused.log().contains("the disk is full");
        async move { said.then_some(()) }
    })
    .await;
    if !refused.has_ended() {
        refused.kill().await;
    }
    std::fs::remove_file(&filler).unwrap();
    assert!(Daemon::start(&place).await.stop().await.success());
}

/// So many of a daemon's descriptors are in use.
fn descriptors(pid: Pid) -> u64 {
    std::fs::read_dir(format!("/proc/{}/fd", pid.as_raw_nonzero())).unwrap().count() as u64
}

/// Callers hold connections, and no descriptor is left: what cannot be done is said and tried again, and when the
/// callers go, all goes on.
#[tokio::test(flavor = "multi_thread")]
async fn no_more_descriptors_is_said_and_over_when_connections_are_closed() {
    let (api, receiver) = (Server::api().await, Server::receiver().await);
    let command =
        "[[hooks]]\nname = \"publish\"\ncommand = [\"/bin/true\"]\nschedule = [\"1s\", \"1s\", \"1s\", \"1s\"]\n";
    let place = Place::new(&api, &format!("[http]\nlisten = \"127.0.0.1:0\"\n{}{command}", webhook(&receiver)));
    let daemon = Daemon::start(&place).await;
    let caller = Caller::of(&daemon).await;
    let address = caller.base.trim_start_matches("http://").to_owned();
    let idle = descriptors(daemon.pid());
    let mut held = Vec::new();
    for _ in 0..40 {
        let mut stream = tokio::net::TcpStream::connect(&address).await.unwrap();
        let request = format!("GET /v1/overview/stream HTTP/1.1\r\nHost: {address}\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        held.push(stream);
    }
    eventually(SOON, "the connections are accepted", async || (descriptors(daemon.pid()) >= idle + 40).then_some(()))
        .await;
    let full = descriptors(daemon.pid());
    let before =
        prlimit(Some(daemon.pid()), Resource::Nofile, Rlimit { current: Some(full), maximum: Some(full) }).unwrap();
    // More than one, so that they take whatever was open for a moment only.
    for _ in 0..10 {
        held.push(tokio::net::TcpStream::connect(&address).await.unwrap());
    }
    daemon.until_logged("no connection can be accepted").await;
    for id in ["active_1", "active_2", "active_3"] {
        place.database().execute("INSERT INTO watches (asset_id) VALUES (?1)", [id]).unwrap();
    }
    place.until("SELECT count(*) > 0 FROM watches WHERE failures > 0 AND last_error IS NOT NULL", 1).await;
    let why: String = place.ask("SELECT last_error FROM watches WHERE failures > 0").unwrap();
    assert!(why.contains("Too many open files"), "{why}");
    eventually(SOON, "the breaker opens", async || daemon.log().contains("the API cannot be used").then_some(())).await;
    drop(held);
    all_told(&place, SOON, || ()).await;
    assert_sound(&place);
    assert_eq!(caller.get("/v1/watches/active_1").await.body["state"], "settled");
    eventually(SOON, "connections are accepted again", async || {
        drop(tokio::net::TcpStream::connect(&address).await.unwrap());
        daemon.log().contains("connections are accepted again").then_some(())
    })
    .await;
    let said = daemon.log().matches("no connection can be accepted").count();
    assert_eq!(said, 1, "said once: {}", daemon.log());
    let Tally { lost, unexpected, .. } = tally(&place, "cms", &ids(&receiver));
    assert_eq!((lost, unexpected), (0, 0));
    assert!(before.current.is_none_or(|limit| limit > full));
    assert!(daemon.stop().await.success());
}

/// With few from the start it serves fewer callers, and leaves the rest to the work.
#[tokio::test(flavor = "multi_thread")]
async fn with_few_descriptors_there_are_fewer_callers_and_the_work_goes_on() {
    let (api, receiver) = (Server::api().await, Server::receiver().await);
    let place = Place::new(&api, &format!("[http]\nlisten = \"127.0.0.1:0\"\n{}", webhook(&receiver)));
    let limit = ["prlimit", "--nofile=64:64"].map(str::to_owned);
    let daemon = Daemon::spawn_through(&place, &limit);
    let caller = Caller::of(&daemon).await;
    let address = caller.base.trim_start_matches("http://").to_owned();
    let mut held = Vec::new();
    for _ in 0..100 {
        held.push(tokio::net::TcpStream::connect(&address).await.unwrap());
    }
    run(&place, &["add", "active_1", "active_2", "active_3"]).await;
    all_told(&place, SOON, || ()).await;
    assert_sound(&place);
    drop(held);
    assert_eq!(caller.get("/v1/watches/active_1").await.body["state"], "settled");
    assert!(daemon.stop().await.success());
}
