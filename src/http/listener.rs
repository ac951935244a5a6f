//! Where the server listens, and how much it takes from one caller.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_io_timeout::TimeoutStream;

use crate::config::Listen;

/// So many connections are open at once; more wait in the system's queue.
const MOST_CONNECTIONS: usize = 6_000;
/// Descriptors that are left to everything else, when the system allows few.
const OTHER_DESCRIPTORS: u64 = 256;
/// A request's head has to be there after this; a connection on which nothing is asked is closed after it.
const HEAD_TIME: Duration = Duration::from_secs(15);
/// A caller that takes nothing of its answer for so long is given up, and what was kept for it is free again.
const STALL_TIME: Duration = Duration::from_secs(30);
/// The longest head of a request, in bytes.
const LONGEST_HEAD: usize = 64 * 1024;
/// Between two tries to accept when the system has no descriptors left.
const NAP: Duration = Duration::from_secs(1);
/// After so long without such a failure it is over. One that gets a descriptor now and then has not enough of them.
const QUIET: Duration = Duration::from_secs(3);

/// Why the server cannot listen.
#[derive(Debug, thiserror::Error)]
#[error("http.listen: cannot listen on {listen}: {why}")]
pub struct BindError {
    listen: Listen,
    why: String,
}

type BoxFuture = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A listener that accepts.
pub struct Bound {
    socket: Socket,
    _file: Option<SocketFile>,
    connections: Arc<Semaphore>,
    open: Mutex<JoinSet<()>>,
    closing: watch::Sender<bool>,
}

enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// The file of a socket; removed with the listener, unless it has become another one's.
struct SocketFile {
    path: PathBuf,
    inode: u64,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if std::fs::symlink_metadata(&self.path).is_ok_and(|file| file.ino() == self.inode) {
            // It is not missed if it stays: the next start replaces it.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Begins to listen.
///
/// # Errors
/// When the address is taken, not one of this machine's, or not allowed to us.
pub async fn bind(listen: &Listen) -> Result<Bound, BindError> {
    let socket = match listen {
        Listen::Tcp(address) => TcpListener::bind(address).await.map(|listener| (Socket::Tcp(listener), None)),
        Listen::Unix(path) => bind_unix(path).map(|(listener, file)| (Socket::Unix(listener), Some(file))),
    };
    let (socket, file) = socket.map_err(|error| BindError { listen: listen.clone(), why: explained(&error) })?;
    Ok(Bound {
        socket,
        _file: file,
        connections: Arc::new(Semaphore::new(room())),
        open: Mutex::default(),
        closing: watch::Sender::new(false),
    })
}

fn explained(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::AddrInUse => "somebody else listens there; end that, or choose another address".into(),
        ErrorKind::AddrNotAvailable => "it is no address of this machine".into(),
        ErrorKind::PermissionDenied => format!("{error}; ports below 1024 and foreign directories need more rights"),
        ErrorKind::NotFound => "its directory does not exist".into(),
        _ => error.to_string(),
    }
}

/// A socket that a process has left behind is replaced; one at which somebody listens is not.
fn bind_unix(path: &Path) -> io::Result<(UnixListener, SocketFile)> {
    match std::fs::symlink_metadata(path).map(|file| file.file_type()) {
        Ok(kind) if kind.is_socket() => match std::os::unix::net::UnixStream::connect(path) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => std::fs::remove_file(path)?,
            Err(error) => return Err(error),
            Ok(_) => return Err(ErrorKind::AddrInUse.into()),
        },
        Ok(kind) => return Err(no_socket(kind)),
        // Nothing is there, or it is said when the socket is made.
        Err(_) => {}
    }
    let listener = UnixListener::bind(path)?;
    // Whoever may write to it may ask; its group may, as it may write to the database.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    let inode = std::fs::symlink_metadata(path)?.ino();
    Ok((listener, SocketFile { path: path.to_owned(), inode }))
}

