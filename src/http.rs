//! The control API: the verbs over HTTP, for programs, and the live dashboard for people.
//!
//! It speaks JSON, describes itself at `/openapi.json` (OpenAPI 3.1, generated from the handlers), and answers errors with
//! problem documents (RFC 9457). Who may ask is decided by `gate`; how much one caller may take up, by `listener`
//! and by the permits of streams and long polls.

mod adding;
mod dashboard;
mod deliveries;
mod events;
mod extract;
mod feed;
mod gate;
mod listener;
mod operator;
mod overview;
mod problem;
mod service;
mod watches;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::{StatusCode, Uri};
use axum::middleware;
use tokio::sync::{Semaphore, watch};
use utoipa::OpenApi;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub use gate::{Gate, GateError};
pub use listener::{BindError, Bound, bind};

use crate::control::Control;
use feed::Feed;
use problem::Problem;

/// The longest body that is read, in bytes: 10,000 of the longest ids, and what JSON adds to them.
const LONGEST_BODY: usize = 8 * 1024 * 1024;
/// So many answers may wait for something to happen at once, streams and long polls apart.
const MOST_STREAMS: usize = 512;
const MOST_LONG_POLLS: usize = 4_096;
/// How long streams and requests have to end when the server stops.
const GRACE: Duration = Duration::from_secs(2);

/// What the server answers from; a reload replaces it.
#[derive(Clone)]
pub struct Face {
    /// The verbs.
    pub control: Control,
    /// Who may ask.
    pub gate: Arc<Gate>,
    /// Writes down what is measured, in Prometheus's text format.
    pub metrics: Arc<dyn Fn() -> String + Send + Sync>,
}

/// What all handlers share.
#[derive(Clone)]
struct Server {
    face: watch::Receiver<Face>,
    feed: Feed,
    overview: overview::Cached,
    streams: Arc<Semaphore>,
    long_polls: Arc<Semaphore>,
    /// Resolves when the server stops: nobody is kept waiting then.
    stopping: watch::Receiver<bool>,
    document: Arc<str>,
}

impl Server {
    fn control(&self) -> Control {
        self.face.borrow().control.clone()
    }

    async fn stopped(&self) {
        let _ = self.stopping.clone().wait_for(|stopping| *stopping).await;
    }
}

/// Serves what `bound` accepts, until `stop` resolves; then streams and long polls are ended and requests that are under
/// way have a moment to end.
pub async fn serve(bound: Bound, face: watch::Receiver<Face>, stop: impl Future<Output = ()>) {
    let (announce, stopping) = watch::channel(false);
    let (router, document) = routes().split_for_parts();
    let store = face.borrow().control.store.clone();
    let feed = Feed::default();
    // What was told before the server was there is nobody's news; if it cannot be read, what is read twice does no harm.
    let position = store.latest_event().await.unwrap_or_default();
    let server = Server {
        face,
        feed: feed.clone(),
        overview: overview::Cached::default(),
        streams: Arc::new(Semaphore::new(MOST_STREAMS)),
        long_polls: Arc::new(Semaphore::new(MOST_LONG_POLLS)),
        stopping,
        document: document.to_json().unwrap_or_default().into(),
    };
    let router = guarded(router, server);
    let accepting = async {
        tokio::select! {
            () = feed.run(&store, position) => {}
            () = bound.accept(router) => {}
            () = stop => {}
        }
    };
    accepting.await;
    announce.send_replace(true);
    bound.close(GRACE).await;
}

/// All routes, with their description.
fn routes() -> OpenApiRouter<Server> {
    OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(watches::list, adding::add))
        .routes(routes!(watches::get, watches::cancel))
        .routes(routes!(watches::history))
        .routes(routes!(watches::poll))
        .routes(routes!(events::list))
        .routes(routes!(events::stream))
        .routes(routes!(deliveries::list))
        .routes(routes!(deliveries::retry))
        .routes(routes!(operator::hooks))
        .routes(routes!(operator::accounts))
        .routes(routes!(overview::get))
        .routes(routes!(overview::stream))
        .routes(routes!(service::healthz))
        .routes(routes!(service::readyz))
        .routes(routes!(service::metrics))
        .routes(routes!(service::document))
}

fn guarded(router: Router<Server>, server: Server) -> Router {
    router
        .merge(dashboard::routes())
        .fallback(async |uri: Uri| {
            Problem::new(
                StatusCode::NOT_FOUND,
                format!("there is nothing at {}; /openapi.json says what there is", uri.path()),
            )
        })
        .method_not_allowed_fallback(async || {
            Problem::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "this method is not for this address; `Allow` says which ones are",
            )
        })
        .layer(DefaultBodyLimit::max(LONGEST_BODY))
        .layer(middleware::from_fn_with_state(server.clone(), gate::guard))
        .with_state(server)
}

/// The description's head; the rest comes with the routes.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "assetwatch",
        description = "Follows Affogato assets until they settle. Instants are RFC 3339, and what is absent is null. \
                       Errors are problem documents (RFC 9457). With a token configured, everything but `/`, `/healthz`, \
                       `/readyz` and `/openapi.json` asks for it.",
        license(name = "MIT OR Apache-2.0", identifier = "MIT OR Apache-2.0"),
    ),
    tags(
        (name = "watches", description = "Assets that are followed until they settle"),
        (name = "events", description = "Facts that were told"),
        (name = "deliveries", description = "Events on their way to hooks"),
        (name = "operation", description = "How everything stands"),
    ),
    modifiers(&Token),
    security((), ("token" = [])),
)]
struct Document;

/// The token, where one is configured.
struct Token;

impl utoipa::Modify for Token {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
        document.components.get_or_insert_default().add_security_scheme("token", SecurityScheme::Http(scheme));
    }
}
