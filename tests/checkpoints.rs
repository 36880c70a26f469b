//! Checkpoints as every writer leaves them, and as nobody should.

#![allow(clippy::unwrap_used, clippy::panic)] // a test that cannot go on has failed

use std::collections::BTreeMap;
use std::path::Path;

use half::f16;
use proptest::prelude::*;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use tempfile::TempDir;
use tensact_runtime::Tensor;
use tensact_runtime::checkpoint::Checkpoint;
use tensact_runtime::device::host::ComputeDtype;
use tensact_runtime::policy::{Cuts, Policy};
use tensact_runtime::tensor_file::TensorFile;
use tensact_tests::{checkpoint, device, golden, inputs, open};

/// A tensor that is about to be written.
#[derive(Clone)]
struct Written {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

type Tensors = BTreeMap<String, Written>;

/// The tensors of a golden checkpoint under openpi's names.
fn tensors(policy: &str) -> Tensors {
    let file = open(policy, "model_openpi_bf16.safetensors");
    let written = |tensor: &tensact_runtime::tensor_file::StoredTensor| Written {
        dtype: tensor.dtype(),
        shape: tensor.shape().to_vec(),
        bytes: tensor.bytes().to_vec(),
    };
    file.tensors().iter().map(|(name, tensor)| (name.clone(), written(tensor))).collect()
}

fn write(path: &Path, tensors: &Tensors) {
    let views = tensors.iter().map(|(name, tensor)| {
        (name, TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.bytes).unwrap())
    });
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// A folder with these tensors and the configuration of a golden policy.
fn folder(policy: &str, tensors: &Tensors) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "dims.json"] {
        std::fs::copy(golden(policy, file), folder.path().join(file)).unwrap();
    }
    write(&folder.path().join("model.safetensors"), tensors);
    folder
}

fn actions(checkpoint: &Checkpoint, policy: &str, dtype: ComputeDtype) -> Vec<Tensor> {
    let samples = inputs(checkpoint, &open(policy, "golden.safetensors")).samples;
    let policy = Policy::load(&device(2, dtype), checkpoint, &Cuts::none(checkpoint.sizes())).unwrap();
    policy.infer(&samples).unwrap().0
}

fn error(policy: &str, tensors: &Tensors) -> String {
    match Checkpoint::open(folder(policy, tensors).path()) {
        Ok(_) => panic!("a checkpoint opened that should not"),
        Err(error) => error.to_string(),
    }
}

type Renaming = fn(&str) -> String;

const PALIGEMMA: &str = "paligemma_with_expert.paligemma.";

/// LeRobot from 0.4 on.
fn lerobot(name: &str) -> String {
    format!("model.{name}")
}

/// LeRobot up to 0.3: no inner `model.`, but one inside the language model.
fn legacy(name: &str) -> String {
    let rename = |rest: &str| match rest.strip_prefix("model.language_model.") {
        Some(decoder) => format!("model.{PALIGEMMA}language_model.model.{decoder}"),
        None if rest.starts_with("lm_head.") => format!("model.{PALIGEMMA}language_model.{rest}"),
        None => format!("model.{PALIGEMMA}{}", rest.trim_start_matches("model.")),
    };
    name.strip_prefix(PALIGEMMA).map_or_else(|| lerobot(name), rename)
}

/// transformers from 5.6 on.
fn flat_vision(name: &str) -> String {
    name.replace("vision_tower.vision_model.", "vision_tower.")
}

