//! On which device a policy is held against a reference, and in which types.

use std::num::NonZeroUsize;
use std::sync::Arc;

use clap::{Args, ValueEnum};
use miette::miette;
use serde::Serialize;
use tensact::runtime::checkpoint::Checkpoint;
use tensact::runtime::device::host::{ComputeDtype, HostDevice};
use tensact::runtime::device::ttnn::program::Numerics;
use tensact::runtime::device::ttnn::{Chip, Interpreter};
use tensact::runtime::reference::ReferenceInputs;
use tensact::runtime::tensor_file::TensorFile;
use tensact::runtime::verify::{Report, verify, verify_on_chip};
use tensact::topology::WeightDtype;

use super::told;

/// A device and how it computes.
#[derive(Args)]
pub(super) struct DeviceOptions {
    /// Where the policy is computed.
    #[arg(long, value_name = "DEVICE", value_enum, default_value_t = DeviceName::Host)]
    device: DeviceName,
    /// On the host, the type in which products take their factors: bf16 (the default) or f32. On `emulated-numerics`, the
    /// type of the weights: bfp8_b (the default, as in deployments) or bf16.
    #[arg(long, value_name = "TYPE", value_parser = weight_dtype)]
    dtype: Option<WeightDtype>,
    /// Worker threads; all cores unless given.
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
}

/// A device by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum DeviceName {
    /// This machine's processor.
    Host,
    /// The programs of Tenstorrent chips, run on the host with a chip's rounding: what a type of weights costs.
    EmulatedNumerics,
}

/// A device with types that it computes in.
pub(super) enum Device {
    Host(Arc<HostDevice>),
    EmulatedNumerics { weights: WeightDtype, threads: Option<NonZeroUsize> },
}

fn weight_dtype(word: &str) -> Result<WeightDtype, String> {
    let known = [WeightDtype::Bf16, WeightDtype::Bfp8B, WeightDtype::F32];
    known
        .into_iter()
        .find(|dtype| dtype.name() == word)
        .ok_or_else(|| format!("`{word}` is not a compute type: expected bf16, bfp8_b or f32"))
}

impl DeviceOptions {
    /// The device, if it computes in that type.
    pub(super) fn device(&self) -> miette::Result<Device> {
        let threads = self.threads;
        let host = |dtype| HostDevice::new(threads, dtype).map(Device::Host).map_err(told);
        match (self.device, self.dtype) {
            (DeviceName::Host, None | Some(WeightDtype::Bf16)) => host(ComputeDtype::Bf16),
            (DeviceName::Host, Some(WeightDtype::F32)) => host(ComputeDtype::F32),
            (DeviceName::Host, Some(WeightDtype::Bfp8B)) => Err(miette!(
                "the host does not compute in bfp8_b: it takes --dtype bf16 or f32; chips have weights in bfp8_b: \
                 --device emulated-numerics"
            )),
            (DeviceName::EmulatedNumerics, Some(WeightDtype::F32)) => Err(miette!(
                "chips do not have weights in f32: --device emulated-numerics takes --dtype bfp8_b or bf16; the host \
                 computes in f32: --device host"
            )),
            (DeviceName::EmulatedNumerics, dtype) => {
                Ok(Device::EmulatedNumerics { weights: dtype.unwrap_or(WeightDtype::Bfp8B), threads })
            }
        }
    }
}

impl Device {
    /// Its name.
    pub(super) fn name(&self) -> DeviceName {
        match self {
            Device::Host(_) => DeviceName::Host,
            Device::EmulatedNumerics { .. } => DeviceName::EmulatedNumerics,
        }
    }

    /// The type it computes in.
    pub(super) fn dtype(&self) -> WeightDtype {
        match self {
            Device::Host(host) => match host.dtype() {
                ComputeDtype::Bf16 => WeightDtype::Bf16,
                ComputeDtype::F32 => WeightDtype::F32,
            },
            Device::EmulatedNumerics { weights, .. } => *weights,
        }
    }

    /// Holds a checkpoint on this device against a reference.
    pub(super) fn verify(
        &self,
        checkpoint: &Checkpoint,
        reference: &TensorFile,
        inputs: &ReferenceInputs,
    ) -> miette::Result<Report> {
        let report = match self {
            Device::Host(host) => verify(host, checkpoint, reference, inputs),
            Device::EmulatedNumerics { weights, threads } => {
                let chip: Arc<dyn Chip> = Interpreter::new(checkpoint, *threads).map_err(told)?;
                verify_on_chip(&chip, checkpoint.sizes(), Numerics::of(*weights), reference, inputs)
            }
        };
        report.map_err(told)
    }
}
