//! The operations of a stage slice, with their sizes: what the cost model adds up.

mod memory;

use serde::{Deserialize, Serialize};

pub use memory::{SliceMemory, cache_bytes, slice_memory};

use crate::{LayerRange, ModelSizes, Slice, Split, StageKind, Variant};

/// Side of a Tenstorrent tile: every matrix is padded to multiples of it.
const TILE: u64 = 32;

/// What one call asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RequestShape {
    /// Cameras that are present.
    pub cameras: usize,
    /// Instruction tokens, without padding.
    pub prompt_tokens: usize,
    /// Denoising steps.
    pub steps: usize,
    /// Requests computed together.
    pub batch: usize,
}

/// Largest request that is reckoned with; keeps every product far inside 64 bits.
pub const REQUEST_MAX: RequestShape =
    RequestShape { cameras: 64, prompt_tokens: 65_536, steps: 10_000, batch: 1024 };

/// A request beyond [`REQUEST_MAX`], or for nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name} is {value}: expected {least} to {most}")]
pub struct RequestOutOfRange {
    name: &'static str,
    value: usize,
    least: usize,
    most: usize,
}

impl RequestShape {
    /// Whether the request asks for something, and not for too much.
    ///
    /// # Errors
    /// Names the first number that is out of range.
    pub fn validate(&self) -> Result<(), RequestOutOfRange> {
        let max = REQUEST_MAX;
        for (name, value, least, most) in [
            ("cameras", self.cameras, 1, max.cameras),
            ("prompt_tokens", self.prompt_tokens, 0, max.prompt_tokens),
            ("steps", self.steps, 1, max.steps),
            ("batch", self.batch, 1, max.batch),
        ] {
            if value < least || value > most {
                return Err(RequestOutOfRange { name, value, least, most });
            }
        }
        Ok(())
    }

    /// What the base policy is asked for: three cameras, a full instruction, its own number of steps, one request.
    pub fn of(sizes: &ModelSizes) -> Self {
        Self { cameras: 3, prompt_tokens: sizes.prompt_tokens, steps: sizes.steps, batch: 1 }
    }

    /// Tokens of the prefix of one request.
    pub fn prefix_tokens(&self, sizes: &ModelSizes) -> usize {
        self.cameras * sizes.vision.patches() + self.prompt_tokens
    }
}

/// Arithmetic of one operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OpKind {
    /// `[rows, inner] · [inner, cols]` with `inner · cols` weights.
    Matmul {
        /// Rows of the activations.
        rows: u64,
        /// Shared dimension.
        inner: u64,
        /// Columns of the result.
        cols: u64,
    },
    /// Scaled dot-product attention of several heads over several sequences.
    Attention {
        /// Query tokens of one sequence.
        queries: u64,
        /// Key tokens of one sequence.
        keys: u64,
        /// Query heads times sequences.
        heads: u64,
        /// Width of a head.
        head_dim: u64,
    },
}

/// An operation and how often it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Op {
    /// What it is called in the model.
    pub name: &'static str,
    /// Its arithmetic.
    pub kind: OpKind,
    /// Times it runs per pass.
    pub times: u64,
}

impl Op {
    /// Multiply-adds × 2 of all its runs, on tiles padded to 32 × 32 when `padded`.
    pub fn flop(&self, padded: bool) -> f64 {
        let pad = |n: u64| if padded { n.next_multiple_of(TILE) as f64 } else { n as f64 };
        let once = match self.kind {
            OpKind::Matmul { rows, inner, cols } => 2.0 * pad(rows) * pad(inner) * pad(cols),
            // Two products of the same size: scores, and their weighted sum.
            OpKind::Attention { queries, keys, heads, head_dim } => {
                4.0 * pad(queries) * pad(keys) * heads as f64 * pad(head_dim)
            }
        };
        once * self.times as f64
    }

    /// Weights that all its runs read.
    pub fn weights(&self, padded: bool) -> u64 {
        match self.kind {
            OpKind::Matmul { inner, cols, .. } if padded => {
                inner.next_multiple_of(TILE) * cols.next_multiple_of(TILE) * self.times
            }
            OpKind::Matmul { inner, cols, .. } => inner * cols * self.times,
            OpKind::Attention { .. } => 0,
        }
    }
}

