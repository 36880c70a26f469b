//! The Gemma action expert: one denoising step for any number of requests, each at its own step.

use std::sync::Arc;

use tensact_topology::{DecoderSizes, LayerRange, ModelSizes, StageKind, Variant};

use super::activation::silu;
use super::attention::attention;
use super::decoder::{BlockName, DecoderBlock};
use super::linear::Linear;
use super::norm::{Modulation, RmsNorm};
use super::prefix::split;
use super::rope::Rotation;
use super::time::{ActionTimeMlp, TimeTable, TimeTables, conditions};
use super::{HostDevice, of_shape};
use crate::Tensor;
use crate::checkpoint::Checkpoint;
use crate::checkpoint::names::EXPERT;
use crate::device::SliceError;
use crate::model::flow::{Step, Steps};
use crate::model::{KeyValue, KvCache};

const STAGE: StageKind = StageKind::Expert;

/// Some consecutive blocks of the action expert. The first slice embeds state and actions, the last one gives the
/// velocity.
pub struct ExpertSlice {
    device: Arc<HostDevice>,
    sizes: ModelSizes,
    layers: LayerRange,
    embedding: Option<SuffixEmbedding>,
    blocks: Vec<(DecoderBlock, Norms)>,
    projection: Option<(FinalNorm, Linear)>,
    times: TimeTables,
}

struct SuffixEmbedding {
    action: Linear,
    /// π0 only.
    pi0: Option<Box<Pi0Embedding>>,
}

/// What π0 has and π0.5 does not: a state token, and time mixed into the action tokens.
struct Pi0Embedding {
    state: Linear,
    mlp_in: ActionTimeMlp,
    mlp_out: Linear,
}

/// The two norms of a block: their scales, or nothing where time steers them.
enum Norms {
    Plain([Vec<f32>; 2]),
    Adaptive,
}

enum FinalNorm {
    Plain(Vec<f32>),
    Adaptive,
}

/// One request's part of a denoising step.
#[derive(Debug, Clone, Copy)]
pub struct StepInput<'a> {
    /// Noisy actions `[horizon, action_dim]` (first slice) or hidden states `[horizon, width]`.
    pub x: &'a Tensor,
    /// The request's own step.
    pub step: Step,
    /// Keys and values of its prefix, and of its state token, for the layers of this slice.
    pub cache: &'a KvCache,
}

impl ExpertSlice {
    /// Loads some blocks.
    ///
    /// # Errors
    /// When the expert has no such blocks.
    pub fn load(
        device: &Arc<HostDevice>,
        checkpoint: &Checkpoint,
        layers: LayerRange,
    ) -> Result<Self, SliceError> {
        let sizes = *checkpoint.sizes();
        let depth = sizes.expert.layers;
        SliceError::check_layers(STAGE, depth, layers)?;
        let embedding = (layers.start() == 0).then(|| SuffixEmbedding::load(device, checkpoint));
        let mlp_in = embedding.as_ref().and_then(|e| e.pi0.as_ref()).map(|pi0| pi0.mlp_in.clone());
        let block = |layer| {
            let name = BlockName::new(EXPERT, layer);
            let norms = match sizes.variant {
                Variant::Pi0 => Norms::Plain(name.norms().map(|n| RmsNorm::load_scale(checkpoint, &n))),
                Variant::Pi05 => Norms::Adaptive,
            };
            (DecoderBlock::load(device, checkpoint, &name, sizes.expert), norms)
        };
        let projection = (layers.end() == depth).then(|| {
            let norm = match sizes.variant {
                Variant::Pi0 => FinalNorm::Plain(RmsNorm::load_scale(checkpoint, &format!("{EXPERT}.norm"))),
                Variant::Pi05 => FinalNorm::Adaptive,
            };
            (norm, Linear::load_with_bias(device, checkpoint, "action_out_proj").in_f32())
        });
        Ok(Self {
            device: Arc::clone(device),
            sizes,
            layers,
            embedding,
            blocks: layers.iter().map(block).collect(),
            projection,
            times: TimeTables::load(device, checkpoint, layers, mlp_in),
        })
    }

    /// The layers of this slice.
    pub fn layers(&self) -> LayerRange {
        self.layers
    }

