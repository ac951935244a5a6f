//! The main job, end to end: an asset is watched, settles, and its hook is told.

use crate::rig::{Daemon, KEY, Place, Reply, Server, executable, is_signed, run, webhook};

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_insert_is_settled_and_told() {
    let (api, receiver) = (Server::api().await, Server::receiver().await);
    let place = Place::new(&api, &webhook(&receiver));
    let daemon = Daemon::start(&place).await;
    let insert = "INSERT INTO watches (asset_id) VALUES ('active_1') ON CONFLICT DO NOTHING";
    place.database().execute(insert, []).unwrap();
    place.until_state("active_1", "settled").await;
    let told = receiver.until(1).await;
    assert!(is_signed(&told[0]));
    assert_eq!(told[0].json()["type"], "asset.active");
    assert_eq!(told[0].json()["data"]["url"], "https://cdn.example/active_1");
    assert_eq!(told[0].json()["data"]["previous_status"], "processing");
    assert!(api.requests().iter().all(|request| request.header("x-api-key") == Some(KEY)));
    assert!(daemon.stop().await.success());
    let shown = run(&place, &["show", "active_1", "--json"]).await.json();
    assert_eq!(shown[0]["deliveries"][0]["state"], "delivered");
    assert_eq!(shown[0]["attempts"].as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_gets_the_same_bytes_as_the_webhook_and_a_clean_environment() {
    let (api, receiver) = (Server::api().await, Server::receiver().await);
    let place = Place::new(&api, "");
    let script = place.path("publish");
    let at = |name: &str| place.path(name).display().to_string();
    let (stdin, environment) = (at("stdin"), at("env"));
    executable(&script, &format!("cat > '{stdin}'; env > '{environment}'"));
    let command = format!("[[hooks]]\nname = \"publish\"\non = [\"active\"]\ncommand = [{:?}]\n", at("publish"));
    place.configure(&api.url(), &format!("{}{command}", webhook(&receiver)));
    let daemon = Daemon::start(&place).await;
    let metadata = r#"{"z": 1.000000000000000000001, "a": "b\"c"}"#;
    assert_eq!(run(&place, &["add", "active_1", "--metadata", metadata]).await.code, 0);
    place.until("SELECT count(*) FROM deliveries WHERE state = 'delivered'", 2).await;
    let told = receiver.until(1).await;
    let stdin = std::fs::read(place.path("stdin")).unwrap();
    assert_eq!(stdin, told[0].body, "the same bytes");
    assert!(String::from_utf8(stdin).unwrap().contains(&format!("\"metadata\":{metadata}")), "handed on untouched");
    let environment = std::fs::read_to_string(place.path("env")).unwrap();
    for line in ["HOOK_ASSET_ID=active_1", "HOOK_STATUS=active", "HOOK_PREVIOUS_STATUS=processing", "HOOK_ATTEMPT=1"] {
        assert!(environment.lines().any(|known| known == line), "{line}: {environment}");
    }
    let names = environment.lines().filter_map(|line| Some(line.split_once('=')?.0));
    // PWD, SHLVL and _ are the shell's own.
    let strange: Vec<&str> = names
        .filter(|name| {
            !name.starts_with("HOOK_") && !["PATH", "LANG", "HOME", "TMPDIR", "PWD", "SHLVL", "_"].contains(name)
        })
        .collect();
    assert!(strange.is_empty(), "{strange:?}");
    assert!(daemon.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hook_is_told_again_under_the_same_id_with_a_new_signature() {
    let api = Server::api().await;
    let asked = std::sync::atomic::AtomicUsize::new(0);
    let receiver = Server::start(move |_| match asked.fetch_add(1, std::sync::atomic::Ordering::SeqCst) {
        0 => Reply::status(500),
        1 => Reply::status(301).with_header("location", "http://127.0.0.1:9/"),
        _ => Reply::status(200),
    })
    .await;
    let place = Place::new(&api, &format!("{}schedule = [\"1s\", \"1s\"]\n", webhook(&receiver)));
    let _daemon = Daemon::start(&place).await;
    run(&place, &["add", "active_1"]).await;
    place.until("SELECT count(*) FROM deliveries WHERE state = 'delivered'", 1).await;
    let told = receiver.requests();
    assert_eq!(told.len(), 3);
    assert!(told.iter().all(|request| is_signed(request) && request.method == "POST"));
    assert!(told.iter().all(|request| request.header("webhook-id") == told[0].header("webhook-id")));
    assert!(told.iter().all(|request| request.body == told[0].body));
    assert_ne!(told[0].header("webhook-signature"), told[2].header("webhook-signature"), "of its own second");
    let outcomes = "SELECT group_concat(outcome || ' ' || code) FROM (SELECT * FROM attempts ORDER BY number)";
    assert_eq!(place.ask::<String>(outcomes).unwrap(), "failed 500,failed 301,delivered 200");
}

#[tokio::test(flavor = "multi_thread")]
async fn hooks_are_told_what_they_asked_for_and_in_order() {
    let api = Server::start(|request| match request.asset() {
        id if id.starts_with("bad") => Reply::status(422),
        id => Reply::asset(id, id.split('_').next().unwrap()),
    })
    .await;
    let hook = |name: &str, on: &str, more: &str| {
        format!("[[hooks]]\nname = \"{name}\"\non = [{on}]\ncommand = [\"/bin/true\"]\n{more}")
    };
    let hooks = [
        hook("active", "\"active\"", ""),
        hook("settled", "\"settled\"", ""),
        hook("abandoned", "\"abandoned\"", ""),
        hook("cancelled", "\"watch.cancelled\"", ""),
        hook("started", "\"processing\", \"cancelled\"", ""),
        hook("batch", "\"settled\"", "batches = [\"b\"]\n"),
    ];
    let place = Place::new(&api, &hooks.concat());
    let _daemon = Daemon::start(&place).await;
    run(&place, &["add", "active_1", "censored_1", "bad_1", "processing_1"]).await;
    run(&place, &["add", "active_2", "--batch", "b"]).await;
    place.until("SELECT count(*) FROM watches WHERE state = 'waiting'", 1).await;
    place.until("SELECT count(*) FROM deliveries WHERE hook = 'started' AND state = 'delivered'", 1).await;
    run(&place, &["cancel", "processing_1"]).await;
    place.until("SELECT count(*) FROM deliveries WHERE state <> 'delivered'", 0).await;
    let told = "SELECT group_concat(hook || ':' || asset_id || ':' || events.type, char(10)) FROM
                    (SELECT * FROM deliveries ORDER BY hook, id) AS deliveries
                    JOIN events ON seq = event_seq JOIN watches ON watches.id = events.watch_id";
    let told: String = place.ask(told).unwrap();
    let mut told: Vec<&str> = told.lines().collect();
    told.sort_unstable();
    let expected = [
        "abandoned:bad_1:watch.abandoned",
        "active:active_1:asset.active",
        "active:active_2:asset.active",
        "batch:active_2:asset.active",
        "cancelled:processing_1:watch.cancelled",
        "settled:active_1:asset.active",
        "settled:active_2:asset.active",
        "settled:censored_1:asset.censored",
        "started:processing_1:asset.processing",
        "started:processing_1:watch.cancelled",
    ];
    assert_eq!(told, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_account_is_polled_with_its_own_key_and_an_unknown_one_is_kept() {
    let api = Server::api().await;
    let place = Place::new(&api, "[accounts.studio]\nkey_file = \"studio-key\"\n");
    std::fs::write(place.path("studio-key"), "studio").unwrap();
    run(&place, &["add", "active_1", "--account", "studio"]).await;
    run(&place, &["add", "active_2", "--account", "elsewhere"]).await;
    let daemon = Daemon::start(&place).await;
    place.until_state("active_1", "settled").await;
    assert!(api.requests().iter().all(|request| request.header("x-api-key") == Some("studio")));
    daemon.until_logged("an account that the configuration does not name").await;
    assert_eq!(place.state("active_2").as_deref(), Some("waiting"));
}

/// What other programs are promised, by programs that are not ours.
#[tokio::test(flavor = "multi_thread")]
async fn other_programs_insert_with_their_own_sqlite() {
    let api = Server::api().await;
    let place = Place::new(&api, "");
    let _daemon = Daemon::start(&place).await;
    let database = place.path("assetwatch.db").display().to_string();
    let sql = |id: &str| format!("INSERT INTO watches (asset_id) VALUES ('{id}') ON CONFLICT DO NOTHING");
    let python = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], timeout=5); c.execute(sys.argv[2]); c.commit()";
    for (program, args, id) in [
        ("sqlite3", vec![database.clone(), format!("PRAGMA busy_timeout = 5000; {}", sql("active_1"))], "active_1"),
        ("python3", vec!["-c".into(), python.into(), database.clone(), sql("active_2")], "active_2"),
    ] {
        match tokio::process::Command::new(program).args(args).output().await {
            Ok(output) => {
                assert!(output.status.success(), "{program}: {output:?}");
                place.until_state(id, "settled").await;
            }
            Err(error) => eprintln!("skipped: {program} cannot be run: {error}"),
        }
    }
}
