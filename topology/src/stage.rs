//! The three stages of a policy, and the ranges of layers they are cut into.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// One of the three stages an observation passes through, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StageKind {
    /// SigLIP vision tower and projector: a camera image becomes image tokens.
    Vision,
    /// Gemma VLM over image and instruction tokens: produces the KV cache.
    Prefix,
    /// Gemma action expert: denoises the action chunk over the KV cache.
    Expert,
}

impl StageKind {
    /// All stages in the order an observation passes them.
    pub const ALL: [StageKind; 3] = [StageKind::Vision, StageKind::Prefix, StageKind::Expert];
}

impl fmt::Display for StageKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            StageKind::Vision => "vision",
            StageKind::Prefix => "prefix",
            StageKind::Expert => "expert",
        })
    }
}

/// More layers than any model has; larger numbers in a file are a slip.
const LAYERS_MAX: u32 = 4096;

/// A non-empty run of consecutive layers `[start, end)` of one stage, written `start..end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct LayerRange {
    start: usize,
    end: usize,
}

/// A [`LayerRange`] was asked for that holds no layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "layers {start}..{end} hold no layer: a slice needs at least one, so the end must lie above the start"
)]
pub struct EmptyLayerRange {
    /// First layer asked for.
    pub start: usize,
    /// One past the last layer asked for.
    pub end: usize,
}

impl LayerRange {
    /// The layers `start..end`.
    ///
    /// # Errors
    /// When `end <= start`.
    pub fn new(start: usize, end: usize) -> Result<Self, EmptyLayerRange> {
        if start < end { Ok(Self { start, end }) } else { Err(EmptyLayerRange { start, end }) }
    }

    /// A single layer.
    pub fn one(layer: usize) -> Self {
        Self { start: layer, end: layer + 1 }
    }

    /// First layer.
    pub fn start(self) -> usize {
        self.start
    }

    /// One past the last layer.
    pub fn end(self) -> usize {
        self.end
    }

    /// Number of layers, at least one.
    #[allow(clippy::len_without_is_empty)] // never empty, by construction
    pub fn len(self) -> usize {
        self.end - self.start
    }

    /// The layers in order.
    pub fn iter(self) -> std::ops::Range<usize> {
        self.start..self.end
    }

    /// Whether `layer` is one of these.
    pub fn contains(self, layer: usize) -> bool {
        self.iter().contains(&layer)
    }
}

impl fmt::Display for LayerRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start, self.end)
    }
}

impl From<LayerRange> for String {
    fn from(range: LayerRange) -> String {
        range.to_string()
    }
}

/// A text that is no range of layers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LayerRangeError {
    /// Not of the form `start..end`.
    #[error("`{0}` is no range of layers: write it as \"0..9\", where 9 is one past the last layer")]
    Form(String),
    /// A range without layers.
    #[error(transparent)]
    Empty(#[from] EmptyLayerRange),
}

impl FromStr for LayerRange {
    type Err = LayerRangeError;

    fn from_str(text: &str) -> Result<Self, LayerRangeError> {
        let (start, end) = parse_range(text)
            .filter(|(_, end)| *end <= LAYERS_MAX)
            .ok_or_else(|| LayerRangeError::Form(text.to_owned()))?;
        Ok(LayerRange::new(start as usize, end as usize)?)
    }
}

impl TryFrom<String> for LayerRange {
    type Error = LayerRangeError;

    fn try_from(text: String) -> Result<Self, LayerRangeError> {
        text.parse()
    }
}

/// The two numbers of `start..end`.
pub(crate) fn parse_range(text: &str) -> Option<(u32, u32)> {
    let (start, end) = text.split_once("..")?;
    Some((start.trim().parse().ok()?, end.trim().parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_without_layers_is_refused() {
        assert_eq!(LayerRange::new(3, 3), Err(EmptyLayerRange { start: 3, end: 3 }));
        assert!(LayerRange::new(4, 3).is_err());
        let range = LayerRange::new(3, 5).unwrap();
        assert_eq!((range.len(), range.to_string().as_str()), (2, "3..5"));
        assert!(range.contains(4) && !range.contains(5));
        assert_eq!("3..5".parse(), Ok(range));
        assert!("3-5".parse::<LayerRange>().is_err() && "5..3".parse::<LayerRange>().is_err());
    }
}
