//! A deployment for one kind of robot: observations in, action chunks out.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use tensact_runtime::checkpoint::hub::{self, HubError};
use tensact_runtime::checkpoint::{Checkpoint, CheckpointError};
use tensact_runtime::device::host::ComputeDtype;
use tensact_runtime::model::flow::{BadSteps, Guidance, Steps, noise};
use tensact_runtime::observation::Observation;
use tensact_runtime::policy::Sample;
use tensact_runtime::preprocess::profile::ProfileError;
use tensact_runtime::preprocess::statistics::{Source, StatisticsError, is_buffer};
use tensact_runtime::preprocess::tokenizer::TokenizerError;
use tensact_runtime::preprocess::{
    Prepared, Preprocessor, PreprocessorError, Profile, Statistics, Tokenizer,
};
use tensact_topology::check::{Severity, check_placement};
use tensact_topology::deployment::{Admission, Batching, Deployment};
use tensact_topology::descriptor::ReadError;
use tensact_topology::{
    Board, ChipId, DeviceKind, LayerRange, ModelSizes, Placement, Preset, RequestShape, Slice, StageKind,
    WeightDtype,
};
use tokio::runtime::{Handle, RuntimeFlavor};

use crate::clock::Clock;
use crate::devices::{Arithmetic, DeviceError, Devices};
use crate::engine::{Blueprint, Engine};
use crate::recorder::SliceStats;
use crate::request::{ActionChunk, Chunking, InferError, Refusal, Request, Start, Timings};
use crate::scheduler::{Answer, Counts, Limits};
use crate::ticket::milliseconds;

/// Which robot observations come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProfileChoice {
    /// One that comes with the library: `libero`, `droid`, `aloha` or `generic`.
    Named(String),
    /// A TOML file.
    File(PathBuf),
}

impl Default for ProfileChoice {
    fn default() -> Self {
        Self::Named("generic".into())
    }
}

/// How a pipeline is put together; the default is the generic robot on all cores in bf16.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// Type in which products take their factors on [`Pipeline::host`]; a deployment names its own.
    pub dtype: ComputeDtype,
    /// Worker threads of host devices, if not one per core.
    pub threads: Option<NonZeroUsize>,
    /// Which robot.
    pub profile: ProfileChoice,
    /// Tokenizer file or folder, if not in the checkpoint's folder.
    pub tokenizer: Option<PathBuf>,
    /// Which of the checkpoint's statistics, where `assets/` has several.
    pub asset: Option<String>,
}

/// A pipeline could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The deployment cannot run as written.
    #[error("the deployment cannot run:\n{}", .findings.join("\n"))]
    Deployment {
        /// All that is wrong with it.
        findings: Vec<String>,
    },
    /// The board's descriptor cannot be read.
    #[error(transparent)]
    Board(#[from] ReadError),
    /// The checkpoint cannot be had.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// The checkpoint cannot be used.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The robot's profile cannot be used.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// The tokenizer cannot be used.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The statistics cannot be used.
    #[error(transparent)]
    Statistics(#[from] StatisticsError),
    /// Robot, checkpoint and statistics do not belong together.
    #[error(transparent)]
    Mismatch(#[from] PreprocessorError),
    /// The checkpoint's own number of steps cannot be.
    #[error("the checkpoint's num_inference_steps: {0}")]
    Steps(#[from] BadSteps),
    /// Slices cannot be loaded on their devices.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Devices that compute need threads beside those of the runtime.
    #[error(
        "a pipeline that computes on the host needs tokio's multi-threaded runtime: use #[tokio::main] as it is"
    )]
    SingleThreaded,
    /// Loading was interrupted.
    #[error("loading was interrupted: the runtime is shutting down, or the loader panicked")]
    Interrupted,
}

/// What a pipeline has done and does.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Stats {
    /// Requests by what became of them.
    pub counts: Counts,
    /// Requests that wait.
    pub waiting: usize,
    /// The pipelines of the deployment.
    pub pipelines: Vec<PipelineStats>,
}

/// One pipeline of a deployment.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PipelineStats {
    /// Whether it takes requests.
    pub in_service: bool,
    /// Requests it works on.
    pub in_flight: usize,
    /// Its slices in the order in which an observation meets them.
    pub slices: Vec<SliceStats>,
}

