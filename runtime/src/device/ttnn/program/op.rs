//! The TT-NN calls that a program can make.

use serde::Serialize;
use tensact_topology::Fidelity;

/// A tensor of a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct ValueId(pub(super) u32);

impl ValueId {
    /// Its place in [`Program::values`](super::Program::values).
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// A way from one chip to another, as numbered in the deployment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct SocketId(pub u32);

/// A function of one value that is applied on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// The tanh form of gelu.
    Gelu,
    /// `x · sigmoid(x)`.
    Silu,
}

/// How exactly the matrix engine computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub struct Compute {
    /// Multiplier passes.
    pub fidelity: Fidelity,
    /// Whether sums are kept in f32 instead of bf16.
    pub fp32_accumulate: bool,
    /// Whether partial sums are added up in L1.
    pub packer_l1: bool,
}

impl Compute {
    /// For norms and attention, which are short sums of many kinds: as exact as the engine is.
    pub const EXACT: Self = Self { fidelity: Fidelity::HiFi4, fp32_accumulate: true, packer_l1: false };

    /// For products with weights that need this many passes.
    pub fn product(fidelity: Fidelity) -> Self {
        Self { fidelity, fp32_accumulate: true, packer_l1: true }
    }
}

/// One TT-NN call. Shape, dtype and place of what it gives stand with its results.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Op {
    /// `activation(x · weight + bias)`, `[a, b, rows, inner] · [1, 1, inner, columns]`.
    Linear {
        /// Rows.
        x: ValueId,
        /// `[1, 1, inner, columns]`.
        weight: ValueId,
        /// `[1, 1, 1, columns]`.
        bias: Option<ValueId>,
        /// Applied to the sum.
        activation: Option<Activation>,
        /// How exactly.
        compute: Compute,
    },
    /// Mean 0 and variance 1 along the last dimension, times `weight` plus `bias`, both `[1, 1, 1, width]`.
    LayerNorm {
        /// Rows.
        x: ValueId,
        /// Scale.
        weight: ValueId,
        /// Shift.
        bias: ValueId,
        /// Added to the variance.
        epsilon: f32,
        /// How exactly.
        compute: Compute,
    },
    /// Mean square 1 along the last dimension, times `weight` `[1, 1, 1, width]` if there is one.
    RmsNorm {
        /// Rows.
        x: ValueId,
        /// Scale.
        weight: Option<ValueId>,
        /// Added to the mean square.
        epsilon: f32,
        /// How exactly.
        compute: Compute,
    },
    /// `a + b`; a dimension of 1 in `b` is repeated.
    Add {
        /// First summand.
        a: ValueId,
        /// Second summand.
        b: ValueId,
    },
    /// `activation(a) · b`; a dimension of 1 in `b` is repeated.
    Multiply {
        /// First factor.
        a: ValueId,
        /// Second factor.
        b: ValueId,
        /// Applied to the first factor.
        activation: Option<Activation>,
    },
    /// `x · value`.
    MultiplyScalar {
        /// Factor.
        x: ValueId,
        /// The other factor.
        value: f32,
    },
    /// `activation(x)`.
    Activate {
        /// Argument.
        x: ValueId,
        /// The function.
        activation: Activation,
    },
    /// Rows of a table `[1, 1, rows, width]` by numbers `[1, 1, 1, n]`: `[1, 1, n, width]` in tiles.
    Embedding {
        /// Row numbers.
        ids: ValueId,
        /// The table, row-major.
        table: ValueId,
    },
    /// Rotary embedding of `[a, heads, tokens, width]`, each half of a head with the other, by `[1, 1, tokens, width]`.
    Rotary {
        /// Heads.
        x: ValueId,
        /// Cosines.
        cos: ValueId,
        /// Sines.
        sin: ValueId,
    },
    /// `[a, 1, tokens, (heads + 2 kv_heads) · width]` to queries, keys and values `[a, heads, tokens, width]`.
    SplitHeads {
        /// Queries, keys and values side by side.
        x: ValueId,
        /// Query heads.
        heads: usize,
        /// Key heads, and as many value heads.
        kv_heads: usize,
    },
    /// `[a, heads, tokens, width]` to `[a, 1, tokens, heads · width]`.
    ConcatHeads {
        /// Heads.
        x: ValueId,
    },
    /// `softmax(q · kᵀ · scale + mask) · v`; query heads share key heads in equal groups.
    Attention {
        /// `[a, heads, queries, width]`.
        q: ValueId,
        /// `[a, kv_heads, keys, width]`.
        k: ValueId,
        /// As `k`.
        v: ValueId,
        /// `[1 or a, 1, queries, keys]`: 0 where a key counts, −∞ where it does not.
        mask: Option<ValueId>,
        /// Factor of the scores.
        scale: f32,
        /// Queries that a core works on at a time.
        q_chunk: usize,
        /// Keys that it takes at a time.
        k_chunk: usize,
        /// How exactly.
        compute: Compute,
    },
    /// Tensors one behind the other along `dim`.
    Concat {
        /// What is joined.
        parts: Vec<ValueId>,
        /// Along which dimension.
        dim: usize,
    },
    /// The part from `begin` up to and without `end`.
    Slice {
        /// What is cut.
        x: ValueId,
        /// First index of each dimension.
        begin: [usize; 4],
        /// Behind the last index of each dimension.
        end: [usize; 4],
    },
    /// Into a tensor that stays where it is.
    Copy {
        /// What is read.
        from: ValueId,
        /// What is overwritten.
        into: ValueId,
    },
    /// To another chip.
    Send {
        /// What leaves.
        value: ValueId,
        /// By which way.
        socket: SocketId,
    },
    /// From another chip, into a tensor that waits for it.
    Receive {
        /// What is overwritten.
        into: ValueId,
        /// By which way.
        socket: SocketId,
    },
}

