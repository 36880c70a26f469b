//! How robots are served: the tables `[robot]`, `[server]` and `[telemetry]` of a deployment file.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use tensact::ProfileChoice;

/// The tables of a deployment file that the server reads.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Config {
    /// `[robot]`.
    pub robot: Robot,
    /// `[server]`.
    pub server: Server,
    /// `[telemetry]`.
    pub telemetry: Telemetry,
}

/// What is told about requests.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Telemetry {
    /// Requests that take longer are traced whatever the sampler says.
    pub slow_ms: f64,
}

impl Default for Telemetry {
    fn default() -> Self {
        Self { slow_ms: 1000.0 }
    }
}

/// Which robot connects.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Robot {
    /// `libero`, `droid`, `aloha`, `generic`, or a TOML file.
    pub profile: String,
    /// The instruction of observations without one.
    pub default_prompt: Option<String>,
    /// Tokenizer, if not in the checkpoint's folder.
    pub tokenizer: Option<PathBuf>,
    /// Which of the checkpoint's statistics.
    pub asset_id: Option<String>,
    /// Who remembers the last chunk in real-time chunking.
    pub rtc: RtcMode,
    /// Actions that a robot executes in a second.
    pub control_hz: Option<f64>,
    /// Actions that are executed before the next chunk takes over, where a robot does not say; all that are left by
    /// default.
    pub execution_horizon: Option<usize>,
}

impl Default for Robot {
    fn default() -> Self {
        Self {
            profile: "generic".into(),
            default_prompt: None,
            tokenizer: None,
            asset_id: None,
            rtc: RtcMode::Client,
            control_hz: None,
            execution_horizon: None,
        }
    }
}

/// Who remembers the last chunk in real-time chunking.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum RtcMode {
    /// The robot sends what it has not executed yet.
    #[default]
    Client,
    /// The server; the robot says how many actions of the last chunk it has executed.
    Server,
}

impl RtcMode {
    /// As settings write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
        }
    }
}

/// Where and how the server listens.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Server {
    /// Address; loopback unless told otherwise.
    pub host: IpAddr,
    /// Port; 0 for any free one.
    pub port: u16,
    /// File of API keys, one a line.
    pub api_keys: Option<PathBuf>,
    /// Certificate chain, PEM.
    pub tls_cert: Option<PathBuf>,
    /// Its key, PEM.
    pub tls_key: Option<PathBuf>,
    /// Passed on to robots when they connect.
    pub metadata: toml::Table,
    /// Time for requests in flight when the server stops.
    pub shutdown_ms: u64,
    /// What one client, or all together, may take.
    pub limits: Limits,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            host: Ipv4Addr::LOCALHOST.into(),
            port: 8000,
            api_keys: None,
            tls_cert: None,
            tls_key: None,
            metadata: toml::Table::new(),
            shutdown_ms: 10_000,
            limits: Limits::default(),
        }
    }
}

impl Server {
    /// Where to listen.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(self.host, self.port)
    }

    /// Time for requests in flight when the server stops.
    pub fn shutdown_grace(&self) -> Duration {
        Duration::from_millis(self.shutdown_ms)
    }
}

/// What one client, or all together, may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Bytes of one message.
    pub message_bytes: usize,
    /// Pixels of one image.
    pub image_pixels: usize,
    /// Connections of all clients.
    pub connections: usize,
    /// Connections from one address.
    pub connections_per_address: usize,
    /// Time to send a request's head, or to shake hands for TLS.
    pub header_ms: u64,
    /// Time without a word, a pong included, after which a robot is taken for gone; also the time that it may take to
    /// read an answer, or to send the body of a request.
    pub idle_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            message_bytes: 32 << 20,
            image_pixels: 4096 * 4096,
            connections: 1024,
            connections_per_address: 256,
            header_ms: 10_000,
            idle_ms: 60_000,
        }
    }
}

impl Limits {
    /// Time to send a request's head.
    pub fn header(&self) -> Duration {
        Duration::from_millis(self.header_ms)
    }

    /// Time without a word.
    pub fn idle(&self) -> Duration {
        Duration::from_millis(self.idle_ms)
    }
}

/// Settings that contradict each other, or cannot be.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ConfigError {
    /// The server cannot tell time in actions.
    #[error("rtc = \"server\" needs control_hz, the actions that the robot executes in a second")]
    NoControlRate,
    /// A rate that no robot has.
    #[error("control_hz is {0}: expected more than 0 actions in a second")]
    ControlRate(f64),
    /// A certificate without its key, or the other way round.
    #[error("TLS needs both tls_cert and tls_key")]
    HalfTls,
    /// A time that nothing takes.
    #[error("slow_ms in [telemetry] is {0}: expected a time in milliseconds above 0")]
    Slow(f64),
    /// A limit that nothing fits in.
    #[error("{0} in [server.limits] is 0: expected at least 1")]
    Limit(&'static str),
}

impl Config {
    /// Whether the settings fit each other.
    ///
    /// # Errors
    /// Names the first that does not.
    pub fn check(&self) -> Result<(), ConfigError> {
        match self.robot.control_hz {
            Some(rate) if !(rate > 0.0 && rate.is_finite()) => return Err(ConfigError::ControlRate(rate)),
            None if self.robot.rtc == RtcMode::Server => return Err(ConfigError::NoControlRate),
            _ => {}
        }
        if self.server.tls_cert.is_some() != self.server.tls_key.is_some() {
            return Err(ConfigError::HalfTls);
        }
        if !(self.telemetry.slow_ms > 0.0 && self.telemetry.slow_ms.is_finite()) {
            return Err(ConfigError::Slow(self.telemetry.slow_ms));
        }
        let Limits { message_bytes, image_pixels, connections, connections_per_address, header_ms, idle_ms } =
            self.server.limits;
        let zero = [
            ("message_bytes", message_bytes as u64),
            ("image_pixels", image_pixels as u64),
            ("connections", connections as u64),
            ("connections_per_address", connections_per_address as u64),
            ("header_ms", header_ms),
            ("idle_ms", idle_ms),
        ];
        match zero.into_iter().find(|(_, value)| *value == 0) {
            Some((name, _)) => Err(ConfigError::Limit(name)),
            None => Ok(()),
        }
    }

    /// Makes paths relative to a folder: that of the file they were read from.
    pub fn resolve(&mut self, folder: &Path) {
        let Server { api_keys, tls_cert, tls_key, .. } = &mut self.server;
        for path in [&mut self.robot.tokenizer, api_keys, tls_cert, tls_key].into_iter().flatten() {
            *path = folder.join(&path);
        }
        if let ProfileChoice::File(path) = ProfileChoice::from(self.robot.profile.as_str()) {
            self.robot.profile = folder.join(path).display().to_string();
        }
    }
}
