//! A checkpoint and a robot on one device, stage after stage.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tensact_runtime::checkpoint::Checkpoint;
use tensact_runtime::device::host::{ComputeDtype, HostDevice, NoThreads};
use tensact_runtime::model::flow::{BadSteps, Guidance, Steps, noise};
use tensact_runtime::observation::Observation;
use tensact_runtime::policy::{Cuts, Policy, PolicyError, Sample};
use tensact_runtime::preprocess::profile::ProfileError;
use tensact_runtime::preprocess::statistics::{Source, StatisticsError, is_buffer};
use tensact_runtime::preprocess::tokenizer::TokenizerError;
use tensact_runtime::preprocess::{Preprocessor, PreprocessorError, Profile, Statistics, Tokenizer};

use crate::request::{ActionChunk, Chunking, InferError, Request, Start, Timings};

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
    /// Type in which products take their factors.
    pub dtype: ComputeDtype,
    /// Worker threads, if not one per core.
    pub threads: Option<NonZeroUsize>,
    /// Which robot.
    pub profile: ProfileChoice,
    /// Tokenizer file or folder, if not in the checkpoint's folder.
    pub tokenizer: Option<PathBuf>,
    /// Which of the checkpoint's statistics, where `assets/` has several.
    pub asset: Option<String>,
}

/// A pipeline could not be put together.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// No threads.
    #[error(transparent)]
    Device(#[from] NoThreads),
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
    /// The policy cannot be loaded.
    #[error(transparent)]
    Policy(#[from] PolicyError),
}

/// A loaded policy for one kind of robot. Stages run one after the other on the host.
pub struct Pipeline {
    policy: Policy,
    preprocessor: Preprocessor,
    steps: Steps,
    statistics: Source,
}

impl Pipeline {
    /// Loads all stages of a checkpoint for a robot.
    ///
    /// # Errors
    /// When profile, tokenizer or statistics cannot be used or do not fit the checkpoint.
    pub fn load(checkpoint: &Checkpoint, options: &Options) -> Result<Self, LoadError> {
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
        let preprocessor = Preprocessor::new(sizes, cameras, profile, tokenizer, statistics)?;
        let device = HostDevice::new(options.threads, options.dtype)?;
        Ok(Self {
            policy: Policy::load(&device, checkpoint, &Cuts::none(&sizes))?,
            preprocessor,
            steps: Steps::new(sizes.steps)?,
            statistics: source,
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

    /// Actions for one observation.
    ///
    /// # Errors
    /// When observation, noise or previous chunk cannot be used.
    pub fn infer(&self, observation: &Observation, request: &Request) -> Result<ActionChunk, InferError> {
        let clock = Instant::now();
        let prepared = self.preprocessor.prepare(observation)?;
        let guidance = match &request.chunking {
            Some(chunking) => Some(self.guidance(chunking, &observation.state)?),
            None => None,
        };
        let noise = match &request.start {
            Start::Seed(seed) => noise(self.policy.sizes(), *seed),
            Start::Noise(noise) => noise.clone(),
        };
        if let Some(index) = noise.data().iter().position(|value| !value.is_finite()) {
            return Err(InferError::Noise { index, value: noise.data()[index] });
        }
        let steps = request.steps.unwrap_or(self.steps);
        let sample = Sample { input: prepared.input, noise, steps, guidance };
        let preprocess = clock.elapsed();
        let (actions, times) = self.policy.infer(std::slice::from_ref(&sample))?;
        if actions[0].data().iter().any(|action| !action.is_finite()) {
            return Err(InferError::NotFinite);
        }
        let actions = self.preprocessor.robot_actions(&actions[0], &observation.state)?;
        Ok(ActionChunk {
            actions,
            timings: Timings {
                preprocess_ms: milliseconds(preprocess),
                vision_ms: milliseconds(times.vision),
                prefix_ms: milliseconds(times.prefix),
                denoise_ms: milliseconds(times.denoise),
                total_ms: milliseconds(clock.elapsed()),
            },
            warnings: prepared.warnings,
        })
    }

    /// Guidance in the model's units.
    fn guidance(&self, chunking: &Chunking, state: &[f32]) -> Result<Guidance, InferError> {
        let previous = self.preprocessor.normalise_actions(&chunking.previous, state);
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

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
