//! A database of an earlier version is brought up to date, and kept as it was beside it. Those in `tests/data` are dumps of
//! what each released schema left.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rusqlite::types::Value;

use super::*;
use crate::rig::Tmpfs;

const RELEASED: [(u32, &str); 2] =
    [(1, include_str!("../../data/schema-1.sql")), (2, include_str!("../../data/schema-2.sql"))];

/// A directory with the database of that schema, as a daemon has left it.
fn left_by(schema: u32) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("assetwatch.db");
    restore(schema, &path);
    (directory, path)
}

fn restore(schema: u32, path: &Path) {
    let (_, dump) = RELEASED.iter().find(|(version, _)| *version == schema).unwrap();
    let old = Connection::open(path).unwrap();
    old.execute_batch(dump).unwrap();
    old.pragma_update(None, "journal_mode", "WAL").unwrap();
}

fn open(path: &Path) -> Connection {
    let connection = Connection::open(path).unwrap();
    connection.busy_timeout(Duration::from_secs(10)).unwrap();
    connection
}

fn number(path: &Path, sql: &str) -> i64 {
    open(path).query_row(sql, [], |row| row.get(0)).unwrap()
}

/// Every row of every table by its column names, in order; only of these columns, if there are any.
type Tables = std::collections::BTreeMap<String, (Vec<String>, Vec<Vec<Value>>)>;

fn tables(path: &Path, only: Option<&Tables>) -> Tables {
    let connection = open(path);
    let mut names = connection.prepare("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name").unwrap();
    let names: Vec<String> = names.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
    let mut tables = Tables::new();
    for name in names {
        let columns = match only {
            None => "*".to_owned(),
            Some(only) => match only.get(&name) {
                Some((columns, _)) => columns.join(", "),
                None => continue,
            },
        };
        let mut statement = connection.prepare(&format!("SELECT {columns} FROM {name} ORDER BY rowid")).unwrap();
        let columns: Vec<String> = statement.column_names().map(str::to_owned).collect();
        let rows = statement.query_map([], |row| (0..columns.len()).map(|at| row.get(at)).collect()).unwrap();
        let rows = rows.collect::<Result<_, _>>().unwrap();
        tables.insert(name, (columns, rows));
    }
    tables
}

/// What stands beside the database, but for its log.
fn copies(path: &Path) -> Vec<PathBuf> {
    let own = ["assetwatch.db", "assetwatch.db-wal", "assetwatch.db-shm"];
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(path.parent().unwrap()).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| !own.iter().any(|own| file.file_name().unwrap() == *own));
    files.sort();
    files
}

