//! Who may ask, and how much one caller can take up.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use reqwest::Method;
use rustix::process::Signal;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::slow_api;
use crate::rig::{Caller, Daemon, Place, answer, run, served};

const TOKEN: &str = "a-token-of-32-characters-or-so--";

#[tokio::test]
async fn a_page_of_another_site_can_neither_add_nor_read() {
    let api = slow_api().await;
    let (place, daemon, caller) = served(&api, "hosts = [\"Assets.example\"]\n").await;
    let own = caller.base.clone();
    let port = own.rsplit(':').next().unwrap();
    let get = || caller.request(Method::GET, "/v1/watches");
    let rebound = format!("evil.example:{port}");
    for (what, request, status) in [
        ("a program", get(), 200),
        ("our own page", get().header("origin", &own).header("sec-fetch-site", "same-origin"), 200),
        ("a name of ours", get().header("host", "assets.example"), 200),
        (
            "a name of ours, by our page",
            get().header("host", "assets.example").header("origin", "https://assets.example"),
            200,
        ),
        ("localhost", get().header("host", format!("localhost:{port}")), 200),
        ("typed into the address bar", get().header("sec-fetch-site", "none"), 200),
        ("a rebound name", get().header("host", &rebound), 403),
        (
            "a rebound name with its origin",
            get().header("host", &rebound).header("origin", format!("http://{rebound}")),
            403,
        ),
        ("a name that begins like ours", get().header("host", "localhost.evil.example"), 403),
        ("a user before the host", get().header("host", "x@127.0.0.1"), 403),
        ("another site", get().header("origin", "https://evil.example"), 403),
        ("another port", get().header("origin", "http://127.0.0.1:1"), 403),
        ("a sandboxed page", get().header("origin", "null"), 403),
        ("an image on another site", get().header("sec-fetch-site", "cross-site"), 403),
        ("a page on a sister site", get().header("sec-fetch-site", "same-site"), 403),
        (
            "a link on another site",
            get().header("sec-fetch-site", "cross-site").header("sec-fetch-mode", "navigate"),
            403,
        ),
        ("a preflight", caller.request(Method::OPTIONS, "/v1/watches").header("origin", "https://evil.example"), 403),
    ] {
        let answer = answer(request).await;
        assert_eq!(answer.status, status, "{what}: {answer:?}");
        assert!(!answer.headers.contains_key("access-control-allow-origin"), "{what}");
        assert_eq!(answer.headers["x-content-type-options"], "nosniff");
    }
    // A form of another site needs no preflight, so its content types must not do.
    for kind in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"] {
        let form =
            caller.request(Method::POST, "/v1/watches").header("content-type", kind).body("{\"asset_id\": \"x\"}");
        assert_eq!(answer(form).await.status, 415, "{kind}");
    }
    let post = caller.request(Method::POST, "/v1/watches").header("content-type", "application/json");
    let evil = post.header("origin", "https://evil.example").body("{\"asset_id\": \"x\"}");
    assert_eq!(answer(evil).await.status, 403);
    assert_eq!(place.ask::<i64>("SELECT count(*) FROM watches"), Some(0));
    assert!(daemon.stop().await.success());
}

#[tokio::test]
async fn a_request_without_one_host_is_refused() {
    let api = slow_api().await;
    let (_place, daemon, caller) = served(&api, "").await;
    for (what, head) in [
        ("none", "GET /v1/watches HTTP/1.1\r\n\r\n"),
        ("two", "GET /v1/watches HTTP/1.1\r\nhost: 127.0.0.1\r\nhost: evil.example\r\n\r\n"),
        ("an old protocol", "GET /v1/watches HTTP/1.0\r\n\r\n"),
    ] {
        let answer = raw(&caller, head).await;
        assert!(answer.starts_with("HTTP/1.1 403") || answer.starts_with("HTTP/1.0 403"), "{what}: {answer}");
    }
    assert!(daemon.stop().await.success());
}

