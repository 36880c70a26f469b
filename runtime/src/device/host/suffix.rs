//! How states and noisy actions become tokens of the action expert.

use tensact_topology::{ModelSizes, Variant};

use super::activation::silu_all;
use super::expert::ExpertSlice;
use super::linear::Linear;
use super::time::ActionTimeMlp;
use super::{HostDevice, of_shape};
use crate::Tensor;
use crate::checkpoint::Checkpoint;
use crate::device::SliceError;
use crate::model::flow::Step;

/// What the first slice has before its blocks.
pub(super) struct SuffixEmbedding {
    action: Linear,
    /// π0 only.
    pi0: Option<Box<Pi0Embedding>>,
}

/// What π0 has and π0.5 does not: a state token, and time mixed into the action tokens.
struct Pi0Embedding {
    state: Linear,
    mlp_in: ActionTimeMlp,
    mlp_out: Linear,
}

impl SuffixEmbedding {
    pub(super) fn load(device: &HostDevice, checkpoint: &Checkpoint) -> Self {
        let linear = |name: &str| Linear::load_in_f32(device, checkpoint, name);
        let pi0 = || Pi0Embedding {
            state: linear("state_proj"),
            mlp_in: ActionTimeMlp::load(device, checkpoint),
            mlp_out: linear("action_time_mlp_out"),
        };
        Self {
            action: linear("action_in_proj"),
            pi0: (checkpoint.sizes().variant == Variant::Pi0).then(|| Box::new(pi0())),
        }
    }

    /// π0's layer that mixes time in, for the time tables.
    pub(super) fn time_mlp(&self) -> Option<ActionTimeMlp> {
        self.pi0.as_ref().map(|pi0| pi0.mlp_in.clone())
    }
}

impl ExpertSlice {
    /// States `[requests, state_dim]` to state tokens `[requests, width]`.
    ///
    /// # Errors
    /// When the shape does not fit, the policy is π0.5, or this is not the first slice.
    pub(super) fn embed_state(&self, states: &Tensor) -> Result<Tensor, SliceError> {
        let Some(Pi0Embedding { state, .. }) = self.embedding.as_ref().and_then(|e| e.pi0.as_deref()) else {
            return Err(self.not_here("the state projection"));
        };
        match *states.shape() {
            [requests, width] if width == state.inputs() => {
                Ok(of_shape([requests, state.outputs()], state.apply_in_f32(&self.device, states.data())))
            }
            _ => Err(self.shape("states", format!("[requests, {}]", state.inputs()), states.shape())),
        }
    }

    /// Noisy actions `[horizon, action_dim]` of some requests, each at its own step, to action tokens
    /// `[requests × horizon, width]`.
    ///
    /// # Errors
    /// When a shape does not fit, or this is not the first slice.
    pub fn embed_actions(&self, noisy: &[(&Tensor, Step)]) -> Result<Tensor, SliceError> {
        let ModelSizes { horizon, action_dim, .. } = self.sizes;
        let mut actions = Vec::with_capacity(noisy.len() * horizon * action_dim);
        for (x, _) in noisy {
            if x.shape() != [horizon, action_dim] {
                return Err(self.shape("actions", format!("[{horizon}, {action_dim}]"), x.shape()));
            }
            actions.extend_from_slice(x.data());
        }
        let Some(embedding) = &self.embedding else { return Err(self.not_here("the action projection")) };
        let mut hidden = embedding.action.apply_in_f32(&self.device, &actions);
        if let Some(Pi0Embedding { mlp_in, mlp_out, .. }) = embedding.pi0.as_deref() {
            hidden = mlp_in.apply_to_actions(&self.device, &hidden);
            let width = self.sizes.expert.width;
            let tables = self.tables(noisy.iter().map(|(_, step)| *step));
            for (rows, (table, step)) in hidden.chunks_exact_mut(horizon * width).zip(tables) {
                for row in rows.chunks_exact_mut(width) {
                    let time = &table.mixed[step.index()];
                    row.iter_mut().zip(time).for_each(|(x, time)| *x += time);
                }
            }
            silu_all(&mut hidden);
            hidden = mlp_out.apply_in_f32(&self.device, &hidden);
        }
        Ok(of_shape([noisy.len() * horizon, self.sizes.expert.width], hidden))
    }
}
