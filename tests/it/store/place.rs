//! A file that is taken away under whoever has opened it: noticed by the next write, and nothing is written any more.

use std::os::unix::fs::symlink;
use std::path::Path;

use super::*;

/// What a write meets.
async fn refused(base: &Base) -> StoreError {
    base.store.add(owned(&["late"]), plain(), NOW).await.unwrap_err()
}

fn log_of(path: &Path) -> std::path::PathBuf {
    path.with_extension("db-wal")
}

fn count(path: &Path) -> i64 {
    Connection::open(path).unwrap().query_row("SELECT count(*) FROM watches", [], |row| row.get(0)).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_replaced_is_told_from_one_that_is_removed() {
    let base = Base::new().await;
    base.add(&["a"]).await;
    let (path, moved) = (base.store.path().to_owned(), base.directory.path().join("moved.db"));
    std::fs::rename(&path, &moved).unwrap();
    let lost = refused(&base).await;
    let said = lost.to_string();
    assert!(matches!(lost, StoreError::Unfit { .. }) && said.contains("it was removed, or moved away"), "{said}");
    assert_eq!(base.store.lost().await, lost, "whoever runs on it is told");
    assert!(!path.exists() && !log_of(&path).exists(), "nothing is left that the next file there could be taken for");
    assert_eq!(count(&moved), 1, "all of it is in the file");
    std::fs::rename(&moved, &path).unwrap();
    assert_eq!(refused(&base).await, lost, "for good: others may have written to it meanwhile");

    let base = Base::new().await;
    base.add(&["a"]).await;
    let another = Base::new().await;
    std::fs::rename(another.store.path(), base.store.path()).unwrap();
    let lost = refused(&base).await;
    let said = lost.to_string();
    assert!(
        matches!(lost, StoreError::Unusable { .. }) && said.contains("another file was put in its place"),
        "{said}"
    );
    assert!(said.contains(base.store.path().to_str().unwrap()), "{said}");
}

/// To SQLite a log belongs to whatever file is called so.
#[tokio::test(flavor = "multi_thread")]
async fn the_log_of_a_file_that_was_replaced_is_not_written_over_the_next_one() {
    for is_read in [false, true] {
        let base = Base::new().await;
        let path = base.store.path().to_owned();
        base.execute("PRAGMA wal_checkpoint(TRUNCATE)");
        let new_file = base.directory.path().join("restored.db");
        std::fs::copy(&path, &new_file).unwrap();
        base.add(&["a"]).await;
        let reader = base.foreign();
        if is_read {
            reader.execute_batch("BEGIN; SELECT * FROM watches").unwrap();
            base.add(&["b"]).await;
        }
        let before = std::fs::read(&new_file).unwrap();
        std::fs::rename(&new_file, &path).unwrap();
        let said = refused(&base).await.to_string();
        assert!(!log_of(&path).exists());
        // What somebody reads keeps the log from being emptied.
        let kept = std::fs::read_dir(base.directory.path()).unwrap().map(|entry| entry.unwrap().path());
        let kept: Vec<_> = kept.filter(|path| path.to_str().unwrap().contains("db-wal.2")).collect();
        assert_eq!(kept.len(), usize::from(is_read), "{kept:?}");
        assert!(kept.iter().all(|kept| said.contains(kept.to_str().unwrap())), "{said}");
        assert!(std::fs::read(&path).unwrap() == before, "the new file is as it was put there");
        Store::open(&path).await.unwrap();
        assert_eq!(count(&path), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_is_led_elsewhere_leaves_the_log_where_it_is_and_one_that_cannot_be_followed_is_no_removal() {
    let base = Base::new().await;
    let (link, elsewhere) = (base.directory.path().join("link"), tempfile::tempdir().unwrap());
    symlink(base.directory.path(), &link).unwrap();
    let lead = |to: &Path| {
        std::fs::remove_file(&link).unwrap();
        symlink(to, &link).unwrap();
    };
    let store = Store::open(&link.join("assetwatch.db")).await.unwrap();
    let write = async |id: &str| store.add(owned(&[id]), plain(), NOW).await.map(drop);
    write("a").await.unwrap();
    // It leads to itself, and so nowhere.
    lead(&link);
    write("b").await.unwrap();
    lead(elsewhere.path());
    std::fs::write(elsewhere.path().join("assetwatch.db"), "").unwrap();
    assert!(matches!(write("c").await, Err(StoreError::Unusable { .. })));
    assert!(log_of(base.store.path()).exists(), "it is still in use");
    assert_eq!(base.ask::<i64>("SELECT count(*) FROM watches"), 2);
}
