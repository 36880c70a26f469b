//! What the model takes: one observation after preprocessing.

use crate::Tensor;

/// One observation as the model takes it. Absent cameras and padding are simply not there.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelInput {
    /// Cameras in the checkpoint's order: an image `[3, S, S]` with values in [-1, 1], or `None` for a camera the
    /// robot does not have.
    pub images: Vec<Option<Tensor>>,
    /// Instruction tokens, beginning-of-sequence first, without padding.
    pub tokens: Vec<u32>,
    /// The robot state, normalised and zero-padded to the checkpoint's state width.
    pub state: Vec<f32>,
}
