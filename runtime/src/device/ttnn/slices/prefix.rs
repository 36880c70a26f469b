//! Blocks of the VLM on a chip.

use std::sync::Arc;

use tensact_topology::{LayerRange, ModelSizes, RequestShape, StageKind};

use super::pool::{Lease, Pool};
use super::resident::{Destination, Destinations};
use super::rows::{Form, Heads, ValidRows, mask_row};
use crate::Tensor;
use crate::device::ttnn::Chip;
use crate::device::ttnn::program::{Numerics, PrefixRows, TILE, Wiring, prefix_embedding, prefix_layers};
use crate::device::{PrefixInput, PrefixPass, PrefixStage, SliceError};
use crate::model::KeyValue;

const STAGE: StageKind = StageKind::Prefix;

/// Some consecutive blocks of the VLM on a chip.
pub struct TtnnPrefix {
    sizes: ModelSizes,
    layers: LayerRange,
    numerics: Numerics,
    to: Destinations,
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
    /// A slice on a chip that has the weights of a checkpoint of these sizes, ready for requests of this shape. What it
    /// computes goes to `to`.
    ///
    /// # Errors
    /// When the VLM has no such blocks, or the chip cannot load them.
    pub fn load(
        chip: Arc<dyn Chip>,
        sizes: &ModelSizes,
        layers: LayerRange,
        numerics: Numerics,
        request: &RequestShape,
        to: Destinations,
    ) -> Result<Self, SliceError> {
        SliceError::check_layers(STAGE, sizes.vlm.layers, layers)?;
        let (embeddings, layers_over) = (Pool::new(Arc::clone(&chip)), Pool::new(chip));
        let slice = Self { sizes: *sizes, layers, numerics, to, embeddings, layers_over };
        if layers.start() == 0 {
            let (patches, tokens) = (sizes.vision.patches(), request.prompt_tokens.next_multiple_of(TILE));
            let mut lease = slice.lease_embedding(Parts { images: request.cameras, patches, tokens })?;
            lease.make_room("hidden", Destination::Chip(slice.embeddings.chip()))?;
        }
        let mut lease = slice.lease_layers(PrefixRows::holding(request.prefix_tokens(sizes)))?;
        for layer in layers.iter() {
            for what in ["keys", "values"] {
                lease.make_room(&format!("{what} {layer}"), slice.to.cache(layer))?;
            }
        }
        if !slice.is_last() {
            lease.make_room("hidden", slice.to.next)?;
        }
        drop(lease);
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

    fn is_last(&self) -> bool {
        self.layers.end() == self.sizes.vlm.layers
    }

    /// The hidden states of one prefix, `[tokens, width]`.
    fn embed_one(&self, input: &PrefixInput<'_>) -> Result<Tensor, SliceError> {
        let patches = self.patches(input)?;
        if let Some(&token) = input.tokens.iter().find(|token| **token as usize >= self.sizes.vocab) {
            return Err(SliceError::NoSuchToken { token, vocab: self.sizes.vocab });
        }
        let (images, tokens) = (input.images.len(), input.tokens.len().next_multiple_of(TILE));
        let mut lease = self.lease_embedding(Parts { images, patches, tokens })?;
        let padded = patches.next_multiple_of(TILE);
        let image_rows = Form::Rows(ValidRows::first(patches, padded));
        for (camera, image) in input.images.iter().enumerate() {
            lease.take(&format!("image {camera}"), image, &image_rows)?;
        }
        let mut ids = input.tokens.to_vec();
        ids.resize(tokens, 0);
        lease.write_numbers("tokens", &ids)?;
        lease.run("embed")?;
        let starts = (0..images).map(|camera| (camera * padded, patches));
        let parts = starts.chain([(images * padded, input.tokens.len())]);
        let spans = parts.map(|(start, rows)| start..start + rows);
        let rows = PrefixRows::holding(images * padded + tokens);
        // Nobody else takes it.
        let to = Destination::Chip(self.embeddings.chip());
        Ok(lease.give("hidden", &Form::Rows(ValidRows::spans(spans, rows.count())), to)?)
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

    fn embed(&self, inputs: &[PrefixInput<'_>]) -> Result<Vec<Tensor>, SliceError> {
        if self.layers.start() > 0 {
            return Err(SliceError::NotHere { stage: STAGE, what: "the token table", range: self.layers });
        }
        inputs.iter().map(|input| self.embed_one(input)).collect()
    }

    fn begin(self: Arc<Self>, batch: Vec<Tensor>) -> Result<Box<dyn PrefixPass>, SliceError> {
        let width = self.sizes.vlm.width;
        let fits =
            |hidden: &&Tensor| matches!(*hidden.shape(), [tokens, found] if tokens > 0 && found == width);
        if let Some(odd) = batch.iter().find(|hidden| !fits(hidden)) {
            return Err(shape("hidden states", format!("[1 or more tokens, {width}]"), odd.shape()));
        }
        let sequences =
            batch.iter().map(|hidden| Sequence::begin(&self, hidden)).collect::<Result<_, _>>()?;
        Ok(Box::new(Pass { slice: self, sequences, ran: 0 }))
    }
}

/// One prefix on its way through the slice, in a program of its own: attention of one takes nothing from another.
struct Sequence {
    rows: ValidRows,
    lease: Lease<PrefixRows, ()>,
    /// A layer of which only keys and values were computed so far.
    open: Option<usize>,
}

impl Sequence {
    fn begin(slice: &TtnnPrefix, hidden: &Tensor) -> Result<Self, SliceError> {
        let rows = ValidRows::of_prefix(hidden, hidden.rows());
        let mut lease = slice.lease_layers(PrefixRows::holding(rows.padded()))?;
        lease.take("hidden", hidden, &Form::Rows(rows.clone()))?;
        lease.write_numbers("positions", &rows.positions())?;
        lease.write("keys that count", &mask_row(rows.padded(), rows.places()))?;
        lease.run("begin")?;
        Ok(Self { rows, lease, open: None })
    }

    /// What the layer before left to compute, then a layer up to its keys and values.
    fn layer(&mut self, slice: &TtnnPrefix, layer: usize) -> Result<KeyValue, SliceError> {
        self.close()?;
        self.lease.run(&format!("layer {layer}"))?;
        self.open = Some(layer);
        let form = Form::Heads(self.rows.clone(), Heads::of(&slice.sizes.vlm));
        let to = slice.to.cache(layer);
        let mut part = |what: &str| self.lease.give(&format!("{what} {layer}"), &form, to);
        Ok(KeyValue { keys: part("keys")?, values: part("values")? })
    }

    fn close(&mut self) -> Result<(), SliceError> {
        let Some(layer) = self.open.take() else { return Ok(()) };
        Ok(self.lease.run(&format!("rest of layer {layer}"))?)
    }

    fn hidden(&mut self, to: Destination) -> Result<Tensor, SliceError> {
        self.close()?;
        Ok(self.lease.give("hidden", &Form::Rows(self.rows.clone()), to)?)
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

    fn finish(mut self: Box<Self>) -> Result<Option<Vec<Tensor>>, SliceError> {
        assert_eq!(self.ran, self.slice.layers.len(), "a pass is finished when all its layers have run");
        if self.slice.is_last() {
            return Ok(None);
        }
        let to = self.slice.to.next;
        self.sequences.iter_mut().map(|sequence| sequence.hidden(to)).collect::<Result<_, _>>().map(Some)
    }
}
