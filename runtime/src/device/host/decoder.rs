//! A Gemma block: what the VLM and the action expert have in common.

use rayon::prelude::*;
use tensact_topology::DecoderSizes;

use super::activation::gelu_tanh;
use super::attention::Heads;
use super::linear::Linear;
use super::norm::RmsNorm;
use super::rope::Rotation;
use super::{HostDevice, vectorise::widest};
use crate::checkpoint::Checkpoint;

/// The linear layers of one block.
pub(super) struct DecoderBlock {
    sizes: DecoderSizes,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    gate: Linear,
    up: Linear,
    down: Linear,
}

/// Name of a block's tensors, and of its two norms.
pub(super) struct BlockName(String);

impl BlockName {
    pub(super) fn new(prefix: &str, layer: usize) -> Self {
        Self(format!("{prefix}.layers.{layer}"))
    }

    pub(super) fn norms(&self) -> [String; 2] {
        ["input_layernorm", "post_attention_layernorm"].map(|norm| format!("{}.{norm}", self.0))
    }
}

impl DecoderBlock {
    pub(super) fn load(
        device: &HostDevice,
        checkpoint: &Checkpoint,
        name: &BlockName,
        sizes: DecoderSizes,
    ) -> Self {
        let linear = |part: &str| Linear::load(device, checkpoint, &format!("{}.{part}", name.0));
        Self {
            sizes,
            q: linear("self_attn.q_proj"),
            k: linear("self_attn.k_proj"),
            v: linear("self_attn.v_proj"),
            o: linear("self_attn.o_proj"),
            gate: linear("mlp.gate_proj"),
            up: linear("mlp.up_proj"),
            down: linear("mlp.down_proj"),
        }
    }

    pub(super) fn heads(&self) -> Heads {
        Heads { query: self.sizes.heads, key_value: self.sizes.kv_heads, width: self.sizes.head_dim }
    }

    /// Keys (rotated) and values of normalised rows, `[rows, kv_width]` each, of the compute type.
    pub(super) fn keys_values(
        &self,
        device: &HostDevice,
        normed: &[f32],
        rotation: &Rotation,
    ) -> (Vec<f32>, Vec<f32>) {
        let mut k = self.k.apply(device, normed);
        rotation.apply(&mut k);
        device.round(&mut k);
        let mut v = self.v.apply(device, normed);
        device.round(&mut v);
        (k, v)
    }

    /// Queries (rotated) of normalised rows, `[rows, q_width]`, of the compute type.
    pub(super) fn queries(&self, device: &HostDevice, normed: &[f32], rotation: &Rotation) -> Vec<f32> {
        let mut q = self.q.apply(device, normed);
        rotation.apply(&mut q);
        device.round(&mut q);
        q
    }

    /// Everything behind the attention: output projection, both residuals, and the gated MLP.
    pub(super) fn close(
        &self,
        device: &HostDevice,
        hidden: &mut [f32],
        mut attended: Vec<f32>,
        norms: &[RmsNorm<'_>; 2],
    ) {
        let width = self.sizes.width;
        device.round(&mut attended);
        norms[0].add_residual(hidden, &self.o.apply(device, &attended), width);
        let normed = norms[1].apply(device, hidden, width);
        let mut inner = self.gate.apply(device, &normed);
        let up = self.up.apply(device, &normed);
        device.pool.install(|| {
            inner.par_chunks_mut(self.sizes.mlp).zip(up.par_chunks(self.sizes.mlp)).for_each(|(gate, up)| {
                widest(|| gate.iter_mut().zip(up).for_each(|(gate, up)| *gate = gelu_tanh(*gate) * up));
                device.round(gate);
            });
        });
        norms[1].add_residual(hidden, &self.down.apply(device, &inner), width);
    }
}