/// It may be anything of somebody's, so it is not ours to remove; the system would call the address taken.
fn no_socket(kind: std::fs::FileType) -> io::Error {
    let kind = match kind {
        kind if kind.is_file() => "a plain file",
        kind if kind.is_dir() => "a directory",
        kind if kind.is_symlink() => "a symbolic link",
        _ => "something else",
    };
    let why = format!("there is {kind} and no socket, which is left alone; move it away, or choose another path");
    io::Error::new(ErrorKind::AlreadyExists, why)
}

/// How many connections there is room for. The soft limit of descriptors is for programs that cannot deal with many, so
/// it is raised.
fn room() -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let wanted = MOST_CONNECTIONS as u64 + OTHER_DESCRIPTORS;
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = maximum.map_or(wanted, |maximum| maximum.min(wanted));
    let allowed = match current {
        Some(current) if current < raised => {
            let set = setrlimit(Resource::Nofile, Rlimit { current: Some(raised), maximum });
            if set.is_ok() { raised } else { current }
        }
        Some(current) => current,
        None => wanted,
    };
    let left = allowed.saturating_sub(OTHER_DESCRIPTORS).max(allowed / 4);
    usize::try_from(left).unwrap_or(MOST_CONNECTIONS).clamp(1, MOST_CONNECTIONS)
}

impl Bound {
    /// The address with its port, if it is one of the network.
    pub fn address(&self) -> Option<SocketAddr> {
        match &self.socket {
            Socket::Tcp(listener) => listener.local_addr().ok(),
            Socket::Unix(_) => None,
        }
    }

    /// Accepts connections, for ever.
    pub(super) async fn accept(&self, router: Router) {
        let mut troubled: Option<Instant> = None;
        loop {
            let Ok(permit) = Arc::clone(&self.connections).acquire_owned().await else { return };
            let accepted = match &self.socket {
                Socket::Tcp(listener) => listener.accept().await.map(|(stream, _)| {
                    // An answer is written at once; there is nothing to gather.
                    let _ = stream.set_nodelay(true);
                    self.begin(stream, router.clone(), permit)
                }),
                Socket::Unix(listener) => {
                    listener.accept().await.map(|(stream, _)| self.begin(stream, router.clone(), permit))
                }
            };
            match accepted {
                Ok(connection) => {
                    if troubled.take_if(|failed| failed.elapsed() >= QUIET).is_some() {
                        tracing::info!("connections are accepted again");
                    }
                    self.keep(connection).await;
                }
                Err(error) if matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset) => {}
                Err(error) => {
                    if troubled.replace(Instant::now()).is_none() {
                        tracing::warn!("no connection can be accepted: {error}");
                    }
                    sleep(NAP).await;
                }
            }
        }
    }

    async fn keep(&self, connection: BoxFuture) {
        let mut open = self.open.lock().await;
        while open.try_join_next().is_some() {}
        open.spawn(connection);
    }

    fn begin<S>(&self, stream: S, router: Router, permit: OwnedSemaphorePermit) -> BoxFuture
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        // It counts only while something is to be written: a stream that has nothing to say stays.
        let mut stream = TimeoutStream::new(stream);
        stream.set_write_timeout(Some(STALL_TIME));
        let stream = Box::pin(stream);
        let mut closing = self.closing.subscribe();
        Box::pin(async move {
            let _permit = permit;
            let mut http = http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIME).max_buf_size(LONGEST_HEAD);
            let mut serving = pin!(http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router)));
            tokio::select! {
                // What a caller does wrong with its connection is its own affair.
                _ = serving.as_mut() => return,
                _ = closing.wait_for(|closing| *closing) => serving.as_mut().graceful_shutdown(),
            }
            let _ = serving.await;
        })
    }

    /// Accepts no more, and gives the requests that are under way `grace` to end.
    pub(super) async fn close(self, grace: Duration) {
        drop(self.socket);
        self.closing.send_replace(true);
        let mut open = self.open.into_inner();
        let all = async { while open.join_next().await.is_some() {} };
        // What is left after that is dropped with the set.
        let _ = timeout(grace, all).await;
    }
}
