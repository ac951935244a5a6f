//! What is removed once it is old, what stays, and the space that it took.

use assetwatch::store::Ended;

use super::*;

/// A month after [`NOW`], and what was before this is old.
const THEN: Timestamp = Timestamp::from_millis(NOW.as_millis() + 30 * 86_400_000);

impl Base {
    /// Removes all that may go, and says how many those were.
    async fn prune(&self, ended: Ended) -> u64 {
        let rows = self.store.ended(ended, i64::MIN, THEN, 1_000).await.unwrap();
        let keys = rows.iter().filter(|row| row.rows > 0).map(|row| row.key).collect();
        self.store.prune(ended, keys, THEN).await.unwrap()
    }

    /// What is left of a column, in order.
    fn column(&self, sql: &str) -> Vec<String> {
        let connection = self.foreign();
        let mut statement = connection.prepare(sql).unwrap();
        let rows = statement.query_map([], |row| row.get(0)).unwrap();
        rows.collect::<Result<_, _>>().unwrap()
    }
}

/// An ended watch of that name, with an event and one delivery with one attempt.
fn told(asset: &str, state: &str, settled_at: &str, delivery: &str, finished_at: &str) -> String {
    let due = if delivery == "waiting" { "1" } else { "NULL" };
    format!(
        "INSERT INTO watches (asset_id, state, status, due_at, reason, created_at, settled_at)
             VALUES ('{asset}', '{state}', 'active', NULL, iif('{state}' = 'abandoned', 'missing', NULL), 1, {settled_at});
         INSERT INTO events (id, watch_id, type, body, created_at)
             SELECT 'evt_' || max(id), max(id), 'asset.active', x'7b7d', 1 FROM watches;
         INSERT INTO deliveries (event_seq, hook, watch_id, state, due_at, finished_at, attempts, created_at)
             SELECT max(seq), 'cms', watch_id, '{delivery}', {due}, {finished_at}, 1, 1 FROM events;
         INSERT INTO attempts (delivery_id, number, owner, started_at, finished_at, outcome)
             SELECT max(id), 1, 'us', 1, 2, 'failed' FROM deliveries;"
    )
}

#[tokio::test]
async fn an_ended_watch_goes_with_all_that_belongs_to_it() {
    let base = Base::new().await;
    let (old, new) = (&(THEN.as_millis() - 1).to_string(), &THEN.as_millis().to_string());
    for (asset, state, settled_at, delivery, finished_at) in [
        ("old", "settled", old, "delivered", "2"),
        ("old and dead", "abandoned", old, "dead", "2"),
        ("old and cancelled", "cancelled", old, "delivered", "2"),
        ("young", "settled", new, "delivered", "2"),
        ("still waits to be told", "settled", old, "waiting", "NULL"),
        ("held", "settled", old, "held", "NULL"),
        ("told only now", "settled", old, "delivered", new),
        ("dead only now", "settled", old, "dead", new),
    ] {
        base.execute(&told(asset, state, settled_at, delivery, finished_at));
    }
    base.execute("INSERT INTO watches (asset_id, created_at, due_at) VALUES ('waiting since long', 1, 1)");
    let before = base.ask::<i64>("SELECT max(id) FROM watches");
    let rows = base.store.ended(Ended::Watches, i64::MIN, THEN, 1_000).await.unwrap();
    assert_eq!(rows.iter().map(|row| row.rows).collect::<Vec<_>>(), [4, 4, 4, 0, 0, 0, 0, 0, 0]);
    assert_eq!(base.prune(Ended::Watches).await, 3);
    let left = ["young", "still waits to be told", "held", "told only now", "dead only now", "waiting since long"];
    assert_eq!(base.column("SELECT asset_id FROM watches ORDER BY id"), left);
    for table in ["events", "deliveries", "attempts"] {
        assert_eq!(base.ask::<i64>(&format!("SELECT count(*) FROM {table}")), 5, "{table}");
    }
    assert_eq!(base.store.integrity().await.unwrap().problems, Vec::<String>::new());
    // Its id is free for a new watch, whose number is a new one.
    base.execute("DELETE FROM watches WHERE asset_id = 'waiting since long'");
    let again = base.add(&["old"]).await;
    assert!(again[0].id > before, "no number is used twice");
}

#[tokio::test]
async fn a_batch_goes_as_a_whole_once_its_end_is_old() {
    let base = Base::new().await;
    for batch in ["open", "just settled", "old"] {
        base.execute(&told(batch, "settled", "5", "delivered", "6"));
        base.execute(&format!(
            "UPDATE watches SET batch = '{batch}' WHERE asset_id = '{batch}';
             INSERT INTO batches (name, created_at) VALUES ('{batch}', 1)"
        ));
    }
    base.execute(&format!(
        "UPDATE batches SET closed_at = 7, settled_at = iif(name = 'old', 7, {}) WHERE name <> 'open'",
        THEN.as_millis()
    ));
    assert_eq!(base.prune(Ended::Batches).await, 0, "there are watches of each");
    assert_eq!(base.prune(Ended::Watches).await, 1);
    assert_eq!(base.column("SELECT asset_id FROM watches ORDER BY id"), ["open", "just settled"]);
    assert_eq!(base.prune(Ended::Batches).await, 1);
    assert_eq!(base.column("SELECT name FROM batches ORDER BY rowid"), ["open", "just settled"]);
}

