//! A job queue that schedules its next poll by itself: apalis with SQLite. `peer-apalis API HOOK IDS DATABASE`.
//!
//! Does: jobs that survive a kill; the same backoff as assetwatch; the result and the job that tells of it in one
//! transaction; what was told is tried again. A poll that was under way when the worker was killed is made again once its
//! heartbeat is missed.
//! Does not: pace requests over all assets, sign what it tells, give up on an asset, tell a bad key from an outage. apalis
//! plans in whole seconds, and its `setup` switches SQLite's syncing off for the connection it gets.

use std::time::Duration;

use apalis::prelude::*;
use apalis_sqlite::queries::push_tasks;
use apalis_sqlite::{Config, SqliteConnectOptions, SqlitePool, SqlitePoolOptions, SqliteStorage};
use serde::{Deserialize, Serialize};
use serde_json::Value;

const POLLS: &str = "polls";
const TELLS: &str = "tells";
const IN_FLIGHT: usize = 32;

#[derive(Clone, Serialize, Deserialize)]
struct Poll {
    asset: String,
    /// How many polls of it came before.
    number: i32,
    /// How many answers in a row said that it is not ready.
    streak: i32,
}

#[derive(Clone, Serialize, Deserialize)]
struct Tell {
    asset: String,
    status: String,
}

#[derive(Clone)]
struct World {
    client: reqwest::Client,
    api: String,
    hook: String,
    pool: SqlitePool,
}

#[tokio::main]
async fn main() -> Result<(), BoxDynError> {
    let args: Vec<String> = std::env::args().collect();
    let [_, api, hook, ids, database] = &args[..] else {
        return Err("usage: peer-apalis API HOOK IDS DATABASE".into());
    };
    let options =
        SqliteConnectOptions::new().filename(database).create_if_missing(true).busy_timeout(Duration::from_secs(5));
    let pool = SqlitePoolOptions::new().max_connections(4).connect_with(options).await?;
    SqliteStorage::setup(&pool).await?;
    let table = "CREATE TABLE IF NOT EXISTS results (asset_id TEXT PRIMARY KEY, status TEXT NOT NULL, url TEXT)";
    sqlx::query(table).execute(&pool).await?;
    let client = reqwest::Client::builder().timeout(Duration::from_secs(10)).build()?;
    let world = World { client, api: api.clone(), hook: hook.clone(), pool: pool.clone() };

    // A worker that was killed is not taken for dead while another goes by its name.
    let polls = WorkerBuilder::new(format!("polls-{}", std::process::id()))
        .backend(SqliteStorage::<Poll>::new(&pool).with_config(config(POLLS)).poll_with_strategy(often()))
        .data(world.clone())
        .concurrency(IN_FLIGHT)
        .build(poll);
    let tells = WorkerBuilder::new(format!("tells-{}", std::process::id()))
        .backend(SqliteStorage::<Tell>::new(&pool).with_config(config(TELLS)).poll_with_strategy(often()))
        .data(world)
        .concurrency(4)
        .retry(RetryPolicy::retries(5))
        .build(tell);
    tokio::try_join!(
        async { polls.run().await.map_err(BoxDynError::from) },
        async { tells.run().await.map_err(BoxDynError::from) },
        follow(ids, &pool),
    )?;
    Ok(())
}

/// A worker that was killed is missed after ten seconds; with the defaults it would be after a minute.
fn config(queue: &str) -> Config {
    Config::default().queue(queue).batch_size(IN_FLIGHT).heartbeat_interval(Duration::from_secs(5))
}

/// Besides what wakes a worker by itself. More often would be in vain: jobs are due at whole seconds.
fn often() -> Strategy {
    Strategy::new().interval(Duration::from_millis(500))
}

/// Looks once a second for new ids. What was read before, also by another process, has its key already.
async fn follow(ids: &str, pool: &SqlitePool) -> Result<(), BoxDynError> {
    let mut seen = 0;
    loop {
        let text = tokio::fs::read_to_string(ids).await?;
        let lines: Vec<&str> = text.lines().collect();
        if lines.len() > seen {
            let mut transaction = pool.begin_with("BEGIN IMMEDIATE").await?;
            for id in &lines[seen..] {
                let poll = Poll { asset: (*id).to_owned(), number: 0, streak: 0 };
                push_tasks(&mut *transaction, POLLS, &[later(&poll, Duration::ZERO)?]).await?;
            }
            transaction.commit().await?;
            seen = lines.len();
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// The key lets a poll that is made again after a kill plan no second successor.
fn later(poll: &Poll, after: Duration) -> Result<Task<Vec<u8>>, BoxDynError> {
    let key = format!("{}/{}", poll.asset, poll.number);
    Ok(TaskBuilder::new(serde_json::to_vec(poll)?).idempotency_key(key).run_after(after).build())
}

async fn poll(poll: Poll, world: Data<World>) -> Result<(), BoxDynError> {
    let (next, after) = match ask(&poll.asset, &world).await {
        Ok(asset) => {
            let status = asset["status"].as_str().ok_or("no status")?;
            if status != "pending" && status != "processing" {
                return settle(&poll.asset, status, asset["url"].as_str(), &world.pool).await;
            }
            let after = Duration::from_secs_f64((2.0 * 1.5_f64.powi(poll.streak)).min(60.0));
            (Poll { number: poll.number + 1, streak: poll.streak + 1, ..poll }, after)
        }
        Err(after) => (Poll { number: poll.number + 1, ..poll }, after),
    };
    let mut connection = world.pool.acquire().await?;
    push_tasks(&mut *connection, POLLS, &[later(&next, after)?]).await?;
    Ok(())
}

/// The asset, or how long to wait until it is asked for again.
async fn ask(asset: &str, world: &World) -> Result<Value, Duration> {
    const SOON: Duration = Duration::from_secs(2);
    let request = world.client.get(format!("{}/pub/v2/assets/{asset}", world.api)).header("x-api-key", "key");
    let answer = request.send().await.map_err(|_| SOON)?;
    if !answer.status().is_success() {
        let seconds = answer.headers().get("retry-after").and_then(|value| value.to_str().ok()?.parse().ok());
        return Err(seconds.map_or(SOON, Duration::from_secs));
    }
    let mut body: Value = answer.json().await.map_err(|_| SOON)?;
    Ok(body["data"].take())
}

/// The result and the job that tells of it: both or neither.
async fn settle(asset: &str, status: &str, url: Option<&str>, pool: &SqlitePool) -> Result<(), BoxDynError> {
    let mut transaction = pool.begin_with("BEGIN IMMEDIATE").await?;
    let insert = "INSERT INTO results VALUES (?, ?, ?) ON CONFLICT DO NOTHING";
    sqlx::query(insert).bind(asset).bind(status).bind(url).execute(&mut *transaction).await?;
    let tell = serde_json::to_vec(&Tell { asset: asset.to_owned(), status: status.to_owned() })?;
    let task = TaskBuilder::new(tell).idempotency_key(asset).build();
    push_tasks(&mut *transaction, TELLS, &[task]).await?;
    transaction.commit().await?;
    Ok(())
}

async fn tell(tell: Tell, world: Data<World>) -> Result<(), BoxDynError> {
    let body = serde_json::json!({ "data": { "asset_id": tell.asset, "status": tell.status } });
    world.client.post(&world.hook).json(&body).send().await?.error_for_status()?;
    Ok(())
}
