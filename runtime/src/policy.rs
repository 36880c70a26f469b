//! A whole policy on one device: the three stages run one after the other.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tensact_topology::{LayerRange, ModelSizes, RequestShape, StageKind, Variant};

use crate::Tensor;
use crate::checkpoint::Checkpoint;
use crate::device::host::{ExpertSlice, HostDevice, PrefixSlice, VisionSlice};
use crate::device::ttnn::program::Numerics;
use crate::device::ttnn::{Chip, Destination, Destinations, TtnnExpert, TtnnPrefix, TtnnVision};
use crate::device::{ExpertStage, PrefixInput, PrefixStage, SliceError, StepInput, VisionStage};
use crate::model::flow::{Guidance, Step, Steps};
use crate::model::{KeyValue, KvCache, ModelInput};

/// Where the layers of the stages are cut into slices.
///
/// Invariant *covered-once*: every layer of every stage is in exactly one slice, and slices are in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cuts {
    vision: Vec<LayerRange>,
    prefix: Vec<LayerRange>,
    expert: Vec<LayerRange>,
}

/// Ranges that do not cover a stage.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("slices {} do not cover the {layers} layers of the {stage} stage once and in order", list(.slices))]
pub struct NotCovered {
    stage: StageKind,
    layers: usize,
    slices: Vec<LayerRange>,
}

fn list(slices: &[LayerRange]) -> String {
    slices.iter().map(LayerRange::to_string).collect::<Vec<_>>().join(", ")
}

impl Cuts {
    /// These slices of the three stages.
    ///
    /// # Errors
    /// When a stage is not covered once and in order.
    pub fn new(
        sizes: &ModelSizes,
        vision: Vec<LayerRange>,
        prefix: Vec<LayerRange>,
        expert: Vec<LayerRange>,
    ) -> Result<Self, NotCovered> {
        for (stage, slices) in StageKind::ALL.into_iter().zip([&vision, &prefix, &expert]) {
            let layers = sizes.layers(stage);
            let mut next = 0;
            let joined =
                slices.iter().all(|slice| std::mem::replace(&mut next, slice.end()) == slice.start());
            if !joined || next != layers {
                return Err(NotCovered { stage, layers, slices: slices.clone() });
            }
        }
        Ok(Self { vision, prefix, expert })
    }

    /// Slices of `length` layers each; the last one of a stage may be shorter.
    pub fn every(sizes: &ModelSizes, length: std::num::NonZeroUsize) -> Self {
        let cut = |stage| {
            let layers = sizes.layers(stage);
            (0..layers)
                .step_by(length.get())
                .filter_map(|start| LayerRange::new(start, (start + length.get()).min(layers)).ok())
                .collect()
        };
        Self {
            vision: cut(StageKind::Vision),
            prefix: cut(StageKind::Prefix),
            expert: cut(StageKind::Expert),
        }
    }

    /// One slice per stage.
    pub fn none(sizes: &ModelSizes) -> Self {
        Self::every(sizes, std::num::NonZeroUsize::MAX)
    }
}

/// A policy could not be loaded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// The cuts are those of other sizes.
    #[error(transparent)]
    Cuts(#[from] NotCovered),
    /// A slice could not be loaded.
    #[error(transparent)]
    Slice(#[from] SliceError),
}

/// One observation and what to start its integration from.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// The observation after preprocessing.
    pub input: ModelInput,
    /// Noise `[horizon, action_dim]`.
    pub noise: Tensor,
    /// Denoising steps.
    pub steps: Steps,
    /// Real-time chunking, where the robot still executes a previous chunk.
    pub guidance: Option<Guidance>,
}

