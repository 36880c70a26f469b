//! Whole observations to model input, and actions to the robot and back.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde::Deserialize;
use tempfile::TempDir;
use tensact_runtime::Tensor;
use tensact_runtime::observation::{Image, Layout, Observation};
use tensact_runtime::preprocess::normalize::{Convention, Scaling};
use tensact_runtime::preprocess::statistics::{RelativeActions, Source};
use tensact_runtime::preprocess::{
    ActionsError, Preprocessor, PreprocessorError, Problem, Profile, Statistics, Tokenizer, Warning,
    synthetic,
};
use tensact_topology::{ModelSizes, Variant};

use crate::fixture;

const CAMERAS: [&str; 3] = ["base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb"];

fn tokenizer() -> Tokenizer {
    let folder = TempDir::new().unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), synthetic::tokenizer_json(512).unwrap()).unwrap();
    Tokenizer::open(folder.path(), 512).unwrap()
}

fn sizes(variant: Variant) -> ModelSizes {
    let mut sizes = ModelSizes::base(variant);
    (sizes.vision.image, sizes.vocab) = (28, 512);
    sizes
}

fn statistics(state: usize, actions: usize) -> Statistics {
    let scaling = |dims: usize, shift: f64| {
        let mean: Vec<f64> = (0..dims).map(|dim| dim as f64 * 0.1 - shift).collect();
        Scaling::mean_std(&mean, &vec![0.5; dims], Convention::OpenPi).unwrap()
    };
    Statistics { state: scaling(state, 0.3), actions: scaling(actions, 0.2), ..Statistics::identity() }
}

fn build(
    variant: Variant,
    profile: &str,
    cameras: &[&str],
    statistics: Statistics,
) -> Result<Preprocessor, PreprocessorError> {
    let cameras = cameras.iter().map(|camera| (*camera).into()).collect();
    Preprocessor::new(sizes(variant), cameras, Profile::named(profile).unwrap(), tokenizer(), statistics)
}

fn image(value: u8) -> Image {
    Image::from_u8(Layout::Hwc, 28, 28, vec![value; 28 * 28 * 3]).unwrap()
}

fn observation(images: &[(&str, u8)], state: usize) -> Observation {
    Observation {
        images: images.iter().map(|(key, value)| ((*key).into(), image(*value))).collect(),
        state: (0..state).map(|dim| dim as f32 * 0.05).collect(),
        prompt: Some("pick up the red block".into()),
    }
}

fn problems(preprocessor: &Preprocessor, observation: &Observation) -> String {
    preprocessor.prepare(observation).unwrap_err().to_string()
}

#[test]
fn libero_is_ready_for_pi0() {
    let preprocessor = build(Variant::Pi0, "libero", &CAMERAS, statistics(8, 7)).unwrap();
    let given = observation(&[("observation/image", 255), ("observation/wrist_image", 0)], 8);
    let prepared = preprocessor.prepare(&given).unwrap();
    let values = prepared.input.images.iter().map(|image| image.as_ref().map(|image| image.data()[0]));
    assert_eq!(values.collect::<Vec<_>>(), [Some(1.0), Some(-1.0), None]);
    assert_eq!(prepared.input.tokens.last(), Some(&108));
    let expected: Vec<f64> =
        (0..8).map(|d| (f64::from(d as f32 * 0.05) - (f64::from(d) * 0.1 - 0.3)) / 0.500_001).collect();
    for (got, expected) in prepared.input.state.iter().zip(expected) {
        assert!((f64::from(*got) - expected).abs() < 1e-6);
    }
    assert_eq!(prepared.input.state[8..], [0.0; 24]);
    assert!(prepared.warnings.is_empty());
}

#[test]
fn pi05_writes_the_normalised_state_without_padding() {
    let preprocessor = build(Variant::Pi05, "droid", &CAMERAS, Statistics::identity()).unwrap();
    let mut given =
        observation(&[("observation/exterior_image_1_left", 9), ("observation/wrist_image_left", 9)], 8);
    given.state = vec![0.0, 0.5, -0.5, 1.0, -1.0, 2.0, -2.0, 0.25];
    let text = "Task: pick up the red block, State: 128 192 64 255 0 255 -1 160;\nAction: ";
    let expected = [vec![2], tokenizer().encode(text).unwrap()].concat();
    assert_eq!(preprocessor.prepare(&given).unwrap().input.tokens, expected);
}

