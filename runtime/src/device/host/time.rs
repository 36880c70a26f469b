//! Everything of the suffix that depends on time alone, computed once for each number of steps.

use std::sync::{Arc, Mutex, PoisonError};

use tensact_topology::{LayerRange, Variant};

use super::activation::silu_all;
use super::decoder::BlockName;
use super::gemm::{Packed, multiply_values};
use super::linear::Linear;
use super::norm::Modulation;
use super::{ComputeDtype, HostDevice};
use crate::checkpoint::Checkpoint;
use crate::checkpoint::names::EXPERT;
use crate::model::flow::Steps;

/// Numbers of steps whose tables are kept.
const KEPT_TABLES: usize = 4;

/// `[sin(w t), cos(w t)]` with `w = 2π / period` and `width / 2` periods in geometric series, computed in f64
/// (openpi `create_sinusoidal_pos_embedding`).
pub(super) fn embed_time(time: f32, width: usize, (min, max): (f64, f64)) -> Vec<f32> {
    let half = width / 2;
    let angle = |i: usize| {
        let period = min * (max / min).powf(i as f64 / (half - 1) as f64);
        std::f64::consts::TAU / period * f64::from(time)
    };
    (0..half).map(|i| angle(i).sin() as f32).chain((0..half).map(|i| angle(i).cos() as f32)).collect()
}

/// What a slice of the expert needs to know of the steps of one integration.
pub(super) struct TimeTable {
    steps: Steps,
    /// π0, first slice: the time's share of `action_time_mlp_in`, bias included, `[steps][width]`.
    pub(super) mixed: Vec<Vec<f32>>,
    /// π0.5: modulations of the two norms of each layer of the slice, `[steps][layer][2]`.
    pub(super) layers: Vec<Vec<[Modulation; 2]>>,
    /// π0.5, last slice: modulation of the final norm, `[steps]`.
    pub(super) last: Vec<Modulation>,
}

/// Makes the tables of one slice, and keeps those in use.
pub(super) struct TimeTables {
    source: Source,
    width: usize,
    periods: (f64, f64),
    kept: Mutex<Vec<Arc<TimeTable>>>,
}

/// The weights that see time.
enum Source {
    /// π0: the second half of `action_time_mlp_in`'s columns, where the slice embeds actions.
    Mixed { mlp_in: Option<ActionTimeMlp> },
    /// π0.5.
    Adaptive(Box<AdaptiveSource>),
}

struct AdaptiveSource {
    time_in: Linear,
    time_out: Linear,
    /// Dense layers of the two norms of each layer of the slice.
    norms: Vec<[Linear; 2]>,
    /// Dense layer of the final norm, in the last slice.
    last: Option<Linear>,
}

/// π0's first MLP layer over an action token beside the time embedding, cut between the two.
#[derive(Clone)]
pub(super) struct ActionTimeMlp {
    action: Arc<Packed>,
    time: Arc<Packed>,
    bias: Vec<f32>,
}

impl ActionTimeMlp {
    pub(super) fn load(device: &HostDevice, checkpoint: &Checkpoint) -> Self {
        let weight = checkpoint.tensor("action_time_mlp_in.weight");
        let half = |inner| Arc::new(Packed::side_by_side(device, &[weight], inner, ComputeDtype::F32));
        let width = weight.shape()[0];
        Self {
            action: half(0..width),
            time: half(width..2 * width),
            bias: checkpoint.tensor("action_time_mlp_in.bias").to_f32(),
        }
    }

    /// The action tokens' share, without bias: `[rows, width]` to the same.
    pub(super) fn apply_to_actions(&self, device: &HostDevice, x: &[f32]) -> Vec<f32> {
        multiply_values(device, x, &*self.action)
    }

    fn apply_to_time(&self, device: &HostDevice, time: &[f32]) -> Vec<f32> {
        let mut y = multiply_values(device, time, &*self.time);
        for y in y.chunks_exact_mut(self.bias.len()) {
            y.iter_mut().zip(&self.bias).for_each(|(y, b)| *y += b);
        }
        y
    }
}

impl TimeTables {
    /// For a slice of the expert; makes the table of the checkpoint's own number of steps.
    pub(super) fn load(
        device: &HostDevice,
        checkpoint: &Checkpoint,
        layers: LayerRange,
        mlp_in: Option<ActionTimeMlp>,
    ) -> Self {
        let sizes = checkpoint.sizes();
        let linear = |name: &str| Linear::load_in_f32(device, checkpoint, name);
        let source = match sizes.variant {
            Variant::Pi0 => Source::Mixed { mlp_in },
            Variant::Pi05 => Source::Adaptive(Box::new(AdaptiveSource {
                time_in: linear("time_mlp_in"),
                time_out: linear("time_mlp_out"),
                norms: layers
                    .iter()
                    .map(|layer| BlockName::new(EXPERT, layer).norms().map(|n| linear(&format!("{n}.dense"))))
                    .collect(),
                last: (layers.end() == sizes.expert.layers).then(|| linear(&format!("{EXPERT}.norm.dense"))),
            })),
        };
        let periods = checkpoint.config().periods;
        let tables = Self { source, width: sizes.expert.width, periods, kept: Mutex::default() };
        if let Ok(steps) = Steps::new(sizes.steps) {
            tables.get(device, steps);
        }
        tables
    }

