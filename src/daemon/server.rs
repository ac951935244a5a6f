//! The HTTP server of a daemon: bound before the work begins, told of each engine, stopped with the last one.

use std::sync::Arc;

use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use super::engine::Engine;
use crate::config::Settings;
use crate::control::Control;
use crate::http::{self, Bound, Face, Gate, GateError};
use crate::store::Store;
use crate::telemetry::Metrics;

/// The server, if one is configured.
pub(super) struct Server {
    bound: Option<Bound>,
    gate: Option<Arc<Gate>>,
    metrics: Option<Metrics>,
    store: Option<Store>,
    running: Option<Running>,
}

struct Running {
    face: watch::Sender<Face>,
    serving: JoinHandle<()>,
    stop: oneshot::Sender<()>,
}

impl Server {
    /// Begins to listen; nothing is answered yet.
    pub async fn bind(settings: &Settings, metrics: Option<Metrics>) -> anyhow::Result<Self> {
        let Some(http) = &settings.http else {
            return Ok(Self { bound: None, gate: None, metrics, store: None, running: None });
        };
        let gate = Arc::new(Gate::new(http)?);
        let bound = http::bind(&http.listen).await?;
        let address = bound.address().map_or_else(|| http.listen.to_string(), |address| format!("http://{address}"));
        tracing::info!("listening on {address}");
        Ok(Self { bound: Some(bound), gate: Some(gate), metrics, store: None, running: None })
    }

    /// Answers with these verbs from now on.
    pub fn show(&mut self, control: &Control, engine: &Engine) {
        let Some(gate) = self.gate.clone() else { return };
        // What callers look up must not hold up the work, whose looks are short.
        let store = self.store.get_or_insert_with(|| control.store.beside()).clone();
        let control = Control { store, running: engine.running(), ..control.clone() };
        let metrics = self.metrics.clone();
        let face =
            Face { control, gate, metrics: Arc::new(move || metrics.as_ref().map(Metrics::text).unwrap_or_default()) };
        if let Some(running) = &self.running {
            running.face.send_replace(face);
        } else if let Some(bound) = self.bound.take() {
            let (face, shown) = watch::channel(face);
            let (stop, stopped) = oneshot::channel();
            let serving = http::serve(bound, shown, async { drop(stopped.await) });
            self.running = Some(Running { face, serving: tokio::spawn(serving), stop });
        }
    }

    /// Whom the server admits by these settings; none when there is no server.
    pub fn gate(settings: &Settings) -> Result<Option<Arc<Gate>>, GateError> {
        settings.http.as_ref().map(|http| Gate::new(http).map(Arc::new)).transpose()
    }

    /// Admits by this gate from the next [`Server::show`] on.
    pub fn admit(&mut self, gate: Option<Arc<Gate>>) {
        self.gate = gate;
    }

    /// Waits until the server ends by itself, which it never should.
    pub async fn ended(&mut self) {
        match &mut self.running {
            Some(running) => drop((&mut running.serving).await),
            None => std::future::pending().await,
        }
    }

    /// Ends streams and long polls, and waits for requests that are under way.
    pub async fn stop(self) {
        if let Some(running) = self.running {
            // An error means that it has ended already.
            let _ = running.stop.send(());
            let _ = running.serving.await;
        }
    }
}