#[tokio::test]
async fn what_speaks_of_no_watch_goes_likewise() {
    let base = Base::new().await;
    let young = THEN.as_millis();
    for (name, created_at, state, due, finished) in [
        ("old", 1, "delivered", "NULL", "2"),
        ("held", 1, "held", "NULL", "NULL"),
        ("waiting", 1, "waiting", "5", "NULL"),
        ("young", young, "dead", "NULL", "2"),
    ] {
        base.execute(&format!(
            "INSERT INTO events (id, type, body, created_at) VALUES ('{name}', 'account.paused', x'7b7d', {created_at});
             INSERT INTO deliveries (event_seq, hook, state, due_at, finished_at, created_at)
                 SELECT max(seq), 'cms', '{state}', {due}, {finished}, 1 FROM events"
        ));
    }
    assert_eq!(base.prune(Ended::Events).await, 1);
    assert_eq!(base.column("SELECT id FROM events ORDER BY seq"), ["held", "waiting", "young"]);
    assert_eq!(base.ask::<i64>("SELECT count(*) FROM deliveries"), 3);
}

#[tokio::test]
async fn the_origin_of_a_callback_is_forgotten_and_a_hook_is_not() {
    let base = Base::new().await;
    base.execute(&format!(
        "INSERT INTO hooks (name, last_success_at, disabled_at, disabled_reason, failures, failing_since) VALUES
             ('cms', 1, NULL, NULL, 0, NULL),
             ('callback:https://old', 1, NULL, NULL, 3, 1),
             ('callback:https://never', NULL, NULL, NULL, 0, NULL),
             ('callback:https://young', {young}, NULL, NULL, 0, NULL),
             ('callback:https://failing', 1, NULL, NULL, 1, {young}),
             ('callback:https://disabled', 1, 1, 'by hand', 0, NULL),
             ('callback:https://dead', 1, NULL, NULL, 0, NULL),
             ('callback:https://waiting', 1, NULL, NULL, 0, NULL);
         INSERT INTO events (id, type, body, created_at) VALUES ('e', 'test', x'7b7d', 1);
         INSERT INTO deliveries (event_seq, hook, state, due_at, finished_at, created_at) VALUES
             (1, 'callback:https://dead', 'dead', NULL, 1, 1), (1, 'callback:https://waiting', 'waiting', 1, NULL, 1),
             (1, 'callback:https://old', 'delivered', NULL, 1, 1)",
        young = THEN.as_millis()
    ));
    assert_eq!(base.prune(Ended::Callbacks).await, 2);
    let left = ["cms", "young", "failing", "disabled", "dead", "waiting"]
        .map(|name| if name == "cms" { name.to_owned() } else { format!("callback:https://{name}") });
    assert_eq!(base.column("SELECT name FROM hooks ORDER BY rowid"), left);
}

/// Between the look and the write anything may happen.
#[tokio::test]
async fn what_is_removed_is_looked_at_once_more() {
    let base = Base::new().await;
    base.execute(&told("retried", "settled", "5", "dead", "6"));
    let rows = base.store.ended(Ended::Watches, i64::MIN, THEN, 10).await.unwrap();
    assert!(rows[0].rows > 0);
    base.execute("UPDATE deliveries SET state = 'waiting', due_at = 7, finished_at = NULL");
    assert_eq!(base.store.prune(Ended::Watches, vec![rows[0].key], THEN).await.unwrap(), 0);
    assert_eq!(base.ask::<i64>("SELECT count(*) FROM attempts"), 1);
}

#[tokio::test]
async fn the_file_shrinks_and_says_where_it_cannot() {
    let base = Base::new().await;
    base.execute(
        "WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 2000)
         INSERT INTO events (id, type, body, created_at) SELECT n, 'x', zeroblob(2000), 1 FROM n",
    );
    base.store.checkpoint().await.unwrap();
    let size = || base.store.path().metadata().unwrap().len();
    let full = size();
    while base.prune(Ended::Events).await > 0 {}
    let free = base.store.free().await.unwrap();
    assert!(free.incremental && free.free > 900 && free.free < free.pages, "{free:?}");
    assert_eq!(base.store.give_back(100).await.unwrap(), 100, "in small steps");
    assert!(base.store.give_back(100_000).await.unwrap() >= free.free - 100);
    base.store.checkpoint().await.unwrap();
    let after = base.store.free().await.unwrap();
    assert_eq!((after.free, size()), (0, 4_096 * after.pages));
    assert!(size() < full / 5, "{full} became {}", size());
    assert_eq!(base.store.integrity().await.unwrap().problems, Vec::<String>::new());

    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("made anew.db");
    let copy = base.foreign();
    copy.execute_batch("PRAGMA auto_vacuum = NONE").unwrap();
    copy.execute("VACUUM INTO ?1", [path.to_str()]).unwrap();
    let store = Store::open(&path).await.unwrap();
    assert!(!store.free().await.unwrap().incremental && !store.integrity().await.unwrap().shrinks);
    assert_eq!(store.give_back(10).await.unwrap(), 0);
}

#[tokio::test]
async fn damage_deep_in_the_file_is_found() {
    let base = Base::new().await;
    base.settled("a", &["cms"]).await;
    base.execute("PRAGMA foreign_keys = OFF; DELETE FROM watches");
    let problems = base.store.integrity().await.unwrap().problems;
    assert_eq!(problems, ["row 1 of events belongs to none of watches"]);
    base.execute("DROP INDEX watches_asset; DELETE FROM events; PRAGMA wal_checkpoint(TRUNCATE)");
    base.execute("PRAGMA writable_schema = ON; UPDATE sqlite_schema SET rootpage = 3 WHERE name = 'watches_batch'");
    assert!(!base.store.integrity().await.unwrap().problems.is_empty());
}
