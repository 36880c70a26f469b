//! Boards, stages and placement of π0 policies, as plain data and functions: no async, no tensors.

mod board;
mod chip;
pub mod descriptor;
mod model;
mod source;
mod stage;

pub use board::{Board, Chip, Coord, Link, Pcie, Preset, UnknownPreset};
pub use chip::{Arch, ChipId, ChipSpec, Fidelity, WeightDtype};
pub use model::{DecoderSizes, ModelSizes, Variant, VisionSizes};
pub use source::{FILE_BYTES_MAX, SourceError};
pub use stage::{EmptyLayerRange, LayerRange, StageKind};
