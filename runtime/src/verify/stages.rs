//! The three stages, slice after slice, with what each gives compared.

use std::sync::Arc;

use tensact_topology::{StageKind, Variant};

use super::{Run, VerifyError, rows_of};
use crate::Tensor;
use crate::device::{PrefixInput, StepInput};
use crate::model::{KeyValue, KvCache, ModelInput};
use crate::policy::RequestCache;
use crate::reference::{ReferenceError, ReferenceInputs};

impl Run<'_> {
    /// Image tokens per sample.
    pub(super) fn vision(&mut self) -> Result<Vec<Vec<Tensor>>, VerifyError> {
        let mut tokens = vec![Vec::new(); self.models.len()];
        for (camera, name) in self.inputs.cameras.iter().enumerate() {
            let (members, mut hidden): (Vec<usize>, Vec<Tensor>) = (self.models.iter().enumerate())
                .filter_map(|(sample, model)| Some((sample, model.images[camera].clone()?)))
                .unzip();
            let last = self.policy.vision.len() - 1;
            for (layer, slice) in self.policy.vision.iter().enumerate() {
                if let Some(inside) = self.inside.filter(|_| layer == 0) {
                    self.compare_images(name, "embeddings", &inside.embeddings(&hidden)?, &members)?;
                }
                if let Some(inside) = self.inside.filter(|_| layer == last) {
                    let [block, normed] = inside.tower_end(&hidden)?;
                    self.compare_images(name, &format!("layer{layer}"), &block, &members)?;
                    self.compare_images(name, "tower_out", &normed, &members)?;
                }
                hidden = slice.run(&hidden.iter().collect::<Vec<_>>())?;
                let part = if layer == last { "projected".into() } else { format!("layer{layer}") };
                self.compare_images(name, &part, &hidden, &members)?;
            }
            members.iter().zip(hidden).for_each(|(&sample, image)| tokens[sample].push(image));
        }
        Ok(tokens)
    }

    /// Images of one camera have as many patches each.
    fn compare_images(
        &mut self,
        camera: &str,
        part: &str,
        found: &[Tensor],
        members: &[usize],
    ) -> Result<(), ReferenceError> {
        let patches = found.first().map_or(1, Tensor::rows);
        let place = |row: usize| members[row / patches] * patches + row % patches;
        let rows = rows_of(found).enumerate().map(|(row, values)| (place(row), values));
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
    pub(super) fn prefix(&mut self, images: &[Vec<Tensor>]) -> Result<Vec<RequestCache>, VerifyError> {
        let parts: Vec<PrefixInput<'_>> = (self.models.iter().zip(images))
            .map(|(model, images)| PrefixInput { images, tokens: &model.tokens })
            .collect();
        let layout = self.prefix_layout(images);
        let embedded = self.policy.prefix[0].embed(&parts)?;
        let positions =
            embedded.iter().flat_map(|embedded| 0..embedded.rows()).map(|position| position as f32);
        let positions = column(positions.collect());
        self.compare_prefix("prefix.embs".into(), &embedded, &layout)?;
        self.compare_prefix("prefix.position_ids".into(), &[positions], &layout)?;

        let mut caches: Vec<RequestCache> = vec![Vec::new(); self.models.len()];
        let mut hidden = Some(embedded);
        for (layer, slice) in self.policy.prefix.iter().enumerate() {
            let Some(input) = hidden else { break };
            let mut pass = Arc::clone(slice).begin(input)?;
            let emitted = pass.layer()?.expect("a pass has every layer of its slice");
            hidden = pass.finish()?;
            if let Some(output) = &hidden {
                self.compare_prefix(format!("prefix.layer{layer}.hidden_out"), output, &layout)?;
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
        found: &[Tensor],
        layout: &PrefixLayout,
    ) -> Result<(), ReferenceError> {
        let places = layout
            .places
            .iter()
            .enumerate()
            .flat_map(|(sample, places)| places.iter().map(move |place| sample * layout.padded + place));
        self.compare(StageKind::Prefix, name, places.zip(rows_of(found)))
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
    pub(super) fn conditions(&mut self) -> Result<(), ReferenceError> {
        let conditions = self.inside.map_or(&[][..], |inside| &inside.conditions);
        for (step, condition) in conditions.iter().enumerate() {
            let rows = (0..self.models.len()).map(|sample| (sample, &condition[..]));
            self.compare(StageKind::Expert, format!("step{step}.adarms_cond"), rows)?;
        }
        Ok(())
    }

    /// The first denoising step, block by block; adds the state token to the caches. What the last block leads to, the
    /// velocity, is compared with those of the other steps.
    pub(super) fn first_step(&mut self, caches: &mut [RequestCache]) -> Result<(), VerifyError> {
        let starts: Vec<usize> = caches.iter().map(|cache| cache[0].tokens()).collect();
        self.compare_positions(&starts)?;
        // Runs one layer ahead of the actions, which attend to it.
        let mut state = self.states();
        let mut hidden: Vec<Tensor> = self.inputs.samples.iter().map(|sample| sample.noise.clone()).collect();
        let last = self.policy.expert.len() - 1;
        for (layer, slice) in self.policy.expert.iter().enumerate() {
            let embedded = match (self.inside, &state) {
                (Some(inside), Some(states)) if layer == 0 => vec![inside.state_tokens(states)?],
                _ => Vec::new(),
            };
            if let Some(input) = state {
                let mut of_layer: Vec<&mut KvCache> =
                    caches.iter_mut().map(|cache| &mut cache[layer]).collect();
                state = slice.cache_state(&input, &mut of_layer)?;
            }
            let inputs = first_inputs(self.inputs, &hidden, caches, layer);
            if let Some(inside) = self.inside.filter(|_| layer == 0) {
                let actions = [inside.action_tokens(&inputs)?];
                self.compare_suffix("step0.suffix_embs".into(), &embedded, &actions)?;
            }
            let name = format!("step0.layer{layer}.hidden_out");
            if layer < last {
                hidden = slice.step(&inputs)?;
                self.compare_suffix(name, state.as_deref().unwrap_or_default(), &hidden)?;
            } else if let Some(inside) = self.inside {
                let [block, normed] = inside.expert_end(&inputs)?;
                self.compare_suffix(name, state.as_deref().unwrap_or_default(), &[block])?;
                self.compare_suffix("step0.final_norm".into(), &[], &[normed])?;
            }
        }
        Ok(())
    }

    /// The states that π0 makes tokens of.
    fn states(&self) -> Option<Vec<Tensor>> {
        let state = |model: &&ModelInput| Tensor::new([1, self.sizes.state_dim], model.state.clone()).ok();
        let states = self.models.iter().map(state).collect::<Option<_>>();
        states.filter(|_| self.sizes.variant == Variant::Pi0)
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
        states: &[Tensor],
        actions: &[Tensor],
    ) -> Result<(), ReferenceError> {
        let (horizon, suffix) = (self.sizes.horizon, self.sizes.suffix_tokens());
        let place = |row: usize| row / horizon * suffix + (suffix - horizon) + row % horizon;
        let actions = rows_of(actions).enumerate().map(|(row, values)| (place(row), values));
        let states = rows_of(states).enumerate().map(|(sample, values)| (sample * suffix, values));
        self.compare(StageKind::Expert, name, states.chain(actions))
    }

    /// All steps from noise to actions.
    pub(super) fn integration(&mut self, caches: &[RequestCache]) -> Result<(), VerifyError> {
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
        self.compare(StageKind::Expert, name, rows_of(chunks).enumerate())
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
    inputs: &ReferenceInputs,
    hidden: &'a [Tensor],
    caches: &'a [RequestCache],
    layer: usize,
) -> Vec<StepInput<'a>> {
    (inputs.samples.iter().zip(hidden).zip(caches))
        .filter_map(|((sample, x), cache)| {
            let step = sample.steps.iter().next()?;
            Some(StepInput { x, step, cache: &cache[layer] })
        })
        .collect()
}
