//! The devices that run slices of a policy.

pub mod host;

use tensact_topology::{LayerRange, StageKind};

/// A slice of a stage was loaded or run with something it cannot take.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SliceError {
    /// The stage has fewer layers.
    #[error("the {stage} stage has {layers} layers, so {range} is not a slice of it")]
    NoSuchLayers {
        /// The stage.
        stage: StageKind,
        /// How many layers it has.
        layers: usize,
        /// What was asked for.
        range: LayerRange,
    },
    /// An input has the wrong shape.
    #[error("the {stage} stage takes {what} of shape {expected}, found {found:?}")]
    Shape {
        /// The stage.
        stage: StageKind,
        /// Which input.
        what: &'static str,
        /// The shape it should have.
        expected: String,
        /// The shape it has.
        found: Vec<usize>,
    },
    /// A token is not in the table.
    #[error("token {token} is not in the table of {vocab}: does the tokenizer belong to this checkpoint?")]
    NoSuchToken {
        /// The token.
        token: u32,
        /// Rows of the table.
        vocab: usize,
    },
    /// Only the first slice of a stage embeds, only the last one projects.
    #[error("layers {range} of the {stage} stage do not hold {what}")]
    NotHere {
        /// The stage.
        stage: StageKind,
        /// What was asked for.
        what: &'static str,
        /// The layers of the slice.
        range: LayerRange,
    },
}

impl SliceError {
    /// Whether a stage of `depth` layers has the layers of `range`.
    fn check_layers(stage: StageKind, depth: usize, range: LayerRange) -> Result<(), Self> {
        if range.end() <= depth { Ok(()) } else { Err(Self::NoSuchLayers { stage, layers: depth, range }) }
    }
}
