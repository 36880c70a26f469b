//! The Gemma VLM over image and instruction tokens: it fills the KV cache.

use std::sync::Arc;

use tensact_topology::{DecoderSizes, LayerRange, StageKind};

use super::activation::round_to_bf16;
use super::attention::{Segment, Sequence, attention};
use super::band::Band;
use super::decoder::{BlockName, DecoderBlock, Extent};
use super::gemm::Rows;
use super::norm::RmsNorm;
use super::rope::Rotation;
use super::{ComputeDtype, HostDevice, of_shape};
use crate::Tensor;
use crate::checkpoint::Checkpoint;
use crate::checkpoint::names::{TOKEN_TABLE, VLM};
use crate::device::{PrefixInput, PrefixPass, PrefixStage, SliceError};
use crate::model::KeyValue;
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
            let last = layer + 1 == sizes.layers;
            let extent = if last { Extent::KeysValues } else { Extent::Whole };
            (DecoderBlock::load(device, checkpoint, &name, sizes, extent), norms)
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

    /// Every sequence attends to itself.
    fn attend(&self, block: &DecoderBlock, lengths: &[usize], q: &[f32], k: &[f32], v: &[f32]) -> Rows {
        let all = Segment::whole(k, v, self.sizes.kv_width());
        let mut start = 0;
        let sequences: Vec<Sequence<'_>> = lengths
            .iter()
            .map(|length| {
                let tokens = start..start + length;
                start = tokens.end;
                Sequence { tokens: tokens.clone(), segments: vec![all.rows(tokens)] }
            })
            .collect();
        let q = Band::whole(q, self.sizes.q_width());
        attention(&self.device, q, &sequences, block.heads())
    }

    fn shape(&self, what: &'static str, expected: String, found: &[usize]) -> SliceError {
        SliceError::Shape { stage: STAGE, what, expected, found: found.into() }
    }
}

impl PrefixStage for PrefixSlice {
    fn layers(&self) -> LayerRange {
        self.layers
    }

    fn embed(&self, inputs: &[PrefixInput<'_>]) -> Result<Vec<Tensor>, SliceError> {
        let Some(embedding) = &self.embedding else {
            return Err(SliceError::NotHere { stage: STAGE, what: "the token table", range: self.layers });
        };
        let width = self.sizes.width;
        let embed = |input: &PrefixInput<'_>| {
            let mut hidden = Vec::new();
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
            if hidden.is_empty() {
                return Err(self.shape("a prefix", format!("[1 or more tokens, {width}]"), &[0, width]));
            }
            Ok(of_shape([hidden.len() / width, width], hidden))
        };
        inputs.iter().map(embed).collect()
    }

    fn begin(self: Arc<Self>, batch: Vec<Tensor>) -> Result<Box<dyn PrefixPass>, SliceError> {
        Ok(Box::new(Pass::begin(self, batch)?))
    }
}

/// A pass over a slice.
struct Pass {
    slice: Arc<PrefixSlice>,
    /// Hidden states of all sequences, one after the other, and the tokens of each.
    hidden: Tensor,
    lengths: Vec<usize>,
    rotation: Rotation,
    /// Layers of the slice that have handed out their keys and values.
    ran: usize,
    open: Option<Open>,
}

/// A layer of which only keys and values were computed so far, for all rows of the batch.
struct Open {
    normed: Rows,
    k: Vec<f32>,
    v: Vec<f32>,
}

impl Pass {
    fn begin(slice: Arc<PrefixSlice>, mut batch: Vec<Tensor>) -> Result<Self, SliceError> {
        let DecoderSizes { width, head_dim, .. } = slice.sizes;
        let fits =
            |hidden: &&Tensor| matches!(*hidden.shape(), [tokens, found] if tokens > 0 && found == width);
        if let Some(odd) = batch.iter().find(|hidden| !fits(hidden)) {
            return Err(slice.shape("hidden states", format!("[1 or more tokens, {width}]"), odd.shape()));
        }
        let lengths: Vec<usize> = batch.iter().map(Tensor::rows).collect();
        let hidden = match batch.len() {
            1 => batch.remove(0),
            _ => Tensor::join_rows(&batch).unwrap_or_else(|| Tensor::zeros([0, width])),
        };
        let rotation = Rotation::new(lengths.iter().flat_map(|&length| 0..length), head_dim);
        Ok(Self { slice, hidden, lengths, rotation, ran: 0, open: None })
    }

    /// Attention and MLP of the layer that has handed out its keys and values.
    fn close(&mut self) {
        let Some(Open { normed, k, v }) = self.open.take() else { return };
        let slice = &*self.slice;
        let (block, [first, second]) = &slice.blocks[self.ran - 1];
        let q = block.queries(&slice.device, &normed, &self.rotation);
        let attended = slice.attend(block, &self.lengths, &q, &k, &v);
        let norms = [RmsNorm::Plain(first), RmsNorm::Plain(second)];
        block.close(&slice.device, self.hidden.data_mut(), &attended, &norms);
    }
}

impl PrefixPass for Pass {
    /// Hands out keys and values before the rest of the layer runs: whoever waits for them need not wait for it.
    fn layer(&mut self) -> Result<Option<Vec<KeyValue>>, SliceError> {
        let device = Arc::clone(&self.slice.device);
        device.run(|| self.next())
    }

    fn finish(mut self: Box<Self>) -> Result<Option<Vec<Tensor>>, SliceError> {
        assert_eq!(self.ran, self.slice.blocks.len(), "a pass is finished when all its layers have run");
        let device = Arc::clone(&self.slice.device);
        device.run(|| self.close());
        let batch = match self.lengths.len() {
            1 => vec![self.hidden],
            _ => self.hidden.split_rows(&self.lengths),
        };
        Ok((self.slice.layers.end() < self.slice.depth).then_some(batch))
    }
}

impl Pass {
    /// Closes the layer that is open, and opens the next one.
    fn next(&mut self) -> Result<Option<Vec<KeyValue>>, SliceError> {
        self.close();
        let slice = &*self.slice;
        let Some((block, [first, _])) = slice.blocks.get(self.ran) else { return Ok(None) };
        let normed = RmsNorm::Plain(first).apply(&slice.device, self.hidden.data(), slice.sizes.width);
        let (k, v) = block.keys_values(&slice.device, &normed, &self.rotation);
        let entries = split(&self.lengths, slice.sizes.kv_width(), &k, &v);
        self.ran += 1;
        if slice.layers.start() + self.ran < slice.depth {
            self.open = Some(Open { normed, k, v });
        }
        Ok(Some(entries))
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