    /// The table for this number of steps: kept, or made now.
    pub(super) fn get(&self, device: &HostDevice, steps: Steps) -> Arc<TimeTable> {
        // A poisoned list is still a list of whole tables.
        let kept = || self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let find = |kept: &[Arc<TimeTable>]| kept.iter().find(|table| table.steps == steps).map(Arc::clone);
        if let Some(table) = find(&kept()) {
            return table;
        }
        // Made without the lock, so that requests whose tables are there go on.
        let table = Arc::new(self.make(device, steps));
        let mut kept = kept();
        if let Some(table) = find(&kept) {
            return table;
        }
        // The first one is that of the checkpoint's own number of steps and stays.
        if kept.len() == KEPT_TABLES {
            kept.remove(1);
        }
        kept.push(Arc::clone(&table));
        table
    }

    fn make(&self, device: &HostDevice, steps: Steps) -> TimeTable {
        let times = embed_steps(steps, self.width, self.periods);
        let mut table = TimeTable { steps, mixed: Vec::new(), layers: Vec::new(), last: Vec::new() };
        match &self.source {
            Source::Mixed { mlp_in: None } => {}
            Source::Mixed { mlp_in: Some(mlp_in) } => {
                let mixed = mlp_in.apply_to_time(device, &times);
                table.mixed = mixed.chunks_exact(self.width).map(<[f32]>::to_vec).collect();
            }
            Source::Adaptive(source) => {
                let AdaptiveSource { time_in, time_out, norms, last } = &**source;
                let conditions = condition(device, time_in, time_out, &times);
                let modulations = |dense: &Linear| {
                    Modulation::from_dense(&dense.apply_in_f32(device, &conditions), self.width)
                };
                table.layers.resize_with(steps.count(), Vec::new);
                for [first, second] in norms {
                    let both = modulations(first).into_iter().zip(modulations(second));
                    table.layers.iter_mut().zip(both).for_each(|(layers, (a, b))| layers.push([a, b]));
                }
                table.last = last.as_ref().map(modulations).unwrap_or_default();
            }
        }
        table
    }
}

/// The time embeddings of all steps, one row each.
fn embed_steps(steps: Steps, width: usize, periods: (f64, f64)) -> Vec<f32> {
    steps.iter().flat_map(|step| embed_time(step.time(), width, periods)).collect()
}

/// `silu(time_mlp_out(silu(time_mlp_in(time))))`.
fn condition(device: &HostDevice, time_in: &Linear, time_out: &Linear, time: &[f32]) -> Vec<f32> {
    let activated = |mut x: Vec<f32>| {
        silu_all(&mut x);
        x
    };
    activated(time_out.apply_in_f32(device, &activated(time_in.apply_in_f32(device, time))))
}

/// π0: the time's share of `action_time_mlp_in`, bias included, `[steps, width]`.
pub(in crate::device) fn mixed_time(device: &HostDevice, checkpoint: &Checkpoint, steps: Steps) -> Vec<f32> {
    let times = embed_steps(steps, checkpoint.sizes().expert.width, checkpoint.config().periods);
    ActionTimeMlp::load(device, checkpoint).apply_to_time(device, &times)
}

/// π0.5: `1 + scale`, shift and gate of the adaptive norm `norm` at each step, `[steps, 3 · width]`.
pub(in crate::device) fn modulation(
    device: &HostDevice,
    checkpoint: &Checkpoint,
    norm: &str,
    steps: Steps,
) -> Vec<f32> {
    let dense = Linear::load_in_f32(device, checkpoint, &format!("{norm}.dense"));
    let conditions = conditions(device, checkpoint, steps).concat();
    let rows =
        Modulation::from_dense(&dense.apply_in_f32(device, &conditions), checkpoint.sizes().expert.width);
    rows.into_iter().flat_map(|row| [row.scale, row.shift, row.gate].concat()).collect()
}

/// The time condition of each step of π0.5, `[steps][width]`; nothing for π0.
pub(super) fn conditions(device: &HostDevice, checkpoint: &Checkpoint, steps: Steps) -> Vec<Vec<f32>> {
    if checkpoint.sizes().variant == Variant::Pi0 {
        return Vec::new();
    }
    let load = |name| Linear::load_in_f32(device, checkpoint, name);
    let (time_in, time_out) = (load("time_mlp_in"), load("time_mlp_out"));
    let width = checkpoint.sizes().expert.width;
    let times = embed_steps(steps, width, checkpoint.config().periods);
    condition(device, &time_in, &time_out, &times).chunks_exact(width).map(<[f32]>::to_vec).collect()
}

impl Modulation {
    /// Splits rows of an adaptive norm's dense layer: scale, shift and gate side by side.
    fn from_dense(rows: &[f32], width: usize) -> Vec<Self> {
        let split = |row: &[f32]| Self {
            scale: row[..width].iter().map(|scale| 1.0 + scale).collect(),
            shift: row[width..2 * width].to_vec(),
            gate: row[2 * width..].to_vec(),
        };
        rows.chunks_exact(3 * width).map(split).collect()
    }
}