#[test]
fn aloha_may_lack_its_wrists_but_not_its_base() {
    let preprocessor = build(Variant::Pi0, "aloha", &CAMERAS, statistics(14, 14)).unwrap();
    let images = |given: &[(&str, u8)]| {
        preprocessor.prepare(&observation(given, 14)).map(|prepared| {
            (prepared.input.images.iter().map(Option::is_some).collect::<Vec<_>>(), prepared.warnings)
        })
    };
    assert_eq!(images(&[("cam_high", 1), ("cam_low", 2)]).unwrap(), (vec![true, false, false], vec![]));
    assert_eq!(
        images(&[("images/cam_high", 1), ("right_wrist", 2), ("cam_side", 3)]).unwrap(),
        (vec![true, false, true], vec![Warning::ImageIgnored { key: "cam_side".into() }])
    );
    let error = images(&[("cam_left_wrist", 1)]).unwrap_err().to_string();
    assert_eq!(error, "image `cam_high` is missing");
}

#[test]
fn generic_takes_the_checkpoints_cameras_by_any_of_their_names() {
    let cameras = ["observation.images.top", "observation.images.left_wrist_0_rgb"];
    let preprocessor = build(Variant::Pi0, "generic", &cameras, statistics(6, 6)).unwrap();
    for name in ["observation.images.top", "images/top", "top"] {
        let input = preprocessor.prepare(&observation(&[(name, 1)], 6)).unwrap().input;
        assert!(input.images[0].is_some() && input.images[1].is_none(), "{name}");
    }
    assert_eq!(preprocessor.camera("left_wrist").unwrap(), cameras[1]);
    let unknown = preprocessor.camera("base").unwrap_err().to_string();
    assert_eq!(unknown, "no camera `base`; there are top, left_wrist");
    assert!(problems(&preprocessor, &observation(&[], 6)).contains("observation.images.top"));
    assert!(
        problems(&preprocessor, &observation(&[("top", 1), ("images/top", 1)], 6)).contains("both camera")
    );
}

