//! The SigLIP vision tower and the projector to the VLM.

use std::borrow::Cow;
use std::sync::Arc;

use tensact_topology::{LayerRange, StageKind, VisionSizes};

use super::attention::{Heads, Segment, Sequence, attention};
use super::band::Band;
use super::linear::Linear;
use super::norm::LayerNorm;
use super::{HostDevice, of_shape};
use crate::Tensor;
use crate::checkpoint::Checkpoint;
use crate::checkpoint::names::{PROJECTOR, VISION};
use crate::device::{SliceError, VisionStage};

const STAGE: StageKind = StageKind::Vision;

/// Some consecutive blocks of the vision tower. The first slice embeds images, the last one projects.
pub struct VisionSlice {
    device: Arc<HostDevice>,
    sizes: VisionSizes,
    layers: LayerRange,
    embedding: Option<PatchEmbedding>,
    blocks: Vec<Block>,
    projection: Option<(LayerNorm, Linear)>,
}

struct PatchEmbedding {
    patch: Linear,
    /// `[table_side², width]`.
    positions: Vec<f32>,
}

struct Block {
    norms: [LayerNorm; 2],
    /// Queries, keys and values side by side.
    qkv: Linear,
    out: Linear,
    fc1: Linear,
    fc2: Linear,
}

impl VisionSlice {
    /// Loads some blocks.
    ///
    /// # Errors
    /// When the tower has no such blocks.
    pub fn load(
        device: &Arc<HostDevice>,
        checkpoint: &Checkpoint,
        layers: LayerRange,
    ) -> Result<Self, SliceError> {
        let sizes = checkpoint.sizes().vision;
        SliceError::check_layers(STAGE, sizes.layers, layers)?;
        let linear = |name: &str| Linear::load_with_bias(device, checkpoint, &[name.into()]);
        let position_name = format!("{VISION}.embeddings.position_embedding.weight");
        Ok(Self {
            device: Arc::clone(device),
            sizes,
            layers,
            embedding: (layers.start() == 0).then(|| PatchEmbedding {
                patch: linear(&format!("{VISION}.embeddings.patch_embedding")),
                positions: checkpoint.tensor(&position_name).to_f32(),
            }),
            blocks: layers.iter().map(|layer| Block::load(device, checkpoint, layer)).collect(),
            projection: (layers.end() == sizes.layers).then(|| {
                (LayerNorm::load(checkpoint, &format!("{VISION}.post_layernorm")), linear(PROJECTOR))
            }),
        })
    }

    /// Images `[n, 3, S, S]` (first slice) or hidden states `[n, patches, width]` through the whole slice.
    fn run_alike(&self, input: Tensor) -> Result<Tensor, SliceError> {
        self.device.run(|| {
            let hidden = if self.embedding.is_some() { self.embed(&input)? } else { input };
            let hidden = self.blocks(hidden)?;
            if self.projection.is_some() { self.project(&self.normalise(&hidden)?) } else { Ok(hidden) }
        })
    }

    /// Images `[n, 3, S, S]` to patch embeddings with positions, `[n, patches, width]`. `S` may be any multiple of
    /// the patch that gives at least as many patches a side as the position table has.
    ///
    /// # Errors
    /// When the shape does not fit, or this is not the first slice.
    pub fn embed(&self, images: &Tensor) -> Result<Tensor, SliceError> {
        let embedding = self.embedding.as_ref().ok_or_else(|| self.not_here("the patch embedding"))?;
        let VisionSizes { width, patch, table_side, .. } = self.sizes;
        let &[count, 3, side, columns] = images.shape() else { return Err(self.bad_images(images)) };
        if side != columns || !side.is_multiple_of(patch) || side / patch < table_side {
            return Err(self.bad_images(images));
        }
        let grid = side / patch;
        let patches = self.device.rows_of(&unfold(images, grid, patch), 3 * patch * patch);
        let mut hidden = embedding.patch.apply(&self.device, &patches).to_vec();
        let positions = resize_positions(&embedding.positions, table_side, grid);
        for hidden in hidden.chunks_exact_mut(positions.len()) {
            hidden.iter_mut().zip(positions.iter()).for_each(|(hidden, position)| *hidden += position);
        }
        Ok(of_shape([count, grid * grid, width], hidden))
    }