/// Which exact savings a program makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Savings {
    /// The VLM's last block computes its keys and values only.
    pub last_block_cache_only: bool,
    /// π0's state token is computed once instead of in every step.
    pub state_token_once: bool,
}

/// Operations of a slice.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Work {
    /// What runs once per request.
    pub once: Vec<Op>,
    /// What runs in every denoising step.
    pub each_step: Vec<Op>,
}

/// The operations of a slice of a policy for one request or a batch of them.
pub fn slice_work(sizes: &ModelSizes, slice: &Slice, request: &RequestShape, savings: Savings) -> Work {
    let share = if slice.split == Split::Tensor { slice.chips.len().max(1) as u64 } else { 1 };
    let layers = slice.layers;
    match slice.stage {
        StageKind::Vision => {
            let images = (request.cameras * request.batch).div_ceil(slice.camera_chips());
            Work { once: vision_ops(sizes, layers, images as u64), each_step: Vec::new() }
        }
        StageKind::Prefix => {
            Work { once: prefix_ops(sizes, layers, request, savings, share), each_step: Vec::new() }
        }
        StageKind::Expert => {
            Work { once: Vec::new(), each_step: expert_ops(sizes, layers, request, savings, share) }
        }
    }
}

fn matmul(name: &'static str, rows: u64, inner: usize, cols: usize, times: u64) -> Op {
    Op { name, kind: OpKind::Matmul { rows, inner: inner as u64, cols: cols as u64 }, times }
}

fn vision_ops(sizes: &ModelSizes, layers: LayerRange, images: u64) -> Vec<Op> {
    let vision = &sizes.vision;
    let patches = vision.patches() as u64;
    let (rows, times) = (images * patches, layers.len() as u64);
    let heads = OpKind::Attention {
        queries: patches,
        keys: patches,
        heads: vision.heads as u64 * images,
        head_dim: vision.head_dim() as u64,
    };
    let mut ops = vec![
        matmul("qkv", rows, vision.width, 3 * vision.width, times),
        Op { name: "attention", kind: heads, times },
        matmul("out_proj", rows, vision.width, vision.width, times),
        matmul("fc1", rows, vision.width, vision.mlp, times),
        matmul("fc2", rows, vision.mlp, vision.width, times),
    ];
    if layers.start() == 0 {
        ops.push(matmul("patch_embedding", rows, 3 * vision.patch * vision.patch, vision.width, 1));
    }
    if layers.end() == vision.layers {
        ops.push(matmul("projector", rows, vision.width, sizes.vlm.width, 1));
    }
    ops
}

fn prefix_ops(
    sizes: &ModelSizes,
    layers: LayerRange,
    request: &RequestShape,
    savings: Savings,
    share: u64,
) -> Vec<Op> {
    let vlm = &sizes.vlm;
    let tokens = request.prefix_tokens(sizes) as u64;
    let rows = tokens * request.batch as u64;
    let cut = |width: usize| width.div_ceil(share as usize);
    let cache_only = savings.last_block_cache_only && layers.end() == vlm.layers;
    let full = layers.len() as u64 - u64::from(cache_only);
    let heads = OpKind::Attention {
        queries: tokens,
        keys: tokens,
        heads: (vlm.heads * request.batch) as u64,
        head_dim: vlm.head_dim as u64,
    };
    let mut ops = vec![
        matmul("qkv", rows, vlm.width, cut(vlm.q_width() + 2 * vlm.kv_width()), full),
        Op { name: "attention", kind: heads, times: full },
        matmul("o_proj", rows, cut(vlm.q_width()), vlm.width, full),
        matmul("gate", rows, vlm.width, cut(vlm.mlp), full),
        matmul("up", rows, vlm.width, cut(vlm.mlp), full),
        matmul("down", rows, cut(vlm.mlp), vlm.width, full),
    ];
    if cache_only {
        ops.push(matmul("kv of the last block", rows, vlm.width, cut(2 * vlm.kv_width()), 1));
    }
    ops.retain(|op| op.times > 0);
    ops
}

