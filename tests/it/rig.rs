//! The rig: a scripted API, a receiver, and a daemon process that must not end early. Events are awaited, never slept for.

mod browser;
mod caller;
mod daemon;
mod faults;
mod ledger;
mod server;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub use browser::{Browser, DOWN, ENTER, ESCAPE, TAB};
pub use caller::{Caller, answer, served};
pub use daemon::{Daemon, Run, run, run_through, run_with};
pub use faults::{Latch, Tmpfs, WriteLock, executable, now};
pub use ledger::{MARGIN, Tally, all_told, assert_leases_at_most, assert_sound, breaches, ids, tally};
pub use server::{Reply, Request, Server};

/// Longer than anything takes that works, even on a busy machine.
pub const SOON: Duration = Duration::from_secs(30);

/// Waits until `ready` has a value; the only sleep in the tests.
pub async fn eventually<T, F>(deadline: Duration, what: &str, mut ready: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let started = Instant::now();
    loop {
        if let Some(value) = ready().await {
            return value;
        }
        assert!(started.elapsed() < deadline, "not within {deadline:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The seed of a random run; `ASSETWATCH_TEST_SEED` replays one, as far as the machine's own timing allows.
pub fn seed() -> u64 {
    let seed = std::env::var("ASSETWATCH_TEST_SEED").ok().map(|seed| seed.parse().expect("a number"));
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    println!("ASSETWATCH_TEST_SEED={seed}");
    seed
}

/// A directory with a key, a secret, a configuration and a database.
pub struct Place {
    directory: tempfile::TempDir,
}

/// The key that the place's configuration names.
pub const KEY: &str = "key-for-tests";
/// The secret of its webhooks.
pub const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

impl Place {
    /// A place whose configuration names `api`, backs off quickly, and goes on with `more` (TOML).
    pub fn new(api: &Server, more: &str) -> Self {
        Self::at(&api.url(), more)
    }

    /// A place whose configuration names an API at this address.
    pub fn at(api: &str, more: &str) -> Self {
        let place = Self { directory: tempfile::tempdir().unwrap() };
        std::fs::write(place.path("key"), format!("{KEY}\n")).unwrap();
        std::fs::write(place.path("secret"), format!("{SECRET}\n")).unwrap();
        place.configure(api, more);
        place
    }

    /// Writes the configuration anew.
    pub fn configure(&self, api: &str, more: &str) {
        let text = format!(
            "database = \"assetwatch.db\"\ngrace = \"2s\"\n\
             [api]\nurl = \"{}\"\nkey_file = \"key\"\nrate = 10000\ntimeout = \"2s\"\n\
             [backoff]\ninitial = \"100ms\"\nmax = \"400ms\"\n{more}",
            api
        );
        std::fs::write(self.config(), text).unwrap();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn config(&self) -> PathBuf {
        self.path("assetwatch.toml")
    }

    /// A connection to the database, as any other program would have one.
    pub fn database(&self) -> rusqlite::Connection {
        let connection = rusqlite::Connection::open(self.path("assetwatch.db")).unwrap();
        connection.busy_timeout(Duration::from_secs(10)).unwrap();
        connection
    }

    /// The first column of the first row of `sql`, if there is one.
    pub fn ask<T: rusqlite::types::FromSql>(&self, sql: &str) -> Option<T> {
        use rusqlite::OptionalExtension;
        self.database().query_row(sql, [], |row| row.get(0)).optional().unwrap()
    }

    /// Waits until `sql` gives `expected`.
    pub async fn until(&self, sql: &str, expected: i64) {
        eventually(SOON, sql, async || (self.ask::<i64>(sql) == Some(expected)).then_some(())).await;
    }

    /// The state of the newest watch of an asset.
    pub fn state(&self, asset_id: &str) -> Option<String> {
        self.ask(&format!("SELECT state FROM watches WHERE asset_id = '{asset_id}' ORDER BY id DESC"))
    }

    /// Waits until an asset's watch is in `state`.
    pub async fn until_state(&self, asset_id: &str, state: &str) {
        let what = format!("{asset_id} is {state}");
        eventually(SOON, &what, async || (self.state(asset_id).as_deref() == Some(state)).then_some(())).await;
    }
}

/// The binary under test.
pub fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_assetwatch"))
}

/// A webhook hook named `cms` at `receiver`.
pub fn webhook(receiver: &Server) -> String {
    format!("[[hooks]]\nname = \"cms\"\nurl = \"{}/hook\"\nsecret_file = \"secret\"\n", receiver.url())
}

/// Whether a received webhook was signed with [`SECRET`], by an implementation that is not ours.
pub fn is_signed(request: &Request) -> bool {
    let secret = standardwebhooks::Webhook::new(SECRET).unwrap();
    let mut headers = standardwebhooks_headers();
    for name in ["webhook-id", "webhook-timestamp", "webhook-signature"] {
        headers.insert(name, request.header(name).unwrap_or_default().parse().unwrap());
    }
    secret.verify(&request.body, &headers).is_ok()
}

fn standardwebhooks_headers() -> http::HeaderMap {
    http::HeaderMap::new()
}
