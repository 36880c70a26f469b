//! One file per subcommand, and what they share: how a checkpoint is named, how tables and progress are shown.

mod inspect;
mod progress;
mod synth;
mod table;
mod verify;

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, Parser, Subcommand};
use miette::IntoDiagnostic;
use tensact_runtime::checkpoint::Checkpoint;
use tensact_runtime::device::host::{ComputeDtype, HostDevice};

/// Serves the vision-language-action policies π0 and π0.5.
#[derive(Parser)]
#[command(name = "tensact", version, propagate_version = true, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Inspect(inspect::Inspect),
    Verify(verify::Verify),
    Synth(synth::Synth),
}

impl Cli {
    pub(crate) fn run(self) -> miette::Result<()> {
        match self.command {
            Command::Inspect(command) => command.run(),
            Command::Verify(command) => command.run(),
            Command::Synth(command) => command.run(),
        }
    }
}

/// How the host computes.
#[derive(Args)]
struct HostOptions {
    /// Type in which products take their factors: bf16 or f32. Sums are f32 in either.
    #[arg(long, value_name = "TYPE", default_value_t = ComputeDtype::Bf16)]
    dtype: ComputeDtype,
    /// Worker threads; all cores unless given.
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
}

impl HostOptions {
    fn device(&self) -> miette::Result<Arc<HostDevice>> {
        HostDevice::new(self.threads, self.dtype).into_diagnostic()
    }
}

fn open_checkpoint(reference: &str) -> miette::Result<Checkpoint> {
    Checkpoint::open(Path::new(reference)).into_diagnostic()
}

/// Prints a value as JSON, for programs.
fn print_json(value: &impl serde::Serialize) -> miette::Result<()> {
    println!("{}", serde_json::to_string_pretty(value).into_diagnostic()?);
    Ok(())
}

/// An error about a file that is written.
fn write_error(path: &Path) -> impl Fn(std::io::Error) -> miette::Report {
    let path = PathBuf::from(path);
    move |error| miette::miette!("cannot write {}: {error}", path.display())
}
