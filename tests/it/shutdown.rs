//! Stopping and reloading: what is in flight may end, leases are handed back, and a bad file changes nothing.

use std::time::Duration;

use rustix::process::Signal;

use crate::rig::{Daemon, Latch, Place, Reply, Server, Tmpfs, WriteLock, executable, run, webhook};

const LEASED: &str = "SELECT (SELECT count(*) FROM watches WHERE lease_owner IS NOT NULL)
                           + (SELECT count(*) FROM deliveries WHERE lease_owner IS NOT NULL)
                           + (SELECT count(*) FROM daemons)";

/// A configuration with this grace.
fn with_grace(place: &Place, grace: &str) {
    let text = std::fs::read_to_string(place.config()).unwrap();
    std::fs::write(place.config(), text.replace("grace = \"2s\"", &format!("grace = \"{grace}\""))).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_flight_ends_within_the_grace() {
    for signal in [Signal::TERM, Signal::INT] {
        let (asked, told) = (Latch::closed(), Latch::closed());
        let (answer, receipt) = (asked.clone(), told.clone());
        let api = Server::start(move |request| match request.asset() {
            "slow" => Reply::asset("slow", "active").when(&answer),
            id => Reply::asset(id, "active"),
        })
        .await;
        let receiver = Server::start(move |_| Reply::status(204).when(&receipt)).await;
        let place = Place::new(&api, &webhook(&receiver));
        with_grace(&place, "30s");
        let mut daemon = Daemon::start(&place).await;
        run(&place, &["add", "quick", "slow"]).await;
        receiver.until(1).await;
        api.until(2).await;
        daemon.signal(signal);
        daemon.until_logged("stopping").await;
        run(&place, &["add", "late"]).await;
        asked.open();
        told.open();
        assert!(daemon.ended().await.success());
        assert_eq!(place.ask::<i64>(LEASED), Some(0), "leases are handed back");
        assert_eq!(place.state("slow").as_deref(), Some("settled"), "what was in flight is recorded");
        assert_eq!((api.count(), place.state("late").as_deref()), (2, Some("waiting")), "nothing new is claimed");
        assert_eq!(place.ask::<String>("SELECT group_concat(DISTINCT outcome) FROM attempts").unwrap(), "delivered");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_end_is_dropped_and_due_again() {
    let api = Server::start(|_| Reply::Hang).await;
    let place = Place::new(&api, "");
    with_grace(&place, "0s");
    let daemon = Daemon::start(&place).await;
    run(&place, &["add", "ast_1"]).await;
    api.until(1).await;
    assert!(daemon.stop().await.success());
    assert_eq!(place.ask::<i64>(LEASED), Some(0));
    assert_eq!(place.ask::<i64>("SELECT failures + polls FROM watches"), Some(0), "to be stopped is not a failure");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_it_at_once() {
    let api = Server::start(|_| Reply::Hang).await;
    let place = Place::new(&api, "");
    with_grace(&place, "1h");
    let text = std::fs::read_to_string(place.config()).unwrap();
    std::fs::write(place.config(), text.replace("timeout = \"2s\"", "timeout = \"10m\"")).unwrap();
    let mut daemon = Daemon::start(&place).await;
    run(&place, &["add", "ast_1"]).await;
    api.until(1).await;
    daemon.signal(Signal::TERM);
    daemon.until_logged("stopping").await;
    daemon.signal(Signal::TERM);
    assert!(daemon.ended().await.success());
    assert_eq!(place.ask::<i64>(LEASED), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_outlasts_the_grace_gets_term_and_is_due_again() {
    let api = Server::start(|request| Reply::asset(request.asset(), "active")).await;
    let place = Place::new(&api, "");
    let (script, started, ended) = (place.path("publish"), place.path("started"), place.path("ended"));
    let text = format!(
        "trap 'echo > {}; exit 1' TERM\necho > {}\nwhile :; do sleep 0.05; done",
        ended.display(),
        started.display()
    );
    executable(&script, &text);
    let hook = format!("[[hooks]]\nname = \"publish\"\ncommand = [{:?}]\n", script.display().to_string());
    place.configure(&api.url(), &hook);
    with_grace(&place, "100ms");
    let daemon = Daemon::start(&place).await;
    run(&place, &["add", "ast_1"]).await;
    crate::rig::eventually(crate::rig::SOON, "the command runs", async || started.exists().then_some(())).await;
    assert!(daemon.stop().await.success());
    assert!(ended.exists(), "it was told to end");
    assert_eq!(place.ask::<String>("SELECT outcome FROM attempts").unwrap(), "interrupted");
    assert_eq!(place.ask::<i64>("SELECT failures FROM deliveries WHERE state = 'waiting'"), Some(0));
    assert_eq!(place.ask::<i64>(LEASED), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_takes_new_hooks_and_refuses_a_bad_file() {
    let (api, receiver) = (Server::api().await, Server::receiver().await);
    let place = Place::new(&api, "");
    let daemon = Daemon::start(&place).await;
    place.configure(&api.url(), &webhook(&receiver));
    daemon.signal(Signal::HUP);
    daemon.until_logged("INFO reloaded: hooks.cms is new\n").await;
    run(&place, &["add", "active_1"]).await;
    receiver.until(1).await;
    place.configure(&api.url(), "initial = 3\n");
    daemon.signal(Signal::HUP);
    daemon.until_logged("not reloaded, the old settings stay").await;
    daemon.until_logged("assetwatch.toml:11").await;
    place.database().execute("INSERT INTO watches (asset_id) VALUES ('active_2')", []).unwrap();
    receiver.until(2).await;
    // Of a hook that is gone deliveries are held, and they come when it is back.
    let failing = Server::start(|_| Reply::status(500)).await;
    place.configure(&api.url(), &webhook(&failing));
    daemon.signal(Signal::HUP);
    daemon.until_logged("INFO reloaded: hooks.cms is changed\n").await;
    run(&place, &["add", "active_3"]).await;
    failing.until(1).await;
    place
        .until("SELECT count(*) FROM deliveries WHERE state = 'waiting' AND failures = 1 AND lease_owner IS NULL", 1)
        .await;
    place.configure(&api.url(), "");
    daemon.signal(Signal::HUP);
    place.until("SELECT count(*) FROM deliveries WHERE state = 'held'", 1).await;
    daemon.until_logged("INFO reloaded: hooks.cms is gone, and its deliveries are held until it is back\n").await;
    place.configure(&api.url(), &webhook(&receiver));
    daemon.signal(Signal::HUP);
    receiver.until(3).await;
    place.until("SELECT count(*) FROM deliveries WHERE state = 'delivered'", 3).await;
    assert!(daemon.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storm_of_reloads_is_survived_and_another_database_is_named() {
    let api = Server::api().await;
    let place = Place::new(&api, "");
    let daemon = Daemon::start(&place).await;
    let text = std::fs::read_to_string(place.config()).unwrap();
    std::fs::write(place.config(), text.replace("assetwatch.db", "another.db")).unwrap();
    for _ in 0..20 {
        daemon.signal(Signal::HUP);
    }
    daemon.until_logged("`database` takes effect at the next start").await;
    place.database().execute("INSERT INTO watches (asset_id) VALUES ('active_1')", []).unwrap();
    place.until_state("active_1", "settled").await;
    assert!(!place.path("another.db").exists());
    assert!(daemon.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_write_lock_pauses_the_work_and_no_more() {
    let api = Server::api().await;
    let place = Place::new(&api, "");
    let daemon = Daemon::start(&place).await;
    run(&place, &["add", "active_1"]).await;
    let lock = WriteLock::take(&place);
    daemon.until_logged("another program holds its write lock").await;
    drop(lock);
    place.until_state("active_1", "settled").await;
    assert_eq!(place.ask::<i64>("SELECT count(*) FROM events WHERE type = 'asset.active'"), Some(1));
    assert!(daemon.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn two_daemons_on_one_database_do_not_get_in_each_others_way() {
    let api = Server::start(|request| Reply::asset(request.asset(), "active").later(Duration::from_millis(20))).await;
    let receiver = Server::receiver().await;
    let place = Place::new(&api, &webhook(&receiver));
    let (one, two) = (Daemon::start(&place).await, Daemon::start(&place).await);
    let ids: String = (0..200).map(|number| format!("ast_{number}\n")).collect();
    assert_eq!(crate::rig::run_with(&place, &["add", "-"], &ids, &[]).await.code, 0);
    place.until("SELECT count(*) FROM deliveries WHERE state = 'delivered'", 200).await;
    assert_eq!((api.count(), receiver.count()), (200, 200), "each is polled once and told once");
    assert!(one.stop().await.success() && two.stop().await.success());
    assert_eq!(place.ask::<i64>(LEASED), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_waited_out() {
    let answer = Latch::closed();
    let latch = answer.clone();
    let api = Server::start(move |request| Reply::asset(request.asset(), "active").when(&latch)).await;
    let place = Place::new(&api, "");
    let Some(disk) = Tmpfs::mount(place.path("disk"), 1_024) else { return };
    let text = std::fs::read_to_string(place.config()).unwrap();
    std::fs::write(place.config(), text.replace("\"assetwatch.db\"", "\"disk/assetwatch.db\"")).unwrap();
    let daemon = Daemon::start(&place).await;
    assert_eq!(run(&place, &["add", "ast_1"]).await.code, 0);
    api.until(1).await;
    let filler = disk.path().join("filler");
    // Until nothing more goes in.
    assert!(std::fs::write(&filler, vec![0; 4 << 20]).is_err());
    answer.open();
    daemon.until_logged("the disk is full").await;
    std::fs::remove_file(&filler).unwrap();
    crate::rig::eventually(crate::rig::SOON, "the asset is settled", async || {
        let shown = run(&place, &["list", "--state", "settled", "--json"]).await;
        (shown.code == 0 && shown.json().len() == 1).then_some(())
    })
    .await;
    assert!(daemon.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_daemon_with_other_hooks_holds_nothing_of_the_firsts() {
    let (api, failing) = (Server::api().await, Server::start(|_| Reply::status(500)).await);
    let place = Place::new(&api, &webhook(&failing));
    let first = Daemon::start(&place).await;
    run(&place, &["add", "active_1"]).await;
    failing.until(1).await;
    place.until("SELECT count(*) FROM deliveries WHERE failures = 1 AND lease_owner IS NULL", 1).await;
    let own = std::fs::read_to_string(place.config()).unwrap();
    place.configure(&api.url(), "");
    let second = Daemon::start(&place).await;
    assert_eq!(place.ask::<String>("SELECT state FROM deliveries").unwrap(), "waiting");
    assert!(second.stop().await.success());
    std::fs::write(place.config(), own).unwrap();
    failing.until(2).await;
    assert!(first.stop().await.success());
}
