//! Every call against plain arithmetic in f64.

use proptest::prelude::*;
use tensact_topology::WeightDtype;

use super::chip;
use crate::device::host::activation::round_to_bf16;
use crate::device::ttnn::program::{
    Activation, Builder, Compute, Dtype, Numerics, Op, Part, Recipe, Spread, TensorSpec, ValueId, Wiring,
};
use crate::device::ttnn::{Chip, bfp8};

/// A program of a few calls, and what its inputs hold.
struct Case {
    builder: Builder,
    inputs: Vec<(ValueId, Vec<f32>)>,
    numbers: Vec<(ValueId, Vec<u32>)>,
    random: u64,
}

/// An input: its tensor, shape and values.
type Input = (ValueId, [usize; 4], Vec<f64>);

impl Case {
    fn new(seed: u64) -> Self {
        let builder = Builder::new("a test".into(), Numerics::of(WeightDtype::Bf16), Wiring::default());
        Self { builder, inputs: Vec::new(), numbers: Vec::new(), random: seed | 1 }
    }

    /// Values in [-2, 2) that are bf16.
    fn values(&mut self, count: usize) -> Vec<f32> {
        let mut next = || {
            self.random =
                self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            round_to_bf16((self.random >> 40) as f32 / (1u64 << 22) as f32 - 2.0)
        };
        (0..count).map(|_| next()).collect()
    }

    fn input(&mut self, shape: [usize; 4], dtype: Dtype) -> Input {
        let values = self.values(shape.iter().product());
        self.given(shape, dtype, values)
    }

    fn given(&mut self, shape: [usize; 4], dtype: Dtype, values: Vec<f32>) -> Input {
        let name = format!("input {}", self.inputs.len());
        let id = self.builder.input(name, TensorSpec::tiles(shape, dtype)).unwrap();
        let wide = values.iter().map(|x| f64::from(*x)).collect();
        self.inputs.push((id, values));
        (id, shape, wide)
    }

    /// The results of one call, which is asked for results of this dtype.
    fn run(mut self, op: Op, dtype: Dtype) -> Vec<Vec<f32>> {
        let out = self.builder.call(op, dtype).unwrap();
        for (index, id) in out.iter().enumerate() {
            self.builder.output(format!("out {index}"), *id).unwrap();
        }
        let mut program = chip().load(self.builder.finish().into()).unwrap();
        self.inputs.iter().for_each(|(id, values)| program.write(*id, values).unwrap());
        self.numbers.iter().for_each(|(id, numbers)| program.write_numbers(*id, numbers).unwrap());
        program.run(0).unwrap();
        out.into_iter().map(|id| program.read(id).unwrap()).collect()
    }

    fn run_one(self, op: Op, dtype: Dtype) -> Vec<f32> {
        self.run(op, dtype).remove(0)
    }
}

/// Whether values are those of f64, within f32's own error and one rounding to the dtype.
fn assert_close(found: &[f32], expected: &[f64], dtype: Dtype) {
    assert_eq!(found.len(), expected.len());
    let rounding = if dtype == Dtype::F32 { 0.0 } else { 2f64.powi(-8) };
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        let bound = (1.01 * rounding + 2e-5) * expected.abs() + 2e-5;
        assert!((f64::from(*found) - expected).abs() <= bound, "{index}: {found}, expected {expected}");
        assert!(dtype == Dtype::F32 || round_to_bf16(*found) == *found, "{found} is no bf16");
    }
}

fn gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
}

fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

/// `[a, b, rows, inner] · [inner, columns] + bias`.
fn product(x: &[f64], weight: &[f64], bias: &[f64]) -> Vec<f64> {
    let (columns, inner) = (bias.len(), weight.len() / bias.len());
    let dot = |row: &[f64], n: usize| (0..inner).map(|k| row[k] * weight[k * columns + n]).sum::<f64>();
    x.chunks(inner).flat_map(|row| (0..columns).map(move |n| dot(row, n) + bias[n])).collect()
}

