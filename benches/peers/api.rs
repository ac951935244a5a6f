//! The simulated API and the receiver that is told, as a process of their own; and what each asset does, which is the same
//! for every contender.

use std::collections::HashMap;
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::{Path as UrlPath, State};
use axum::http::{HeaderName, StatusCode};
use axum::routing::{get, post};

use crate::rig::now_millis;

pub const ASSETS: usize = 300;
/// In ms, the time over which assets arrive, and the shortest and longest that one takes. Spread evenly by their logarithm:
/// as many take 3 to 9.5 s as take 9.5 to 30 s.
const ARRIVALS: i64 = 20_000;
const TAKES: (f64, f64) = (3_000.0, 30_000.0);
/// Requests a second that the API allows, and as many at once.
pub const LIMIT: f64 = 60.0;
/// How long the receiver takes: long enough for some to be under way whenever a contender is killed.
const RECEIVER: Duration = Duration::from_millis(200);

/// Instants are ms after the start of the run.
pub struct Asset {
    pub id: String,
    pub arrives: i64,
    processing: i64,
    pub ready: i64,
    censored: bool,
}

pub fn plan() -> Vec<Asset> {
    let mut random = fastrand::Rng::with_seed(20_260_921);
    (0..ASSETS as i64)
        .map(|number| {
            let arrives = number * ARRIVALS / ASSETS as i64;
            let takes = TAKES.0 * (TAKES.1 / TAKES.0).powf(random.f64());
            // It is pending for a tenth to a half of that.
            let pending = takes * (0.1 + 0.4 * random.f64());
            let censored = random.f64() < 0.1;
            let (processing, ready) = (arrives + pending as i64, arrives + takes as i64);
            Asset { id: format!("ast_{number}"), arrives, processing, ready, censored }
        })
        .collect()
}

/// What the API and the receiver saw.
#[derive(Default)]
pub struct Log {
    pub requests: usize,
    pub throttled: usize,
    /// Requests about an asset whose final status had been handed out before.
    pub needless: usize,
    /// How often the receiver was told of each asset.
    pub told: HashMap<String, usize>,
}

impl Log {
    pub fn read(path: &Path) -> Log {
        let mut log = Log::default();
        let mut handed_out = std::collections::HashSet::new();
        for line in std::fs::read_to_string(path).unwrap().lines() {
            let (what, id) = line.split_once(' ').unwrap();
            if what == "told" {
                *log.told.entry(id.to_owned()).or_default() += 1;
                continue;
            }
            log.requests += 1;
            log.throttled += usize::from(what == "throttled");
            log.needless += usize::from(handed_out.contains(id));
            if what == "final" {
                handed_out.insert(id.to_owned());
            }
        }
        log
    }
}

struct World {
    started_at: i64,
    assets: HashMap<String, Asset>,
    seen: Mutex<Seen>,
}

struct Seen {
    file: std::fs::File,
    requests: HashMap<String, u64>,
    tokens: f64,
    filled_at: i64,
}

impl World {
    fn note(&self, what: &str, id: &str) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        writeln!(seen.file, "{what} {id}").unwrap();
    }

    /// How many requests about it came before, and whether the limit allows this one.
    fn admit(&self, id: &str) -> (u64, bool) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let now = now_millis();
        seen.tokens = (seen.tokens + (now - seen.filled_at) as f64 / 1_000.0 * LIMIT).min(LIMIT);
        seen.filled_at = now;
        let admitted = seen.tokens >= 1.0;
        if admitted {
            seen.tokens -= 1.0;
        }
        let number = seen.requests.entry(id.to_owned()).or_default();
        *number += 1;
        (*number, admitted)
    }
}

/// Serves until it is killed. Prints its address.
#[tokio::main]
pub async fn serve(started_at: i64, log: &Path) {
    let assets = plan().into_iter().map(|asset| (asset.id.clone(), asset)).collect();
    let file = std::fs::File::create(log).unwrap();
    let seen = Mutex::new(Seen { file, requests: HashMap::new(), tokens: LIMIT, filled_at: started_at });
    let world = Arc::new(World { started_at, assets, seen });
    let router =
        axum::Router::new().route("/pub/v2/assets/{id}", get(asset)).route("/hook", post(told)).with_state(world);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("http://{}", listener.local_addr().unwrap());
    axum::serve(listener, router).await.unwrap();
}

type Answer = (StatusCode, [(HeaderName, &'static str); 1], String);

/// Its latency, and whether it fails (1 in 100), depend only on the asset and on how many requests about it came before.
async fn asset(State(world): State<Arc<World>>, UrlPath(id): UrlPath<String>) -> Answer {
    use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
    let asset = &world.assets[&id];
    let (number, admitted) = world.admit(&id);
    if !admitted {
        world.note("throttled", &id);
        return (StatusCode::TOO_MANY_REQUESTS, [(RETRY_AFTER, "1")], String::new());
    }
    let mut random = fastrand::Rng::with_seed(asset.ready as u64 * 1_000 + number);
    let (millis, fails) = (20.0 * 10.0_f64.powf(random.f64()), random.f64() < 0.01);
    tokio::time::sleep(Duration::from_millis(millis as u64)).await;
    let json = [(CONTENT_TYPE, "application/json")];
    if fails {
        world.note("failed", &id);
        return (StatusCode::INTERNAL_SERVER_ERROR, json, r#"{"err":{"message":"internal"}}"#.to_owned());
    }
    let age = now_millis() - world.started_at;
    let (what, status) = match age {
        _ if age < asset.processing => ("waiting", "pending"),
        _ if age < asset.ready => ("waiting", "processing"),
        _ if asset.censored => ("final", "censored"),
        _ => ("final", "active"),
    };
    world.note(what, &id);
    let url = if status == "active" { format!(r#""https://cdn.example/{id}""#) } else { "null".to_owned() };
    let body = format!(r#"{{"data":{{"id":"{id}","status":"{status}","type":"image","url":{url}}},"err":{{}}}}"#);
    (StatusCode::OK, json, body)
}

/// Told as soon as the request is there: a contender that does not live to see the answer has told all the same.
async fn told(State(world): State<Arc<World>>, body: axum::body::Bytes) -> StatusCode {
    let event: serde_json::Value = serde_json::from_slice(&body).unwrap();
    world.note("told", event["data"]["asset_id"].as_str().unwrap());
    tokio::time::sleep(RECEIVER).await;
    StatusCode::NO_CONTENT
}
