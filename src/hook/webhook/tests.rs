use std::collections::VecDeque;
use std::net::SocketAddr;

use reqwest::header::{HeaderName, HeaderValue};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::time::timeout;

use super::*;
use crate::config::{self, KeySource, Target};
use crate::hook::Hooks;
use crate::hook::guard::tests::Fixed;
use crate::hook::tests::{BODY, hook, now, parcel, target};

const SECRETS: [&str; 2] = ["whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"];
/// For what has to happen at some time.
const SOON: Duration = Duration::from_secs(10);

/// What the receiver does with one request.
enum Reply {
    /// Writes this, and waits for the next request.
    Text(String),
    /// Writes this, and closes the connection.
    Cut(String),
    /// Writes this, and then this again and again.
    Endless(String, Vec<u8>),
    /// Closes the connection with a reset.
    Reset,
}

struct Request {
    line: String,
    headers: HeaderMap,
    body: Vec<u8>,
    connection: usize,
}

struct Receiver {
    address: SocketAddr,
    requests: UnboundedReceiver<Request>,
}

impl Receiver {
    /// Answers one request after the other, and no more once out of replies.
    async fn with(replies: impl IntoIterator<Item = Reply>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (seen, requests) = mpsc::unbounded_channel();
        let mut replies: VecDeque<_> = replies.into_iter().collect();
        tokio::spawn(async move {
            for connection in 1.. {
                let (mut stream, _) = listener.accept().await.unwrap();
                while let Some(request) = read_request(&mut stream, connection).await {
                    if !answer(&mut stream, request, &seen, replies.pop_front()).await {
                        break;
                    }
                }
            }
        });
        Self { address, requests }
    }

    async fn answering(text: &str) -> Self {
        Self::with([Reply::Text(text.into())]).await
    }

    /// The hook that tells it.
    fn hooks(&self, timeout: Duration) -> Hooks {
        let secrets = Some(KeySource::Env("SECRETS".into()));
        let url = format!("http://{}/services/hunter2hunter2?key=swordfish", self.address);
        let env = |name: &str| (name == "SECRETS").then(|| SECRETS.join("\n").into());
        Hooks::new(&[hook(target(&url, secrets), timeout)], None, env).unwrap()
    }

    /// What an attempt at it brings.
    async fn tell(&self) -> Attempt {
        tell(&self.hooks(SOON)).await
    }

    /// The next request, of which the independent verifier approves.
    async fn request(&mut self) -> Request {
        let request = timeout(SOON, self.requests.recv()).await.unwrap().unwrap();
        for secret in SECRETS {
            let verifier = standardwebhooks::Webhook::new(secret).unwrap();
            verifier.verify(&request.body, &request.headers).unwrap();
        }
        request
    }
}

async fn tell(hooks: &Hooks) -> Attempt {
    timeout(SOON, hooks.perform("test", &parcel(BODY), now(), std::future::pending())).await.unwrap()
}

async fn read_request(stream: &mut TcpStream, connection: usize) -> Option<Request> {
    let mut text = Vec::new();
    while !text.ends_with(b"\r\n\r\n") {
        text.push(stream.read_u8().await.ok()?);
    }
    let text = String::from_utf8(text).unwrap();
    let mut lines = text.trim_end().lines();
    let line = lines.next().unwrap().to_owned();
    let headers = lines.map(|line| line.split_once(": ").unwrap());
    let headers: HeaderMap = headers
        .map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse::<HeaderValue>().unwrap()))
        .collect();
    let mut body = vec![0; headers["content-length"].to_str().unwrap().parse().unwrap()];
    stream.read_exact(&mut body).await.ok()?;
    Some(Request { line, headers, body, connection })
}

