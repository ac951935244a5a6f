//! `hooks listen`: a receiver to try webhooks with. It verifies what comes as a receiver should, and prints it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode};
use futures_util::StreamExt;
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::Listen;
use super::output::{Output, exit, plain, unheard};
use crate::clock::{Clock, Timestamp};
use crate::config::KeySource;
use crate::event::Gist;
use crate::hook::Signer;

/// No event is larger (`spec/hooks.md`: under 20 kB; a `body` of a hook's own may be more).
const LARGEST: usize = 64 * 1_024;
/// So much of a larger one is read all the same, in bytes.
const READ_ON: usize = 16 * LARGEST;
/// So old or so new may a signature be: the tolerance of Standard Webhooks' libraries.
const TOLERANCE: Duration = Duration::from_secs(5 * 60);
/// For a whole body.
const PATIENCE: Duration = Duration::from_secs(10);
/// For what is being answered when it ends.
const GRACE: Duration = Duration::from_secs(1);

/// What a received webhook was, as it is printed.
#[derive(Debug, Serialize)]
struct Arrival {
    at: Timestamp,
    id: String,
    r#type: String,
    asset_id: String,
    /// Absent when there is no secret to verify with.
    verified: Option<bool>,
    /// What is wrong with it.
    problem: Option<&'static str>,
    answered: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    headers: Option<Vec<(String, String)>>,
    body: String,
}

struct Receiver {
    signer: Signer,
    clock: Clock,
    good: StatusCode,
    with_headers: bool,
    /// Printed one after the other; closed when no more is wanted.
    tell: mpsc::Sender<Arrival>,
}

/// Receives webhooks and prints them until `stop` resolves, as many as were asked for have come, or nobody reads on.
///
/// # Errors
/// When the secrets cannot be read, the address cannot be listened at, or nothing can be printed.
pub async fn listen(args: Listen, verbose: bool, output: Output, stop: impl Future<Output = ()>) -> anyhow::Result<u8> {
    let (tell, told) = mpsc::channel(1);
    let source = match (&args.secret_file, &args.secret_env) {
        (Some(file), _) => Some(KeySource::File(file.clone())),
        (None, Some(name)) => Some(KeySource::Env(name.clone())),
        (None, None) => None,
    };
    let signer = Signer::read(source.as_ref(), |name| std::env::var_os(name)).map_err(anyhow::Error::msg)?;
    let good = StatusCode::from_u16(args.status)?;
    let listener = bind(&args.address).await?;
    say_where(&listener, &args, &signer, output)?;
    let receiver = Arc::new(Receiver { signer, clock: Clock::system(), good, with_headers: verbose, tell });
    let (stopping, stopped) = oneshot::channel::<()>();
    let router = Router::new().fallback(receive).with_state(receiver);
    let serving = axum::serve(listener, router).with_graceful_shutdown(async { drop(stopped.await) });
    let serving = tokio::spawn(serving.into_future());
    let printed = tokio::select! {
        biased;
        () = stop => Ok(()),
        printed = print_all(told, args.count, output) => printed,
    };
    // What is being answered is answered; the rest finds nobody.
    drop(stopping);
    let _ = timeout(GRACE, serving).await;
    unheard(printed)?;
    Ok(exit::OK)
}

async fn bind(address: &str) -> anyhow::Result<TcpListener> {
    let on_loopback = address.strip_prefix(':').unwrap_or(address).parse::<u16>().ok().map(|port| ("127.0.0.1", port));
    let bound = match on_loopback {
        Some(address) => TcpListener::bind(address).await,
        None => TcpListener::bind(address).await,
    };
    let shown = plain(address);
    bound.map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => {
            anyhow::anyhow!("{shown}: another program listens there; name another port, as in `hooks listen 8001`")
        }
        io::ErrorKind::InvalidInput => {
            anyhow::anyhow!("{shown}: this is no address; write it like `127.0.0.1:8000` or `8000`")
        }
        _ => anyhow::Error::from(error).context(format!("{shown} cannot be listened at")),
    })
}

/// For the person: where it listens, and what to put into the configuration.
fn say_where(listener: &TcpListener, args: &Listen, signer: &Signer, output: Output) -> anyhow::Result<()> {
    let quoted = |text: String| toml::Value::String(text).to_string();
    let address = listener.local_addr()?;
    let secret = match (&args.secret_file, &args.secret_env) {
        (Some(file), _) => {
            let file = std::path::absolute(file).context("the secret file's path")?;
            format!("\nsecret_file = {}", quoted(file.display().to_string()))
        }
        (None, Some(name)) => format!("\nsecret_env = {}", quoted(name.clone())),
        (None, None) => String::new(),
    };
    let verifying = match signer.secrets() {
        0 => "Signatures are not verified: name the secret with `--secret-file FILE`.".to_owned(),
        1 => "Signatures are verified.".to_owned(),
        several => format!("Signatures are verified with {several} secrets."),
    };
    output.say(&format!(
        "Listening on http://{address} until Ctrl-C. {verifying} In the configuration:\n\n\
         [[hooks]]\nname = \"listen\"\nurl = \"http://{address}/\"{}\n",
        plain_lines(&secret)
    ));
    Ok(())
}

fn plain_lines(text: &str) -> String {
    text.split('\n').map(plain).collect::<Vec<_>>().join("\n")
}