#[test]
fn every_writers_checkpoint_gives_the_same_actions() {
    for policy in ["tiny_pi0", "tiny_pi05"] {
        let expected =
            actions(&checkpoint(policy, "model_openpi_bf16.safetensors"), policy, ComputeDtype::Bf16);
        let renamings: [(&str, Renaming); 5] = [
            ("LeRobot 0.4 or newer", lerobot),
            ("LeRobot up to 0.3", legacy),
            ("openpi, transformers 5.6 or newer", flat_vision),
            ("LeRobot 0.4 or newer, transformers 5.6 or newer", |name| lerobot(&flat_vision(name))),
            ("openpi", |name| name.replace("action_time_mlp", "time_mlp")),
        ];
        for (naming, rename) in renamings {
            let renamed = tensors(policy).into_iter().map(|(name, tensor)| (rename(&name), tensor)).collect();
            let folder = folder(policy, &renamed);
            let checkpoint = Checkpoint::open(folder.path()).unwrap();
            assert_eq!(checkpoint.naming().to_string(), naming, "{policy}");
            assert_eq!(actions(&checkpoint, policy, ComputeDtype::Bf16), expected, "{policy} {naming}");
        }
        let file = checkpoint(policy, "model.safetensors");
        assert_eq!(actions(&file, policy, ComputeDtype::Bf16), expected, "{policy} as LeRobot saved it");
    }
}

#[test]
fn the_token_table_goes_by_either_name_or_both() {
    let table = format!("{PALIGEMMA}lm_head.weight");
    let embedding = format!("{PALIGEMMA}model.language_model.embed_tokens.weight");
    let expected =
        actions(&checkpoint("tiny_pi0", "model_openpi_bf16.safetensors"), "tiny_pi0", ComputeDtype::Bf16);
    let mut both = tensors("tiny_pi0");
    both.insert(embedding, both[&table].clone());
    let mut only_embedding = both.clone();
    only_embedding.remove(&table);
    // Peers read the embedding, so an output head that differs from it must not matter.
    let mut untied = both.clone();
    untied.get_mut(&table).unwrap().bytes.fill(0);
    for tensors in [both, only_embedding, untied] {
        let folder = folder("tiny_pi0", &tensors);
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        assert_eq!(actions(&checkpoint, "tiny_pi0", ComputeDtype::Bf16), expected);
    }
}

#[test]
fn shards_and_their_index_are_one_checkpoint() {
    let folder = folder("tiny_pi0", &tensors("tiny_pi0"));
    std::fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    let mut map = BTreeMap::new();
    let mut shards = [Tensors::new(), Tensors::new(), Tensors::new()];
    for (i, (name, tensor)) in tensors("tiny_pi0").into_iter().enumerate() {
        map.insert(name.clone(), format!("model-{}-of-3.safetensors", i % 3));
        shards[i % 3].insert(name, tensor);
    }
    for (i, shard) in shards.iter().enumerate() {
        write(&folder.path().join(format!("model-{i}-of-3.safetensors")), shard);
    }
    let index = folder.path().join("model.safetensors.index.json");
    std::fs::write(&index, serde_json::json!({"metadata": {}, "weight_map": map}).to_string()).unwrap();
    let sharded = Checkpoint::open(folder.path()).unwrap();
    let whole = checkpoint("tiny_pi0", "model_openpi_bf16.safetensors");
    let run = |checkpoint| actions(checkpoint, "tiny_pi0", ComputeDtype::Bf16);
    assert_eq!(run(&sharded), run(&whole));

    map.insert("x".into(), "../elsewhere.safetensors".into());
    std::fs::write(&index, serde_json::json!({"weight_map": map}).to_string()).unwrap();
    let message = Checkpoint::open(folder.path()).err().unwrap().to_string();
    assert!(message.contains("elsewhere") && message.contains("not in its folder"), "{message}");
}

