//! Slices on the chips of a Tenstorrent board, and how they hand over to each other.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tensact_runtime::device::SliceError;
use tensact_runtime::device::ttnn::program::Numerics;
use tensact_runtime::device::ttnn::{Chip, Destination, Destinations, TtnnExpert, TtnnPrefix, TtnnVision};
use tensact_topology::{
    Board, ChipId, DeviceKind, Edge, ModelSizes, Payload, Pipeline, Placement, RequestShape, Slice,
    StageKind, Transport,
};

use crate::devices::{Devices, Key, SliceDevice};

/// Chips of a board, and what leads from one to another.
pub(crate) struct Fabric<'a> {
    pub(crate) board: &'a Board,
    pub(crate) sizes: &'a ModelSizes,
    /// Whether there are sockets at all: without them tensors go from chip to chip over the host.
    pub(crate) sockets: bool,
}

impl Fabric<'_> {
    /// Where a chip of a slice leaves what goes over an edge.
    fn way(&self, pipeline: &Pipeline, edge: Edge, chip: ChipId) -> Destination {
        let [from, to] = [edge.from, edge.to].map(|place| &pipeline.slices[place]);
        // What closes a ring is a velocity, which the host integrates.
        let closes_a_ring = edge.payload == Payload::Step && to.layers.start() == 0;
        if to.device != DeviceKind::Ttnn || closes_a_ring {
            return Destination::Host;
        }
        if to.chips == [chip] {
            return Destination::Chip(chip);
        }
        let reaches = |other: &ChipId| *other == chip || self.board.socket_link(chip, *other).is_some();
        if !self.sockets || from.transport == Transport::Host || !to.chips.iter().all(reaches) {
            return Destination::Host;
        }
        match to.chips[..] {
            [only] => Destination::Chip(only),
            // Whichever of them takes it fetches it.
            _ => Destination::Chip(chip),
        }
    }

    /// Where a chip of a slice leaves what it computes.
    fn destinations(&self, pipeline: &Pipeline, place: usize, chip: ChipId) -> Destinations {
        let mut destinations = Destinations::default();
        for edge in pipeline.edges().into_iter().filter(|edge| edge.from == place) {
            let way = self.way(pipeline, edge, chip);
            match edge.payload {
                Payload::Cache => destinations.caches.push((pipeline.slices[edge.to].layers, way)),
                Payload::Hidden | Payload::ImageTokens | Payload::Step => destinations.next = way,
            }
        }
        destinations
    }

    /// From which chips to which others an edge goes without the host.
    fn sockets_of(&self, pipeline: &Pipeline, edge: Edge) -> BTreeSet<(ChipId, ChipId)> {
        let [from, to] = [edge.from, edge.to].map(|place| &pipeline.slices[place]);
        let chips = from.chips.iter().filter(|_| from.device == DeviceKind::Ttnn);
        let ways = chips.filter(|chip| self.way(pipeline, edge, **chip) != Destination::Host);
        let pairs = ways.flat_map(|chip| to.chips.iter().map(move |other| (*chip, *other)));
        pairs.filter(|(chip, other)| chip != other).collect()
    }

    /// The same for a whole placement.
    pub(crate) fn all_sockets(&self, placement: &Placement) -> BTreeSet<(ChipId, ChipId)> {
        let of_pipeline = |pipeline: &Pipeline| {
            let edges = pipeline.edges().into_iter();
            edges.flat_map(|edge| self.sockets_of(pipeline, edge)).collect::<Vec<_>>()
        };
        placement.pipelines.iter().flat_map(of_pipeline).collect()
    }

    /// Loads every slice on device `ttnn` on each of its chips, ready for requests of this shape.
    pub(crate) fn load(
        &self,
        placement: &Placement,
        request: &RequestShape,
        chips: &BTreeMap<ChipId, Arc<dyn Chip>>,
    ) -> Result<Devices, SliceError> {
        let mut devices = Devices::default();
        for (number, pipeline) in placement.pipelines.iter().enumerate() {
            for (place, slice) in pipeline.slices.iter().enumerate() {
                for chip in slice.chips.iter().filter(|_| slice.device == DeviceKind::Ttnn) {
                    let to = self.destinations(pipeline, place, *chip);
                    let loaded = self.slice(&chips[chip], slice, request, to)?;
                    devices.slices.insert(Key::of(slice, *chip), loaded);
                }
            }
            let edges = pipeline.edges().into_iter();
            let by_socket = edges.filter(|edge| !self.sockets_of(pipeline, *edge).is_empty());
            devices.by_socket.extend(by_socket.map(|edge| (number, edge.from, edge.to)));
        }
        Ok(devices)
    }

    fn slice(
        &self,
        chip: &Arc<dyn Chip>,
        slice: &Slice,
        request: &RequestShape,
        to: Destinations,
    ) -> Result<SliceDevice, SliceError> {
        let (chip, sizes, layers) = (Arc::clone(chip), self.sizes, slice.layers);
        let numerics = Numerics::of(slice.weights);
        Ok(match slice.stage {
            StageKind::Vision => SliceDevice::Vision(Arc::new(TtnnVision::load(
                chip, sizes, layers, numerics, request, to.next,
            )?)),
            StageKind::Prefix => {
                SliceDevice::Prefix(Arc::new(TtnnPrefix::load(chip, sizes, layers, numerics, request, to)?))
            }
            StageKind::Expert => SliceDevice::Expert(Arc::new(TtnnExpert::load(
                chip, sizes, layers, numerics, request, to.next,
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
    use tensact_topology::{Residence, Split};

    use super::*;
    use crate::devices::{Arithmetic, DeviceError};

    /// Opens the board where a slice wants it, and loads every such slice on each of its chips.
    pub(crate) fn on_ttnn(
        placement: &Placement,
        arithmetic: &Arithmetic<'_>,
    ) -> Result<Devices, DeviceError> {
        let slices = placement.pipelines.iter().flat_map(|pipeline| &pipeline.slices);
        let slices: Vec<&Slice> = slices.filter(|slice| slice.device == DeviceKind::Ttnn).collect();
        let Arithmetic::Host { checkpoint, board, request, threads } = arithmetic else {
            return Ok(Devices::default());
        };
        if slices.is_empty() {
            return Ok(Devices::default());
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
        let chips = TtnnChip::open(board, &ids, &fabric.all_sockets(placement), &weights)?;
        let chips = ids.into_iter().zip(chips.into_iter().map(|chip| chip as _)).collect();
        Ok(fabric.load(placement, request, &chips)?)
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