/// A running deployment for one kind of robot.
///
/// Must be used within the tokio runtime it was started in. Dropping it stops everything at once; see
/// [`Pipeline::drain`] and [`Pipeline::shutdown`] for gentler ends.
pub struct Pipeline {
    engine: Engine,
    preprocessor: Arc<Preprocessor>,
    sizes: ModelSizes,
    steps: Steps,
    statistics: Source,
    deadline: Option<Duration>,
}

/// Everything that is read and loaded before actors start.
struct Loaded {
    board: Board,
    placement: Placement,
    devices: Devices,
    preprocessor: Preprocessor,
    statistics: Source,
    sizes: ModelSizes,
    steps: Steps,
    batching: Batching,
    admission: Admission,
    deadline: Option<Duration>,
}

impl Pipeline {
    /// Starts a deployment: loads its checkpoint (a path beside the deployment file or from here, or a Hugging Face id),
    /// checks its placement, starts its actors.
    ///
    /// # Errors
    /// Says everything that is wrong with the deployment, or what cannot be read.
    pub async fn start(deployment: &Deployment, options: &Options) -> Result<Self, StartError> {
        let (deployment, options) = (deployment.clone(), options.clone());
        let load = move || {
            let checkpoint = match locate(&deployment) {
                Some(path) => Checkpoint::open(&path)?,
                None => Checkpoint::open(&hub::resolve(&deployment.checkpoint, &mut |_| ())?)?,
            };
            let board = deployment.load_board()?;
            let placement = deployment.placement(checkpoint.sizes(), board.arch()).placement;
            let ms = deployment.deadlines.default_ms;
            let deadline = ms.and_then(|ms| Duration::try_from_secs_f64(ms / 1e3).ok());
            let request = deployment.request(checkpoint.sizes());
            load(
                &checkpoint,
                &options,
                board,
                placement,
                request,
                deployment.batching,
                deployment.admission,
                deadline,
            )
        };
        Self::run(load).await
    }

    /// Starts a whole policy on this machine: its stages take turns on the cores.
    ///
    /// # Errors
    /// When profile, tokenizer or statistics cannot be used or do not fit the checkpoint.
    pub async fn host(checkpoint: &Arc<Checkpoint>, options: &Options) -> Result<Self, StartError> {
        let (checkpoint, options) = (Arc::clone(checkpoint), options.clone());
        let load = move || {
            let sizes = checkpoint.sizes();
            let placement = on_host(sizes, options.dtype);
            let request = RequestShape { batch: HOST_BATCHING.max_requests, ..RequestShape::of(sizes) };
            let (board, admission) = (Preset::Host.board(), Admission::default());
            load(&checkpoint, &options, board, placement, request, HOST_BATCHING, admission, None)
        };
        Self::run(load).await
    }

    async fn run(
        load: impl FnOnce() -> Result<Loaded, StartError> + Send + 'static,
    ) -> Result<Self, StartError> {
        let loaded = tokio::task::spawn_blocking(load).await.map_err(|_| StartError::Interrupted)??;
        let threads = loaded.placement.pipelines.iter().flat_map(|pipeline| &pipeline.slices);
        let threads = threads.filter(|slice| slice.device != DeviceKind::Emulated).count() > 0;
        if threads && Handle::current().runtime_flavor() == RuntimeFlavor::CurrentThread {
            return Err(StartError::SingleThreaded);
        }
        let Batching { max_requests, max_in_flight } = loaded.batching;
        let engine = Engine::start(Blueprint {
            board: Arc::new(loaded.board),
            sizes: loaded.sizes,
            placement: loaded.placement,
            limits: Limits { queue: loaded.admission.queue, max_in_flight, max_requests },
            devices: loaded.devices,
            clock: Clock::real(),
            log: None,
            faults: BTreeMap::new(),
            follows: true,
        });
        Ok(Self {
            engine: engine.await,
            preprocessor: Arc::new(loaded.preprocessor),
            sizes: loaded.sizes,
            steps: loaded.steps,
            statistics: loaded.statistics,
            deadline: loaded.deadline,
        })
    }

    /// Prepares observations and actions of the robot.
    pub fn preprocessor(&self) -> &Preprocessor {
        &self.preprocessor
    }

    /// Where the scales of state and actions are from. [`Source::Nowhere`] deserves a warning.
    pub fn statistics(&self) -> &Source {
        &self.statistics
    }

    /// The policy's sizes.
    pub fn sizes(&self) -> &ModelSizes {
        &self.sizes
    }