    /// All blocks of the slice, `[n, patches, width]` to the same.
    ///
    /// # Errors
    /// When the shape does not fit.
    pub fn blocks(&self, mut hidden: Tensor) -> Result<Tensor, SliceError> {
        self.check_hidden(&hidden)?;
        let patches = hidden.shape()[1];
        for block in &self.blocks {
            block.run(&self.device, hidden.data_mut(), patches, &self.sizes);
        }
        Ok(hidden)
    }

    /// The norm behind the last block.
    ///
    /// # Errors
    /// When the shape does not fit, or this is not the last slice.
    pub fn normalise(&self, hidden: &Tensor) -> Result<Tensor, SliceError> {
        self.check_hidden(hidden)?;
        let (norm, _) = self.projection.as_ref().ok_or_else(|| self.not_here("the final norm"))?;
        Ok(of_shape(hidden.shape(), norm.apply(&self.device, hidden.data()).to_values()))
    }

    /// Normalised hidden states to image tokens `[n, patches, VLM width]`.
    ///
    /// # Errors
    /// When the shape does not fit, or this is not the last slice.
    pub fn project(&self, normed: &Tensor) -> Result<Tensor, SliceError> {
        self.check_hidden(normed)?;
        let (_, projector) = self.projection.as_ref().ok_or_else(|| self.not_here("the projector"))?;
        let shape = [normed.shape()[0], normed.shape()[1], projector.outputs()];
        let normed = self.device.rows_of(normed.data(), projector.inputs());
        Ok(of_shape(shape, projector.apply(&self.device, &normed).to_vec()))
    }

    fn check_hidden(&self, hidden: &Tensor) -> Result<(), SliceError> {
        match *hidden.shape() {
            [_, patches, width] if patches > 0 && width == self.sizes.width => Ok(()),
            _ => Err(SliceError::Shape {
                stage: STAGE,
                what: "hidden states",
                expected: format!("[images, patches, {}]", self.sizes.width),
                found: hidden.shape().into(),
            }),
        }
    }

    fn bad_images(&self, images: &Tensor) -> SliceError {
        let VisionSizes { patch, table_side, .. } = self.sizes;
        SliceError::Shape {
            stage: STAGE,
            what: "images",
            expected: format!(
                "[images, 3, S, S] with S a multiple of {patch}, at least {}",
                patch * table_side
            ),
            found: images.shape().into(),
        }
    }

    fn not_here(&self, what: &'static str) -> SliceError {
        SliceError::NotHere { stage: STAGE, what, range: self.layers }
    }
}

impl VisionStage for VisionSlice {
    fn layers(&self) -> LayerRange {
        self.layers
    }

    /// Neighbouring images of one shape run together.
    fn run(&self, images: &[&Tensor]) -> Result<Vec<Tensor>, SliceError> {
        let mut outputs = Vec::with_capacity(images.len());
        for alike in images.chunk_by(|a, b| a.shape() == b.shape()) {
            let output = self.run_alike(Tensor::stack(alike).expect("these images have one shape"))?;
            outputs.extend((0..alike.len()).map(|image| output.member(image)));
        }
        Ok(outputs)
    }
}

