//! The server from bind to shutdown.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tensact::Pipeline;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsAcceptor;

use crate::auth::{ApiKeys, ApiKeysError};
use crate::config::{Config, ConfigError};
use crate::http::router;
use crate::listen::{self, TlsError};
use crate::serving::Serving;
use crate::telemetry::otlp::Otlp;

/// How long the end of the server waits for a collector.
const GOODBYE: Duration = Duration::from_secs(2);

/// The server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Settings contradict each other.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// API keys cannot be used.
    #[error(transparent)]
    ApiKeys(#[from] ApiKeysError),
    /// The certificate cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The address cannot be had.
    #[error("cannot listen on {address}: {source}; is another server running there?")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
}

/// A policy server. It listens from [`Server::bind`] on, and answers observations once it has a pipeline.
pub struct Server {
    serving: Arc<Serving>,
    listener: TcpListener,
    address: SocketAddr,
    tls: Option<TlsAcceptor>,
}

/// Stops a server, or gives it its policy, from elsewhere.
#[derive(Clone)]
pub struct Handle(Arc<Serving>);

impl Server {
    /// Listens. `keys` opens it for those who know one; without any everybody may come in. Telemetry is sent as `otlp`
    /// says.
    ///
    /// # Errors
    /// When settings or certificate cannot be used, or somebody else has the port.
    pub async fn bind(config: Config, keys: ApiKeys, otlp: Otlp) -> Result<Self, ServerError> {
        config.check()?;
        let tls = match (&config.server.tls_cert, &config.server.tls_key) {
            (Some(cert), Some(key)) => Some(listen::tls(cert, key)?),
            _ => None,
        };
        let address = config.server.address();
        let refused = |source| ServerError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(refused)?;
        let address = listener.local_addr().map_err(refused)?;
        Ok(Self { serving: Serving::new(config, keys, otlp), listener, address, tls })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its handle.
    pub fn handle(&self) -> Handle {
        Handle(Arc::clone(&self.serving))
    }

    /// Serves until it is stopped: then takes no more connections and observations, finishes what it has begun for at
    /// most the grace of its settings, tells robots that it goes, and shuts the pipeline down.
    pub async fn serve(self) {
        let Self { serving, listener, tls, .. } = self;
        let grace = serving.config.server.shutdown_grace();
        let router = router(&serving);
        let looks = Arc::clone(&serving);
        serving.tasks.spawn(async move { looks.keep_looking().await });
        listen::accept(listener, tls, Arc::clone(&serving), router).await;
        serving.tasks.close();
        let began = Instant::now();
        if timeout(grace, serving.tasks.wait()).await.is_err() {
            tracing::warn!("requests are still computed after {grace:?}: they are given up");
            serving.abandon.cancel();
            // What is left has nothing to wait for but goodbyes.
            serving.tasks.wait().await;
        }
        serving.look().await;
        if let Some(policy) = serving.policy() {
            policy.pipeline.shutdown(grace.saturating_sub(began.elapsed())).await;
        }
        send_the_rest(serving).await;
    }
}

/// Lets telemetry reach the collector, if it takes it soon.
async fn send_the_rest(serving: Arc<Serving>) {
    let (spans, metrics) = (Arc::clone(&serving), serving);
    let both = async {
        tokio::join!(
            on_a_thread(move || spans.traces.shut_down(GOODBYE)),
            on_a_thread(move || metrics.metrics.shut_down())
        )
    };
    if timeout(GOODBYE, both).await.is_err() {
        tracing::warn!("the collector did not take the last telemetry within {GOODBYE:?}");
    }
}

/// Does something that blocks; when nobody waits any more it goes on by itself.
async fn on_a_thread(work: impl FnOnce() + Send + 'static) {
    let (done, waits) = oneshot::channel();
    std::thread::spawn(move || {
        work();
        let _ = done.send(());
    });
    let _ = waits.await;
}

impl Handle {
    /// Lets observations in. Only the first pipeline counts.
    pub fn load(&self, pipeline: Pipeline) {
        self.0.load(pipeline);
    }

    /// Begins the end of [`Server::serve`].
    pub fn stop(&self) {
        self.0.stop.cancel();
    }
}
