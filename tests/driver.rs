//! Slices of any device, driven through their traits as stage actors drive them, one after the other.

#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

use std::num::NonZeroUsize;
use std::sync::Arc;

use tensact_runtime::Tensor;
use tensact_runtime::checkpoint::Checkpoint;
use tensact_runtime::device::emulated::{EmulatedExpert, EmulatedPrefix, EmulatedVision};
use tensact_runtime::device::host::{ComputeDtype, ExpertSlice, PrefixSlice, VisionSlice};
use tensact_runtime::device::ttnn::program::Numerics;
use tensact_runtime::device::ttnn::{
    Chip, Destination, Destinations, Interpreter, TtnnExpert, TtnnPrefix, TtnnVision,
};
use tensact_runtime::device::{ExpertStage, Followed, PrefixInput, PrefixStage, StepInput, VisionStage};
use tensact_runtime::model::flow::Step;
use tensact_runtime::model::{KeyValue, KvCache};
use tensact_runtime::policy::Sample;
use tensact_topology::{LayerRange, ModelSizes, RequestShape, StageKind, Variant, WeightDtype};

use crate::{checkpoint, device};

/// All slices of a policy.
pub struct Stages {
    /// The policy's sizes.
    pub sizes: ModelSizes,
    /// Slices of the vision tower, in order.
    pub vision: Vec<Arc<dyn VisionStage>>,
    /// Slices of the VLM, in order.
    pub prefix: Vec<Arc<dyn PrefixStage>>,
    /// Slices of the action expert, in order.
    pub expert: Vec<Arc<dyn ExpertStage>>,
}

/// The layers behind which each stage is cut.
pub type Boundaries = [Vec<usize>; 3];

fn ranges(layers: usize, boundaries: &[usize]) -> impl Iterator<Item = LayerRange> {
    let ends = boundaries.iter().copied().chain([layers]);
    let starts = std::iter::once(0).chain(boundaries.iter().copied());
    starts.zip(ends).map(|(start, end)| LayerRange::new(start, end).unwrap())
}

/// Behind every layer.
pub fn everywhere(sizes: &ModelSizes) -> Boundaries {
    StageKind::ALL.map(|stage| (1..sizes.layers(stage)).collect())
}

/// Slices of emulated chips.
pub fn emulated(sizes: &ModelSizes, [vision, prefix, expert]: &Boundaries) -> Stages {
    Stages {
        sizes: *sizes,
        vision: ranges(sizes.vision.layers, vision)
            .map(|range| Arc::new(EmulatedVision::new(range, sizes).unwrap()) as _)
            .collect(),
        prefix: ranges(sizes.vlm.layers, prefix)
            .map(|range| Arc::new(EmulatedPrefix::new(range, sizes).unwrap()) as _)
            .collect(),
        expert: ranges(sizes.expert.layers, expert)
            .map(|range| Arc::new(EmulatedExpert::new(range, sizes).unwrap()) as _)
            .collect(),
    }
}

/// Slices whose programs are interpreted on the host, with weights of this type.
pub fn interpreted(checkpoint: &Checkpoint, weights: WeightDtype, boundaries: &Boundaries) -> Stages {
    let chip = Interpreter::new(checkpoint, NonZeroUsize::new(2)).unwrap();
    on_chip(&(chip as _), checkpoint.sizes(), weights, boundaries)
}

/// Slices on one chip, with weights of this type. They hand over on the host.
pub fn on_chip(
    chip: &Arc<dyn Chip>,
    sizes: &ModelSizes,
    weights: WeightDtype,
    [vision, prefix, expert]: &Boundaries,
) -> Stages {
    let (numerics, request) = (Numerics::of(weights), RequestShape::of(sizes));
    let (chip, host) = (|| Arc::clone(chip), Destination::Host);
    let no_chips = Destinations::default;
    Stages {
        sizes: *sizes,
        vision: ranges(sizes.vision.layers, vision)
            .map(|range| {
                Arc::new(TtnnVision::load(chip(), sizes, range, numerics, &request, host).unwrap()) as _
            })
            .collect(),
        prefix: ranges(sizes.vlm.layers, prefix)
            .map(|range| {
                Arc::new(TtnnPrefix::load(chip(), sizes, range, numerics, &request, no_chips()).unwrap()) as _
            })
            .collect(),
        expert: ranges(sizes.expert.layers, expert)
            .map(|range| {
                Arc::new(TtnnExpert::load(chip(), sizes, range, numerics, &request, host).unwrap()) as _
            })
            .collect(),
    }
}

