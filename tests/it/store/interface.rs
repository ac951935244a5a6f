//! The database as an interface: what other programs may do to it, and what we read of that.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::*;

/// Python's own module, as a program that does what `sqlite3 FILE SQL` does.
const PYTHON: &str = "import sqlite3, sys\n\
    assert sqlite3.sqlite_version_info >= (3, 38)\n\
    connection = sqlite3.connect(sys.argv[1], isolation_level=None)\n\
    for statement in sys.argv[2].split(';'):\n    \
        for row in connection.execute(statement): print('|'.join(str(value) for value in row))";

/// Another program's SQLite, 3.38 or later, as a command that takes a file and SQL: the command line's, or Python's.
fn other_sqlite() -> Option<Vec<&'static str>> {
    let works = |command: &[&str], probe: &[&str]| {
        let mut command = Command::new(command[0]);
        command.args(probe).stderr(Stdio::null());
        command.output().ok().filter(|output| output.status.success())
    };
    let is_new = |output: std::process::Output| {
        let version = String::from_utf8_lossy(&output.stdout).into_owned();
        let minor = version.split('.').nth(1).and_then(|minor| minor.parse::<u32>().ok());
        version.starts_with("3.") && minor.is_some_and(|minor| minor >= 38)
    };
    if works(&["sqlite3"], &["--version"]).is_some_and(is_new) {
        return Some(vec!["sqlite3"]);
    }
    let python = vec!["python3", "-c", PYTHON];
    works(&python, &["-c", PYTHON, ":memory:", "SELECT 1"]).map(|_| python)
}

