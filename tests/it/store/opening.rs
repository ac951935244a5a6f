//! Opening: whose file it is, and what is made of it.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use assetwatch::store::StoreError;

use crate::rig::binary;

use super::*;

/// Why the file cannot be used.
async fn refused(path: &Path) -> String {
    match Store::open(path).await {
        Err(StoreError::Unusable { path: named, why } | StoreError::Unfit { path: named, why }) => {
            assert_eq!(named, path);
            why
        }
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("{} was opened", path.display()),
    }
}

/// `assetwatch list` on a database, started.
fn list(database: &Path, umask: &str) -> Child {
    let script = format!("umask {umask}; exec \"$0\" --database \"$1\" list");
    Command::new("/bin/sh")
        .args(["-c", &script])
        .args([binary(), database])
        .env_clear()
        .env("HOME", database.parent().unwrap())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn assert_success(child: Child) {
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
async fn the_directory_and_the_file_are_created() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a/b/assetwatch.db");
    let store = Store::open(&path).await.unwrap();
    assert!(path.is_file());
    assert_eq!(store.path(), path);
    let id = store.install_id().to_owned();
    assert!(id.len() == 26 && id.bytes().all(|byte| byte.is_ascii_alphanumeric()), "{id}");
    drop(store);
    assert_eq!(Store::open(&path).await.unwrap().install_id(), id, "the id is the file's");
    let other = Store::open(&directory.path().join("other.db")).await.unwrap();
    assert_ne!(other.install_id(), id);
}

#[test]
fn the_umask_decides_who_may_write() {
    for (umask, mode) in [("007", 0o660), ("077", 0o600), ("022", 0o644)] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("assetwatch.db");
        assert_success(list(&path, umask));
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, mode, "umask {umask}");
    }
}

#[tokio::test]
async fn the_log_files_have_the_mode_of_the_database() {
    let base = Base::new().await;
    base.add(&["a"]).await;
    let mode = |end: &str| {
        let path = base.directory.path().join(format!("assetwatch.db{end}"));
        path.metadata().unwrap().permissions().mode() & 0o777
    };
    assert_eq!((mode("-wal"), mode("-shm")), (mode(""), mode("")), "or the others of the group could not write");
}

#[tokio::test]
async fn what_stands_in_a_new_file() {
    let base = Base::new().await;
    assert_eq!(base.ask::<String>("PRAGMA journal_mode"), "wal");
    assert_eq!(base.ask::<i64>("PRAGMA application_id"), 0x6157_7463);
    assert_eq!(base.ask::<i64>("PRAGMA auto_vacuum"), 2, "incremental");
    assert_eq!(base.ask::<String>("PRAGMA integrity_check"), "ok");
    let strict = "SELECT count(*) FROM pragma_table_list WHERE schema = 'main' AND type = 'table' AND NOT strict
                      AND name NOT LIKE 'sqlite_%'";
    assert_eq!(base.ask::<i64>(strict), 0);
}

#[tokio::test]
async fn the_file_of_another_program_is_left_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    for (name, sql) in [
        ("their tables", "CREATE TABLE notes (text)"),
        ("their id", "PRAGMA application_id = 7"),
        ("their id and tables", "PRAGMA application_id = 7; PRAGMA user_version = 1; CREATE TABLE watches (id)"),
        ("their version", "PRAGMA user_version = 1; CREATE TABLE watches (asset_id)"),
    ] {
        let path = directory.path().join(name);
        Connection::open(&path).unwrap().execute_batch(sql).unwrap();
        let before = std::fs::read(&path).unwrap();
        let why = refused(&path).await;
        assert!(why.contains("another program") && why.contains("--database"), "{name}: {why}");
        assert!(std::fs::read(&path).unwrap() == before, "{name}: the file was changed");
    }
}

#[tokio::test]
async fn the_file_of_a_newer_version_is_left_as_it_is() {
    let present: i32 = Base::new().await.ask("PRAGMA user_version");
    for version in [present + 1, 1_000, -1] {
        let base = Base::new().await;
        base.add(&["a"]).await;
        let copy = base.directory.path().join("copy.db");
        base.foreign().execute("VACUUM INTO ?1", [copy.to_str()]).unwrap();
        Connection::open(&copy).unwrap().pragma_update(None, "user_version", version).unwrap();
        let before = std::fs::read(&copy).unwrap();
        let why = refused(&copy).await;
        assert!(why.contains("newer") && why.contains(&version.to_string()), "{why}");
        assert!(std::fs::read(&copy).unwrap() == before, "the file was changed");
    }
}

#[tokio::test]
async fn a_damaged_file_is_left_as_it_is() {
    let base = Base::new().await;
    base.add(&["a"]).await;
    let whole = base.directory.path().join("whole.db");
    base.foreign().execute("VACUUM INTO ?1", [whole.to_str()]).unwrap();
    let sound = std::fs::read(&whole).unwrap();
    let with = |range: std::ops::Range<usize>| {
        let mut bytes = sound.clone();
        bytes[range].fill(0xa5);
        bytes
    };
    for (name, bytes) in [
        ("text", b"this is no database, but somebody's notes\n".repeat(200)),
        ("no header", with(0..16)),
        ("no schema", with(100..4_096)),
        ("cut off in the first page", sound[..2_000].to_vec()),
        ("two bytes", b"no".to_vec()),
    ] {
        let path = base.directory.path().join(name);
        std::fs::write(&path, &bytes).unwrap();
        let why = refused(&path).await;
        assert!(why.contains("damaged") && why.contains("nothing was changed"), "{name}: {why}");
        assert!(std::fs::read(&path).unwrap() == bytes, "{name}: the file was changed");
    }
}

