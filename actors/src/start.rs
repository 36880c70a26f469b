//! What is read and loaded before actors start.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use tensact_runtime::checkpoint::hub::{self, HubError};
use tensact_runtime::checkpoint::{Checkpoint, CheckpointError};
use tensact_runtime::config::OPENPI_CAMERAS;
use tensact_runtime::device::host::ComputeDtype;
use tensact_runtime::model::flow::{BadSteps, Steps};
use tensact_runtime::preprocess::profile::ProfileError;
use tensact_runtime::preprocess::statistics::{Source, StatisticsError, is_buffer};
use tensact_runtime::preprocess::tokenizer::TokenizerError;
use tensact_runtime::preprocess::{Preprocessor, PreprocessorError, Profile, Statistics, Tokenizer};
use tensact_topology::check::{Finding, Severity, check_deployment};
use tensact_topology::descriptor::ReadError;
use tensact_topology::{Board, Deployment, DeviceKind, ModelSizes, Placement};
use tokio::runtime::{Handle, RuntimeFlavor};

use crate::devices::{Arithmetic, DeviceError, Devices};

/// Which robot observations come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProfileChoice {
    /// One that comes with the library: `libero`, `droid`, `aloha` or `generic`.
    Named(String),
    /// A TOML file.
    File(PathBuf),
}

impl From<&str> for ProfileChoice {
    /// A name, or the path of a TOML file.
    fn from(text: &str) -> Self {
        match Path::new(text).extension() {
            Some(extension) if extension == "toml" => Self::File(text.into()),
            _ => Self::Named(text.into()),
        }
    }
}

impl ProfileChoice {
    /// The profile.
    ///
    /// # Errors
    /// When there is none of this name, or the file cannot be read or is no profile.
    pub fn load(&self) -> Result<Profile, ProfileError> {
        match self {
            Self::Named(name) => Profile::named(name),
            Self::File(path) => Profile::open(path),
        }
    }
}

impl Default for ProfileChoice {
    fn default() -> Self {
        Self::Named("generic".into())
    }
}

/// How a pipeline is put together; the default is the generic robot on all cores in bf16.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// Type in which products take their factors on [`Pipeline::host`](crate::Pipeline::host); a deployment names its own.
    pub dtype: ComputeDtype,
    /// Worker threads of host devices, if not one per core.
    pub threads: Option<NonZeroUsize>,
    /// Which robot.
    pub profile: ProfileChoice,
    /// The instruction of observations without one, if not the profile's.
    pub default_prompt: Option<String>,
    /// Tokenizer file or folder, if not in the checkpoint's folder.
    pub tokenizer: Option<PathBuf>,
    /// Which of the checkpoint's statistics, where `assets/` has several.
    pub asset: Option<String>,
}

impl Options {
    /// The robot's profile, with the instruction that these options name.
    fn robot(&self) -> Result<Profile, ProfileError> {
        let mut profile = self.profile.load()?;
        if self.default_prompt.is_some() {
            profile.prompt.default.clone_from(&self.default_prompt);
        }
        Ok(profile)
    }
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
    /// Stages need threads beside those of the runtime.
    #[error("a pipeline that computes needs tokio's multi-threaded runtime: use #[tokio::main] as it is")]
    SingleThreaded,
    /// A scenario that cannot be simulated.
    #[error("{0}")]
    Scenario(&'static str),
    /// Loading was interrupted.
    #[error("loading was interrupted: the runtime is shutting down, or the loader panicked")]
    Interrupted,
}

/// A deployment, loaded.
pub(crate) struct Loaded {
    pub(crate) board: Board,
    pub(crate) placement: Placement,
    pub(crate) devices: Devices,
    pub(crate) preprocessor: Preprocessor,
    pub(crate) statistics: Source,
    pub(crate) sizes: ModelSizes,
    pub(crate) steps: Steps,
    /// Whether its devices compute, for which stages need threads.
    pub(crate) computes: bool,
}

impl Loaded {
    /// Checks a deployment of a checkpoint and loads all of it.
    pub(crate) fn new(
        deployment: &Deployment,
        checkpoint: &Checkpoint,
        options: &Options,
    ) -> Result<Self, StartError> {
        let sizes = *checkpoint.sizes();
        let board = deployment.load_board()?;
        refuse(&check_deployment(deployment, &board, &sizes))?;
        let placement = deployment.placement(&sizes, board.arch()).placement;
        let (preprocessor, statistics) = preprocessor(checkpoint, options)?;
        let request = deployment.request(&sizes);
        let arithmetic = Arithmetic::Host { checkpoint, board: &board, request, threads: options.threads };
        let devices = Devices::load(&placement, &sizes, &arithmetic)?;
        let steps = Steps::new(sizes.steps)?;
        Ok(Self { board, placement, devices, preprocessor, statistics, sizes, steps, computes: true })
    }

