use std::path::Path;

use tensact_topology::Variant;

use super::*;
use crate::checkpoint::names::{EXPERT, TOKEN_TABLE, VISION, VLM};
use crate::device::host::ComputeDtype;
use crate::device::host::activation::round_to_bf16;
use crate::device::ttnn::program::{Dtype, HeadLayout, Part, Spread};

fn weights(policy: &str) -> Weights {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(policy);
    let checkpoint = Checkpoint::open(&path.join("model_openpi_bf16.safetensors")).unwrap();
    let device = HostDevice::new(std::num::NonZeroUsize::new(2), ComputeDtype::F32).unwrap();
    Weights::new(device, &checkpoint)
}

fn tiles(rows: usize, columns: usize, dtype: Dtype) -> TensorSpec {
    TensorSpec::tiles([1, 1, rows, columns], dtype)
}

/// What a recipe makes in f32, row after row.
fn made(weights: &Weights, recipe: &Recipe, [rows, columns]: [usize; 2]) -> Vec<f32> {
    weights.get(recipe, tiles(rows, columns, Dtype::F32)).unwrap().to_f32()
}

fn tensor(weights: &Weights, name: &str) -> Vec<f32> {
    weights.checkpoint.find(name).unwrap().to_f32()
}

#[test]
fn products_are_transposed_and_stand_side_by_side_in_their_places() {
    let weights = weights("tiny_pi0");
    let expert = weights.checkpoint.sizes().expert;
    let (width, heads, half) = (expert.width, expert.heads, expert.head_dim / 2);
    let head = HeadLayout::halves(expert.head_dim);
    let name = |part: &str| format!("{EXPERT}.layers.1.self_attn.{part}_proj");
    let q = Part { factor: 0.3, ..Part::new(name("q"), head.of_heads(heads)) };
    let k = Part::new(name("k"), head.of_heads(expert.kv_heads));
    let recipe = Recipe::Product { parts: vec![q, k], inputs: Spread::dense(width), first_input: 0 };
    let columns = (heads + expert.kv_heads) * head.places();
    let found = made(&weights, &recipe, [width, columns]);
    let (q, k) = (tensor(&weights, &(name("q") + ".weight")), tensor(&weights, &(name("k") + ".weight")));
    for (input, row) in found.chunks_exact(columns).enumerate() {
        let mut expected = vec![0.0; columns];
        for value in 0..heads * 2 * half {
            let place = value / half * head.places() / 2 + value % half;
            expected[place] = q[value * width + input] * 0.3;
        }
        for value in 0..expert.kv_heads * 2 * half {
            let place = heads * head.places() + value / half * head.places() / 2 + value % half;
            expected[place] = k[value * width + input];
        }
        assert_eq!(row, expected, "input {input}");
    }
}

#[test]
fn inputs_have_places_too_and_may_begin_later() {
    let weights = weights("tiny_pi0");
    let sizes = *weights.checkpoint.sizes();
    // Attended heads, padded by halves.
    let head = HeadLayout::halves(sizes.vlm.head_dim).of_heads(sizes.vlm.heads);
    let layer = format!("{VLM}.layers.0.self_attn.o_proj");
    let parts = vec![Part::new(&layer, Spread::dense(sizes.vlm.width))];
    let recipe = Recipe::Product { parts, inputs: head, first_input: 0 };
    let found = made(&weights, &recipe, [head.places(), sizes.vlm.width]);
    let weight = tensor(&weights, &format!("{layer}.weight"));
    let mut expected = vec![0.0; found.len()];
    for (input, place) in head.places_of_values().enumerate() {
        for output in 0..sizes.vlm.width {
            expected[place * sizes.vlm.width + output] = weight[output * head.values() + input];
        }
    }
    assert_eq!(found, expected);

    // The second half of the inputs alone.
    let width = sizes.expert.width;
    let parts = vec![Part::new("action_time_mlp_in", Spread::dense(width))];
    let recipe = Recipe::Product { parts, inputs: Spread::dense(width), first_input: width };
    let found = made(&weights, &recipe, [width, width]);
    let weight = tensor(&weights, "action_time_mlp_in.weight");
    let expected = (0..width * width).map(|i| weight[i % width * 2 * width + width + i / width]);
    assert!(expected.eq(found));

    // A convolution's kernel is a row of inputs.
    let pixels = Spread::aligned(3 * sizes.vision.patch.pow(2), 32);
    let parts =
        vec![Part::new(format!("{VISION}.embeddings.patch_embedding"), Spread::dense(sizes.vision.width))];
    let recipe = Recipe::Product { parts, inputs: pixels, first_input: 0 };
    let found = made(&weights, &recipe, [pixels.places(), sizes.vision.width]);
    let kernel = tensor(&weights, &format!("{VISION}.embeddings.patch_embedding.weight"));
    assert_eq!(found[5 * sizes.vision.width + 7], kernel[7 * pixels.values() + 5]);
    assert!(found[pixels.values() * sizes.vision.width..].iter().all(|x| *x == 0.0));
}

