//! Chips without arithmetic: every value is a digest of what led to it.
//!
//! A message that is mixed up, lost or duplicated on its way changes the actions, which [`answer`] knows. Layers fold
//! into a digest one at a time, so that, as on the host, the cut into slices and the other members of a batch change no
//! bit. Hidden states and image tokens are `[1, 4]`, keys and values `[1, 4]` per layer; a prefix is one token. What the
//! host refuses for its shape is refused here, but images of any shape are taken.

mod answer;
mod digest;
mod expert;

use std::sync::Arc;

use tensact_topology::{LayerRange, ModelSizes, StageKind};

pub use answer::answer;
pub use expert::EmulatedExpert;

use super::{PrefixInput, PrefixPass, PrefixStage, SliceError, VisionStage};
use crate::Tensor;
use crate::model::KeyValue;
use digest::{Digest, WIDTH};

/// Some consecutive blocks of the vision tower on an emulated chip.
#[derive(Debug, Clone)]
pub struct EmulatedVision {
    layers: LayerRange,
}

/// Some consecutive blocks of the VLM on an emulated chip.
#[derive(Debug, Clone)]
pub struct EmulatedPrefix {
    layers: LayerRange,
    /// Layers of the whole VLM.
    depth: usize,
    vocab: usize,
}

impl EmulatedVision {
    /// These layers of the tower.
    ///
    /// # Errors
    /// When the tower has no such layers.
    pub fn new(layers: LayerRange, sizes: &ModelSizes) -> Result<Self, SliceError> {
        SliceError::check_layers(StageKind::Vision, sizes.vision.layers, layers)?;
        Ok(Self { layers })
    }
}

impl VisionStage for EmulatedVision {
    fn layers(&self) -> LayerRange {
        self.layers
    }

    fn run(&self, images: &[&Tensor]) -> Result<Vec<Tensor>, SliceError> {
        let run = |image: &&Tensor| {
            let start = match self.layers.start() {
                0 => Digest::of_tensor(image),
                _ => one(StageKind::Vision, "hidden states", image)?,
            };
            Ok(self.layers.iter().fold(start, Digest::vision_layer).tensor())
        };
        images.iter().map(run).collect()
    }
}

impl EmulatedPrefix {
    /// These layers of the VLM.
    ///
    /// # Errors
    /// When the VLM has no such layers.
    pub fn new(layers: LayerRange, sizes: &ModelSizes) -> Result<Self, SliceError> {
        SliceError::check_layers(StageKind::Prefix, sizes.vlm.layers, layers)?;
        Ok(Self { layers, depth: sizes.vlm.layers, vocab: sizes.vocab })
    }

    fn embed_one(&self, input: &PrefixInput<'_>) -> Result<Digest, SliceError> {
        if input.images.is_empty() && input.tokens.is_empty() {
            return Err(shape(StageKind::Prefix, "a prefix", "[1 or more tokens]".into(), &[0]));
        }
        let known = |token: u32| usize::try_from(token).is_ok_and(|token| token < self.vocab);
        if let Some(&token) = input.tokens.iter().find(|token| !known(**token)) {
            return Err(SliceError::NoSuchToken { token, vocab: self.vocab });
        }
        for image in input.images {
            one(StageKind::Prefix, "image tokens", image)?;
        }
        let images = input.images.iter().map(|image| Digest::of_row(image.data()));
        Ok(Digest::of_prefix(images, input.tokens))
    }
}

impl PrefixStage for EmulatedPrefix {
    fn layers(&self) -> LayerRange {
        self.layers
    }

    fn embed(&self, inputs: &[PrefixInput<'_>]) -> Result<Vec<Tensor>, SliceError> {
        if self.layers.start() > 0 {
            return Err(SliceError::NotHere {
                stage: StageKind::Prefix,
                what: "the token table",
                range: self.layers,
            });
        }
        inputs.iter().map(|input| Ok(self.embed_one(input)?.tensor())).collect()
    }

    fn begin(self: Arc<Self>, batch: Vec<Tensor>) -> Result<Box<dyn PrefixPass>, SliceError> {
        let digests = some(StageKind::Prefix, "hidden states", &batch)?;
        Ok(Box::new(Pass { next: self.layers.start(), slice: self, digests }))
    }
}

/// A batch on its way through a prefix slice.
struct Pass {
    slice: Arc<EmulatedPrefix>,
    /// The layer to run next.
    next: usize,
    /// One per sequence.
    digests: Vec<Digest>,
}

impl PrefixPass for Pass {
    fn layer(&mut self) -> Result<Option<Vec<KeyValue>>, SliceError> {
        let layer = self.next;
        if layer == self.slice.layers.end() {
            return Ok(None);
        }
        self.next += 1;
        let run = |digest: &mut Digest| {
            let [keys, values] = digest.keys_values(layer).map(Digest::tensor);
            *digest = digest.prefix_layer(layer);
            KeyValue { keys, values }
        };
        Ok(Some(self.digests.iter_mut().map(run).collect()))
    }

    fn finish(self: Box<Self>) -> Result<Option<Vec<Tensor>>, SliceError> {
        let end = self.slice.layers.end();
        assert_eq!(self.next, end, "a pass is finished when all its layers have run");
        Ok((end < self.slice.depth).then(|| self.digests.into_iter().map(Digest::tensor).collect()))
    }
}

/// The digest in hidden states `[1, WIDTH]`.
fn one(stage: StageKind, what: &'static str, hidden: &Tensor) -> Result<Digest, SliceError> {
    match *hidden.shape() {
        [1, WIDTH] => Ok(Digest::of_row(hidden.data())),
        _ => Err(shape(stage, what, format!("[1, {WIDTH}]"), hidden.shape())),
    }
}

/// The digests in hidden states, one in each.
fn some(stage: StageKind, what: &'static str, hidden: &[Tensor]) -> Result<Vec<Digest>, SliceError> {
    hidden.iter().map(|hidden| one(stage, what, hidden)).collect()
}

fn shape(stage: StageKind, what: &'static str, expected: String, found: &[usize]) -> SliceError {
    SliceError::Shape { stage, what, expected, found: found.into() }
}
