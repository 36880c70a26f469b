//! Blocks of the vision tower as a program.

use tensact_topology::{LayerRange, VisionSizes};

use super::builder::{Builder, Numerics, Wiring};
use super::decoder::{bias, product};
use super::op::{Activation, Compute, Op, ValueId};
use super::recipe::{Part, Recipe, Spread};
use super::shape::{HeadLayout, tile_rows};
use super::spec::{Dtype, TILE, TensorSpec};
use super::{Program, ProgramError};
use crate::checkpoint::names::{PROJECTOR, VISION};

/// PyTorch's layer norm in SigLIP.
const EPSILON: f32 = 1e-6;
/// Rows of queries, and of keys, that a core attends with at a time.
const CHUNKS: [usize; 2] = [128, 256];

/// Some blocks over images of `grid × grid` patches each. Takes `images` `[n, 1, rows, 3 · patch²]` (first slice) or
/// `hidden 0` … `[1, 1, rows, width]`; gives `image 0` … `[1, 1, rows, VLM width]` (last slice) or `hidden 0` …. `rows`
/// are the patches of an image in whole tiles. Images go in and out one by one, because every slice may see others of them
/// together.
///
/// # Errors
/// When a call would be refused.
pub fn vision(
    sizes: &VisionSizes,
    vlm_width: usize,
    layers: LayerRange,
    images: usize,
    grid: usize,
    numerics: Numerics,
    wiring: Wiring,
) -> Result<Program, ProgramError> {
    let name = format!("vision {layers}, {images} images of {} patches", grid * grid);
    let mut b = Builder::new(name, numerics, wiring);
    let tower = Tower { sizes, images, patches: grid * grid, rows: tile_rows(grid * grid) };
    let mut hidden = if layers.start() == 0 { tower.embed(&mut b, grid)? } else { tower.gather(&mut b)? };
    for layer in layers.iter() {
        b.segment(format!("layer {layer}"));
        hidden = tower.block(&mut b, layer, hidden)?;
    }
    if layers.end() == sizes.layers {
        b.segment("project");
        let tokens = tower.project(&mut b, hidden, vlm_width)?;
        tower.deal_out(&mut b, "image", tokens)?;
    } else {
        tower.deal_out(&mut b, "hidden", hidden)?;
    }
    Ok(b.finish())
}

struct Tower<'a> {
    sizes: &'a VisionSizes,
    images: usize,
    /// Patches of an image, and the rows that they take.
    patches: usize,
    rows: usize,
}