fn float() -> impl Strategy<Value = Dtype> {
    prop_oneof![Just(Dtype::F32), Just(Dtype::Bf16)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn linear(
        a in 1usize..3, rows in 1usize..40, inner in 1usize..80, columns in 1usize..80,
        which in 0usize..3, dtype in float(), seed in any::<u64>(),
    ) {
        let mut case = Case::new(seed);
        let (x, _, x_values) = case.input([a, 1, rows, inner], dtype);
        let (weight, _, weight_values) = case.input([1, 1, inner, columns], Dtype::Bf16);
        let (bias, _, bias_values) = case.input([1, 1, 1, columns], Dtype::Bf16);
        let activation = [None, Some(Activation::Gelu), Some(Activation::Silu)][which];
        let op = Op::Linear { x, weight, bias: Some(bias), activation, compute: Compute::EXACT };
        let found = case.run_one(op, dtype);
        let f = [|x| x, gelu, silu][which];
        let expected: Vec<f64> = product(&x_values, &weight_values, &bias_values).into_iter().map(f).collect();
        assert_close(&found, &expected, dtype);
    }

    #[test]
    fn norms(
        rows in 1usize..40, width in 1usize..100, epsilon in 1e-6f32..1e-2, weighted in any::<bool>(),
        dtype in float(), seed in any::<u64>(),
    ) {
        let unit = |row: &[f64], mean: f64| {
            let square = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / row.len() as f64;
            let factor = 1.0 / (square + f64::from(epsilon)).sqrt();
            row.iter().map(|x| (x - mean) * factor).collect::<Vec<_>>()
        };
        let mut case = Case::new(seed);
        let (x, _, values) = case.input([2, 1, rows, width], dtype);
        let (weight, _, scale) = case.input([1, 1, 1, width], Dtype::Bf16);
        let (bias, _, shift) = case.input([1, 1, 1, width], Dtype::Bf16);
        let op = Op::LayerNorm { x, weight, bias, epsilon, compute: Compute::EXACT };
        let found = case.run_one(op, dtype);
        let expected: Vec<f64> = values.chunks(width).flat_map(|row| {
            let mean = row.iter().sum::<f64>() / width as f64;
            unit(row, mean).into_iter().zip(&scale).zip(&shift).map(|((x, w), b)| x * w + b).collect::<Vec<_>>()
        }).collect();
        // One value alone has no variance, and its own rounding is all that is left of it.
        prop_assume!(width > 1);
        assert_close(&found, &expected, dtype);

        let mut case = Case::new(seed);
        let (x, _, values) = case.input([2, 1, rows, width], dtype);
        let (weight, _, scale) = case.input([1, 1, 1, width], Dtype::Bf16);
        let weight = weighted.then_some(weight);
        let found = case.run_one(Op::RmsNorm { x, weight, epsilon, compute: Compute::EXACT }, dtype);
        let expected: Vec<f64> = values.chunks(width).flat_map(|row| {
            unit(row, 0.0).into_iter().zip(&scale).map(|(x, w)| if weighted { x * w } else { x }).collect::<Vec<_>>()
        }).collect();
        assert_close(&found, &expected, dtype);
    }

    #[test]
    fn sums_and_products_repeat_dimensions_of_one(
        shape in [1usize..3, 1usize..3, 1usize..40, 1usize..40],
        repeated in [any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>()],
        which in 0usize..4, dtype in float(), seed in any::<u64>(),
    ) {
        let mut case = Case::new(seed);
        let (a, _, a_values) = case.input(shape, dtype);
        let smaller: [usize; 4] = std::array::from_fn(|dim| if repeated[dim] { 1 } else { shape[dim] });
        let (b, _, b_values) = case.input(smaller, Dtype::Bf16);
        let (op, f): (_, fn(f64, f64) -> f64) = [
            (Op::Add { a, b }, (|a, b| a + b) as fn(f64, f64) -> f64),
            (Op::Multiply { a, b, activation: None }, |a, b| a * b),
            (Op::Multiply { a, b, activation: Some(Activation::Gelu) }, |a, b| gelu(a) * b),
            (Op::Multiply { a, b, activation: Some(Activation::Silu) }, |a, b| silu(a) * b),
        ][which].clone();
        let found = case.run_one(op, dtype);
        let expected: Vec<f64> = a_values.iter().enumerate().map(|(index, a)| {
            let mut place = 0;
            for dim in 0..4 {
                let stride: usize = shape[dim + 1..].iter().product();
                let at = if smaller[dim] == 1 { 0 } else { index / stride % shape[dim] };
                place = place * smaller[dim] + at;
            }
            f(*a, b_values[place])
        }).collect();
        assert_close(&found, &expected, dtype);
    }

    #[test]
    fn functions_of_one_value(
        rows in 1usize..40, width in 1usize..40, factor in -3.0f32..3.0, dtype in float(), seed in any::<u64>(),
    ) {
        for which in 0..3 {
            let mut case = Case::new(seed);
            let (x, _, values) = case.input([1, 2, rows, width], dtype);
            let (op, f): (Op, Box<dyn Fn(f64) -> f64>) = match which {
                0 => (Op::Activate { x, activation: Activation::Gelu }, Box::new(gelu)),
                1 => (Op::Activate { x, activation: Activation::Silu }, Box::new(silu)),
                _ => (Op::MultiplyScalar { x, value: factor }, Box::new(move |x| x * f64::from(factor))),
            };
            let expected: Vec<f64> = values.iter().map(|x| f(*x)).collect();
            assert_close(&case.run_one(op, dtype), &expected, dtype);
        }
    }

    #[test]
    fn rotary(heads in 1usize..4, tokens in 1usize..40, half in 1usize..3, seed in any::<u64>()) {
        let (half, mut case) = (32 * half, Case::new(seed));
        let width = 2 * half;
        let (x, _, values) = case.input([1, heads, tokens, width], Dtype::Bf16);
        let (cos, _, cos_values) = case.input([1, 1, tokens, width], Dtype::Bf16);
        let (sin, _, sin_values) = case.input([1, 1, tokens, width], Dtype::Bf16);
        let found = case.run_one(Op::Rotary { x, cos, sin }, Dtype::Bf16);
        let expected: Vec<f64> = (0..values.len()).map(|index| {
            let (at, token) = (index % width, index / width % tokens);
            let other = if at < half { -values[index + half] } else { values[index - half] };
            values[index] * cos_values[token * width + at] + other * sin_values[token * width + at]
        }).collect();
        assert_close(&found, &expected, Dtype::Bf16);
    }

    #[test]
    fn heads_are_split_and_joined(
        a in 1usize..3, group in 1usize..4, kv_heads in 1usize..3, tokens in 1usize..40, seed in any::<u64>(),
    ) {
        let (heads, width, mut case) = (group * kv_heads, 32, Case::new(seed));
        let columns = (heads + 2 * kv_heads) * width;
        let (x, _, values) = case.input([a, 1, tokens, columns], Dtype::Bf16);
        let split = case.run(Op::SplitHeads { x, heads, kv_heads }, Dtype::Bf16);
        let starts = [(0, heads), (heads, kv_heads), (heads + kv_heads, kv_heads)];
        for (found, (first, count)) in split.iter().zip(starts) {
            let at = |index: usize| {
                let (place, token) = (index % width, index / width % tokens);
                let (head, batch) = (index / width / tokens % count, index / width / tokens / count);
                values[(batch * tokens + token) * columns + (first + head) * width + place]
            };
            assert_close(found, &(0..a * count * tokens * width).map(at).collect::<Vec<_>>(), Dtype::Bf16);
        }
        let mut case = Case::new(seed);
        let (x, ..) = case.given([a, heads, tokens, width], Dtype::Bf16, split[0].clone());
        let joined = case.run_one(Op::ConcatHeads { x }, Dtype::Bf16);
        let expected = values.chunks(columns).flat_map(|row| row[..heads * width].to_vec()).collect::<Vec<_>>();
        assert_close(&joined, &expected, Dtype::Bf16);
    }

    #[test]
    fn attention(
        a in 1usize..3, group in 1usize..3, kv_heads in 1usize..3, queries in 1usize..70,
        keys in 1usize..70, width in 1usize..40, masks in 0usize..3, scale in 0.1f32..1.0, seed in any::<u64>(),
    ) {
        let (heads, mut case) = (group * kv_heads, Case::new(seed));
        let (q, _, q_values) = case.input([a, heads, queries, width], Dtype::Bf16);
        let (k, _, k_values) = case.input([a, kv_heads, keys, width], Dtype::Bf16);
        let (v, _, v_values) = case.input([a, kv_heads, keys, width], Dtype::Bf16);
        let shared = if masks == 1 { 1 } else { a };
        // Some keys count more or less, some not at all, the first one always.
        let mask: Vec<f32> = case.values(shared * queries * keys);
        let mask: Vec<f32> = mask.into_iter().enumerate()
            .map(|(i, x)| if x < -0.5 && i % keys > 0 { f32::NEG_INFINITY } else { x }).collect();
        let given = (masks > 0).then(|| case.given([shared, 1, queries, keys], Dtype::Bf16, mask.clone()).0);
        let op = Op::Attention { q, k, v, mask: given, scale, q_chunk: 32, k_chunk: 64, compute: Compute::EXACT };
        let found = case.run_one(op, Dtype::Bf16);
        let mut expected = Vec::new();
        for (row, q) in q_values.chunks(width).enumerate() {
            let (batch, head, query) = (row / (heads * queries), row / queries % heads, row % queries);
            let cached = (batch * kv_heads + head / group) * keys;
            let score = |key: usize| {
                let dot: f64 = q.iter().zip(&k_values[(cached + key) * width..]).map(|(q, k)| q * k).sum();
                let batch = if shared == 1 { 0 } else { batch };
                let added = if masks > 0 { f64::from(mask[(batch * queries + query) * keys + key]) } else { 0.0 };
                (dot * f64::from(scale) + added).exp()
            };
            let scores: Vec<f64> = (0..keys).map(score).collect();
            let sum: f64 = scores.iter().sum();
            for at in 0..width {
                expected.push((0..keys).map(|key| scores[key] / sum * v_values[(cached + key) * width + at]).sum());
            }
        }
        assert_close(&found, &expected, Dtype::Bf16);
    }

    #[test]
    fn parts_are_joined_and_cut(
        shape in [1usize..3, 1usize..3, 1usize..3, 1usize..3], dim in 0usize..4, seed in any::<u64>(),
    ) {
        let shape = [shape[0], shape[1], 32 * shape[2], 32 * shape[3]];
        let unit = if dim < 2 { 1 } else { 32 };
        let mut longer = shape;
        longer[dim] += unit;
        let mut case = Case::new(seed);
        let (a, _, a_values) = case.input(shape, Dtype::Bf16);
        let (b, _, b_values) = case.input(longer, Dtype::Bf16);
        let joined = case.run_one(Op::Concat { parts: vec![a, b], dim }, Dtype::Bf16);
        let mut whole = shape;
        whole[dim] += longer[dim];
        let index = |at: [usize; 4], shape: [usize; 4]| at.iter().zip(shape).fold(0, |i, (at, n)| i * n + at);
        let places = |shape: [usize; 4]| (0..shape.iter().product::<usize>()).map(move |i| {
            let [_, b, c, d] = shape;
            [i / (b * c * d), i / (c * d) % b, i / d % c, i % d]
        });
        let expected: Vec<f64> = places(whole).map(|mut at| {
            if at[dim] < shape[dim] { return a_values[index(at, shape)] }
            at[dim] -= shape[dim];
            b_values[index(at, longer)]
        }).collect();
        assert_close(&joined, &expected, Dtype::Bf16);

        let mut case = Case::new(seed);
        let (x, ..) = case.given(whole, Dtype::Bf16, joined);
        let (mut begin, mut end) = ([0; 4], whole);
        (begin[dim], end[dim]) = (unit, whole[dim] - unit);
        let cut = case.run_one(Op::Slice { x, begin, end }, Dtype::Bf16);
        let kept: [usize; 4] = std::array::from_fn(|dim| end[dim] - begin[dim]);
        let from_whole = places(kept).map(|at| expected[index(std::array::from_fn(|dim| at[dim] + begin[dim]), whole)]);
        assert_close(&cut, &from_whole.collect::<Vec<_>>(), Dtype::Bf16);
    }

    #[test]
    fn results_and_inputs_are_rounded_to_their_dtype(rows in 1usize..40, width in 1usize..80, seed in any::<u64>()) {
        let mut case = Case::new(seed);
        let exact: Vec<f32> = case.values(rows * width).into_iter().map(|x| x * 1.003_7).collect();
        for dtype in [Dtype::F32, Dtype::Bf16, Dtype::Bfp8B] {
            let mut expected = exact.clone();
            match dtype {
                Dtype::Bf16 => expected.iter_mut().for_each(|x| *x = round_to_bf16(*x)),
                Dtype::Bfp8B => expected = bfp8::decode(rows, width, &bfp8::encode(rows, width, &exact)),
                _ => {}
            }
            let mut case = Case::new(seed);
            let (x, ..) = case.given([1, 1, rows, width], Dtype::F32, exact.clone());
            prop_assert_eq!(&case.run_one(Op::MultiplyScalar { x, value: 1.0 }, dtype), &expected);
            let mut case = Case::new(seed);
            let (x, ..) = case.given([1, 1, rows, width], dtype, exact.clone());
            prop_assert_eq!(&case.run_one(Op::MultiplyScalar { x, value: 1.0 }, Dtype::F32), &expected);
        }
    }
}

#[test]
fn rows_are_looked_up_in_what_is_written_and_in_weights() {
    let mut case = Case::new(3);
    let ids = case.builder.input("ids", TensorSpec::rows([1, 1, 1, 32], Dtype::U32)).unwrap();
    let numbers: Vec<u32> = (0..32).map(|i| i * 7 % 20).collect();
    case.numbers.push((ids, numbers.clone()));
    let values = case.values(20 * 48);
    let table = case.builder.input("table", TensorSpec::rows([1, 1, 20, 48], Dtype::Bf16)).unwrap();
    case.inputs.push((table, values.clone()));
    let found = case.run_one(Op::Embedding { ids, table }, Dtype::Bf16);
    let expected = numbers.iter().flat_map(|id| values[*id as usize * 48..][..48].to_vec());
    assert!(expected.eq(found));

    let mut case = Case::new(3);
    let ids = case.builder.input("ids", TensorSpec::rows([1, 1, 1, 32], Dtype::U32)).unwrap();
    case.numbers.push((ids, numbers.clone()));
    let recipe = Recipe::Cosines { positions: 20, head: Spread::dense(64) };
    let table = case.builder.weight("angles", TensorSpec::rows([1, 1, 20, 64], Dtype::Bf16), recipe);
    let found = case.run_one(Op::Embedding { ids, table }, Dtype::Bf16);
    let pairs = found.chunks_exact(64).zip(&numbers);
    pairs.for_each(|(row, id)| assert_eq!(row[0], round_to_bf16((*id as f32).cos())));
}

#[test]
fn weights_of_every_dtype_are_factors_as_they_are_stored() {
    let (inputs, outputs) = (64, 8);
    let recipe = Recipe::Product {
        parts: vec![Part::new("action_out_proj", Spread::dense(outputs))],
        inputs: Spread::dense(inputs),
        first_input: 0,
    };
    for dtype in [Dtype::F32, Dtype::Bf16, Dtype::Bfp8B] {
        let spec = TensorSpec::tiles([1, 1, inputs, outputs], dtype);
        let stored = chip().board.weights.get(&recipe, spec).unwrap().to_f32();
        let mut case = Case::new(5);
        let (x, _, values) = case.input([1, 1, 40, inputs], Dtype::Bf16);
        let weight = case.builder.weight("weight", spec, recipe.clone());
        let op = Op::Linear { x, weight, bias: None, activation: None, compute: Compute::EXACT };
        let found = case.run_one(op, Dtype::F32);
        let stored: Vec<f64> = stored.into_iter().map(f64::from).collect();
        assert_close(&found, &product(&values, &stored, &[0.0; 8]), Dtype::F32);
    }
}

#[test]
fn keys_that_do_not_count_have_no_share() {
    let (queries, keys, counting, width) = (8, 40, 33, 32);
    let attended = |padding: [f32; 2]| {
        let mut case = Case::new(11);
        let (q, ..) = case.input([1, 1, queries, width], Dtype::Bf16);
        let [k, v] = padding.map(|padding| {
            let mut values = case.values(keys * width);
            values[counting * width..].fill(padding);
            case.given([1, 1, keys, width], Dtype::Bf16, values).0
        });
        let row = |_| (0..keys).map(|key| if key < counting { 0.0 } else { f32::NEG_INFINITY });
        let mask = case.given([1, 1, queries, keys], Dtype::Bf16, (0..queries).flat_map(row).collect()).0;
        let compute = Compute::EXACT;
        let op = Op::Attention { q, k, v, mask: Some(mask), scale: 0.2, q_chunk: 32, k_chunk: 32, compute };
        case.run_one(op, Dtype::Bf16)
    };
    // The largest bf16 shows the smallest share.
    assert_eq!(attended([0.0, 0.0]), attended([1e30, 3.38e38]));
}
