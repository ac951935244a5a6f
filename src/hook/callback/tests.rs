use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::hook::tests::{BODY, now, parcel};

const SECRET: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";

/// A resolver that first says what is allowed, and from then on an address that is not.
#[derive(Clone, Default)]
struct Rebinding(Arc<AtomicUsize>);

impl Resolve for Rebinding {
    fn resolve(&self, _name: Name) -> Resolving {
        let last = if self.0.fetch_add(1, Ordering::SeqCst) == 0 { 2 } else { 1 };
        let address = SocketAddr::from(([127, 0, 0, last], 0));
        Box::pin(async move { Ok(Box::new(std::iter::once(address)) as Addrs) })
    }
}

fn allowing(nets: &[&str], secrets: Option<config::KeySource>) -> config::Callbacks {
    let allow_nets = nets.iter().map(|net| net.parse().unwrap()).collect();
    config::Callbacks { secrets, allow_nets, allow_http: true }
}

async fn call(callbacks: &Callbacks, url: &str) -> Outcome {
    let parcel = Parcel { callback_url: Some(url.into()), ..parcel(BODY) };
    callbacks.perform(&parcel, now(), std::future::pending()).await.outcome
}

async fn blocked(callbacks: &Callbacks, url: &str) -> String {
    match call(callbacks, url).await {
        Outcome::Blocked { error } => error,
        other => panic!("{url}: {other:?}"),
    }
}

#[tokio::test]
async fn a_server_on_this_machine_sees_no_connection() {
    for bound in ["0.0.0.0:0", "[::]:0"] {
        // A machine may be without IPv6.
        let Ok(listener) = TcpListener::bind(bound).await else { continue };
        let port = listener.local_addr().unwrap().port();
        let callbacks = Callbacks::new(Some(&allowing(&[], None)), |_| None).unwrap();
        for host in [
            "localhost",
            "localhost.",
            "127.0.0.1",
            "127.1",
            "2130706433",
            "0x7f.1",
            "0",
            "[::1]",
            "[::]",
            "[::ffff:127.0.0.1]",
            "[::ffff:7f00:1]",
            "[64:ff9b::7f00:1]",
            "[::7f00:1]",
        ] {
            let error = blocked(&callbacks, &format!("http://{host}:{port}/hunter2")).await;
            assert!(error.contains("allow_nets = [") && !error.contains("hunter2"), "{host}: {error}");
        }
        for interface in if_addrs::get_if_addrs().unwrap() {
            let at = SocketAddr::new(interface.ip(), port);
            blocked(&callbacks, &format!("http://{at}/")).await;
        }
        let seen = tokio::time::timeout(Duration::from_millis(50), listener.accept()).await;
        assert!(seen.is_err(), "{seen:?}");
    }
}

#[tokio::test]
async fn a_name_that_changes_its_meaning_is_blocked() {
    let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
    let url = format!("http://rebinding.example:{}/", listener.local_addr().unwrap().port());
    let receiver = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let called = stream.local_addr().unwrap().ip();
        let mut request = Vec::new();
        while !request.ends_with(BODY.as_bytes()) {
            assert_ne!(stream.read_buf(&mut request).await.unwrap(), 0);
        }
        stream.write_all(b"HTTP/1.1 503 Later\r\nconnection: close\r\n\r\n").await.unwrap();
        drop(stream);
        (called, listener)
    });
    let rebinding = Rebinding::default();
    let resolver = rebinding.clone();
    let guard = move |admission| Guard::of_callbacks_over(admission, resolver.clone());
    let callbacks = Callbacks::guarded(Some(&allowing(&["127.0.0.2/32"], None)), |_| None, guard).unwrap();
    let Outcome::Failed { .. } = call(&callbacks, &url).await else { panic!() };
    let (called, listener) = receiver.await.unwrap();
    assert_eq!((called.to_string().as_str(), rebinding.0.load(Ordering::SeqCst)), ("127.0.0.2", 1));
    let error = blocked(&callbacks, &url).await;
    assert!(error.starts_with("the callback's host is 127.0.0.1, which is"), "{error}");
    assert_eq!(rebinding.0.load(Ordering::SeqCst), 2, "the name is looked up once for each attempt");
    assert!(tokio::time::timeout(Duration::from_millis(50), listener.accept()).await.is_err());
}

#[tokio::test]
async fn an_opened_net_is_called_with_a_signature_and_no_redirect_is_followed() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let receiver = tokio::spawn(async move {
        let mut requests = Vec::new();
        for head in ["HTTP/1.1 302 Found\r\nlocation: http://127.0.0.2/", "HTTP/1.1 204 No Content"] {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(BODY.as_bytes()) {
                assert_ne!(stream.read_buf(&mut request).await.unwrap(), 0);
            }
            stream.write_all(format!("{head}\r\nconnection: close\r\n\r\n").as_bytes()).await.unwrap();
            requests.push(String::from_utf8(request).unwrap());
        }
        requests
    });
    let env = |_: &str| Some(SECRET.into());
    let secrets = Some(config::KeySource::Env("SECRET".into()));
    let callbacks = Callbacks::new(Some(&allowing(&["127.0.0.0/8"], secrets)), env).unwrap();
    let url = format!("http://{at}/hunter2hunter2");
    let Outcome::Failed { error, .. } = call(&callbacks, &url).await else { panic!() };
    assert!(
        error.ends_with(
            "to http://127.0.0.2/; redirects are not followed, the watch has to be added with the final address"
        ),
        "{error}"
    );
    assert_eq!(call(&callbacks, &url).await, Outcome::Delivered);
    for request in receiver.await.unwrap() {
        let header = |name: &str| request.lines().find_map(|line| line.strip_prefix(name)).unwrap().to_owned();
        let [id, timestamp, signature] = ["webhook-id: ", "webhook-timestamp: ", "webhook-signature: "].map(header);
        assert!(crate::hook::verify(SECRET, &id, &timestamp, BODY.as_bytes(), &signature));
    }
}

#[tokio::test]
async fn without_a_table_callbacks_are_public_encrypted_and_unsigned() {
    let callbacks = Callbacks::new(None, |_| None).unwrap();
    for (url, says) in [
        ("http://cms.example/", "plain http"),
        ("https://10.0.0.1/", "10.0.0.0/8 (private)"),
        ("not a url", "is no URL"),
    ] {
        let error = blocked(&callbacks, url).await;
        assert!(error.contains(says), "{error}");
    }
    assert!(callbacks.signer.sign("id", 1, b"").is_none());
}
