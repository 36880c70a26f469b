//! What a recipe makes, some rows at a time: large weights never exist as a whole in f32.

use std::ops::Range;

use super::WeightError;
use crate::checkpoint::Checkpoint;
use crate::checkpoint::names::{TOKEN_TABLE, VISION};
use crate::device::host::HostDevice;
use crate::device::host::activation::round_to_bf16;
use crate::device::host::rope::Rotation;
use crate::device::host::time::{mixed_time, modulation};
use crate::device::host::vision::resize_positions;
use crate::device::ttnn::program::{Part, Recipe, Spread};
use crate::model::flow::Steps;
use crate::tensor_file::{StoredTensor, widen};

/// A matrix that a recipe describes.
pub(super) enum Source {
    /// Linear layers side by side, transposed.
    Product(Product),
    /// Rows of the token table, times a factor.
    Tokens { table: StoredTensor, factor: f32 },
    /// Every row is the same.
    Repeated { row: Vec<f32>, rows: usize },
    /// What is small, or follows from other weights.
    Made { columns: usize, values: Vec<f32> },
}

/// A layer of a product.
pub(super) struct Layer {
    /// `[outputs, inputs]`, with an input row's bytes one behind the other.
    weight: StoredTensor,
    outputs: Spread,
    /// Place of its first output.
    first: usize,
    /// What its outputs are multiplied by.
    factor: f32,
}

pub(super) struct Product {
    layers: Vec<Layer>,
    inputs: Spread,
    first_input: usize,
    columns: usize,
}

impl Source {
    /// What `recipe` makes of a checkpoint.
    pub(super) fn of(
        device: &HostDevice,
        checkpoint: &Checkpoint,
        recipe: &Recipe,
    ) -> Result<Self, WeightError> {
        let reader = Reader { checkpoint };
        Ok(match recipe {
            Recipe::Product { parts, inputs, first_input } => {
                Self::Product(reader.product(parts, *inputs, *first_input)?)
            }
            Recipe::Bias { parts } => made_row(reader.biases(parts)?),
            Recipe::Vector { tensor } => made_row(reader.tensor(tensor)?.to_f32()),
            Recipe::NormScale { norm } => {
                let weight = reader.tensor(&format!("{norm}.weight"))?.to_f32();
                made_row(weight.into_iter().map(|w| 1.0 + w).collect())
            }
            Recipe::TokenTable { factor } => Self::Tokens {
                table: reader.tensor(TOKEN_TABLE)?.clone(),
                // The peers multiply in the type of the weights.
                factor: round_to_bf16(*factor),
            },
            Recipe::Positions { grid, rows } => reader.positions(*grid, *rows)?,
            Recipe::KeyMask { valid, side } => {
                let mask = |column| if column < *valid { 0.0 } else { f32::NEG_INFINITY };
                Self::Repeated { row: (0..*side).map(mask).collect(), rows: *side }
            }
            Recipe::Zeros { shape: [rows, columns] } => {
                Self::Repeated { row: vec![0.0; *columns], rows: *rows }
            }
            Recipe::Cosines { positions, head } => rotation(*positions, *head, |rotation| &rotation.cos),
            Recipe::Sines { positions, head } => rotation(*positions, *head, |rotation| &rotation.sin),
            Recipe::MixedTime { steps } => {
                reader.tensor("action_time_mlp_in.weight")?;
                let columns = checkpoint.sizes().expert.width;
                Self::Made { columns, values: mixed_time(device, checkpoint, Steps::new(*steps)?) }
            }
            Recipe::Modulation { norm, steps } => {
                reader.tensor(&format!("{norm}.dense.weight"))?;
                let columns = 3 * checkpoint.sizes().expert.width;
                Self::Made { columns, values: modulation(device, checkpoint, norm, Steps::new(*steps)?) }
            }
        })
    }

    /// Rows and columns.
    pub(super) fn shape(&self) -> [usize; 2] {
        match self {
            Source::Product(product) => [product.inputs.places(), product.columns],
            Source::Tokens { table, .. } => [table.shape()[0], row_values(table)],
            Source::Repeated { row, rows } => [*rows, row.len()],
            Source::Made { columns, values } => [values.len() / columns.max(&1), *columns],
        }
    }

    /// The tensors that all values come from, where it is they and not something that was computed.
    pub(super) fn tensors(&self) -> Option<Vec<&StoredTensor>> {
        match self {
            Source::Product(product) => Some(product.layers.iter().map(|layer| &layer.weight).collect()),
            Source::Tokens { table, .. } => Some(vec![table]),
            Source::Repeated { .. } | Source::Made { .. } => None,
        }
    }

    /// Writes some rows into zeros.
    pub(super) fn fill(&self, rows: Range<usize>, out: &mut [f32]) {
        match self {
            Source::Product(product) => product.fill(rows, out),
            Source::Tokens { table, factor } => {
                let row_bytes = table.bytes().len() / table.shape()[0];
                widen(table.dtype(), &table.bytes()[rows.start * row_bytes..rows.end * row_bytes], out);
                out.iter_mut().for_each(|x| *x = round_to_bf16(*x) * factor);
            }
            Source::Repeated { row, .. } => {
                out.chunks_exact_mut(row.len().max(1)).for_each(|out| out.copy_from_slice(row));
            }
            Source::Made { columns, values } => {
                out.copy_from_slice(&values[rows.start * columns..][..out.len()])
            }
        }
    }
}

