//! A small HTTP/1.1 server whose answers are scripted, faults included.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::{Latch, SOON, eventually};

/// One request, as it came.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    /// As it was sent, not decoded.
    pub path: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub at: std::time::Instant,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The last segment of the path.
    pub fn asset(&self) -> &str {
        self.path.rsplit('/').next().unwrap()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// What is answered.
#[derive(Clone, Debug)]
pub enum Reply {
    /// A whole answer; headers each end with a line break.
    Http { status: u16, headers: String, body: Vec<u8> },
    /// These bytes, and then the connection is closed.
    Raw(Vec<u8>),
    /// These bytes, and then one more every 50 ms, for ever.
    Drip(Vec<u8>),
    /// Nothing, ever.
    Hang,
    /// The connection is reset.
    Reset,
    /// That, as soon as the latch is open.
    When(Latch, Box<Reply>),
    /// That, after so long.
    Later(Duration, Box<Reply>),
}

impl Reply {
    pub fn status(status: u16) -> Self {
        Self::Http { status, headers: String::new(), body: Vec::new() }
    }

    pub fn json(body: impl ToString) -> Self {
        let headers = "content-type: application/json\r\n".into();
        Self::Http { status: 200, headers, body: body.to_string().into_bytes() }
    }

    pub fn with_header(self, name: &str, value: &str) -> Self {
        match self {
            Self::Http { status, headers, body } => {
                Self::Http { status, headers: format!("{headers}{name}: {value}\r\n"), body }
            }
            other => other,
        }
    }

    pub fn when(self, latch: &Latch) -> Self {
        Self::When(latch.clone(), Box::new(self))
    }

    pub fn later(self, delay: Duration) -> Self {
        Self::Later(delay, Box::new(self))
    }

    /// The asset with this status.
    pub fn asset(id: &str, status: &str) -> Self {
        let url = format!("https://cdn.example/{id}");
        Self::json(serde_json::json!({"data": {"id": id, "status": status, "type": "image", "url": url}}))
    }
}

type Handler = dyn Fn(&Request) -> Reply + Send + Sync;

/// A server on loopback; it ends when it is dropped.
pub struct Server {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
    connections: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Server {
    pub async fn start(handler: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (requests, connections) = (Arc::default(), Arc::new(AtomicUsize::new(0)));
        let accepting = accept(listener, Arc::new(handler), Arc::clone(&requests), Arc::clone(&connections));
        let task = tokio::spawn(accepting);
        Self { address, requests, connections, task }
    }

    /// An API in which every asset is `processing` at first and then has the status in its name: `active_7` is active.
    pub async fn api() -> Self {
        let seen = Mutex::new(std::collections::HashMap::<String, u32>::new());
        Self::start(move |request| {
            let id = request.asset().to_owned();
            let mut seen = seen.lock().unwrap();
            let polls = seen.entry(id.clone()).or_default();
            *polls += 1;
            let status = if *polls == 1 { "processing" } else { id.split('_').next().unwrap() };
            Reply::asset(&id, status)
        })
        .await
    }

    /// A receiver that takes everything.
    pub async fn receiver() -> Self {
        Self::start(|_| Reply::status(204)).await
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    /// How many connections were made.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    pub fn count(&self) -> usize {
        self.requests.lock().unwrap().len()
    }

    /// Waits until so many requests have come.
    pub async fn until(&self, count: usize) -> Vec<Request> {
        let what = format!("{count} requests at {}", self.address);
        eventually(SOON, &what, async || (self.count() >= count).then(|| self.requests())).await
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(
    listener: TcpListener,
    handler: Arc<Handler>,
    requests: Arc<Mutex<Vec<Request>>>,
    count: Arc<AtomicUsize>,
) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        count.fetch_add(1, Ordering::Relaxed);
        connections.spawn(serve(stream, Arc::clone(&handler), Arc::clone(&requests)));
        while connections.try_join_next().is_some() {}
    }
}

async fn serve(mut stream: TcpStream, handler: Arc<Handler>, requests: Arc<Mutex<Vec<Request>>>) {
    stream.set_nodelay(true).unwrap();
    let mut buffer = Vec::new();
    while let Some(request) = read_request(&mut stream, &mut buffer).await {
        let reply = handler(&request);
        requests.lock().unwrap().push(request);
        if !send(&mut stream, reply).await {
            return;
        }
    }
}

/// Whether the connection goes on.
async fn send(stream: &mut TcpStream, reply: Reply) -> bool {
    match reply {
        Reply::Http { status, headers, body } => {
            let length = if status == 204 { String::new() } else { format!("content-length: {}\r\n", body.len()) };
            let head = format!("HTTP/1.1 {status} X\r\n{length}{headers}\r\n");
            let answer = [head.into_bytes(), body].concat();
            stream.write_all(&answer).await.is_ok()
        }
        Reply::Raw(bytes) => {
            let _ = stream.write_all(&bytes).await;
            false
        }
        Reply::Drip(bytes) => {
            let mut alive = stream.write_all(&bytes).await.is_ok();
            while alive {
                tokio::time::sleep(Duration::from_millis(50)).await;
                alive = stream.write_all(b" ").await.is_ok();
            }
            false
        }
        Reply::Hang => std::future::pending().await,
        Reply::When(latch, then) => {
            latch.opened().await;
            Box::pin(send(stream, *then)).await
        }
        Reply::Later(delay, then) => {
            tokio::time::sleep(delay).await;
            Box::pin(send(stream, *then)).await
        }
        Reply::Reset => {
            let socket = socket2::SockRef::from(&*stream);
            socket.set_linger(Some(Duration::ZERO)).unwrap();
            false
        }
    }
}

async fn read_request(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<Request> {
    let end = loop {
        if let Some(at) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            break at;
        }
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8(buffer.drain(..end + 4).collect()).unwrap();
    let mut lines = head.lines();
    let mut first = lines.next()?.split(' ');
    let (method, path) = (first.next()?.to_owned(), first.next()?.to_owned());
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_lowercase(), value.trim().to_owned()))
        .collect();
    let length =
        headers.iter().find(|(name, _)| name == "content-length").map_or(0, |(_, length)| length.parse().unwrap());
    while buffer.len() < length {
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    }
    let body = buffer.drain(..length).collect();
    Some(Request { method, path, headers, body, at: std::time::Instant::now() })
}
