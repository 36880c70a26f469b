//! Slices that compute nothing: to measure everything around a device.

use std::sync::Arc;

use tensact_topology::{LayerRange, ModelSizes, StageKind, Variant};

use super::{
    ExpertStage, FirstStep, Followed, PrefixInput, PrefixPass, PrefixStage, SliceError, StepInput,
    VisionStage,
};
use crate::Tensor;
use crate::model::flow::Step;
use crate::model::{KeyValue, KvCache};

/// A slice of any stage that gives tensors of one value each, and velocities of zero.
#[derive(Debug, Clone)]
pub struct Idle {
    layers: LayerRange,
    sizes: ModelSizes,
    last: bool,
}

impl Idle {
    /// A slice of a stage.
    ///
    /// # Errors
    /// When the stage has no such layers.
    pub fn new(stage: StageKind, layers: LayerRange, sizes: &ModelSizes) -> Result<Self, SliceError> {
        let depth = sizes.layers(stage);
        SliceError::check_layers(stage, depth, layers)?;
        Ok(Self { layers, sizes: *sizes, last: layers.end() == depth })
    }

    fn output(&self) -> Tensor {
        if self.last { Tensor::zeros([self.sizes.horizon, self.sizes.action_dim]) } else { nothing() }
    }
}

fn nothing() -> Tensor {
    Tensor::zeros([1, 1])
}

impl VisionStage for Idle {
    fn layers(&self) -> LayerRange {
        self.layers
    }

    fn run(&self, images: &[&Tensor]) -> Result<Vec<Tensor>, SliceError> {
        Ok(images.iter().map(|_| nothing()).collect())
    }
}

impl PrefixStage for Idle {
    fn layers(&self) -> LayerRange {
        self.layers
    }

    fn embed(&self, inputs: &[PrefixInput<'_>]) -> Result<Vec<Tensor>, SliceError> {
        Ok(inputs.iter().map(|_| nothing()).collect())
    }

    fn begin(self: Arc<Self>, batch: Vec<Tensor>) -> Result<Box<dyn PrefixPass>, SliceError> {
        Ok(Box::new(IdlePass { left: self.layers.len(), last: self.last, batch }))
    }
}

struct IdlePass {
    left: usize,
    last: bool,
    batch: Vec<Tensor>,
}

impl PrefixPass for IdlePass {
    fn layer(&mut self) -> Result<Option<Vec<KeyValue>>, SliceError> {
        let Some(left) = self.left.checked_sub(1) else { return Ok(None) };
        self.left = left;
        let entry = |_: &Tensor| KeyValue { keys: nothing(), values: nothing() };
        Ok(Some(self.batch.iter().map(entry).collect()))
    }

    fn finish(self: Box<Self>) -> Result<Option<Vec<Tensor>>, SliceError> {
        Ok((!self.last).then_some(self.batch))
    }
}

impl ExpertStage for Idle {
    fn layers(&self) -> LayerRange {
        self.layers
    }

    fn cache_state(
        &self,
        states: &[Tensor],
        _: &mut [&mut KvCache],
    ) -> Result<Option<Vec<Tensor>>, SliceError> {
        Ok((!self.last).then(|| states.iter().map(|_| nothing()).collect()))
    }

    fn step(&self, inputs: &[StepInput<'_>]) -> Result<Vec<Tensor>, SliceError> {
        Ok(inputs.iter().map(|_| self.output()).collect())
    }

    fn follow(
        self: Arc<Self>,
        _: Tensor,
        _: Option<Tensor>,
        _: Step,
    ) -> Result<Box<dyn FirstStep>, SliceError> {
        Ok(Box::new(IdleFirstStep { slice: self, entries: Vec::new() }))
    }
}

struct IdleFirstStep {
    slice: Arc<Idle>,
    entries: Vec<KeyValue>,
}

impl FirstStep for IdleFirstStep {
    fn layer(&mut self, entry: KeyValue) -> Result<(), SliceError> {
        self.entries.push(entry);
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<Followed, SliceError> {
        let Idle { layers, sizes, last } = *self.slice;
        let found = self.entries.len();
        let cache = KvCache::new(layers, self.entries);
        Ok(Followed {
            output: self.slice.output(),
            state: (sizes.variant == Variant::Pi0 && !last).then(nothing),
            cache: cache.map_err(|_| SliceError::Entries { range: layers, found })?,
        })
    }
}