#[test]
fn all_problems_are_told_at_once() {
    let preprocessor = build(Variant::Pi0, "libero", &CAMERAS, statistics(8, 7)).unwrap();
    let mut given = observation(&[], 7);
    given.state[3] = f32::NAN;
    given.prompt = None;
    let error = preprocessor.prepare(&given).unwrap_err();
    assert_eq!(error.problems.len(), 5);
    let text = error.to_string();
    for part in [
        "image `observation/image` is missing",
        "image `observation/wrist_image` is missing",
        "state `observation/state` has 7 values, expected 8",
        "state `observation/state` holds NaN at 3",
        "`prompt` is missing",
    ] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn a_default_instruction_is_used_when_there_is_none() {
    let mut profile = Profile::named("generic").unwrap();
    profile.prompt.default = Some("wave".into());
    let cameras = vec!["base_0_rgb".into()];
    let preprocessor =
        Preprocessor::new(sizes(Variant::Pi0), cameras, profile, tokenizer(), statistics(6, 6)).unwrap();
    let mut given = observation(&[("base", 1)], 6);
    given.prompt = None;
    let expected = [vec![2], tokenizer().encode("wave").unwrap(), vec![108]].concat();
    assert_eq!(preprocessor.prepare(&given).unwrap().input.tokens, expected);
}

#[test]
fn a_long_instruction_is_cut_with_a_warning() {
    let preprocessor = build(Variant::Pi0, "generic", &CAMERAS, statistics(6, 6)).unwrap();
    let mut given = observation(&[("base", 1)], 6);
    given.prompt = Some("x".repeat(100));
    let prepared = preprocessor.prepare(&given).unwrap();
    assert_eq!(prepared.input.tokens.len(), 48);
    assert_eq!(prepared.warnings, [Warning::PromptCut { tokens: 102, limit: 48 }]);
}

#[test]
fn parts_of_the_state_are_joined() {
    let preprocessor = build(Variant::Pi0, "droid", &CAMERAS, statistics(8, 8)).unwrap();
    let parts = |joints: usize, gripper: usize| -> BTreeMap<&str, Vec<f32>> {
        [
            ("observation/joint_position", vec![1.0; joints]),
            ("observation/gripper_position", vec![2.0; gripper]),
        ]
        .into()
    };
    let join = |parts: BTreeMap<&str, Vec<f32>>| preprocessor.join_state(|key| parts.get(key).cloned());
    assert_eq!(join(parts(7, 1)).unwrap(), [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 2.0]);
    let error = join(parts(6, 2)).unwrap_err().to_string();
    assert!(error.contains("joint_position` has 6 values, expected 7"), "{error}");
    assert!(error.contains("gripper_position` has 2 values, expected 1"), "{error}");
    assert_eq!(join(BTreeMap::new()).unwrap_err().problems.len(), 2);
    let mut given =
        observation(&[("observation/exterior_image_1_left", 9), ("observation/wrist_image_left", 9)], 8);
    given.state[7] = f32::INFINITY;
    assert!(problems(&preprocessor, &given).contains("state `observation/gripper_position` holds inf at 7"));
}

#[test]
fn robot_checkpoint_and_statistics_must_belong_together() {
    let error = |profile, cameras: &[&str], statistics| {
        build(Variant::Pi0, profile, cameras, statistics).unwrap_err().to_string()
    };
    let camera = error("libero", &["observation.images.top"], statistics(8, 7));
    assert!(camera.contains("base_0_rgb") && camera.contains("observation.images.top"), "{camera}");
    let state = error("libero", &CAMERAS, statistics(6, 7));
    assert!(state.contains("8 state dimensions") && state.contains("only 6"), "{state}");
    let actions = error("libero", &CAMERAS, statistics(8, 6));
    assert!(actions.contains("7 action dimensions") && actions.contains("only 6"), "{actions}");
}

#[test]
fn lerobots_statistics_say_how_wide_the_robot_is() {
    let lerobot = Statistics { source: Source::LeRobot("x".into()), ..statistics(6, 5) };
    let preprocessor = build(Variant::Pi0, "generic", &CAMERAS, lerobot).unwrap();
    assert_eq!(preprocessor.action_dims(), 5);
    assert!(problems(&preprocessor, &observation(&[("base", 1)], 5)).contains("has 5 values, expected 6"));
    let padded = Statistics { source: Source::OpenPi("x".into()), ..statistics(32, 32) };
    let preprocessor = build(Variant::Pi0, "generic", &CAMERAS, padded).unwrap();
    assert!(preprocessor.prepare(&observation(&[("base", 1)], 5)).is_ok());
    assert!(problems(&preprocessor, &observation(&[("base", 1)], 33)).contains("expected 1 to 32"));
}

#[derive(Deserialize)]
struct Aloha {
    state: Vec<f32>,
    decoded_state: Vec<f32>,
    actions: Vec<Vec<f32>>,
    encoded_actions: Vec<Vec<f32>>,
    encoded_actions_inv: Vec<Vec<f32>>,
}

/// Numbers of openpi's `aloha_policy.py`: `_decode_state`, `_encode_actions`, `_encode_actions_inv`.
#[test]
fn aloha_is_converted_as_in_openpi() {
    let aloha: Aloha = serde_json::from_slice(&std::fs::read(fixture("robot/aloha.json")).unwrap()).unwrap();
    let mut profile = Profile::named("aloha").unwrap();
    profile.actions.delta = Default::default();
    let cameras = CAMERAS.map(String::from).to_vec();
    let identity = Statistics::identity();
    let preprocessor =
        Preprocessor::new(sizes(Variant::Pi0), cameras, profile, tokenizer(), identity).unwrap();
    let mut given = observation(&[("cam_high", 1)], 14);
    given.state = aloha.state.clone();
    close(&preprocessor.prepare(&given).unwrap().input.state[..14], &aloha.decoded_state);
    let mut chunk = Tensor::zeros([2, 32]);
    for (row, action) in aloha.actions.iter().enumerate() {
        chunk.data_mut()[row * 32..][..14].copy_from_slice(action);
    }
    close(preprocessor.robot_actions(&chunk, &aloha.state).unwrap().data(), &aloha.encoded_actions.concat());
    let robot = Tensor::new([2, 14], aloha.actions.concat()).unwrap();
    let model = preprocessor.normalise_actions(&robot, &aloha.state).unwrap();
    for (row, expected) in aloha.encoded_actions_inv.iter().enumerate() {
        close(&model.row(row)[..14], expected);
        assert_eq!(model.row(row)[14..], [0.0; 18]);
    }
}

fn close(got: &[f32], expected: &[f32]) {
    assert_eq!(got.len(), expected.len());
    for (got, expected) in got.iter().zip(expected) {
        assert!((got - expected).abs() < 2e-6, "{got} {expected}");
    }
}

#[test]
fn relative_actions_are_added_to_the_state() {
    let chunk = Tensor::new([1, 32], vec![0.5; 32]).unwrap();
    let libero = |variant| build(variant, "libero", &CAMERAS, Statistics::identity()).unwrap();
    let state = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0];
    let pi0 = libero(Variant::Pi0).robot_actions(&chunk, &state).unwrap();
    assert_eq!(pi0.data(), [1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 0.5]);
    let pi05 = libero(Variant::Pi05).robot_actions(&chunk, &state).unwrap();
    assert_eq!(pi05.data(), [0.5; 7]);
    let names = Some(["a", "gripper", "b"].map(String::from).to_vec());
    let relative = Some(RelativeActions { exclude: vec!["gripper".into()], names });
    let lerobot = Statistics { relative, ..statistics(3, 3) };
    let lerobot = build(Variant::Pi0, "generic", &CAMERAS, lerobot).unwrap();
    let model = lerobot.normalise_actions(&Tensor::zeros([1, 3]), &[1.0, 1.0, 1.0]).unwrap();
    close(&model.data()[..3], &[-1.6, 0.2, -2.0].map(|value: f32| value * 0.5 / 0.500_001));
    assert!(lerobot.robot_actions(&chunk, &[1.0]).is_err());
}

