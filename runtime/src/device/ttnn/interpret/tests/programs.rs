//! The programs of the tiny golden policies, driven by hand, against the peers' f32.

use std::collections::BTreeMap;
use std::sync::Arc;

use tensact_topology::{LayerRange, ModelSizes, Variant, WeightDtype};

use super::{checkpoint, golden};
use crate::Tensor;
use crate::device::ttnn::interpret::Interpreter;
use crate::device::ttnn::program::{
    HeadLayout, Numerics, PrefixRows, Program, StepShape, TILE, Wiring, expert_state, expert_step,
    prefix_embedding, prefix_layers, vision,
};
use crate::device::ttnn::{Chip, LoadedProgram};
use crate::model::flow::Steps;
use crate::policy::Sample;
use crate::reference::{ReferenceInputs, read_inputs};
use crate::tensor_file::TensorFile;
use crate::verify::Closeness;

const POLICIES: [&str; 2] = ["tiny_pi0", "tiny_pi05"];
const CLOSED: f32 = f32::NEG_INFINITY;

/// A policy on an interpreted chip, with its golden tensors.
struct Bench {
    chip: Arc<Interpreter>,
    sizes: ModelSizes,
    numerics: Numerics,
    file: TensorFile,
    inputs: ReferenceInputs,
    /// What rows that only pad hold.
    padding: f32,
}

/// What the stages make of one sample, valid rows only, under the goldens' names.
type Found = BTreeMap<String, Vec<f32>>;

/// A loaded program, driven by names.
struct Driven(Box<dyn LoadedProgram>);

impl Driven {
    fn write(&mut self, name: &str, values: &[f32]) {
        let id = self.0.program().input(name).unwrap_or_else(|| panic!("no input {name}"));
        self.0.write(id, values).unwrap();
    }

    fn number(&mut self, name: &str, numbers: impl Iterator<Item = usize>) {
        let id = self.0.program().input(name).unwrap();
        self.0.write_numbers(id, &numbers.map(|n| n as u32).collect::<Vec<_>>()).unwrap();
    }

    fn run(&mut self) {
        (0..self.0.program().segments.len()).for_each(|segment| self.0.run(segment).unwrap());
    }

    fn read(&mut self, name: &str) -> Vec<f32> {
        let program = self.0.program();
        let mut outputs = program.segments.iter().flat_map(|segment| &segment.outputs);
        let id = outputs.find(|(output, _)| output == name).unwrap().1;
        self.0.read(id).unwrap()
    }
}

/// A prefix in rows: patches and tokens in whole tiles, and nothing behind them.
struct Prefix {
    /// Row of each valid token, and its row in the goldens.
    rows: Vec<(usize, usize)>,
    count: PrefixRows,
    /// By layer: keys and values `[rows, places]`.
    cache: Vec<[Vec<f32>; 2]>,
}

impl Bench {
    fn new(policy: &str, weights: WeightDtype, padding: f32) -> Self {
        let checkpoint = checkpoint(policy);
        let file = TensorFile::open(&golden(policy, "golden.safetensors")).unwrap();
        let sizes = *checkpoint.sizes();
        let steps = Steps::new(sizes.steps).unwrap();
        let inputs = read_inputs(&file, &sizes, &checkpoint.config().cameras, steps, 0).unwrap();
        let chip = Interpreter::new(&checkpoint, std::num::NonZeroUsize::new(2)).unwrap();
        Self { chip, sizes, numerics: Numerics::of(weights), file, inputs, padding }
    }

    fn load(&self, program: Program) -> Driven {
        Driven(Arc::clone(&self.chip).load(program.into()).unwrap())
    }

    fn layers(layers: usize) -> LayerRange {
        LayerRange::new(0, layers).unwrap()
    }

    /// Rows of `width` values, with more rows of padding behind them.
    fn padded(&self, values: &[f32], width: usize, rows: usize) -> Vec<f32> {
        let mut padded = values.to_vec();
        padded.resize(rows * width, self.padding);
        padded
    }

    fn sample(&self, index: usize) -> Found {
        let mut found = Found::new();
        let sample = &self.inputs.samples[index];
        let images = self.vision(sample, &mut found);
        let mut prefix = self.prefix(index, &images, &mut found);
        let state = self.state(sample, &prefix);
        prefix.cache.iter_mut().flatten().for_each(|values| assert!(values.iter().all(|x| x.is_finite())));
        found.insert("step0.v_t".into(), self.step(sample, &prefix, &state));
        found
    }