#[tokio::test]
async fn a_token_is_asked_for_and_changes_with_a_reload() {
    let api = slow_api().await;
    let place = Place::new(&api, "[http]\nlisten = \"127.0.0.1:0\"\ntoken_file = \"token\"\n");
    std::fs::write(place.path("token"), format!("{TOKEN}\n")).unwrap();
    let daemon = Daemon::start(&place).await;
    let caller = Caller::of(&daemon).await;
    let with = |token: &str| caller.request(Method::GET, "/v1/watches").header("authorization", token);
    let bearer = format!("Bearer {TOKEN}");
    for (token, status) in [
        (bearer.as_str(), 200),
        (&format!("bearer {TOKEN}"), 200),
        (TOKEN, 401),
        ("Bearer ", 401),
        ("Bearer a-token-of-32-characters-or-so-!", 401),
        (&format!("{bearer}x"), 401),
        (&format!("Basic {TOKEN}"), 401),
    ] {
        assert_eq!(answer(with(token)).await.status, status, "{token}");
    }
    let none = caller.get("/v1/watches").await;
    assert!(none.status == 401 && none.headers.contains_key("www-authenticate"), "{none:?}");
    assert_eq!(caller.post("/v1/watches", json!({"asset_id": "x"})).await.status, 401);
    for public in ["/healthz", "/readyz", "/openapi.json"] {
        assert_eq!(caller.get(public).await.status, 200, "{public}");
    }
    // A stream that is open stays; the next request has to show the new one.
    std::fs::write(place.path("token"), "another-token-of-many-characters\n").unwrap();
    daemon.signal(Signal::HUP);
    daemon.until_logged("reloaded").await;
    assert_eq!(answer(with(&bearer)).await.status, 401);
    assert_eq!(answer(with("Bearer another-token-of-many-characters")).await.status, 200);
    // One that could be guessed is refused, and the old one stays.
    std::fs::write(place.path("token"), "short\n").unwrap();
    daemon.signal(Signal::HUP);
    daemon.until_logged("the token has 5 characters").await;
    assert_eq!(answer(with("Bearer another-token-of-many-characters")).await.status, 200);
    assert!(!daemon.log().contains(TOKEN) && !daemon.log().contains("another-token"));
    assert!(daemon.stop().await.success());
}

#[tokio::test]
async fn where_others_could_ask_a_token_is_needed_at_start() {
    let api = slow_api().await;
    for listen in ["0.0.0.0:0", "[::]:0", "192.0.2.1:8787"] {
        let place = Place::new(&api, &format!("[http]\nlisten = \"{listen}\"\n"));
        let refused = run(&place, &["run"]).await;
        assert_eq!(refused.code, 78, "{listen}: {refused:?}");
        assert!(refused.err.contains("http.token_file"), "{refused:?}");
    }
    let place = Place::new(&api, "[http]\nlisten = \"0.0.0.0:0\"\ntoken_file = \"token\"\n");
    std::fs::write(place.path("token"), "short").unwrap();
    let short = run(&place, &["run"]).await;
    assert!(short.code == 78 && short.err.contains("must have 16 at least"), "{short:?}");
    assert!(!short.err.contains("short"), "{short:?}");
    std::fs::write(place.path("token"), TOKEN).unwrap();
    let daemon = Daemon::start(&place).await;
    assert!(daemon.stop().await.success());
}

#[tokio::test]
async fn an_address_that_is_taken_is_an_error_and_a_left_socket_is_not() {
    let api = slow_api().await;
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let place = Place::new(&api, &format!("[http]\nlisten = \"{}\"\n", taken.local_addr().unwrap()));
    let refused = run(&place, &["run"]).await;
    assert!(refused.code == 1 && refused.err.contains("somebody else listens there"), "{refused:?}");

    let place = Place::new(&api, "");
    let socket = place.path("control.sock");
    place.configure(&api.url(), &format!("[http]\nlisten = \"unix:{}\"\n", socket.display()));
    let daemon = Daemon::start(&place).await;
    let second = run(&place, &["run"]).await;
    assert!(second.code == 1 && second.err.contains("somebody else listens there"), "{second:?}");
    let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    daemon.kill().await;
    assert!(socket.exists(), "a killed daemon leaves it behind");

    let daemon = Daemon::start(&place).await;
    assert_eq!(Caller::at_socket(&socket).get("/v1/watches").await.status, 200);
    assert!(daemon.stop().await.success());
    assert!(!socket.exists(), "a stopped one takes it along");
}