impl Sample {
    /// Whether every part has the shape that a policy of these sizes takes.
    ///
    /// # Errors
    /// Names the first part that does not.
    pub fn check(&self, sizes: &ModelSizes) -> Result<(), SliceError> {
        let shape = |stage, what, expected: String, found: &[usize]| {
            Err(SliceError::Shape { stage, what, expected, found: found.into() })
        };
        let ModelSizes { vision, vocab, state_dim, action_dim, horizon, .. } = sizes;
        let least = vision.patch * vision.table_side;
        for image in self.input.images.iter().flatten() {
            let &[3, side, across] = image.shape() else {
                return shape(StageKind::Vision, "an image", "[3, S, S]".into(), image.shape());
            };
            if side != across || !side.is_multiple_of(vision.patch) || side < least {
                let expected = format!("[3, S, S] with S a multiple of {}, at least {least}", vision.patch);
                return shape(StageKind::Vision, "an image", expected, image.shape());
            }
        }
        let tokens = &self.input.tokens;
        if tokens.is_empty() && self.input.images.iter().flatten().next().is_none() {
            return shape(StageKind::Prefix, "a prefix", "[1 or more tokens]".into(), &[0]);
        }
        if let Some(&token) = tokens.iter().find(|token| usize::try_from(**token).is_ok_and(|t| t >= *vocab))
        {
            return Err(SliceError::NoSuchToken { token, vocab: *vocab });
        }
        if sizes.variant == Variant::Pi0 && self.input.state.len() != *state_dim {
            return shape(StageKind::Expert, "a state", format!("[{state_dim}]"), &[self.input.state.len()]);
        }
        if self.noise.shape() != [*horizon, *action_dim] {
            return shape(
                StageKind::Expert,
                "noise",
                format!("[{horizon}, {action_dim}]"),
                self.noise.shape(),
            );
        }
        Ok(())
    }
}

/// How long the stages of a batch took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StageTimes {
    /// Vision tower over all cameras.
    pub vision: Duration,
    /// VLM over the prefix.
    pub prefix: Duration,
    /// All denoising steps of the action expert.
    pub denoise: Duration,
}

/// Keys and values of one request, one cache per slice of the expert.
pub type RequestCache = Vec<KvCache>;

/// The slices of all stages, loaded.
pub struct Policy {
    sizes: ModelSizes,
    pub(crate) vision: Vec<Arc<dyn VisionStage>>,
    pub(crate) prefix: Vec<Arc<dyn PrefixStage>>,
    pub(crate) expert: Vec<Arc<dyn ExpertStage>>,
}

/// Loads a slice of a stage.
type Load<'a, S> = &'a dyn Fn(LayerRange) -> Result<Arc<S>, SliceError>;

impl Policy {
    /// Loads all slices on the host.
    ///
    /// # Errors
    /// When the cuts are those of other sizes.
    pub fn load(device: &Arc<HostDevice>, checkpoint: &Checkpoint, cuts: &Cuts) -> Result<Self, PolicyError> {
        Self::of_slices(
            checkpoint.sizes(),
            cuts,
            &|range| Ok(Arc::new(VisionSlice::load(device, checkpoint, range)?)),
            &|range| Ok(Arc::new(PrefixSlice::load(device, checkpoint, range)?)),
            &|range| Ok(Arc::new(ExpertSlice::load(device, checkpoint, range)?)),
        )
    }

    /// Loads all slices on one chip, which has the weights of a checkpoint of these sizes.
    ///
    /// # Errors
    /// When the cuts are those of other sizes, or the chip cannot load a slice.
    pub fn on_chip(
        chip: &Arc<dyn Chip>,
        sizes: &ModelSizes,
        numerics: Numerics,
        cuts: &Cuts,
    ) -> Result<Self, PolicyError> {
        let (chip, request) = (|| Arc::clone(chip), RequestShape::of(sizes));
        let host = Destination::Host;
        Self::of_slices(
            sizes,
            cuts,
            &|range| Ok(Arc::new(TtnnVision::load(chip(), sizes, range, numerics, &request, host)?)),
            &|range| {
                Ok(Arc::new(TtnnPrefix::load(
                    chip(),
                    sizes,
                    range,
                    numerics,
                    &request,
                    Destinations::default(),
                )?))
            },
            &|range| Ok(Arc::new(TtnnExpert::load(chip(), sizes, range, numerics, &request, host)?)),
        )
    }

