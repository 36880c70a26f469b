//! A Gemma block: what the VLM and the action expert have in common.

use tensact_topology::DecoderSizes;

use super::HostDevice;
use super::attention::Heads;
use super::band::Band;
use super::gemm::Rows;
use super::linear::{GatedLinear, Linear};
use super::norm::RmsNorm;
use super::rope::Rotation;
use super::scratch::Values;
use crate::checkpoint::Checkpoint;

/// The linear layers of one block.
pub(super) struct DecoderBlock {
    sizes: DecoderSizes,
    /// Keys and values side by side.
    kv: Linear,
    /// What only a block has whose output somebody reads.
    rest: Option<Rest>,
}

struct Rest {
    q: Linear,
    o: Linear,
    gate_up: GatedLinear,
    down: Linear,
}

/// What a block is to compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Extent {
    /// All of it.
    Whole,
    /// Keys and values only.
    KeysValues,
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
        extent: Extent,
    ) -> Self {
        let name = |part: &str| format!("{}.{part}", name.0);
        let linear = |parts: &[&str]| {
            let names: Vec<String> = parts.iter().map(|part| name(part)).collect();
            Linear::load(device, checkpoint, &names)
        };
        let rest = || Rest {
            q: linear(&["self_attn.q_proj"]),
            o: linear(&["self_attn.o_proj"]),
            gate_up: GatedLinear::load(device, checkpoint, &name("mlp.gate_proj"), &name("mlp.up_proj")),
            down: linear(&["mlp.down_proj"]),
        };
        Self {
            sizes,
            kv: linear(&["self_attn.k_proj", "self_attn.v_proj"]),
            rest: (extent == Extent::Whole).then(rest),
        }
    }

    pub(super) fn heads(&self) -> Heads {
        Heads { query: self.sizes.heads, key_value: self.sizes.kv_heads, width: self.sizes.head_dim }
    }

    /// Keys (rotated) and values of normalised rows, `[rows, kv_width]` each, of the compute type.
    pub(super) fn keys_values(
        &self,
        device: &HostDevice,
        normed: &Rows,
        rotation: &Rotation,
    ) -> (Vec<f32>, Vec<f32>) {
        let kv = self.kv.apply(device, normed);
        let [mut k, mut v] = Band::apart(&kv, self.sizes.kv_width()).map(Band::to_vec);
        rotation.apply(device, &mut k);
        device.round(&mut k);
        device.round(&mut v);
        (k, v)
    }

    /// Queries (rotated) of normalised rows, `[rows, q_width]`.
    pub(super) fn queries(&self, device: &HostDevice, normed: &Rows, rotation: &Rotation) -> Values {
        let mut q = self.rest().q.apply(device, normed);
        rotation.apply(device, &mut q);
        q
    }

    /// Everything behind the attention: output projection, both residuals, and the gated MLP.
    pub(super) fn close(
        &self,
        device: &HostDevice,
        hidden: &mut [f32],
        attended: &Rows,
        norms: &[RmsNorm<'_>; 2],
    ) {
        let Rest { o, gate_up, down, .. } = self.rest();
        o.add_to(device, attended, hidden, Some(&norms[0]));
        let normed = norms[1].apply(device, hidden, self.sizes.width);
        let inner = gate_up.apply(device, &normed);
        down.add_to(device, &inner, hidden, Some(&norms[1]));
    }

    fn rest(&self) -> &Rest {
        self.rest.as_ref().expect("a block is asked only for what it was loaded for")
    }
}