#[tokio::test]
async fn every_row_of_every_released_schema_is_there_and_a_copy_beside_it() {
    let present: i64 = Base::new().await.ask("PRAGMA user_version");
    assert!((1..present).all(|version| RELEASED.iter().any(|(known, _)| i64::from(*known) == version)));
    for (schema, _) in RELEASED {
        let (_directory, path) = left_by(schema);
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
        let mut before = tables(&path, None);
        let store = Store::open(&path).await.unwrap();
        assert_eq!(store.install_id(), "d2n4k6m8p0r2t4v6w8x0y2z4a6");
        assert_eq!(number(&path, "PRAGMA user_version"), present);
        assert_eq!(open(&path).query_row("PRAGMA integrity_check", [], |row| row.get::<_, String>(0)).unwrap(), "ok");
        if i64::from(schema) == present {
            assert!(store.migrated().is_none() && copies(&path).is_empty(), "there is nothing to do");
            assert_eq!(tables(&path, None), before);
            continue;
        }
        let migrated = store.migrated().unwrap();
        assert_eq!((migrated.from, i64::from(migrated.to)), (schema, present));
        assert_eq!(copies(&path), std::slice::from_ref(&migrated.copy));
        let name = migrated.copy.file_name().unwrap().to_str().unwrap();
        assert!(name.starts_with(&format!("assetwatch.db.v{schema}-20")) && name.ends_with('Z'), "{name}");
        assert_eq!(migrated.copy.metadata().unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(tables(&migrated.copy, None), before, "as it was");
        assert_eq!(number(&migrated.copy, "PRAGMA user_version"), i64::from(schema));
        assert!(Store::open(&path).await.unwrap().migrated().is_none(), "once");
        if schema == 1 {
            // What was due since 1970 is due since it was inserted.
            let (columns, rows) = before.get_mut("watches").unwrap();
            let due = columns.iter().position(|name| name == "due_at").unwrap();
            assert_eq!(std::mem::replace(&mut rows[0][due], Value::Integer(1_790_000_000_000)), Value::Integer(0));
        }
        assert_eq!(tables(&path, Some(&before)), before, "all rows of schema {schema} are there");
    }
}

/// One that was killed while it copied, and one that was killed before it had migrated.
#[tokio::test]
async fn what_a_killed_process_left_of_a_copy_is_used_or_overwritten() {
    let (_directory, path) = left_by(1);
    let unfinished = path.with_file_name("assetwatch.db.v1.assetwatch-partial");
    std::fs::write(&unfinished, vec![0xa5; 1 << 20]).unwrap();
    let other = path.with_file_name("assetwatch.db.v1-20250101T000000.000Z");
    std::fs::write(&other, b"the copy of an earlier database").unwrap();
    let first = Store::open(&path).await.unwrap().migrated().unwrap().copy.clone();
    assert_eq!(copies(&path), [other.clone(), first.clone()]);
    for file in ["assetwatch.db", "assetwatch.db-wal", "assetwatch.db-shm"] {
        let _ = std::fs::remove_file(path.with_file_name(file));
    }
    restore(1, &path);
    let again = Store::open(&path).await.unwrap().migrated().unwrap().copy.clone();
    assert_eq!(again, first, "the copy with the same content");
    assert_eq!(copies(&path), [other, first]);
}

/// As threads they come closer to each other than as processes.
#[test]
fn of_several_that_start_at_once_one_makes_the_copy() {
    for _ in 0..5 {
        let (_directory, path) = left_by(1);
        let (path, all_are_here) = (&path, &std::sync::Barrier::new(6));
        let open = || {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(runtime.spawn_blocking(|| ())).unwrap();
            all_are_here.wait();
            runtime.block_on(Store::open(path)).map(|store| store.migrated().is_some())
        };
        let migrated: Vec<bool> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..6).map(|_| scope.spawn(open)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap().unwrap()).collect()
        });
        assert_eq!(migrated.iter().filter(|migrated| **migrated).count(), 1);
        assert_eq!(copies(path).len(), 1);
    }
}

#[tokio::test]
async fn without_room_for_the_copy_nothing_is_changed() {
    let directory = tempfile::tempdir().unwrap();
    let Some(disk) = Tmpfs::mount(directory.path().join("disk"), 1_024) else { return };
    let path = disk.path().join("assetwatch.db");
    restore(1, &path);
    let filler = disk.path().join("filler");
    let free = |path: &Path| rustix::fs::statvfs(path).map(|disk| disk.f_bavail * disk.f_frsize).unwrap();
    // Its log has some room, the copy has none.
    std::fs::write(&filler, vec![0; usize::try_from(free(disk.path())).unwrap() - 100_000]).unwrap();
    let before = std::fs::read(&path).unwrap();
    let Err(StoreError::Unusable { why, .. }) = Store::open(&path).await.map(drop) else { panic!("it was opened") };
    assert!(why.contains("not enough room") && why.contains("Nothing was changed"), "{why}");
    assert!(std::fs::read(&path).unwrap() == before && copies(&path) == [filler.clone()], "{:?}", copies(&path));
    std::fs::remove_file(filler).unwrap();
    assert!(Store::open(&path).await.unwrap().migrated().is_some());
}
