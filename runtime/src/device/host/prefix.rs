//! The Gemma VLM over image and instruction tokens: it fills the KV cache.

use std::sync::Arc;

use tensact_topology::{DecoderSizes, LayerRange, StageKind};

use super::activation::round_to_bf16;
use super::attention::attention;
use super::decoder::{BlockName, DecoderBlock};
use super::norm::RmsNorm;
use super::rope::Rotation;
use super::{ComputeDtype, HostDevice, of_shape};
use crate::Tensor;
use crate::checkpoint::Checkpoint;
use crate::checkpoint::names::{TOKEN_TABLE, VLM};
use crate::device::SliceError;
use crate::model::{KeyValue, Sequences};
use crate::tensor_file::StoredTensor;

const STAGE: StageKind = StageKind::Prefix;

/// Some consecutive blocks of the VLM. The first slice assembles the prefix; the last block of the last slice
/// computes only keys and values, for nothing reads its output.
pub struct PrefixSlice {
    device: Arc<HostDevice>,
    sizes: DecoderSizes,
    /// Layers of the whole VLM.
    depth: usize,
    layers: LayerRange,
    embedding: Option<TokenEmbedding>,
    blocks: Vec<(DecoderBlock, [Vec<f32>; 2])>,
}

struct TokenEmbedding {
    table: StoredTensor,
    scale: f32,
}

/// What the prefix of one observation is made of.
#[derive(Debug, Clone, Copy)]
pub struct PrefixInput<'a> {
    /// Image tokens `[patches, width]` of each camera that is there, in the checkpoint's order.
    pub images: &'a [Tensor],
    /// Instruction tokens without padding.
    pub tokens: &'a [u32],
}

impl PrefixSlice {
    /// Loads some blocks.
    ///
    /// # Errors
    /// When the VLM has no such blocks.
    pub fn load(
        device: &Arc<HostDevice>,
        checkpoint: &Checkpoint,
        layers: LayerRange,
    ) -> Result<Self, SliceError> {
        let sizes = checkpoint.sizes().vlm;
        SliceError::check_layers(STAGE, sizes.layers, layers)?;
        let block = |layer| {
            let name = BlockName::new(VLM, layer);
            let norms = name.norms().map(|norm| RmsNorm::load_scale(checkpoint, &norm));
            (DecoderBlock::load(device, checkpoint, &name, sizes), norms)
        };
        let root = (sizes.width as f32).sqrt();
        Ok(Self {
            device: Arc::clone(device),
            sizes,
            depth: sizes.layers,
            layers,
            embedding: (layers.start() == 0).then(|| TokenEmbedding {
                table: checkpoint.tensor(TOKEN_TABLE).clone(),
                // The peers multiply in the type of the weights, so in bf16 the factor itself is rounded.
                scale: if device.dtype() == ComputeDtype::Bf16 { round_to_bf16(root) } else { root },
            }),
            blocks: layers.iter().map(block).collect(),
        })
    }

    /// The layers of this slice.
    pub fn layers(&self) -> LayerRange {
        self.layers
    }

