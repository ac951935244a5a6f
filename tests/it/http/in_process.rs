//! The server in this process, on a paused clock: for what takes minutes. Its socket is in the file system, where what one
//! side writes is at once there for the other, so that no time passes on the way.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use assetwatch::clock::{Clock, Timestamp};
use assetwatch::config::{Http, Listen};
use assetwatch::control::{Control, Running};
use assetwatch::http::{Face, Gate, bind, serve};
use assetwatch::store::{AddOptions, Blocking, Store};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, timeout};

const MINUTE: Duration = Duration::from_secs(60);

/// A server, until it is dropped.
struct Served {
    directory: tempfile::TempDir,
    store: Store,
    /// How long the database takes for whatever it is asked.
    slowness: Arc<Mutex<Duration>>,
    serving: tokio::task::JoinHandle<()>,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Served {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let slowness = Arc::new(Mutex::new(Duration::ZERO));
        let slow = Arc::clone(&slowness);
        let blocking = Blocking::new(move |work| {
            let slowness = *slow.lock().unwrap();
            tokio::spawn(async move {
                sleep(slowness).await;
                tokio::task::spawn_blocking(work).await.unwrap();
            });
        });
        let store = Store::open_with(&directory.path().join("assetwatch.db"), blocking).await.unwrap();
        let control = Control {
            store: store.clone(),
            clock: Clock::new(|| Timestamp::from_millis(1_790_000_000_000)),
            hooks: Vec::new(),
            accounts: vec!["default".into()],
            running: Running::default(),
        };
        let http = Http { listen: Listen::Unix(socket(&directory)), token: None, hosts: Vec::new() };
        let gate = Arc::new(Gate::new(&http).unwrap());
        let face = Face { control, gate, metrics: Arc::new(String::new) };
        let bound = bind(&http.listen).await.unwrap();
        let serving = tokio::spawn(async move {
            let (_face, shown) = tokio::sync::watch::channel(face);
            serve(bound, shown, std::future::pending()).await;
        });
        Self { directory, store, slowness, serving }
    }

    /// Asks, and reads nothing.
    async fn ask(&self, path: &str) -> UnixStream {
        let mut stream = UnixStream::connect(socket(&self.directory)).await.unwrap();
        let head = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        stream
    }

    async fn add(&self, count: u32, metadata: &str) {
        let asset_ids = (0..count).map(|n| format!("slow_{n}")).collect();
        let options =
            AddOptions { account: "default".into(), metadata: Some(metadata.into()), ..AddOptions::default() };
        self.store.add(asset_ids, options, Timestamp::default()).await.unwrap();
    }

    fn huge_event(&self, bytes: u32) {
        let sql = "INSERT INTO events (id, type, body, created_at)
            VALUES ('evt_huge', 'asset.active', CAST('{\"x\":\"' || printf('%.*c', ?1, 'x') || '\"}' AS BLOB), 0)";
        rusqlite::Connection::open(self.store.path()).unwrap().execute(sql, [bytes]).unwrap();
    }
}

fn socket(directory: &tempfile::TempDir) -> PathBuf {
    directory.path().join("control.sock")
}

/// What comes until the server hangs up.
async fn rest(stream: &mut UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    // A connection that was cut may say so.
    let _ = stream.read_to_end(&mut bytes).await;
    bytes
}

/// What comes within a time.
async fn heard(stream: &mut UnixStream, time: Duration) -> String {
    let mut bytes = Vec::new();
    let _ = timeout(time, async { while stream.read_buf(&mut bytes).await.unwrap() > 0 {} }).await;
    String::from_utf8(bytes).unwrap()
}

#[tokio::test(start_paused = true)]
async fn an_overview_that_is_there_is_answered_at_once_while_a_stream_waits_for_its_next() {
    let served = Served::new().await;
    let mut stream = served.ask("/v1/overview/stream").await;
    let first = heard(&mut stream, MINUTE / 600).await;
    assert!(first.contains("\"waiting\":0"), "{first}");
    // The stream may tell of it when a second has passed since it looked.
    served.add(1, "1").await;
    sleep(MINUTE / 120).await;
    let begun = Instant::now();
    let answer = rest(&mut served.ask("/v1/overview").await).await;
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.contains("\"waiting\":0"), "{answer}");
    assert!(begun.elapsed() < MINUTE / 600, "{:?}", begun.elapsed());
    let next = heard(&mut stream, MINUTE / 60).await;
    assert!(next.contains("\"waiting\":1"), "{next}");
}

