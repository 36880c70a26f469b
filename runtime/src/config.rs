//! What stands beside the weights: `config.json` as openpi and LeRobot write it, and `dims.json`.
//!
//! Files say what tensors cannot: horizon, head counts, image size, camera names. The tensors decide the rest.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tensact_topology::Variant;

use crate::model::flow::Steps;

/// Longest configuration file that is read, in bytes.
const MAX_CONFIG_BYTES: u64 = 1 << 20;
/// Most actions of a chunk; published policies have 50. Work grows with the square.
const MAX_HORIZON: usize = 1024;
/// Most instruction tokens; published policies take 200.
const MAX_PROMPT_TOKENS: usize = 4096;
/// Longest side of the model's images, in pixels; published policies take 224.
const MAX_IMAGE: usize = 1024;
/// Most state or action values, and most heads.
const MAX_WIDTH: usize = 8192;
/// The cameras of openpi's policies, in the order of the prefix.
pub const OPENPI_CAMERAS: [&str; 3] = ["base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb"];

/// A configuration file could not be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file is not there or cannot be read.
    #[error(
        "cannot read {path}: {source}. A checkpoint needs a config.json beside its weights that says at least {{\"action_horizon\": …}}; openpi's and LeRobot's are both understood"
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The file is not JSON of the expected form.
    #[error("{path} is not a policy configuration: {source}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line, column and reason.
        source: serde_json::Error,
    },
    /// A value cannot be.
    #[error("{path}: `{key}` is {value}, expected {expected}")]
    Value {
        /// The file.
        path: PathBuf,
        /// The key in the file.
        key: &'static str,
        /// What it says.
        value: String,
        /// What it may say.
        expected: String,
    },
}

/// What the files beside the weights say.
#[derive(Debug, Clone, PartialEq)]
pub struct PolicyConfig {
    /// The variant that the file claims, where it claims one.
    pub variant: Option<Variant>,
    /// Actions in a chunk.
    pub horizon: usize,
    /// Width of the padded actions, where the file says it.
    pub action_dim: Option<usize>,
    /// Width of the padded state, where the file says it.
    pub state_dim: Option<usize>,
    /// Tokens an instruction is cut or padded to, where the file says it.
    pub prompt_tokens: Option<usize>,
    /// Denoising steps unless a request says otherwise.
    pub steps: usize,
    /// Side of the square input image in pixels, where the file says it.
    pub image: Option<usize>,
    /// Cameras in the order of the prefix, without a leading `observation.images.`.
    pub cameras: Vec<String>,
    /// Head counts, which no tensor shows.
    pub heads: HeadCounts,
    /// Shortest and longest period of the time embedding.
    pub periods: (f64, f64),
}

/// Numbers of attention heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadCounts {
    /// Vision tower.
    pub vision: usize,
    /// Query heads of the VLM.
    pub query: usize,
    /// Query heads of the expert.
    pub expert_query: usize,
    /// Key and value heads of VLM and expert, where the file says it.
    pub key_value: Option<usize>,
}

impl HeadCounts {
    /// Those of the published policies.
    const PUBLISHED: Self = Self { vision: 16, query: 8, expert_query: 8, key_value: None };
}

/// The keys of openpi's five-key file and of LeRobot's that matter here; the others concern training.
#[derive(Deserialize)]
struct ConfigFile {
    #[serde(rename = "type")]
    kind: Option<String>,
    action_horizon: Option<usize>,
    chunk_size: Option<usize>,
    action_dim: Option<usize>,
    max_action_dim: Option<usize>,
    max_state_dim: Option<usize>,
    num_inference_steps: Option<usize>,
    tokenizer_max_length: Option<usize>,
    image_resolution: Option<(usize, usize)>,
    input_features: Option<Map<String, Value>>,
    min_period: Option<f64>,
    max_period: Option<f64>,
}

