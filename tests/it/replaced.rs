//! A database that is taken away under a running process: noticed soon, said, and nothing is written that nobody sees.

use std::process::Stdio;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::time::timeout;

use crate::rig::{Daemon, Place, Reply, SOON, Server, assert_sound, binary, eventually, run, webhook};

/// Settled, and with it in the log and not in the file.
async fn settle(place: &Place, id: &str) {
    assert_eq!(run(place, &["add", id]).await.code, 0);
    place.until_state(id, "settled").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_is_moved_over_the_database_ends_the_daemon_and_the_next_one_goes_on_with_it() {
    let (api, receiver) = (Server::api().await, Server::receiver().await);
    let place = Place::new(&api, &webhook(&receiver));
    let mut daemon = Daemon::start(&place).await;
    settle(&place, "active_1").await;
    let backup = place.path("backup.db");
    assert_eq!(run(&place, &["backup", backup.to_str().unwrap()]).await.code, 0);
    settle(&place, "active_2").await;
    let restored = std::fs::read(&backup).unwrap();
    let database = place.path("assetwatch.db");
    std::fs::rename(&backup, &database).unwrap();
    // Nothing is asked of it: its sign of life is enough.
    assert_eq!(daemon.ended().await.code(), Some(1), "a unit starts it again: {}", daemon.log());
    let said = format!("{}: another file was put in its place while it was in use", database.display());
    assert!(daemon.log().contains(&said), "{}", daemon.log());
    assert!(std::fs::read(&database).unwrap() == restored, "nothing was written to the new file");
    let daemon = Daemon::start(&place).await;
    assert_eq!(place.state("active_2"), None, "the log of the one before is not this one's");
    settle(&place, "active_2").await;
    assert_eq!(run(&place, &["check"]).await.code, 0);
    place.until("SELECT count(*) FROM deliveries WHERE state <> 'delivered'", 0).await;
    assert!(daemon.stop().await.success());
    assert_sound(&place);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_moved_away_ends_the_daemon_for_good_and_is_whole() {
    let api = Server::api().await;
    let place = Place::new(&api, "");
    let mut daemon = Daemon::start(&place).await;
    settle(&place, "active_1").await;
    let (database, moved) = (place.path("assetwatch.db"), place.path("moved.db"));
    std::fs::rename(&database, &moved).unwrap();
    assert_eq!(daemon.ended().await.code(), Some(65), "a unit stays down: {}", daemon.log());
    let said = format!("{}: it was removed, or moved away, while it was in use", database.display());
    assert!(daemon.log().contains(&said), "{}", daemon.log());
    let left = ["assetwatch.db", "assetwatch.db-wal", "assetwatch.db-shm"].map(|name| place.path(name).exists());
    assert_eq!(left, [false; 3], "no new one is begun, and nothing lies there that a restored one would be mixed with");
    std::fs::rename(&moved, &database).unwrap();
    let daemon = Daemon::start(&place).await;
    assert_eq!(place.state("active_1").as_deref(), Some("settled"));
    assert!(daemon.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lone_wait_ends_as_well() {
    let api = Server::start(|request| Reply::asset(request.asset(), "pending")).await;
    let place = Place::new(&api, "");
    let (waited, ()) = tokio::join!(run(&place, &["wait", "slow"]), async {
        api.until(1).await;
        std::fs::remove_file(place.path("assetwatch.db")).unwrap();
    });
    assert!(waited.code == 65 && waited.err.contains("it was removed"), "{waited:?}");
    assert!(!place.path("assetwatch.db").exists(), "no new one is begun");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_follows_what_happens_is_told() {
    let api = Server::api().await;
    let place = Place::new(&api, "");
    for verb in ["add", "cancel"] {
        assert_eq!(run(&place, &[verb, "ast_1"]).await.code, 0);
    }
    let mut program = tokio::process::Command::new(binary());
    program.arg("--config").arg(place.config()).args(["events", "--follow", "--since", "1h"]).env_clear();
    let mut program = program.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    let mut lines = BufReader::new(program.stdout.take().unwrap()).lines();
    assert!(lines.next_line().await.unwrap().unwrap().contains("watch.cancelled"));
    std::fs::rename(place.path("assetwatch.db"), place.path("moved.db")).unwrap();
    let followed = timeout(SOON, program.wait_with_output()).await.expect("nobody writes to what it reads").unwrap();
    let said = String::from_utf8(followed.stderr).unwrap();
    assert_eq!(followed.status.code(), Some(65), "{said}");
    assert!(said.contains("it was removed, or moved away, while it was in use"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_looks_late_begins_no_database_either() {
    let api = Server::api().await;
    let place = Place::new(&api, "");
    assert_eq!(run(&place, &["add", "ast_1", "ast_2"]).await.code, 0);
    // It opens the database and has nothing to look for until it is gone.
    let database = place.path("assetwatch.db");
    let mut program = tokio::process::Command::new(binary());
    program.arg("--config").arg(place.config()).args(["cancel", "-"]).env_clear().stdin(Stdio::piped());
    let mut program = program.stderr(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    let files = format!("/proc/{}/fd", program.id().unwrap());
    eventually(SOON, "it has opened the database", async || {
        let mut open = std::fs::read_dir(&files).unwrap().filter_map(|file| file.unwrap().path().read_link().ok());
        open.any(|file| file == place.path("assetwatch.db-wal")).then_some(())
    })
    .await;
    std::fs::rename(&database, place.path("moved.db")).unwrap();
    program.stdin.take().unwrap().write_all(b"ast_1\n").await.unwrap();
    let ended = timeout(SOON, program.wait_with_output()).await.expect("it has its ids").unwrap();
    let said = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(65), "{said}");
    assert!(!database.exists(), "{said}");
}