    /// Actions for one observation. Dropping the future cancels the request: what it holds is freed at the next boundary
    /// between layers or steps.
    ///
    /// # Errors
    /// When observation, noise or previous chunk cannot be used; when the pipeline refuses the request or gives it up.
    pub async fn infer(&self, observation: Observation, request: Request) -> Result<ActionChunk, InferError> {
        let clock = Instant::now();
        let deadline = request.deadline.or(self.deadline);
        let robot = request.robot.clone();
        let state = observation.state.clone();
        let (preprocessor, sizes, steps) = (Arc::clone(&self.preprocessor), self.sizes, self.steps);
        let prepare = move || prepare(&preprocessor, &sizes, steps, &observation, &request);
        let prepared = tokio::task::spawn_blocking(prepare).await;
        let (sample, warnings) = prepared.map_err(|_| InferError::Refused(Refusal::Closed))??;
        let preprocess = clock.elapsed();
        let left = match deadline {
            Some(deadline) if deadline <= preprocess => {
                let (deadline_ms, boundary) = (milliseconds(deadline), "the end of preprocessing");
                return Err(Refusal::Expired { deadline_ms, boundary }.into());
            }
            deadline => deadline.map(|deadline| deadline - preprocess),
        };
        let answer = self.engine.submit(sample, robot, left).outcome().await?;
        if answer.actions.data().iter().any(|action| !action.is_finite()) {
            return Err(InferError::NotFinite);
        }
        let actions = self.preprocessor.robot_actions(&answer.actions, &state)?;
        Ok(ActionChunk { actions, timings: timings(&answer, preprocess, clock.elapsed()), warnings })
    }

    /// What it has done and does.
    pub async fn stats(&self) -> Stats {
        let Some(seen) = self.engine.look().await else {
            return Stats { counts: Counts::default(), waiting: 0, pipelines: Vec::new() };
        };
        let pipelines = seen.pipelines.into_iter().enumerate().map(|(number, (in_service, in_flight))| {
            PipelineStats { in_service, in_flight, slices: self.engine.recorder.slices(number) }
        });
        Stats { counts: seen.counts, waiting: seen.waiting, pipelines: pipelines.collect() }
    }

    /// Takes no more requests, and waits until all that were admitted are answered.
    pub async fn drain(&self) {
        self.engine.drain().await;
    }

    /// Drains for at most `grace`, refuses what is left, and stops all actors; takes no longer than twice the grace. A
    /// device that is in the middle of a computation ends on its own.
    pub async fn shutdown(self, grace: Duration) {
        self.engine.shut_down(grace).await;
    }
}

/// One chip that all stages share: they take turns, and a second request is prepared while the first is denoised.
const HOST_BATCHING: Batching = Batching { max_requests: 4, max_in_flight: 8 };

fn on_host(sizes: &ModelSizes, dtype: ComputeDtype) -> Placement {
    let weights = match dtype {
        ComputeDtype::Bf16 => WeightDtype::Bf16,
        ComputeDtype::F32 => WeightDtype::F32,
    };
    let slices = StageKind::ALL.map(|stage| {
        let layers =
            LayerRange::new(0, sizes.layers(stage)).expect("every stage of a checkpoint has a layer");
        Slice { device: DeviceKind::Host, weights, ..Slice::on(stage, layers, ChipId(0)) }
    });
    Placement { pipelines: vec![tensact_topology::Pipeline::new(slices.to_vec())] }
}

/// Where the checkpoint of a deployment is on this machine: a path beside the deployment file, or from here.
pub fn locate(deployment: &Deployment) -> Option<PathBuf> {
    let name = Path::new(&deployment.checkpoint);
    let beside = Path::new(deployment.name()).parent().unwrap_or(Path::new(".")).join(name);
    [beside, name.to_owned()].into_iter().find(|path| path.exists())
}

