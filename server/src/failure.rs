//! What an observation gets instead of actions.

use std::time::Duration;

use tensact::InferError;
use tensact::telemetry::Outcome;

use crate::chunking::ChunkingError;
use crate::openpi::BadObservation;
use crate::wire::WireError;

/// Why an observation got no actions.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error(transparent)]
    Observation(#[from] BadObservation),
    #[error(transparent)]
    Chunking(#[from] ChunkingError),
    #[error(transparent)]
    Infer(#[from] InferError),
    #[error("expected a binary frame with an observation, not a text frame")]
    TextFrame,
    #[error("the weights are still being loaded: ask again later")]
    Loading,
    #[error("reading the observation was interrupted: the server is shutting down, or there is a bug")]
    Interrupted,
}

impl Failure {
    /// Why the pipeline gave no actions, with the key of what was wrong, and times from before the message was read.
    pub(crate) fn of(error: InferError, reading: Duration) -> Self {
        match error {
            InferError::Refused(refusal) => InferError::Refused(refusal.after(reading)).into(),
            InferError::Previous(reason) => {
                BadObservation(vec![format!("`rtc`: `prev_chunk`: {reason}")]).into()
            }
            InferError::Noise { .. } => BadObservation(vec![format!("`noise`: {error}")]).into(),
            error => error.into(),
        }
    }

    /// What became of the request, in one word.
    pub(crate) fn outcome(&self) -> &'static str {
        match self {
            Self::Infer(InferError::Refused(refusal)) => Outcome::from(refusal).name(),
            Self::Infer(InferError::Interrupted | InferError::NotFinite) | Self::Interrupted => "failed",
            Self::Loading => "loading",
            _ => "bad_request",
        }
    }
}