/// Whether the connection can be used again.
async fn answer(
    stream: &mut TcpStream,
    request: Request,
    seen: &UnboundedSender<Request>,
    reply: Option<Reply>,
) -> bool {
    seen.send(request).unwrap();
    match reply {
        None => std::future::pending().await,
        Some(Reply::Text(text)) => stream.write_all(text.as_bytes()).await.is_ok(),
        Some(Reply::Cut(text)) => {
            stream.write_all(text.as_bytes()).await.unwrap();
            false
        }
        Some(Reply::Endless(text, more)) => {
            stream.write_all(text.as_bytes()).await.unwrap();
            while stream.write_all(&more).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            false
        }
        Some(Reply::Reset) => {
            stream.set_zero_linger().unwrap();
            false
        }
    }
}

fn again(error: &str, not_before: Option<u64>) -> Outcome {
    Outcome::Failed { error: error.into(), not_before: not_before.map(Duration::from_secs) }
}

#[tokio::test]
async fn a_request_is_what_standard_webhooks_asks_for() {
    let mut receiver = Receiver::answering("HTTP/1.1 204 No Content\r\n\r\n").await;
    let attempt = receiver.tell().await;
    assert_eq!(attempt, Attempt { code: Some(204), ..Attempt::bare(Outcome::Delivered) });
    let request = receiver.request().await;
    assert_eq!(request.line, "POST /services/hunter2hunter2?key=swordfish HTTP/1.1");
    assert_eq!(request.body, BODY.as_bytes());
    assert_eq!(request.headers["content-type"], "application/json");
    assert_eq!(request.headers["webhook-id"], "evt_abc");
    assert_eq!(request.headers["user-agent"], client::USER_AGENT);
    let signatures = request.headers["webhook-signature"].to_str().unwrap();
    assert_eq!(signatures.split(' ').filter(|signature| signature.starts_with("v1,")).count(), 2);
}