impl Block {
    fn load(device: &HostDevice, checkpoint: &Checkpoint, layer: usize) -> Self {
        let name = |part: &str| format!("{VISION}.encoder.layers.{layer}.{part}");
        let linear = |parts: &[&str]| {
            let names: Vec<String> = parts.iter().map(|part| name(part)).collect();
            Linear::load_with_bias(device, checkpoint, &names)
        };
        Self {
            norms: ["layer_norm1", "layer_norm2"].map(|norm| LayerNorm::load(checkpoint, &name(norm))),
            qkv: linear(&["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
            out: linear(&["self_attn.out_proj"]),
            fc1: linear(&["mlp.fc1"]),
            fc2: linear(&["mlp.fc2"]),
        }
    }

    /// `patches` of an image are neighbouring rows of `hidden`.
    fn run(&self, device: &HostDevice, hidden: &mut [f32], patches: usize, sizes: &VisionSizes) {
        let heads = Heads { query: sizes.heads, key_value: sizes.heads, width: sizes.head_dim() };
        let qkv = self.qkv.apply(device, &self.norms[0].apply(device, hidden));
        let [q, keys, values] = Band::apart(&qkv, sizes.width);
        let all = Segment { keys, values };
        let sequences: Vec<Sequence<'_>> = (0..q.height() / patches)
            .map(|image| {
                let tokens = image * patches..(image + 1) * patches;
                Sequence { tokens: tokens.clone(), segments: vec![all.rows(tokens)] }
            })
            .collect();
        let attended = attention(device, q, &sequences, heads);
        self.out.add_to(device, &attended, hidden, None);

        let inner = self.fc1.apply_gelu(device, &self.norms[1].apply(device, hidden));
        self.fc2.add_to(device, &inner, hidden, None);
    }
}

/// Patches as rows, `[n × grid², 3 × patch²]`, in the order of the convolution's kernel.
pub(crate) fn unfold(images: &Tensor, grid: usize, patch: usize) -> Vec<f32> {
    let side = grid * patch;
    let mut rows = Vec::with_capacity(images.data().len());
    for image in images.data().chunks_exact(3 * side * side) {
        for (down, across) in (0..grid).flat_map(|down| (0..grid).map(move |across| (down, across))) {
            for (channel, line) in (0..3).flat_map(|channel| (0..patch).map(move |line| (channel, line))) {
                let start = (channel * side + down * patch + line) * side + across * patch;
                rows.extend_from_slice(&image[start..start + patch]);
            }
        }
    }
    rows
}

/// The position table `[from², width]` for a grid of `to` patches a side: bicubic with a = -0.75 and pixel centres
/// aligned, as PyTorch's `interpolate(mode="bicubic", align_corners=False)`.
pub(in crate::device) fn resize_positions(table: &[f32], from: usize, to: usize) -> Cow<'_, [f32]> {
    if from == to {
        return Cow::Borrowed(table);
    }
    let width = table.len() / (from * from);
    let taps: Vec<[(usize, f32); 4]> = (0..to).map(|i| cubic_taps(i, from, to)).collect();
    let mut resized = vec![0.0; to * to * width];
    for (cell, out) in resized.chunks_exact_mut(width).enumerate() {
        for (down, down_weight) in taps[cell / to] {
            for (across, across_weight) in taps[cell % to] {
                let source = &table[(down * from + across) * width..][..width];
                out.iter_mut().zip(source).for_each(|(out, x)| *out += down_weight * across_weight * x);
            }
        }
    }
    Cow::Owned(resized)
}

/// The four source cells of target cell `i`, clamped to the table, and their weights (Keys 1981).
fn cubic_taps(i: usize, from: usize, to: usize) -> [(usize, f32); 4] {
    const A: f32 = -0.75;
    let near = |d: f32| ((A + 2.0) * d - (A + 3.0)) * d * d + 1.0;
    let far = |d: f32| ((A * d - 5.0 * A) * d + 8.0 * A) * d - 4.0 * A;
    let source = (i as f32 + 0.5) * from as f32 / to as f32 - 0.5;
    let below = source.floor();
    let t = source - below;
    let weights = [far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)];
    let clamp = |offset: f32| (below + offset).clamp(0.0, (from - 1) as f32) as usize;
    std::array::from_fn(|tap| (clamp(tap as f32 - 1.0), weights[tap]))
}
