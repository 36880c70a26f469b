//! Every tensor of a reference that a policy computes on its way, held against the reference's.
//!
//! The slices are cut at every layer, so each intermediate is the output of a slice.

mod report;

use std::sync::Arc;

use tensact_topology::{ModelSizes, StageKind, Variant};

pub use report::{Closeness, Comparison, Report};

use crate::Tensor;
use crate::checkpoint::Checkpoint;
use crate::device::host::{ExpertSlice, HostDevice};
use crate::device::{ExpertStage, PrefixInput, PrefixStage, SliceError, StepInput};
use crate::model::{KeyValue, KvCache, ModelInput};
use crate::policy::{Cuts, Policy, PolicyError, RequestCache};
use crate::reference::{ReferenceError, ReferenceInputs};
use crate::tensor_file::TensorFile;

/// A reference could not be held against a policy.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The reference's tensors do not fit the policy.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// The policy cannot be loaded.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The policy cannot take the reference's inputs.
    #[error(transparent)]
    Slice(#[from] SliceError),
    /// There is nothing to compare.
    #[error(
        "{0} holds no tensor that the policy computes: expected names such as `vision.0.projected`, `prefix.kv.0.k` or `out.actions`"
    )]
    NothingKnown(std::path::PathBuf),
}

/// Computes what `reference` holds, from its own inputs.
///
/// # Errors
/// When the reference belongs to another policy.
pub fn verify(
    device: &Arc<HostDevice>,
    checkpoint: &Checkpoint,
    reference: &TensorFile,
    inputs: &ReferenceInputs,
) -> Result<Report, VerifyError> {
    let one = std::num::NonZeroUsize::MIN;
    let policy = Policy::load(device, checkpoint, &Cuts::every(checkpoint.sizes(), one))?;
    let mut run = Run {
        sizes: *checkpoint.sizes(),
        reference,
        inputs,
        policy,
        comparisons: Vec::new(),
        models: inputs.samples.iter().map(|sample| &sample.input).collect(),
    };
    let images = run.vision()?;
    let mut caches = run.prefix(&images)?;
    run.conditions(device, checkpoint)?;
    run.first_step(&mut caches)?;
    run.integration(&caches)?;
    if run.comparisons.is_empty() {
        return Err(VerifyError::NothingKnown(reference.path().into()));
    }
    Ok(run.report())
}

struct Run<'a> {
    sizes: ModelSizes,
    reference: &'a TensorFile,
    inputs: &'a ReferenceInputs,
    policy: Policy,
    comparisons: Vec<Comparison>,
    models: Vec<&'a ModelInput>,
}