    /// Assembles prefixes: image tokens of all cameras, then instruction tokens.
    ///
    /// # Errors
    /// When image tokens have another width, a token is not in the table, a prefix is empty, or this is not the first
    /// slice.
    pub fn embed(&self, inputs: &[PrefixInput<'_>]) -> Result<Sequences, SliceError> {
        let Some(embedding) = &self.embedding else {
            return Err(SliceError::NotHere { stage: STAGE, what: "the token table", range: self.layers });
        };
        let width = self.sizes.width;
        let mut hidden = Vec::new();
        let mut lengths = Vec::with_capacity(inputs.len());
        for input in inputs {
            let start = hidden.len();
            for image in input.images {
                match image.shape() {
                    [_, found] if *found == width => hidden.extend_from_slice(image.data()),
                    found => {
                        return Err(self.shape("image tokens", format!("[patches, {width}]"), found));
                    }
                }
            }
            for &token in input.tokens {
                hidden.extend(embedding.embed(&self.device, token)?);
            }
            let length = (hidden.len() - start) / width;
            if length == 0 {
                return Err(self.shape("a prefix", format!("[1 or more tokens, {width}]"), &[0, width]));
            }
            lengths.push(length);
        }
        Ok(Sequences { hidden: of_shape([hidden.len() / width, width], hidden), lengths })
    }

    /// Runs all blocks. As soon as a layer's keys and values exist, `emit` gets them, one entry per sequence. Gives the
    /// hidden states for the next slice, or nothing after the VLM's last layer.
    ///
    /// # Errors
    /// When the shape does not fit.
    pub fn run(
        &self,
        batch: Sequences,
        emit: &mut dyn FnMut(usize, Vec<KeyValue>),
    ) -> Result<Option<Sequences>, SliceError> {
        let Sequences { mut hidden, lengths } = batch;
        let width = self.sizes.width;
        let rows: usize = lengths.iter().sum();
        if hidden.shape() != [rows, width] || lengths.contains(&0) {
            return Err(self.shape("hidden states", format!("[{rows}, {width}]"), hidden.shape()));
        }
        let rotation = Rotation::new(lengths.iter().flat_map(|&length| 0..length), self.sizes.head_dim);
        for (layer, (block, norms)) in self.layers.iter().zip(&self.blocks) {
            let norms = [RmsNorm::Plain(&norms[0]), RmsNorm::Plain(&norms[1])];
            let normed = norms[0].apply(&self.device, hidden.data(), width);
            let (k, v) = block.keys_values(&self.device, &normed, &rotation);
            let entries = split(&lengths, self.sizes.kv_width(), &k, &v);
            if layer + 1 < self.depth {
                let q = block.queries(&self.device, &normed, &rotation);
                let attended = self.attend(block, &lengths, &q, &entries);
                emit(layer, entries);
                block.close(&self.device, hidden.data_mut(), attended, &norms);
            } else {
                emit(layer, entries);
                return Ok(None);
            }
        }
        Ok(Some(Sequences { hidden, lengths }))
    }

    /// Every sequence attends to itself.
    fn attend(&self, block: &DecoderBlock, lengths: &[usize], q: &[f32], entries: &[KeyValue]) -> Vec<f32> {
        let mut attended = Vec::with_capacity(q.len());
        let mut rest = q;
        for (length, entry) in lengths.iter().zip(entries) {
            let (q, behind) = rest.split_at(length * self.sizes.q_width());
            rest = behind;
            attended.extend(attention(
                &self.device,
                q,
                entry.keys.data(),
                entry.values.data(),
                block.heads(),
            ));
        }
        attended
    }

    fn shape(&self, what: &'static str, expected: String, found: &[usize]) -> SliceError {
        SliceError::Shape { stage: STAGE, what, expected, found: found.into() }
    }
}

impl TokenEmbedding {
    /// A row of the table times the root of its width.
    fn embed(&self, device: &HostDevice, token: u32) -> Result<Vec<f32>, SliceError> {
        let mut row = usize::try_from(token)
            .ok()
            .and_then(|token| self.table.row(token))
            .ok_or(SliceError::NoSuchToken { token, vocab: self.table.shape()[0] })?;
        device.round(&mut row);
        row.iter_mut().for_each(|x| *x *= self.scale);
        Ok(row)
    }
}

/// One entry per sequence out of the rows of all of them.
pub(super) fn split(lengths: &[usize], width: usize, k: &[f32], v: &[f32]) -> Vec<KeyValue> {
    let mut start = 0;
    lengths
        .iter()
        .map(|&length| {
            let rows = start * width..(start + length) * width;
            start += length;
            KeyValue {
                keys: of_shape([length, width], k[rows.clone()].to_vec()),
                values: of_shape([length, width], v[rows].to_vec()),
            }
        })
        .collect()
}