impl Tower<'_> {
    fn heads(&self) -> HeadLayout {
        HeadLayout::plain(self.sizes.head_dim())
    }

    fn embed(&self, b: &mut Builder, grid: usize) -> Result<ValueId, ProgramError> {
        let VisionSizes { width, patch, .. } = *self.sizes;
        b.segment("embed");
        let pixels = Spread::aligned(3 * patch * patch, TILE);
        let images = TensorSpec::tiles([self.images, 1, self.rows, pixels.places()], Dtype::Bf16);
        let images = b.input("images", images)?;
        let parts = vec![Part::new(format!("{VISION}.embeddings.patch_embedding"), Spread::dense(width))];
        let embedding = product(b, parts.clone(), pixels);
        let bias = bias(b, parts);
        let embedded = b.linear(images, (embedding, Some(bias)), None)?;
        let positions = b.weight(
            format!("{VISION}.embeddings.position_embedding, {grid} × {grid}"),
            TensorSpec::tiles([1, 1, self.rows, width], Dtype::Bf16),
            Recipe::Positions { grid, rows: self.rows },
        );
        b.add(embedded, positions)
    }

    /// Hidden states of all images as one.
    fn gather(&self, b: &mut Builder) -> Result<ValueId, ProgramError> {
        b.segment("embed");
        let spec = TensorSpec::tiles([1, 1, self.rows, self.sizes.width], Dtype::Bf16);
        let parts = (0..self.images).map(|image| b.input(format!("hidden {image}"), spec));
        let parts = parts.collect::<Result<_, _>>()?;
        b.concat(parts, 0)
    }

    /// Each image of a result by itself.
    fn deal_out(&self, b: &mut Builder, what: &str, x: ValueId) -> Result<(), ProgramError> {
        for image in 0..self.images {
            let of_image = b.cut(x, 0, image..image + 1)?;
            b.output(format!("{what} {image}"), of_image)?;
        }
        Ok(())
    }

    fn block(&self, b: &mut Builder, layer: usize, hidden: ValueId) -> Result<ValueId, ProgramError> {
        let VisionSizes { width, mlp, heads, .. } = *self.sizes;
        let name = |part: &str| format!("{VISION}.encoder.layers.{layer}.{part}");
        let part = |layer: &str, outputs| vec![Part::new(name(layer), outputs)];
        let inner = self.heads().of_heads(heads);
        let dense = Spread::dense(width);

        let normed = self.norm(b, &name("layer_norm1"), hidden)?;
        let qkv = ["q_proj", "k_proj", "v_proj"]
            .map(|which| Part::new(name(&format!("self_attn.{which}")), inner))
            .to_vec();
        let qkv = (product(b, qkv.clone(), dense), Some(bias(b, qkv)));
        let qkv = b.linear(normed, qkv, None)?;
        let split = b.call(Op::SplitHeads { x: qkv, heads, kv_heads: heads }, Dtype::Bf16)?;
        let attended = self.attend(b, [split[0], split[1], split[2]])?;
        let attended = b.one(Op::ConcatHeads { x: attended })?;
        let out = part("self_attn.out_proj", dense);
        let out = (product(b, out.clone(), inner), Some(bias(b, out)));
        let out = b.linear(attended, out, None)?;
        let hidden = b.add(hidden, out)?;

        let normed = self.norm(b, &name("layer_norm2"), hidden)?;
        let wide = Spread::aligned(mlp, TILE);
        let fc1 = part("mlp.fc1", wide);
        let fc1 = (product(b, fc1.clone(), dense), Some(bias(b, fc1)));
        let active = b.linear(normed, fc1, Some(Activation::Gelu))?;
        let fc2 = part("mlp.fc2", dense);
        let fc2 = (product(b, fc2.clone(), wide), Some(bias(b, fc2)));
        let out = b.linear(active, fc2, None)?;
        b.add(hidden, out)
    }

    /// Every patch of an image attends to all of them; rows that pad an image to whole tiles count for nothing.
    fn attend(&self, b: &mut Builder, [q, k, v]: [ValueId; 3]) -> Result<ValueId, ProgramError> {
        let mask = (self.rows > self.patches).then(|| {
            let recipe = Recipe::KeyMask { valid: self.patches, side: self.rows };
            let spec = TensorSpec::tiles([1, 1, self.rows, self.rows], Dtype::Bf16);
            b.weight(format!("mask of {} patches", self.patches), spec, recipe)
        });
        let [q_chunk, k_chunk] = CHUNKS;
        b.one(Op::Attention {
            q,
            k,
            v,
            mask,
            scale: (self.sizes.head_dim() as f32).powf(-0.5),
            q_chunk,
            k_chunk,
            compute: Compute::EXACT,
        })
    }

    fn project(&self, b: &mut Builder, hidden: ValueId, vlm_width: usize) -> Result<ValueId, ProgramError> {
        let normed = self.norm(b, &format!("{VISION}.post_layernorm"), hidden)?;
        let parts = vec![Part::new(PROJECTOR, Spread::dense(vlm_width))];
        let projector = (product(b, parts.clone(), Spread::dense(self.sizes.width)), Some(bias(b, parts)));
        b.linear(normed, projector, None)
    }

    fn norm(&self, b: &mut Builder, name: &str, x: ValueId) -> Result<ValueId, ProgramError> {
        let spec = TensorSpec::tiles([1, 1, 1, self.sizes.width], Dtype::Bf16);
        let [weight, bias] = ["weight", "bias"].map(|part| {
            let tensor = format!("{name}.{part}");
            b.weight(tensor.clone(), spec, Recipe::Vector { tensor })
        });
        b.one(Op::LayerNorm { x, weight, bias, epsilon: EPSILON, compute: Compute::EXACT })
    }
}
