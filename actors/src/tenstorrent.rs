//! Slices on the chips of a Tenstorrent board, and how they hand over to each other.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tensact_runtime::device::SliceError;
use tensact_runtime::device::ttnn::program::Numerics;
use tensact_runtime::device::ttnn::{
    Chip, Destination, PrefixDestinations, TtnnExpert, TtnnPrefix, TtnnVision,
};
use tensact_topology::cost::Route;
use tensact_topology::{
    Board, Calibration, ChipId, CostModel, DeviceKind, ModelSizes, Payload, Pipeline, Placement,
    RequestShape, Slice, StageKind,
};

use crate::devices::{Key, SliceDevice};
use crate::recorder::Place;

/// Chips of a board, and what leads from one to another.
pub(crate) struct Fabric<'a> {
    pub(crate) board: &'a Board,
    pub(crate) sizes: &'a ModelSizes,
    /// Whether there are sockets at all: without them tensors go from chip to chip over the host.
    pub(crate) sockets: bool,
}

impl Fabric<'_> {
    /// Where a chip of a slice leaves what another slice takes.
    fn way(&self, from: &Slice, chip: ChipId, to: &Slice) -> Destination {
        if to.device != DeviceKind::Ttnn {
            return Destination::Host;
        }
        if to.chips == [chip] {
            return Destination::Chip(chip);
        }
        let model =
            CostModel::new(self.board, self.sizes, RequestShape::of(self.sizes), Calibration::shipped());
        let reaches = |other: &ChipId| *other == chip || self.board.socket_link(chip, *other).is_some();
        let carried = self.sockets && model.route(from, to) != Route::Host && to.chips.iter().all(reaches);
        match to.chips[..] {
            [only] if carried => Destination::Chip(only),
            // Whichever of them takes it fetches it.
            _ if carried => Destination::Chip(chip),
            _ => Destination::Host,
        }
    }

    /// Where a chip of a slice leaves what it computes.
    fn destinations(&self, pipeline: &Pipeline, place: usize, chip: ChipId) -> PrefixDestinations {
        let mut destinations = PrefixDestinations::default();
        let from = &pipeline.slices[place];
        for edge in pipeline.edges().into_iter().filter(|edge| edge.from == place) {
            let to = &pipeline.slices[edge.to];
            match edge.payload {
                Payload::Cache => destinations.caches.push((to.layers, self.way(from, chip, to))),
                // What closes a ring is a velocity, which the host integrates.
                Payload::Step if to.layers.start() == 0 => {}
                Payload::Hidden | Payload::ImageTokens | Payload::Step => {
                    destinations.hidden = self.way(from, chip, to);
                }
            }
        }
        destinations
    }

    /// All ways from chip to chip that a placement goes.
    pub(crate) fn sockets(&self, placement: &Placement) -> BTreeSet<(ChipId, ChipId)> {
        let mut sockets = BTreeSet::new();
        for pipeline in &placement.pipelines {
            for edge in pipeline.edges() {
                let [from, to] = [edge.from, edge.to].map(|place| &pipeline.slices[place]);
                for chip in from.chips.iter().filter(|_| from.device == DeviceKind::Ttnn) {
                    if self.way(from, *chip, to) != Destination::Host {
                        sockets.extend(to.chips.iter().filter(|other| *other != chip).map(|to| (*chip, *to)));
                    }
                }
            }
        }
        sockets
    }

    /// Loads every slice on device `ttnn` on each of its chips, ready for requests of this shape.
    pub(crate) fn load(
        &self,
        placement: &Placement,
        request: &RequestShape,
        chips: &BTreeMap<ChipId, Arc<dyn Chip>>,
    ) -> Result<BTreeMap<Key, SliceDevice>, SliceError> {
        let mut devices = BTreeMap::new();
        for (number, pipeline) in placement.pipelines.iter().enumerate() {
            for (place, slice) in pipeline.slices.iter().enumerate() {
                for chip in slice.chips.iter().filter(|_| slice.device == DeviceKind::Ttnn) {
                    let key = Key::of(slice, Place { pipeline: number, slice: place }, *chip);
                    let to = self.destinations(pipeline, place, *chip);
                    devices.insert(key, self.slice(&chips[chip], slice, request, to)?);
                }
            }
        }
        Ok(devices)
    }

    fn slice(
        &self,
        chip: &Arc<dyn Chip>,
        slice: &Slice,
        request: &RequestShape,
        to: PrefixDestinations,
    ) -> Result<SliceDevice, SliceError> {
        let (chip, sizes, layers) = (Arc::clone(chip), self.sizes, slice.layers);
        let numerics = Numerics::of(slice.weights);
        Ok(match slice.stage {
            StageKind::Vision => SliceDevice::Vision(Arc::new(TtnnVision::load(
                chip, sizes, layers, numerics, request, to.hidden,
            )?)),
            StageKind::Prefix => {
                SliceDevice::Prefix(Arc::new(TtnnPrefix::load(chip, sizes, layers, numerics, request, to)?))
            }
            StageKind::Expert => SliceDevice::Expert(Arc::new(TtnnExpert::load(
                chip, sizes, layers, numerics, request, to.hidden,
            )?)),
        })
    }
}