    /// π0's state token, which sees neither time nor actions: appends its keys and values to the caches of this slice.
    /// Takes states `[requests, state_dim]` (first slice) or hidden states `[requests, width]`, gives hidden states for
    /// the next slice, or nothing after the last layer. π0.5 has no state token and no use for this.
    ///
    /// # Errors
    /// When shapes or caches do not fit.
    pub fn cache_state(
        &self,
        input: &Tensor,
        caches: &mut [&mut KvCache],
    ) -> Result<Option<Tensor>, SliceError> {
        let mut hidden = if self.embedding.is_some() { self.embed_state(input)? } else { input.clone() };
        let sizes = self.sizes.expert;
        if hidden.shape() != [caches.len(), sizes.width] {
            return Err(self.shape(
                "state tokens",
                format!("[{}, {}]", caches.len(), sizes.width),
                hidden.shape(),
            ));
        }
        for cache in caches.iter() {
            self.check_cache(cache)?;
        }
        let rotation = Rotation::new(caches.iter().map(|cache| cache.tokens()), sizes.head_dim);
        let ones = vec![1; caches.len()];
        for (index, (layer, (block, norms))) in self.layers.iter().zip(&self.blocks).enumerate() {
            let Norms::Plain([first, second]) = norms else {
                return Err(self.not_here("a state token: π0.5 takes the state as text"));
            };
            let norms = [RmsNorm::Plain(first), RmsNorm::Plain(second)];
            let normed = norms[0].apply(&self.device, hidden.data(), sizes.width);
            let (k, v) = block.keys_values(&self.device, &normed, &rotation);
            for (cache, new) in caches.iter_mut().zip(split(&ones, sizes.kv_width(), &k, &v)) {
                let entry = &mut cache.entries_mut()[index];
                *entry = joined(entry, new.keys.data(), new.values.data());
            }
            if layer + 1 == sizes.layers {
                return Ok(None);
            }
            let q = block.queries(&self.device, &normed, &rotation);
            let caches = caches.iter().map(|cache| cache.entry(index));
            let attended = self.attend(block, &q, 1, caches);
            block.close(&self.device, hidden.data_mut(), attended, &norms);
        }
        Ok(Some(hidden))
    }