#[test]
fn vectors_and_tables() {
    let weights = weights("tiny_pi0");
    let sizes = *weights.checkpoint.sizes();
    let vision = sizes.vision;
    let heads = HeadLayout::plain(vision.head_dim()).of_heads(vision.heads);
    let layer = format!("{VISION}.encoder.layers.0.self_attn.v_proj");
    let parts = vec![Part { factor: 2.0, ..Part::new(&layer, heads) }];
    let found = made(&weights, &Recipe::Bias { parts }, [1, heads.places()]);
    let bias = tensor(&weights, &format!("{layer}.bias"));
    let mut expected = vec![0.0; heads.places()];
    heads.places_of_values().zip(bias).for_each(|(place, bias)| expected[place] = 2.0 * bias);
    assert_eq!(found, expected);

    let norm = format!("{VLM}.layers.1.input_layernorm");
    let vector = tensor(&weights, &format!("{norm}.weight"));
    let same = Recipe::Vector { tensor: format!("{norm}.weight") };
    assert_eq!(made(&weights, &same, [1, sizes.vlm.width]), vector);
    let scale: Vec<f32> = vector.iter().map(|w| 1.0 + w).collect();
    assert_eq!(made(&weights, &Recipe::NormScale { norm }, [1, sizes.vlm.width]), scale);

    let spec = TensorSpec::rows([1, 1, sizes.vocab, sizes.vlm.width], Dtype::Bf16);
    let factor = (sizes.vlm.width as f32).sqrt();
    let found = weights.get(&Recipe::TokenTable { factor }, spec).unwrap().to_f32();
    let table = tensor(&weights, TOKEN_TABLE);
    let expected = table.iter().map(|x| round_to_bf16(round_to_bf16(*x) * round_to_bf16(factor)));
    assert!(expected.eq(found));

    let mask = made(&weights, &Recipe::KeyMask { valid: 3, side: 32 }, [32, 32]);
    let closed = |(i, x): (usize, &f32)| *x == if i % 32 < 3 { 0.0 } else { f32::NEG_INFINITY };
    assert!(mask.iter().enumerate().all(closed));
    assert_eq!(made(&weights, &Recipe::Zeros { shape: [64, 8] }, [64, 8]), [0.0; 64 * 8]);
}

#[test]
fn positions_are_the_table_with_zeros_behind_it() {
    let weights = weights("tiny_pi0");
    let vision = weights.checkpoint.sizes().vision;
    let table = tensor(&weights, &format!("{VISION}.embeddings.position_embedding.weight"));
    let side = vision.table_side;
    let found = made(&weights, &Recipe::Positions { grid: side, rows: 32 }, [32, vision.width]);
    let (patches, rest) = found.split_at(table.len());
    assert_eq!(patches, table);
    assert!(rest.iter().all(|x| *x == 0.0));
    let refused = weights.get(&Recipe::Positions { grid: 6, rows: 32 }, tiles(32, vision.width, Dtype::Bf16));
    assert!(matches!(refused.unwrap_err(), WeightError::Tensor { .. }), "36 patches in 32 rows");
}

#[test]
fn angles_stand_with_both_halves_of_a_head() {
    let weights = weights("tiny_pi0");
    let head = HeadLayout::halves(16);
    let angle = |position: usize, pair: i32| position as f64 * 10_000f64.powf(-2.0 * f64::from(pair) / 16.0);
    type Function = fn(f64) -> f64;
    let tables: [(Recipe, Function); 2] = [
        (Recipe::Cosines { positions: 64, head: head.head }, f64::cos),
        (Recipe::Sines { positions: 64, head: head.head }, f64::sin),
    ];
    for (recipe, function) in tables {
        let found = made(&weights, &recipe, [64, 64]);
        for (position, row) in found.chunks_exact(64).enumerate() {
            for (place, x) in row.iter().enumerate() {
                let expected =
                    if place % 32 < 8 { function(angle(position, place as i32 % 32)) } else { 0.0 };
                assert!((f64::from(*x) - expected).abs() < 1e-5, "{position} {place}: {x} {expected}");
            }
        }
    }
}

