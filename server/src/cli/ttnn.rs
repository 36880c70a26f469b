//! `tensact ttnn export`: what a deployment asks of TT-NN.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use miette::miette;
use tensact::runtime::device::ttnn::export::export;
use tensact::topology::Deployment;
use tensact::topology::check::{Severity, check_deployment};

use super::policy_sizes::deployed_sizes;
use super::{print_json, told, warn};

/// Look at what a deployment does on Tenstorrent chips.
#[derive(Args)]
pub(super) struct Ttnn {
    #[command(subcommand)]
    command: TtnnCommand,
}

#[derive(Subcommand)]
enum TtnnCommand {
    Export(Export),
}

/// Write the TT-NN calls of a deployment as JSON: of each slice, with shapes, dtypes and places of all tensors, and the
/// sockets between chips. No chip and no TT-NN is needed; `tests/ttnn-mock/` replays such files on mock chips.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  tensact ttnn export configs/p150a.toml > p150a.json\n  tensact ttnn export fleet.toml --out fleet.json"
)]
struct Export {
    /// The deployment file. Of its pipelines the first is written: the others differ in their chips only.
    #[arg(value_name = "DEPLOYMENT")]
    deployment: PathBuf,
    /// Where to write; standard output unless given.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

impl Ttnn {
    pub(super) fn run(self) -> miette::Result<()> {
        let TtnnCommand::Export(command) = self.command;
        command.run()
    }
}

impl Export {
    fn run(self) -> miette::Result<()> {
        let deployment = Deployment::read(&self.deployment)?;
        let board = deployment.load_board()?;
        let sizes = deployed_sizes(&deployment, &self.deployment)?;
        for finding in check_deployment(&deployment, &board, &sizes) {
            match finding.severity {
                Severity::Error => return Err(miette!(help = finding.help, "{}", finding.message)),
                Severity::Warning => warn(&finding.message),
            }
        }
        let placement = deployment.placement(&sizes, board.arch()).placement;
        let pipeline =
            placement.pipelines.first().ok_or_else(|| miette!("the deployment has no pipeline"))?;
        let programs = export(&board, pipeline, &sizes, &deployment.request(&sizes)).map_err(told)?;
        let Some(path) = self.out else { return print_json(&programs) };
        let text = serde_json::to_string_pretty(&programs).map_err(told)?;
        std::fs::write(&path, text).map_err(|error| miette!("cannot write {}: {error}", path.display()))
    }
}
