//! Deterministic checkpoints with the real names, shapes and types, for everybody who has no trained one at hand.
//!
//! Every value follows from seed, tensor name and index alone, so two people get the same bytes. The scales keep the
//! activations of a full-size policy within a few hundred.

use std::borrow::Cow;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use half::bf16;
use rayon::prelude::*;
use safetensors::{Dtype, View};
use serde_json::json;
use tensact_topology::{DecoderSizes, ModelSizes, Variant, VisionSizes};

use super::names::{TensorSpec, tensor_specs};
use crate::config::{DecoderDims, DimsFile, VisionDims};
use crate::preprocess::synthetic::tokenizer_json;

/// How large a synthetic policy is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SynthSize {
    /// 0.8 M parameters: 3 layers, 56-pixel images. The size of the golden tensors.
    Tiny,
    /// 41 M parameters: 6 layers, 224-pixel images. Runs in about a second.
    Small,
    /// 3.5 B parameters: the published policies.
    Base,
}

impl SynthSize {
    /// The sizes of a policy this large.
    pub fn sizes(self, variant: Variant) -> ModelSizes {
        match self {
            SynthSize::Tiny => ModelSizes {
                vision: VisionSizes {
                    width: 72,
                    layers: 3,
                    mlp: 136,
                    heads: 4,
                    patch: 14,
                    table_side: 4,
                    image: 56,
                },
                vlm: decoder(128, 3, 256, 16),
                expert: decoder(64, 3, 128, 16),
                vocab: 512,
                state_dim: 8,
                action_dim: 8,
                horizon: 10,
                prompt_tokens: 16,
                ..ModelSizes::base(variant)
            },
            SynthSize::Small => ModelSizes {
                vision: VisionSizes {
                    width: 384,
                    layers: 6,
                    mlp: 1536,
                    heads: 6,
                    patch: 14,
                    table_side: 16,
                    image: 224,
                },
                vlm: decoder(512, 6, 2048, 64),
                expert: decoder(256, 6, 1024, 64),
                vocab: 1024,
                ..ModelSizes::base(variant)
            },
            SynthSize::Base => ModelSizes::base(variant),
        }
    }
}

fn decoder(width: usize, layers: usize, mlp: usize, head_dim: usize) -> DecoderSizes {
    DecoderSizes { width, layers, mlp, heads: 8, kv_heads: 1, head_dim }
}

/// Element type of a synthetic checkpoint; the values are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SynthDtype {
    /// 2 bytes an element, as openpi writes.
    Bf16,
    /// 4 bytes an element.
    F32,
}