#[tokio::test]
async fn a_hook_without_a_secret_is_sent_unsigned() {
    let mut receiver = Receiver::answering("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let url = format!("http://{}/", receiver.address);
    let hooks = Hooks::new(&[hook(target(&url, None), SOON)], None, |_| None).unwrap();
    assert_eq!(tell(&hooks).await.outcome, Outcome::Delivered);
    let request = receiver.requests.recv().await.unwrap();
    assert!(request.headers.contains_key("webhook-id") && request.headers.contains_key("webhook-timestamp"));
    assert!(!request.headers.contains_key("webhook-signature"));
}

#[tokio::test]
async fn answers_mean_what_the_contract_says() {
    let redirect = |text: &str| {
        again(
            &format!("the receiver answered {text}; redirects are not followed, put the final address into `url`"),
            None,
        )
    };
    for (head, code, outcome) in [
        ("200 OK", 200, Outcome::Delivered),
        ("202 Whatever", 202, Outcome::Delivered),
        ("299 Odd", 299, Outcome::Delivered),
        ("410 Gone", 410, Outcome::Gone { error: "the receiver answered 410 Gone".into() }),
        ("500 Oops", 500, again("the receiver answered 500 Internal Server Error", None)),
        ("599 Oops", 599, again("the receiver answered 599", None)),
        ("404 No", 404, again("the receiver answered 404 Not Found", None)),
        ("408 No", 408, again("the receiver answered 408 Request Timeout", None)),
        ("400 No\r\nretry-after: 5", 400, again("the receiver answered 400 Bad Request", None)),
        ("429 No", 429, again("the receiver answered 429 Too Many Requests", None)),
        ("429 No\r\nretry-after: 120", 429, again("the receiver answered 429 Too Many Requests", Some(120))),
        ("429 No\r\nretry-after: soon", 429, again("the receiver answered 429 Too Many Requests", None)),
        (
            "429 No\r\nretry-after: Sun, 06 Nov 1994 08:50:37 GMT\r\ndate: Sun, 06 Nov 1994 08:49:37 GMT",
            429,
            again("the receiver answered 429 Too Many Requests", Some(60)),
        ),
        (
            "503 No\r\nretry-after: Sun, 06 Nov 1994 08:49:37 GMT",
            503,
            again("the receiver answered 503 Service Unavailable", Some(0)),
        ),
        ("304 Same", 304, redirect("304 Not Modified")),
        ("302 There\r\nlocation: /login", 302, redirect("302 Found to /login")),
        (
            "301 There\r\nlocation: https://cms.example/services/hunter2hunter2/?key=swordfish",
            301,
            redirect("301 Moved Permanently to https://cms.example/…/…/?key=…"),
        ),
        ("307 There\r\nlocation: a\tb\u{202e}", 307, redirect(r"307 Temporary Redirect to a\tb\u{202e}")),
    ] {
        let text = format!("HTTP/1.1 {head}\r\ncontent-length: 5\r\n\r\nhello");
        let mut receiver = Receiver::answering(&text).await;
        let attempt = receiver.tell().await;
        let output = if code == 304 { Vec::new() } else { b"hello".to_vec() };
        // The headers that a person looks for, each as it came but for what is secret.
        let named = ["location", "retry-after"].into_iter().filter(|name| head.contains(&format!("\n{name}:")));
        assert_eq!(
            attempt.headers.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(),
            named.collect::<Vec<_>>()
        );
        assert!(!format!("{:?}", attempt.headers).contains("swordfish"), "{head}");
        assert_eq!(
            attempt,
            Attempt { output, code: Some(code), headers: attempt.headers.clone(), ..Attempt::bare(outcome) },
            "{head}"
        );
        receiver.request().await;
        assert!(receiver.requests.try_recv().is_err(), "{head}: more than one request");
    }
}

#[tokio::test]
async fn a_long_location_is_cut() {
    let location = "x".repeat(1_000);
    let receiver = Receiver::answering(&format!("HTTP/1.1 302 There\r\nlocation: {location}\r\n\r\n")).await;
    let Outcome::Failed { error, .. } = receiver.tell().await.outcome else { panic!() };
    assert_eq!(error.matches('x').count(), HEADER_LIMIT);
}

#[tokio::test]
async fn a_body_that_fails_after_a_2xx_changes_nothing() {
    let head = "HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n";
    for (reply, output) in [
        (Reply::Cut(format!("{head}short")), b"short".to_vec()),
        (Reply::Cut("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nnot hexadecimal".into()), Vec::new()),
        (Reply::Endless(head.into(), vec![b'x'; 1_000]), vec![b'x'; BODY_LIMIT]),
    ] {
        let attempt = Receiver::with([reply]).await.tell().await;
        assert_eq!((attempt.outcome, attempt.code), (Outcome::Delivered, Some(200)));
        assert!(attempt.output == output, "{} bytes", attempt.output.len());
    }
}

#[tokio::test]
async fn an_endless_drip_after_a_2xx_is_left_after_a_while() {
    let head = "HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n".into();
    let attempt = Receiver::with([Reply::Endless(head, vec![b'x'])]).await.tell().await;
    assert_eq!(attempt.outcome, Outcome::Delivered);
    assert!((1..BODY_LIMIT).contains(&attempt.output.len()), "{} bytes", attempt.output.len());
}

#[tokio::test]
async fn no_answer_is_a_failure_that_does_not_show_the_url() {
    let unanswering = Receiver::with([]).await;
    let attempt = tell(&unanswering.hooks(Duration::from_millis(200))).await;
    assert_eq!(attempt.outcome, again("the receiver did not answer within 200ms", None));
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let refusing = Receiver { address: closed, requests: mpsc::unbounded_channel().1 };
    for (receiver, says) in [
        (refusing, "Connection refused"),
        (Receiver::with([Reply::Reset]).await, "Connection reset by peer"),
        (Receiver::with([Reply::Cut(String::new())]).await, "connection closed before message completed"),
        (Receiver::with([Reply::Cut("SSH-2.0-OpenSSH_9.2\r\n".into())]).await, "invalid HTTP"),
    ] {
        let attempt = receiver.tell().await;
        let Outcome::Failed { error, not_before: None } = attempt.outcome else { panic!("{attempt:?}") };
        assert!(error.contains(says), "{error}");
        assert!(!error.contains("hunter2") && !error.contains("swordfish"), "{error}");
    }
}

#[tokio::test]
async fn one_connection_serves_many_deliveries() {
    let reply = || Reply::Text("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok".into());
    let mut receiver = Receiver::with([reply(), reply(), reply()]).await;
    let hooks = receiver.hooks(SOON);
    for _ in 0..3 {
        assert_eq!(tell(&hooks).await.outcome, Outcome::Delivered);
        assert_eq!(receiver.request().await.connection, 1);
    }
}

#[tokio::test]
async fn a_hurry_interrupts_only_what_has_not_been_answered() {
    let mut receiver = Receiver::with([]).await;
    let hooks = receiver.hooks(SOON);
    let parcel = parcel(BODY);
    let attempt = hooks.perform("test", &parcel, now(), async { drop(receiver.request().await) }).await;
    assert_eq!(attempt, Attempt::bare(Outcome::Interrupted));

    let answered = Receiver::answering("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n").await;
    let url = format!("http://{}/", answered.address).parse().unwrap();
    let webhook = webhook(url, Guard::system());
    let response = webhook.send(&parcel, now()).await.unwrap();
    let attempt = timeout(BODY_TIME, webhook.heard(response, now(), std::future::ready(()))).await.unwrap();
    assert_eq!((attempt.outcome, attempt.code), (Outcome::Delivered, Some(200)));
}

fn webhook(url: Url, guard: Guard) -> Webhook {
    let signer = Signer::read(None, |_| None).unwrap();
    Webhook {
        client: super::client(guard, None).unwrap(),
        url,
        timeout: SOON,
        signer,
        headers: HeaderMap::new(),
        proxy: None,
        moved: MOVED,
    }
}

#[tokio::test]
async fn a_name_that_means_a_metadata_address_is_blocked() {
    let guard = Guard::over(Fixed(vec!["169.254.169.254:0".parse().unwrap()]));
    let webhook = webhook("http://cms.example/services/hunter2hunter2".parse().unwrap(), guard);
    let attempt = webhook.perform(&parcel(BODY), now(), std::future::pending()).await;
    let Outcome::Blocked { error } = attempt.outcome else { panic!("{attempt:?}") };
    let says = "the hook's host resolves to 169.254.169.254, where clouds serve credentials: correct `url`";
    assert!(error.starts_with(says), "{error}");
}

#[tokio::test]
async fn an_id_that_no_header_can_carry_is_blocked() {
    let receiver = Receiver::with([]).await;
    let mut parcel = parcel(BODY);
    parcel.delivery.event_id = "evt_\n".into();
    let attempt = receiver.hooks(SOON).perform("test", &parcel, now(), std::future::pending()).await;
    let Outcome::Blocked { error } = attempt.outcome else { panic!("{attempt:?}") };
    assert!(error.starts_with("no request can be made: builder error"), "{error}");
}

fn with(receiver: &Receiver, headers: &[(&str, config::HeaderText)], proxy: Option<String>) -> Hooks {
    let headers = headers.iter().map(|(name, value)| config::Header { name: (*name).into(), value: value.clone() });
    let url = format!("http://{}/", receiver.address).parse().unwrap();
    let proxy = proxy.map(|proxy| proxy.parse().unwrap());
    let target = Target::Webhook(config::Webhook { url, secrets: None, headers: headers.collect(), proxy });
    Hooks::new(&[hook(target, SOON)], None, |name| (name == "TOKEN").then(|| "swordfish".into())).unwrap()
}

#[tokio::test]
async fn a_hooks_own_headers_go_along() {
    let mut receiver = Receiver::answering("HTTP/1.1 204 No Content\r\n\r\n").await;
    let headers = [
        ("x-plain", config::HeaderText::Plain(config::Secret::new("plain"))),
        ("authorization", config::HeaderText::From(KeySource::Env("TOKEN".into()))),
        ("content-type", config::HeaderText::Plain(config::Secret::new("text/plain"))),
    ];
    assert_eq!(tell(&with(&receiver, &headers, None)).await.outcome, Outcome::Delivered);
    let request = receiver.requests.recv().await.unwrap();
    for (name, value) in [("x-plain", "plain"), ("authorization", "swordfish"), ("content-type", "text/plain")] {
        assert_eq!(request.headers.get_all(name).iter().collect::<Vec<_>>(), [value], "{name}");
    }
}

#[tokio::test]
async fn a_proxy_is_used_by_the_hook_that_names_it() {
    let unasked = Receiver::with([]).await;
    let mut proxy = Receiver::answering("HTTP/1.1 204 No Content\r\n\r\n").await;
    let hooks = with(&unasked, &[], Some(format!("http://user:hunter2@{}", proxy.address)));
    assert_eq!(tell(&hooks).await.outcome, Outcome::Delivered);
    let request = proxy.requests.recv().await.unwrap();
    assert_eq!(request.line, format!("POST http://{}/ HTTP/1.1", unasked.address));
    assert_eq!(request.headers["proxy-authorization"], "Basic dXNlcjpodW50ZXIy");
}

/// Some receivers answer with the request, and what they answer is kept and shown.
#[tokio::test]
async fn what_a_receiver_repeats_of_our_secrets_is_not_kept() {
    let answer = "hunter2hunter2 by Bearer swordfish, not \u{fffd}";
    let text = format!("HTTP/1.1 500 No\r\ncontent-length: {}\r\n\r\n{answer}", answer.len());
    let receiver = Receiver::with([Reply::Text(text)]).await;
    let secret = config::HeaderText::From(KeySource::Env("TOKEN".into()));
    let url = format!("http://{}/services/hunter2hunter2", receiver.address).parse().unwrap();
    let headers = vec![config::Header { name: "authorization".into(), value: secret }];
    let target = Target::Webhook(config::Webhook { url, secrets: None, headers, proxy: None });
    let env = |_: &str| Some("Bearer swordfish".into());
    let hooks = Hooks::new(&[hook(target, SOON)], None, env).unwrap();
    let attempt = tell(&hooks).await;
    assert_eq!(String::from_utf8(attempt.output).unwrap(), "… by …, not \u{fffd}");
}

/// What a receiver answers with this body leaves in the ledger.
async fn kept_of(answer: String, proxy: bool) -> String {
    let text = format!("HTTP/1.1 500 No\r\ncontent-length: {}\r\n\r\n{answer}", answer.len());
    let receiver = Receiver::with([Reply::Text(text)]).await;
    let value = config::HeaderText::Plain(config::Secret::new("Bearer swordfish-swordfish"));
    let headers = vec![config::Header { name: "authorization".into(), value }];
    let there = format!("http://{}/", receiver.address);
    let through = there.replace("http://", "http://user:pass%2Fword@").parse().unwrap();
    let (url, proxy) = if proxy { ("http://cms.example/", Some(through)) } else { (there.as_str(), None) };
    let target = config::Webhook { url: url.parse().unwrap(), secrets: None, headers, proxy };
    let hooks = Hooks::new(&[hook(Target::Webhook(target), SOON)], None, |_| None).unwrap();
    String::from_utf8(tell(&hooks).await.output).unwrap()
}

#[tokio::test]
async fn a_secret_is_not_kept_in_pieces() {
    assert_eq!(kept_of("the token swordfish-swordfish is bad".into(), false).await, "the token … is bad");
    let fill = "x".repeat(BODY_LIMIT - 10);
    assert_eq!(kept_of(format!("{fill}swordfish-swordfish"), false).await, format!("{fill}***"));
}

#[tokio::test]
async fn what_a_proxy_repeats_of_its_password_is_not_kept() {
    let said = "dXNlcjpwYXNzL3dvcmQ= is pass/word or pass%2Fword".to_owned();
    assert_eq!(kept_of(said, true).await, "… is … or …");
}
