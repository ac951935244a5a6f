//! The store's contract: one test for each promise of its documentation, on a real file. Foreign programs are plain
//! SQLite connections.

mod adding;
mod batches;
mod claiming;
mod commits;
mod delivering;
mod interface;
mod looking;
mod opening;
mod operating;
mod place;
mod pruning;
mod recording;
mod standing;
mod upgrading;

use std::sync::Arc;
use std::time::Duration;

use assetwatch::clock::Timestamp;
use assetwatch::decide::Verdict;
use assetwatch::delivery::{Attempt, Delivery, Parcel};
use assetwatch::event::{Addressee, Event, Notice, Subscription, Telling, Topic};
use assetwatch::standing::Standing;
use assetwatch::store::{AddOptions, Added, Claimed, Ending, Filter, Lane, Store, StoreError, TellBatch, Terms};
use assetwatch::watch::{Asset, Since, State, Watch};
use rusqlite::types::FromSql;
use rusqlite::{Connection, OptionalExtension};

const NOW: Timestamp = Timestamp::from_millis(1_790_000_000_000);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(86_400);

/// A database of its own.
struct Base {
    directory: tempfile::TempDir,
    store: Store,
}

impl Base {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("assetwatch.db")).await.unwrap();
        Self { directory, store }
    }

    /// Another program's connection.
    fn foreign(&self) -> Connection {
        let connection = Connection::open(self.store.path()).unwrap();
        connection.busy_timeout(Duration::from_secs(10)).unwrap();
        connection
    }

    /// What another program does.
    fn execute(&self, sql: &str) {
        self.foreign().execute_batch(sql).unwrap();
    }

    /// The first column of the first row, as another program sees it.
    fn ask<T: FromSql>(&self, sql: &str) -> T {
        self.foreign()
            .query_row(sql, [], |row| row.get(0))
            .optional()
            .unwrap()
            .unwrap_or_else(|| panic!("no row: {sql}"))
    }

    /// New watches of the account `default`.
    async fn add(&self, asset_ids: &[&str]) -> Vec<Watch> {
        let added = self.store.add(owned(asset_ids), plain(), NOW).await.unwrap();
        let watch = |added| match added {
            Added::New(watch) => *watch,
            other => panic!("{other:?}"),
        };
        added.into_iter().map(watch).collect()
    }

    async fn claim(&self, terms: Terms) -> Vec<Claimed<Watch>> {
        self.store.claim_watches(terms).await.unwrap()
    }

    /// One new watch, claimed.
    async fn leased(&self, asset_id: &str) -> Watch {
        let added = self.add(&[asset_id]).await;
        let only = Some(vec![added[0].id]);
        self.claim(Terms { only, ..terms(&[("default", 1)]) }).await.remove(0).rows.remove(0)
    }

    /// A watch that has settled, with one event of it for these hooks.
    async fn settled(&self, asset_id: &str, hooks: &[&str]) -> Watch {
        let watch = settled(&self.leased(asset_id).await);
        self.store.record(watch.clone(), vec![event(&watch, "asset.active", hooks)], nobody()).await.unwrap();
        watch
    }

    async fn parcels(&self, terms: Terms) -> Vec<Parcel> {
        self.store.claim_deliveries(terms).await.unwrap().into_iter().flat_map(|claimed| claimed.rows).collect()
    }

    /// Finishes an attempt with this verdict, whatever it says of the hook.
    async fn finish(
        &self,
        parcel: Parcel,
        attempt: Attempt,
        verdict: Verdict,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let rule = move |before: &Standing| Ending {
            verdict: verdict.clone(),
            standing: before.clone(),
            turn: None,
            events: Vec::new(),
        };
        self.store.finish(parcel, attempt, now, rule).await.map(drop)
    }

    async fn watch(&self, id: i64) -> Watch {
        let filter = Filter { ids: Some(vec![id]), ..Filter::default() };
        self.store.watches(filter).await.unwrap().remove(0)
    }

    async fn deliveries(&self, watch: i64) -> Vec<Delivery> {
        self.store.history(watch).await.unwrap().deliveries
    }
}

/// Nothing but the account.
fn plain() -> AddOptions {
    AddOptions { account: "default".into(), ..AddOptions::default() }
}

fn owned(asset_ids: &[&str]) -> Vec<String> {
    asset_ids.iter().map(|id| (*id).into()).collect()
}

fn lane(name: &str, room: u32) -> Lane {
    Lane { name: name.into(), room, avoid: None, prefer: None, lease: 20 * SECOND, again: room, again_first: false }
}

/// The terms of a claim by `us`, now.
fn terms(lanes: &[(&str, u32)]) -> Terms {
    let lanes = lanes.iter().map(|(name, room)| lane(name, *room)).collect();
    Terms { owner: "us".into(), lanes, now: NOW, horizon: NOW + 2 * HOUR, only: None, live: Vec::new() }
}

/// The terms of a claim so much later.
fn later(by: Duration, lanes: &[(&str, u32)]) -> Terms {
    Terms { now: NOW + by, horizon: NOW + by + 2 * HOUR, ..terms(lanes) }
}

/// The watch as it stands after its asset was seen `active`.
fn settled(watch: &Watch) -> Watch {
    let asset = Asset { status: Some("active".into()), url: Some("https://cdn.example/1".into()), ..Asset::default() };
    Watch { state: State::Settled, due_at: None, settled_at: Some(NOW), asset, polls: watch.polls + 1, ..watch.clone() }
}

/// The watch as it stands after a poll that leaves it waiting.
fn waiting(watch: &Watch, due_at: Timestamp) -> Watch {
    Watch { due_at: Some(due_at), polls: watch.polls + 1, ..watch.clone() }
}

fn event(watch: &Watch, event_type: &str, hooks: &[&str]) -> Event {
    Event {
        id: format!("evt_{}_{event_type}", watch.id),
        watch_id: Some(watch.id),
        event_type: event_type.into(),
        body: format!("{{\"type\": \"{event_type}\"}}").into_bytes(),
        created_at: NOW,
        addressees: hooks.iter().map(|hook| addressee(hook)).collect(),
    }
}

/// The batch's event, which no hook hears of.
fn nobody() -> TellBatch {
    told_to(&[])
}

/// The batch's event, for these hooks.
fn told_to(hooks: &[&str]) -> TellBatch {
    let addressees: Vec<Addressee> = hooks.iter().map(|hook| addressee(hook)).collect();
    Arc::new(move |batch| Event {
        id: format!("evt_{}", batch.name),
        watch_id: None,
        event_type: "batch.settled".into(),
        body: serde_json::to_vec(batch).unwrap(),
        created_at: batch.settled_at.unwrap(),
        addressees: addressees.clone(),
    })
}

fn addressee(hook: &str) -> Addressee {
    Addressee { hook: hook.into(), body: None, problem: None }
}

/// A hook that names one event type.
fn subscription(hook: &str, event_type: &str) -> Subscription {
    let on = vec![Topic::parse(event_type)];
    Subscription { hook: hook.into(), on, accounts: Vec::new(), batches: Vec::new(), body: None }
}

fn asset_ids(watches: &[Watch]) -> Vec<&str> {
    watches.iter().map(|watch| watch.asset_id.as_str()).collect()
}
