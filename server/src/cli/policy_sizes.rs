//! Which policy a plan or a check is for.

use std::path::Path;

use clap::Args;
use miette::miette;
use tensact::runtime::checkpoint::Checkpoint;
use tensact::topology::{Deployment, ModelSizes, Variant};

use super::open_checkpoint;
use super::synth::VariantName;
use super::told;

/// A checkpoint's own sizes, or those of a published policy.
#[derive(Args)]
#[group(required = true, multiple = false)]
pub(super) struct PolicyOptions {
    /// Folder, safetensors file, or Hugging Face id (`owner/name`).
    #[arg(long, value_name = "CHECKPOINT")]
    checkpoint: Option<String>,
    /// The published policy of this variant.
    #[arg(long, value_enum)]
    variant: Option<VariantName>,
}

impl PolicyOptions {
    /// The sizes, and how a deployment file names the checkpoint.
    pub(super) fn sizes(&self) -> miette::Result<(ModelSizes, String)> {
        if let Some(checkpoint) = &self.checkpoint {
            return Ok((*open_checkpoint(checkpoint)?.sizes(), checkpoint.clone()));
        }
        let variant = self.variant.map_or(Variant::Pi0, Variant::from);
        Ok((ModelSizes::base(variant), format!("{variant}_base")))
    }
}

/// Sizes of the checkpoint that a deployment file at `path` names: a folder or file, relative to the deployment file
/// or to here, or the name of a published policy. Nothing is downloaded.
pub(super) fn deployed_sizes(deployment: &Deployment, path: &Path) -> miette::Result<ModelSizes> {
    let name = &deployment.checkpoint;
    if let Some(found) = tensact::locate(deployment) {
        return Ok(*Checkpoint::open(&found).map_err(told)?.sizes());
    }
    match name.rsplit('/').next().unwrap_or(name) {
        "pi0_base" => Ok(ModelSizes::base(Variant::Pi0)),
        "pi05_base" => Ok(ModelSizes::base(Variant::Pi05)),
        _ => Err(miette!(
            help =
                "give a folder or file that is there, or the name of a published policy: pi0_base, pi05_base",
            "{}: the checkpoint `{name}` is not here, so its sizes are not known",
            path.display()
        )),
    }
}
