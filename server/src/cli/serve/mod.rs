//! `tensact serve`: a policy for robots on the network.

mod logs;

use std::env::VarError;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{ArgGroup, Args};
use miette::miette;
use tensact::runtime::preprocess::statistics::Source;
use tensact::topology::Deployment;
use tensact::topology::descriptor::ReadError;
use tensact::{Options, Pipeline, ProfileChoice};
use tensact_server::config::{Config, RtcMode};
use tensact_server::trace::{Full, Recording, Run, Subject};
use tensact_server::{ApiKeys, Handle, Otlp, Server};
use tokio::signal::unix::{SignalKind, signal};

use super::policy_sizes::deployed_sizes;
use super::trace::{Recorded, TraceOut, finish};
use super::{HostOptions, open_checkpoint, runtime, told};
use logs::LogFormat;

/// API keys, separated by commas.
const KEYS_VARIABLE: &str = "TENSACT_API_KEYS";

/// Serve robots that speak openpi's protocol: its client connects unchanged.
///
/// Settings come from the tables [robot] and [server] of the deployment file, then from the environment, then from
/// these options.
#[derive(Args)]
#[command(
    group = ArgGroup::new("policy").args(["deployment", "checkpoint"]).required(true).multiple(false),
    after_help = "Examples:
  tensact serve fleet.toml --profile droid --host 0.0.0.0 --api-keys keys.txt
  tensact serve --checkpoint lerobot/pi0_base --profile aloha           # on this machine's cores
  tensact serve configs/galaxy-bh.toml --emulate --profile libero      # no weights, no board: for load tests"
)]
pub(super) struct Serve {
    /// The deployment file.
    #[arg(value_name = "DEPLOYMENT")]
    deployment: Option<PathBuf>,
    /// Folder, safetensors file, or Hugging Face id, to serve on this machine's cores.
    #[arg(long, value_name = "CHECKPOINT")]
    checkpoint: Option<String>,
    /// Emulate all chips of the deployment: they take the time that the cost model estimates and compute digests instead
    /// of actions. No weights are read.
    #[arg(long, requires = "deployment")]
    emulate: bool,
    #[command(flatten)]
    host_device: HostOptions,
    #[command(flatten)]
    robot: RobotOptions,
    #[command(flatten)]
    server: ServerOptions,
    #[command(flatten)]
    trace: TraceOut,
    /// How the log is written to the error stream; what it holds is up to RUST_LOG.
    #[arg(long, value_enum, env = "TENSACT_LOG_FORMAT", default_value = "text")]
    log_format: LogFormat,
}

/// Which robot connects.
#[derive(Args)]
#[command(next_help_heading = "Robot")]
struct RobotOptions {
    /// libero, droid, aloha, generic, or a TOML file of your own; generic unless given.
    #[arg(long, value_name = "NAME|FILE", env = "TENSACT_PROFILE")]
    profile: Option<String>,
    /// The instruction of observations without one.
    #[arg(long, value_name = "TEXT", env = "TENSACT_DEFAULT_PROMPT")]
    default_prompt: Option<String>,
    /// Tokenizer, if not in the checkpoint's folder: tokenizer.json or SentencePiece's .model.
    #[arg(long, value_name = "FILE", env = "TENSACT_TOKENIZER")]
    tokenizer: Option<PathBuf>,
    /// Which statistics, where the checkpoint's `assets/` has several.
    #[arg(long, value_name = "ID", env = "TENSACT_ASSET_ID")]
    asset_id: Option<String>,
    /// Who remembers the last chunk in real-time chunking; the client unless given.
    #[arg(long, value_enum, env = "TENSACT_RTC")]
    rtc: Option<RtcMode>,
    /// Actions that the robot executes in a second; needed with `--rtc server`.
    #[arg(long, value_name = "HZ", env = "TENSACT_CONTROL_HZ")]
    control_hz: Option<f64>,
    /// Actions that are executed before the next chunk takes over, where the robot does not say.
    #[arg(long, value_name = "N", env = "TENSACT_EXECUTION_HORIZON")]
    execution_horizon: Option<usize>,
}

/// Where and how the server listens.
#[derive(Args)]
#[command(next_help_heading = "Server")]
struct ServerOptions {
    /// Address to listen on; 127.0.0.1 unless given, so that only this machine connects.
    #[arg(long, value_name = "ADDRESS", env = "TENSACT_HOST")]
    host: Option<IpAddr>,
    /// Port to listen on, 0 for any free one; 8000 unless given.
    #[arg(long, value_name = "PORT", env = "TENSACT_PORT")]
    port: Option<u16>,
    /// API keys, one a line; or the variable TENSACT_API_KEYS, separated by commas. Everybody may connect without.
    #[arg(long, value_name = "FILE")]
    api_keys: Option<PathBuf>,
    /// Certificate chain for TLS, PEM.
    #[arg(long, value_name = "FILE", env = "TENSACT_TLS_CERT")]
    tls_cert: Option<PathBuf>,
    /// Key of the certificate, PEM.
    #[arg(long, value_name = "FILE", env = "TENSACT_TLS_KEY")]
    tls_key: Option<PathBuf>,
}

/// Puts a value that was given in the place of another.
fn set<T, V: Into<T>>(place: &mut T, given: Option<V>) {
    if let Some(value) = given {
        *place = value.into();
    }
}

impl Serve {
    pub(super) fn run(self) -> miette::Result<()> {
        logs::start(self.log_format);
        let deployment = self.deployment.as_deref().map(Deployment::read).transpose()?;
        let config = self.config(deployment.as_ref())?;
        let keys = self.keys(&config)?;
        let trace = self.trace.create()?;
        let runtime = runtime()?;
        let served = runtime.block_on(self.serve(deployment.as_ref(), config, keys, trace));
        // A device that is in the middle of a computation does not hold up the end.
        runtime.shutdown_background();
        served
    }

