//! Slices loaded on their devices.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::sync::Arc;

use tensact_runtime::checkpoint::Checkpoint;
use tensact_runtime::device::emulated::{EmulatedExpert, EmulatedPrefix, EmulatedVision};
use tensact_runtime::device::host::{
    ComputeDtype, ExpertSlice, HostDevice, NoThreads, PrefixSlice, VisionSlice,
};
use tensact_runtime::device::idle::Idle;
use tensact_runtime::device::{ExpertStage, PrefixStage, SliceError, VisionStage};
use tensact_topology::{
    Board, ChipId, DeviceKind, LayerRange, ModelSizes, Placement, RequestShape, Slice, StageKind, WeightDtype,
};

/// A slice, loaded.
#[derive(Clone)]
pub(crate) enum SliceDevice {
    Vision(Arc<dyn VisionStage>),
    Prefix(Arc<dyn PrefixStage>),
    Expert(Arc<dyn ExpertStage>),
}

/// What slices compute.
pub(crate) enum Arithmetic<'a> {
    /// The policy, on this machine. An emulated chip then computes what a host does, and takes the time of a chip.
    Host {
        checkpoint: &'a Checkpoint,
        /// Whose chips are opened, where slices are on device `ttnn`.
        #[cfg_attr(not(feature = "ttnn"), expect(dead_code, reason = "without TT-NN no board is opened"))]
        board: &'a Board,
        /// What such slices are made ready for.
        #[cfg_attr(not(feature = "ttnn"), expect(dead_code, reason = "without TT-NN nothing is made ready"))]
        request: RequestShape,
        threads: Option<NonZeroUsize>,
    },
    /// Digests, which show mixed-up requests.
    Digests,
    /// Nothing.
    Nothing,
}

/// Slices could not be loaded on their devices.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// No threads.
    #[error(transparent)]
    Threads(#[from] NoThreads),
    /// The policy has no such slice.
    #[error(transparent)]
    Slice(#[from] SliceError),
    /// The device is not in this build.
    #[error(
        "{stage} layers {layers} are to run on device `ttnn`, which this build does not have: \
         build it with `--features ttnn`, or set device = \"emulated\" or \"host\""
    )]
    NoTtnn {
        /// The stage.
        stage: StageKind,
        /// Its layers.
        layers: LayerRange,
    },
    /// The board does not open.
    #[cfg(feature = "ttnn")]
    #[error(transparent)]
    Board(#[from] tensact_runtime::device::ttnn::executor::OpenError),
    /// Device `ttnn` has no program for how chips share a slice, or hand over.
    #[cfg(feature = "ttnn")]
    #[error("{stage} layers {layers} on device `ttnn`: {what}")]
    NotOnTtnn {
        /// The stage.
        stage: StageKind,
        /// Its layers.
        layers: LayerRange,
        /// What is not there, and what to write instead.
        what: &'static str,
    },
}

/// Which slices share a device: those with the same weights, on Tenstorrent boards on the same chip.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    stage: StageKind,
    layers: (usize, usize),
    f32: bool,
    chip: Option<ChipId>,
}

impl Key {
    pub(crate) fn of(slice: &Slice, chip: ChipId) -> Self {
        Self {
            stage: slice.stage,
            layers: (slice.layers.start(), slice.layers.end()),
            f32: slice.weights == WeightDtype::F32,
            chip: (slice.device == DeviceKind::Ttnn).then_some(chip),
        }
    }
}

/// Slices of a placement. Replicas share what they have in common.
#[derive(Default)]
pub(crate) struct Devices {
    pub(crate) slices: BTreeMap<Key, SliceDevice>,
    /// Pipeline and ends of edges that go from one Tenstorrent chip to another without the host.
    pub(crate) by_socket: BTreeSet<(usize, usize, usize)>,
}

