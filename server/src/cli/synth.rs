//! `tensact synth`: a checkpoint for everybody who has no trained one at hand.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use tensact::runtime::checkpoint::synth::{self, SynthDtype, SynthSize};
use tensact::topology::{ModelSizes, Variant};

use super::progress;
use super::told;

/// Write a deterministic checkpoint with the real names, shapes and types, and random weights.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  tensact synth --variant pi0 --size base ./pi0-synthetic   # 777 tensors, 7 GB\n  tensact synth --variant pi05 --size tiny --seed 7 ./tiny"
)]
pub(super) struct Synth {
    /// Which policy.
    #[arg(long, value_enum, default_value = "pi0")]
    variant: VariantName,
    /// How large: tiny (0.8 M parameters), small (41 M), base (3.5 G, the published size).
    #[arg(long, value_enum, default_value = "small")]
    size: SizeName,
    /// The same seed gives the same bytes.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Element type of the file; the values are the same.
    #[arg(long, value_enum, default_value = "bf16")]
    dtype: DtypeName,
    /// Folder to write to; made if need be.
    dir: PathBuf,
}

#[derive(Clone, Copy, ValueEnum)]
pub(super) enum VariantName {
    Pi0,
    Pi05,
}

#[derive(Clone, Copy, ValueEnum)]
enum SizeName {
    Tiny,
    Small,
    Base,
}

#[derive(Clone, Copy, ValueEnum)]
enum DtypeName {
    Bf16,
    F32,
}

impl From<VariantName> for Variant {
    fn from(name: VariantName) -> Self {
        match name {
            VariantName::Pi0 => Variant::Pi0,
            VariantName::Pi05 => Variant::Pi05,
        }
    }
}

impl Synth {
    pub(super) fn run(self) -> miette::Result<()> {
        let size = match self.size {
            SizeName::Tiny => SynthSize::Tiny,
            SizeName::Small => SynthSize::Small,
            SizeName::Base => SynthSize::Base,
        };
        let dtype = match self.dtype {
            DtypeName::Bf16 => SynthDtype::Bf16,
            DtypeName::F32 => SynthDtype::F32,
        };
        write(&self.dir, &size.sizes(self.variant.into()), self.seed, dtype)?;
        say!("wrote {}", self.dir.display());
        Ok(())
    }
}

/// Writes a synthetic checkpoint, with a progress bar.
pub(super) fn write(
    dir: &std::path::Path,
    sizes: &ModelSizes,
    seed: u64,
    dtype: SynthDtype,
) -> miette::Result<()> {
    let bar = progress::bytes(0, "weights");
    let report = |made, total| {
        bar.set_length(total);
        bar.set_position(made);
    };
    synth::write(dir, sizes, seed, dtype, &report).map_err(told)?;
    bar.finish_and_clear();
    Ok(())
}