/// Slices on the chips of a board, the first one on the first chip that `chip` gives, and so on, with weights of this type.
/// They hand over on chips.
pub fn across(
    chip: &dyn Fn(usize) -> Arc<dyn Chip>,
    sizes: &ModelSizes,
    weights: WeightDtype,
    [vision, prefix, expert]: &Boundaries,
) -> Stages {
    let (numerics, request) = (Numerics::of(weights), RequestShape::of(sizes));
    let to = |number: usize| Destination::Chip(chip(number).id());
    let (towers, vlms) = (vision.len() + 1, prefix.len() + 1);
    let expert_chips = || ranges(sizes.expert.layers, expert).zip(towers + vlms..);
    Stages {
        sizes: *sizes,
        vision: (ranges(sizes.vision.layers, vision).zip(0..))
            .map(|(range, at)| {
                let slice = TtnnVision::load(chip(at), sizes, range, numerics, &request, to(at + 1));
                Arc::new(slice.unwrap()) as _
            })
            .collect(),
        prefix: (ranges(sizes.vlm.layers, prefix).zip(towers..))
            .map(|(range, at)| {
                let caches = expert_chips().map(|(layers, at)| (layers, to(at))).collect();
                let to = Destinations { next: to(at + 1), caches };
                Arc::new(TtnnPrefix::load(chip(at), sizes, range, numerics, &request, to).unwrap()) as _
            })
            .collect(),
        expert: expert_chips()
            .map(|(range, at)| {
                let slice = TtnnExpert::load(chip(at), sizes, range, numerics, &request, to(at + 1));
                Arc::new(slice.unwrap()) as _
            })
            .collect(),
    }
}

impl Stages {
    /// Keys and values of the whole VLM, per sample.
    pub fn entries(&self, samples: &[Sample]) -> Vec<Vec<KeyValue>> {
        let present = samples.iter().flat_map(|sample| sample.input.images.iter().flatten());
        let mut images: Vec<Tensor> = present.cloned().collect();
        for stage in &self.vision {
            images = stage.run(&images.iter().collect::<Vec<_>>()).unwrap();
        }
        let mut images = &images[..];
        let mut parts = Vec::new();
        for sample in samples {
            let (of_sample, rest) = images.split_at(sample.input.images.iter().flatten().count());
            parts.push(PrefixInput { images: of_sample, tokens: &sample.input.tokens });
            images = rest;
        }
        let mut entries = vec![Vec::new(); samples.len()];
        let mut batch = Some(self.prefix[0].embed(&parts).unwrap());
        for stage in &self.prefix {
            let mut pass = Arc::clone(stage).begin(batch.take().unwrap()).unwrap();
            while let Some(layer) = pass.layer().unwrap() {
                entries.iter_mut().zip(layer).for_each(|(entries, entry)| entries.push(entry));
            }
            batch = pass.finish().unwrap();
        }
        assert!(batch.is_none(), "nothing is behind the VLM's last layer");
        entries
    }

    /// The caches of all slices of the expert, per sample, complete with π0's state token.
    pub fn caches(&self, samples: &[Sample]) -> Vec<Vec<KvCache>> {
        let mut caches: Vec<Vec<KvCache>> =
            self.entries(samples).into_iter().map(|entries| self.hand_over(entries)).collect();
        if self.sizes.variant == Variant::Pi0 {
            let state =
                |sample: &Sample| Tensor::new([1, self.sizes.state_dim], sample.input.state.clone()).unwrap();
            let mut states: Vec<Tensor> = samples.iter().map(state).collect();
            for (index, stage) in self.expert.iter().enumerate() {
                let mut caches: Vec<_> = caches.iter_mut().map(|caches| &mut caches[index]).collect();
                let Some(next) = stage.cache_state(&states, &mut caches).unwrap() else { break };
                states = next;
            }
        }
        caches
    }