/// `x · weightᵀ + bias` in f64, with some of the weight's input columns.
fn linear(weights: &Weights, layer: &str, x: &[f64], first: usize) -> Vec<f64> {
    let (weight, bias) =
        (tensor(weights, &format!("{layer}.weight")), tensor(weights, &format!("{layer}.bias")));
    let inputs = weight.len() / bias.len();
    let row = |output: usize| &weight[output * inputs + first..][..x.len()];
    let sum = |output: usize| row(output).iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum::<f64>();
    bias.iter().enumerate().map(|(output, bias)| sum(output) + f64::from(*bias)).collect()
}

/// The embedding of time `1 - step / steps`, in f64.
fn time(step: usize, steps: usize, width: usize) -> Vec<f64> {
    let t = 1.0 - step as f64 / steps as f64;
    let half = width / 2;
    let angle = |i: usize| {
        let period = 4e-3 * 1e3f64.powf(i as f64 / (half - 1) as f64);
        std::f64::consts::TAU / period * t
    };
    (0..half).map(|i| angle(i).sin()).chain((0..half).map(|i| angle(i).cos())).collect()
}

#[test]
fn tables_of_time_are_the_models_layers_over_it() {
    let steps = 7;
    let close = |found: f32, expected: f64| (f64::from(found) - expected).abs() < 1e-4;
    let pi0 = weights("tiny_pi0");
    let width = pi0.checkpoint.sizes().expert.width;
    let found = made(&pi0, &Recipe::MixedTime { steps }, [steps, width]);
    for (step, row) in found.chunks_exact(width).enumerate() {
        let expected = linear(&pi0, "action_time_mlp_in", &time(step, steps, width), width);
        assert!(row.iter().zip(expected).all(|(x, y)| close(*x, y)), "step {step}");
    }

    let pi05 = weights("tiny_pi05");
    let norm = format!("{EXPERT}.layers.2.post_attention_layernorm");
    let found = made(&pi05, &Recipe::Modulation { norm: norm.clone(), steps }, [steps, 3 * width]);
    let silu = |x: Vec<f64>| -> Vec<f64> { x.into_iter().map(|x| x / (1.0 + (-x).exp())).collect() };
    for (step, row) in found.chunks_exact(3 * width).enumerate() {
        let inner = silu(linear(&pi05, "time_mlp_in", &time(step, steps, width), 0));
        let condition = silu(linear(&pi05, "time_mlp_out", &inner, 0));
        let mut expected = linear(&pi05, &format!("{norm}.dense"), &condition, 0);
        expected[..width].iter_mut().for_each(|scale| *scale += 1.0);
        assert!(row.iter().zip(expected).all(|(x, y)| close(*x, y)), "step {step}");
    }
}

#[test]
fn every_type_holds_what_the_recipe_makes_as_far_as_it_can() {
    let weights = weights("tiny_pi0");
    let layer = "action_time_mlp_out";
    let width = weights.checkpoint.sizes().expert.width;
    let recipe = Recipe::Product {
        parts: vec![Part::new(layer, Spread::dense(width))],
        inputs: Spread::dense(width),
        first_input: 0,
    };
    let exact = made(&weights, &recipe, [width, width]);
    let as_type = |dtype: Dtype| weights.get(&recipe, tiles(width, width, dtype)).unwrap().to_f32();
    assert_eq!(as_type(Dtype::Bf16), exact, "these weights are bf16");
    let mut rounded = exact;
    rounded.chunks_exact_mut(width).for_each(crate::device::ttnn::bfp8::round);
    assert_eq!(as_type(Dtype::Bfp8B), rounded);
}

#[test]
fn programs_share_what_somebody_uses() {
    let weights = weights("tiny_pi0");
    let recipe = Recipe::Vector { tensor: format!("{VLM}.layers.0.input_layernorm.weight") };
    let spec = tiles(1, weights.checkpoint.sizes().vlm.width, Dtype::Bf16);
    let first = weights.get(&recipe, spec).unwrap();
    assert!(Arc::ptr_eq(&first, &weights.get(&recipe, spec).unwrap()));
    let other = weights.get(&recipe, TensorSpec { dtype: Dtype::F32, ..spec }).unwrap();
    assert!(!Arc::ptr_eq(&first, &other), "another type is another weight");
    let left = Arc::downgrade(&first);
    drop(first);
    assert!(left.upgrade().is_none(), "nobody else keeps it");
}