#[allow(clippy::too_many_arguments)] // the parts of a deployment, or what stands for them
fn load(
    checkpoint: &Checkpoint,
    options: &Options,
    board: Board,
    placement: Placement,
    request: RequestShape,
    batching: Batching,
    admission: Admission,
    deadline: Option<Duration>,
) -> Result<Loaded, StartError> {
    let sizes = *checkpoint.sizes();
    let findings = check_placement(&placement, &board, &sizes, &request, batching);
    let errors = findings.iter().filter(|finding| finding.severity == Severity::Error);
    let errors: Vec<String> =
        errors.map(|finding| format!("{} ({})", finding.message, finding.help)).collect();
    if !errors.is_empty() {
        return Err(StartError::Deployment { findings: errors });
    }
    let (preprocessor, statistics) = preprocessor(checkpoint, options)?;
    let arithmetic = Arithmetic::Host { checkpoint, threads: options.threads };
    let devices = Devices::load(&placement, &sizes, &arithmetic)?;
    let steps = Steps::new(sizes.steps)?;
    Ok(Loaded {
        board,
        placement,
        devices,
        preprocessor,
        statistics,
        sizes,
        steps,
        batching,
        admission,
        deadline,
    })
}

fn preprocessor(checkpoint: &Checkpoint, options: &Options) -> Result<(Preprocessor, Source), StartError> {
    let sizes = *checkpoint.sizes();
    let profile = match &options.profile {
        ProfileChoice::Named(name) => Profile::named(name)?,
        ProfileChoice::File(path) => Profile::open(path)?,
    };
    let tokenizer = options.tokenizer.as_deref().unwrap_or_else(|| checkpoint.folder());
    let tokenizer = Tokenizer::open(tokenizer, sizes.vocab)?;
    let statistics = statistics(checkpoint, options.asset.as_deref())?;
    let source = statistics.source.clone();
    let cameras = checkpoint.config().cameras.clone();
    Ok((Preprocessor::new(sizes, cameras, profile, tokenizer, statistics)?, source))
}

/// Statistics beside the weights, or among them as LeRobot up to 0.3 left them.
fn statistics(checkpoint: &Checkpoint, asset: Option<&str>) -> Result<Statistics, StatisticsError> {
    let beside = Statistics::open(checkpoint.folder(), checkpoint.sizes().variant, asset)?;
    if beside.source != Source::Nowhere {
        return Ok(beside);
    }
    let buffers: BTreeMap<String, Vec<f32>> = checkpoint
        .unused()
        .filter(|(name, tensor)| is_buffer(name) && tensor.is_float())
        .map(|(name, tensor)| (name.to_owned(), tensor.to_f32()))
        .collect();
    Ok(Statistics::from_named(&buffers)?.unwrap_or(beside))
}

/// What the model takes, and what the robot's operator should know.
fn prepare(
    preprocessor: &Preprocessor,
    sizes: &ModelSizes,
    steps: Steps,
    observation: &Observation,
    request: &Request,
) -> Result<(Sample, Vec<tensact_runtime::preprocess::Warning>), InferError> {
    let Prepared { input, warnings, .. } = preprocessor.prepare(observation)?;
    let chunking = request.chunking.as_ref();
    let guidance =
        chunking.map(|chunking| guidance(preprocessor, chunking, &observation.state)).transpose()?;
    let noise = match &request.start {
        Start::Seed(seed) => noise(sizes, *seed),
        Start::Noise(noise) => noise.clone(),
    };
    if let Some(index) = noise.data().iter().position(|value| !value.is_finite()) {
        return Err(InferError::Noise { index, value: noise.data()[index] });
    }
    let sample = Sample { input, noise, steps: request.steps.unwrap_or(steps), guidance };
    sample.check(sizes)?;
    Ok((sample, warnings))
}

/// Guidance in the model's units.
fn guidance(preprocessor: &Preprocessor, chunking: &Chunking, state: &[f32]) -> Result<Guidance, InferError> {
    let previous = preprocessor.normalise_actions(&chunking.previous, state);
    if !(chunking.max_weight > 0.0 && chunking.max_weight.is_finite()) {
        return Err(InferError::MaxWeight(chunking.max_weight));
    }
    Ok(Guidance {
        previous: previous.map_err(InferError::Previous)?,
        delay: chunking.delay,
        execution_horizon: chunking.execution_horizon,
        schedule: chunking.schedule,
        max_weight: chunking.max_weight,
    })
}

fn timings(answer: &Answer, preprocess: Duration, total: Duration) -> Timings {
    let marks = answer.marks;
    let between = |from: Duration, to: Duration| milliseconds(to.saturating_sub(from));
    Timings {
        preprocess_ms: milliseconds(preprocess),
        queue_ms: between(answer.admitted, marks.dispatched),
        vision_ms: between(marks.dispatched, marks.seen),
        prefix_ms: between(marks.seen, marks.cached),
        denoise_ms: between(marks.cached, answer.done),
        total_ms: milliseconds(total),
    }
}