    /// Actions by whole caches: all samples as one batch, each at its own step.
    pub fn cached(&self, samples: &[Sample]) -> Vec<Tensor> {
        let caches = self.caches(samples);
        let mut x: Vec<Tensor> = samples.iter().map(|sample| sample.noise.clone()).collect();
        for round in 0..samples.iter().map(|sample| sample.steps.count()).max().unwrap() {
            let due = (0..samples.len()).filter_map(|i| Some((i, samples[i].steps.iter().nth(round)?)));
            let due: Vec<(usize, Step)> = due.collect();
            let at: Vec<_> = due.iter().map(|&(i, step)| (&x[i], step, &caches[i][..])).collect();
            let velocities = self.velocities(&at);
            for ((i, step), velocity) in due.into_iter().zip(velocities) {
                advance(&samples[i], step, &mut x[i], velocity);
            }
        }
        x
    }

    /// Actions of one sample whose first step follows its cache layer by layer.
    pub fn followed(&self, sample: &Sample) -> Tensor {
        self.following(sample, self.entries(std::slice::from_ref(sample)).remove(0))
    }

    /// The same with other keys and values of the VLM's layers.
    pub fn following(&self, sample: &Sample, entries: Vec<KeyValue>) -> Tensor {
        let mut entries = entries.into_iter();
        let mut steps = sample.steps.iter();
        let first = steps.next().unwrap();
        let mut hidden = sample.noise.clone();
        let mut state = (self.sizes.variant == Variant::Pi0)
            .then(|| Tensor::new([1, self.sizes.state_dim], sample.input.state.clone()).unwrap());
        let mut caches = Vec::new();
        for stage in &self.expert {
            let mut following = Arc::clone(stage).follow(hidden, state, first).unwrap();
            for entry in entries.by_ref().take(stage.layers().len()) {
                following.layer(entry).unwrap();
            }
            let followed = following.finish().unwrap();
            Followed { output: hidden, state, .. } = followed;
            caches.push(followed.cache);
        }
        assert_eq!(state, None, "nothing is behind the expert's last layer");
        let mut x = sample.noise.clone();
        advance(sample, first, &mut x, hidden);
        for step in steps {
            let velocity = self.velocities(&[(&x, step, &caches)]).remove(0);
            advance(sample, step, &mut x, velocity);
        }
        x
    }

    fn hand_over(&self, entries: Vec<KeyValue>) -> Vec<KvCache> {
        let mut entries = entries.into_iter();
        let cache = |stage: &Arc<dyn ExpertStage>| {
            KvCache::new(stage.layers(), entries.by_ref().take(stage.layers().len()).collect()).unwrap()
        };
        self.expert.iter().map(cache).collect()
    }

    fn velocities(&self, at: &[(&Tensor, Step, &[KvCache])]) -> Vec<Tensor> {
        let mut hidden: Vec<Tensor> = at.iter().map(|(x, ..)| (*x).clone()).collect();
        for (index, stage) in self.expert.iter().enumerate() {
            let inputs: Vec<_> = (at.iter().zip(&hidden))
                .map(|(&(_, step, caches), x)| StepInput { x, step, cache: &caches[index] })
                .collect();
            hidden = stage.step(&inputs).unwrap();
        }
        hidden
    }
}

fn advance(sample: &Sample, step: Step, x: &mut Tensor, mut velocity: Tensor) {
    if let Some(guidance) = &sample.guidance {
        guidance.bend(step, x, &mut velocity);
    }
    step.advance(x, &velocity);
}

/// Slices of a golden policy on the host, in bf16.
pub fn host(policy: &str, [vision, prefix, expert]: &Boundaries) -> Stages {
    let checkpoint = checkpoint(policy, "model.safetensors");
    let device = device(2, ComputeDtype::Bf16);
    let sizes = *checkpoint.sizes();
    let (d, c) = (&device, &checkpoint);
    Stages {
        sizes,
        vision: ranges(sizes.vision.layers, vision)
            .map(|range| Arc::new(VisionSlice::load(d, c, range).unwrap()) as _)
            .collect(),
        prefix: ranges(sizes.vlm.layers, prefix)
            .map(|range| Arc::new(PrefixSlice::load(d, c, range).unwrap()) as _)
            .collect(),
        expert: ranges(sizes.expert.layers, expert)
            .map(|range| Arc::new(ExpertSlice::load(d, c, range).unwrap()) as _)
            .collect(),
    }
}
