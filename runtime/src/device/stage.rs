//! What every device offers: slices of the three stages behind traits, run as a whole or layer by layer.

use std::sync::Arc;

use tensact_topology::LayerRange;

use super::SliceError;
use crate::Tensor;
use crate::model::flow::Step;
use crate::model::{KeyValue, KvCache};

/// What the prefix of one observation is made of.
#[derive(Debug, Clone, Copy)]
pub struct PrefixInput<'a> {
    /// Image tokens `[patches, width]` of each camera that is there, in the checkpoint's order.
    pub images: &'a [Tensor],
    /// Instruction tokens without padding.
    pub tokens: &'a [u32],
}

/// One request's part of a denoising step.
#[derive(Debug, Clone, Copy)]
pub struct StepInput<'a> {
    /// Noisy actions `[horizon, action_dim]` (first slice) or hidden states `[horizon, width]`.
    pub x: &'a Tensor,
    /// The request's own step.
    pub step: Step,
    /// Keys and values of its prefix, and of its state token, for the layers of this slice.
    pub cache: &'a KvCache,
}

/// Some consecutive blocks of the vision tower, on some device. The first slice embeds, the last one projects.
pub trait VisionStage: Send + Sync {
    /// The layers of this slice.
    fn layers(&self) -> LayerRange;

    /// One pass over images `[3, S, S]` with values in [-1, 1] (first slice) or hidden states `[patches, width]`; gives
    /// hidden states or image tokens `[patches, VLM width]` (last slice), one per image. Images may differ in size.
    ///
    /// # Errors
    /// When a shape does not fit.
    fn run(&self, images: &[&Tensor]) -> Result<Vec<Tensor>, SliceError>;
}

/// Some consecutive blocks of the VLM. The first slice assembles the prefix.
pub trait PrefixStage: Send + Sync {
    /// The layers of this slice.
    fn layers(&self) -> LayerRange;

    /// Assembles prefixes: image tokens of all cameras, then instruction tokens. Gives hidden states `[tokens, width]`, one
    /// per input.
    ///
    /// # Errors
    /// When image tokens have another width, a token is not in the table, a prefix is empty, or this is not the first
    /// slice.
    fn embed(&self, inputs: &[PrefixInput<'_>]) -> Result<Vec<Tensor>, SliceError>;

    /// Begins a pass over the hidden states of some sequences, `[tokens, width]` each.
    ///
    /// # Errors
    /// When a shape does not fit.
    fn begin(self: Arc<Self>, batch: Vec<Tensor>) -> Result<Box<dyn PrefixPass>, SliceError>;
}

/// A pass of a prefix slice, run layer by layer.
pub trait PrefixPass: Send {
    /// Runs the next layer: its keys and values, one entry per sequence; nothing when all layers of the slice have
    /// run. What else the layer computes may be left to the next call, so that nobody waits for it.
    ///
    /// # Errors
    /// When the chip fails.
    fn layer(&mut self) -> Result<Option<Vec<KeyValue>>, SliceError>;

    /// Hidden states for the next slice, one tensor per sequence, after what the last call of [`PrefixPass::layer`] left to
    /// compute; nothing after the VLM's last layer.
    ///
    /// # Panics
    /// When layers of the slice have not run.
    ///
    /// # Errors
    /// When the chip fails.
    fn finish(self: Box<Self>) -> Result<Option<Vec<Tensor>>, SliceError>;
}

/// Some consecutive blocks of the action expert. The first slice embeds state and actions, the last one gives the
/// velocity.
pub trait ExpertStage: Send + Sync {
    /// The layers of this slice.
    fn layers(&self) -> LayerRange;

    /// π0's state token, which sees neither time nor actions: appends its keys and values to the caches of this slice.
    /// Takes of each request its state `[1, state_dim]` (first slice) or hidden state `[1, width]`, gives hidden states for
    /// the next slice, or nothing after the last layer. π0.5 has no state token and no use for this.
    ///
    /// # Errors
    /// When shapes or caches do not fit.
    fn cache_state(
        &self,
        states: &[Tensor],
        caches: &mut [&mut KvCache],
    ) -> Result<Option<Vec<Tensor>>, SliceError>;

    /// One denoising step of all requests. Gives hidden states `[horizon, width]`, or velocities
    /// `[horizon, action_dim]` (last slice), one per request.
    ///
    /// # Errors
    /// When shapes or caches do not fit.
    fn step(&self, inputs: &[StepInput<'_>]) -> Result<Vec<Tensor>, SliceError>;

    /// Begins the first denoising step of one request, whose cache comes layer by layer. `x` are noisy actions
    /// `[horizon, action_dim]` (first slice) or hidden states `[horizon, width]`; `state` is π0's state
    /// `[1, state_dim]` (first slice) or state token `[1, width]`, `None` for π0.5. Invariant *same-bits*: gives what
    /// [`ExpertStage::cache_state`] and [`ExpertStage::step`] give over the whole cache.
    ///
    /// # Errors
    /// When shapes do not fit, or there is a state where the policy takes none, or none where it takes one.
    fn follow(
        self: Arc<Self>,
        x: Tensor,
        state: Option<Tensor>,
        step: Step,
    ) -> Result<Box<dyn FirstStep>, SliceError>;
}

/// The first denoising step of a request, following its cache.
pub trait FirstStep: Send {
    /// Runs the next layer of the slice on its keys and values `[tokens, kv_width]`: π0's state token first, then the
    /// actions.
    ///
    /// # Errors
    /// When the entry does not fit, or all layers have run.
    fn layer(&mut self, entry: KeyValue) -> Result<(), SliceError>;

    /// After the last layer.
    ///
    /// # Errors
    /// When layers of the slice have not run.
    fn finish(self: Box<Self>) -> Result<Followed, SliceError>;
}

/// What a slice has after the first step of a request.
#[derive(Debug, Clone, PartialEq)]
pub struct Followed {
    /// Hidden states `[horizon, width]`, or the velocity `[horizon, action_dim]` (last slice).
    pub output: Tensor,
    /// π0's state token `[1, width]` for the next slice; nothing after the last layer.
    pub state: Option<Tensor>,
    /// Keys and values of all layers of the slice, with those of the state token.
    pub cache: KvCache,
}