impl Devices {
    /// Loads every slice of a placement once.
    pub(crate) fn load(
        placement: &Placement,
        sizes: &ModelSizes,
        arithmetic: &Arithmetic<'_>,
    ) -> Result<Self, DeviceError> {
        let mut hosts: BTreeMap<bool, Arc<HostDevice>> = BTreeMap::new();
        let mut devices = on_ttnn(placement, arithmetic)?;
        for slice in placement.pipelines.iter().flat_map(|pipeline| &pipeline.slices) {
            let key = Key::of(slice, slice.chips[0]);
            if devices.slices.contains_key(&key) {
                continue;
            }
            let device = match arithmetic {
                Arithmetic::Digests => digests(slice, sizes)?,
                Arithmetic::Nothing => nothing(slice, sizes)?,
                Arithmetic::Host { checkpoint, threads, .. } => {
                    let f32 = slice.weights == WeightDtype::F32;
                    let host = match hosts.get(&f32) {
                        Some(host) => Arc::clone(host),
                        None => {
                            let dtype = if f32 { ComputeDtype::F32 } else { ComputeDtype::Bf16 };
                            Arc::clone(hosts.entry(f32).or_insert(HostDevice::new(*threads, dtype)?))
                        }
                    };
                    on_host(&host, checkpoint, slice)?
                }
            };
            devices.slices.insert(key, device);
        }
        Ok(devices)
    }

    /// Puts something in the place of every device.
    #[cfg(test)]
    pub(crate) fn map(self, with: impl Fn(SliceDevice) -> SliceDevice) -> Self {
        Self { slices: self.slices.into_iter().map(|(key, device)| (key, with(device))).collect(), ..self }
    }

    /// The device of a slice of the placement, on one of its chips.
    pub(crate) fn of(&self, slice: &Slice, chip: ChipId) -> SliceDevice {
        self.slices[&Key::of(slice, chip)].clone()
    }

    /// Whether Tenstorrent chips hand over what goes from one slice of a pipeline to another by sockets.
    pub(crate) fn by_socket(&self, pipeline: usize, from: usize, to: usize) -> bool {
        self.by_socket.contains(&(pipeline, from, to))
    }
}

#[cfg(feature = "ttnn")]
use crate::tenstorrent::on_ttnn;

/// Slices on Tenstorrent chips, which this build cannot drive.
#[cfg(not(feature = "ttnn"))]
fn on_ttnn(placement: &Placement, _: &Arithmetic<'_>) -> Result<Devices, DeviceError> {
    let mut slices = placement.pipelines.iter().flat_map(|pipeline| &pipeline.slices);
    match slices.find(|slice| slice.device == DeviceKind::Ttnn) {
        Some(slice) => Err(DeviceError::NoTtnn { stage: slice.stage, layers: slice.layers }),
        None => Ok(Devices::default()),
    }
}

fn digests(slice: &Slice, sizes: &ModelSizes) -> Result<SliceDevice, SliceError> {
    Ok(match slice.stage {
        StageKind::Vision => SliceDevice::Vision(Arc::new(EmulatedVision::new(slice.layers, sizes)?)),
        StageKind::Prefix => SliceDevice::Prefix(Arc::new(EmulatedPrefix::new(slice.layers, sizes)?)),
        StageKind::Expert => SliceDevice::Expert(Arc::new(EmulatedExpert::new(slice.layers, sizes)?)),
    })
}

fn nothing(slice: &Slice, sizes: &ModelSizes) -> Result<SliceDevice, SliceError> {
    let idle = Arc::new(Idle::new(slice.stage, slice.layers, sizes)?);
    Ok(match slice.stage {
        StageKind::Vision => SliceDevice::Vision(idle),
        StageKind::Prefix => SliceDevice::Prefix(idle),
        StageKind::Expert => SliceDevice::Expert(idle),
    })
}

fn on_host(
    host: &Arc<HostDevice>,
    checkpoint: &Checkpoint,
    slice: &Slice,
) -> Result<SliceDevice, SliceError> {
    Ok(match slice.stage {
        StageKind::Vision => {
            SliceDevice::Vision(Arc::new(VisionSlice::load(host, checkpoint, slice.layers)?))
        }
        StageKind::Prefix => {
            SliceDevice::Prefix(Arc::new(PrefixSlice::load(host, checkpoint, slice.layers)?))
        }
        StageKind::Expert => {
            SliceDevice::Expert(Arc::new(ExpertSlice::load(host, checkpoint, slice.layers)?))
        }
    })
}
