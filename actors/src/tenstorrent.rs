//! Slices on the chips of a Tenstorrent board.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use tensact_runtime::device::SliceError;
use tensact_runtime::device::host::{ComputeDtype, HostDevice};
use tensact_runtime::device::ttnn::executor::TtnnChip;
use tensact_runtime::device::ttnn::program::Numerics;
use tensact_runtime::device::ttnn::{TtnnExpert, TtnnPrefix, TtnnVision, WeightCache, Weights};
use tensact_topology::{
    ChipId, DeviceKind, ModelSizes, Placement, RequestShape, Residence, Slice, Split, StageKind, Transport,
};

use crate::devices::{Arithmetic, DeviceError, Key, SliceDevice};

/// Opens the board where a slice wants it, and loads every such slice on each of its chips.
pub(crate) fn on_ttnn(
    placement: &Placement,
    arithmetic: &Arithmetic<'_>,
) -> Result<BTreeMap<Key, SliceDevice>, DeviceError> {
    let slices = placement.pipelines.iter().flat_map(|pipeline| &pipeline.slices);
    let slices: Vec<&Slice> = slices.filter(|slice| slice.device == DeviceKind::Ttnn).collect();
    let Arithmetic::Host { checkpoint, board, request, threads } = arithmetic else {
        return Ok(BTreeMap::new());
    };
    if slices.is_empty() {
        return Ok(BTreeMap::new());
    }
    for slice in &slices {
        supported(slice)?;
    }
    let mut ids: Vec<ChipId> = slices.iter().flat_map(|slice| slice.chips.iter().copied()).collect();
    ids.sort_unstable();
    ids.dedup();
    let weights = Weights::new(HostDevice::new(*threads, ComputeDtype::F32)?, checkpoint);
    let weights = Arc::new(match WeightCache::of_user() {
        Some(cache) => weights.cached_in(cache),
        None => weights,
    });
    let chips: BTreeMap<ChipId, Arc<TtnnChip>> =
        ids.iter().copied().zip(TtnnChip::open(board, &ids, &weights)?).collect();
    let mut devices = BTreeMap::new();
    for slice in slices {
        for chip in &slice.chips {
            if let Entry::Vacant(place) = devices.entry(Key::of(slice, *chip)) {
                place.insert(load(&chips[chip], checkpoint.sizes(), slice, request)?);
            }
        }
    }
    Ok(devices)
}

fn supported(slice: &Slice) -> Result<(), DeviceError> {
    let refuse = |what| Err(DeviceError::NotOnTtnn { stage: slice.stage, layers: slice.layers, what });
    match (slice.split, slice.transport) {
        (Split::Tensor, _) if slice.chips.len() > 1 => {
            refuse("chips cannot share layers by tensor yet: give each layer to one chip")
        }
        (_, Transport::Socket) => refuse(
            "tensors go from chip to chip over the host for now: leave `transport` out, or write transport = \"host\"",
        ),
        _ if slice.residence == Residence::L1 => {
            refuse("weights lie in DRAM for now: leave `resident` out, or write resident = \"dram\"")
        }
        _ => Ok(()),
    }
}

fn load(
    chip: &Arc<TtnnChip>,
    sizes: &ModelSizes,
    slice: &Slice,
    request: &RequestShape,
) -> Result<SliceDevice, SliceError> {
    let (chip, numerics) = (Arc::clone(chip) as _, Numerics::of(slice.weights));
    Ok(match slice.stage {
        StageKind::Vision => SliceDevice::Vision(Arc::new(TtnnVision::load(
            chip,
            sizes,
            slice.layers,
            numerics,
            request,
            Destination::Host,
        )?)),
        StageKind::Prefix => SliceDevice::Prefix(Arc::new(TtnnPrefix::load(
            chip,
            sizes,
            slice.layers,
            numerics,
            request,
            PrefixDestinations::default(),
        )?)),
        StageKind::Expert => SliceDevice::Expert(Arc::new(TtnnExpert::load(
            chip,
            sizes,
            slice.layers,
            numerics,
            request,
            Destination::Host,
        )?)),
    })
}
