//! Blocks of the VLM on a chip.

use std::sync::Arc;

use tensact_topology::{LayerRange, ModelSizes, RequestShape, StageKind};

use super::pool::{Lease, Pool};
use super::rows::{first_rows, from_heads, mask_row, spread_rows};
use crate::Tensor;
use crate::device::host::of_shape;
use crate::device::ttnn::Chip;
use crate::device::ttnn::program::{Numerics, PrefixRows, TILE, Wiring, prefix_embedding, prefix_layers};
use crate::device::{PrefixInput, PrefixPass, PrefixStage, SliceError};
use crate::model::{KeyValue, Sequences};

const STAGE: StageKind = StageKind::Prefix;

/// Some consecutive blocks of the VLM on a chip.
pub struct TtnnPrefix {
    sizes: ModelSizes,
    layers: LayerRange,
    numerics: Numerics,
    embeddings: Arc<Pool<Parts>>,
    layers_over: Arc<Pool<PrefixRows>>,
}

/// What a prefix is assembled of: so many images of so many patches each, and so many tokens in whole tiles.
#[derive(Clone, Copy, PartialEq)]
struct Parts {
    images: usize,
    patches: usize,
    tokens: usize,
}

impl TtnnPrefix {
    /// A slice on a chip that has the weights of a checkpoint of these sizes, ready for requests of this shape.
    ///
    /// # Errors
    /// When the VLM has no such blocks, or the chip cannot load them.
    pub fn load(
        chip: Arc<dyn Chip>,
        sizes: &ModelSizes,
        layers: LayerRange,
        numerics: Numerics,
        request: &RequestShape,
    ) -> Result<Self, SliceError> {
        SliceError::check_layers(STAGE, sizes.vlm.layers, layers)?;
        let (embeddings, layers_over) = (Pool::new(Arc::clone(&chip)), Pool::new(chip));
        let slice = Self { sizes: *sizes, layers, numerics, embeddings, layers_over };
        if layers.start() == 0 {
            let (patches, tokens) = (sizes.vision.patches(), request.prompt_tokens.next_multiple_of(TILE));
            slice.lease_embedding(Parts { images: request.cameras, patches, tokens })?;
        }
        slice.lease_layers(PrefixRows::holding(request.prefix_tokens(sizes)))?;
        Ok(slice)
    }

    fn lease_embedding(&self, parts: Parts) -> Result<Lease<Parts, ()>, SliceError> {
        let Parts { images, patches, tokens } = parts;
        let build =
            || prefix_embedding(&self.sizes, images, patches, tokens, self.numerics, Wiring::default());
        Ok(self.embeddings.lease(parts, build)?)
    }

    fn lease_layers(&self, rows: PrefixRows) -> Result<Lease<PrefixRows, ()>, SliceError> {
        let build = || prefix_layers(&self.sizes, self.layers, rows, self.numerics, Wiring::default());
        Ok(self.layers_over.lease(rows, build)?)
    }

    /// The hidden states of one prefix, `[tokens, width]`.
    fn embed_one(&self, input: &PrefixInput<'_>) -> Result<Vec<f32>, SliceError> {
        let width = self.sizes.vlm.width;
        let patches = self.patches(input)?;
        if let Some(&token) = input.tokens.iter().find(|token| **token as usize >= self.sizes.vocab) {
            return Err(SliceError::NoSuchToken { token, vocab: self.sizes.vocab });
        }
        let (images, tokens) = (input.images.len(), input.tokens.len().next_multiple_of(TILE));
        let mut lease = self.lease_embedding(Parts { images, patches, tokens })?;
        let padded = patches.next_multiple_of(TILE);
        for (camera, image) in input.images.iter().enumerate() {
            lease.write(&format!("image {camera}"), &spread_rows(&[image.data()], width, padded))?;
        }
        let mut ids = input.tokens.to_vec();
        ids.resize(tokens, 0);
        lease.write_numbers("tokens", &ids)?;
        lease.run("embed")?;
        let embedded = lease.read("hidden")?;
        let starts = (0..images).map(|camera| (camera * padded, patches));
        let parts = starts.chain(std::iter::once((images * padded, input.tokens.len())));
        Ok(parts
            .flat_map(|(start, rows)| &embedded[start * width..(start + rows) * width])
            .copied()
            .collect())
    }

    /// Patches of each image; images of one request must have one size here.
    fn patches(&self, input: &PrefixInput<'_>) -> Result<usize, SliceError> {
        let width = self.sizes.vlm.width;
        let Some(first) = input.images.first() else {
            return if input.tokens.is_empty() { Err(self.empty()) } else { Ok(0) };
        };
        let patches = if first.shape().len() == 2 { first.rows() } else { 0 };
        match input.images.iter().find(|image| image.shape() != [patches, width] || patches == 0) {
            None => Ok(patches),
            Some(odd) => Err(shape("image tokens", format!("[{patches}, {width}]"), odd.shape())),
        }
    }

