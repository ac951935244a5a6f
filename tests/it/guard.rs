//! Callbacks through the real binary: what they must not reach, and that nothing makes them take a detour.

use crate::rig::{Daemon, Place, Server, is_signed, run, run_with};

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
    let proxies = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"];
    let waited = run_with(&place, &["wait", "active_1"], "", &proxies.map(|name| (name, url.as_str()))).await;
    assert_eq!(waited.code, 0, "{waited:?}");
    receiver.until(1).await;
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