    fn vision(&self, sample: &Sample, found: &mut Found) -> Vec<Vec<f32>> {
        let present = sample.input.images.iter().zip(&self.inputs.cameras);
        let (images, names): (Vec<Tensor>, Vec<&String>) =
            present.filter_map(|(image, name)| Some((image.clone()?, name))).unzip();
        let (tokens, width) = (self.image_tokens(&images), self.sizes.vlm.width);
        for (name, tokens) in names.iter().zip(&tokens) {
            found.insert(format!("vision.{name}.projected"), tokens.clone());
        }
        let rows = self.sizes.vision.table_side.pow(2).next_multiple_of(TILE);
        tokens.iter().map(|tokens| self.padded(tokens, width, rows)).collect()
    }

    /// The tokens `[patches, width]` of images of one size.
    fn image_tokens(&self, images: &[Tensor]) -> Vec<Vec<f32>> {
        let sizes = self.sizes.vision;
        let (patch, width) = (sizes.patch, self.sizes.vlm.width);
        let grid = images[0].shape()[1] / patch;
        let (patches, pixels) = (grid * grid, 3 * patch * patch);
        let (rows, places) = (patches.next_multiple_of(TILE), pixels.next_multiple_of(TILE));
        let mut input = Vec::new();
        for image in images {
            let side = grid * patch;
            let mut unfolded = vec![0.0; patches * places];
            for (index, value) in image.data().iter().enumerate() {
                let (channel, y, x) = (index / (side * side), index / side % side, index % side);
                let row = y / patch * grid + x / patch;
                let place = (channel * patch + y % patch) * patch + x % patch;
                unfolded[row * places + place] = *value;
            }
            input.extend(self.padded(&unfolded, places, rows));
        }
        let layers = Self::layers(sizes.layers);
        let program = vision(&sizes, width, layers, images.len(), grid, self.numerics, Wiring::default());
        let mut program = self.load(program.unwrap());
        program.write("images", &input);
        program.run();
        let tokens = |image| program.read(&format!("image {image}"))[..patches * width].to_vec();
        (0..images.len()).map(tokens).collect()
    }

    fn prefix(&self, index: usize, images: &[Vec<f32>], found: &mut Found) -> Prefix {
        let sizes = &self.sizes;
        let sample = &self.inputs.samples[index];
        let patches = sizes.vision.table_side.pow(2);
        let image_rows = patches.next_multiple_of(TILE);
        let tokens = &sample.input.tokens;
        let embedding =
            prefix_embedding(sizes, images.len(), patches, tokens.len(), self.numerics, Wiring::default());
        let mut embedding = self.load(embedding.unwrap());
        for (camera, image) in images.iter().enumerate() {
            embedding.write(&format!("image {camera}"), image);
        }
        // Rows behind the instruction are some other token's.
        let filled = tokens.iter().map(|token| *token as usize).chain(std::iter::repeat(7));
        embedding.number("tokens", filled.take(tokens.len().next_multiple_of(TILE)));
        embedding.run();
        let hidden = embedding.read("hidden");

        let count = PrefixRows::holding(images.len() * image_rows + tokens.len().next_multiple_of(TILE));
        assert_eq!(hidden.len(), count.count() * sizes.vlm.width);
        let present = sample.input.images.iter().enumerate().filter(|(_, image)| image.is_some());
        let mut rows: Vec<(usize, usize)> = Vec::new();
        for (slot, (camera, _)) in present.enumerate() {
            rows.extend((0..patches).map(|patch| (slot * image_rows + patch, camera * patches + patch)));
        }
        let text = self.inputs.cameras.len() * patches;
        let valid = self.inputs.valid_tokens[index].iter().enumerate();
        rows.extend(valid.map(|(i, place)| (images.len() * image_rows + i, text + place)));

        let layers =
            prefix_layers(sizes, Self::layers(sizes.vlm.layers), count, self.numerics, Wiring::default());
        let mut layers = self.load(layers.unwrap());
        layers.write("hidden", &hidden);
        let (mut positions, mut mask) = (vec![0; count.count()], vec![CLOSED; count.count()]);
        for (position, (row, _)) in rows.iter().enumerate() {
            (positions[*row], mask[*row]) = (position, 0.0);
        }
        layers.number("positions", positions.into_iter());
        layers.write("keys that count", &mask);
        layers.run();
        let cache = (0..sizes.vlm.layers)
            .map(|layer| ["keys", "values"].map(|what| layers.read(&format!("{what} {layer}"))))
            .collect::<Vec<_>>();
        for (layer, both) in cache.iter().enumerate() {
            for (what, values) in ["k", "v"].iter().zip(both) {
                let head = HeadLayout::halves(sizes.vlm.head_dim);
                let valid = rows.iter().flat_map(|(row, _)| {
                    let row = &values[row * head.places()..][..head.places()];
                    head.head.places_of_values().map(|place| row[place])
                });
                found.insert(format!("prefix.kv.{layer}.{what}"), valid.collect());
            }
        }
        let spoil = |mut values: Vec<f32>| {
            let places = values.len() / count.count();
            for row in (0..count.count()).filter(|row| !rows.iter().any(|(valid, _)| valid == row)) {
                values[row * places..][..places].fill(self.padding);
            }
            values
        };
        let cache = cache.into_iter().map(|both| both.map(&spoil)).collect();
        Prefix { rows, count, cache }
    }

