//! Slices loaded on their devices.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::Arc;

use tensact_runtime::checkpoint::Checkpoint;
use tensact_runtime::device::emulated::{EmulatedExpert, EmulatedPrefix, EmulatedVision};
use tensact_runtime::device::host::{
    ComputeDtype, ExpertSlice, HostDevice, NoThreads, PrefixSlice, VisionSlice,
};
use tensact_runtime::device::idle::Idle;
use tensact_runtime::device::{ExpertStage, PrefixStage, SliceError, VisionStage};
use tensact_topology::{DeviceKind, LayerRange, ModelSizes, Placement, Slice, StageKind, WeightDtype};

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
    Host { checkpoint: &'a Checkpoint, threads: Option<NonZeroUsize> },
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
         set device = \"emulated\" or \"host\""
    )]
    NoTtnn {
        /// The stage.
        stage: StageKind,
        /// Its layers.
        layers: LayerRange,
    },
}

type Key = (StageKind, usize, usize, bool);

/// All slices of a placement. Replicas share what they have in common.
pub(crate) struct Devices(BTreeMap<Key, SliceDevice>);

impl Devices {
    /// Loads every slice of a placement once.
    pub(crate) fn load(
        placement: &Placement,
        sizes: &ModelSizes,
        arithmetic: &Arithmetic<'_>,
    ) -> Result<Self, DeviceError> {
        let mut hosts: BTreeMap<bool, Arc<HostDevice>> = BTreeMap::new();
        let mut devices = BTreeMap::new();
        for slice in placement.pipelines.iter().flat_map(|pipeline| &pipeline.slices) {
            if slice.device == DeviceKind::Ttnn {
                return Err(DeviceError::NoTtnn { stage: slice.stage, layers: slice.layers });
            }
            if devices.contains_key(&key(slice)) {
                continue;
            }
            let device = match arithmetic {
                Arithmetic::Digests => digests(slice, sizes)?,
                Arithmetic::Nothing => nothing(slice, sizes)?,
                Arithmetic::Host { checkpoint, threads } => {
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
            devices.insert(key(slice), device);
        }
        Ok(Self(devices))
    }

    /// Puts something in the place of every device.
    #[cfg(test)]
    pub(crate) fn map(self, with: impl Fn(SliceDevice) -> SliceDevice) -> Self {
        Self(self.0.into_iter().map(|(key, device)| (key, with(device))).collect())
    }

    /// The device of a slice of the placement.
    pub(crate) fn of(&self, slice: &Slice) -> SliceDevice {
        self.0[&key(slice)].clone()
    }
}

fn key(slice: &Slice) -> Key {
    (slice.stage, slice.layers.start(), slice.layers.end(), slice.weights == WeightDtype::F32)
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
