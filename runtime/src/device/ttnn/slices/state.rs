//! π0's state token on a chip: its keys and values, once per request.

use tensact_topology::Variant;

use super::expert::TtnnExpert;
use super::pool::Lease;
use super::rows::{Form, ValidRows, mask_row};
use crate::Tensor;
use crate::device::SliceError;
use crate::device::ttnn::program::{PrefixRows, TILE};
use crate::model::{KeyValue, KvCache};

/// A state token on its way through the blocks of a slice.
pub(super) struct StateToken {
    prefix: ValidRows,
    lease: Lease<PrefixRows, ()>,
}

/// How it lies in a program: the first row of a tile.
fn first_row() -> Form {
    Form::Rows(ValidRows::first(1, TILE))
}

impl StateToken {
    /// `input` is a state or a hidden state, one row; it stands behind a prefix of these rows.
    pub(super) fn begin(slice: &TtnnExpert, input: &Tensor, prefix: ValidRows) -> Result<Self, SliceError> {
        let mut lease = slice.lease_state(PrefixRows::holding(prefix.padded()))?;
        let name = if slice.layers.start() == 0 { "state" } else { "hidden" };
        lease.take(name, input, &first_row())?;
        lease.write_numbers("positions", &[prefix.count() as u32; TILE])?;
        let counting = prefix.places().chain([prefix.padded()]);
        lease.write("keys that count", &mask_row(prefix.padded() + TILE, counting))?;
        lease.run("begin")?;
        Ok(Self { prefix, lease })
    }

    /// Runs a layer behind the keys and values of its prefix, and appends the token's own to them.
    pub(super) fn layer(
        &mut self,
        slice: &TtnnExpert,
        layer: usize,
        entry: &mut KeyValue,
    ) -> Result<(), SliceError> {
        let form = slice.heads(self.prefix.clone());
        for (what, part) in [("keys", &entry.keys), ("values", &entry.values)] {
            self.lease.take(&format!("{what} {layer}"), part, &form)?;
        }
        self.lease.run(&format!("layer {layer}"))?;
        for (what, part) in [("keys", &mut entry.keys), ("values", &mut entry.values)] {
            let output = format!("state {what} {layer}");
            // It lies where those of the prefix lie.
            *part = match part.resident() {
                Some(resident) => {
                    let own = self.lease.keep(&output, slice.chip())?;
                    Tensor::on_chip([part.rows() + 1, part.width()], resident.followed_by(own))
                }
                None => {
                    let spec = self.lease.program.program().value(self.lease.output(&output)?).spec;
                    part.followed_by(&form.of_one_row().gather(&self.lease.read(&output)?, spec))
                }
            };
        }
        Ok(())
    }

    /// The hidden state for the next slice, `[1, width]`; nothing after the last layer.
    pub(super) fn finish(mut self, slice: &TtnnExpert) -> Result<Option<Tensor>, SliceError> {
        if slice.is_last() {
            return Ok(None);
        }
        Ok(Some(self.lease.give("hidden", &first_row(), slice.to)?))
    }
}

impl TtnnExpert {
    /// One request after the other: a state token is one row of a tile.
    pub(super) fn cache_states(
        &self,
        states: &[Tensor],
        caches: &mut [&mut KvCache],
    ) -> Result<Option<Vec<Tensor>>, SliceError> {
        SliceError::check_states(states.len(), caches.len())?;
        for (state, cache) in states.iter().zip(caches.iter()) {
            self.check_state(state)?;
            self.check_cache(cache, 0)?;
        }
        let mut hidden = Vec::new();
        for (state, cache) in states.iter().zip(caches) {
            let prefix = ValidRows::of_prefix(&cache.entry(0).keys, cache.tokens());
            let mut token = StateToken::begin(self, state, prefix)?;
            for (layer, entry) in self.layers.iter().zip(cache.entries_mut()) {
                token.layer(self, layer, entry)?;
            }
            hidden.extend(token.finish(self)?);
        }
        Ok((!self.is_last()).then_some(hidden))
    }

    /// Whether this is the state, or hidden state, of a request.
    pub(super) fn check_state(&self, state: &Tensor) -> Result<(), SliceError> {
        if self.sizes.variant == Variant::Pi05 {
            return Err(self.takes_no_state());
        }
        let first = self.layers.start() == 0;
        let expected = [1, if first { self.sizes.state_dim } else { self.sizes.expert.width }];
        if state.shape() == expected {
            return Ok(());
        }
        Err(self.shape(
            if first { "a state" } else { "a state token" },
            format!("{expected:?}"),
            state.shape(),
        ))
    }
}
