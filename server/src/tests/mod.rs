//! The server under a clock that stands still while somebody works, over streams in memory: robots, strangers and clients
//! that mean no good, without a socket. The chips are emulated, and their digests show whose answer an answer is.

mod abuse;
mod dashboard;
mod http;
mod limits;
mod protocol;
pub(crate) mod robot;
mod soak;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use axum::{Extension, Router};
use tensact::runtime::checkpoint::synth::SynthSize;
use tensact::topology::{Deployment, Variant};
use tensact::{Options, Pipeline, ProfileChoice};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, Join, join};
use tokio::time::Duration;

use crate::auth::ApiKeys;
use crate::config::Config;
use crate::http::router;
use crate::listen::{Connections, connection};
use crate::serving::Serving;
use crate::telemetry::otlp::Otlp;
use robot::Robot;

/// One end of a connection: what is read, and what is written.
type Line = Join<DuplexStream, DuplexStream>;

/// Bytes that a stream holds that nobody reads.
const STREAM_BYTES: usize = 64 << 10;

/// The same for answers on a connection that is soon full.
const NARROW_BYTES: usize = 256;

/// Settings with a change.
fn config(change: impl FnOnce(&mut Config)) -> Config {
    let mut config = Config::default();
    change(&mut config);
    config
}

/// A server that is reached through memory.
pub(super) struct Site {
    pub(super) serving: Arc<Serving>,
    router: Router,
    connections: Arc<Connections>,
}

impl Site {
    /// A server without a policy yet.
    fn loading(config: Config, keys: ApiKeys) -> Self {
        let serving = Serving::new(config, keys, Otlp::default());
        let router = router(&serving);
        Self { serving, router, connections: Arc::default() }
    }

    /// A generic robot's policy of tiny size on one emulated chip.
    async fn new(config: Config) -> Self {
        Self::with_limits(config, "").await
    }

    /// The same with more lines in the deployment.
    async fn with_limits(config: Config, limits: &str) -> Self {
        let site = Self::loading(config, ApiKeys::default());
        site.load(limits).await;
        site
    }

    async fn load(&self, limits: &str) {
        let text = format!("board = 'p150a'\ncheckpoint = ''\n{limits}\n[[pipeline]]\nchips = [0]\n");
        let deployment = Deployment::parse("test", &text).unwrap();
        let sizes = SynthSize::Tiny.sizes(Variant::Pi0);
        let profile = ProfileChoice::Named(self.serving.config.robot.profile.clone());
        let options = Options { profile, ..Options::default() };
        let pipeline = Pipeline::emulated(&deployment, &sizes, &options).await.unwrap();
        self.serving.load(pipeline);
    }

    /// A connection from this machine.
    fn dial(&self) -> Line {
        self.dial_from(Ipv4Addr::LOCALHOST.into())
    }

    /// A connection that holds little of what its client does not read.
    fn dial_narrow(&self) -> Line {
        self.dial_through(Ipv4Addr::LOCALHOST.into(), NARROW_BYTES)
    }

    fn dial_from(&self, address: IpAddr) -> Line {
        self.dial_through(address, STREAM_BYTES)
    }

    fn dial_through(&self, address: IpAddr, bytes: usize) -> Line {
        let (up, server_up) = tokio::io::duplex(STREAM_BYTES);
        let (down, server_down) = tokio::io::duplex(bytes);
        let (near, far) = (join(down, up), join(server_up, server_down));
        let (seat, admission) = self.connections.enter(&self.serving, address).unwrap();
        let router = self.router.clone().layer(Extension(admission));
        self.serving.tasks.spawn(connection(far, seat, Arc::clone(&self.serving), router));
        near
    }

    async fn robot(&self) -> Robot {
        Robot::connect(self.dial()).await
    }

    /// All that a request over HTTP brings back.
    async fn http(&self, request: &str) -> String {
        let mut stream = self.dial();
        let mut answer = String::new();
        // A server that has stopped does not listen.
        if stream.write_all(request.as_bytes()).await.is_ok() {
            stream.read_to_string(&mut answer).await.unwrap();
        }
        answer
    }

    async fn get(&self, path: &str) -> String {
        self.http(&format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n")).await
    }

    /// What an answer that has no end begins with: as much as holds `mark` so many times.
    async fn get_until(&self, path: &str, mark: &str, times: usize) -> String {
        let mut stream = self.dial();
        let request = format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let (mut answer, mut part) = (String::new(), [0; 4096]);
        while answer.matches(mark).count() < times {
            let read = stream.read(&mut part).await.unwrap();
            assert!(read > 0, "{answer}");
            answer += std::str::from_utf8(&part[..read]).unwrap();
        }
        answer
    }

    /// Waits until the pipeline works on something.
    async fn in_flight(&self) {
        let pipeline = &self.serving.policy().unwrap().pipeline;
        while pipeline.stats().await.pipelines[0].in_flight == 0 {
            tokio::task::yield_now().await;
        }
    }

    /// Nothing is left of anybody.
    async fn assert_empty(&self) {
        while !self.serving.tasks.is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(self.serving.metrics.connections.get(), 0);
        assert_eq!(self.serving.metrics.sessions.get(), 0);
        assert!(self.connections.is_empty());
        let pipeline = &self.serving.policy().unwrap().pipeline;
        while pipeline.stats().await.pipelines.iter().any(|pipeline| pipeline.in_flight > 0) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(pipeline.stats().await.waiting, 0);
    }
}