impl Run<'_> {
    /// Compares rows of a tensor, where the reference has it. Each row comes with its place in the reference.
    fn compare<'r>(
        &mut self,
        stage: StageKind,
        name: String,
        rows: impl Iterator<Item = (usize, &'r [f32])>,
    ) -> Result<(), ReferenceError> {
        let Some(tensor) = self.reference.tensors().get(&name) else { return Ok(()) };
        let mut rows = rows.peekable();
        if rows.peek().is_none() {
            return Ok(());
        }
        let wrong = |expected: String| ReferenceError::Tensor {
            path: self.reference.path().into(),
            name: name.clone(),
            found: format!("{:?} {:?}", tensor.dtype(), tensor.shape()),
            expected,
        };
        let expected = match tensor.to_integers() {
            Some(integers) => integers.into_iter().map(|value| value as f32).collect(),
            None if tensor.is_float() => tensor.to_f32(),
            None => return Err(wrong("floats or integers".into())),
        };
        let (mut found, mut wanted, mut places) = (Vec::new(), Vec::new(), Vec::new());
        // Positions and times are one value a row and have no dimension for it.
        let width = tensor.shape().last().copied().unwrap_or(1);
        for (place, row) in rows {
            if row.len() != 1 && row.len() != width {
                return Err(wrong(format!("rows of {}", row.len())));
            }
            let end = (place + 1) * row.len();
            let row_expected = expected
                .get(end - row.len()..end)
                .ok_or_else(|| wrong(format!("rows of {}, {} or more of them", row.len(), place + 1)))?;
            found.extend_from_slice(row);
            wanted.extend_from_slice(row_expected);
            places.push(place);
        }
        self.comparisons.push(Comparison {
            name,
            stage,
            rows: places,
            values: found.len(),
            closeness: Closeness::of(&found, &wanted),
        });
        Ok(())
    }

    /// Image tokens per sample.
    fn vision(&mut self) -> Result<Vec<Vec<Tensor>>, VerifyError> {
        let cameras = self.inputs.cameras.clone();
        let mut tokens = vec![Vec::new(); self.models.len()];
        for (camera, name) in cameras.iter().enumerate() {
            let present: Vec<(usize, &Tensor)> = (self.models.iter().enumerate())
                .filter_map(|(sample, model)| Some((sample, model.images[camera].as_ref()?)))
                .collect();
            let (members, images): (Vec<usize>, Vec<&Tensor>) = present.into_iter().unzip();
            // Images of one camera have one shape, so only a camera that nobody has gives no stack.
            let Some(images) = Tensor::stack(&images) else { continue };

            let mut hidden = self.policy.vision[0].embed(&images)?;
            self.compare_images(name, "embeddings", &hidden, &members)?;
            for layer in 0..self.policy.vision.len() {
                hidden = self.policy.vision[layer].blocks(hidden)?;
                self.compare_images(name, &format!("layer{layer}"), &hidden, &members)?;
            }
            let last = &self.policy.vision[self.policy.vision.len() - 1];
            let normed = last.normalise(&hidden)?;
            let projected = last.project(&normed)?;
            self.compare_images(name, "tower_out", &normed, &members)?;
            self.compare_images(name, "projected", &projected, &members)?;
            members.iter().enumerate().for_each(|(i, &sample)| tokens[sample].push(projected.member(i)));
        }
        Ok(tokens)
    }

    fn compare_images(
        &mut self,
        camera: &str,
        part: &str,
        found: &Tensor,
        members: &[usize],
    ) -> Result<(), ReferenceError> {
        let patches = found.shape()[1];
        let rows =
            (0..found.rows()).map(|row| (members[row / patches] * patches + row % patches, found.row(row)));
        self.compare(StageKind::Vision, format!("vision.{camera}.{part}"), rows)
    }

    /// For every valid prefix token of every sample: its row in the reference, where prefixes are padded.
    fn prefix_layout(&self, images: &[Vec<Tensor>]) -> PrefixLayout {
        let patches = images.iter().flatten().next().map_or(0, |image| image.shape()[0]);
        let places = |(model, valid): (&&ModelInput, &Vec<usize>)| {
            let present = (0..model.images.len()).filter(|&camera| model.images[camera].is_some());
            let images = present.flat_map(|camera| camera * patches..(camera + 1) * patches);
            images.chain(valid.iter().map(|token| model.images.len() * patches + token)).collect()
        };
        PrefixLayout {
            padded: self.inputs.cameras.len() * patches + self.inputs.prompt_tokens,
            places: self.models.iter().zip(&self.inputs.valid_tokens).map(places).collect(),
        }
    }

    /// The KV caches, one slice per layer.
    fn prefix(&mut self, images: &[Vec<Tensor>]) -> Result<Vec<RequestCache>, VerifyError> {
        let parts: Vec<PrefixInput<'_>> = (self.models.iter().zip(images))
            .map(|(model, images)| PrefixInput { images, tokens: &model.tokens })
            .collect();
        let layout = self.prefix_layout(images);
        let embedded = self.policy.prefix[0].embed(&parts)?;
        let positions = embedded.lengths.iter().flat_map(|&length| 0..length).map(|position| position as f32);
        let positions = column(positions.collect());
        self.compare_prefix("prefix.embs".into(), &embedded.hidden, &layout)?;
        self.compare_prefix("prefix.position_ids".into(), &positions, &layout)?;

        let mut caches: Vec<RequestCache> = vec![Vec::new(); self.models.len()];
        let mut hidden = Some(embedded);
        for layer in 0..self.policy.prefix.len() {
            let Some(input) = hidden else { break };
            let mut emitted = Vec::new();
            hidden = self.policy.prefix[layer].run(input, &mut |_, entries| emitted = entries)?;
            if let Some(output) = &hidden {
                self.compare_prefix(format!("prefix.layer{layer}.hidden_out"), &output.hidden, &layout)?;
            }
            self.compare_cache(layer, &emitted, &layout)?;
            let range = self.policy.expert[layer].layers();
            for (cache, entry) in caches.iter_mut().zip(emitted) {
                cache.push(KvCache::new(range, vec![entry]).expect("one entry for a slice of one layer"));
            }
        }
        Ok(caches)
    }

    fn compare_prefix(
        &mut self,
        name: String,
        found: &Tensor,
        layout: &PrefixLayout,
    ) -> Result<(), ReferenceError> {
        let places = layout
            .places
            .iter()
            .enumerate()
            .flat_map(|(sample, places)| places.iter().map(move |place| sample * layout.padded + place));
        self.compare(StageKind::Prefix, name, places.enumerate().map(|(row, place)| (place, found.row(row))))
    }

    /// The reference holds keys and values by head.
    fn compare_cache(
        &mut self,
        layer: usize,
        entries: &[KeyValue],
        PrefixLayout { padded, places }: &PrefixLayout,
    ) -> Result<(), ReferenceError> {
        let (heads, width) = (self.sizes.vlm.kv_heads, self.sizes.vlm.head_dim);
        let by_head = |sample: usize, row: usize, place: usize, values: &Tensor| -> Vec<(usize, Vec<f32>)> {
            (values.row(row).chunks_exact(width).enumerate())
                .map(|(head, values)| ((sample * heads + head) * padded + place, values.to_vec()))
                .collect()
        };
        for part in ["k", "v"] {
            let rows: Vec<(usize, Vec<f32>)> = (entries.iter().zip(places).enumerate())
                .flat_map(|(sample, (entry, places))| {
                    let values = if part == "k" { &entry.keys } else { &entry.values };
                    let rows = places.iter().enumerate();
                    rows.flat_map(move |(row, place)| by_head(sample, row, *place, values))
                })
                .collect();
            let rows = rows.iter().map(|(place, values)| (*place, &values[..]));
            self.compare(StageKind::Prefix, format!("prefix.kv.{layer}.{part}"), rows)?;
        }
        Ok(())
    }

    /// π0.5's time condition.
    fn conditions(&mut self, device: &HostDevice, checkpoint: &Checkpoint) -> Result<(), ReferenceError> {
        let Some(sample) = self.inputs.samples.first() else { return Ok(()) };
        let conditions = ExpertSlice::conditions(device, checkpoint, sample.steps);
        for (step, condition) in conditions.iter().enumerate() {
            let rows = (0..self.models.len()).map(|sample| (sample, &condition[..]));
            self.compare(StageKind::Expert, format!("step{step}.adarms_cond"), rows)?;
        }
        Ok(())
    }

    /// The first denoising step, block by block; adds the state token to the caches.
    fn first_step(&mut self, caches: &mut [RequestCache]) -> Result<(), VerifyError> {
        let starts: Vec<usize> = caches.iter().map(|cache| cache[0].tokens()).collect();
        self.compare_positions(&starts)?;
        // Runs one layer ahead of the actions, which attend to it.
        let mut state = self.states();
        let mut embedded_state = None;
        if let Some(states) = &state {
            embedded_state = Some(self.policy.expert[0].embed_state(states)?);
        }
        let mut actions = Tensor::zeros([0]);
        for layer in 0..self.policy.expert.len() {
            if let Some(input) = state {
                let mut of_layer: Vec<&mut KvCache> =
                    caches.iter_mut().map(|cache| &mut cache[layer]).collect();
                state = self.policy.expert[layer].cache_state(&input, &mut of_layer)?;
            }
            let inputs = first_inputs(self.inputs, caches, layer);
            if layer == 0 {
                let noisy: Vec<_> = inputs.iter().map(|input| (input.x, input.step)).collect();
                actions = self.policy.expert[0].embed_actions(&noisy)?;
                self.compare_suffix("step0.suffix_embs".into(), embedded_state.as_ref(), &actions)?;
            }
            actions = self.policy.expert[layer].blocks(actions, &inputs)?;
            self.compare_suffix(format!("step0.layer{layer}.hidden_out"), state.as_ref(), &actions)?;
            if layer + 1 == self.policy.expert.len() {
                let steps: Vec<_> = inputs.iter().map(|input| input.step).collect();
                let normed = self.policy.expert[layer].normalise(&actions, &steps)?;
                self.compare_suffix("step0.final_norm".into(), None, &normed)?;
            }
        }
        Ok(())
    }

    /// The states that π0 makes tokens of.
    fn states(&self) -> Option<Tensor> {
        let states = self.models.iter().flat_map(|model| &model.state).copied().collect();
        let shape = [self.models.len(), self.sizes.state_dim];
        Tensor::new(shape, states).ok().filter(|_| self.sizes.variant == Variant::Pi0)
    }

    /// Positions of the suffix: behind the valid tokens of each prefix.
    fn compare_positions(&mut self, starts: &[usize]) -> Result<(), ReferenceError> {
        let suffix = self.sizes.suffix_tokens();
        let positions = starts.iter().flat_map(|start| (0..suffix).map(move |i| (start + i) as f32));
        let positions = column(positions.collect());
        let rows = (0..positions.rows()).map(|row| (row, positions.row(row)));
        self.compare(StageKind::Expert, "step0.position_ids".into(), rows)
    }

    /// Rows of the action tokens, and of the state tokens where they were computed.
    fn compare_suffix(
        &mut self,
        name: String,
        state: Option<&Tensor>,
        actions: &Tensor,
    ) -> Result<(), ReferenceError> {
        let (horizon, suffix) = (self.sizes.horizon, self.sizes.suffix_tokens());
        let place = |row: usize| row / horizon * suffix + (suffix - horizon) + row % horizon;
        let actions = (0..actions.rows()).map(|row| (place(row), actions.row(row)));
        let states = state
            .into_iter()
            .flat_map(|state| (0..state.rows()).map(move |sample| (sample * suffix, state.row(sample))));
        self.compare(StageKind::Expert, name, states.chain(actions))
    }

    /// All steps from noise to actions.
    fn integration(&mut self, caches: &[RequestCache]) -> Result<(), VerifyError> {
        let Some(first) = self.inputs.samples.first() else { return Ok(()) };
        let mut x: Vec<Tensor> = self.inputs.samples.iter().map(|sample| sample.noise.clone()).collect();
        for step in first.steps.iter() {
            let name = |part: &str| format!("step{}.{part}", step.index());
            let at: Vec<_> = x.iter().zip(caches).map(|(x, cache)| (step, x, cache)).collect();
            let velocities = self.policy.velocities(&at)?;
            let times = column(vec![step.time(); x.len()]);
            self.compare_chunks(name("timestep"), std::slice::from_ref(&times))?;
            self.compare_chunks(name("x_t"), &x)?;
            self.compare_chunks(name("v_t"), &velocities)?;
            x.iter_mut().zip(&velocities).for_each(|(x, v)| step.advance(x, v));
        }
        Ok(self.compare_chunks("out.actions".into(), &x)?)
    }

    /// Tensors that stand one after the other in the reference.
    fn compare_chunks(&mut self, name: String, chunks: &[Tensor]) -> Result<(), ReferenceError> {
        let rows = chunks.iter().flat_map(|chunk| (0..chunk.rows()).map(|row| chunk.row(row)));
        self.compare(StageKind::Expert, name, rows.enumerate())
    }

    /// What was compared, and why the rest was not.
    fn report(self) -> Report {
        let compared: Vec<&str> = self.comparisons.iter().map(|c| c.name.as_str()).collect();
        let last = format!("prefix.layer{}.hidden_out", self.sizes.vlm.layers - 1);
        let rest = self.reference.tensors().keys().filter(|name| !compared.contains(&name.as_str()));
        let reason = |name: &str| match name {
            "prefix.final_norm" => "nothing reads it, so it is not computed",
            name if name == last => "nothing reads it, so it is not computed",
            name if name.contains("mask") => "masks are not built: what is masked is left out",
            _ => "unknown, or without a valid row",
        };
        let not_compared =
            rest.filter(|name| !name.starts_with("in.")).map(|name| (name.clone(), reason(name))).collect();
        Report { comparisons: self.comparisons, not_compared }
    }
}

/// Rows of the valid prefix tokens in the reference.
struct PrefixLayout {
    /// Rows of one sample.
    padded: usize,
    /// Per sample, the row of each valid token.
    places: Vec<Vec<usize>>,
}

/// Values as rows of one.
fn column(values: Vec<f32>) -> Tensor {
    Tensor::new([values.len(), 1], values).expect("a column has as many rows as values")
}

/// The first step of every sample, for one layer.
fn first_inputs<'a>(
    inputs: &'a ReferenceInputs,
    caches: &'a [RequestCache],
    layer: usize,
) -> Vec<StepInput<'a>> {
    (inputs.samples.iter().zip(caches))
        .filter_map(|(sample, cache)| {
            let step = sample.steps.iter().next()?;
            Some(StepInput { x: &sample.noise, step, cache: &cache[layer] })
        })
        .collect()
}