async fn print_all(mut told: mpsc::Receiver<Arrival>, count: Option<u64>, output: Output) -> io::Result<()> {
    let mut printed = 0;
    while let Some(arrival) = told.recv().await {
        print(&arrival, output)?;
        printed += 1;
        if count.is_some_and(|count| count <= printed) {
            break;
        }
    }
    Ok(())
}

fn print(arrival: &Arrival, output: Output) -> io::Result<()> {
    if output.json {
        return output.object(arrival);
    }
    let or_dash = |text: &str| if text.is_empty() { "-".to_owned() } else { plain(text) };
    let (word, color) = match (arrival.verified, arrival.problem) {
        (_, Some(problem)) => (format!("BAD: {problem}"), 31),
        (Some(_), None) => ("signature verified".into(), 32),
        (None, None) => ("signature not verified".into(), 33),
    };
    let word = if output.color { format!("\x1b[{color}m{word}\x1b[0m") } else { word };
    output.line(&format!("{} {} {} {word}", arrival.at, or_dash(&arrival.r#type), or_dash(&arrival.asset_id)))?;
    let Some(headers) = &arrival.headers else { return Ok(()) };
    for (name, value) in headers {
        output.line(&format!("  {name}: {}", plain(value)))?;
    }
    arrival.body.lines().try_for_each(|line| output.line(&format!("  {}", plain(line))))
}

async fn receive(State(receiver): State<Arc<Receiver>>, request: Request<Body>) -> StatusCode {
    let (head, body) = request.into_parts();
    if head.method != Method::POST {
        return StatusCode::METHOD_NOT_ALLOWED;
    }
    let arrival = match timeout(PATIENCE, read(body)).await {
        Ok(Some(body)) => receiver.judge(&head.headers, &body),
        Ok(None) => {
            let problem = "its body is larger than 64 KiB, or broke off";
            receiver.arrival(&head.headers, &[], Some(problem), StatusCode::PAYLOAD_TOO_LARGE)
        }
        Err(_) => receiver.arrival(&head.headers, &[], Some("its body did not end"), StatusCode::REQUEST_TIMEOUT),
    };
    let answer = StatusCode::from_u16(arrival.answered).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    match receiver.tell.send(arrival).await {
        Ok(()) => answer,
        // It was not printed, so the sender keeps it.
        Err(_) => StatusCode::SERVICE_UNAVAILABLE,
    }
}

/// A whole body, unless it is too large or breaks off. Of one that is too large more is read than is kept: a sender whose
/// connection is closed while it still sends may not get to see the answer.
async fn read(body: Body) -> Option<Vec<u8>> {
    let (mut stream, mut kept, mut length) = (body.into_data_stream(), Vec::new(), 0);
    while let Some(part) = stream.next().await {
        let part = part.ok()?;
        length += part.len();
        if length > READ_ON {
            return None;
        }
        if length <= LARGEST {
            kept.extend_from_slice(&part);
        }
    }
    (length <= LARGEST).then_some(kept)
}

impl Receiver {
    fn judge(&self, headers: &HeaderMap, body: &[u8]) -> Arrival {
        let problem = if self.signer.secrets() == 0 { None } else { self.problem(headers, body) };
        let answer = if problem.is_some() { StatusCode::BAD_REQUEST } else { self.good };
        self.arrival(headers, body, problem, answer)
    }

    /// What keeps a signature from being good.
    fn problem(&self, headers: &HeaderMap, body: &[u8]) -> Option<&'static str> {
        let [id, timestamp, signatures] =
            ["webhook-id", "webhook-timestamp", "webhook-signature"].map(|name| text(headers, name));
        if signatures.is_empty() {
            return Some("unsigned: it has no `webhook-signature`");
        }
        let millis = timestamp.parse::<i64>().ok().and_then(|seconds| seconds.checked_mul(1_000));
        let Some(signed_at) = millis.map(Timestamp::from_millis) else {
            return Some("its `webhook-timestamp` is no number of seconds");
        };
        let now = self.clock.now();
        if !self.signer.verifies(id, timestamp, body, signatures) {
            return Some("the signature does not fit: another secret, or it was changed on the way");
        }
        // `since` is zero for what is later.
        let is_off = now.since(signed_at).max(signed_at.since(now)) > TOLERANCE;
        is_off.then_some("it was signed more than 5 min from now: sent again by somebody, or a clock is wrong")
    }

    fn arrival(&self, headers: &HeaderMap, body: &[u8], problem: Option<&'static str>, answer: StatusCode) -> Arrival {
        let gist = Gist::of(body);
        let all = headers
            .iter()
            .map(|(name, value)| (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned()));
        Arrival {
            at: self.clock.now(),
            id: text(headers, "webhook-id").to_owned(),
            r#type: event_type(body),
            asset_id: gist.asset_id.unwrap_or_default(),
            verified: (self.signer.secrets() > 0).then_some(problem.is_none()),
            problem,
            answered: answer.as_u16(),
            headers: self.with_headers.then(|| all.collect()),
            body: String::from_utf8_lossy(body).into_owned(),
        }
    }
}

fn event_type(body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Typed {
        r#type: String,
    }
    serde_json::from_slice::<Typed>(body).map(|typed| typed.r#type).unwrap_or_default()
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}
