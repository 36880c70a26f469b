//! The Gemma action expert: one denoising step for any number of requests, each at its own step.

use std::sync::Arc;

use tensact_topology::{LayerRange, ModelSizes, StageKind, Variant};

use super::attention::{Segment, Sequence, attention};
use super::band::Band;
use super::decoder::{BlockName, DecoderBlock, Extent};
use super::first_step::Following;
use super::gemm::Rows;
use super::linear::Linear;
use super::norm::{Modulation, RmsNorm};
use super::rope::Rotation;
use super::suffix::SuffixEmbedding;
use super::time::{TimeTable, TimeTables, conditions};
use super::{HostDevice, of_shape};
use crate::Tensor;
use crate::checkpoint::Checkpoint;
use crate::checkpoint::names::EXPERT;
use crate::device::{ExpertStage, FirstStep, SliceError, StepInput};
use crate::model::flow::{Step, Steps};
use crate::model::{KeyValue, KvCache};

const STAGE: StageKind = StageKind::Expert;

/// Some consecutive blocks of the action expert. The first slice embeds state and actions, the last one gives the
/// velocity.
pub struct ExpertSlice {
    pub(super) device: Arc<HostDevice>,
    pub(super) sizes: ModelSizes,
    pub(super) layers: LayerRange,
    pub(super) embedding: Option<SuffixEmbedding>,
    blocks: Vec<(DecoderBlock, Norms)>,
    projection: Option<(FinalNorm, Linear)>,
    times: TimeTables,
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

/// Positions and times of the action tokens of some requests.
pub(super) struct Suffix {
    rotation: Rotation,
    tables: Vec<(Arc<TimeTable>, Step)>,
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
        let mlp_in = embedding.as_ref().and_then(SuffixEmbedding::time_mlp);
        let block = |layer| {
            let name = BlockName::new(EXPERT, layer);
            let norms = match sizes.variant {
                Variant::Pi0 => Norms::Plain(name.norms().map(|n| RmsNorm::load_scale(checkpoint, &n))),
                Variant::Pi05 => Norms::Adaptive,
            };
            (DecoderBlock::load(device, checkpoint, &name, sizes.expert, Extent::Whole), norms)
        };
        let projection = (layers.end() == depth).then(|| {
            let norm = match sizes.variant {
                Variant::Pi0 => FinalNorm::Plain(RmsNorm::load_scale(checkpoint, &format!("{EXPERT}.norm"))),
                Variant::Pi05 => FinalNorm::Adaptive,
            };
            (norm, Linear::load_in_f32(device, checkpoint, "action_out_proj"))
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

    /// All blocks of the slice, `[requests × horizon, width]` to the same.
    ///
    /// # Errors
    /// When shapes or caches do not fit.
    pub fn blocks(&self, mut hidden: Tensor, inputs: &[StepInput<'_>]) -> Result<Tensor, SliceError> {
        self.check_rows(&hidden, inputs.len())?;
        for input in inputs {
            self.check_cache(input.cache)?;
        }
        let suffix = self.suffix(inputs.iter().map(|input| (input.step, input.cache.tokens())));
        for index in 0..self.layers.len() {
            self.action_layer(
                index,
                &mut hidden,
                &suffix,
                inputs.iter().map(|input| input.cache.entry(index)),
            );
        }
        Ok(hidden)
    }

    /// Where the action tokens of some requests stand: behind this many tokens, at their own steps.
    pub(super) fn suffix(&self, requests: impl Iterator<Item = (Step, usize)> + Clone) -> Suffix {
        let positions =
            requests.clone().flat_map(|(_, tokens)| (0..self.sizes.horizon).map(move |i| tokens + i));
        Suffix {
            rotation: Rotation::new(positions, self.sizes.expert.head_dim),
            tables: self.tables(requests.map(|(step, _)| step)),
        }
    }

    /// The action tokens of some requests through block `index` of the slice: those of a request attend to its entry
    /// and to each other.
    pub(super) fn action_layer<'a>(
        &self,
        index: usize,
        hidden: &mut Tensor,
        suffix: &Suffix,
        entries: impl Iterator<Item = &'a KeyValue>,
    ) {
        let (block, norms) = &self.blocks[index];
        let rows = |which: usize| {
            self.per_row(&suffix.tables, |table, step| {
                table.layers.get(step).map(|norms| &norms[index][which])
            })
        };
        let (first, second) = (rows(0), rows(1));
        let norms = match norms {
            Norms::Plain([first, second]) => [RmsNorm::Plain(first), RmsNorm::Plain(second)],
            Norms::Adaptive => [RmsNorm::Adaptive(&first), RmsNorm::Adaptive(&second)],
        };
        let horizon = self.sizes.horizon;
        let normed = norms[0].apply(&self.device, hidden.data(), self.sizes.expert.width);
        let (k, v) = block.keys_values(&self.device, &normed, &suffix.rotation);
        let q = block.queries(&self.device, &normed, &suffix.rotation);
        let all = Segment::whole(&k, &v, self.sizes.expert.kv_width());
        let own =
            (0..hidden.rows() / horizon).map(|request| all.rows(request * horizon..(request + 1) * horizon));
        let attended =
            self.attend(block, &q, horizon, entries.zip(own).map(|(entry, own)| vec![segment(entry), own]));
        block.close(&self.device, hidden.data_mut(), &attended, &norms);
    }

    /// π0's state tokens, `[requests, width]`, through block `index` of the slice: their keys and values are appended
    /// to the entries of their requests. Nothing reads what the last block would make of them, so it leaves them as
    /// they are.
    pub(super) fn state_layer(
        &self,
        index: usize,
        hidden: &mut Tensor,
        rotation: &Rotation,
        entries: &mut [&mut KeyValue],
    ) -> Result<(), SliceError> {
        let (block, Norms::Plain([first, second])) = &self.blocks[index] else {
            return Err(self.takes_no_state());
        };
        let sizes = self.sizes.expert;
        let norms = [RmsNorm::Plain(first), RmsNorm::Plain(second)];
        let normed = norms[0].apply(&self.device, hidden.data(), sizes.width);
        let (k, v) = block.keys_values(&self.device, &normed, rotation);
        let rows = k.chunks_exact(sizes.kv_width()).zip(v.chunks_exact(sizes.kv_width()));
        for (entry, (k, v)) in entries.iter_mut().zip(rows) {
            **entry = entry.followed_by(k, v);
        }
        if self.layers.start() + index + 1 < sizes.layers {
            let q = block.queries(&self.device, &normed, rotation);
            let attended = self.attend(block, &q, 1, entries.iter().map(|entry| vec![segment(entry)]));
            block.close(&self.device, hidden.data_mut(), &attended, &norms);
        }
        Ok(())
    }

    /// The norm behind the last block, `[requests × horizon, width]` to the same, each request at its own step.
    ///
    /// # Errors
    /// When the shape does not fit, or this is not the last slice.
    pub fn normalise(&self, hidden: &Tensor, steps: &[Step]) -> Result<Tensor, SliceError> {
        self.check_rows(hidden, steps.len())?;
        let (norm, _) = self.projection.as_ref().ok_or_else(|| self.not_here("the final norm"))?;
        let tables = self.tables(steps.iter().copied());
        let rows = self.per_row(&tables, |table, step| table.last.get(step));
        let norm = match norm {
            FinalNorm::Plain(scale) => RmsNorm::Plain(scale),
            FinalNorm::Adaptive => RmsNorm::Adaptive(&rows),
        };
        let width = self.sizes.expert.width;
        Ok(of_shape(hidden.shape(), norm.apply(&self.device, hidden.data(), width).to_values()))
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
        let velocity = projection.apply_in_f32(&self.device, normed.data());
        Ok(of_shape([normed.rows(), projection.outputs()], velocity))
    }

    /// π0.5's time condition of each step, `[steps][width]`, which is otherwise only seen through the norms.
    pub fn conditions(device: &HostDevice, checkpoint: &Checkpoint, steps: Steps) -> Vec<Vec<f32>> {
        conditions(device, checkpoint, steps)
    }

    /// Each request's time table, and its step.
    pub(super) fn tables(&self, steps: impl Iterator<Item = Step>) -> Vec<(Arc<TimeTable>, Step)> {
        steps.map(|step| (self.times.get(&self.device, step.of()), step)).collect()
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
        requests: impl Iterator<Item = Vec<Segment<'a>>>,
    ) -> Rows {
        let sequences: Vec<Sequence<'_>> = requests
            .enumerate()
            .map(|(request, segments)| Sequence {
                tokens: request * tokens..(request + 1) * tokens,
                segments,
            })
            .collect();
        let q = Band::whole(q, self.sizes.expert.q_width());
        attention(&self.device, q, &sequences, block.heads())
    }

    /// Action tokens `[requests × horizon, width]` out of noisy actions (first slice) or hidden states.
    pub(crate) fn action_tokens(&self, actions: &[(&Tensor, Step)]) -> Result<Tensor, SliceError> {
        if self.embedding.is_some() {
            return self.embed_actions(actions);
        }
        let width = self.sizes.expert.width;
        let mut hidden = Vec::with_capacity(actions.len() * self.sizes.horizon * width);
        for (x, _) in actions {
            self.check_rows(x, 1)?;
            hidden.extend_from_slice(x.data());
        }
        Ok(of_shape([actions.len() * self.sizes.horizon, width], hidden))
    }

    /// State tokens `[requests, width]` out of states (first slice) or hidden states of one row each.
    pub(crate) fn state_tokens(&self, states: &[Tensor]) -> Result<Tensor, SliceError> {
        let width = if self.embedding.is_some() { self.sizes.state_dim } else { self.sizes.expert.width };
        if let Some(odd) = states.iter().find(|state| state.shape() != [1, width]) {
            return Err(self.shape("a state token", format!("[1, {width}]"), odd.shape()));
        }
        let rows = Tensor::join_rows(states).unwrap_or_else(|| Tensor::zeros([0, width]));
        if self.embedding.is_some() { self.embed_state(&rows) } else { Ok(rows) }
    }

    /// For state tokens that stand behind this many tokens each.
    pub(super) fn state_rotation(&self, tokens: impl Iterator<Item = usize>) -> Rotation {
        Rotation::new(tokens, self.sizes.expert.head_dim)
    }

    /// State tokens, unless nothing is left that reads them.
    pub(super) fn for_the_next_slice(&self, states: Tensor) -> Option<Tensor> {
        (self.layers.end() < self.sizes.expert.layers).then_some(states)
    }

    /// Hidden states, or velocities (last slice).
    pub(super) fn output(&self, hidden: Tensor, steps: &[Step]) -> Result<Tensor, SliceError> {
        if self.projection.is_some() { self.project(&self.normalise(&hidden, steps)?) } else { Ok(hidden) }
    }

    /// One tensor per request.
    fn cut(&self, rows: &Tensor) -> Vec<Tensor> {
        rows.split_rows(&vec![self.sizes.horizon; rows.rows() / self.sizes.horizon])
    }

    pub(super) fn check_rows(&self, hidden: &Tensor, requests: usize) -> Result<(), SliceError> {
        let expected = [requests * self.sizes.horizon, self.sizes.expert.width];
        if hidden.shape() == expected {
            return Ok(());
        }
        Err(self.shape("hidden states", format!("{expected:?}"), hidden.shape()))
    }

    fn check_cache(&self, cache: &KvCache) -> Result<(), SliceError> {
        SliceError::check_cache(self.layers, self.sizes.expert.kv_width(), cache)
    }

    pub(super) fn takes_no_state(&self) -> SliceError {
        self.not_here("a state token: π0.5 takes the state as text")
    }

    pub(super) fn shape(&self, what: &'static str, expected: String, found: &[usize]) -> SliceError {
        SliceError::Shape { stage: STAGE, what, expected, found: found.into() }
    }

    pub(super) fn not_here(&self, what: &'static str) -> SliceError {
        SliceError::NotHere { stage: STAGE, what, range: self.layers }
    }
}

impl ExpertStage for ExpertSlice {
    fn layers(&self) -> LayerRange {
        self.layers
    }

    fn cache_state(
        &self,
        states: &[Tensor],
        caches: &mut [&mut KvCache],
    ) -> Result<Option<Vec<Tensor>>, SliceError> {
        SliceError::check_states(states.len(), caches.len())?;
        self.device.run(|| self.state_blocks(states, caches))
    }

    fn step(&self, inputs: &[StepInput<'_>]) -> Result<Vec<Tensor>, SliceError> {
        self.device.run(|| {
            let actions: Vec<(&Tensor, Step)> = inputs.iter().map(|input| (input.x, input.step)).collect();
            let hidden = self.blocks(self.action_tokens(&actions)?, inputs)?;
            let steps: Vec<Step> = inputs.iter().map(|input| input.step).collect();
            Ok(self.cut(&self.output(hidden, &steps)?))
        })
    }

    fn follow(
        self: Arc<Self>,
        x: Tensor,
        state: Option<Tensor>,
        step: Step,
    ) -> Result<Box<dyn FirstStep>, SliceError> {
        Ok(Box::new(Following::begin(self, &x, state.as_ref(), step)?))
    }
}

impl ExpertSlice {
    /// State tokens through all blocks of the slice.
    fn state_blocks(
        &self,
        states: &[Tensor],
        caches: &mut [&mut KvCache],
    ) -> Result<Option<Vec<Tensor>>, SliceError> {
        let mut hidden = self.state_tokens(states)?;
        for cache in caches.iter() {
            self.check_cache(cache)?;
        }
        let rotation = self.state_rotation(caches.iter().map(|cache| cache.tokens()));
        for index in 0..self.layers.len() {
            let mut entries: Vec<_> =
                caches.iter_mut().map(|cache| &mut cache.entries_mut()[index]).collect();
            self.state_layer(index, &mut hidden, &rotation, &mut entries)?;
        }
        Ok(self.for_the_next_slice(hidden).map(|states| states.split_rows(&vec![1; caches.len()])))
    }
}

fn segment(entry: &KeyValue) -> Segment<'_> {
    Segment::whole(entry.keys.data(), entry.values.data(), entry.keys.width())
}