    fn empty(&self) -> SliceError {
        shape("a prefix", format!("[1 or more tokens, {}]", self.sizes.vlm.width), &[0, self.sizes.vlm.width])
    }
}

fn shape(what: &'static str, expected: String, found: &[usize]) -> SliceError {
    SliceError::Shape { stage: STAGE, what, expected, found: found.into() }
}

impl PrefixStage for TtnnPrefix {
    fn layers(&self) -> LayerRange {
        self.layers
    }

    fn embed(&self, inputs: &[PrefixInput<'_>]) -> Result<Sequences, SliceError> {
        if self.layers.start() > 0 {
            return Err(SliceError::NotHere { stage: STAGE, what: "the token table", range: self.layers });
        }
        let width = self.sizes.vlm.width;
        let mut hidden = Vec::new();
        let mut lengths = Vec::with_capacity(inputs.len());
        for input in inputs {
            let embedded = self.embed_one(input)?;
            lengths.push(embedded.len() / width);
            hidden.extend(embedded);
        }
        Ok(Sequences { hidden: of_shape([hidden.len() / width, width], hidden), lengths })
    }

    fn begin(self: Arc<Self>, batch: Sequences) -> Result<Box<dyn PrefixPass>, SliceError> {
        let width = self.sizes.vlm.width;
        let rows: usize = batch.lengths.iter().sum();
        if batch.hidden.shape() != [rows, width] || batch.lengths.contains(&0) {
            return Err(shape("hidden states", format!("[{rows}, {width}]"), batch.hidden.shape()));
        }
        let sequences =
            batch.parts().map(|hidden| Sequence::begin(&self, &hidden)).collect::<Result<_, _>>()?;
        Ok(Box::new(Pass { slice: self, sequences, ran: 0 }))
    }
}

/// One prefix on its way through the slice, in a program of its own: attention of one takes nothing from another.
struct Sequence {
    tokens: usize,
    lease: Lease<PrefixRows, ()>,
    /// A layer of which only keys and values were computed so far.
    open: Option<usize>,
}

impl Sequence {
    fn begin(slice: &TtnnPrefix, hidden: &Tensor) -> Result<Self, SliceError> {
        let tokens = hidden.rows();
        let rows = PrefixRows::holding(tokens);
        let mut lease = slice.lease_layers(rows)?;
        lease.write("hidden", &spread_rows(&[hidden.data()], hidden.width(), rows.count()))?;
        let positions: Vec<u32> = (0..rows.count() as u32).collect();
        lease.write_numbers("positions", &positions)?;
        lease.write("keys that count", &mask_row(rows.count(), 0..tokens))?;
        lease.run("begin")?;
        Ok(Self { tokens, lease, open: None })
    }

    /// What the layer before left to compute, then a layer up to its keys and values.
    fn layer(&mut self, slice: &TtnnPrefix, layer: usize) -> Result<KeyValue, SliceError> {
        self.close()?;
        self.lease.run(&format!("layer {layer}"))?;
        self.open = Some(layer);
        let mut part = |what: &str| -> Result<Tensor, SliceError> {
            let heads = self.lease.read(&format!("{what} {layer}"))?;
            Ok(from_heads(&heads, &slice.sizes.vlm, self.tokens))
        };
        Ok(KeyValue { keys: part("keys")?, values: part("values")? })
    }

    fn close(&mut self) -> Result<(), SliceError> {
        let Some(layer) = self.open.take() else { return Ok(()) };
        Ok(self.lease.run(&format!("rest of layer {layer}"))?)
    }

    fn hidden(&mut self, width: usize) -> Result<Tensor, SliceError> {
        self.close()?;
        Ok(first_rows(&self.lease.read("hidden")?, self.tokens, width))
    }
}

struct Pass {
    slice: Arc<TtnnPrefix>,
    sequences: Vec<Sequence>,
    ran: usize,
}

impl PrefixPass for Pass {
    fn layer(&mut self) -> Result<Option<Vec<KeyValue>>, SliceError> {
        if self.ran == self.slice.layers.len() {
            return Ok(None);
        }
        let layer = self.slice.layers.start() + self.ran;
        self.ran += 1;
        self.sequences
            .iter_mut()
            .map(|sequence| sequence.layer(&self.slice, layer))
            .collect::<Result<_, _>>()
            .map(Some)
    }

    fn finish(mut self: Box<Self>) -> Result<Option<Sequences>, SliceError> {
        assert_eq!(self.ran, self.slice.layers.len(), "a pass is finished when all its layers have run");
        if self.slice.layers.end() == self.slice.sizes.vlm.layers {
            return Ok(None);
        }
        let width = self.slice.sizes.vlm.width;
        let parts: Vec<Tensor> =
            self.sequences.iter_mut().map(|sequence| sequence.hidden(width)).collect::<Result<_, _>>()?;
        Ok(Sequences::join(&parts))
    }
}
