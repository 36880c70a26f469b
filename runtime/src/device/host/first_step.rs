//! The first denoising step of a request, one layer behind the VLM that fills its cache.

use std::sync::Arc;

use tensact_topology::Variant;

use super::expert::{ExpertSlice, Suffix};
use super::rope::Rotation;
use crate::Tensor;
use crate::device::{FirstStep, Followed, SliceError};
use crate::model::flow::Step;
use crate::model::{KeyValue, KvCache};

/// One request on its way through the blocks of a slice.
pub(super) struct Following {
    slice: Arc<ExpertSlice>,
    step: Step,
    /// Action tokens `[horizon, width]`.
    actions: Tensor,
    /// π0's state token `[1, width]`.
    state: Option<Tensor>,
    /// Known with the first entry.
    place: Option<Place>,
    /// Layers that have run, with the keys and values of the state token.
    entries: Vec<KeyValue>,
}

/// Where the suffix stands: behind the prefix.
struct Place {
    /// Tokens of the prefix.
    prefix: usize,
    state: Rotation,
    actions: Suffix,
}

impl Following {
    pub(super) fn begin(
        slice: Arc<ExpertSlice>,
        x: &Tensor,
        state: Option<&Tensor>,
        step: Step,
    ) -> Result<Self, SliceError> {
        let state = match (slice.sizes.variant, state) {
            (Variant::Pi0, Some(state)) => Some(slice.state_tokens(std::slice::from_ref(state))?),
            (Variant::Pi05, None) => None,
            (Variant::Pi0, None) => return Err(slice.shape("a state", "[1, width]".into(), &[0])),
            (Variant::Pi05, Some(_)) => return Err(slice.takes_no_state()),
        };
        let actions = slice.action_tokens(&[(x, step)])?;
        Ok(Self { slice, step, actions, state, place: None, entries: Vec::new() })
    }
}

impl FirstStep for Following {
    fn layer(&mut self, entry: KeyValue) -> Result<(), SliceError> {
        let device = Arc::clone(&self.slice.device);
        device.run(|| self.follow(entry))
    }

    fn finish(self: Box<Self>) -> Result<Followed, SliceError> {
        let Self { slice, step, actions, state, entries, .. } = *self;
        if entries.len() != slice.layers.len() {
            return Err(SliceError::Entries { range: slice.layers, found: entries.len() });
        }
        Ok(Followed {
            output: slice.output(actions, &[step])?,
            state: state.and_then(|state| slice.for_the_next_slice(state)),
            cache: KvCache::new(slice.layers, entries).expect("entries of one length, one per layer"),
        })
    }
}

impl Following {
    /// The next layer, on its entry.
    fn follow(&mut self, mut entry: KeyValue) -> Result<(), SliceError> {
        let Self { slice, step, actions, state, place, entries } = self;
        let index = entries.len();
        if index == slice.layers.len() {
            return Err(SliceError::Entries { range: slice.layers, found: index + 1 });
        }
        let prefix = place.as_ref().map_or(entry.tokens(), |place| place.prefix);
        SliceError::check_entry(slice.sizes.expert.kv_width(), prefix, &entry)?;
        let place = place.get_or_insert_with(|| Place {
            prefix,
            state: slice.state_rotation(std::iter::once(prefix)),
            actions: slice.suffix(std::iter::once((*step, prefix + usize::from(state.is_some())))),
        });
        if let Some(state) = state {
            slice.state_layer(index, state, &place.state, &mut [&mut entry])?;
        }
        slice.action_layer(index, actions, &place.actions, std::iter::once(&entry));
        entries.push(entry);
        Ok(())
    }
}