impl Op {
    /// What TT-NN, and the exported file, call it.
    pub fn name(&self) -> &'static str {
        match self {
            Op::Linear { .. } => "linear",
            Op::LayerNorm { .. } => "layer_norm",
            Op::RmsNorm { .. } => "rms_norm",
            Op::Add { .. } => "add",
            Op::Multiply { .. } => "multiply",
            Op::MultiplyScalar { .. } => "multiply_scalar",
            Op::Activate { .. } => "activate",
            Op::Embedding { .. } => "embedding",
            Op::Rotary { .. } => "rotary",
            Op::SplitHeads { .. } => "split_heads",
            Op::ConcatHeads { .. } => "concat_heads",
            Op::Attention { .. } => "attention",
            Op::Concat { .. } => "concat",
            Op::Slice { .. } => "slice",
            Op::Copy { .. } => "copy",
            Op::Send { .. } => "send",
            Op::Receive { .. } => "receive",
        }
    }

    /// Tensors that it reads.
    pub fn reads(&self) -> Vec<ValueId> {
        match self {
            Op::Linear { x, weight, bias, .. } => [*x, *weight].into_iter().chain(*bias).collect(),
            Op::LayerNorm { x, weight, bias, .. } => vec![*x, *weight, *bias],
            Op::RmsNorm { x, weight, .. } => std::iter::once(*x).chain(*weight).collect(),
            Op::Add { a, b } | Op::Multiply { a, b, .. } => vec![*a, *b],
            Op::Embedding { ids, table } => vec![*ids, *table],
            Op::Rotary { x, cos, sin } => vec![*x, *cos, *sin],
            Op::Attention { q, k, v, mask, .. } => [*q, *k, *v].into_iter().chain(*mask).collect(),
            Op::Concat { parts, .. } => parts.clone(),
            Op::MultiplyScalar { x, .. }
            | Op::Activate { x, .. }
            | Op::SplitHeads { x, .. }
            | Op::ConcatHeads { x }
            | Op::Slice { x, .. } => vec![*x],
            Op::Copy { from, .. } => vec![*from],
            Op::Send { value, .. } => vec![*value],
            Op::Receive { .. } => Vec::new(),
        }
    }

    /// A tensor that it overwrites in place.
    pub fn overwrites(&self) -> Option<ValueId> {
        match self {
            Op::Copy { into, .. } | Op::Receive { into, .. } => Some(*into),
            _ => None,
        }
    }
}