fn made_row(values: Vec<f32>) -> Source {
    Source::Made { columns: values.len(), values }
}

/// Values of one row, all dimensions but the first side by side.
fn row_values(tensor: &StoredTensor) -> usize {
    tensor.shape()[1..].iter().product()
}

/// One value for each pair of a head's halves, in both halves.
fn rotation(positions: usize, head: Spread, pick: impl Fn(&Rotation) -> &Vec<f32>) -> Source {
    let rotation = Rotation::new(0..positions, head.values());
    let (pairs, columns) = (head.values() / 2, head.places());
    let mut values = vec![0.0; positions * columns];
    for (row, values) in values.chunks_exact_mut(columns).enumerate() {
        let angles = &pick(&rotation)[row * pairs..][..pairs];
        for (place, angle) in head.places_of_values().zip(angles.iter().cycle()) {
            values[place] = *angle;
        }
    }
    Source::Made { columns, values }
}

/// Finds tensors and holds them against what a recipe takes.
struct Reader<'a> {
    checkpoint: &'a Checkpoint,
}

impl Reader<'_> {
    fn tensor(&self, name: &str) -> Result<&StoredTensor, WeightError> {
        self.checkpoint.find(name).ok_or_else(|| WeightError::Missing(name.into()))
    }

    fn product(&self, parts: &[Part], inputs: Spread, first_input: usize) -> Result<Product, WeightError> {
        let mut columns = 0;
        let mut layers = Vec::new();
        for Part { layer, outputs, factor } in parts {
            let name = format!("{layer}.weight");
            let weight = self.tensor(&name)?;
            let fits =
                weight.shape()[0] == outputs.values() && row_values(weight) >= first_input + inputs.values();
            if !fits {
                let expected = format!("[{}, {} or more]", outputs.values(), first_input + inputs.values());
                return Err(WeightError::Tensor { tensor: name, found: weight.shape().into(), expected });
            }
            layers.push(Layer { weight: weight.clone(), outputs: *outputs, first: columns, factor: *factor });
            columns += outputs.places();
        }
        Ok(Product { layers, inputs, first_input, columns })
    }

    fn biases(&self, parts: &[Part]) -> Result<Vec<f32>, WeightError> {
        let mut row = Vec::new();
        for Part { layer, outputs, factor } in parts {
            let name = format!("{layer}.bias");
            let bias = self.tensor(&name)?;
            if bias.elements() != outputs.values() {
                let expected = format!("[{}]", outputs.values());
                return Err(WeightError::Tensor { tensor: name, found: bias.shape().into(), expected });
            }
            let first = row.len();
            row.resize(first + outputs.places(), 0.0);
            for (place, value) in outputs.places_of_values().zip(bias.to_f32()) {
                row[first + place] = value * factor;
            }
        }
        Ok(row)
    }

    fn positions(&self, grid: usize, rows: usize) -> Result<Source, WeightError> {
        let name = format!("{VISION}.embeddings.position_embedding.weight");
        let table = self.tensor(&name)?;
        let (side, columns) = (self.checkpoint.sizes().vision.table_side, row_values(table));
        if rows < grid * grid || grid == 0 {
            let expected = format!("a table that fits {rows} rows for a grid of {grid} × {grid}");
            return Err(WeightError::Tensor { tensor: name, found: table.shape().into(), expected });
        }
        let mut values = resize_positions(&table.to_f32(), side, grid).into_owned();
        values.resize(rows * columns, 0.0);
        Ok(Source::Made { columns, values })
    }
}

impl Product {
    fn fill(&self, rows: Range<usize>, out: &mut [f32]) {
        for run in self.runs(rows.clone()) {
            let mut values = vec![0.0; run.values.len()];
            for layer in &self.layers {
                let width = layer.weight.bytes().len() / layer.weight.elements();
                let row = row_values(&layer.weight);
                for (output, place) in layer.outputs.places_of_values().enumerate() {
                    let start = output * row + self.first_input + run.values.start;
                    let bytes = &layer.weight.bytes()[start * width..][..values.len() * width];
                    widen(layer.weight.dtype(), bytes, &mut values);
                    let column = layer.first + place;
                    let places = out[(run.place - rows.start) * self.columns + column..].iter_mut();
                    places
                        .step_by(self.columns)
                        .zip(&values)
                        .for_each(|(out, value)| *out = value * layer.factor);
                }
            }
        }
    }

    /// The inputs that stand in these places, as runs without padding between them.
    fn runs(&self, places: Range<usize>) -> Vec<Run> {
        let Spread { groups, len, padded } = self.inputs;
        let run = |group: usize| {
            let (first, end) = (group * padded, group * padded + len);
            let (start, end) = (places.start.max(first), places.end.min(end));
            (start < end)
                .then(|| Run { place: start, values: group * len + start - first..group * len + end - first })
        };
        (0..groups).filter_map(run).collect()
    }
}

/// Neighbouring inputs.
struct Run {
    /// Where the first one stands.
    place: usize,
    /// Which of the values they are.
    values: Range<usize>,
}