/// A synthetic checkpoint could not be written.
#[derive(Debug, thiserror::Error)]
pub enum SynthError {
    /// The folder or a file in it cannot be written.
    #[error("cannot write the checkpoint to {path}: {source}")]
    Write {
        /// The folder.
        path: std::path::PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The weights cannot be written.
    #[error("cannot write the weights to {path}: {source}")]
    Weights {
        /// The file.
        path: std::path::PathBuf,
        /// What the writer says.
        source: safetensors::SafeTensorError,
    },
}

/// Writes `model.safetensors`, `config.json`, `dims.json`, a small tokenizer and statistics that scale nothing into
/// `folder`, which is made if need be. `progress` is told the bytes made so far and in all.
///
/// # Errors
/// When the folder cannot be written.
pub fn write(
    folder: &Path,
    sizes: &ModelSizes,
    seed: u64,
    dtype: SynthDtype,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<(), SynthError> {
    let assets = folder.join("assets").join("synthetic");
    let write_error = |source| SynthError::Write { path: folder.into(), source };
    let write_json = |path: &Path, value: serde_json::Value| {
        std::fs::write(path, format!("{value:#}\n")).map_err(write_error)
    };
    std::fs::create_dir_all(&assets).map_err(write_error)?;
    write_json(&folder.join("config.json"), config_json(sizes, dtype))?;
    write_json(&folder.join("dims.json"), json!(dims(sizes)))?;
    write_json(&assets.join("norm_stats.json"), norm_stats(sizes))?;
    if let Some(tokenizer) = tokenizer_json(sizes.vocab) {
        std::fs::write(folder.join("tokenizer.json"), tokenizer).map_err(write_error)?;
    }

    let specs = tensor_specs(sizes);
    let made = AtomicU64::new(0);
    let views = specs.iter().map(|spec| Generated { spec, seed, dtype, made: &made, progress: &|_| () });
    let total: usize = views.clone().map(|view| view.data_len()).sum();
    let report = |bytes| progress(bytes, total as u64);
    let views = views.map(|view| (view.spec.name.as_str(), Generated { progress: &report, ..view }));
    let path = folder.join("model.safetensors");
    let format = [("format".to_owned(), "pt".to_owned())].into();
    safetensors::serialize_to_file(views, Some(format), &path)
        .map_err(|source| SynthError::Weights { path, source })
}

fn config_json(sizes: &ModelSizes, dtype: SynthDtype) -> serde_json::Value {
    json!({
        "type": sizes.variant,
        "action_dim": sizes.action_dim,
        "action_horizon": sizes.horizon,
        "paligemma_variant": "gemma_2b",
        "action_expert_variant": "gemma_300m",
        "precision": match dtype { SynthDtype::Bf16 => "bfloat16", SynthDtype::F32 => "float32" },
        "max_state_dim": sizes.state_dim,
        "tokenizer_max_length": sizes.prompt_tokens,
        "image_resolution": [sizes.vision.image, sizes.vision.image],
        "num_inference_steps": sizes.steps,
    })
}

/// Statistics of values that are normalised already.
fn norm_stats(sizes: &ModelSizes) -> serde_json::Value {
    let unit = |dims: usize| {
        let all = |value: f32| vec![value; dims];
        json!({"mean": all(0.0), "std": all(1.0), "q01": all(-1.0), "q99": all(1.0)})
    };
    json!({"norm_stats": {"state": unit(sizes.state_dim), "actions": unit(sizes.action_dim)}})
}

fn dims(sizes: &ModelSizes) -> DimsFile {
    DimsFile {
        vis: Some(VisionDims { num_attention_heads: sizes.vision.heads }),
        vlm: Some(DecoderDims { num_heads: sizes.vlm.heads, num_kv_heads: Some(sizes.vlm.kv_heads) }),
        exp: Some(DecoderDims { num_heads: sizes.expert.heads, num_kv_heads: Some(sizes.expert.kv_heads) }),
    }
}

/// One tensor, made when the writer asks for its bytes.
#[derive(Clone)]
struct Generated<'a> {
    spec: &'a TensorSpec,
    seed: u64,
    dtype: SynthDtype,
    made: &'a AtomicU64,
    progress: &'a (dyn Fn(u64) + Sync),
}

impl View for Generated<'_> {
    fn dtype(&self) -> Dtype {
        match self.dtype {
            SynthDtype::Bf16 => Dtype::BF16,
            SynthDtype::F32 => Dtype::F32,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.spec.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        /// Elements made between two reports of progress.
        const CHUNK: usize = 1 << 20;
        let stream = Stream::new(&self.spec.name, &self.spec.shape, self.seed);
        let width = self.dtype().bitsize() / 8;
        let mut bytes = vec![0; self.data_len()];
        bytes.par_chunks_mut(CHUNK * width).enumerate().for_each(|(chunk, bytes)| {
            for (i, out) in bytes.chunks_exact_mut(width).enumerate() {
                let value = stream.value((chunk * CHUNK + i) as u64);
                match self.dtype {
                    SynthDtype::Bf16 => out.copy_from_slice(&value.to_le_bytes()),
                    SynthDtype::F32 => out.copy_from_slice(&value.to_f32().to_le_bytes()),
                }
            }
            let bytes = bytes.len() as u64;
            (self.progress)(self.made.fetch_add(bytes, Ordering::Relaxed) + bytes);
        });
        Cow::Owned(bytes)
    }

    fn data_len(&self) -> usize {
        self.spec.shape.iter().product::<usize>() * self.dtype().bitsize() / 8
    }
}

/// Odd constant of the Weyl sequence of SplitMix64 (Steele, Lea, Flood 2014).
const GOLDEN_GAMMA: u64 = 0x9E37_79B9_7F4A_7C15;

/// The values of one tensor: SplitMix64 started from the tensor's name.
struct Stream {
    start: u64,
    bound: f32,
    offset: f32,
}

impl Stream {
    fn new(name: &str, shape: &[usize], seed: u64) -> Self {
        let (bound, offset) = scale(name, shape);
        Self { start: fnv1a(name) ^ seed.wrapping_mul(GOLDEN_GAMMA), bound, offset }
    }

    fn value(&self, index: u64) -> bf16 {
        let mut z = self.start.wrapping_add((index + 1).wrapping_mul(GOLDEN_GAMMA));
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^= z >> 31;
        let unit = (z >> 40) as f32 * 2f32.powi(-23) - 1.0;
        bf16::from_f32(unit * self.bound + self.offset)
    }
}

/// Fowler–Noll–Vo hash 1a, 64 bits.
fn fnv1a(name: &str) -> u64 {
    name.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Half-width and centre of a tensor's uniform distribution.
fn scale(name: &str, shape: &[usize]) -> (f32, f32) {
    let root = 3f32.sqrt();
    let fan = shape[1..].iter().product::<usize>() as f32;
    let ends = |suffixes: &[&str]| suffixes.iter().any(|suffix| name.ends_with(suffix));
    let in_vision = name.contains("vision_model");
    let attends = ends(&["q_proj.weight", "k_proj.weight"]);
    if ends(&["paligemma.lm_head.weight", "gemma_expert.lm_head.weight"]) {
        (root / fan.sqrt(), 0.0)
    } else if name.contains("position_embedding") {
        (0.3 * root, 0.0)
    } else if in_vision && ends(&["layer_norm1.weight", "layer_norm2.weight", "post_layernorm.weight"]) {
        (0.2, 1.0)
    } else if ends(&["norm.dense.bias"]) {
        (0.5, 0.0)
    } else if ends(&["layernorm.weight", "norm.weight"]) {
        (0.2, 0.0)
    } else if ends(&[".bias"]) {
        (0.05 * root, 0.0)
    } else if attends && in_vision {
        (1.5 * root / fan.sqrt(), 0.0)
    } else if attends {
        (1.7 * root / fan.sqrt(), 0.0)
    } else {
        (root / fan.sqrt(), 0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_values_of_the_base_policy() {
        let stream = Stream::new("action_in_proj.weight", &[1024, 32], 0);
        let values: Vec<f32> = (0..4).map(|i| stream.value(i).to_f32()).collect();
        assert_eq!(values, [0.233_398_44, -0.306_640_63, -0.011_108_398, -0.059_326_172]);
    }
}