/// Sizes of models that are not the published ones.
#[derive(Serialize, Deserialize)]
pub(crate) struct DimsFile {
    pub(crate) vis: Option<VisionDims>,
    pub(crate) vlm: Option<DecoderDims>,
    /// The expert, where it differs from the VLM.
    pub(crate) exp: Option<DecoderDims>,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct VisionDims {
    pub(crate) num_attention_heads: usize,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct DecoderDims {
    pub(crate) num_heads: usize,
    pub(crate) num_kv_heads: Option<usize>,
}

impl PolicyConfig {
    /// Reads `config.json` and, where it is there, `dims.json` of a checkpoint's folder.
    ///
    /// # Errors
    /// When a file cannot be read, is not of the expected form, or gives a size that cannot be.
    pub fn read(folder: &Path) -> Result<Self, ConfigError> {
        let path = folder.join("config.json");
        let file: ConfigFile = parse(&path)?;
        let size = |key, value, most| bounded(&path, key, value, most);
        let horizon = match (file.action_horizon, file.chunk_size) {
            (Some(horizon), _) | (None, Some(horizon)) => horizon,
            (None, None) => {
                return Err(value_error(
                    &path,
                    "action_horizon",
                    "missing",
                    "the number of actions in a chunk (LeRobot calls it `chunk_size`)",
                ));
            }
        };
        let heads = Self::heads(folder)?;
        let steps = file.num_inference_steps.unwrap_or(10);
        Ok(Self {
            variant: claimed_variant(&path, file.kind.as_deref())?,
            horizon: size("action_horizon", Some(horizon), MAX_HORIZON)?.unwrap_or(horizon),
            action_dim: size("action_dim", file.action_dim.or(file.max_action_dim), MAX_WIDTH)?,
            state_dim: size("max_state_dim", file.max_state_dim, MAX_WIDTH)?,
            prompt_tokens: size("tokenizer_max_length", file.tokenizer_max_length, MAX_PROMPT_TOKENS)?,
            steps: size("num_inference_steps", Some(steps), Steps::MAX)?.unwrap_or(steps),
            image: image_side(&path, file.image_resolution)?,
            cameras: cameras(file.input_features.as_ref()),
            heads,
            periods: periods(&path, file.min_period.unwrap_or(4e-3), file.max_period.unwrap_or(4.0))?,
        })
    }

    /// Head counts of `dims.json`, or those of the published policies.
    fn heads(folder: &Path) -> Result<HeadCounts, ConfigError> {
        let path = folder.join("dims.json");
        if !path.exists() {
            return Ok(HeadCounts::PUBLISHED);
        }
        let dims: DimsFile = parse(&path)?;
        let published = HeadCounts::PUBLISHED;
        let vision = dims.vis.map_or(published.vision, |vision| vision.num_attention_heads);
        let query = dims.vlm.as_ref().map_or(published.query, |vlm| vlm.num_heads);
        let key_value = dims.vlm.and_then(|vlm| vlm.num_kv_heads);
        let expert_query = dims.exp.map_or(query, |expert| expert.num_heads);
        for (key, value) in [
            ("vis.num_attention_heads", vision),
            ("vlm.num_heads", query),
            ("vlm.num_kv_heads", key_value.unwrap_or(1)),
            ("exp.num_heads", expert_query),
        ] {
            bounded(&path, key, Some(value), MAX_WIDTH)?;
        }
        Ok(HeadCounts { vision, query, expert_query, key_value })
    }
}

fn parse<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    let read_error = |source| ConfigError::Read { path: path.into(), source };
    let bytes = std::fs::metadata(path).map_err(read_error)?.len();
    if bytes > MAX_CONFIG_BYTES {
        return Err(value_error(
            path,
            "file size",
            &format!("{bytes} bytes"),
            &format!("at most {MAX_CONFIG_BYTES}"),
        ));
    }
    let text = std::fs::read(path).map_err(read_error)?;
    serde_json::from_slice(&text).map_err(|source| ConfigError::Syntax { path: path.into(), source })
}

fn value_error(path: &Path, key: &'static str, value: &str, expected: &str) -> ConfigError {
    ConfigError::Value { path: path.into(), key, value: value.into(), expected: expected.into() }
}

/// Refuses sizes of zero and sizes that no policy has.
fn bounded(
    path: &Path,
    key: &'static str,
    value: Option<usize>,
    most: usize,
) -> Result<Option<usize>, ConfigError> {
    match value {
        Some(size) if size == 0 || size > most => {
            Err(value_error(path, key, &size.to_string(), &format!("1 to {most}")))
        }
        value => Ok(value),
    }
}

fn claimed_variant(path: &Path, kind: Option<&str>) -> Result<Option<Variant>, ConfigError> {
    match kind {
        None => Ok(None),
        Some("pi0") => Ok(Some(Variant::Pi0)),
        Some("pi05") => Ok(Some(Variant::Pi05)),
        Some(other) => Err(value_error(path, "type", &format!("{other:?}"), "\"pi0\" or \"pi05\"")),
    }
}

fn image_side(path: &Path, resolution: Option<(usize, usize)>) -> Result<Option<usize>, ConfigError> {
    match resolution {
        None => Ok(None),
        Some((height, width)) if height == width && (1..=MAX_IMAGE).contains(&height) => Ok(Some(height)),
        Some((height, width)) => Err(value_error(
            path,
            "image_resolution",
            &format!("[{height}, {width}]"),
            &format!("a square of at most {MAX_IMAGE} pixels a side"),
        )),
    }
}

fn periods(path: &Path, min: f64, max: f64) -> Result<(f64, f64), ConfigError> {
    if min > 0.0 && max > min && max.is_finite() {
        Ok((min, max))
    } else {
        Err(value_error(
            path,
            "min_period",
            &format!("{min} (max_period {max})"),
            "0 < min_period < max_period",
        ))
    }
}

/// LeRobot lists its cameras as visual input features, in the order of the prefix; openpi always has three.
fn cameras(features: Option<&Map<String, Value>>) -> Vec<String> {
    let visual: Vec<String> = features
        .into_iter()
        .flatten()
        .filter(|(_, feature)| feature.get("type").and_then(Value::as_str) == Some("VISUAL"))
        .map(|(name, _)| name.strip_prefix("observation.images.").unwrap_or(name).to_owned())
        .collect();
    if visual.is_empty() { OPENPI_CAMERAS.map(str::to_owned).to_vec() } else { visual }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(config: &str, dims: Option<&str>) -> Result<PolicyConfig, ConfigError> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.json"), config).unwrap();
        if let Some(dims) = dims {
            std::fs::write(folder.path().join("dims.json"), dims).unwrap();
        }
        PolicyConfig::read(folder.path())
    }

