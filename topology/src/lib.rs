//! Boards, stages and placement of π0 policies, as plain data and functions: no async, no tensors.

mod board;
pub mod check;
mod chip;
pub mod cost;
pub mod deployment;
pub mod descriptor;
mod draw;
mod model;
mod placement;
pub mod plan;
pub mod published;
mod report;
mod source;
mod stage;
pub mod workload;

pub use board::{Board, Chip, Coord, Link, Pcie, Preset, UnknownPreset};
pub use chip::{Arch, ChipId, ChipSpec, Fidelity, WeightDtype};
pub use cost::{Calibration, CostModel};
pub use deployment::Deployment;
pub use draw::draw;
pub use model::{DecoderSizes, ModelSizes, Variant, VisionSizes};
pub use placement::{
    DeviceKind, Edge, Payload, Pipeline, Placement, QUEUE_MIN, Residence, Slice, Split, Transport,
};
pub use report::{BoardSummary, CheckReport};
pub use source::{FILE_BYTES_MAX, SourceError};
pub use stage::{EmptyLayerRange, LayerRange, LayerRangeError, StageKind};
pub use workload::RequestShape;