    fn of_slices(
        sizes: &ModelSizes,
        cuts: &Cuts,
        vision: Load<'_, dyn VisionStage>,
        prefix: Load<'_, dyn PrefixStage>,
        expert: Load<'_, dyn ExpertStage>,
    ) -> Result<Self, PolicyError> {
        let cuts = Cuts::new(sizes, cuts.vision.clone(), cuts.prefix.clone(), cuts.expert.clone())?;
        Ok(Self {
            sizes: *sizes,
            vision: cuts.vision.into_iter().map(vision).collect::<Result<_, _>>()?,
            prefix: cuts.prefix.into_iter().map(prefix).collect::<Result<_, _>>()?,
            expert: cuts.expert.into_iter().map(expert).collect::<Result<_, _>>()?,
        })
    }

    /// The policy's sizes.
    pub fn sizes(&self) -> &ModelSizes {
        &self.sizes
    }

    /// Slices of the VLM, in order.
    pub fn prefix_slices(&self) -> &[Arc<dyn PrefixStage>] {
        &self.prefix
    }

    /// Actions of a batch, `[horizon, action_dim]` in model units each, and the time each stage took.
    ///
    /// # Errors
    /// When a sample's tensors do not have the policy's shapes.
    pub fn infer(&self, samples: &[Sample]) -> Result<(Vec<Tensor>, StageTimes), SliceError> {
        let clock = Instant::now();
        let inputs: Vec<&ModelInput> = samples.iter().map(|sample| &sample.input).collect();
        let images = self.see(&inputs)?;
        let vision = clock.elapsed();
        let caches = self.read(&inputs, &images)?;
        let prefix = clock.elapsed() - vision;
        let actions = self.denoise(samples, caches)?;
        let denoise = clock.elapsed() - vision - prefix;
        Ok((actions, StageTimes { vision, prefix, denoise }))
    }

    /// The vision stage: image tokens `[patches, width]` of every camera that is there, per input.
    ///
    /// # Errors
    /// When an image has another shape than the policy takes.
    pub fn see(&self, inputs: &[&ModelInput]) -> Result<Vec<Vec<Tensor>>, SliceError> {
        let present: Vec<&Tensor> = inputs.iter().flat_map(|input| input.images.iter().flatten()).collect();
        let (first, others) =
            self.vision.split_first().expect("covered-once leaves no stage without a slice");
        let mut tokens = first.run(&present)?;
        for slice in others {
            tokens = slice.run(&tokens.iter().collect::<Vec<_>>())?;
        }
        let mut tokens = tokens.into_iter();
        Ok(inputs
            .iter()
            .map(|input| tokens.by_ref().take(input.images.iter().flatten().count()).collect())
            .collect())
    }

    /// The prefix stage: the KV cache of every input, from the image tokens that [`Policy::see`] gave for the same
    /// inputs.
    ///
    /// # Panics
    /// When there are not as many image tokens as inputs.
    ///
    /// # Errors
    /// When a token is not in the table, or a prefix is empty.
    pub fn read(
        &self,
        inputs: &[&ModelInput],
        images: &[Vec<Tensor>],
    ) -> Result<Vec<RequestCache>, SliceError> {
        assert_eq!(inputs.len(), images.len(), "image tokens belong to the same inputs");
        let parts: Vec<PrefixInput<'_>> = (inputs.iter().zip(images))
            .map(|(input, images)| PrefixInput { images, tokens: &input.tokens })
            .collect();
        let mut entries: Vec<Vec<KeyValue>> = vec![Vec::new(); inputs.len()];
        let mut hidden = self.prefix.first().map(|first| first.embed(&parts)).transpose()?;
        for slice in &self.prefix {
            let Some(input) = hidden else { break };
            let mut pass = Arc::clone(slice).begin(input)?;
            while let Some(layer) = pass.layer()? {
                entries.iter_mut().zip(layer).for_each(|(entries, entry)| entries.push(entry));
            }
            hidden = pass.finish()?;
        }
        Ok(entries.into_iter().map(|entries| self.hand_over(entries)).collect())
    }

