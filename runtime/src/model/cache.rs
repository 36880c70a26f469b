//! The KV cache.

use std::sync::atomic::{AtomicU64, Ordering};

use tensact_topology::LayerRange;

use crate::Tensor;

/// Keys and values of one layer and one sequence.
#[derive(Debug, Clone, PartialEq)]
pub struct KeyValue {
    /// `[tokens, kv_width]`, after the rotary embedding.
    pub keys: Tensor,
    /// `[tokens, kv_width]`.
    pub values: Tensor,
}

impl KeyValue {
    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.keys.rows()
    }

    /// These keys and values with those of more tokens behind them, given row after row.
    pub(crate) fn followed_by(&self, keys: &[f32], values: &[f32]) -> Self {
        Self { keys: self.keys.followed_by(keys), values: self.values.followed_by(values) }
    }
}

/// Keys and values of one sequence for the layers of an expert slice.
#[derive(Debug, Clone)]
pub struct KvCache {
    layers: LayerRange,
    entries: Vec<KeyValue>,
    content: ContentId,
}

/// Says that two caches hold the same without looking: what has it once never changes. A device that keeps a copy knows
/// by it whether the copy still holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct ContentId(u64);

impl ContentId {
    fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

impl PartialEq for KvCache {
    fn eq(&self, other: &Self) -> bool {
        self.layers == other.layers && self.entries == other.entries
    }
}

/// A [`KvCache`] was made of the wrong number of layers, or of layers of different lengths.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a cache of layers {layers} needs {} entries of one length, found entries of lengths {found:?}", layers.len())]
pub struct CacheMismatch {
    layers: LayerRange,
    found: Vec<usize>,
}

impl KvCache {
    /// The cache of these layers, first layer first.
    ///
    /// # Errors
    /// When there is not one entry per layer, or they differ in their number of tokens.
    pub fn new(layers: LayerRange, entries: Vec<KeyValue>) -> Result<Self, CacheMismatch> {
        let lengths = || entries.iter().map(KeyValue::tokens);
        if entries.len() == layers.len() && lengths().all(|length| Some(length) == lengths().next()) {
            Ok(Self { layers, entries, content: ContentId::new() })
        } else {
            Err(CacheMismatch { layers, found: lengths().collect() })
        }
    }

    /// The layers it serves.
    pub fn layers(&self) -> LayerRange {
        self.layers
    }

    /// Number of tokens: the next token's position.
    pub fn tokens(&self) -> usize {
        self.entries.first().map_or(0, KeyValue::tokens)
    }

    /// What it holds.
    pub(crate) fn content(&self) -> ContentId {
        self.content
    }

    /// Keys and values of a layer, counted from the first layer of the slice.
    pub(crate) fn entry(&self, index: usize) -> &KeyValue {
        &self.entries[index]
    }

    /// To append the state token, layer by layer.
    pub(crate) fn entries_mut(&mut self) -> &mut [KeyValue] {
        self.content = ContentId::new();
        &mut self.entries
    }
}
