//! What a placement takes of its chips' memory.

use std::collections::BTreeMap;

use serde::Serialize;
use tensact_topology::workload::slice_memory;
use tensact_topology::{ChipId, ModelSizes, Placement, RequestShape, Residence};

/// Memory that a placement sets aside on a chip, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct SetAside {
    /// Weights, caches and activations.
    pub dram_bytes: u64,
    /// Weights that stay in L1.
    pub l1_bytes: u64,
}

impl SetAside {
    /// On each chip of a placement whose pipelines hold so many requests each.
    pub(crate) fn on_chips(
        placement: &Placement,
        sizes: &ModelSizes,
        request: &RequestShape,
        in_flight: usize,
    ) -> BTreeMap<ChipId, Self> {
        let mut chips = BTreeMap::<ChipId, Self>::new();
        for slice in placement.pipelines.iter().flat_map(|pipeline| &pipeline.slices) {
            let memory = slice_memory(sizes, slice, request, in_flight);
            let l1_bytes = if slice.residence == Residence::L1 { memory.weight_bytes } else { 0 };
            for chip in &slice.chips {
                let aside = chips.entry(*chip).or_default();
                aside.l1_bytes += l1_bytes;
                aside.dram_bytes += memory.total_bytes() - l1_bytes;
            }
        }
        chips
    }
}
