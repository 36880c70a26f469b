//! A request at a step: what travels around the ring, and what a batch is made of.

use std::sync::Arc;

use tensact_runtime::Tensor;
use tensact_runtime::device::{ExpertStage, SliceError, StepInput};
use tensact_runtime::model::flow::Step;
use tensact_runtime::model::{KeyValue, KvCache};

use crate::parcel::Content;
use crate::ticket::Ticket;

/// Keys and values of one layer of a request.
pub(crate) struct CacheLayer {
    pub(crate) ticket: Arc<Ticket>,
    pub(crate) layer: usize,
    pub(crate) entry: KeyValue,
}

/// A request at a step, on its way through the ring.
pub(crate) struct StepWork {
    pub(crate) ticket: Arc<Ticket>,
    pub(crate) at: At,
}

/// Where a request stands.
pub(crate) struct At {
    pub(super) step: Step,
    /// Noisy actions `[horizon, action_dim]`.
    pub(super) x: Tensor,
    /// What the slice takes, if not the actions themselves.
    pub(super) hidden: Option<Tensor>,
    /// π0's state or state token, before it is in the cache of the slice.
    pub(super) state: Option<Tensor>,
}

impl At {
    fn input(&self) -> &Tensor {
        self.hidden.as_ref().unwrap_or(&self.x)
    }
}

impl Content for CacheLayer {
    fn ticket(&self) -> &Arc<Ticket> {
        &self.ticket
    }

    fn bytes(&self) -> u64 {
        self.entry.keys.bytes() + self.entry.values.bytes()
    }
}

impl Content for StepWork {
    fn ticket(&self) -> &Arc<Ticket> {
        &self.ticket
    }

    fn step(&self) -> Option<usize> {
        Some(self.at.step.index())
    }

    fn bytes(&self) -> u64 {
        let At { x, hidden, state, .. } = &self.at;
        x.bytes() + [hidden, state].into_iter().flatten().map(Tensor::bytes).sum::<u64>()
    }
}

/// A member of a batch.
pub(super) struct Member {
    pub(super) ticket: Arc<Ticket>,
    pub(super) cache: KvCache,
    pub(super) at: At,
}

/// Where a request begins: at noise, with its state still to be cached.
pub(super) fn begin(ticket: &Ticket, has_state: bool) -> At {
    let sample = &ticket.sample;
    let state = has_state.then(|| {
        let state = sample.input.state.clone();
        Tensor::new([1, state.len()], state).expect("one row of so many values")
    });
    let step = sample.steps.iter().next().expect("there is at least one step");
    At { step, x: sample.noise.clone(), hidden: None, state }
}

/// State tokens of those that join, then the step of all.
pub(super) fn run(device: &dyn ExpertStage, members: &mut [Member]) -> Result<Vec<Tensor>, SliceError> {
    let mut joining: Vec<&mut Member> =
        members.iter_mut().filter(|member| member.at.state.is_some()).collect();
    let states: Vec<Tensor> = joining.iter_mut().filter_map(|member| member.at.state.take()).collect();
    if !states.is_empty() {
        let mut caches: Vec<&mut KvCache> = joining.iter_mut().map(|member| &mut member.cache).collect();
        let tokens = device.cache_state(&states, &mut caches)?.into_iter().flatten();
        joining.into_iter().zip(tokens).for_each(|(member, token)| member.at.state = Some(token));
    }
    let inputs: Vec<StepInput<'_>> = members
        .iter()
        .map(|Member { cache, at, .. }| StepInput { x: at.input(), step: at.step, cache })
        .collect();
    device.step(&inputs)
}