    #[test]
    fn openpis_five_keys() {
        let config = read(
            r#"{"action_dim": 32, "action_horizon": 10, "paligemma_variant": "gemma_2b",
                "action_expert_variant": "gemma_300m", "precision": "bfloat16"}"#,
            None,
        )
        .unwrap();
        assert_eq!((config.horizon, config.action_dim, config.variant), (10, Some(32), None));
        assert_eq!(config.cameras, OPENPI_CAMERAS);
        assert_eq!(config.heads, HeadCounts::PUBLISHED);
    }

    #[test]
    fn lerobots_cameras_keep_their_order() {
        let config = read(
            r#"{"type": "pi05", "chunk_size": 50, "max_state_dim": 32, "image_resolution": [224, 224],
                "input_features": {"observation.images.top": {"type": "VISUAL"},
                                   "observation.state": {"type": "STATE"},
                                   "observation.images.front": {"type": "VISUAL"}}}"#,
            None,
        )
        .unwrap();
        assert_eq!(config.cameras, ["top", "front"]);
        assert_eq!((config.variant, config.image), (Some(Variant::Pi05), Some(224)));
    }

    #[test]
    fn impossible_values_name_file_key_and_expectation() {
        for (config, key) in [
            (r#"{}"#, "action_horizon"),
            (r#"{"action_horizon": 0}"#, "action_horizon"),
            (r#"{"chunk_size": 99999999999}"#, "action_horizon"),
            (r#"{"chunk_size": 5, "type": "act"}"#, "type"),
            (r#"{"chunk_size": 5, "image_resolution": [224, 256]}"#, "image_resolution"),
            (r#"{"chunk_size": 5, "min_period": -1}"#, "min_period"),
            (r#"{"chunk_size": 5, "num_inference_steps": 0}"#, "num_inference_steps"),
            (r#"{"chunk_size": 5, "num_inference_steps": 5000}"#, "num_inference_steps"),
            (r#"{"chunk_size": 5, "tokenizer_max_length": 1048576}"#, "tokenizer_max_length"),
        ] {
            let message = read(config, None).unwrap_err().to_string();
            assert!(message.contains("config.json") && message.contains(key), "{config}: {message}");
        }
        let heads =
            read(r#"{"chunk_size": 5}"#, Some(r#"{"vis": {"num_attention_heads": 4}}"#)).unwrap().heads;
        assert_eq!(heads, HeadCounts { vision: 4, ..HeadCounts::PUBLISHED });
        let message = read(r#"{"chunk_size": 5}"#, Some(r#"{"vis": 3}"#)).unwrap_err().to_string();
        assert!(message.contains("dims.json") && message.contains("line 1"), "{message}");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), text in ".{0,100}") {
            let folder = tempfile::tempdir().unwrap();
            for content in [&bytes[..], text.as_bytes(), format!("{{\"chunk_size\": {text}}}").as_bytes()] {
                std::fs::write(folder.path().join("config.json"), content).unwrap();
                let _ = PolicyConfig::read(folder.path());
            }
        }
    }
}