#[test]
fn types_may_be_mixed() {
    let expected = actions(&checkpoint("tiny_pi05", "model.safetensors"), "tiny_pi05", ComputeDtype::F32);
    let widen = |tensor: &Written| -> Vec<f32> {
        tensor.bytes.as_chunks::<2>().0.iter().map(|b| half::bf16::from_le_bytes(*b).to_f32()).collect()
    };
    let mut mixed = tensors("tiny_pi05");
    for (_, tensor) in mixed.iter_mut().filter(|(name, _)| name.contains("vision") || name.contains("norm")) {
        tensor.bytes = widen(tensor).into_iter().flat_map(f32::to_le_bytes).collect();
        tensor.dtype = Dtype::F32;
    }
    let with_f32 = folder("tiny_pi05", &mixed);
    let opened = Checkpoint::open(with_f32.path()).unwrap();
    assert_eq!(actions(&opened, "tiny_pi05", ComputeDtype::F32), expected, "bf16 and f32");

    // bf16 values of this size are f16 values, too, but for the smallest ones.
    for (_, tensor) in mixed.iter_mut().filter(|(name, _)| name.contains("mlp")) {
        if tensor.dtype == Dtype::BF16 {
            tensor.bytes = widen(tensor).into_iter().flat_map(|x| f16::from_f32(x).to_le_bytes()).collect();
            tensor.dtype = Dtype::F16;
        }
    }
    let with_f16 = folder("tiny_pi05", &mixed);
    let opened = Checkpoint::open(with_f16.path()).unwrap();
    for (found, expected) in actions(&opened, "tiny_pi05", ComputeDtype::F32).iter().zip(&expected) {
        let closeness = tensact_runtime::verify::Closeness::of(found.data(), expected.data());
        assert!(closeness.relative_error < 1e-4, "bf16, f32 and f16: {closeness:?}");
    }
}

#[test]
fn all_that_is_wrong_is_named_at_once() {
    let mut broken = tensors("tiny_pi0");
    broken.remove("action_out_proj.bias");
    let stranger = broken["state_proj.bias"].clone();
    broken.insert("value_head.bias".into(), stranger);
    let weight = broken.get_mut("action_time_mlp_out.weight").unwrap();
    weight.shape = vec![32, 128];
    let bias = broken.get_mut("action_in_proj.bias").unwrap();
    bias.dtype = Dtype::I16;
    let message = error("tiny_pi0", &broken);
    for part in [
        "4 finding(s)",
        "missing     action_out_proj.bias [8]",
        "unexpected  value_head.bias",
        "misshapen   action_time_mlp_out.weight is [32, 128], expected [64, 64]",
        "wrong dtype action_in_proj.bias is I16",
    ] {
        assert!(message.contains(part), "{part:?} not in\n{message}");
    }
}

#[test]
fn a_tensor_that_shows_a_size_may_be_missing_among_others() {
    let mut broken = tensors("tiny_pi0");
    broken.remove("action_in_proj.weight");
    broken.remove("action_out_proj.bias");
    let stranger = broken["state_proj.bias"].clone();
    broken.insert("value_head.bias".into(), stranger);
    let message = error("tiny_pi0", &broken);
    for part in
        ["3 finding(s)", "missing     action_in_proj.weight [64, 8]", "action_out_proj.bias", "value_head"]
    {
        assert!(message.contains(part), "{part:?} not in\n{message}");
    }
}

#[test]
fn a_missing_layer_is_a_gap() {
    let mut broken = tensors("tiny_pi0");
    broken.retain(|name, _| !name.contains("language_model.layers.1."));
    let message = error("tiny_pi0", &broken);
    assert!(message.contains("language_model.layers.") && message.contains("number 2"), "{message}");
    let number = broken.keys().find(|name| name.contains("language_model.layers.2.")).unwrap().clone();
    let tensor = broken.remove(&number).unwrap();
    broken.insert(number.replace("layers.2", "layers.18446744073709551614"), tensor);
    assert!(error("tiny_pi0", &broken).contains("some are missing"));
}

#[test]
fn what_no_policy_reads_may_stay() {
    let mut extra = tensors("tiny_pi0");
    let any = extra["state_proj.bias"].clone();
    for name in [
        "paligemma_with_expert.paligemma.model.vision_tower.vision_model.head.probe",
        "normalize_inputs.buffer_observation_state.mean",
    ] {
        extra.insert(name.into(), any.clone());
    }
    extra.remove("paligemma_with_expert.gemma_expert.lm_head.weight");
    let folder = folder("tiny_pi0", &extra);
    let opened = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(opened.unused().count(), 2);
}

