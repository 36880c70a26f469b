//! What a caller may ask of one inference, and what comes back.

use serde::Serialize;
use tensact_runtime::Tensor;
use tensact_runtime::device::SliceError;
use tensact_runtime::model::flow::{Steps, WeightSchedule};
use tensact_runtime::preprocess::{ActionsError, ObservationError, Warning};

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

/// Options of one inference; the default is what the checkpoint says.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Request {
    /// What the integration starts from.
    pub start: Start,
    /// Denoising steps, if not the checkpoint's own number.
    pub steps: Option<Steps>,
    /// Real-time chunking, if a previous chunk is still executed.
    pub chunking: Option<Chunking>,
}

/// How long the parts of one inference took, in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Timings {
    /// Resizing, tokenising, normalising.
    pub preprocess_ms: f64,
    /// Vision tower over all cameras.
    pub vision_ms: f64,
    /// VLM over the prefix.
    pub prefix_ms: f64,
    /// All denoising steps.
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

/// An observation gave no actions.
#[derive(Debug, thiserror::Error)]
pub enum InferError {
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
    /// The caller's noise does not fit the policy.
    #[error(transparent)]
    Model(#[from] SliceError),
}
