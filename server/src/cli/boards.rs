//! `tensact boards`: the boards that are known by name.

use clap::Args;
use tensact::topology::BoardSummary;

use super::print_json;
use super::table::{scaled, table};

/// List the boards that are known by name, with the facts that plans rest on.
#[derive(Args)]
#[command(after_help = "Examples:\n  tensact boards\n  tensact boards --json")]
pub(super) struct Boards {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Boards {
    pub(super) fn run(self) -> miette::Result<()> {
        let boards = BoardSummary::presets();
        if self.json {
            return print_json(&boards);
        }
        let mut rows =
            table(&["board", "chips", "mesh", "cores", "L1", "DRAM", "GB/s", "bfp8_b TFLOP/s", "PCIe"]);
        for board in &boards {
            let mesh = board.mesh.map_or_else(|| "-".into(), |(rows, columns)| format!("{rows}×{columns}"));
            rows.add_row([
                board.name.clone(),
                board.chips.to_string(),
                mesh,
                board.cores_per_chip.to_string(),
                bytes(board.l1_bytes_per_chip),
                bytes(board.dram_bytes_per_chip),
                format!("{:.0}", board.dram_gb_per_s_per_chip),
                format!("{:.0}", board.bfp8_b_tflops_per_chip),
                pcie(&board.pcie_lanes),
            ]);
        }
        say!(
            "{rows}\nAll but chips and mesh per chip; sources stand beside the numbers in topology/src/chip.rs."
        );
        Ok(())
    }
}

fn bytes(count: u64) -> String {
    scaled(usize::try_from(count).unwrap_or(usize::MAX), "B")
}

/// How many chips have how many lanes, widest first.
fn pcie(lanes: &[u32]) -> String {
    let mut lanes = lanes.to_vec();
    lanes.sort_unstable_by(|a, b| b.cmp(a));
    lanes.retain(|&lanes| lanes > 0);
    let groups = lanes.chunk_by(|a, b| a == b).map(|group| format!("{} × {}", group.len(), group[0]));
    groups.collect::<Vec<_>>().join(", ")
}