    /// The same on emulated chips that compute digests: there is no checkpoint to read.
    pub(crate) fn emulated(
        deployment: &Deployment,
        sizes: &ModelSizes,
        options: &Options,
    ) -> Result<Self, StartError> {
        let (board, placement) = emulated_placement(deployment, sizes)?;
        let tokenizer = match &options.tokenizer {
            Some(path) => Tokenizer::open(path, sizes.vocab)?,
            None => Tokenizer::synthetic(sizes.vocab)?,
        };
        let statistics = Statistics::identity();
        let source = statistics.source.clone();
        let cameras = OPENPI_CAMERAS.map(str::to_owned).to_vec();
        let profile = options.robot()?;
        Ok(Self {
            devices: Devices::load(&placement, sizes, &Arithmetic::Digests)?,
            preprocessor: Preprocessor::new(*sizes, cameras, profile, tokenizer, statistics)?,
            statistics: source,
            sizes: *sizes,
            steps: Steps::new(sizes.steps)?,
            computes: false,
            board,
            placement,
        })
    }
}

/// Refuses a runtime that has no threads beside the one that stages would hold up.
pub(crate) fn needs_threads() -> Result<(), StartError> {
    match Handle::current().runtime_flavor() {
        RuntimeFlavor::CurrentThread => Err(StartError::SingleThreaded),
        _ => Ok(()),
    }
}

/// Checks a deployment of a policy, and puts an emulated chip in the place of each of its devices.
pub(crate) fn emulated_placement(
    deployment: &Deployment,
    sizes: &ModelSizes,
) -> Result<(Board, Placement), StartError> {
    let board = deployment.load_board()?;
    refuse(&check_deployment(deployment, &board, sizes))?;
    let mut placement = deployment.placement(sizes, board.arch()).placement;
    for slice in placement.pipelines.iter_mut().flat_map(|pipeline| &mut pipeline.slices) {
        slice.device = DeviceKind::Emulated;
    }
    Ok((board, placement))
}

/// The checkpoint that a deployment names.
pub(crate) fn checkpoint_of(deployment: &Deployment) -> Result<Checkpoint, StartError> {
    let path = match locate(deployment) {
        Some(path) => path,
        None => hub::resolve(&deployment.checkpoint, &mut |_| ())?,
    };
    Ok(Checkpoint::open(&path)?)
}

/// This machine as one chip that all stages share: they take turns, and more requests are prepared while some are denoised.
pub(crate) fn this_machine(dtype: ComputeDtype) -> Deployment {
    let text = format!(
        "board = \"host\"\ncheckpoint = \"\"\n[batching]\nmax_requests = 4\nmax_in_flight = 8\n\
         [[pipeline]]\nchips = [0]\ndevice = \"host\"\nweights = \"{dtype}\"\n"
    );
    Deployment::parse("this machine", &text).expect("its keys and values are those of a deployment")
}

/// Says everything that is wrong.
fn refuse(findings: &[Finding]) -> Result<(), StartError> {
    let errors = findings.iter().filter(|finding| finding.severity == Severity::Error);
    let findings: Vec<String> =
        errors.map(|finding| format!("{} ({})", finding.message, finding.help)).collect();
    if findings.is_empty() { Ok(()) } else { Err(StartError::Deployment { findings }) }
}

/// Where the checkpoint of a deployment is on this machine: a path beside the deployment file, or from here.
pub fn locate(deployment: &Deployment) -> Option<PathBuf> {
    let name = Path::new(&deployment.checkpoint);
    let beside = Path::new(deployment.name()).parent().unwrap_or(Path::new(".")).join(name);
    [beside, name.to_owned()].into_iter().find(|path| path.exists())
}

fn preprocessor(checkpoint: &Checkpoint, options: &Options) -> Result<(Preprocessor, Source), StartError> {
    let sizes = *checkpoint.sizes();
    let profile = options.robot()?;
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