fn expert_ops(
    sizes: &ModelSizes,
    layers: LayerRange,
    request: &RequestShape,
    savings: Savings,
    share: u64,
) -> Vec<Op> {
    let expert = &sizes.expert;
    let state_cached = sizes.variant == Variant::Pi0 && savings.state_token_once;
    let tokens = (sizes.suffix_tokens() - usize::from(state_cached)) as u64;
    // Each request keeps its own tiles, so that requests at different steps can share a pass.
    let rows = tokens.next_multiple_of(TILE) * (request.batch as u64 - 1) + tokens;
    let times = layers.len() as u64;
    let cut = |width: usize| width.div_ceil(share as usize);
    let heads = OpKind::Attention {
        queries: tokens,
        keys: (request.prefix_tokens(sizes) + sizes.suffix_tokens()) as u64,
        heads: (expert.heads * request.batch) as u64,
        head_dim: expert.head_dim as u64,
    };
    let mut ops = vec![
        matmul("qkv", rows, expert.width, cut(expert.q_width() + 2 * expert.kv_width()), times),
        Op { name: "attention", kind: heads, times },
        matmul("o_proj", rows, cut(expert.q_width()), expert.width, times),
        matmul("gate", rows, expert.width, cut(expert.mlp), times),
        matmul("up", rows, expert.width, cut(expert.mlp), times),
        matmul("down", rows, cut(expert.mlp), expert.width, times),
    ];
    if layers.start() == 0 {
        ops.push(matmul("action_in", rows, sizes.action_dim, expert.width, 1));
        if sizes.variant == Variant::Pi0 {
            // Time is mixed into the action tokens; its half of the first product is a table per step.
            ops.push(matmul("action_time_mlp_in", rows, expert.width, expert.width, 1));
            ops.push(matmul("action_time_mlp_out", rows, expert.width, expert.width, 1));
        }
    }
    if layers.end() == expert.layers {
        ops.push(matmul("action_out", rows, expert.width, sizes.action_dim, 1));
    }
    ops
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ChipId;

    const NO_SAVINGS: Savings = Savings { last_block_cache_only: false, state_token_once: false };
    const SAVINGS: Savings = Savings { last_block_cache_only: true, state_token_once: true };

    fn whole(sizes: &ModelSizes, stage: StageKind) -> Slice {
        Slice::on(stage, LayerRange::new(0, sizes.layers(stage)).unwrap(), ChipId(0))
    }

    fn tflop(stage: StageKind, savings: Savings) -> f64 {
        let sizes = ModelSizes::base(Variant::Pi0);
        let request = RequestShape { prompt_tokens: 48, ..RequestShape::of(&sizes) };
        let work = slice_work(&sizes, &whole(&sizes, stage), &request, savings);
        work.once.iter().chain(&work.each_step).map(|op| op.flop(false)).sum::<f64>() / 1e12
    }

    #[test]
    fn work_of_the_base_policy_is_what_the_specification_says() {
        for (stage, expected) in
            [(StageKind::Vision, 0.65), (StageKind::Prefix, 3.33), (StageKind::Expert, 0.039)]
        {
            let found = tflop(stage, NO_SAVINGS);
            assert!((found / expected - 1.0).abs() < 0.03, "{stage}: {found} instead of {expected} TFLOP");
        }
        // 5.5 % of the prefix is the last block without its keys and values.
        let saved = 1.0 - tflop(StageKind::Prefix, SAVINGS) / tflop(StageKind::Prefix, NO_SAVINGS);
        assert!((saved - 0.055).abs() < 0.003, "{saved}");
    }

    #[test]
    fn layers_add_up() {
        let sizes = ModelSizes::base(Variant::Pi05);
        let request = RequestShape::of(&sizes);
        for stage in StageKind::ALL {
            let layers = sizes.layers(stage);
            let total = |ranges: &[(usize, usize)]| -> f64 {
                ranges
                    .iter()
                    .map(|(start, end)| {
                        let slice = Slice::on(stage, LayerRange::new(*start, *end).unwrap(), ChipId(0));
                        let work = slice_work(&sizes, &slice, &request, SAVINGS);
                        work.once.iter().chain(&work.each_step).map(|op| op.flop(true)).sum::<f64>()
                    })
                    .sum()
            };
            let parts = total(&[(0, 5), (5, layers - 1), (layers - 1, layers)]);
            assert!((parts / total(&[(0, layers)]) - 1.0).abs() < 1e-12);
        }
    }
}