#[test]
fn what_does_not_belong_to_the_checkpoint_is_refused() {
    let weights = weights("tiny_pi0");
    assert_eq!(weights.checkpoint.sizes().variant, Variant::Pi0);
    let refused = |recipe: Recipe, spec| weights.get(&recipe, spec).unwrap_err().to_string();
    let vector = |tensor: &str| Recipe::Vector { tensor: tensor.into() };
    let missing = refused(vector("nothing.weight"), tiles(1, 8, Dtype::Bf16));
    assert!(missing.contains("no tensor `nothing.weight`"), "{missing}");
    let adaptive = Recipe::Modulation { norm: format!("{EXPERT}.norm"), steps: 10 };
    assert!(refused(adaptive, tiles(10, 192, Dtype::Bf16)).contains("norm.dense.weight"));
    let parts = || vec![Part::new("state_proj", Spread::dense(65))];
    let product = Recipe::Product { parts: parts(), inputs: Spread::dense(8), first_input: 0 };
    let found = refused(product, tiles(8, 65, Dtype::Bf16));
    assert!(found.contains("`state_proj.weight` is [64, 8], the program needs [65, 8 or more]"), "{found}");
    let wide = Recipe::Product {
        parts: vec![Part::new("state_proj", Spread::dense(64))],
        inputs: Spread::dense(8),
        first_input: 1,
    };
    assert!(refused(wide, tiles(8, 64, Dtype::Bf16)).contains("[64, 9 or more]"));
    assert!(refused(Recipe::Bias { parts: parts() }, tiles(1, 65, Dtype::Bf16)).contains("[65]"));
    let norm = vector(&format!("{VLM}.norm.weight"));
    let shape = refused(norm.clone(), tiles(1, 64, Dtype::Bf16));
    assert!(shape.contains("makes 1 × 128 floats, the program declares [1, 1, 1, 64] bf16"), "{shape}");
    assert!(refused(norm, tiles(1, 128, Dtype::U32)).contains("u32"));
    assert!(refused(Recipe::MixedTime { steps: 0 }, tiles(0, 64, Dtype::Bf16)).contains("0 denoising steps"));
}

#[test]
fn large_weights_come_from_the_cache_and_are_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let cached = || weights("tiny_pi0").cached_in(WeightCache::at(folder.path().into(), 1 << 30));
    // All of an expert's layers side by side, several times over: large enough to be kept.
    let expert = weights("tiny_pi0").checkpoint.sizes().expert;
    let part = |layer| Part::new(format!("{EXPERT}.layers.{layer}.mlp.gate_proj"), Spread::dense(expert.mlp));
    let parts: Vec<Part> = (0..135).map(|i| part(i % 3)).collect();
    let columns = parts.len() * expert.mlp;
    let recipe = Recipe::Product { parts, inputs: Spread::dense(expert.width), first_input: 0 };
    let spec = tiles(expert.width, columns, Dtype::Bfp8B);
    let plain = weights("tiny_pi0").get(&recipe, spec).unwrap();
    assert_eq!(cached().get(&recipe, spec).unwrap(), plain);
    let file = std::fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
    let written = std::fs::metadata(&file).unwrap().modified().unwrap();
    assert_eq!(cached().get(&recipe, spec).unwrap(), plain);
    assert!(std::fs::metadata(&file).unwrap().modified().unwrap() > written, "it was used");
    std::fs::write(&file, b"spoiled").unwrap();
    assert_eq!(cached().get(&recipe, spec).unwrap(), plain);
    assert!(std::fs::metadata(&file).unwrap().len() > 1 << 20, "it was made again");

    // Other types and small weights are not kept.
    cached().get(&recipe, tiles(expert.width, columns, Dtype::Bf16)).unwrap();
    let parts = vec![part(0)];
    let small = Recipe::Product { parts, inputs: Spread::dense(expert.width), first_input: 0 };
    cached().get(&small, tiles(expert.width, expert.mlp, Dtype::Bfp8B)).unwrap();
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}
