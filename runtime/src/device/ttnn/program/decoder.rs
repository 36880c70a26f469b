//! What the blocks of the VLM and of the action expert have in common.

use tensact_topology::DecoderSizes;

use super::ProgramError;
use super::builder::Builder;
use super::op::{Activation, Compute, Op, ValueId};
use super::recipe::{Part, Recipe, Spread};
use super::shape::{HeadLayout, tile_rows};
use super::spec::{Dtype, TILE, TensorSpec};

/// Gemma's.
pub(super) const EPSILON: f32 = 1e-6;

/// Linear layers side by side as one weight, `[1, 1, inputs, outputs]`.
pub(super) fn product(b: &mut Builder, parts: Vec<Part>, inputs: Spread) -> ValueId {
    product_from(b, parts, inputs, 0)
}

/// The same for the layers' input columns from `first_input` on.
pub(super) fn product_from(b: &mut Builder, parts: Vec<Part>, inputs: Spread, first_input: usize) -> ValueId {
    let spec = TensorSpec::tiles([1, 1, inputs.places(), outputs(&parts)], b.numerics().weights);
    b.weight(format!("{}.weight", fused(&parts)), spec, Recipe::Product { parts, inputs, first_input })
}

/// Their biases as one, `[1, 1, 1, outputs]`.
pub(super) fn bias(b: &mut Builder, parts: Vec<Part>) -> ValueId {
    let spec = TensorSpec::tiles([1, 1, 1, outputs(&parts)], Dtype::Bf16);
    b.weight(format!("{}.bias", fused(&parts)), spec, Recipe::Bias { parts })
}

fn outputs(parts: &[Part]) -> usize {
    parts.iter().map(|part| part.outputs.places()).sum()
}

fn fused(parts: &[Part]) -> String {
    parts.iter().map(|part| &part.layer[..]).collect::<Vec<_>>().join(" + ")
}

/// Names and sizes of one block.
pub(super) struct Block<'a> {
    pub(super) sizes: &'a DecoderSizes,
    /// `…layers.3`.
    pub(super) name: String,
}

/// Queries, keys and values of some tokens, by head, rotated.
pub(super) struct Projected {
    pub(super) q: ValueId,
    pub(super) k: ValueId,
    pub(super) v: ValueId,
}

/// Cosines and sines of some tokens' positions, `[1, 1, tokens, head]`.
#[derive(Clone, Copy)]
pub(super) struct Rotation {
    cos: ValueId,
    sin: ValueId,
}

impl Rotation {
    /// Looks up the positions of so many rows, which the host writes. The table holds this many positions.
    pub(super) fn lookup(
        b: &mut Builder,
        head: HeadLayout,
        rows: usize,
        positions: usize,
    ) -> Result<Self, ProgramError> {
        let ids = b.input("positions", TensorSpec::rows([1, 1, 1, rows], Dtype::U32))?;
        let table = TensorSpec::rows([1, 1, positions, head.places()], Dtype::Bf16);
        let cos = Recipe::Cosines { positions, head: head.head };
        let cos = b.weight(format!("cosines of {positions} positions"), table, cos);
        let sin = Recipe::Sines { positions, head: head.head };
        let sin = b.weight(format!("sines of {positions} positions"), table, sin);
        Ok(Self {
            cos: b.one(Op::Embedding { ids, table: cos })?,
            sin: b.one(Op::Embedding { ids, table: sin })?,
        })
    }

    pub(super) fn apply(self, b: &mut Builder, x: ValueId) -> Result<ValueId, ProgramError> {
        b.one(Op::Rotary { x, cos: self.cos, sin: self.sin })
    }
}

