//! The sizes of a π0 or π0.5 policy: what a cost model, a validator and the kernels need to know of it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::StageKind;

/// Which of the two published policies a checkpoint holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Variant {
    /// π0: the robot state is a token of the suffix, time is mixed into the action tokens.
    Pi0,
    /// π0.5: the robot state is text of the instruction, time steers adaptive norms of the expert.
    Pi05,
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Variant::Pi0 => "pi0",
            Variant::Pi05 => "pi05",
        })
    }
}

/// Sizes of the SigLIP vision tower. All counts are elements, pixels or layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VisionSizes {
    /// Hidden width.
    pub width: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Width of the MLP.
    pub mlp: usize,
    /// Attention heads; divides `width`.
    pub heads: usize,
    /// Side of a square patch, in pixels.
    pub patch: usize,
    /// Side of the square position table, in patches.
    pub table_side: usize,
    /// Side of the square input image, in pixels.
    pub image: usize,
}

impl VisionSizes {
    /// Width of one attention head.
    pub fn head_dim(&self) -> usize {
        self.width / self.heads
    }

    /// Image tokens that one camera gives.
    pub fn patches(&self) -> usize {
        (self.image / self.patch).pow(2)
    }
}

/// Sizes of a Gemma decoder: the VLM or the action expert.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DecoderSizes {
    /// Hidden width.
    pub width: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Width of the gated MLP.
    pub mlp: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
}

impl DecoderSizes {
    /// Width of all query heads side by side.
    pub fn q_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of all key (or value) heads side by side.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }
}

/// All sizes of one policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelSizes {
    /// π0 or π0.5.
    pub variant: Variant,
    /// The vision tower.
    pub vision: VisionSizes,
    /// The VLM.
    pub vlm: DecoderSizes,
    /// The action expert; as many layers, key heads and head width as the VLM.
    pub expert: DecoderSizes,
    /// Rows of the token table.
    pub vocab: usize,
    /// Width of the padded robot state.
    pub state_dim: usize,
    /// Width of the padded actions.
    pub action_dim: usize,
    /// Actions in one chunk.
    pub horizon: usize,
    /// Tokens an instruction is cut or padded to.
    pub prompt_tokens: usize,
    /// Denoising steps unless a request says otherwise.
    pub steps: usize,
}

impl ModelSizes {
    /// Number of layers of a stage.
    pub fn layers(&self, stage: StageKind) -> usize {
        match stage {
            StageKind::Vision => self.vision.layers,
            StageKind::Prefix => self.vlm.layers,
            StageKind::Expert => self.expert.layers,
        }
    }

    /// Tokens of the suffix: the action tokens, and π0's state token.
    pub fn suffix_tokens(&self) -> usize {
        match self.variant {
            Variant::Pi0 => self.horizon + 1,
            Variant::Pi05 => self.horizon,
        }
    }

    /// The published base policy (`pi0_base`, `pi05_base`): SigLIP So400m/14, Gemma-2B, Gemma-300M.
    pub fn base(variant: Variant) -> Self {
        Self {
            variant,
            vision: VisionSizes {
                width: 1152,
                layers: 27,
                mlp: 4304,
                heads: 16,
                patch: 14,
                table_side: 16,
                image: 224,
            },
            vlm: DecoderSizes { width: 2048, layers: 18, mlp: 16384, heads: 8, kv_heads: 1, head_dim: 256 },
            expert: DecoderSizes { width: 1024, layers: 18, mlp: 4096, heads: 8, kv_heads: 1, head_dim: 256 },
            vocab: 257_152,
            state_dim: 32,
            action_dim: 32,
            horizon: 50,
            prompt_tokens: match variant {
                Variant::Pi0 => 48,
                Variant::Pi05 => 200,
            },
            steps: 10,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_sizes_are_consistent() {
        let sizes = ModelSizes::base(Variant::Pi0);
        assert_eq!(sizes.vision.patches(), 256);
        assert_eq!(sizes.vision.head_dim() * sizes.vision.heads, sizes.vision.width);
        assert_eq!((sizes.vlm.q_width(), sizes.vlm.kv_width()), (2048, 256));
        assert_eq!(sizes.suffix_tokens(), 51);
        assert_eq!(ModelSizes::base(Variant::Pi05).suffix_tokens(), 50);
    }
}
