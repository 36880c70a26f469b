//! What a caller may ask of one inference, and what comes back.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tensact_runtime::Tensor;
use tensact_runtime::device::SliceError;
use tensact_runtime::model::flow::{Steps, WeightSchedule};
use tensact_runtime::preprocess::{ActionsError, ObservationError, Warning};

use crate::telemetry::ParentSpan;
use crate::ticket::milliseconds;

/// What the integration starts from.
#[derive(Debug, Clone, PartialEq)]
pub enum Start {
    /// Standard normal noise; the same seed gives the same noise on every machine.
    Seed(u64),
    /// The caller's own noise, `[horizon, action_dim]`.
    Noise(Tensor),
}

impl Default for Start {
    fn default() -> Self {
        Self::Seed(0)
    }
}

/// Real-time chunking: the robot still executes the previous chunk while this one is computed.
#[derive(Debug, Clone, PartialEq)]
pub struct Chunking {
    /// Actions of the previous chunk that are not executed yet, `[≤ horizon, robot dims]` in the robot's units.
    pub previous: Tensor,
    /// Actions that will have been executed when this chunk arrives.
    pub delay: usize,
    /// Actions that will be executed before the next chunk takes over.
    pub execution_horizon: usize,
    /// How the weight of the previous chunk falls.
    pub schedule: WeightSchedule,
    /// Largest guidance weight; LeRobot's default is 10.
    pub max_weight: f32,
}

/// Options of one inference; the default is what the checkpoint and the deployment say.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Request {
    /// What the integration starts from.
    pub start: Start,
    /// Denoising steps, if not the checkpoint's own number.
    pub steps: Option<Steps>,
    /// Real-time chunking, if a previous chunk is still executed.
    pub chunking: Option<Chunking>,
    /// Time to answer, from the call on; the deployment's default unless given.
    pub deadline: Option<Duration>,
    /// Which robot asks. Of a robot's waiting observations only the newest is kept.
    pub robot: Option<Arc<str>>,
    /// The span that it is asked from; a trace of its own in the pipeline's journal unless given.
    pub parent: Option<ParentSpan>,
}

/// How long the parts of one inference took, in milliseconds. They follow each other; the first denoising step, which
/// overlaps with the prefix, counts as prefix until the last layer of the cache was there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Timings {
    /// Resizing, tokenising, normalising.
    pub preprocess_ms: f64,
    /// Waiting for a pipeline, attempts that failed included.
    pub queue_ms: f64,
    /// Vision tower over all cameras.
    pub vision_ms: f64,
    /// VLM over the prefix.
    pub prefix_ms: f64,
    /// What was left of denoising.
    pub denoise_ms: f64,
    /// All of it.
    pub total_ms: f64,
}

/// The answer to an observation.
#[derive(Debug, Clone, PartialEq)]
pub struct ActionChunk {
    /// `[horizon, robot dims]` in the robot's units.
    pub actions: Tensor,
    /// How long it took.
    pub timings: Timings,
    /// What the robot's operator should know.
    pub warnings: Vec<Warning>,
}

/// The pipeline did not take a request, or gave it up. Asking again, later or with more time, may succeed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// As many observations wait as may.
    #[error("{waiting} observations wait already, and the queue holds {capacity}: ask again later")]
    QueueFull {
        /// Observations that wait.
        waiting: usize,
        /// Most that may.
        capacity: usize,
    },
    /// It would be too late.
    #[error(
        "the actions would come {expected_ms:.1} ms after the observation, and are wanted after {deadline_ms:.1} ms \
         ({ahead} observations are ahead): give it more time, or fewer steps"
    )]
    DeadlineImpossible {
        /// Time to answer.
        deadline_ms: f64,
        /// When the answer would come.
        expected_ms: f64,
        /// Waiting observations that go first.
        ahead: usize,
    },
    /// The same robot has sent a newer observation.
    #[error("robot `{robot}` sent a newer observation before this one was begun")]
    Superseded {
        /// The robot.
        robot: Arc<str>,
    },
    /// Its time ran out.
    #[error(
        "the deadline of {deadline_ms:.1} ms passed before the actions were there; it had reached {boundary}"
    )]
    Expired {
        /// Time to answer.
        deadline_ms: f64,
        /// How far it had come.
        boundary: &'static str,
    },
    /// Stages failed, again and again, while they held the request.
    #[error("gave up after {attempts} attempts: {cause}")]
    Failed {
        /// Attempts to compute it.
        attempts: u32,
        /// What went wrong at the last.
        cause: Arc<str>,
    },
    /// No pipeline is left that works.
    #[error("none of the {pipelines} pipelines is in service: {cause}")]
    OutOfService {
        /// Pipelines of the deployment.
        pipelines: usize,
        /// Why the last one was given up.
        cause: Arc<str>,
    },
    /// The pipeline is being drained or shut down.
    #[error("the pipeline takes no more requests: it is being shut down")]
    Closed,
}

impl Refusal {
    /// The same, with times that count from before something that took so long.
    #[must_use]
    pub fn after(mut self, before: Duration) -> Self {
        let before_ms = milliseconds(before);
        match &mut self {
            Self::DeadlineImpossible { deadline_ms, expected_ms, .. } => {
                *deadline_ms += before_ms;
                *expected_ms += before_ms;
            }
            Self::Expired { deadline_ms, .. } => *deadline_ms += before_ms,
            _ => {}
        }
        self
    }
}

/// An observation gave no actions.
#[derive(Debug, thiserror::Error)]
pub enum InferError {
    /// The pipeline did not take it, or gave it up.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Preprocessing did not come to its end.
    #[error("preprocessing was interrupted: the runtime is shutting down, or it panicked, which is a bug")]
    Interrupted,
    /// The observation cannot be used: everything that is wrong with it.
    #[error(transparent)]
    Observation(#[from] ObservationError),
    /// The previous chunk does not fit the robot.
    #[error("the previous chunk cannot be used: {0}")]
    Previous(ActionsError),
    /// The actions cannot be given in the robot's units.
    #[error(transparent)]
    Actions(#[from] ActionsError),
    /// The caller's noise holds a value that is not a number.
    #[error("value {index} of the noise is {value}: expected finite numbers")]
    Noise {
        /// Its place in row-major order.
        index: usize,
        /// The value.
        value: f32,
    },
    /// The guidance weight cannot be.
    #[error("the largest guidance weight is {0}: expected a finite number above zero")]
    MaxWeight(f32),
    /// The model's actions are not numbers: no robot should get them.
    #[error(
        "the policy gave actions that are not finite numbers: check its weights and statistics with `tensact verify`"
    )]
    NotFinite,
    /// What was given does not fit the policy.
    #[error(transparent)]
    Model(#[from] SliceError),
}