#[test]
fn actions_of_another_shape_are_refused() {
    let preprocessor = build(Variant::Pi0, "libero", &CAMERAS, statistics(8, 7)).unwrap();
    let shape = |tensor: &Tensor| match preprocessor.robot_actions(tensor, &[0.0; 8]) {
        Err(ActionsError::Shape { width, .. }) => width,
        other => panic!("{other:?}"),
    };
    assert_eq!(shape(&Tensor::zeros([3, 31])), 32);
    assert_eq!(shape(&Tensor::zeros([32])), 32);
    let error = preprocessor.robot_actions(&Tensor::zeros([3, 32]), &[0.0; 7]).unwrap_err();
    let ActionsError::State(error) = error else { panic!("{error}") };
    assert!(matches!(error.problems[..], [Problem::StateDims { got: 7, .. }]));
    assert_eq!(preprocessor.normalise_actions(&Tensor::zeros([0, 7]), &[0.0; 8]).unwrap().shape(), [0, 32]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn normalise_actions_undoes_robot_actions(
        profile in prop::sample::select(vec!["libero", "droid", "aloha", "generic"]),
        pi05: bool,
        seed in prop::collection::vec(-2.0f32..2.0, 14 * 3),
        state in prop::collection::vec(-1.0f32..1.0, 14),
    ) {
        let variant = if pi05 { Variant::Pi05 } else { Variant::Pi0 };
        let preprocessor = build(variant, profile, &CAMERAS, statistics(14, 14)).unwrap();
        let (dims, wide) = (preprocessor.action_dims(), preprocessor.profile().state_dims().unwrap_or(14));
        let robot = Tensor::new([3, dims], seed[..3 * dims].to_vec()).unwrap();
        let model = preprocessor.normalise_actions(&robot, &state[..wide]).unwrap();
        prop_assert_eq!(model.shape(), [3, 32]);
        let back = preprocessor.robot_actions(&model, &state[..wide]).unwrap();
        for (before, after) in robot.data().iter().zip(back.data()) {
            prop_assert!((before - after).abs() < 1e-5, "{} {}", before, after);
        }
    }
}
