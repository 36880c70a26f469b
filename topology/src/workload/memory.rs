//! Memory of a stage slice.

use serde::Serialize;

use super::{Op, OpKind, RequestShape, Savings, TILE, slice_work};
use crate::{ModelSizes, Slice, StageKind, WeightDtype};

/// Memory of a slice on each of its chips.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct SliceMemory {
    /// Weights, with the token table on the slice that holds the VLM's first layer.
    pub weight_bytes: u64,
    /// Keys and values of the requests it holds.
    pub cache_bytes: u64,
    /// Largest activations of one pass.
    pub activation_bytes: u64,
}

impl SliceMemory {
    /// All of it.
    pub fn total_bytes(&self) -> u64 {
        self.weight_bytes + self.cache_bytes + self.activation_bytes
    }
}

/// Bytes of the keys and values of `layers` layers of one request.
pub fn cache_bytes(sizes: &ModelSizes, layers: usize, request: &RequestShape, weights: WeightDtype) -> u64 {
    let tokens = request.prefix_tokens(sizes).next_multiple_of(TILE as usize);
    weights.bytes((layers * tokens * 2 * sizes.vlm.kv_width()) as u64)
}

/// Memory of a slice on each of its chips. A slice of the expert holds the cache of what its queue holds, and of every
/// request `in_flight` in its pipeline.
pub fn slice_memory(
    sizes: &ModelSizes,
    slice: &Slice,
    request: &RequestShape,
    in_flight: usize,
) -> SliceMemory {
    let padded = slice.weights != WeightDtype::F32;
    // Savings change what is computed, not what is stored.
    let savings = Savings { last_block_cache_only: false, state_token_once: false };
    let work = slice_work(sizes, slice, request, savings);
    let matrices: u64 = work.once.iter().chain(&work.each_step).map(|op| op.weights(padded)).sum();
    let mut weight_bytes = slice.weights.bytes(matrices);
    if slice.stage == StageKind::Prefix && slice.layers.start() == 0 {
        // The token table is looked up, not multiplied: it stays in bf16.
        weight_bytes += 2 * (sizes.vocab * sizes.vlm.width) as u64;
    }
    let cache = cache_bytes(sizes, slice.layers.len(), request, slice.weights);
    let held = match slice.stage {
        StageKind::Vision => 0,
        StageKind::Prefix => request.batch,
        StageKind::Expert => in_flight.max(slice.queue * request.batch),
    };
    let cache_bytes = cache * held as u64;
    let widest = |ops: &[Op]| {
        ops.iter()
            .map(|op| match op.kind {
                OpKind::Matmul { rows, inner, cols } => rows * (inner + 2 * cols),
                OpKind::Attention { queries, heads, head_dim, .. } => 3 * queries * heads * head_dim,
            })
            .max()
            .unwrap_or(0)
    };
    let activation_bytes = 2 * widest(&work.once).max(widest(&work.each_step));
    SliceMemory { weight_bytes, cache_bytes, activation_bytes }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ChipId, LayerRange, Variant};

    #[test]
    fn memory_of_the_base_policy_is_what_the_specification_says() {
        let sizes = ModelSizes::base(Variant::Pi0);
        let request = RequestShape::of(&sizes);
        let memory = |stage, in_flight| {
            let all = LayerRange::new(0, sizes.layers(stage)).unwrap();
            slice_memory(&sizes, &Slice::on(stage, all, ChipId(0)), &request, in_flight)
        };
        let table = 2 * 257_152 * 2048;
        let prefix = memory(StageKind::Prefix, 0);
        // 110 MB per VLM layer in bfp8_b is published; ours is 117 MB with the shared exponents.
        let layer_mb = (prefix.weight_bytes - table) as f64 / 18.0 / 1e6;
        assert!((layer_mb - 117.0).abs() < 1.0, "{layer_mb}");
        // 18.4 kB of bf16 cache per token is published.
        assert_eq!(cache_bytes(&sizes, 18, &request, WeightDtype::Bf16), 832 * 18 * 2 * 256 * 2);
        // Two in the queue, or all that are in flight.
        for (in_flight, held) in [(0, 2), (2, 2), (7, 7)] {
            assert_eq!(memory(StageKind::Expert, in_flight).cache_bytes, held * prefix.cache_bytes);
        }
    }
}
