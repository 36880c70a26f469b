//! The action expert of emulated chips.

use std::sync::Arc;

use tensact_topology::{LayerRange, ModelSizes, StageKind, Variant};

use super::digest::{Digest, WIDTH};
use super::{one, shape, some};
use crate::Tensor;
use crate::device::{ExpertStage, FirstStep, Followed, SliceError, StepInput};
use crate::model::flow::Step;
use crate::model::{KeyValue, KvCache};

const STAGE: StageKind = StageKind::Expert;

/// Some consecutive blocks of the action expert on an emulated chip.
#[derive(Debug, Clone)]
pub struct EmulatedExpert {
    sizes: ModelSizes,
    layers: LayerRange,
}

impl EmulatedExpert {
    /// These layers of the expert.
    ///
    /// # Errors
    /// When the expert has no such layers.
    pub fn new(layers: LayerRange, sizes: &ModelSizes) -> Result<Self, SliceError> {
        SliceError::check_layers(STAGE, sizes.expert.layers, layers)?;
        Ok(Self { sizes: *sizes, layers })
    }

    fn states(&self, states: &[Tensor]) -> Result<Vec<Digest>, SliceError> {
        if self.sizes.variant == Variant::Pi05 {
            let what = "a state token: π0.5 takes the state as text";
            return Err(SliceError::NotHere { stage: STAGE, what, range: self.layers });
        }
        if self.layers.start() > 0 {
            return some(STAGE, "state tokens", states);
        }
        let expected = [1, self.sizes.state_dim];
        match states.iter().find(|state| state.shape() != expected) {
            None => Ok(states.iter().map(|state| Digest::of_state(state.data())).collect()),
            Some(odd) => Err(shape(STAGE, "a state", format!("{expected:?}"), odd.shape())),
        }
    }

    fn actions(&self, x: &Tensor) -> Result<Digest, SliceError> {
        if self.layers.start() > 0 {
            return one(STAGE, "hidden states", x);
        }
        let expected = [self.sizes.horizon, self.sizes.action_dim];
        if x.shape() != expected {
            return Err(shape(STAGE, "actions", format!("{expected:?}"), x.shape()));
        }
        Ok(Digest::of_tensor(x))
    }

    /// Hidden states, or the velocity (last slice).
    fn output(&self, actions: Digest) -> Tensor {
        if self.is_last() { actions.velocity(&self.sizes) } else { actions.tensor() }
    }

    fn is_last(&self) -> bool {
        self.layers.end() == self.sizes.expert.layers
    }
}

/// A state token through a layer: puts its keys and values behind those of the prefix.
pub(super) fn run_state(state: Digest, layer: usize, entry: &mut KeyValue) -> Digest {
    let [keys, values] = state.keys_values(layer);
    *entry = entry.followed_by(&keys.row(), &values.row());
    state.state_layer(layer, entry)
}

impl ExpertStage for EmulatedExpert {
    fn layers(&self) -> LayerRange {
        self.layers
    }

    fn cache_state(
        &self,
        states: &[Tensor],
        caches: &mut [&mut KvCache],
    ) -> Result<Option<Vec<Tensor>>, SliceError> {
        SliceError::check_states(states.len(), caches.len())?;
        let mut states = self.states(states)?;
        for cache in caches.iter() {
            SliceError::check_cache(self.layers, WIDTH, cache)?;
        }
        for (state, cache) in states.iter_mut().zip(caches) {
            for (layer, entry) in self.layers.iter().zip(cache.entries_mut()) {
                *state = run_state(*state, layer, entry);
            }
        }
        Ok((!self.is_last()).then(|| states.into_iter().map(Digest::tensor).collect()))
    }

    fn step(&self, inputs: &[StepInput<'_>]) -> Result<Vec<Tensor>, SliceError> {
        let run = |input: &StepInput<'_>| {
            SliceError::check_cache(self.layers, WIDTH, input.cache)?;
            let actions =
                self.layers.iter().enumerate().fold(self.actions(input.x)?, |actions, (index, layer)| {
                    actions.action_layer(layer, input.step, input.cache.entry(index))
                });
            Ok(self.output(actions))
        };
        inputs.iter().map(run).collect()
    }

    fn follow(
        self: Arc<Self>,
        x: Tensor,
        state: Option<Tensor>,
        step: Step,
    ) -> Result<Box<dyn FirstStep>, SliceError> {
        let state = match state {
            None if self.sizes.variant == Variant::Pi0 => {
                return Err(shape(STAGE, "a state", "[1, width]".into(), &[0]));
            }
            state => state.map(|state| self.states(&[state])).transpose()?.map(|states| states[0]),
        };
        let actions = self.actions(&x)?;
        Ok(Box::new(Following { slice: self, step, actions, state, entries: Vec::new() }))
    }
}

/// One request on its way through the layers of a slice.
struct Following {
    slice: Arc<EmulatedExpert>,
    step: Step,
    actions: Digest,
    state: Option<Digest>,
    /// Layers that have run, with the keys and values of the state token.
    entries: Vec<KeyValue>,
}

impl FirstStep for Following {
    fn layer(&mut self, mut entry: KeyValue) -> Result<(), SliceError> {
        let range = self.slice.layers;
        let Some(layer) = range.iter().nth(self.entries.len()) else {
            return Err(SliceError::Entries { range, found: self.entries.len() + 1 });
        };
        SliceError::check_entry(WIDTH, 1, &entry)?;
        self.state = self.state.map(|state| run_state(state, layer, &mut entry));
        self.actions = self.actions.action_layer(layer, self.step, &entry);
        self.entries.push(entry);
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<Followed, SliceError> {
        let range = self.slice.layers;
        if self.entries.len() != range.len() {
            return Err(SliceError::Entries { range, found: self.entries.len() });
        }
        Ok(Followed {
            output: self.slice.output(self.actions),
            state: self.state.filter(|_| !self.slice.is_last()).map(Digest::tensor),
            cache: KvCache::new(range, self.entries).expect("entries of one length, one per layer"),
        })
    }
}