    /// One denoising step of all requests. Gives hidden states `[horizon, width]`, or velocities
    /// `[horizon, action_dim]` (last slice), one per request.
    ///
    /// # Errors
    /// When shapes or caches do not fit.
    pub fn step(&self, inputs: &[StepInput<'_>]) -> Result<Vec<Tensor>, SliceError> {
        let mut hidden =
            if self.embedding.is_some() { self.embed_actions(inputs)? } else { self.concat(inputs)? };
        hidden = self.blocks(hidden, inputs)?;
        if self.projection.is_some() {
            let velocity = self.project(&self.normalise(&hidden, inputs)?)?;
            return Ok(self.cut(velocity));
        }
        Ok(self.cut(hidden))
    }

    /// States `[requests, state_dim]` to state tokens `[requests, width]`.
    ///
    /// # Errors
    /// When the shape does not fit, the policy is π0.5, or this is not the first slice.
    pub fn embed_state(&self, states: &Tensor) -> Result<Tensor, SliceError> {
        let Some(Pi0Embedding { state, .. }) = self.embedding.as_ref().and_then(|e| e.pi0.as_deref()) else {
            return Err(self.not_here("the state projection"));
        };
        match *states.shape() {
            [requests, width] if width == state.inputs() => {
                Ok(of_shape([requests, state.outputs()], state.apply(&self.device, states.data())))
            }
            _ => Err(self.shape("states", format!("[requests, {}]", state.inputs()), states.shape())),
        }
    }

    /// Noisy actions of all requests to action tokens `[requests × horizon, width]`.
    ///
    /// # Errors
    /// When a shape does not fit, or this is not the first slice.
    pub fn embed_actions(&self, inputs: &[StepInput<'_>]) -> Result<Tensor, SliceError> {
        let ModelSizes { horizon, action_dim, .. } = self.sizes;
        let mut actions = Vec::with_capacity(inputs.len() * horizon * action_dim);
        for input in inputs {
            if input.x.shape() != [horizon, action_dim] {
                return Err(self.shape("actions", format!("[{horizon}, {action_dim}]"), input.x.shape()));
            }
            actions.extend_from_slice(input.x.data());
        }
        let Some(embedding) = &self.embedding else { return Err(self.not_here("the action projection")) };
        let mut hidden = embedding.action.apply(&self.device, &actions);
        if let Some(Pi0Embedding { mlp_in, mlp_out, .. }) = embedding.pi0.as_deref() {
            hidden = mlp_in.apply_to_actions(&self.device, &hidden);
            let width = self.sizes.expert.width;
            for (rows, (table, step)) in hidden.chunks_exact_mut(horizon * width).zip(self.tables(inputs)) {
                for row in rows.chunks_exact_mut(width) {
                    let time = &table.mixed[step.index()];
                    row.iter_mut().zip(time).for_each(|(x, time)| *x = silu(*x + time));
                }
            }
            hidden = mlp_out.apply(&self.device, &hidden);
        }
        Ok(of_shape([inputs.len() * horizon, self.sizes.expert.width], hidden))
    }

    /// All blocks of the slice, `[requests × horizon, width]` to the same.
    ///
    /// # Errors
    /// When shapes or caches do not fit.
    pub fn blocks(&self, mut hidden: Tensor, inputs: &[StepInput<'_>]) -> Result<Tensor, SliceError> {
        let DecoderSizes { width, head_dim, .. } = self.sizes.expert;
        let horizon = self.sizes.horizon;
        self.check_rows(&hidden, inputs.len())?;
        for input in inputs {
            self.check_cache(input.cache)?;
        }
        let positions = inputs.iter().flat_map(|input| (0..horizon).map(|i| input.cache.tokens() + i));
        let rotation = Rotation::new(positions, head_dim);
        let tables = self.tables(inputs);
        for (index, (block, norms)) in self.blocks.iter().enumerate() {
            let rows = |which: usize| {
                self.per_row(&tables, |table, step| table.layers.get(step).map(|norms| &norms[index][which]))
            };
            let (first, second) = (rows(0), rows(1));
            let norms = match norms {
                Norms::Plain([first, second]) => [RmsNorm::Plain(first), RmsNorm::Plain(second)],
                Norms::Adaptive => [RmsNorm::Adaptive(&first), RmsNorm::Adaptive(&second)],
            };
            let normed = norms[0].apply(&self.device, hidden.data(), width);
            let (k, v) = block.keys_values(&self.device, &normed, &rotation);
            let q = block.queries(&self.device, &normed, &rotation);
            let rows = horizon * self.sizes.expert.kv_width();
            let entries: Vec<KeyValue> = (inputs.iter().zip(k.chunks_exact(rows).zip(v.chunks_exact(rows))))
                .map(|(input, (k, v))| joined(input.cache.entry(index), k, v))
                .collect();
            let attended = self.attend(block, &q, horizon, entries.iter());
            block.close(&self.device, hidden.data_mut(), attended, &norms);
        }
        Ok(hidden)
    }

    /// The norm behind the last block, `[requests × horizon, width]` to the same.
    ///
    /// # Errors
    /// When the shape does not fit, or this is not the last slice.
    pub fn normalise(&self, hidden: &Tensor, inputs: &[StepInput<'_>]) -> Result<Tensor, SliceError> {
        self.check_rows(hidden, inputs.len())?;
        let (norm, _) = self.projection.as_ref().ok_or_else(|| self.not_here("the final norm"))?;
        let tables = self.tables(inputs);
        let rows = self.per_row(&tables, |table, step| table.last.get(step));
        let norm = match norm {
            FinalNorm::Plain(scale) => RmsNorm::Plain(scale),
            FinalNorm::Adaptive => RmsNorm::Adaptive(&rows),
        };
        let width = self.sizes.expert.width;
        Ok(of_shape(hidden.shape(), norm.apply(&self.device, hidden.data(), width)))
    }

    /// Normalised hidden states to velocities `[requests × horizon, action_dim]`, in f32.
    ///
    /// # Errors
    /// When the shape does not fit, or this is not the last slice.
    pub fn project(&self, normed: &Tensor) -> Result<Tensor, SliceError> {
        let (_, projection) =
            self.projection.as_ref().ok_or_else(|| self.not_here("the action projection"))?;
        if normed.width() != projection.inputs() {
            return Err(self.shape(
                "hidden states",
                format!("[rows, {}]", projection.inputs()),
                normed.shape(),
            ));
        }
        let velocity = projection.apply(&self.device, normed.data());
        Ok(of_shape([normed.rows(), projection.outputs()], velocity))
    }

    /// π0.5's time condition of each step, `[steps][width]`, which is otherwise only seen through the norms.
    pub fn conditions(device: &HostDevice, checkpoint: &Checkpoint, steps: Steps) -> Vec<Vec<f32>> {
        conditions(device, checkpoint, steps)
    }

    /// Each request's time table, and its step.
    fn tables(&self, inputs: &[StepInput<'_>]) -> Vec<(Arc<TimeTable>, Step)> {
        inputs.iter().map(|input| (self.times.get(&self.device, input.step.of()), input.step)).collect()
    }

    /// The modulation of each row of a batch; none where norms are plain.
    fn per_row<'a>(
        &self,
        tables: &'a [(Arc<TimeTable>, Step)],
        pick: impl Fn(&'a TimeTable, usize) -> Option<&'a Modulation>,
    ) -> Vec<&'a Modulation> {
        tables
            .iter()
            .filter_map(|(table, step)| pick(table, step.index()))
            .flat_map(|modulation| std::iter::repeat_n(modulation, self.sizes.horizon))
            .collect()
    }

    /// The rows of each request (`tokens` of them) attend to its own keys and values.
    fn attend<'a>(
        &self,
        block: &DecoderBlock,
        q: &[f32],
        tokens: usize,
        entries: impl Iterator<Item = &'a KeyValue>,
    ) -> Vec<f32> {
        q.chunks_exact(tokens * self.sizes.expert.q_width())
            .zip(entries)
            .flat_map(|(q, entry)| {
                attention(&self.device, q, entry.keys.data(), entry.values.data(), block.heads())
            })
            .collect()
    }

    fn concat(&self, inputs: &[StepInput<'_>]) -> Result<Tensor, SliceError> {
        let width = self.sizes.expert.width;
        let mut hidden = Vec::with_capacity(inputs.len() * self.sizes.horizon * width);
        for input in inputs {
            self.check_rows(input.x, 1)?;
            hidden.extend_from_slice(input.x.data());
        }
        Ok(of_shape([inputs.len() * self.sizes.horizon, width], hidden))
    }

    /// One tensor per request.
    fn cut(&self, rows: Tensor) -> Vec<Tensor> {
        let width = rows.width();
        let horizon = self.sizes.horizon;
        rows.data().chunks_exact(horizon * width).map(|x| of_shape([horizon, width], x.to_vec())).collect()
    }

    fn check_rows(&self, hidden: &Tensor, requests: usize) -> Result<(), SliceError> {
        let expected = [requests * self.sizes.horizon, self.sizes.expert.width];
        if hidden.shape() == expected {
            return Ok(());
        }
        Err(self.shape("hidden states", format!("{expected:?}"), hidden.shape()))
    }

    fn check_cache(&self, cache: &KvCache) -> Result<(), SliceError> {
        let width = self.sizes.expert.kv_width();
        let fits =
            |entry: &KeyValue| entry.keys.width() == width && entry.values.shape() == entry.keys.shape();
        if cache.layers() == self.layers && (0..self.layers.len()).all(|index| fits(cache.entry(index))) {
            return Ok(());
        }
        Err(self.shape(
            "a KV cache",
            format!("[tokens, {width}] for layers {}", self.layers),
            &[cache.layers().start(), cache.layers().end(), cache.entry(0).keys.width()],
        ))
    }

    fn shape(&self, what: &'static str, expected: String, found: &[usize]) -> SliceError {
        SliceError::Shape { stage: STAGE, what, expected, found: found.into() }
    }

    fn not_here(&self, what: &'static str) -> SliceError {
        SliceError::NotHere { stage: STAGE, what, range: self.layers }
    }
}

impl SuffixEmbedding {
    fn load(device: &HostDevice, checkpoint: &Checkpoint) -> Self {
        let linear = |name: &str| Linear::load_with_bias(device, checkpoint, name).in_f32();
        let pi0 = || Pi0Embedding {
            state: linear("state_proj"),
            mlp_in: ActionTimeMlp::load(checkpoint),
            mlp_out: linear("action_time_mlp_out"),
        };
        Self {
            action: linear("action_in_proj"),
            pi0: (checkpoint.sizes().variant == Variant::Pi0).then(|| Box::new(pi0())),
        }
    }
}

/// The cached keys and values with new ones behind them.
fn joined(cached: &KeyValue, keys: &[f32], values: &[f32]) -> KeyValue {
    let join = |cached: &Tensor, new: &[f32]| {
        let data = [cached.data(), new].concat();
        of_shape([data.len() / cached.width(), cached.width()], data)
    };
    KeyValue { keys: join(&cached.keys, keys), values: join(&cached.values, values) }
}