    /// Keys that count: those of the prefix, and the first ones of each block behind it.
    fn mask(prefix: &Prefix, behind: &[(usize, usize)]) -> Vec<f32> {
        let mut mask = vec![CLOSED; prefix.count.count()];
        prefix.rows.iter().for_each(|(row, _)| mask[*row] = 0.0);
        for (rows, valid) in behind {
            mask.extend((0..*rows).map(|row| if row < *valid { 0.0 } else { CLOSED }));
        }
        mask
    }

    /// Keys and values of π0's state token by layer.
    fn state(&self, sample: &Sample, prefix: &Prefix) -> Vec<[Vec<f32>; 2]> {
        let sizes = &self.sizes;
        if sizes.variant == Variant::Pi05 {
            return Vec::new();
        }
        let layers = Self::layers(sizes.expert.layers);
        let program = expert_state(sizes, layers, prefix.count, self.numerics, Wiring::default());
        let mut program = self.load(program.unwrap());
        program.write("state", &self.padded(&sample.input.state, sizes.state_dim, TILE));
        program.number("positions", std::iter::repeat_n(prefix.rows.len(), TILE));
        program.write("keys that count", &Self::mask(prefix, &[(TILE, 1)]));
        for (layer, [keys, values]) in prefix.cache.iter().enumerate().take(sizes.expert.layers - 1) {
            program.write(&format!("keys {layer}"), keys);
            program.write(&format!("values {layer}"), values);
        }
        program.run();
        let both = |layer| {
            ["state keys", "state values"].map(|what| {
                let values = program.read(&format!("{what} {layer}"));
                let places = values.len() / TILE;
                self.padded(&values[..places], places, TILE)
            })
        };
        (0..sizes.expert.layers).map(both).collect()
    }

    /// The velocity of the first step, in the second of two slots of a batch.
    fn step(&self, sample: &Sample, prefix: &Prefix, state: &[[Vec<f32>; 2]]) -> Vec<f32> {
        let sizes = &self.sizes;
        let rows = sizes.horizon.next_multiple_of(TILE);
        let shape = StepShape { requests: 2, prefix: prefix.count, steps: sizes.steps };
        let program =
            expert_step(sizes, Self::layers(sizes.expert.layers), shape, self.numerics, Wiring::default());
        let mut program = self.load(program.unwrap());
        let noise = self.padded(sample.noise.data(), sizes.action_dim, rows);
        let other: Vec<f32> = noise.iter().map(|x| 0.5 - x).collect();
        program.write("actions", &[other, noise].concat());
        program.number("steps", std::iter::repeat_n(3, rows).chain(std::iter::repeat_n(0, rows)));
        let first = prefix.rows.len() + usize::from(!state.is_empty());
        let positions = || (0..rows).map(|row| if row < sizes.horizon { first + row } else { 0 });
        program.number("positions", positions().chain(positions()));
        let behind = [(TILE * usize::from(!state.is_empty()), 1), (rows, sizes.horizon)];
        for request in 0..2 {
            program.write(&format!("keys that count of {request}"), &Self::mask(prefix, &behind));
            for layer in 0..sizes.expert.layers {
                for (index, what) in ["keys", "values"].iter().enumerate() {
                    program.write(&format!("{what} {layer} of {request}"), &prefix.cache[layer][index]);
                    if let Some(both) = state.get(layer) {
                        program.write(&format!("state {what} {layer} of {request}"), &both[index]);
                    }
                }
            }
        }
        program.run();
        let velocity = program.read("velocity");
        velocity[rows * sizes.action_dim..][..sizes.horizon * sizes.action_dim].to_vec()
    }

