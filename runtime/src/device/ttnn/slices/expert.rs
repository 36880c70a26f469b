//! Blocks of the action expert on a chip.

use std::collections::BTreeSet;
use std::sync::Arc;

use tensact_topology::{ChipId, LayerRange, ModelSizes, RequestShape, StageKind, Variant};

use super::first_step::Following;
use super::pool::{Lease, Pool};
use super::resident::{Destination, Resident};
use super::rows::{Form, Heads, ValidRows, mask_row, spread_rows};
use crate::Tensor;
use crate::device::host::of_shape;
use crate::device::ttnn::program::{
    Numerics, PrefixRows, StepShape, TILE, Wiring, expert_state, expert_step,
};
use crate::device::ttnn::{Chip, ChipError};
use crate::device::{ExpertStage, FirstStep, SliceError, StepInput};
use crate::model::flow::Step;
use crate::model::{ContentId, KeyValue, KvCache};

const STAGE: StageKind = StageKind::Expert;

/// Requests in one pass: each has a place for its keys and values in the program.
pub(in crate::device::ttnn) const MOST_REQUESTS: usize = 8;

/// Whose keys and values lie in the places of a program.
pub(super) type Held = Vec<Option<ContentId>>;

/// A step's program in use.
pub(super) type StepLease = Lease<StepShape, Held>;

/// Some consecutive blocks of the action expert on a chip.
pub struct TtnnExpert {
    pub(super) sizes: ModelSizes,
    pub(super) layers: LayerRange,
    numerics: Numerics,
    pub(super) to: Destination,
    steps: Arc<Pool<StepShape, Held>>,
    states: Arc<Pool<PrefixRows>>,
}

impl TtnnExpert {
    /// A slice on a chip that has the weights of a checkpoint of these sizes, ready for requests of this shape, one at a
    /// time and as many together as it says. Hidden states go to `to`, velocities to the host.
    ///
    /// # Errors
    /// When the expert has no such blocks, or the chip cannot load them.
    pub fn load(
        chip: Arc<dyn Chip>,
        sizes: &ModelSizes,
        layers: LayerRange,
        numerics: Numerics,
        request: &RequestShape,
        to: Destination,
    ) -> Result<Self, SliceError> {
        SliceError::check_layers(STAGE, sizes.expert.layers, layers)?;
        let slice = Self {
            sizes: *sizes,
            layers,
            numerics,
            to,
            steps: Pool::new(Arc::clone(&chip)),
            states: Pool::new(chip),
        };
        let prefix = PrefixRows::holding(request.prefix_tokens(sizes));
        if sizes.variant == Variant::Pi0 {
            let mut lease = slice.lease_state(prefix)?;
            if !slice.is_last() {
                lease.make_room("hidden", to)?;
            }
            for layer in layers.iter() {
                for what in ["keys", "values"] {
                    lease.make_room(&format!("state {what} {layer}"), Destination::Chip(slice.chip()))?;
                }
            }
        }
        for requests in BTreeSet::from([1, request.batch.clamp(1, MOST_REQUESTS)]) {
            let mut lease = slice.lease_step(StepShape { requests, prefix, steps: request.steps }, &[])?;
            for place in (0..requests).filter(|_| !slice.is_last()) {
                lease.make_room(&format!("hidden of {place}"), to)?;
            }
        }
        Ok(slice)
    }

