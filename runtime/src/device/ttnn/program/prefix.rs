//! The VLM as programs: assembling a prefix, and blocks over it.

use tensact_topology::{DecoderSizes, LayerRange, ModelSizes};

use super::builder::{Builder, Numerics, Wiring};
use super::decoder::{Block, Rotation, key_mask, rms_norm};
use super::op::{Op, ValueId};
use super::recipe::Recipe;
use super::shape::{HeadLayout, PrefixRows, tile_rows};
use super::spec::{Dtype, TensorSpec};
use super::{Program, ProgramError};
use crate::checkpoint::names::{TOKEN_TABLE, VLM};

/// Rows of queries, and of keys, that a core attends with at a time: heads of 256 with larger ones overflow L1.
const CHUNKS: [usize; 2] = [128, 128];

/// Image tokens of so many cameras, then instruction tokens: `image 0` … `[1, 1, patches, width]` and `tokens`
/// `[1, 1, 1, n]` to `hidden` `[1, 1, rows, width]`. Patches and tokens take whole tiles; the rest of the rows are zeros.
///
/// # Errors
/// When a call would be refused.
pub fn prefix_embedding(
    sizes: &ModelSizes,
    cameras: usize,
    patches: usize,
    tokens: usize,
    numerics: Numerics,
    wiring: Wiring,
) -> Result<Program, ProgramError> {
    let width = sizes.vlm.width;
    let tokens = tile_rows(tokens);
    let mut b = Builder::new(format!("prefix, {cameras} images and {tokens} tokens"), numerics, wiring);
    b.segment("embed");
    let mut parts = Vec::new();
    for camera in 0..cameras {
        let image = TensorSpec::tiles([1, 1, tile_rows(patches), width], Dtype::Bf16);
        parts.push(b.input(format!("image {camera}"), image)?);
    }
    if tokens > 0 {
        let ids = b.input("tokens", TensorSpec::rows([1, 1, 1, tokens], Dtype::U32))?;
        let table = TensorSpec::rows([1, 1, sizes.vocab, width], Dtype::Bf16);
        let recipe = Recipe::TokenTable { factor: (width as f32).sqrt() };
        let table = b.weight(TOKEN_TABLE, table, recipe);
        parts.push(b.one(Op::Embedding { ids, table })?);
    }
    let used = cameras * tile_rows(patches) + tokens;
    let rows = PrefixRows::holding(used).count();
    if rows > used {
        let spec = TensorSpec::tiles([1, 1, rows - used, width], Dtype::Bf16);
        let recipe = Recipe::Zeros { shape: [rows - used, width] };
        parts.push(b.weight(format!("zeros {} × {width}", rows - used), spec, recipe));
    }
    let hidden = b.concat(parts, 2)?;
    b.output("hidden", hidden)?;
    Ok(b.finish())
}

/// Some blocks over a prefix: `hidden` `[1, 1, rows, width]`, `positions` of its rows, and `keys that count`
/// `[1, 1, 1, rows]`, to `hidden` for the next slice and, after segment `layer 3`, `keys 3` and `values 3`
/// `[1, kv_heads, rows, head]`; `rest of layer 3` computes what only the next layer
/// needs. Nothing reads what the VLM's last block would add to hidden states, so it computes keys and values only.
///
/// # Errors
/// When a call would be refused.
pub fn prefix_layers(
    sizes: &ModelSizes,
    layers: LayerRange,
    rows: PrefixRows,
    numerics: Numerics,
    wiring: Wiring,
) -> Result<Program, ProgramError> {
    let vlm = &sizes.vlm;
    let count = rows.count();
    let mut b = Builder::new(format!("prefix {layers}, {count} rows"), numerics, wiring);
    b.segment("begin");
    let mut hidden = b.input("hidden", TensorSpec::tiles([1, 1, count, vlm.width], Dtype::Bf16))?;
    let rotation = Rotation::lookup(&mut b, HeadLayout::of_decoder(vlm), count, count)?;
    let only_cache = layers.start() + 1 == vlm.layers;
    let mask = if only_cache { None } else { Some(key_mask(&mut b, "keys that count", count, count)?) };
    for layer in layers.iter() {
        b.segment(format!("layer {layer}"));
        let block = Block { sizes: vlm, name: format!("{VLM}.layers.{layer}") };
        let whole = mask.filter(|_| layer + 1 < vlm.layers);
        hidden = run_block(&mut b, &block, layer, hidden, rotation, whole)?;
    }
    if layers.end() < vlm.layers {
        b.output("hidden", hidden)?;
    }
    Ok(b.finish())
}

fn run_block(
    b: &mut Builder,
    block: &Block<'_>,
    layer: usize,
    hidden: ValueId,
    rotation: Rotation,
    mask: Option<ValueId>,
) -> Result<ValueId, ProgramError> {
    let normed = rms_norm(b, &block.layer("input_layernorm"), hidden)?;
    let Some(mask) = mask else {
        let [k, v] = block.keys_values(b, normed, rotation)?;
        b.output(format!("keys {layer}"), k)?;
        b.output(format!("values {layer}"), v)?;
        return Ok(hidden);
    };
    let projected = block.project(b, normed, rotation)?;
    // They leave before anything else is computed: the expert waits for them.
    b.output(format!("keys {layer}"), projected.k)?;
    b.output(format!("values {layer}"), projected.v)?;
    b.segment(format!("rest of layer {layer}"));
    let attended = block.attend(b, (projected.q, projected.k, projected.v), mask, CHUNKS)?;
    let out = block.output(b, attended)?;
    let hidden = b.add(hidden, out)?;
    let normed = rms_norm(b, &block.layer("post_attention_layernorm"), hidden)?;
    let out = block.mlp(b, normed)?;
    b.add(hidden, out)
}

/// Shape of the keys, or values, of one layer on a chip.
pub(super) fn cache_spec(sizes: &DecoderSizes, rows: usize) -> TensorSpec {
    TensorSpec::tiles([1, sizes.kv_heads, rows, HeadLayout::of_decoder(sizes).places()], Dtype::Bf16)
}