/// The promise of the design, word for word.
#[tokio::test]
async fn another_program_adds_a_watch_with_a_plain_insert() {
    let Some(program) = other_sqlite() else {
        eprintln!("skipped: neither sqlite3 nor python3 with SQLite 3.38 or later is installed");
        return;
    };
    let base = Base::new().await;
    let run = |sql: &str| {
        let output = Command::new(program[0]).args(&program[1..]).arg(base.store.path()).arg(sql).output().unwrap();
        (output.status.success(), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let insert = "PRAGMA busy_timeout = 5000; INSERT INTO watches (asset_id) VALUES ('ast_1') ON CONFLICT DO NOTHING";
    for _ in 0..2 {
        let (success, _, errors) = run(insert);
        assert!(success, "{errors}");
    }
    let watch = base.watch(1).await;
    let expected = Watch { created_at: watch.created_at, due_at: watch.due_at, ..base.add(&["ast_2"]).await.remove(0) };
    assert_eq!(watch, Watch { id: 1, asset_id: "ast_1".into(), ..expected }, "it is what `add` would have made");
    let age =
        std::time::UNIX_EPOCH.elapsed().unwrap().abs_diff(Duration::from_millis(watch.created_at.as_millis() as u64));
    assert!(age < MINUTE, "created_at is {}", watch.created_at);
    let overdue = watch.due_at.unwrap().as_millis().abs_diff(watch.created_at.as_millis());
    assert!(overdue < 1_000, "due since it was inserted, and not since 1970: {:?}", watch.due_at);
    assert_eq!(base.ask::<i64>("SELECT count(*) FROM watches WHERE asset_id = 'ast_1'"), 1);
    let (_, shown, _) = run("SELECT state, status, url FROM watches WHERE asset_id = 'ast_1'");
    assert!(matches!(shown.trim(), "waiting||" | "waiting|None|None"), "{shown}");
    let (success, _, errors) = run("INSERT INTO watches (asset_id) VALUES ('..')");
    assert!(!success && errors.contains("must not be . or .."), "{errors}");
    let claimed = base.claim(terms(&[("default", 9)])).await;
    let mut due = asset_ids(&claimed[0].rows);
    // The other program has the time of day, and the claim that of these tests: either may come first.
    due.sort_unstable();
    assert_eq!(due, ["ast_1", "ast_2"], "and it is due");
}

#[tokio::test]
async fn a_plain_insert_of_a_settled_asset_is_a_new_watch() {
    let base = Base::new().await;
    let settled = base.settled("a", &["cms"]).await;
    base.execute("INSERT INTO watches (asset_id) VALUES ('a') ON CONFLICT DO NOTHING");
    assert_eq!(base.ask::<i64>("SELECT max(id) FROM watches"), settled.id + 1);
    assert_eq!(base.deliveries(settled.id).await.len(), 1, "the first one is as it was");
}

#[tokio::test]
async fn the_table_refuses_what_makes_no_sense() {
    let base = Base::new().await;
    base.add(&["a"]).await;
    let connection = base.foreign();
    for sql in [
        "INSERT INTO watches (asset_id) VALUES (CAST(x'ff' AS TEXT))",
        "INSERT INTO watches (asset_id) VALUES (x'61')",
        "INSERT INTO watches (asset_id) VALUES (NULL)",
        "INSERT INTO watches (asset_id, state) VALUES ('b', 'pending')",
        "INSERT INTO watches (asset_id, due_at) VALUES ('b', 'soon')",
        "INSERT INTO watches (asset_id, due_at) VALUES ('b', NULL)",
        "INSERT INTO watches (asset_id, lease_owner) VALUES ('b', 'me')",
        "INSERT INTO watches (asset_id, reason) VALUES ('b', 'missing')",
        "INSERT INTO watches (asset_id, metadata) VALUES ('b', 'no json')",
        "INSERT INTO watches (asset_id) VALUES ('a')",
        "UPDATE watches SET state = 'settled'",
        "UPDATE watches SET state = 'settled', due_at = NULL, settled_at = 1",
        "UPDATE watches SET due_at = NULL",
    ] {
        let error = connection.execute(sql, []).expect_err(sql);
        assert_eq!(error.sqlite_error_code(), Some(rusqlite::ErrorCode::ConstraintViolation), "{sql}: {error}");
    }
}

/// SQLite does not check that text is UTF-8, and any number is an instant: no row may keep the others from being read.
#[tokio::test]
async fn whatever_others_wrote_can_be_read() {
    let base = Base::new().await;
    base.add(&["a"]).await;
    base.execute(
        "UPDATE watches SET status = CAST(x'ff41' AS TEXT), url = CAST(x'c328' AS TEXT), width = -9223372036854775808,
             polls = 9223372036854775806, generation = -5, failures = -1, waiting_streak = 99999999999,
             created_at = -1, patience = 9223372036854775807, batch = CAST(x'ff' AS TEXT), lost_base = -1",
    );
    let watch = base.watch(1).await;
    assert_eq!((watch.asset.status.as_deref(), watch.asset.width), (Some("\u{fffd}A"), Some(i64::MIN)));
    assert_eq!((watch.streaks.failures, watch.streaks.waiting), (0, u32::MAX));
    let claimed = base.claim(terms(&[("default", 1)])).await.remove(0).rows.remove(0);
    assert_eq!(claimed.generation, -4);
    base.store.record(settled(&claimed), vec![event(&claimed, "asset.active", &["cms"])], nobody()).await.unwrap();
    base.execute("UPDATE events SET body = x'ff'; UPDATE deliveries SET last_error = CAST(x'ff' AS TEXT)");
    assert_eq!(base.store.history(1).await.unwrap().events[0].body, "\u{fffd}");
    assert_eq!(base.parcels(terms(&[("cms", 1)])).await[0].body, [0xff], "what is sent is what stands there");
}

#[tokio::test]
async fn watches_are_listed_newest_first_by_any_filter() {
    let base = Base::new().await;
    base.settled("a", &[]).await;
    let of_batch = AddOptions { batch: Some("b1".into()), ..plain() };
    let of_studio = AddOptions { account: "studio".into(), ..plain() };
    for (asset_id, options) in [("b", of_batch), ("c", of_studio), ("d", plain())] {
        base.store.add(owned(&[asset_id]), options, NOW).await.unwrap();
    }
    let none = Filter::default;
    for (filter, expected) in [
        (none(), vec!["d", "c", "b", "a"]),
        (Filter { ids: Some(vec![3, 1, 77]), ..none() }, vec!["c", "a"]),
        (Filter { ids: Some(Vec::new()), ..none() }, vec![]),
        (Filter { asset_id: Some("b".into()), ..none() }, vec!["b"]),
        (Filter { state: Some(State::Settled), ..none() }, vec!["a"]),
        (Filter { state: Some(State::Waiting), account: Some("default".into()), ..none() }, vec!["d", "b"]),
        (Filter { status: Some("active".into()), ..none() }, vec!["a"]),
        (Filter { batch: Some("b1".into()), ..none() }, vec!["b"]),
        (Filter { before: Some(3), ..none() }, vec!["b", "a"]),
        (Filter { before: Some(4), limit: Some(2), ..none() }, vec!["c", "b"]),
        (Filter { asset_id: Some("' OR 1 --".into()), ..none() }, vec![]),
    ] {
        let watches = base.store.watches(filter.clone()).await.unwrap();
        assert_eq!(asset_ids(&watches), expected, "{filter:?}");
    }
    assert_eq!(base.store.waiting().await.unwrap(), 3);
}

#[tokio::test]
async fn accounts_for_which_watches_wait() {
    let base = Base::new().await;
    assert_eq!(base.store.waiting_accounts().await.unwrap(), [""; 0]);
    base.settled("ended", &[]).await;
    assert_eq!(base.store.waiting_accounts().await.unwrap(), [""; 0]);
    base.execute(
        "INSERT INTO watches (asset_id, account) VALUES ('1', 'studio'), ('2', 'studio'), ('3', 'Z'), ('4', 'a'), ('5', 'é')",
    );
    assert_eq!(base.store.waiting_accounts().await.unwrap(), ["Z", "a", "studio", "é"]);
}

#[tokio::test]
async fn events_are_read_in_the_order_of_their_commits() {
    let base = Base::new().await;
    for asset in ["a", "b", "c"] {
        base.settled(asset, &[]).await;
    }
    base.execute("UPDATE events SET created_at = created_at + 5000 WHERE seq = 2");
    let seqs = async |after, since, limit| -> Vec<i64> {
        base.store.events(after, since, limit, usize::MAX).await.unwrap().0.iter().map(|event| event.seq).collect()
    };
    assert_eq!(seqs(0, Timestamp::default(), 99).await, [1, 2, 3]);
    assert_eq!(seqs(1, Timestamp::default(), 99).await, [2, 3], "after this one");
    assert_eq!(seqs(0, Timestamp::default(), 2).await, [1, 2]);
    assert_eq!(seqs(0, NOW + SECOND, 99).await, [2], "since then");

    base.execute("UPDATE events SET body = CAST('\"' || printf('%.*c', 998, 'x') || '\"' AS BLOB)");
    for (after, limit, bytes, found) in [
        (0, 99, 9_999, (vec![1, 2, 3], false)),
        (0, 2, 9_999, (vec![1, 2], true)),
        (0, 99, 1_001, (vec![1, 2], true)),
        (0, 99, 1, (vec![1], true)),
        (2, 99, 1_001, (vec![3], false)),
        (3, 99, 1, (vec![], false)),
    ] {
        let (events, more) = base.store.events(after, Timestamp::default(), limit, bytes).await.unwrap();
        assert_eq!((events.iter().map(|event| event.seq).collect(), more), found, "{after} {limit} {bytes}");
    }
}

#[tokio::test]
async fn the_history_of_a_watch_is_its_own() {
    let base = Base::new().await;
    let (a, b) = (base.settled("a", &["cms", "publish"]).await, base.settled("b", &["cms"]).await);
    base.parcels(terms(&[("cms", 9)])).await;
    let counts = async |id| {
        let history = base.store.history(id).await.unwrap();
        (history.events.len(), history.deliveries.len(), history.attempts.len())
    };
    assert_eq!((counts(a.id).await, counts(b.id).await, counts(99).await), ((1, 2, 1), (1, 1, 1), (0, 0, 0)));
}

#[tokio::test]
async fn the_database_can_be_copied_while_it_is_in_use() {
    let base = Base::new().await;
    base.settled("a", &["cms"]).await;
    let copy: PathBuf = base.directory.path().join("copy.db");
    base.foreign().execute("VACUUM INTO ?1", [copy.to_str()]).unwrap();
    let restored = Store::open(&copy).await.unwrap();
    assert_eq!(restored.install_id(), base.store.install_id());
    assert_eq!(
        restored.watches(Filter::default()).await.unwrap(),
        base.store.watches(Filter::default()).await.unwrap()
    );
}
