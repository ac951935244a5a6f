//! `backup`, and what a database of another version does to the command line.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rusqlite::Connection;

use crate::rig::{Daemon, Place, SOON, Server, binary, eventually, run};

/// What a copy holds.
fn ask<T: rusqlite::types::FromSql>(file: &Path, sql: &str) -> T {
    Connection::open(file).unwrap().query_row(sql, [], |row| row.get(0)).unwrap()
}

/// What an unfinished backup of this name is called.
fn partial(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".assetwatch-partial");
    name.into()
}

/// Enough that a copy takes a while.
fn fill(place: &Place) {
    place
        .database()
        .execute_batch(
            "WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 15000)
             INSERT INTO events (id, type, body, created_at) SELECT n, 'x', zeroblob(4000), 1 FROM n",
        )
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_database_is_copied_as_it_is_at_one_instant() {
    let api = Server::api().await;
    let place = Place::new(&api, "");
    assert_eq!(run(&place, &["add", "processing_1", "processing_2"]).await.code, 0);
    fill(&place);
    let daemon = Daemon::start(&place).await;
    api.until(4).await;
    // One transaction after another, each of which changes two rows alike.
    let database = place.path("assetwatch.db");
    place
        .database()
        .execute_batch("CREATE TABLE pair (id INTEGER PRIMARY KEY, n); INSERT INTO pair VALUES (1, 0), (2, 0)")
        .unwrap();
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let writing = std::thread::spawn(move || {
        let connection = Connection::open(database).unwrap();
        connection.busy_timeout(SOON).unwrap();
        let mut count = 0_i64;
        while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
            connection.execute_batch("UPDATE pair SET n = n + 1").unwrap();
            count += 1;
        }
        count
    });
    let (mut last, before) = (-1, place.ask::<i64>("SELECT sum(polls) FROM watches").unwrap());
    for number in 0..3 {
        let file = place.path(&format!("backup-{number}.db"));
        let made = run(&place, &["backup", file.to_str().unwrap(), "--json"]).await;
        assert_eq!((made.code, made.err.as_str()), (0, ""), "{made:?}");
        let json = &made.json()[0];
        assert_eq!((&json["watches"], &json["schema"]), (&2.into(), &ask::<i64>(&file, "PRAGMA user_version").into()));
        assert_eq!(json["bytes"], file.metadata().unwrap().len());
        assert_eq!(ask::<String>(&file, "PRAGMA integrity_check"), "ok");
        assert_eq!(ask::<String>(&file, "PRAGMA journal_mode"), "delete", "one file, that can be read anywhere");
        assert_eq!(ask::<i64>(&file, "SELECT count(DISTINCT n) FROM pair"), 1, "of no transaction only a half");
        let seen = ask::<i64>(&file, "SELECT n FROM pair");
        assert!(seen > last, "each is of a later instant: {seen}, {last}");
        last = seen;
    }
    stop.send(()).unwrap();
    assert!(writing.join().unwrap() >= last);
    place.until(&format!("SELECT sum(polls) > {before} FROM watches"), 1).await;
    assert!(daemon.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_is_restored() {
    let api = Server::api().await;
    let place = Place::new(&api, "");
    assert_eq!(run(&place, &["wait", "active_1"]).await.code, 0);
    let file = place.path("backup.db");
    let made = run(&place, &["backup", file.to_str().unwrap()]).await;
    assert!(made.code == 0 && made.out.contains("1 watches, read again and sound"), "{made:?}");
    assert_eq!(run(&place, &["add", "ast_later"]).await.code, 0);
    for end in ["-wal", "-shm"] {
        let _ = std::fs::remove_file(place.path(&format!("assetwatch.db{end}")));
    }
    std::fs::copy(&file, place.path("assetwatch.db")).unwrap();
    assert_eq!(run(&place, &["list", "--json"]).await.json().len(), 1);
    let daemon = Daemon::start(&place).await;
    assert_eq!(run(&place, &["add", "active_2"]).await.code, 0);
    place.until_state("active_2", "settled").await;
    assert!(daemon.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn no_file_is_overwritten_unasked_and_the_database_never() {
    let api = Server::api().await;
    let place = Place::new(&api, "");
    let file = place.path("backup.db");
    let backup = async |args: &[&str]| run(&place, &[&["backup"], args].concat()).await;
    let none = backup(&[file.to_str().unwrap()]).await;
    assert!(none.code == 1 && none.err.contains("there is no such database"), "{none:?}");
    assert!(!place.path("assetwatch.db").exists(), "and none is made");
    assert_eq!(run(&place, &["add", "ast_1"]).await.code, 0);
    std::fs::write(&file, "somebody's").unwrap();
    let refused = backup(&[file.to_str().unwrap()]).await;
    assert!(refused.code == 1 && refused.err.contains("--force"), "{refused:?}");
    assert_eq!(std::fs::read(&file).unwrap(), b"somebody's");
    assert_eq!(backup(&[file.to_str().unwrap(), "--force"]).await.code, 0);
    assert_eq!(ask::<i64>(&file, "SELECT count(*) FROM watches"), 1);
    std::os::unix::fs::symlink(place.path("assetwatch.db"), place.path("link.db")).unwrap();
    std::fs::hard_link(place.path("assetwatch.db"), place.path("hard.db")).unwrap();
    for own in ["assetwatch.db", "link.db", "hard.db", "assetwatch.db-wal", "assetwatch.db-journal"] {
        let refused = backup(&[place.path(own).to_str().unwrap(), "--force"]).await;
        assert!(refused.code == 2 && refused.err.contains("the database itself"), "{own}: {refused:?}");
    }
    let directory = backup(&[place.path("").to_str().unwrap()]).await;
    assert!(directory.code == 2 && directory.err.contains("is a directory"), "{directory:?}");
    let nowhere = backup(&[place.path("no/such/backup.db").to_str().unwrap()]).await;
    assert!(nowhere.code == 1 && nowhere.err.contains("cannot be written"), "{nowhere:?}");
    assert_eq!(place.ask::<i64>("SELECT count(*) FROM watches"), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_may_be_read_by_no_more_than_the_database() {
    let api = Server::api().await;
    let place = Place::new(&api, "");
    assert_eq!(run(&place, &["add", "ast_1"]).await.code, 0);
    for mode in [0o600, 0o640, 0o664] {
        std::fs::set_permissions(place.path("assetwatch.db"), PermissionsExt::from_mode(mode)).unwrap();
        let file = place.path("backup.db");
        assert_eq!(run(&place, &["backup", "--force", file.to_str().unwrap()]).await.code, 0);
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, mode, "{mode:o}");
    }
}

/// With KILL something is left, which the next one overwrites; with INT nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_is_killed_leaves_no_file_of_that_name() {
    let api = Server::api().await;
    let place = Place::new(&api, "");
    assert_eq!(run(&place, &["add", "ast_1"]).await.code, 0);
    fill(&place);
    let file = place.path("backup.db");
    for signal in [rustix::process::Signal::KILL, rustix::process::Signal::INT] {
        std::fs::write(partial(&file), "left by one that was killed").unwrap();
        let mut child = tokio::process::Command::new(binary())
            .arg("--config")
            .arg(place.config())
            .arg("backup")
            .arg(&file)
            .env_clear()
            .env("HOME", place.path("home"))
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let grows = async || partial(&file).metadata().is_ok_and(|file| file.len() > 100_000).then_some(());
        tokio::select! {
            () = eventually(SOON, "the copy grows", grows) => {}
            ended = child.wait() => panic!("it was too quick to be killed: {ended:?}"),
        }
        let pid = rustix::process::Pid::from_raw(child.id().unwrap().cast_signed()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
        let ended = child.wait().await.unwrap();
        assert!(!file.exists(), "{signal:?}");
        if signal == rustix::process::Signal::INT {
            assert_eq!(ended.code(), Some(130));
            assert!(!partial(&file).exists(), "nothing is left of it");
        }
    }
    assert_eq!(run(&place, &["backup", file.to_str().unwrap()]).await.code, 0);
    assert!(file.exists() && !partial(&file).exists());
}

/// What belongs to a newer version is not touched by any command.
#[tokio::test(flavor = "multi_thread")]
async fn a_newer_database_is_refused_by_every_command() {
    let api = Server::api().await;
    let place = Place::new(&api, "");
    assert_eq!(run(&place, &["add", "ast_1"]).await.code, 0);
    place.database().execute_batch("PRAGMA user_version = 99; PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    let before = std::fs::read(place.path("assetwatch.db")).unwrap();
    let file = place.path("backup.db");
    for args in [
        &["run"][..],
        &["add", "ast_2"],
        &["wait", "ast_1"],
        &["list"],
        &["show", "ast_1"],
        &["cancel", "ast_1"],
        &["events"],
        &["hooks", "list"],
        &["deliveries", "list"],
        &["deliveries", "retry", "--dead"],
        &["batch", "list"],
        &["check"],
        &["backup", file.to_str().unwrap()],
    ] {
        let refused = run(&place, args).await;
        let said = format!("{}{}", refused.out, refused.err);
        // A check has found something.
        let code = if args == ["check"] { 1 } else { 65 };
        assert!(
            refused.code == code && said.contains("newer assetwatch (schema 99, this one knows"),
            "{args:?}: {refused:?}"
        );
    }
    assert!(std::fs::read(place.path("assetwatch.db")).unwrap() == before && !file.exists());
}

/// A backup before an upgrade is one of the old database; the upgrade is said to whoever starts it.
#[tokio::test(flavor = "multi_thread")]
async fn an_older_database_is_backed_up_as_it_is_and_brought_up_to_date_by_the_others() {
    let api = Server::api().await;
    let place = Place::new(&api, "");
    let database = place.path("assetwatch.db");
    Connection::open(&database).unwrap().execute_batch(include_str!("../data/schema-1.sql")).unwrap();
    let file = place.path("backup.db");
    assert_eq!(run(&place, &["backup", file.to_str().unwrap()]).await.code, 0);
    assert_eq!((ask::<i64>(&file, "PRAGMA user_version"), ask::<i64>(&database, "PRAGMA user_version")), (1, 1));
    let listed = run(&place, &["list"]).await;
    assert!(listed.code == 0 && listed.err.contains("brought from schema 1 to"), "{listed:?}");
    assert!(listed.err.contains("assetwatch.db.v1-20"), "{}", listed.err);
    let again = run(&place, &["list"]).await;
    assert!(again.code == 0 && !again.err.contains("brought"), "once: {again:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn check_reads_the_whole_database_beside_a_daemon() {
    let api = Server::api().await;
    let place = Place::new(&api, "");
    let daemon = Daemon::start(&place).await;
    let checked = run(&place, &["check"]).await;
    assert!(checked.out.contains("ok   database inside      every page, index and reference is sound"), "{checked:?}");
    assert!(daemon.stop().await.success());
    place
        .database()
        .execute_batch(
            "INSERT INTO events (id, watch_id, type, body, created_at) VALUES ('e', NULL, 'x', x'', 1);
             PRAGMA foreign_keys = OFF; UPDATE events SET watch_id = 77",
        )
        .unwrap();
    let checked = run(&place, &["check"]).await;
    assert_eq!(checked.code, 1);
    assert!(
        checked.out.contains("BAD  database inside") && checked.out.contains("restore a backup"),
        "{}",
        checked.out
    );
}
