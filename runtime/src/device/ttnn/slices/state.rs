//! π0's state token on a chip: its keys and values, once per request.

use tensact_topology::Variant;

use super::expert::TtnnExpert;
use super::pool::Lease;
use super::rows::{by_head, first_rows, from_heads, mask_row, spread_rows};
use crate::Tensor;
use crate::device::SliceError;
use crate::device::ttnn::program::{PrefixRows, TILE};
use crate::model::{KeyValue, KvCache};

/// A state token on its way through the blocks of a slice.
pub(super) struct StateToken {
    prefix: PrefixRows,
    lease: Lease<PrefixRows, ()>,
}

impl StateToken {
    /// `input` is a state or a hidden state, one row; it stands behind so many tokens.
    pub(super) fn begin(slice: &TtnnExpert, input: &[f32], tokens: usize) -> Result<Self, SliceError> {
        let prefix = PrefixRows::holding(tokens);
        let mut lease = slice.lease_state(prefix)?;
        let name = if slice.layers.start() == 0 { "state" } else { "hidden" };
        lease.write(name, &spread_rows(&[input], input.len(), TILE))?;
        lease.write_numbers("positions", &[tokens as u32; TILE])?;
        let counting = (0..tokens).chain([prefix.count()]);
        lease.write("keys that count", &mask_row(prefix.count() + TILE, counting))?;
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
        let expert = &slice.sizes.expert;
        for (what, part) in [("keys", &entry.keys), ("values", &entry.values)] {
            let rows = by_head(part.data(), expert, self.prefix.count());
            self.lease.write(&format!("{what} {layer}"), &rows)?;
        }
        self.lease.run(&format!("layer {layer}"))?;
        let mut own = |what: &str| -> Result<Tensor, SliceError> {
            Ok(from_heads(&self.lease.read(&format!("state {what} {layer}"))?, expert, 1))
        };
        *entry = entry.followed_by(own("keys")?.data(), own("values")?.data());
        Ok(())
    }

    /// The hidden state for the next slice, `[1, width]`; nothing after the last layer.
    pub(super) fn finish(mut self, slice: &TtnnExpert) -> Result<Option<Tensor>, SliceError> {
        if slice.layers.end() == slice.sizes.expert.layers {
            return Ok(None);
        }
        let width = slice.sizes.expert.width;
        Ok(Some(first_rows(&self.lease.read("hidden")?, 1, width)))
    }
}

impl TtnnExpert {
    /// One request after the other: a state token is one row of a tile.
    pub(super) fn cache_states(
        &self,
        input: &Tensor,
        caches: &mut [&mut KvCache],
    ) -> Result<Option<Tensor>, SliceError> {
        self.check_states(input, caches.len())?;
        for cache in caches.iter() {
            self.check_cache(cache, 0)?;
        }
        let mut hidden = Vec::new();
        for (request, cache) in caches.iter_mut().enumerate() {
            let mut token = StateToken::begin(self, input.row(request), cache.tokens())?;
            for (layer, entry) in self.layers.iter().zip(cache.entries_mut()) {
                token.layer(self, layer, entry)?;
            }
            hidden.extend(token.finish(self)?);
        }
        Ok(Tensor::join_rows(&hidden))
    }

    /// Whether this is a state, or a hidden state, for each of so many requests.
    pub(super) fn check_states(&self, input: &Tensor, requests: usize) -> Result<(), SliceError> {
        if self.sizes.variant == Variant::Pi05 {
            return Err(self.takes_no_state());
        }
        let first = self.layers.start() == 0;
        let expected = [requests, if first { self.sizes.state_dim } else { self.sizes.expert.width }];
        if input.shape() == expected {
            return Ok(());
        }
        Err(self.shape(if first { "states" } else { "state tokens" }, format!("{expected:?}"), input.shape()))
    }
}
