//! Every tensor of a reference that a policy computes on its way, held against the reference's.
//!
//! The slices are cut at every layer, so each intermediate is the output of a slice, on any device. What lies inside a
//! slice is compared on the host alone.

mod inside;
mod report;
mod stages;

use std::num::NonZeroUsize;
use std::sync::Arc;

use tensact_topology::{ModelSizes, StageKind};

pub use report::{Closeness, Comparison, Report, StageSummary, Worst};

use crate::Tensor;
use crate::checkpoint::Checkpoint;
use crate::device::SliceError;
use crate::device::host::HostDevice;
use crate::device::ttnn::Chip;
use crate::device::ttnn::program::Numerics;
use crate::model::ModelInput;
use crate::policy::{Cuts, Policy, PolicyError};
use crate::reference::{ReferenceError, ReferenceInputs};
use crate::tensor_file::TensorFile;
use inside::Inside;

/// A reference could not be held against a policy.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The reference's tensors do not fit the policy.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// The policy cannot be loaded.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The policy cannot take the reference's inputs.
    #[error(transparent)]
    Slice(#[from] SliceError),
    /// There is nothing to compare.
    #[error(
        "{0} holds no tensor that the policy computes: expected names such as `vision.0.projected`, `prefix.kv.0.k` or `out.actions`"
    )]
    NothingKnown(std::path::PathBuf),
}

/// Computes what `reference` holds, from its own inputs, on the host.
///
/// # Errors
/// When the reference belongs to another policy.
pub fn verify(
    device: &Arc<HostDevice>,
    checkpoint: &Checkpoint,
    reference: &TensorFile,
    inputs: &ReferenceInputs,
) -> Result<Report, VerifyError> {
    let policy = Policy::load(device, checkpoint, &cuts(checkpoint.sizes()))?;
    let inside = Inside::load(device, checkpoint, inputs)?;
    Run::new(&policy, Some(&inside), reference, inputs).all()
}

/// The same on a chip that has the weights of a checkpoint of these sizes, interpreted or real.
///
/// # Errors
/// When the reference belongs to another policy, or the chip fails.
pub fn verify_on_chip(
    chip: &Arc<dyn Chip>,
    sizes: &ModelSizes,
    numerics: Numerics,
    reference: &TensorFile,
    inputs: &ReferenceInputs,
) -> Result<Report, VerifyError> {
    let policy = Policy::on_chip(chip, sizes, numerics, &cuts(sizes))?;
    Run::new(&policy, None, reference, inputs).all()
}

/// Behind every layer.
fn cuts(sizes: &ModelSizes) -> Cuts {
    Cuts::every(sizes, NonZeroUsize::MIN)
}

struct Run<'a> {
    sizes: ModelSizes,
    reference: &'a TensorFile,
    inputs: &'a ReferenceInputs,
    /// Slices of one layer each.
    policy: &'a Policy,
    /// On the host.
    inside: Option<&'a Inside>,
    comparisons: Vec<Comparison>,
    models: Vec<&'a ModelInput>,
}

impl<'a> Run<'a> {
    fn new(
        policy: &'a Policy,
        inside: Option<&'a Inside>,
        reference: &'a TensorFile,
        inputs: &'a ReferenceInputs,
    ) -> Self {
        let models = inputs.samples.iter().map(|sample| &sample.input).collect();
        let sizes = *policy.sizes();
        Self { sizes, reference, inputs, policy, inside, comparisons: Vec::new(), models }
    }

    fn all(mut self) -> Result<Report, VerifyError> {
        let images = self.vision()?;
        let mut caches = self.prefix(&images)?;
        self.conditions()?;
        self.first_step(&mut caches)?;
        self.integration(&caches)?;
        if self.comparisons.is_empty() {
            return Err(VerifyError::NothingKnown(self.reference.path().into()));
        }
        Ok(self.report())
    }

    /// Compares rows of a tensor, where the reference has it. Each row comes with its place in the reference.
    fn compare<'r>(
        &mut self,
        stage: StageKind,
        name: String,
        rows: impl Iterator<Item = (usize, &'r [f32])>,
    ) -> Result<(), ReferenceError> {
        let Some(tensor) = self.reference.tensors().get(&name) else { return Ok(()) };
        let mut rows = rows.peekable();
        if rows.peek().is_none() {
            return Ok(());
        }
        let wrong = |expected: String| ReferenceError::Tensor {
            path: self.reference.path().into(),
            name: name.clone(),
            found: format!("{:?} {:?}", tensor.dtype(), tensor.shape()),
            expected,
        };
        let expected = match tensor.to_integers() {
            Some(integers) => integers.into_iter().map(|value| value as f32).collect(),
            None if tensor.is_float() => tensor.to_f32(),
            None => return Err(wrong("floats or integers".into())),
        };
        let (mut found, mut wanted, mut places) = (Vec::new(), Vec::new(), Vec::new());
        // Positions and times are one value a row and have no dimension for it.
        let width = tensor.shape().last().copied().unwrap_or(1);
        for (place, row) in rows {
            if row.len() != 1 && row.len() != width {
                return Err(wrong(format!("rows of {}", row.len())));
            }
            let end = (place + 1) * row.len();
            let row_expected = expected
                .get(end - row.len()..end)
                .ok_or_else(|| wrong(format!("rows of {}, {} or more of them", row.len(), place + 1)))?;
            found.extend_from_slice(row);
            wanted.extend_from_slice(row_expected);
            places.push(place);
        }
        self.comparisons.push(Comparison {
            name,
            stage,
            rows: places,
            values: found.len(),
            closeness: Closeness::of(&found, &wanted),
        });
        Ok(())
    }

    /// What was compared, and why the rest was not.
    fn report(self) -> Report {
        let compared: Vec<&str> = self.comparisons.iter().map(|c| c.name.as_str()).collect();
        let last = format!("prefix.layer{}.hidden_out", self.sizes.vlm.layers - 1);
        let rest = self.reference.tensors().keys().filter(|name| !compared.contains(&name.as_str()));
        let hidden = |name: &str| match self.inside {
            None => inside::why_only_the_host_shows(name, &self.sizes),
            Some(_) => None,
        };
        let reason = |name: &str| match name {
            "prefix.final_norm" => "nothing reads it, so it is not computed",
            name if name == last => "nothing reads it, so it is not computed",
            name if name.contains("mask") => "masks are not built: what is masked is left out",
            name => hidden(name).unwrap_or("unknown, or without a valid row"),
        };
        let not_compared =
            rest.filter(|name| !name.starts_with("in.")).map(|name| (name.clone(), reason(name))).collect();
        Report { comparisons: self.comparisons, not_compared }
    }
}

/// All rows of some tensors, one tensor after the other.
fn rows_of(tensors: &[Tensor]) -> impl Iterator<Item = &[f32]> {
    tensors.iter().flat_map(|tensor| (0..tensor.rows()).map(|row| tensor.row(row)))
}
