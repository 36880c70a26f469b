//! Statistics are found and read in every form the peers write.

use std::collections::BTreeMap;
use std::path::Path;

use proptest::prelude::*;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use tempfile::TempDir;
use tensact_runtime::preprocess::Statistics;
use tensact_runtime::preprocess::normalize::{Convention, Scaling};
use tensact_runtime::preprocess::statistics::{RelativeActions, Source, StatisticsError, is_buffer};
use tensact_topology::Variant::{Pi0, Pi05};

fn write(folder: &Path, path: &str, text: &str) {
    let path = folder.join(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

fn norm_stats() -> String {
    json!({"norm_stats": {
        "state": {"mean": [1.0, 2.0], "std": [0.5, 0.25], "q01": [-1.0, -2.0], "q99": [3.0, 4.0]},
        "actions": {"mean": [0.0], "std": [1.0], "q01": null, "q99": null},
    }})
    .to_string()
}

fn openpi(low: &[f64], high: &[f64]) -> Scaling {
    Scaling::range(low, high, Convention::OpenPi).unwrap()
}

#[test]
fn openpi_pi0_is_z_score() {
    let folder = TempDir::new().unwrap();
    write(folder.path(), "assets/physical-intelligence/libero/norm_stats.json", &norm_stats());
    let statistics = Statistics::open(folder.path(), Pi0, None).unwrap();
    let z = |mean: &[f64], std: &[f64]| Scaling::mean_std(mean, std, Convention::OpenPi).unwrap();
    assert_eq!(statistics.state, z(&[1.0, 2.0], &[0.5, 0.25]));
    assert_eq!(statistics.actions, z(&[0.0], &[1.0]));
    assert!(matches!(statistics.source, Source::OpenPi(_)));
}

#[test]
fn openpi_pi05_is_quantiles_and_says_when_there_are_none() {
    let folder = TempDir::new().unwrap();
    write(folder.path(), "assets/droid/norm_stats.json", &norm_stats());
    let error = Statistics::open(folder.path(), Pi05, None).unwrap_err().to_string();
    assert!(error.contains("q01") && error.contains("actions"), "{error}");
    let full = norm_stats().replace("\"q01\":null,\"q99\":null", "\"q01\":[0.0],\"q99\":[1.0]");
    write(folder.path(), "assets/droid/norm_stats.json", &full);
    let statistics = Statistics::open(folder.path(), Pi05, None).unwrap();
    assert_eq!(statistics.state, openpi(&[-1.0, -2.0], &[3.0, 4.0]));
}

#[test]
fn one_of_several_robots_must_be_chosen() {
    let folder = TempDir::new().unwrap();
    write(folder.path(), "assets/trossen/norm_stats.json", &norm_stats());
    write(folder.path(), "assets/lab/droid/norm_stats.json", &norm_stats());
    let error = Statistics::open(folder.path(), Pi0, None).unwrap_err();
    assert!(matches!(&error, StatisticsError::Several { ids, .. } if ids == &["lab/droid", "trossen"]));
    let chosen = Statistics::open(folder.path(), Pi0, Some("lab/droid")).unwrap();
    assert!(matches!(chosen.source, Source::OpenPi(path) if path.ends_with("lab/droid/norm_stats.json")));
    let unknown = Statistics::open(folder.path(), Pi0, Some("so100")).unwrap_err().to_string();
    assert!(unknown.contains("so100") && unknown.contains("trossen"), "{unknown}");
}

#[test]
fn a_folder_without_statistics_says_so() {
    let statistics = Statistics::open(TempDir::new().unwrap().path(), Pi0, None).unwrap();
    assert_eq!((statistics.source, statistics.state), (Source::Nowhere, Scaling::identity()));
}

fn state_file(folder: &Path, name: &str, lists: &[(&str, &[f32])]) {
    let bytes: Vec<Vec<u8>> = lists
        .iter()
        .map(|(_, values)| values.iter().flat_map(|value| value.to_le_bytes()).collect())
        .collect();
    let views = lists.iter().zip(&bytes).map(|((name, values), bytes)| {
        (*name, TensorView::new(Dtype::F32, vec![values.len()], bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None, &folder.join(name)).unwrap();
}

/// What LeRobot's `make_pi0_pre_post_processors` saves, less the steps that only move data.
fn lerobot(folder: &Path, mode: &str, relative: bool) {
    let normalizer = |name: &str, file: &str| {
        json!({"registry_name": name, "state_file": file, "config": {
            "eps": 1e-8,
            "features": {
                "observation.images.base_0_rgb": {"type": "VISUAL", "shape": [3, 224, 224]},
                "observation.state": {"type": "STATE", "shape": [2]},
                "action": {"type": "ACTION", "shape": [2]},
            },
            "norm_map": {"VISUAL": "IDENTITY", "STATE": mode, "ACTION": mode},
        }})
    };
    let relative = json!({"registry_name": "relative_actions_processor", "config":
        {"enabled": relative, "exclude_joints": ["gripper"], "action_names": ["j.pos", "Gripper.pos"]}});
    let before =
        normalizer("normalizer_processor", "policy_preprocessor_step_5_normalizer_processor.safetensors");
    let after = normalizer(
        "unnormalizer_processor",
        "policy_postprocessor_step_0_unnormalizer_processor.safetensors",
    );
    let pipeline = |name: &str, steps: Vec<Value>| json!({"name": name, "steps": steps}).to_string();
    let rename = json!({"registry_name": "rename_observations_processor", "config": {"rename_map": {}}});
    write(
        folder,
        "policy_preprocessor.json",
        &pipeline("policy_preprocessor", vec![rename, relative, before]),
    );
    let device =
        json!({"registry_name": "device_processor", "config": {"device": "cpu", "float_dtype": null}});
    write(folder, "policy_postprocessor.json", &pipeline("policy_postprocessor", vec![after, device]));
    let lists: &[(&str, &[f32])] = &[
        ("observation.state.mean", &[1.0, 2.0]),
        ("observation.state.std", &[0.5, 0.0]),
        ("observation.state.q01", &[-1.0, 0.0]),
        ("observation.state.q99", &[1.0, 4.0]),
        ("observation.images.base_0_rgb.mean", &[0.5]),
        ("action.mean", &[3.0, 4.0]),
        ("action.std", &[1.0, 2.0]),
        ("action.q01", &[-3.0, -4.0]),
        ("action.q99", &[3.0, 4.0]),
    ];
    state_file(folder, "policy_preprocessor_step_5_normalizer_processor.safetensors", lists);
    state_file(folder, "policy_postprocessor_step_0_unnormalizer_processor.safetensors", lists);
}

const LEROBOT: Convention = Convention::LeRobot { eps: 1e-8 };

#[test]
fn lerobot_processors_say_how_to_normalise() {
    let folder = TempDir::new().unwrap();
    lerobot(folder.path(), "MEAN_STD", false);
    let z = Statistics::open(folder.path(), Pi05, None).unwrap();
    assert_eq!(z.state, Scaling::mean_std(&[1.0, 2.0], &[0.5, 0.0], LEROBOT).unwrap());
    assert_eq!(z.actions, Scaling::mean_std(&[3.0, 4.0], &[1.0, 2.0], LEROBOT).unwrap());
    assert_eq!(z.relative, None);
    lerobot(folder.path(), "QUANTILES", false);
    let q = Statistics::open(folder.path(), Pi0, None).unwrap();
    assert_eq!(q.state, Scaling::range(&[-1.0, 0.0], &[1.0, 4.0], LEROBOT).unwrap());
    lerobot(folder.path(), "IDENTITY", false);
    assert!(Statistics::open(folder.path(), Pi0, None).unwrap().state.is_identity());
    lerobot(folder.path(), "MIN_MAX", false);
    let error = Statistics::open(folder.path(), Pi0, None).unwrap_err().to_string();
    assert!(error.contains("`min`") && error.contains("observation.state"), "{error}");
}

#[test]
fn lerobot_relative_actions_are_noticed() {
    let folder = TempDir::new().unwrap();
    lerobot(folder.path(), "MEAN_STD", true);
    let relative = Statistics::open(folder.path(), Pi0, None).unwrap().relative.unwrap();
    assert_eq!(relative.mask(3), [true, false, true]);
    assert_eq!(RelativeActions::default().mask(2), [true, true]);
}

#[test]
fn a_missing_state_file_is_an_error() {
    let folder = TempDir::new().unwrap();
    lerobot(folder.path(), "MEAN_STD", false);
    let file = "policy_postprocessor_step_0_unnormalizer_processor.safetensors";
    std::fs::remove_file(folder.path().join(file)).unwrap();
    assert!(Statistics::open(folder.path(), Pi0, None).unwrap_err().to_string().contains(file));
}

#[test]
fn a_state_file_outside_the_folder_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    lerobot(folder.path(), "MEAN_STD", false);
    let processor = folder.path().join("policy_preprocessor.json");
    let text = std::fs::read_to_string(&processor).unwrap();
    let name = "policy_preprocessor_step_5_normalizer_processor.safetensors";
    assert!(text.contains(name));
    for outside in ["/dev/zero", "../elsewhere.safetensors"] {
        std::fs::write(&processor, text.replace(name, outside)).unwrap();
        let message = Statistics::open(folder.path(), Pi0, None).unwrap_err().to_string();
        assert!(message.contains(outside) && message.contains("not in its folder"), "{message}");
    }
}

#[test]
fn buffers_of_old_lerobot_checkpoints_are_read() {
    let buffers = |mean: f32| -> BTreeMap<String, Vec<f32>> {
        [
            ("normalize_inputs.buffer_observation_state.mean", vec![1.0]),
            ("normalize_inputs.buffer_observation_state.std", vec![2.0]),
            ("unnormalize_outputs.buffer_action.mean", vec![mean]),
            ("unnormalize_outputs.buffer_action.std", vec![4.0]),
            ("model.state_proj.bias", vec![0.0]),
        ]
        .map(|(name, values)| (name.to_owned(), values))
        .into()
    };
    let statistics = Statistics::from_named(&buffers(3.0)).unwrap().unwrap();
    assert_eq!(statistics.state, Scaling::mean_std(&[1.0], &[2.0], LEROBOT).unwrap());
    assert_eq!(statistics.actions, Scaling::mean_std(&[3.0], &[4.0], LEROBOT).unwrap());
    assert_eq!(Statistics::from_named(&BTreeMap::new()).unwrap(), None);
    let unset = Statistics::from_named(&buffers(f32::INFINITY)).unwrap_err().to_string();
    assert!(unset.contains("without statistics"), "{unset}");
    assert_eq!(buffers(0.0).keys().filter(|name| is_buffer(name)).count(), 4);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn damaged_files_never_panic(at in 0usize..200, to: u8, junk: Vec<u8>) {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("norm_stats.json");
        let mut bytes = norm_stats().into_bytes();
        let at = at % bytes.len();
        bytes[at] = to;
        for bytes in [bytes, junk] {
            std::fs::write(&path, bytes).unwrap();
            let _ = Statistics::from_norm_stats(&path, Pi0);
            let _ = Statistics::from_norm_stats(&path, Pi05);
            std::fs::copy(&path, folder.path().join("policy_preprocessor.json")).unwrap();
            let _ = Statistics::open(folder.path(), Pi0, None);
        }
    }
}
