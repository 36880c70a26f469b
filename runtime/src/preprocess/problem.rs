//! What can be wrong with an observation or an action chunk.

use super::tokenizer::TokenizerError;

/// Everything that is wrong with one observation.
#[derive(Debug, thiserror::Error)]
#[error("{}", problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
pub struct ObservationError {
    /// At least one problem.
    pub problems: Vec<Problem>,
}

/// One thing that is wrong with an observation.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// A camera that the profile wants is missing.
    #[error("image `{key}` is missing")]
    ImageMissing {
        /// The robot's key.
        key: String,
    },
    /// There is no image that the model takes.
    #[error("no camera image; send at least one of: {}", known.join(", "))]
    NoImages {
        /// The keys that are read.
        known: Vec<String>,
    },
    /// Two images are meant for the same camera.
    #[error("`{first}` and `{second}` are both camera `{camera}`; send one of them")]
    SameCamera {
        /// One key.
        first: String,
        /// The other key.
        second: String,
        /// The model's camera.
        camera: String,
    },
    /// An image could not be resized.
    #[error("image `{key}` cannot be resized: {reason}")]
    Resize {
        /// The key.
        key: String,
        /// Why.
        reason: String,
    },
    /// A part of the state is missing.
    #[error("state `{}` is missing", keys.join("` or `"))]
    StateMissing {
        /// Keys it may stand under.
        keys: Vec<String>,
    },
    /// State or a part of it has the wrong width.
    #[error("state `{key}` has {got} values, expected {expected}")]
    StateDims {
        /// Key of the part.
        key: String,
        /// Width that is expected.
        expected: String,
        /// Width that was sent.
        got: usize,
    },
    /// A state value is NaN or infinite.
    #[error("state `{key}` holds {value} at {dim}; all values must be finite")]
    StateNotFinite {
        /// Key of the part.
        key: String,
        /// Index in the whole state.
        dim: usize,
        /// The value.
        value: f32,
    },
    /// There is no instruction.
    #[error("`{}` is missing and the profile has no default instruction", keys.join("` or `"))]
    PromptMissing {
        /// Keys it may stand under.
        keys: Vec<String>,
    },
    /// The instruction cannot be tokenised.
    #[error(transparent)]
    Prompt(#[from] TokenizerError),
}

/// An action chunk that does not belong to this model, robot or state.
#[derive(Debug, thiserror::Error)]
pub enum ActionsError {
    /// The chunk has another shape.
    #[error("actions of shape {got:?}, expected [any, {width}]")]
    Shape {
        /// Shape given.
        got: Vec<usize>,
        /// Width expected.
        width: usize,
    },
    /// An action is not a number.
    #[error("value {dim} of action {row} is {value}: expected finite numbers")]
    NotFinite {
        /// Which action.
        row: usize,
        /// Which of its values.
        dim: usize,
        /// The value.
        value: f32,
    },
    /// More actions than a chunk has.
    #[error("{rows} actions, but a chunk has {horizon}")]
    TooMany {
        /// Actions given.
        rows: usize,
        /// Actions of a chunk.
        horizon: usize,
    },
    /// The state is not usable.
    #[error(transparent)]
    State(#[from] ObservationError),
}

/// Something worth telling about an observation that is used all the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Warning {
    /// The instruction was cut.
    PromptCut {
        /// Tokens it had.
        tokens: usize,
        /// Tokens the model takes.
        limit: usize,
    },
    /// An image that no camera of the profile takes.
    ImageIgnored {
        /// Its key.
        key: String,
    },
}

impl std::fmt::Display for Warning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::PromptCut { tokens, limit } => {
                write!(f, "the instruction has {tokens} tokens and was cut to {limit}")
            }
            Self::ImageIgnored { key } => {
                write!(f, "image `{key}` is ignored: the profile has no such camera")
            }
        }
    }
}