    async fn serve(
        &self,
        deployment: Option<&Deployment>,
        config: Config,
        keys: ApiKeys,
        trace: Option<Recorded>,
    ) -> miette::Result<()> {
        let options = self.options(&config);
        if !config.server.host.is_loopback() && keys.is_open() {
            tracing::warn!(host = %config.server.host, "whoever reaches this address may command robots: set API keys");
        }
        let server = Server::bind(config, keys, Otlp::from_env().map_err(told)?).await.map_err(told)?;
        tracing::info!(address = %server.address(), "listening");
        stop_on_signals(server.handle())?;
        let handle = server.handle();
        let mut serving = tokio::spawn(server.serve());
        let pipeline = tokio::select! {
            pipeline = self.pipeline(deployment, &options) => pipeline?,
            // Somebody does not want it any more.
            served = &mut serving => return served.map_err(told),
        };
        if *pipeline.statistics() == Source::Nowhere && !self.emulate {
            tracing::warn!("the checkpoint has no statistics: state and actions pass unscaled");
        }
        let recording = trace.map(|trace| self.record(trace, &pipeline)).transpose()?;
        handle.load(pipeline);
        tracing::info!("ready");
        let served = serving.await.map_err(told);
        finish(recording)?;
        served
    }

    /// Writes down what the chips do from now on.
    fn record(&self, trace: Recorded, pipeline: &Pipeline) -> miette::Result<Recording> {
        let chips_are = if self.emulate { "emulated" } else { "in real time" };
        let subject = Subject::board(&pipeline.board().name, chips_are, pipeline.placement());
        let recording = trace.start(&Run::new("tensact serve", subject), Full::LeaveOut)?;
        pipeline.journal().listen(recording.listener());
        Ok(recording)
    }

    async fn pipeline(&self, deployment: Option<&Deployment>, options: &Options) -> miette::Result<Pipeline> {
        let pipeline = match (deployment, &self.checkpoint) {
            (Some(deployment), _) if self.emulate => {
                let sizes = deployed_sizes(deployment, Path::new(deployment.name()))?;
                Pipeline::emulated(deployment, &sizes, options).await
            }
            (Some(deployment), _) => Pipeline::start(deployment, options).await,
            (None, Some(checkpoint)) => {
                let checkpoint = checkpoint.clone();
                let opened = tokio::task::spawn_blocking(move || open_checkpoint(&checkpoint)).await;
                Pipeline::host(&Arc::new(opened.map_err(told)??), options).await
            }
            (None, None) => return Err(miette!("neither a deployment file nor a checkpoint is given")),
        };
        pipeline.map_err(told)
    }

    /// The file's settings, under those of the environment and the command line.
    fn config(&self, deployment: Option<&Deployment>) -> miette::Result<Config> {
        let mut config = Config::default();
        if let Some(deployment) = deployment {
            config = deployment.tables().map_err(ReadError::from)?;
            config.resolve(Path::new(deployment.name()).parent().unwrap_or(Path::new("")));
        }
        let RobotOptions { profile, default_prompt, tokenizer, asset_id, rtc, control_hz, execution_horizon } =
            &self.robot;
        set(&mut config.robot.profile, profile.clone());
        set(&mut config.robot.default_prompt, default_prompt.clone().map(Some));
        set(&mut config.robot.tokenizer, tokenizer.clone().map(Some));
        set(&mut config.robot.asset_id, asset_id.clone().map(Some));
        set(&mut config.robot.rtc, *rtc);
        set(&mut config.robot.control_hz, control_hz.map(Some));
        set(&mut config.robot.execution_horizon, execution_horizon.map(Some));
        let ServerOptions { host, port, api_keys, tls_cert, tls_key } = &self.server;
        set(&mut config.server.host, *host);
        set(&mut config.server.port, *port);
        set(&mut config.server.api_keys, api_keys.clone().map(Some));
        set(&mut config.server.tls_cert, tls_cert.clone().map(Some));
        set(&mut config.server.tls_key, tls_key.clone().map(Some));
        Ok(config)
    }

    /// The keys of the command line, else of the environment, else of the file.
    fn keys(&self, config: &Config) -> miette::Result<ApiKeys> {
        let keys = match (&self.server.api_keys, std::env::var(KEYS_VARIABLE), &config.server.api_keys) {
            (None, Ok(keys), _) => ApiKeys::new(keys.split(','), KEYS_VARIABLE),
            (None, Err(error @ VarError::NotUnicode(_)), _) => {
                return Err(miette!("{KEYS_VARIABLE}: {error}"));
            }
            (_, _, Some(file)) => ApiKeys::open(file),
            (_, _, None) => return Ok(ApiKeys::default()),
        };
        keys.map_err(told)
    }

    fn options(&self, config: &Config) -> Options {
        let robot = &config.robot;
        Options {
            dtype: self.host_device.dtype,
            threads: self.host_device.threads,
            profile: ProfileChoice::from(robot.profile.as_str()),
            default_prompt: robot.default_prompt.clone(),
            tokenizer: robot.tokenizer.clone(),
            asset: robot.asset_id.clone(),
        }
    }
}

/// The first interrupt or termination stops the server gently, the second at once.
fn stop_on_signals(handle: Handle) -> miette::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt()).map_err(told)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(told)?;
    tokio::spawn(async move {
        let mut next = async || tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} };
        next().await;
        tracing::info!("shutting down: what is begun is finished; once more stops at once");
        handle.stop();
        next().await;
        std::process::exit(130);
    });
    Ok(())
}