    /// The rows of a golden tensor that are valid in a sample.
    fn expected(&self, name: &str, index: usize) -> Vec<f32> {
        self.rows_of(&self.file, name, index)
    }

    fn rows_of(&self, file: &TensorFile, name: &str, index: usize) -> Vec<f32> {
        let tensor = &file.tensors()[name];
        let values = tensor.to_f32();
        let of_sample = values.len() / tensor.shape()[0];
        let own = &values[index * of_sample..][..of_sample];
        if !name.starts_with("prefix.kv") {
            return own.to_vec();
        }
        let masks = self.file.tensors()["prefix.pad_masks"].to_integers().unwrap();
        let tokens = masks.len() / tensor.shape()[0];
        let rows = own.chunks_exact(of_sample / tokens).zip(&masks[index * tokens..]);
        rows.filter(|(_, valid)| **valid != 0).flat_map(|(row, _)| row.to_vec()).collect()
    }
}

#[test]
fn stages_are_the_peers_within_the_rounding_of_their_weights() {
    for policy in POLICIES {
        for (weights, pcc) in [(WeightDtype::Bf16, 0.999), (WeightDtype::Bfp8B, 0.99)] {
            let bench = Bench::new(policy, weights, 0.0);
            for index in 0..bench.inputs.samples.len() {
                for (name, found) in bench.sample(index) {
                    let closeness = Closeness::of(&found, &bench.expected(&name, index));
                    let close = closeness.pcc >= pcc && (closeness.norm_ratio - 1.0).abs() <= 0.02;
                    assert!(close, "{policy} {weights:?} sample {index} {name}: {closeness:?}");
                }
            }
        }
    }
}

#[test]
fn bf16_is_hardly_worse_than_the_peers_bf16() {
    for policy in POLICIES {
        let bench = Bench::new(policy, WeightDtype::Bf16, 0.0);
        let peer = TensorFile::open(&golden(policy, "golden_bf16.safetensors")).unwrap();
        for index in 0..bench.inputs.samples.len() {
            let (name, found) = ("step0.v_t", bench.sample(index));
            let expected = bench.expected(name, index);
            let peers = Closeness::of(&bench.rows_of(&peer, name, index), &expected).relative_error;
            let own = Closeness::of(&found[name], &expected).relative_error;
            // The peer keeps the vision tower in f32.
            assert!(own <= 2.0 * peers, "{policy} sample {index}: {own:.2e}, peer {peers:.2e}");
        }
    }
}

#[test]
fn what_padding_rows_hold_changes_no_bit_of_valid_rows() {
    for policy in POLICIES {
        for weights in [WeightDtype::Bf16, WeightDtype::Bfp8B] {
            let [clean, spoiled] = [0.0, 1e3].map(|padding| Bench::new(policy, weights, padding).sample(0));
            for (name, clean) in clean {
                assert!(clean == spoiled[&name], "{policy} {weights:?} {name}");
            }
        }
    }
}

#[test]
fn larger_images_have_a_larger_table_of_positions() {
    let bench = Bench::new("tiny_pi0", WeightDtype::Bf16, 1e3);
    let file = TensorFile::open(&golden("tiny_pi0", "golden_resize_84.safetensors")).unwrap();
    let images = &file.tensors()["in.image.0"];
    let [_, channels, side, _] = images.shape().try_into().unwrap();
    let image = images.to_f32()[..channels * side * side].to_vec();
    let tokens = bench.image_tokens(&[Tensor::new([channels, side, side], image).unwrap()]).remove(0);
    let expected = file.tensors()["vision.0.projected"].to_f32();
    let closeness = Closeness::of(&tokens, &expected[..tokens.len()]);
    assert!(tokens.len() == 36 * 128 && closeness.pcc >= 0.999, "{closeness:?}");
    assert!((closeness.norm_ratio - 1.0).abs() <= 0.01, "{closeness:?}");
}
