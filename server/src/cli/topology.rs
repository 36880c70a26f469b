//! `tensact topology show`: a board, drawn.

use std::path::Path;

use clap::{Args, Subcommand};
use miette::miette;
use serde::Serialize;
use tensact::topology::descriptor::{Descriptor, Recognition};
use tensact::topology::{Board, Deployment, ModelSizes, Placement, Preset, draw};

use super::policy_sizes::deployed_sizes;
use super::print_json;

/// Look at boards.
#[derive(Args)]
pub(super) struct Topology {
    #[command(subcommand)]
    command: TopologyCommand,
}

#[derive(Subcommand)]
enum TopologyCommand {
    Show(Show),
}

/// Draw a board: its chips and links, and what runs where when a deployment file is given.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  tensact topology show galaxy-bh\n  tensact topology show cluster_descriptor.yaml\n  tensact topology show configs/t3000.toml"
)]
struct Show {
    /// A board's name, a cluster descriptor (.yaml), a mesh graph descriptor (.textproto), or a deployment (.toml).
    #[arg(value_name = "BOARD|FILE")]
    board: String,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Shown {
    board: Board,
    recognised: Option<Recognition>,
    placement: Option<Placement>,
}

impl Topology {
    pub(super) fn run(self) -> miette::Result<()> {
        let TopologyCommand::Show(show) = self.command;
        let shown = read(&show.board)?;
        if show.json {
            return print_json(&shown);
        }
        say!("{}", draw(&shown.board, shown.placement.as_ref()).trim_end());
        if let Some(Recognition { preset, differences }) = &shown.recognised {
            match preset {
                Some(preset) if differences.is_empty() => say!("This is the board `{preset}`."),
                Some(preset) => say!("Nearest to the board `{preset}`, but:"),
                None => say!("No known board is like this:"),
            }
            differences.iter().for_each(|difference| say!("  {difference}"));
        }
        Ok(())
    }
}

fn read(name: &str) -> miette::Result<Shown> {
    let path = Path::new(name);
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("toml") => {
            let deployment = Deployment::read(path)?;
            let board = deployment.load_board()?;
            let sizes: ModelSizes = deployed_sizes(&deployment, path)?;
            let placement = deployment.placement(&sizes, board.arch()).placement;
            Ok(Shown { board, recognised: None, placement: Some(placement) })
        }
        Some(_) => {
            let descriptor = Descriptor::read(path)?;
            let recognised = Some(descriptor.recognise());
            Ok(Shown { board: descriptor.board(), recognised, placement: None })
        }
        None => Ok(Shown { board: preset(name)?, recognised: None, placement: None }),
    }
}

/// A board by name.
pub(super) fn preset(name: &str) -> miette::Result<Board> {
    let preset: Preset = name.parse().map_err(|error| {
        miette!(help = "`tensact boards` lists those that are known; a descriptor file works, too", "{error}")
    })?;
    Ok(preset.board())
}

/// A board by name, or out of a descriptor file.
pub(super) fn board(name: &str) -> miette::Result<Board> {
    let path = Path::new(name);
    if path.extension().is_some() { Ok(Descriptor::read(path)?.board()) } else { preset(name) }
}