#[test]
fn configuration_and_tensors_must_agree() {
    let swapped = folder("tiny_pi0", &tensors("tiny_pi05"));
    let message = Checkpoint::open(swapped.path()).err().unwrap().to_string();
    assert!(message.contains("config.json says the policy is pi0") && message.contains("pi05"), "{message}");

    let without_heads = folder("tiny_pi0", &tensors("tiny_pi0"));
    std::fs::remove_file(without_heads.path().join("dims.json")).unwrap();
    let message = Checkpoint::open(without_heads.path()).err().unwrap().to_string();
    assert!(message.contains("16 vision heads do not divide the width 72"), "{message}");

    std::fs::remove_file(without_heads.path().join("config.json")).unwrap();
    let message = Checkpoint::open(without_heads.path()).err().unwrap().to_string();
    assert!(message.contains("config.json") && message.contains("action_horizon"), "{message}");
}

/// What a header says about one tensor, in bytes that follow it.
fn file_with_header(header: &str, data: usize) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    std::fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
    folder
}

#[test]
fn absurd_headers_are_refused() {
    let max = usize::MAX;
    let half = max / 2 + 1;
    for header in [
        format!(r#"{{"a": {{"dtype": "F32", "shape": [{max}], "data_offsets": [0, 4]}}}}"#),
        format!(r#"{{"a": {{"dtype": "U8", "shape": [{half}, {half}], "data_offsets": [0, 4]}}}}"#),
        format!(r#"{{"a": {{"dtype": "U8", "shape": [{half}], "data_offsets": [{half}, {max}]}}}}"#),
        format!(r#"{{"a": {{"dtype": "U8", "shape": [8], "data_offsets": [{}, {max}]}}}}"#, max - 8),
        r#"{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}"#.into(),
        r#"{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}"#.into(),
        r#"{"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}"#.into(),
        r#"["#.into(),
        r#"{"a": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}}"#.into(),
        r#"{"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}, "b": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}"#.into(),
    ] {
        let folder = file_with_header(&header, 4);
        let message = TensorFile::open(&folder.path().join("model.safetensors")).err().unwrap().to_string();
        assert!(message.contains("model.safetensors is corrupt"), "{header}: {message}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_cut_file_is_an_error(keep in 0.0f64..1.0) {
        let folder = folder("tiny_pi0", &tensors("tiny_pi0"));
        let path = folder.path().join("model.safetensors");
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..(bytes.len() as f64 * keep) as usize]).unwrap();
        prop_assert!(Checkpoint::open(folder.path()).is_err());
    }

    #[test]
    fn a_spoiled_header_never_panics(
        at in proptest::collection::vec((0usize..12_000, any::<u8>()), 1..6), tail in any::<Vec<u8>>(),
    ) {
        let folder = folder("tiny_pi0", &tensors("tiny_pi0"));
        let path = folder.path().join("model.safetensors");
        let mut bytes = std::fs::read(&path).unwrap();
        at.into_iter().for_each(|(at, byte)| bytes[at] = byte);
        std::fs::write(&path, bytes).unwrap();
        let _ = Checkpoint::open(folder.path());
        std::fs::write(&path, tail).unwrap();
        prop_assert!(Checkpoint::open(folder.path()).is_err());
    }

    #[test]
    fn tensors_of_any_shape_never_panic(
        victims in proptest::collection::vec((0usize..129, proptest::collection::vec(0usize..20, 0..5)), 1..4),
    ) {
        for policy in ["tiny_pi0", "tiny_pi05"] {
            let mut odd = tensors(policy);
            for (victim, shape) in &victims {
                let index = victim % odd.len();
                let tensor = odd.values_mut().nth(index).unwrap();
                tensor.bytes = vec![0; 2 * shape.iter().product::<usize>()];
                tensor.shape = shape.clone();
                tensor.dtype = Dtype::BF16;
            }
            let folder = folder(policy, &odd);
            match Checkpoint::open(folder.path()) {
                Err(error) => prop_assert!(error.to_string().contains("finding"), "{error}"),
                Ok(checkpoint) => drop(actions(&checkpoint, policy, ComputeDtype::F32)),
            }
        }
    }
}