#[tokio::test]
async fn what_is_no_socket_is_named_and_left_alone() {
    let api = slow_api().await;
    let place = Place::new(&api, "");
    std::fs::write(place.path("notes"), "to be kept").unwrap();
    std::fs::create_dir(place.path("directory")).unwrap();
    std::os::unix::fs::symlink(place.path("nowhere"), place.path("link")).unwrap();
    for (name, kind) in [("notes", "a plain file"), ("directory", "a directory"), ("link", "a symbolic link")] {
        let path = place.path(name).display().to_string();
        place.configure(&api.url(), &format!("[http]\nlisten = \"unix:{path}\"\n"));
        let refused = run(&place, &["run"]).await;
        let said = format!("there is {kind} and no socket, which is left alone; move it away, or choose another path");
        assert!(refused.code == 1 && refused.err.contains(&said), "{refused:?}");
    }
    assert_eq!(std::fs::read_to_string(place.path("notes")).unwrap(), "to be kept");
    assert!(place.path("directory").is_dir() && place.path("link").is_symlink());
}

/// `ssh -L 8787:/run/….sock` brings a socket to a port of the machine with the browser, where a name of another site can be
/// made to lead to it.
#[tokio::test]
async fn a_socket_is_no_way_around_the_host() {
    let api = slow_api().await;
    let place = Place::new(&api, "");
    let socket = place.path("control.sock");
    let listen = format!("[http]\nlisten = \"unix:{}\"\nhosts = [\"assets.example\"]\n", socket.display());
    place.configure(&api.url(), &listen);
    let daemon = Daemon::start(&place).await;
    let caller = Caller::at_socket(&socket);
    let get = |host: &str| caller.request(Method::GET, "/v1/watches").header("host", host);
    for (what, request, status) in [
        ("curl --unix-socket", get("localhost"), 200),
        ("the tunnel", get("127.0.0.1:8787"), 200),
        ("the tunnel, by the page", get("localhost:8787").header("origin", "http://localhost:8787"), 200),
        ("a name of ours", get("assets.example"), 200),
        ("a rebound name", get("evil.example:8787"), 403),
        ("its page", get("evil.example:8787").header("origin", "http://evil.example:8787"), 403),
        ("another site", get("localhost").header("origin", "https://evil.example"), 403),
    ] {
        let answer = answer(request).await;
        assert_eq!(answer.status, status, "{what}: {answer:?}");
    }
    assert!(daemon.stop().await.success());
}

#[tokio::test]
async fn slow_and_endless_heads_are_not_waited_for() {
    let api = slow_api().await;
    let (_place, daemon, caller) = served(&api, "").await;
    let address = caller.base.strip_prefix("http://").unwrap().to_owned();
    // Half of a head, and then nothing: the server hangs up.
    let mut half = TcpStream::connect(&address).await.unwrap();
    half.write_all(b"GET /v1/watches HTTP/1.1\r\nhost: 127.0.0.1\r\nx-").await.unwrap();
    // And a connection on which nothing is asked.
    let mut idle = TcpStream::connect(&address).await.unwrap();
    let endless =
        raw(&caller, &format!("GET / HTTP/1.1\r\nhost: 127.0.0.1\r\nx: {}\r\n\r\n", "y".repeat(200_000))).await;
    assert!(endless.is_empty() || endless.starts_with("HTTP/1.1 431"), "{endless}");
    for stream in [&mut half, &mut idle] {
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(Duration::from_secs(60), stream.read_to_end(&mut rest)).await;
        assert!(ended.is_ok(), "the server hangs up");
    }
    assert_eq!(caller.get("/healthz").await.status, 200);
    assert!(daemon.stop().await.success());
}

/// What comes back until the server hangs up, or the first of it.
async fn raw(caller: &Caller, head: &str) -> String {
    let mut stream = TcpStream::connect(caller.base.strip_prefix("http://").unwrap()).await.unwrap();
    // The server may hang up before it has read all.
    let _ = stream.write_all(head.as_bytes()).await;
    let mut buffer = vec![0; 4_096];
    let read = tokio::time::timeout(Duration::from_secs(60), stream.read(&mut buffer)).await.expect("an answer");
    String::from_utf8_lossy(&buffer[..read.unwrap_or(0)]).into_owned()
}