    /// A step's program; one that holds the keys and values of one of these requests, if there is such a one.
    pub(super) fn lease_step(
        &self,
        shape: StepShape,
        inputs: &[&StepInput<'_>],
    ) -> Result<StepLease, SliceError> {
        let build = || expert_step(&self.sizes, self.layers, shape, self.numerics, Wiring::default());
        let holds = |held: &Held| inputs.iter().any(|input| held.contains(&Some(input.cache.content())));
        Ok(self.steps.lease_holding(shape, holds, build)?)
    }

    pub(super) fn lease_state(&self, rows: PrefixRows) -> Result<Lease<PrefixRows, ()>, SliceError> {
        let build = || expert_state(&self.sizes, self.layers, rows, self.numerics, Wiring::default());
        Ok(self.states.lease(rows, build)?)
    }

    /// Tokens of π0's state in a complete cache.
    pub(super) fn state_tokens(&self) -> usize {
        usize::from(self.sizes.variant == Variant::Pi0)
    }

    /// Rows that the actions of a request take.
    fn rows(&self) -> usize {
        self.sizes.horizon.next_multiple_of(TILE)
    }

    fn is_first(&self) -> bool {
        self.layers.start() == 0
    }

    /// Width of what a step takes: noisy actions, or hidden states.
    fn x_width(&self) -> usize {
        if self.is_first() { self.sizes.action_dim } else { self.sizes.expert.width }
    }

    /// The chip that it runs on.
    pub(super) fn chip(&self) -> ChipId {
        self.states.chip()
    }

    /// Where the rows of a prefix lie in its keys and values, those of a state token not counted.
    fn prefix_rows(&self, cache: &KvCache) -> ValidRows {
        let tokens = cache.tokens().saturating_sub(self.state_tokens());
        ValidRows::of_prefix(&cache.entry(0).keys, tokens)
    }

    pub(super) fn is_last(&self) -> bool {
        self.layers.end() == self.sizes.expert.layers
    }

    /// Some requests that all integrate in the same number of steps.
    fn step_alike(&self, inputs: &[&StepInput<'_>]) -> Result<Vec<Tensor>, SliceError> {
        let rows = inputs.iter().map(|input| self.prefix_rows(input.cache).padded());
        let prefix = PrefixRows::holding(rows.max().unwrap_or(0));
        let steps = inputs[0].step.of().count();
        let shape = StepShape { requests: inputs.len(), prefix, steps };
        let mut lease = self.lease_step(shape, inputs)?;
        let places = self.places(&mut lease, inputs)?;
        let by_place = |place: usize| {
            let request = places.iter().position(|at| *at == place).expect("every place has a request");
            inputs[request]
        };
        let ordered: Vec<&StepInput<'_>> = (0..inputs.len()).map(by_place).collect();
        let x: Vec<&Tensor> = ordered.iter().map(|input| input.x).collect();
        let at: Vec<(Step, ValidRows)> =
            ordered.iter().map(|input| (input.step, self.prefix_rows(input.cache))).collect();
        self.begin(&mut lease, &x, &at)?;
        for layer in self.layers.iter() {
            lease.run(&format!("layer {layer}"))?;
        }
        let outputs = self.end(&mut lease)?;
        Ok(places.iter().map(|place| outputs[*place].clone()).collect())
    }

    /// The place of each request; keys and values that do not lie there yet are written.
    fn places(&self, lease: &mut StepLease, inputs: &[&StepInput<'_>]) -> Result<Vec<usize>, ChipError> {
        let count = inputs.len();
        lease.holds.resize(count, None);
        let mut places = vec![None; count];
        let mut taken = vec![false; count];
        for (input, place) in inputs.iter().zip(&mut places) {
            let held = |at: &usize| lease.holds[*at] == Some(input.cache.content()) && !taken[*at];
            *place = (0..count).find(held);
            place.iter().for_each(|at| taken[*at] = true);
        }
        for (input, place) in inputs.iter().zip(&mut places) {
            if place.is_some() {
                continue;
            }
            let free = taken.iter().position(|taken| !taken).expect("as many places as requests");
            taken[free] = true;
            *place = Some(free);
            // Until all of it is written, the place holds nobody's.
            lease.holds[free] = None;
            let rows = self.prefix_rows(input.cache);
            for (index, layer) in self.layers.iter().enumerate() {
                self.write_entry(lease, layer, free, input.cache.entry(index), &rows)?;
            }
            lease.holds[free] = Some(input.cache.content());
        }
        Ok(places.into_iter().flatten().collect())
    }

    /// Keys and values of a layer, those of the state token behind those of the prefix, into a place of a program. Its masks
    /// say which rows are the prefix's.
    pub(super) fn write_entry(
        &self,
        lease: &mut StepLease,
        layer: usize,
        place: usize,
        entry: &KeyValue,
        rows: &ValidRows,
    ) -> Result<(), ChipError> {
        let form = self.heads(rows.among(lease.key().prefix.count()));
        for (what, part) in [("keys", &entry.keys), ("values", &entry.values)] {
            let input = format!("{what} {layer} of {place}");
            let state = format!("state {input}");
            if let Some(resident) = Resident::of(part, rows) {
                lease.fill(&input, resident.kept())?;
                resident.state().map_or(Ok(()), |own| lease.fill(&state, own))?;
                continue;
            }
            let (of_prefix, own) = part.values()?.split_at(rows.count() * part.width());
            lease.write(&input, &form.spread(of_prefix))?;
            if !own.is_empty() {
                lease.write(&state, &form.of_one_row().spread(own))?;
            }
        }
        Ok(())
    }

    /// Keys, or values, of such rows.
    pub(super) fn heads(&self, rows: ValidRows) -> Form {
        Form::Heads(rows, Heads::of(&self.sizes.expert))
    }

    /// Everything before the first block: `x` are actions or hidden states, each at its own step behind a prefix.
    pub(super) fn begin(
        &self,
        lease: &mut StepLease,
        x: &[&Tensor],
        at: &[(Step, ValidRows)],
    ) -> Result<(), SliceError> {
        let (rows, horizon) = (self.rows(), self.sizes.horizon);
        if self.is_first() {
            let blocks: Vec<&[f32]> = x.iter().map(|x| x.data()).collect();
            lease.write("actions", &spread_rows(&blocks, self.x_width(), rows))?;
        } else {
            for (place, x) in x.iter().enumerate() {
                lease.take(&format!("hidden of {place}"), x, &self.action_rows())?;
            }
        }
        let mut positions = Vec::with_capacity(x.len() * rows);
        let mut steps = Vec::with_capacity(x.len() * rows);
        for (step, prefix) in at {
            let tokens = prefix.count() + self.state_tokens();
            positions.extend((0..rows).map(|i| if i < horizon { (tokens + i) as u32 } else { 0 }));
            steps.extend(std::iter::repeat_n(step.index() as u32, rows));
        }
        lease.write_numbers("positions", &positions)?;
        lease.write_numbers("steps", &steps)?;
        for (place, (_, prefix)) in at.iter().enumerate() {
            let mask = self.key_mask(lease.key().prefix, prefix);
            lease.write(&format!("keys that count of {place}"), &mask)?;
        }
        Ok(lease.run("begin")?)
    }

    /// How the actions of a request lie in a program.
    fn action_rows(&self) -> Form {
        Form::Rows(ValidRows::first(self.sizes.horizon, self.rows()))
    }

    /// The keys that action tokens attend to: the prefix, π0's state token, and the actions themselves.
    fn key_mask(&self, bucket: PrefixRows, prefix: &ValidRows) -> Vec<f32> {
        let state = self.state_tokens();
        let behind_prefix = bucket.count();
        let behind_state = behind_prefix + state * TILE;
        let counting = prefix
            .places()
            .chain(behind_prefix..behind_prefix + state)
            .chain(behind_state..behind_state + self.sizes.horizon);
        mask_row(behind_state + self.rows(), counting)
    }

    /// Hidden states or velocities of each place.
    pub(super) fn end(&self, lease: &mut StepLease) -> Result<Vec<Tensor>, SliceError> {
        lease.run("end")?;
        let requests = 0..lease.key().requests;
        if !self.is_last() {
            let hidden = requests
                .map(|place| Ok(lease.give(&format!("hidden of {place}"), &self.action_rows(), self.to)?));
            return hidden.collect();
        }
        let velocities = lease.read("velocity")?;
        let (rows, horizon, width) = (self.rows(), self.sizes.horizon, self.sizes.action_dim);
        let of_place = |place| {
            of_shape([horizon, width], velocities[place * rows * width..][..horizon * width].to_vec())
        };
        Ok(requests.map(of_place).collect())
    }

    pub(super) fn check_x(&self, x: &Tensor) -> Result<(), SliceError> {
        let expected = [self.sizes.horizon, self.x_width()];
        if x.shape() == expected {
            return Ok(());
        }
        let what = if self.is_first() { "actions" } else { "hidden states" };
        Err(self.shape(what, format!("{expected:?}"), x.shape()))
    }

    pub(super) fn check_cache(&self, cache: &KvCache, least: usize) -> Result<(), SliceError> {
        SliceError::check_cache(self.layers, self.sizes.expert.kv_width(), cache)?;
        let prefix = ValidRows::of_prefix(&cache.entry(0).keys, cache.tokens().saturating_sub(least)).count();
        if prefix > 0 && cache.tokens() == prefix + least {
            return Ok(());
        }
        let expected = format!("{least} tokens behind those of a prefix");
        Err(self.shape("a KV cache", expected, &[cache.tokens(), self.sizes.expert.kv_width()]))
    }

    pub(super) fn takes_no_state(&self) -> SliceError {
        let what = "a state token: π0.5 takes the state as text";
        SliceError::NotHere { stage: STAGE, what, range: self.layers }
    }

    pub(super) fn shape(&self, what: &'static str, expected: String, found: &[usize]) -> SliceError {
        SliceError::Shape { stage: STAGE, what, expected, found: found.into() }
    }
}

impl ExpertStage for TtnnExpert {
    fn layers(&self) -> LayerRange {
        self.layers
    }

    fn cache_state(
        &self,
        states: &[Tensor],
        caches: &mut [&mut KvCache],
    ) -> Result<Option<Vec<Tensor>>, SliceError> {
        self.cache_states(states, caches)
    }

    /// Requests that integrate in different numbers of steps have different time tables and go one after the other.
    fn step(&self, inputs: &[StepInput<'_>]) -> Result<Vec<Tensor>, SliceError> {
        for input in inputs {
            self.check_x(input.x)?;
            self.check_cache(input.cache, self.state_tokens())?;
        }
        let mut order: Vec<usize> = (0..inputs.len()).collect();
        order.sort_by_key(|i| inputs[*i].step.of());
        let mut outputs: Vec<(usize, Tensor)> = Vec::with_capacity(inputs.len());
        for alike in order.chunk_by(|a, b| inputs[*a].step.of() == inputs[*b].step.of()) {
            for together in alike.chunks(MOST_REQUESTS) {
                let members: Vec<&StepInput<'_>> = together.iter().map(|i| &inputs[*i]).collect();
                outputs.extend(together.iter().copied().zip(self.step_alike(&members)?));
            }
        }
        outputs.sort_by_key(|(i, _)| *i);
        Ok(outputs.into_iter().map(|(_, output)| output).collect())
    }

    fn follow(
        self: Arc<Self>,
        x: Tensor,
        state: Option<Tensor>,
        step: Step,
    ) -> Result<Box<dyn FirstStep>, SliceError> {
        Ok(Box::new(Following::begin(self, x, state, step)?))
    }
}
