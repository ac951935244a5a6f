//! Accounts that the configuration does not name: nothing polls for them, and nobody waits for them unawares.

use crate::rig::{Daemon, Place, Server, run};

/// Shorter than the test may take, and never reached unless something waits in vain.
const PATIENCE: [&str; 2] = ["--timeout", "20s"];

fn wait<'a>(args: &[&'a str]) -> Vec<&'a str> {
    [&["wait"], args, &PATIENCE[..]].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lone_wait_for_an_unknown_account_ends_and_adds_nothing() {
    let api = Server::api().await;
    let place = Place::new(&api, "");
    let waited = run(&place, &wait(&["active_1", "--account", "studo"])).await;
    assert_eq!((waited.code, waited.out.as_str()), (78, ""), "{waited:?}");
    let said = "the configuration names no account \"studo\", and no daemon is running: nothing polls for it; \
        add its table `[accounts.studo]`, or name another account";
    assert!(waited.err.contains(said), "{}", waited.err);
    assert_eq!(place.ask::<i64>("SELECT count(*) FROM watches"), Some(0));
    // What has ended needs nobody to poll it.
    let database = place.database();
    let known = "INSERT INTO watches (asset_id, account, state, status, due_at, settled_at)
        VALUES ('old_1', 'studo', 'settled', 'active', NULL, 1)";
    database.execute(known, []).unwrap();
    let waited = run(&place, &wait(&["old_1", "--account", "studo", "--output", "status"])).await;
    assert_eq!((waited.code, waited.out.as_str()), (0, "active\n"), "{waited:?}");
    // What was cancelled would be watched anew.
    run(&place, &["add", "ast_1", "--account", "studo"]).await;
    run(&place, &["cancel", "ast_1"]).await;
    assert_eq!(run(&place, &wait(&["ast_1", "--account", "studo"])).await.code, 78);
    assert_eq!(place.state("ast_1").as_deref(), Some("cancelled"));
    assert_eq!(place.ask::<i64>("SELECT count(*) FROM watches WHERE state = 'waiting'"), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lone_wait_ends_when_nothing_is_left_that_is_polled() {
    let api = Server::api().await;
    let place = Place::new(&api, "");
    run(&place, &["add", "--batch", "b", "active_1"]).await;
    run(&place, &["add", "--batch", "b", "--account", "gone", "active_2"]).await;
    let waited = run(&place, &wait(&["--batch", "b", "--output", "status"])).await;
    assert_eq!((waited.code, waited.out.as_str()), (78, "active\nwaiting\n"), "what can end does: {waited:?}");
    let said = "account \"gone\"";
    assert_eq!(waited.err.matches(said).count(), 2, "first said, and then the reason: {}", waited.err);
    assert_eq!(run(&place, &wait(&["--batch", "b", "--any", "-q"])).await.code, 0, "one is enough");
    let only = run(&place, &wait(&["active_2", "--account", "gone"])).await;
    assert_eq!((only.code, only.out.as_str()), (78, "active_2 waiting\n"), "it is known, and waits: {only:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn beside_a_daemon_an_unknown_account_is_only_said() {
    let api = Server::api().await;
    let place = Place::new(&api, "[accounts.studio]\nkey_file = \"key\"\n");
    let _daemon = Daemon::start(&place).await;
    place.until("SELECT count(*) FROM daemons", 1).await;
    place.configure(&api.url(), "");
    let waited = run(&place, &wait(&["active_1", "--account", "studio", "--output", "status"])).await;
    assert_eq!((waited.code, waited.out.as_str()), (0, "active\n"), "{waited:?}");
    assert!(waited.err.contains("names no account \"studio\""), "{}", waited.err);
    run(&place, &["add", "--batch", "b", "--account", "studio", "processing_1"]).await;
    let waited = run(&place, &["wait", "--batch", "b", "--timeout", "1s"]).await;
    assert_eq!(waited.code, 124, "{waited:?}");
    assert_eq!(waited.err.matches("names no account \"studio\"").count(), 1, "once: {}", waited.err);
}