#[tokio::test(start_paused = true)]
async fn a_stream_of_the_overview_is_not_silent_while_a_look_takes_long() {
    let served = Served::new().await;
    // It is there, and needs the database no more to begin.
    rest(&mut served.ask("/healthz").await).await;
    *served.slowness.lock().unwrap() = 2 * MINUTE;
    let mut stream = served.ask("/v1/overview/stream").await;
    for part in 1..=3 {
        let silent = heard(&mut stream, MINUTE / 2).await;
        assert!(silent.contains(":\n\n") && !silent.contains("data"), "{part}: {silent}");
    }
    // It asks several times.
    let told = heard(&mut stream, 30 * MINUTE).await;
    assert!(told.contains("event: overview\ndata: "), "{told}");
}

/// The sizes of the pieces in which an answer was sent.
fn pieces(answer: &str) -> Vec<usize> {
    let (_, mut rest) = answer.split_once("\r\n\r\n").unwrap();
    let mut sizes = Vec::new();
    while let Some((size, after)) = rest.split_once("\r\n") {
        sizes.push(usize::from_str_radix(size, 16).unwrap());
        rest = after.get(sizes[sizes.len() - 1] + 2..).unwrap_or_default();
    }
    sizes
}

/// However much callers give along with their assets, and however many streams are behind.
#[tokio::test(start_paused = true)]
async fn a_stream_keeps_little_of_the_events_that_it_has_not_sent() {
    let served = Served::new().await;
    let database = rusqlite::Connection::open(served.store.path()).unwrap();
    let happens = async |path: &str| {
        let mut stream = served.ask(path).await;
        let begin = heard(&mut stream, MINUTE / 60).await;
        let sql = "WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 100)
            INSERT INTO events (id, type, body, created_at)
            SELECT 'evt_' || hex(randomblob(8)), 'asset.active', CAST('{\"x\":\"' || printf('%.*c', 20000, 'x') || '\"}' AS BLOB), 0 FROM n";
        database.execute(sql, []).unwrap();
        begin + &heard(&mut stream, MINUTE).await
    };
    for path in ["/v1/events/stream", "/v1/events/stream?last_event_id=0"] {
        let sent = happens(path).await;
        let count = if path.contains('?') { 200 } else { 100 };
        assert_eq!(sent.matches("event: asset.active\n").count(), count, "{path}");
        let largest = pieces(&sent).into_iter().max().unwrap();
        assert!((100_000..300_000).contains(&largest), "{path}: {largest}");
    }
    // One event is never too long.
    served.huge_event(900_000);
    let mut stream = served.ask("/v1/events/stream?last_event_id=200").await;
    assert!(heard(&mut stream, MINUTE).await.contains("evt_huge"));
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_takes_nothing_of_its_answer_is_given_up() {
    let served = Served::new().await;
    // One row is given whole, however large it is.
    served.huge_event(9_000_000);
    let mut whole = served.ask("/v1/events").await;
    let whole = rest(&mut whole).await;
    assert!(whole.len() > 8_000_000, "{}", whole.len());

    let mut slow = served.ask("/v1/events").await;
    let (mut taken, mut some) = (0, vec![0; 1_000_000]);
    let begun = Instant::now();
    loop {
        sleep(MINUTE / 3).await;
        match slow.read(&mut some).await.unwrap() {
            0 => break,
            read => taken += read,
        }
    }
    assert!(begun.elapsed() > MINUTE, "it has to be slower than what is given up");
    assert_eq!(taken, whole.len(), "whoever takes something now and then gets all of it");

    let mut stalled = served.ask("/v1/events").await;
    sleep(MINUTE).await;
    let part = rest(&mut stalled).await;
    assert!(part.len() < whole.len() / 2, "{} of {}", part.len(), whole.len());
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_has_nothing_to_say_stays() {
    let served = Served::new().await;
    for path in ["/v1/events/stream", "/v1/overview/stream"] {
        let mut stream = served.ask(path).await;
        let ended = timeout(10 * MINUTE, rest(&mut stream)).await;
        assert!(ended.is_err(), "{}", String::from_utf8_lossy(&ended.unwrap()));
    }
}
