//! The world of the demonstration: an API whose assets take believable times, and a webhook receiver that verifies.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::time::Instant;

use crate::hook::verify;

/// The key that the simulated API accepts.
pub(super) const KEY: &str = "demo-key";
/// The secret that webhooks are signed with.
pub(super) const SECRET: &str = "whsec_ZGVtby1zZWNyZXQtb2YtMjQtYnl0ZXMh";

/// One asset, and how the API tells of it.
pub(super) struct Role {
    pub(super) asset_id: &'static str,
    kind: &'static str,
    status: &'static str,
    /// Seconds from the first question until it is being processed, and until it has its final status.
    processing: f64,
    settled: f64,
    /// What goes wrong on the way.
    fault: Fault,
}

#[derive(Clone, Copy, PartialEq)]
enum Fault {
    None,
    /// 500 for two polls.
    Breaks,
    /// 429 with a Retry-After for one poll.
    Throttles,
}

const fn role(
    asset_id: &'static str,
    kind: &'static str,
    status: &'static str,
    (processing, settled): (f64, f64),
    fault: Fault,
) -> Role {
    Role { asset_id, kind, status, processing, settled, fault }
}

/// All assets. An asset that is not among them becomes an image after three seconds.
pub(super) const CAST: [Role; 8] = [
    role("ast_portrait", "image", "active", (0.5, 2.5), Fault::None),
    role("ast_poster", "image", "active", (1.0, 4.0), Fault::Breaks),
    role("ast_protest", "image", "censored", (1.0, 5.0), Fault::None),
    role("ast_jingle", "audio", "active", (1.0, 6.0), Fault::None),
    role("ast_podcast", "audio", "active", (2.0, 8.0), Fault::Throttles),
    role("ast_draft", "video", "archive", (2.0, 7.0), Fault::None),
    role("ast_teaser", "video", "active", (2.0, 10.0), Fault::None),
    role("ast_trailer", "video", "active", (3.0, 13.0), Fault::None),
];
const STRANGER: Role = role("", "image", "active", (1.0, 3.0), Fault::None);

/// What has happened so far.
#[derive(Clone, Copy, Default)]
pub(super) struct Counts {
    pub(super) broken: u32,
    pub(super) throttled: u32,
    pub(super) verified: u32,
    pub(super) forged: u32,
}

#[derive(Default)]
struct Happened {
    counts: Counts,
    received: Vec<String>,
    /// When an asset was asked for first, and how often.
    asked: HashMap<String, (Option<Instant>, u32)>,
}

/// The servers; they end with the process.
pub(super) struct World {
    pub(super) api: SocketAddr,
    pub(super) receiver: SocketAddr,
    happened: Shared,
}

type Shared = Arc<Mutex<Happened>>;

impl World {
    pub(super) async fn start() -> std::io::Result<Self> {
        let happened = Shared::default();
        let api = Router::new().route("/pub/v2/assets/{asset_id}", get(asset)).with_state(Arc::clone(&happened));
        let receiver = Router::new().route("/assets", post(receive)).with_state(Arc::clone(&happened));
        Ok(Self { api: serve(api).await?, receiver: serve(receiver).await?, happened })
    }

    pub(super) fn counts(&self) -> Counts {
        lock(&self.happened).counts
    }

    pub(super) fn forged(&self) -> u32 {
        self.counts().forged
    }

    /// What the receiver has to say, from its `from`-th webhook on.
    pub(super) fn received(&self, from: usize) -> Vec<String> {
        lock(&self.happened).received.iter().skip(from).cloned().collect()
    }
}

async fn serve(router: Router) -> std::io::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move { axum::serve(listener, router).await });
    Ok(address)
}

fn lock(happened: &Shared) -> MutexGuard<'_, Happened> {
    happened.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn asset(State(happened): State<Shared>, Path(asset_id): Path<String>, headers: HeaderMap) -> Response {
    if headers.get("x-api-key").is_none_or(|key| key != KEY) {
        return (StatusCode::UNAUTHORIZED, axum::Json(json!({"err": {"message": "bad key"}}))).into_response();
    }
    let role = CAST.iter().find(|role| role.asset_id == asset_id).unwrap_or(&STRANGER);
    let mut happened = lock(&happened);
    let (first, polls) = happened.asked.entry(asset_id.clone()).or_default();
    let age = first.get_or_insert_with(Instant::now).elapsed();
    *polls += 1;
    let polls = *polls;
    if role.fault == Fault::Breaks && (2..=3).contains(&polls) {
        happened.counts.broken += 1;
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    }
    if role.fault == Fault::Throttles && polls == 2 {
        happened.counts.throttled += 1;
        return (StatusCode::TOO_MANY_REQUESTS, [("retry-after", "1")]).into_response();
    }
    axum::Json(answer(&asset_id, role, age)).into_response()
}

fn answer(asset_id: &str, role: &Role, age: Duration) -> Value {
    let (kind, age) = (role.kind, age.as_secs_f64());
    if age < role.settled {
        let status = if age < role.processing { "pending" } else { "processing" };
        return json!({"data": {"id": asset_id, "type": kind, "status": status}});
    }
    let mut data = json!({"id": asset_id, "type": kind, "status": role.status});
    if role.status == "active" {
        data["url"] = json!(format!("https://cdn.example/{asset_id}.{kind}"));
    }
    if kind != "audio" {
        data["size"] = json!({"width": 1024, "height": 576});
    }
    if kind != "image" {
        data["duration"] = json!(30);
    }
    if kind == "video" {
        data["frames"] = json!(720);
    }
    json!({"data": data})
}

async fn receive(State(happened): State<Shared>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let (id, timestamp) = (header("webhook-id"), header("webhook-timestamp"));
    let valid = verify(SECRET, id, timestamp, &body, header("webhook-signature"));
    let event: Value = serde_json::from_slice(&body).unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (kind, asset_id) = (text(&event["type"]), text(&event["data"]["asset_id"]));
    let mut happened = lock(&happened);
    let (count, word) = match valid {
        true => (&mut happened.counts.verified, "signature verified"),
        false => (&mut happened.counts.forged, "BAD SIGNATURE"),
    };
    *count += 1;
    happened.received.push(format!("  webhook  {kind} {asset_id}: {word}"));
    if valid { StatusCode::NO_CONTENT } else { StatusCode::BAD_REQUEST }
}
