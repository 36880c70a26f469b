//! Files of model-level tensors that are not what they should be, and references that a policy does not reach.

#![allow(clippy::unwrap_used, clippy::panic)] // a test that cannot go on has failed

use std::collections::BTreeMap;

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use tensact_runtime::device::host::ComputeDtype;
use tensact_runtime::model::flow::Steps;
use tensact_runtime::reference::{ReferenceInputs, read_inputs};
use tensact_runtime::tensor_file::TensorFile;
use tensact_runtime::verify::{Closeness, Report, verify};
use tensact_tests::{checkpoint, device, open};

type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

/// The golden tensors of the tiny π0.
fn golden() -> Tensors {
    let file = open("tiny_pi0", "golden.safetensors");
    let tensor =
        |t: &tensact_runtime::tensor_file::StoredTensor| (t.dtype(), t.shape().to_vec(), t.bytes().to_vec());
    file.tensors().iter().map(|(name, stored)| (name.clone(), tensor(stored))).collect()
}

fn written(tensors: &Tensors) -> TensorFile {
    let views = tensors
        .iter()
        .map(|(name, (dtype, shape, bytes))| (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    let path = tempfile::tempdir().unwrap().keep().join("tensors.safetensors");
    std::fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
    let file = TensorFile::open(&path).unwrap();
    // The mapping outlives its name.
    std::fs::remove_dir_all(path.parent().unwrap()).unwrap();
    file
}

fn read(file: &TensorFile) -> Result<ReferenceInputs, String> {
    let checkpoint = checkpoint("tiny_pi0", "model.safetensors");
    let cameras = &checkpoint.config().cameras;
    read_inputs(file, checkpoint.sizes(), cameras, Steps::new(10).unwrap(), 0)
        .map_err(|error| error.to_string())
}

fn report(tensors: &Tensors) -> Report {
    let file = written(tensors);
    let inputs = read(&file).unwrap();
    let checkpoint = checkpoint("tiny_pi0", "model.safetensors");
    verify(&device(2, ComputeDtype::F32), &checkpoint, &file, &inputs).unwrap()
}

fn floats(values: impl IntoIterator<Item = f32>) -> Vec<u8> {
    values.into_iter().flat_map(f32::to_le_bytes).collect()
}

#[test]
fn bad_inputs_are_named() {
    type Change = fn(&mut Tensors);
    let cases: [(Change, &str); 11] = [
        (|t| drop(t.remove("in.lang_tokens")), "no tensor `in.lang_tokens`"),
        (|t| drop(t.remove("in.state")), "no tensor `in.state`"),
        (|t| t.get_mut("in.lang_tokens").unwrap().1 = vec![2, 4, 4], "[batch, length]"),
        (|t| drop(t.insert("in.lang_tokens".into(), (Dtype::I64, vec![1 << 40, 0], vec![]))), "samples"),
        (|t| t.get_mut("in.lang_tokens").unwrap().2.fill(0xff), "ids of tokens, from 0 on"),
        (|t| t.get_mut("in.state").unwrap().1 = vec![1, 16], "floats [2, 8]"),
        (|t| t.get_mut("in.noise").unwrap().0 = Dtype::I32, "floats [2, 10, 8]"),
        (|t| t.retain(|name, _| !name.starts_with("in.image.")), "there are no images"),
        (|t| drop(t.insert("in.image.cam0".into(), t["in.image.0"].clone())), "are of one camera"),
        (|t| drop(t.insert("in.image.7".into(), t["in.image.0"].clone())), "of no camera of the policy"),
        (
            |t| drop(t.insert("in.img_mask.cam".into(), t["in.img_mask.0"].clone())),
            "nothing reads `in.img_mask.cam`",
        ),
    ];
    for (change, expected) in cases {
        let mut tensors = golden();
        change(&mut tensors);
        let message = read(&written(&tensors)).err().unwrap();
        assert!(message.contains(expected), "expected {expected:?} in: {message}");
    }
}

#[test]
fn a_wrong_scale_does_not_pass() {
    let mut tensors = golden();
    let actions = tensors.get_mut("out.actions").unwrap();
    let scaled =
        actions.2.as_chunks::<4>().0.iter().map(|b| 1.1 * f32::from_le_bytes(*b)).collect::<Vec<_>>();
    actions.2 = floats(scaled);
    let report = report(&tensors);
    let actions = report.comparisons.iter().find(|c| c.name == "out.actions").unwrap();
    assert!(actions.closeness.pcc > 0.9999 && !actions.closeness.reaches(0.99), "{actions:?}");
    assert!(!report.reaches(0.99));
}

#[test]
fn what_is_not_a_number_does_not_pass() {
    let mut tensors = golden();
    tensors.get_mut("out.actions").unwrap().2[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    assert!(!report(&tensors).reaches(0.5));
}

#[test]
fn constant_tensors_correlate_when_both_are_constant() {
    // Rounding of the mean must not pass for variance.
    let times = [0.3f32; 6];
    let nearly = [0.300_000_04f32; 6];
    assert_eq!(Closeness::of(&times, &nearly).pcc, 1.0);
    assert!(Closeness::of(&times, &nearly).reaches(0.9999));
    assert_eq!(Closeness::of(&times, &[0.1, 0.2, 0.3, 0.4, 0.5, 0.6]).pcc, 0.0);
    assert!(!Closeness::of(&[f32::NAN; 6], &times).reaches(0.0));
}