#[tokio::test]
async fn what_cannot_be_a_file_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let why = refused(directory.path()).await;
    assert!(why.contains("not a regular file"), "{why}");
    let file = directory.path().join("file");
    std::fs::write(&file, "").unwrap();
    let why = refused(&file.join("assetwatch.db")).await;
    assert!(why.contains("directory cannot be created"), "{why}");
}

#[tokio::test]
async fn an_empty_file_becomes_a_database() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("assetwatch.db");
    std::fs::write(&path, "").unwrap();
    Store::open(&path).await.unwrap();
}

/// A restored copy has no write-ahead log, and SQLite itself does not wait for a lock to turn it on.
#[tokio::test]
async fn opening_waits_for_somebody_who_is_writing() {
    let base = Base::new().await;
    let copy = base.directory.path().join("copy.db");
    base.foreign().execute("VACUUM INTO ?1", [copy.to_str()]).unwrap();
    let writer = Connection::open(&copy).unwrap();
    writer.execute_batch("BEGIN IMMEDIATE").unwrap();
    let mut opening = tokio::spawn(async move { Store::open(&copy).await.map(drop) });
    let early = tokio::time::timeout(Duration::from_millis(300), &mut opening).await;
    assert!(early.is_err(), "it did not wait: {early:?}");
    writer.execute_batch("COMMIT").unwrap();
    opening.await.unwrap().unwrap();
}

/// Several processes find no database, and create it.
#[tokio::test]
async fn processes_may_open_a_new_database_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("assetwatch.db");
    let processes: Vec<_> = (0..8).map(|_| list(&path, "022")).collect();
    processes.into_iter().for_each(assert_success);
    Store::open(&path).await.unwrap();
}

/// Threads come closer to each other than processes do.
#[test]
fn threads_may_open_a_new_database_at_once() {
    for _ in 0..20 {
        let directory = tempfile::tempdir().unwrap();
        let path = &directory.path().join("assetwatch.db");
        let all_are_here = &std::sync::Barrier::new(8);
        let open = || {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            // So that the runtime's own thread is there already.
            runtime.block_on(runtime.spawn_blocking(|| ())).unwrap();
            all_are_here.wait();
            runtime.block_on(Store::open(path)).map(|store| store.install_id().to_owned())
        };
        let ids: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(open)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap().unwrap()).collect()
        });
        assert!(ids.iter().all(|id| *id == ids[0]), "one database has one id: {ids:?}");
    }
}

/// As the first version left it: a watch that waits since it was inserted, one of a batch, a paused account, a delivery.
#[tokio::test]
async fn the_file_of_the_first_version_is_brought_up_to_date() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("assetwatch.db");
    let old = Connection::open(&path).unwrap();
    old.execute_batch(include_str!("../../../migrations/0001_initial.sql")).unwrap();
    old.execute_batch(
        "PRAGMA application_id = 0x61577463; PRAGMA user_version = 1;
         INSERT INTO meta (key, value) VALUES ('install_id', 'kept');
         INSERT INTO watches (asset_id, created_at) VALUES ('plain', 1790000000000);
         INSERT INTO watches (asset_id, created_at, batch, missing_at, due_at) VALUES ('batched', 1790000000001, 'b', 7, 9);
         INSERT INTO watches (asset_id, created_at, batch) VALUES ('batched too', 1790000000002, 'b');
         INSERT INTO events (id, watch_id, type, body, created_at) VALUES ('evt_1', 1, 'asset.processing', x'7b7d', 5);
         INSERT INTO deliveries (event_seq, hook, watch_id, due_at, created_at) VALUES (1, 'cms', 1, 5, 5);
         INSERT INTO accounts (name, closure, closed_at, last_error, lost_ms) VALUES ('default', 'unpaid', 3, '402', 4);",
    )
    .unwrap();
    drop(old);
    let store = Store::open(&path).await.unwrap();
    assert_eq!(store.install_id(), "kept");
    let base = Base { directory, store };
    let due = |id| base.ask::<i64>(&format!("SELECT due_at FROM watches WHERE id = {id}"));
    assert_eq!((due(1), due(2)), (1_790_000_000_000, 9), "due since it was added, and not since 1970");
    assert_eq!(base.watch(2).await.missing, Some(Since { at: Timestamp::from_millis(7), base: 0 }));
    let accounts = base.store.accounts().await.unwrap();
    assert_eq!((accounts[0].closure.as_deref(), accounts[0].lost_ms), (Some("unpaid"), 4));
    assert_eq!(base.ask::<String>("SELECT name || created_at FROM batches"), "b1790000000001");
    assert_eq!(base.parcels(terms(&[("cms", 1)])).await.len(), 1);
    Store::open(base.store.path()).await.unwrap();
}

#[tokio::test]
async fn the_log_of_a_linked_database_is_looked_at_where_the_link_leads() {
    let directory = tempfile::tempdir().unwrap();
    let (file, link) = (directory.path().join("moved/there.db"), directory.path().join("assetwatch.db"));
    drop(Store::open(&file).await.unwrap());
    std::os::unix::fs::symlink(&file, &link).unwrap();
    let log = directory.path().join("moved/there.db-wal");
    std::fs::write(&log, [7; 4_096]).unwrap();
    let Err(StoreError::Unfit { path, why }) = Store::open(&link).await else { panic!("it was opened") };
    assert_eq!(path, link, "as it was named");
    assert!(why.contains("write-ahead log") && why.contains("there.db-wal"), "{why}");
    assert_eq!(std::fs::read(&log).unwrap(), [7; 4_096], "as it was");
}
