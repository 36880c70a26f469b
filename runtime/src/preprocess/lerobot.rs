//! LeRobot's statistics: `policy_preprocessor.json` and `policy_postprocessor.json` with their state files
//! (`processor/pipeline.py`, `processor/normalize_processor.py`), and the buffers of LeRobot up to 0.3.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

use super::normalize::{Convention, Scaling};
use super::statistics::{Mode, RelativeActions, Source, Statistics, StatisticsError, read_json};
use crate::checkpoint::stays_inside;

/// What happens before the model.
pub(super) const PREPROCESSOR: &str = "policy_preprocessor.json";
const POSTPROCESSOR: &str = "policy_postprocessor.json";

/// `eps` of LeRobot's processors and of its older buffers.
const EPS: f64 = 1e-8;

#[derive(Deserialize)]
struct Pipeline {
    steps: Vec<Step>,
}

#[derive(Deserialize)]
struct Step {
    #[serde(default)]
    registry_name: String,
    #[serde(default)]
    config: serde_json::Value,
    state_file: Option<String>,
}

#[derive(Deserialize)]
struct NormalizerConfig {
    #[serde(default = "eps")]
    eps: f64,
    #[serde(default)]
    norm_map: BTreeMap<String, Mode>,
    normalize_observation_keys: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct RelativeConfig {
    #[serde(default)]
    enabled: bool,
    #[serde(default)]
    exclude_joints: Vec<String>,
    action_names: Option<Vec<String>>,
}

fn eps() -> f64 {
    EPS
}

/// What one feature is called.
struct Feature {
    kind: &'static str,
    key: &'static str,
}

const STATE: Feature = Feature { kind: "STATE", key: "observation.state" };
const ACTION: Feature = Feature { kind: "ACTION", key: "action" };

/// Reads both processor files of a folder; without a postprocessor the actions pass unchanged, as in LeRobot.
pub(super) fn open(folder: &Path) -> Result<Statistics, StatisticsError> {
    let path = folder.join(PREPROCESSOR);
    let before: Pipeline = read_json(&path)?;
    let after_path = folder.join(POSTPROCESSOR);
    let after = match after_path.is_file() {
        true => read_json(&after_path)?,
        false => Pipeline { steps: Vec::new() },
    };
    Ok(Statistics {
        state: before.scaling("normalizer_processor", &STATE, &path)?,
        actions: after.scaling("unnormalizer_processor", &ACTION, &after_path)?,
        relative: before.relative(&path)?,
        source: Source::LeRobot(path),
    })
}

impl Pipeline {
    fn step(&self, name: &str) -> Option<&Step> {
        self.steps.iter().find(|step| step.registry_name == name)
    }

    fn scaling(&self, step: &str, feature: &Feature, path: &Path) -> Result<Scaling, StatisticsError> {
        let Some(step) = self.step(step) else { return Ok(Scaling::identity()) };
        let config: NormalizerConfig = step.config(path)?;
        let mode = config.norm_map.get(feature.kind).copied().unwrap_or(Mode::Identity);
        let skipped = config
            .normalize_observation_keys
            .as_ref()
            .is_some_and(|keys| feature.kind == STATE.kind && !keys.iter().any(|key| key == feature.key));
        let Some(file) = step.state_file.as_ref().filter(|_| mode != Mode::Identity && !skipped) else {
            return Ok(Scaling::identity());
        };
        if !stays_inside(file) {
            let reason = format!("`state_file` {file:?} is not in its folder");
            return Err(StatisticsError::Format { path: path.to_owned(), reason });
        }
        let file = path.with_file_name(file);
        let lists = read_lists(&file, feature.key)?;
        // LeRobot passes a feature without any statistics unchanged.
        if lists.is_empty() {
            return Ok(Scaling::identity());
        }
        let convention = Convention::LeRobot { eps: config.eps };
        mode.scaling(&lists, convention, &file.display().to_string(), feature.key)
    }

    fn relative(&self, path: &Path) -> Result<Option<RelativeActions>, StatisticsError> {
        let Some(step) = self.step("relative_actions_processor") else { return Ok(None) };
        let config: RelativeConfig = step.config(path)?;
        Ok(config
            .enabled
            .then_some(RelativeActions { exclude: config.exclude_joints, names: config.action_names }))
    }
}

impl Step {
    fn config<T: serde::de::DeserializeOwned>(&self, path: &Path) -> Result<T, StatisticsError> {
        serde_json::from_value(self.config.clone()).map_err(|error| StatisticsError::Format {
            path: path.to_owned(),
            reason: format!("step {}: {error}", self.registry_name),
        })
    }
}

/// The lists of one feature in a state file, whose tensors are called `<feature>.<list>`.
fn read_lists(path: &Path, key: &str) -> Result<BTreeMap<String, Vec<f64>>, StatisticsError> {
    let bytes =
        std::fs::read(path).map_err(|source| StatisticsError::Read { path: path.to_owned(), source })?;
    let format = |reason: String| StatisticsError::Format { path: path.to_owned(), reason };
    let tensors = SafeTensors::deserialize(&bytes).map_err(|error| format(error.to_string()))?;
    let mut lists = BTreeMap::new();
    for (name, tensor) in tensors.iter() {
        let Some((feature, list)) = name.rsplit_once('.') else { continue };
        // Counts of samples are integers and no statistics.
        if feature != key || list == "count" {
            continue;
        }
        let values = match tensor.dtype() {
            Dtype::F32 => numbers(tensor.data(), |bytes| f64::from(f32::from_le_bytes(bytes))),
            Dtype::F64 => numbers(tensor.data(), f64::from_le_bytes),
            other => return Err(format(format!("tensor {name} is {other:?}, not F32 or F64"))),
        };
        lists.insert(list.to_owned(), values);
    }
    Ok(lists)
}

fn numbers<const BYTES: usize>(data: &[u8], number: impl Fn([u8; BYTES]) -> f64) -> Vec<f64> {
    data.as_chunks::<BYTES>().0.iter().map(|bytes| number(*bytes)).collect()
}

/// Buffers of LeRobot up to 0.3 (`policies/normalize.py`): minimum and maximum if they are there, else z-score.
pub(super) fn buffers(tensors: &BTreeMap<String, Vec<f32>>) -> Result<Option<Statistics>, StatisticsError> {
    let lists = |prefix: &str| -> BTreeMap<String, Vec<f64>> {
        let named = tensors.iter().filter_map(|(name, values)| Some((name.strip_prefix(prefix)?, values)));
        named
            .map(|(name, values)| (name.to_owned(), values.iter().copied().map(f64::from).collect()))
            .collect()
    };
    let state = lists("normalize_inputs.buffer_observation_state.");
    let actions = lists("unnormalize_outputs.buffer_action.");
    if state.is_empty() && actions.is_empty() {
        return Ok(None);
    }
    let scaling = |lists: &BTreeMap<_, _>, feature| {
        let mode = match (lists.is_empty(), lists.contains_key("min")) {
            (true, _) => Mode::Identity,
            (false, true) => Mode::MinMax,
            (false, false) => Mode::MeanStd,
        };
        mode.scaling(lists, Convention::LeRobot { eps: EPS }, "model.safetensors", feature)
    };
    Ok(Some(Statistics {
        state: scaling(&state, STATE.key)?,
        actions: scaling(&actions, ACTION.key)?,
        relative: None,
        source: Source::Buffers,
    }))
}
