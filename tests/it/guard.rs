//! Callbacks through the real binary: what they must not reach, and that nothing makes them take a detour.

use crate::rig::{Daemon, Place, Reply, Server, is_signed, run, run_with};

#[tokio::test(flavor = "multi_thread")]
async fn a_callback_is_taken_or_refused_where_it_is_typed() {
    let place = Place::new(&Server::api().await, "");
    let long = format!("https://cms.example/{}", "x".repeat(2_048));
    for (callback, says) in [
        ("ftp://cms.example/", "http or https URL"),
        ("cms.example", "http or https URL"),
        ("https://cms.example/\u{7}", "no control characters"),
        ("https://user:pass@cms.example/", "a user or a password"),
        (&long, "at most 2048 bytes"),
    ] {
        let added = run(&place, &["add", "a", "--callback", callback]).await;
        assert_eq!(added.code, 2, "{added:?}");
        assert!(added.err.contains(says), "{}", added.err);
    }
    // Where it leads is judged when it is called.
    assert_eq!(run(&place, &["add", "a", "--callback", "http://127.0.0.1/x?token=7"]).await.code, 0);
    assert_eq!(place.ask::<String>("SELECT callback_url FROM watches").unwrap(), "http://127.0.0.1/x?token=7");
    let other = run(&place, &["add", "a", "--callback", "https://cms.example/"]).await;
    assert!(other.code == 1 && other.err.contains("another callback_url"), "{other:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn check_says_what_callbacks_may_reach() {
    let api = Server::api().await;
    for (more, says) in [
        ("secret_file = \"secret\"", "ok   callbacks            signed; they reach public addresses, by https"),
        (
            "allow_nets = [\"10.0.0.0/8\"]\nallow_http = true",
            "note callbacks            unsigned: add `secret_file`, so that receivers can verify them; \
             they reach public addresses and 10.0.0.0/8, by https and plain http",
        ),
        ("secret_file = \"gone\"", "BAD  callbacks            [callbacks]: the secret file "),
    ] {
        let place = Place::new(&api, &format!("[callbacks]\n{more}\n"));
        let checked = run_with(&place, &["check"], "", &[]).await;
        assert!(checked.out.lines().any(|line| line.starts_with(says)), "{}", checked.out);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_proxy_of_the_environment_is_used() {
    let (api, receiver, proxy) = (Server::api().await, Server::receiver().await, Server::receiver().await);
    let place = Place::new(&api, &crate::rig::webhook(&receiver));
    let url = proxy.url();
    // A callback, too; the place opens loopback and plain http for it.
    place.configure(
        &api.url(),
        &format!("{}[callbacks]\nallow_nets = [\"127.0.0.0/8\"]\nallow_http = true\n", crate::rig::webhook(&receiver)),
    );
    let callback = format!("{}/back", receiver.url());
    assert_eq!(run(&place, &["add", "active_1", "--callback", &callback]).await.code, 0);
    let proxies = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"];
    let waited = run_with(&place, &["wait", "active_1"], "", &proxies.map(|name| (name, url.as_str()))).await;
    assert_eq!(waited.code, 0, "{waited:?}");
    let told = receiver.until(2).await;
    assert!(told.iter().any(|request| request.path == "/back"), "{told:?}");
    assert_eq!(proxy.count(), 0, "the proxy was asked");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_callback_is_delivered_to_an_opened_net_and_held_without_it() {
    let (api, receiver) = (Server::api().await, Server::receiver().await);
    let place = Place::new(&api, "");
    let callback = format!("{}/done?token=hunter2hunter2", receiver.url());
    let daemon = Daemon::start(&place).await;
    assert_eq!(run(&place, &["add", "active_1", "--callback", &callback]).await.code, 0);
    place.until("SELECT count(*) FROM deliveries WHERE state = 'held'", 1).await;
    let error: String = place.ask("SELECT last_error FROM deliveries").unwrap();
    assert!(error.contains("allow_http = true") && !error.contains("hunter2"), "{error}");
    assert!(daemon.stop().await.success());
    for (more, state, says) in [
        ("allow_http = true", "held", "allow_nets = [\"127.0.0.1/32\"]"),
        ("allow_http = true\nallow_nets = [\"127.0.0.0/8\"]\nsecret_file = \"secret\"", "delivered", ""),
    ] {
        place.configure(&api.url(), &format!("[callbacks]\n{more}\n"));
        let daemon = Daemon::start(&place).await;
        let what = format!(
            "SELECT count(*) FROM deliveries WHERE state = '{state}' AND coalesce(last_error, '') LIKE '%{says}%'"
        );
        place.until(&what, 1).await;
        assert!(!daemon.log().contains("hunter2"), "{}", daemon.log());
        assert!(daemon.stop().await.success());
    }
    let told = receiver.until(1).await;
    assert_eq!(told.len(), 1);
    assert!(is_signed(&told[0]) && told[0].path == "/done?token=hunter2hunter2");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_url_that_is_refused_is_not_repeated() {
    let place = Place::new(&Server::api().await, "");
    let added = run(&place, &["add", "a", "--callback", "https://user:hunter2hunter2@h/?token=s3cr3ts3cr3t"]).await;
    assert!(added.code == 2 && !added.err.contains("hunter2") && !added.err.contains("s3cr3t"), "{added:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn callbacks_of_many_origins_share_what_may_be_under_way() {
    let api = Server::start(|request| Reply::asset(request.asset(), "active")).await;
    // On every address, and it answers nobody.
    let silent = tokio::net::TcpListener::bind("0.0.0.0:0").await.unwrap();
    let port = silent.local_addr().unwrap().port();
    let more = "[callbacks]\nallow_nets = [\"127.0.0.0/8\"]\nallow_http = true\n";
    let place = Place::new(&api, more);
    run(&place, &["list"]).await;
    // The whole of 127/8 is this machine's, so each address is an origin of its own.
    let sql = format!(
        "WITH RECURSIVE number (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < 150)
         INSERT INTO watches (asset_id, callback_url) SELECT 'ast_' || n, 'http://127.0.' || (n / 100) || '.' || (n % 100 + 1) || ':{port}/'
         FROM number"
    );
    place.database().execute_batch(&sql).unwrap();
    let _daemon = Daemon::start(&place).await;
    place.until("SELECT count(*) FROM deliveries WHERE attempts = 0 OR attempts = 1", 150).await;
    place.until("SELECT count(*) FROM deliveries WHERE lease_until IS NOT NULL", 64).await;
    let under_way: i64 = place.ask("SELECT count(*) FROM attempts WHERE outcome IS NULL").unwrap();
    assert_eq!(under_way, 64, "descriptors are for everybody");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lone_wait_makes_the_first_attempt_of_every_callback() {
    let api = Server::start(|request| Reply::asset(request.asset(), "active")).await;
    let receiver = Server::start(|_| Reply::status(204).later(std::time::Duration::from_millis(300))).await;
    let place = Place::new(&api, "[callbacks]\nallow_nets = [\"127.0.0.0/8\"]\nallow_http = true\n");
    let ids: Vec<String> = (0..12).map(|n| format!("ast_{n}")).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    let callback = format!("{}/back", receiver.url());
    assert_eq!(run(&place, &[&["add", "--callback", &callback][..], &ids].concat()).await.code, 0);
    assert_eq!(run(&place, &[&["wait"][..], &ids].concat()).await.code, 0);
    assert_eq!(place.ask::<i64>("SELECT count(*) FROM deliveries WHERE state = 'delivered'"), Some(12));
}