    /// One cache for each slice of the expert.
    fn hand_over(&self, entries: Vec<KeyValue>) -> RequestCache {
        let mut entries = entries.into_iter();
        self.expert
            .iter()
            .map(|slice| {
                let entries = entries.by_ref().take(slice.layers().len()).collect();
                KvCache::new(slice.layers(), entries).expect("the VLM has as many layers as the expert")
            })
            .collect()
    }

    /// π0's state token: computed once, kept beside the prefix in the caches, which must not hold it yet.
    ///
    /// # Errors
    /// When a state does not have the policy's width.
    pub fn cache_states(
        &self,
        inputs: &[&ModelInput],
        caches: &mut [RequestCache],
    ) -> Result<(), SliceError> {
        if self.sizes.variant == Variant::Pi05 {
            return Ok(());
        }
        let width = self.sizes.state_dim;
        if let Some(odd) = inputs.iter().find(|input| input.state.len() != width) {
            return Err(SliceError::Shape {
                stage: StageKind::Expert,
                what: "a state",
                expected: format!("[{width}]"),
                found: vec![odd.state.len()],
            });
        }
        let state = |input: &&ModelInput| {
            Tensor::new([1, width], input.state.clone()).expect("every state has the policy's width")
        };
        let mut states: Vec<Tensor> = inputs.iter().map(state).collect();
        for (index, slice) in self.expert.iter().enumerate() {
            let mut caches: Vec<&mut KvCache> = caches.iter_mut().map(|caches| &mut caches[index]).collect();
            match slice.cache_state(&states, &mut caches)? {
                Some(next) => states = next,
                None => break,
            }
        }
        Ok(())
    }

    /// The expert stage: integrates every sample over its own steps. The caches are those that [`Policy::read`] gave
    /// for the same samples.
    ///
    /// # Panics
    /// When there are not as many caches as samples.
    ///
    /// # Errors
    /// When noise or state do not have the policy's shapes.
    pub fn denoise(
        &self,
        samples: &[Sample],
        mut caches: Vec<RequestCache>,
    ) -> Result<Vec<Tensor>, SliceError> {
        assert_eq!(samples.len(), caches.len(), "caches belong to the same samples");
        let inputs: Vec<&ModelInput> = samples.iter().map(|sample| &sample.input).collect();
        self.cache_states(&inputs, &mut caches)?;
        let mut actions: Vec<Tensor> = samples.iter().map(|sample| sample.noise.clone()).collect();
        let mut steps: Vec<_> = samples.iter().map(|sample| sample.steps.iter()).collect();
        loop {
            let due: Vec<(usize, Step)> =
                steps.iter_mut().enumerate().filter_map(|(i, steps)| Some((i, steps.next()?))).collect();
            if due.is_empty() {
                return Ok(actions);
            }
            let at: Vec<(Step, &Tensor, &RequestCache)> =
                due.iter().map(|&(i, step)| (step, &actions[i], &caches[i])).collect();
            let velocities = self.velocities(&at)?;
            for ((i, step), mut velocity) in due.into_iter().zip(velocities) {
                if let Some(guidance) = &samples[i].guidance {
                    guidance.bend(step, &actions[i], &mut velocity);
                }
                step.advance(&mut actions[i], &velocity);
            }
        }
    }

    /// Velocities of some requests, each at its own step and place.
    ///
    /// # Errors
    /// When actions do not have the policy's shape.
    pub fn velocities(&self, at: &[(Step, &Tensor, &RequestCache)]) -> Result<Vec<Tensor>, SliceError> {
        let mut hidden: Vec<Tensor> = at.iter().map(|(_, x, _)| (*x).clone()).collect();
        for (index, slice) in self.expert.iter().enumerate() {
            let inputs: Vec<StepInput<'_>> = (at.iter().zip(&hidden))
                .map(|((step, _, caches), x)| StepInput { x, step: *step, cache: &caches[index] })
                .collect();
            hidden = slice.step(&inputs)?;
        }
        Ok(hidden)
    }
}
