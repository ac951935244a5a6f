//! Commits: shared by concurrent writes, noticed by others, waited for.

use assetwatch::store::{AccountRow, StoreError};

use super::*;

/// The transactions in the write-ahead log: the frames that end one carry the size of the database (see SQLite's "WAL
/// file format").
fn commits(base: &Base) -> usize {
    let log = std::fs::read(base.directory.path().join("assetwatch.db-wal")).unwrap();
    let number = |at: usize| u32::from_be_bytes(log[at..at + 4].try_into().unwrap());
    let (page, salt) = (number(8) as usize, number(16));
    let frames = (32..log.len()).step_by(24 + page).filter(|at| number(at + 8) == salt);
    frames.filter(|at| number(at + 4) != 0).count()
}

#[tokio::test]
async fn writes_that_wait_at_the_same_time_share_a_commit() {
    let base = Base::new().await;
    let names: Vec<_> = (0..100).map(|n| format!("ast_{n}")).collect();
    base.add(&names.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let watches = base.claim(terms(&[("default", 100)])).await.remove(0).rows;
    let other = base.foreign();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let before = commits(&base);
    let mut records = tokio::task::JoinSet::new();
    for watch in &watches {
        let (store, after) = (base.store.clone(), settled(watch));
        records.spawn(async move { store.record(after, Vec::new(), nobody()).await });
    }
    // Whoever began first waits for the lock; the rest have queued behind it once all tasks have run.
    for _ in 0..1_000 {
        tokio::task::yield_now().await;
    }
    other.execute_batch("COMMIT").unwrap();
    assert!(records.join_all().await.iter().all(Result::is_ok));
    let shared = commits(&base) - before;
    assert!(shared <= 3, "{shared} commits for a hundred writes");
    assert_eq!(base.ask::<i64>("SELECT count(*) FROM watches WHERE state = 'settled'"), 100);
}

#[tokio::test]
async fn a_write_that_fails_undoes_itself_and_nobody_else() {
    let base = Base::new().await;
    let names: Vec<_> = (0..90).map(|n| format!("ast_{n}")).collect();
    base.add(&names.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let watches = base.claim(terms(&[("default", 90)])).await.remove(0).rows;
    let mut records = tokio::task::JoinSet::new();
    for (n, watch) in watches.into_iter().enumerate() {
        let (store, mut after) = (base.store.clone(), settled(&watch));
        let mut told = event(&after, "asset.active", &["cms"]);
        match n % 9 {
            3 => told.addressees.push(addressee("cms")),
            6 => after.generation -= 1,
            _ => {}
        }
        records.spawn(async move { (n, store.record(after, vec![told], nobody()).await) });
    }
    for (n, result) in records.join_all().await {
        match n % 9 {
            3 => assert!(matches!(result, Err(StoreError::Refused(_))), "{n}: {result:?}"),
            6 => assert_eq!(result, Err(StoreError::LeaseLost), "{n}"),
            _ => assert_eq!(result, Ok(None), "{n}"),
        }
    }
    let counts = "SELECT count(*) FROM watches WHERE state = 'settled' UNION ALL SELECT count(*) FROM events
                  UNION ALL SELECT count(*) FROM deliveries";
    let connection = base.foreign();
    let mut statement = connection.prepare(counts).unwrap();
    let counts: Vec<i64> = statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
    assert_eq!(counts, [70, 70, 70]);
}

#[tokio::test]
async fn a_write_that_panics_takes_nobody_along() {
    let base = Base::new().await;
    let watch = base.add(&["a"]).await.remove(0);
    let (begun, has_begun) = tokio::sync::oneshot::channel();
    let (go_on, may_go_on) = std::sync::mpsc::channel();
    let mut begun = Some(begun);
    let held = base.store.end(
        vec![watch.id],
        move |watch| {
            begun.take().unwrap().send(()).unwrap();
            may_go_on.recv().unwrap();
            (waiting(watch, NOW), Vec::new())
        },
        nobody(),
    );
    // These gather while the first one is held, and share the next transaction.
    let release = async {
        has_begun.await.unwrap();
        tokio::task::yield_now().await;
        go_on.send(()).unwrap();
    };
    let before = base.store.add(owned(&["before"]), plain(), NOW);
    let panicking = base.store.end(vec![watch.id], |_| panic!("this panic is part of the test"), nobody());
    let after = base.store.add(owned(&["after"]), plain(), NOW);
    let all = async { tokio::join!(held, before, panicking, after, release) };
    let (held, before, panicking, after, ()) = tokio::time::timeout(MINUTE, all).await.expect("all are answered");
    assert_eq!(held.unwrap().remove(0).map(|watch| watch.polls), Some(1));
    assert!(matches!(&panicking, Err(StoreError::Broken(why)) if why.contains("panic")), "{panicking:?}");
    for added in [before, after] {
        assert!(matches!(added.unwrap()[..], [Added::New(_)]));
    }
    // Nothing is left open that would keep others from writing.
    base.execute("BEGIN IMMEDIATE; COMMIT");
    assert_eq!(base.watch(watch.id).await.polls, 1);
}

#[tokio::test]
async fn a_write_happens_even_if_nobody_waits_for_it() {
    let base = Base::new().await;
    let watch = base.leased("a").await;
    let (lock, store, after) = (base.foreign(), base.store.clone(), settled(&watch));
    lock.execute_batch("BEGIN IMMEDIATE").unwrap();
    let record = tokio::spawn(async move { store.record(after, Vec::new(), nobody()).await });
    tokio::task::yield_now().await;
    record.abort();
    assert!(record.await.unwrap_err().is_cancelled());
    lock.execute_batch("COMMIT").unwrap();
    base.add(&["b"]).await;
    assert_eq!(base.watch(watch.id).await.state, State::Settled);
}

#[tokio::test]
async fn the_foreign_version_changes_by_others_commits_only() {
    let base = Base::new().await;
    let (foreign, any) = (base.store.foreign_version().await.unwrap(), base.store.version().await.unwrap());
    base.add(&["ours"]).await;
    let after_ours = (base.store.foreign_version().await.unwrap(), base.store.version().await.unwrap());
    assert_eq!(after_ours.0, foreign, "our own commit is no news");
    assert_ne!(after_ours.1, any);
    base.execute("INSERT INTO watches (asset_id) VALUES ('theirs')");
    let after_theirs = (base.store.foreign_version().await.unwrap(), base.store.version().await.unwrap());
    assert_ne!(after_theirs.0, after_ours.0);
    assert_ne!(after_theirs.1, after_ours.1);
    base.ask::<i64>("SELECT count(*) FROM watches");
    base.execute("BEGIN IMMEDIATE; INSERT INTO watches (asset_id) VALUES ('never'); ROLLBACK");
    let after_nothing = (base.store.foreign_version().await.unwrap(), base.store.version().await.unwrap());
    assert_eq!(after_nothing, after_theirs, "a look and a rollback change nothing");
}

/// The only test that waits for the busy timeout; all that can wait does so at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_locked_database_is_unavailable_and_then_available_again() {
    let base = Base::new().await;
    let watch = base.leased("a").await;
    let new_file = base.directory.path().join("new.db");
    let (lock, other) = (base.foreign(), Connection::open(&new_file).unwrap());
    lock.execute_batch("BEGIN IMMEDIATE").unwrap();
    other.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let began = std::time::Instant::now();
    let (record, add, open) = tokio::join!(
        base.store.record(settled(&watch), Vec::new(), nobody()),
        base.store.add(owned(&["b"]), plain(), NOW),
        Store::open(&new_file),
    );
    let waited = began.elapsed();
    assert!((Duration::from_millis(4_500)..Duration::from_secs(30)).contains(&waited), "{waited:?}");
    assert!(matches!(&record, Err(StoreError::Unavailable(why)) if why.contains("write lock")), "{record:?}");
    assert!(matches!(add, Err(StoreError::Unavailable(_))), "{add:?}");
    assert!(matches!(open.map(drop), Err(StoreError::Unusable { why, .. }) if why.contains("write lock")));
    assert_eq!(base.watch(watch.id).await, watch, "looks do not wait, and nothing was written");
    lock.execute_batch("ROLLBACK").unwrap();
    other.execute_batch("ROLLBACK").unwrap();
    base.store.record(settled(&watch), Vec::new(), nobody()).await.unwrap();
    assert_eq!(base.watch(watch.id).await.state, State::Settled);
    Store::open(&new_file).await.unwrap();
}

#[tokio::test]
async fn an_account_is_noted_as_it_stands_with_what_tells_of_it() {
    let base = Base::new().await;
    let paused = AccountRow {
        name: "default".into(),
        closure: Some("unauthorized".into()),
        closed_at: Some(NOW),
        next_probe_at: Some(NOW + MINUTE),
        last_error: Some("401".into()),
        rate: Some(2.5),
        held_until: Some(NOW + HOUR),
        lost_ms: 500,
    };
    let notice = Notice::AccountPaused { account: "default".into(), reason: "unauthorized", error: "401".into() };
    let told = subscription("ops", "account.paused");
    let telling = Telling { install_id: base.store.install_id(), subscriptions: &[told] };
    let event = Event::of_notice(&notice, [7; 16], NOW, &telling);
    base.store.note_account(paused.clone(), vec![event]).await.unwrap();
    assert_eq!(
        base.ask::<String>("SELECT type FROM events JOIN deliveries ON seq = event_seq WHERE hook = 'ops'"),
        "account.paused"
    );
    let another = AccountRow { name: "another".into(), ..AccountRow::default() };
    base.store.note_account(another, Vec::new()).await.unwrap();
    assert_eq!(base.store.accounts().await.unwrap()[1], paused);
    // Less than before: the wall clock was set back meanwhile.
    let open = AccountRow { name: "default".into(), lost_ms: -499, ..AccountRow::default() };
    base.store.note_account(open.clone(), Vec::new()).await.unwrap();
    assert_eq!(base.store.accounts().await.unwrap()[1], open);
    let half = AccountRow { closed_at: None, ..paused };
    let event = Event::of_notice(&notice, [8; 16], NOW, &telling);
    assert!(matches!(base.store.note_account(half, vec![event]).await, Err(StoreError::Refused(_))));
    assert_eq!(base.ask::<i64>("SELECT count(*) FROM events"), 1, "all or nothing");
}
