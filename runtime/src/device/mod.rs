//! The devices that run slices of a policy.

pub mod emulated;
pub mod host;
pub mod idle;
mod stage;
pub mod ttnn;

use tensact_topology::{LayerRange, StageKind};

pub use stage::{
    ExpertStage, FirstStep, Followed, PrefixInput, PrefixPass, PrefixStage, StepInput, VisionStage,
};

use crate::model::{KeyValue, KvCache};

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
    /// A chip could not do it.
    #[error(transparent)]
    Chip(Box<ttnn::ChipError>),
    /// A first step got more entries than its slice has layers, or was finished before it got them all.
    #[error("layers {range} of the expert stage take {} entries of keys and values, found {found}", .range.len())]
    Entries {
        /// The layers of the slice.
        range: LayerRange,
        /// Entries that it got.
        found: usize,
    },
}

impl From<ttnn::ChipError> for SliceError {
    fn from(error: ttnn::ChipError) -> Self {
        Self::Chip(Box::new(error))
    }
}

impl SliceError {
    /// Whether a stage of `depth` layers has the layers of `range`.
    fn check_layers(stage: StageKind, depth: usize, range: LayerRange) -> Result<(), Self> {
        if range.end() <= depth { Ok(()) } else { Err(Self::NoSuchLayers { stage, layers: depth, range }) }
    }

    /// Whether there is a state for each cache.
    fn check_states(states: usize, caches: usize) -> Result<(), Self> {
        let (what, expected) = ("states", format!("[1, width] for each of {caches} caches"));
        if states == caches {
            return Ok(());
        }
        Err(Self::Shape { stage: StageKind::Expert, what, expected, found: vec![states] })
    }

    /// Whether a cache is that of `layers`, with entries `[tokens, width]`.
    fn check_cache(layers: LayerRange, width: usize, cache: &KvCache) -> Result<(), Self> {
        let fits = |index| Self::check_entry(width, cache.tokens(), cache.entry(index)).is_ok();
        if cache.layers() == layers && (0..layers.len()).all(fits) {
            return Ok(());
        }
        Err(Self::Shape {
            stage: StageKind::Expert,
            what: "a KV cache",
            expected: format!("[tokens, {width}] for layers {layers}"),
            found: vec![cache.layers().start(), cache.layers().end(), cache.entry(0).keys.width()],
        })
    }

    /// Whether the keys and values of one layer are `[tokens, width]`.
    fn check_entry(width: usize, tokens: usize, entry: &KeyValue) -> Result<(), Self> {
        let expected = [tokens, width];
        match [&entry.keys, &entry.values].into_iter().find(|part| part.shape() != expected) {
            None => Ok(()),
            Some(odd) => Err(Self::Shape {
                stage: StageKind::Expert,
                what: "keys and values",
                expected: format!("{expected:?}"),
                found: odd.shape().into(),
            }),
        }
    }
}
