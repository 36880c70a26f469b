//! The first denoising step of a request on a chip, one layer behind the VLM that fills its cache.

use std::sync::Arc;

use tensact_topology::Variant;

use super::expert::{StepLease, TtnnExpert};
use super::rows::ValidRows;
use super::state::StateToken;
use crate::Tensor;
use crate::device::ttnn::program::{PrefixRows, StepShape};
use crate::device::{FirstStep, Followed, SliceError};
use crate::model::flow::Step;
use crate::model::{KeyValue, KvCache};

/// One request on its way through the blocks of a slice.
pub(super) struct Following {
    slice: Arc<TtnnExpert>,
    step: Step,
    x: Tensor,
    state: Option<Tensor>,
    /// Known with the first entry.
    begun: Option<Begun>,
    entries: Vec<KeyValue>,
}

/// The programs, which depend on the length of the prefix.
struct Begun {
    rows: ValidRows,
    state: Option<StateToken>,
    actions: StepLease,
}

impl Following {
    pub(super) fn begin(
        slice: Arc<TtnnExpert>,
        x: Tensor,
        state: Option<Tensor>,
        step: Step,
    ) -> Result<Self, SliceError> {
        slice.check_x(&x)?;
        match (slice.sizes.variant, &state) {
            (Variant::Pi0, None) => return Err(slice.shape("a state", "[1, width]".into(), &[0])),
            (_, Some(state)) => slice.check_state(state)?,
            (Variant::Pi05, None) => {}
        }
        Ok(Self { slice, step, x, state, begun: None, entries: Vec::new() })
    }

    fn begun(&mut self, entry: &KeyValue) -> Result<Begun, SliceError> {
        let Self { slice, step, x, state, .. } = self;
        let rows = ValidRows::of_prefix(&entry.keys, entry.tokens());
        let prefix = PrefixRows::holding(rows.padded());
        let shape = StepShape { requests: 1, prefix, steps: step.of().count() };
        let mut actions = slice.lease_step(shape, &[])?;
        actions.holds = vec![None];
        let state = state.as_ref().map(|state| StateToken::begin(slice, state, rows.clone())).transpose()?;
        slice.begin(&mut actions, &[x], &[(*step, rows.clone())])?;
        Ok(Begun { rows, state, actions })
    }
}

impl FirstStep for Following {
    fn layer(&mut self, mut entry: KeyValue) -> Result<(), SliceError> {
        let index = self.entries.len();
        let range = self.slice.layers;
        if index == range.len() {
            return Err(SliceError::Entries { range, found: index + 1 });
        }
        let tokens = self.begun.as_ref().map_or(entry.tokens(), |begun| begun.rows.count());
        SliceError::check_entry(self.slice.sizes.expert.kv_width(), tokens, &entry)?;
        if self.begun.is_none() {
            self.begun = Some(self.begun(&entry)?);
        }
        let Self { slice, begun: Some(begun), entries, .. } = self else { return Ok(()) };
        let layer = range.start() + index;
        if let Some(state) = &mut begun.state {
            state.layer(slice, layer, &mut entry)?;
        }
        slice.write_entry(&mut begun.actions, layer, 0, &entry, &begun.rows)?;
        begun.actions.run(&format!("layer {layer}"))?;
        entries.push(entry);
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<Followed, SliceError> {
        let Self { slice, begun, entries, .. } = *self;
        let (Some(mut begun), true) = (begun, entries.len() == slice.layers.len()) else {
            return Err(SliceError::Entries { range: slice.layers, found: entries.len() });
        };
        let output = slice.end(&mut begun.actions)?.remove(0);
        let cache = KvCache::new(slice.layers, entries).expect("entries of one length, one per layer");
        // Its keys and values lie there already for the steps to come.
        begun.actions.holds = vec![Some(cache.content())];
        let state = begun.state.map(|state| state.finish(&slice)).transpose()?.flatten();
        Ok(Followed { output, state, cache })
    }
}
