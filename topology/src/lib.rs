//! Boards, stages and placement of π0 policies, as plain data and functions: no async, no tensors.

mod model;
mod stage;

pub use model::{DecoderSizes, ModelSizes, Variant, VisionSizes};
pub use stage::{EmptyLayerRange, LayerRange, StageKind};