#[cfg(feature = "ttnn")]
pub(crate) use opened::on_ttnn;

/// The board of this machine.
#[cfg(feature = "ttnn")]
mod opened {
    use tensact_runtime::device::host::{ComputeDtype, HostDevice};
    use tensact_runtime::device::ttnn::executor::{TtnnChip, mocked};
    use tensact_runtime::device::ttnn::{WeightCache, Weights};
    use tensact_topology::{Residence, Split, Transport};

    use super::*;
    use crate::devices::{Arithmetic, DeviceError, OnTtnn};

    /// Opens the board where a slice wants it, and loads every such slice on each of its chips.
    pub(crate) fn on_ttnn(placement: &Placement, arithmetic: &Arithmetic<'_>) -> Result<OnTtnn, DeviceError> {
        let slices = placement.pipelines.iter().flat_map(|pipeline| &pipeline.slices);
        let slices: Vec<&Slice> = slices.filter(|slice| slice.device == DeviceKind::Ttnn).collect();
        let Arithmetic::Host { checkpoint, board, request, threads } = arithmetic else {
            return Ok(OnTtnn::default());
        };
        if slices.is_empty() {
            return Ok(OnTtnn::default());
        }
        let sockets = mocked().is_none();
        for slice in &slices {
            supported(slice, sockets)?;
        }
        let fabric = Fabric { board, sizes: checkpoint.sizes(), sockets };
        let ids: BTreeSet<ChipId> = slices.iter().flat_map(|slice| slice.chips.iter().copied()).collect();
        let ids: Vec<ChipId> = ids.into_iter().collect();
        let weights = Weights::new(HostDevice::new(*threads, ComputeDtype::F32)?, checkpoint);
        let weights = Arc::new(match WeightCache::of_user() {
            Some(cache) => weights.cached_in(cache),
            None => weights,
        });
        let chips = TtnnChip::open(board, &ids, &fabric.sockets(placement), &weights)?;
        let chips = ids.into_iter().zip(chips.into_iter().map(|chip| chip as _)).collect();
        Ok(OnTtnn { devices: fabric.load(placement, request, &chips)?, sockets })
    }

    fn supported(slice: &Slice, sockets: bool) -> Result<(), DeviceError> {
        let refuse = |what| Err(DeviceError::NotOnTtnn { stage: slice.stage, layers: slice.layers, what });
        match (slice.split, slice.transport) {
            (Split::Tensor, _) if slice.chips.len() > 1 => {
                refuse("chips cannot share layers by tensor yet: give each layer to one chip")
            }
            (_, Transport::Socket) if !sockets => refuse(
                "mock chips have no sockets in the TT-NN that Tensact is linked to: leave `transport` out, or write \
                 transport = \"host\"",
            ),
            _ if slice.residence == Residence::L1 => {
                refuse("weights lie in DRAM for now: leave `resident` out, or write resident = \"dram\"")
            }
            _ => Ok(()),
        }
    }
}