impl Block<'_> {
    fn heads(&self) -> HeadLayout {
        HeadLayout::of_decoder(self.sizes)
    }

    fn part(&self, layer: &str, outputs: Spread) -> Part {
        Part::new(format!("{}.{layer}", self.name), outputs)
    }

    /// The full name of one of the block's layers.
    pub(super) fn layer(&self, name: &str) -> String {
        format!("{}.{name}", self.name)
    }

    /// Queries, keys and values of normalised rows `[1, 1, rows, width]` by one fused product.
    pub(super) fn project(
        &self,
        b: &mut Builder,
        normed: ValueId,
        rotation: Rotation,
    ) -> Result<Projected, ProgramError> {
        let DecoderSizes { width, heads, kv_heads, .. } = *self.sizes;
        let [q, kv] = [heads, kv_heads].map(|heads| self.heads().of_heads(heads));
        // TT-NN divides a mask by the scale of scores in a call of its own, so queries bring the scale with them; heads of
        // 256 make it 1/16, which rounds nothing.
        let scale = (self.sizes.head_dim as f32).powf(-0.5);
        let parts = vec![
            Part { factor: scale, ..self.part("self_attn.q_proj", q) },
            self.part("self_attn.k_proj", kv),
            self.part("self_attn.v_proj", kv),
        ];
        let weight = product(b, parts, Spread::dense(width));
        let qkv = b.linear(normed, (weight, None), None)?;
        let split = b.call(Op::SplitHeads { x: qkv, heads, kv_heads }, Dtype::Bf16)?;
        Ok(Projected { q: rotation.apply(b, split[0])?, k: rotation.apply(b, split[1])?, v: split[2] })
    }

    /// Keys and values alone, `[1, kv_heads, rows, head]`.
    pub(super) fn keys_values(
        &self,
        b: &mut Builder,
        normed: ValueId,
        rotation: Rotation,
    ) -> Result<[ValueId; 2], ProgramError> {
        let kv_heads = self.sizes.kv_heads;
        let kv = self.heads().of_heads(kv_heads);
        let parts = vec![self.part("self_attn.k_proj", kv), self.part("self_attn.v_proj", kv)];
        let weight = product(b, parts, Spread::dense(self.sizes.width));
        let both = b.linear(normed, (weight, None), None)?;
        let [_, _, rows, _] = b.shape(both);
        let mut halves = Vec::new();
        for half in 0..2 {
            let columns = b.cut(both, 3, half * kv.places()..(half + 1) * kv.places())?;
            halves.push(self.by_head(b, columns, rows)?);
        }
        Ok([rotation.apply(b, halves[0])?, halves[1]])
    }

    /// `[1, 1, rows, kv_heads · head]` to `[1, kv_heads, rows, head]`.
    fn by_head(&self, b: &mut Builder, x: ValueId, rows: usize) -> Result<ValueId, ProgramError> {
        let (kv_heads, places) = (self.sizes.kv_heads, self.heads().places());
        debug_assert_eq!(b.shape(x), [1, 1, rows, kv_heads * places]);
        let mut heads = Vec::new();
        for head in 0..kv_heads {
            heads.push(b.cut(x, 3, head * places..(head + 1) * places)?);
        }
        b.concat(heads, 1)
    }

    /// Attention of rows to keys and values, where `mask` lets them.
    pub(super) fn attend(
        &self,
        b: &mut Builder,
        (q, k, v): (ValueId, ValueId, ValueId),
        mask: ValueId,
        [q_chunk, k_chunk]: [usize; 2],
    ) -> Result<ValueId, ProgramError> {
        b.one(Op::Attention {
            q,
            k,
            v,
            mask: Some(mask),
            scale: 1.0,
            q_chunk,
            k_chunk,
            compute: Compute::EXACT,
        })
    }

    /// Output projection of attended heads, `[1, heads, rows, head]` to `[1, 1, rows, width]`.
    pub(super) fn output(&self, b: &mut Builder, attended: ValueId) -> Result<ValueId, ProgramError> {
        let DecoderSizes { width, heads, .. } = *self.sizes;
        let attended = b.one(Op::ConcatHeads { x: attended })?;
        let parts = vec![self.part("self_attn.o_proj", Spread::dense(width))];
        let weight = product(b, parts, self.heads().of_heads(heads));
        b.linear(attended, (weight, None), None)
    }

    /// `down(gelu(gate(x)) · up(x))` of normalised rows.
    pub(super) fn mlp(&self, b: &mut Builder, normed: ValueId) -> Result<ValueId, ProgramError> {
        let DecoderSizes { width, mlp, .. } = *self.sizes;
        let (dense, wide) = (Spread::dense(width), Spread::aligned(mlp, TILE));
        let [gate, up] = ["mlp.gate_proj", "mlp.up_proj"].map(|layer| {
            let parts = vec![self.part(layer, wide)];
            product(b, parts, dense)
        });
        let gate = b.linear(normed, (gate, None), Some(Activation::Gelu))?;
        let up = b.linear(normed, (up, None), None)?;
        let gated = b.one(Op::Multiply { a: gate, b: up, activation: None })?;
        let down = product(b, vec![self.part("mlp.down_proj", dense)], wide);
        b.linear(gated, (down, None), None)
    }
}

/// Gemma's norm: mean square 1, times `1 + w`.
pub(super) fn rms_norm(b: &mut Builder, norm: &str, x: ValueId) -> Result<ValueId, ProgramError> {
    let spec = TensorSpec::tiles([1, 1, 1, b.shape(x)[3]], Dtype::Bf16);
    let weight = b.weight(format!("1 + {norm}.weight"), spec, Recipe::NormScale { norm: norm.into() });
    b.one(Op::RmsNorm { x, weight: Some(weight), epsilon: EPSILON, compute: Compute::EXACT })
}

/// A mask `[1, 1, queries, keys]` out of one row that the host writes: 0 where a key counts, −∞ where it does not, which
/// is what TT-NN's own attention writes over keys that it pads (`sdpa/device/kernels/dataflow/writer_interleaved.cpp`). A
/// finite number would leave keys that only fill tiles a share wherever all real scores are low.
pub(super) fn key_mask(
    b: &mut Builder,
    name: &str,
    queries: usize,
    keys: usize,
) -> Result<ValueId, ProgramError> {
    let row = b.input(name, TensorSpec::tiles([1, 1, 1, keys], Dtype::Bf16))?;
    let spec = TensorSpec::tiles([1, 1, tile_rows(queries), keys], Dtype::Bf16);
    let recipe = Recipe::Zeros { shape: [tile_rows(queries), keys] };
    let zeros = b.weight(format!("zeros {} × {keys}", tile_rows(queries)), spec, recipe);
    b.one(Op::Add { a: zeros, b: row })
}
