//! A board as text: chips where they sit, links with their lanes, and what runs where.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::{Board, ChipId, Placement, StageKind};

/// Draws a board, and on it a placement. The text ends with a newline and needs a monospaced font.
pub fn draw(board: &Board, placement: Option<&Placement>) -> String {
    let labels = labels(board, placement);
    match board.shape {
        Some((rows, cols)) => mesh(board, rows, cols, &labels),
        None => list(board, &labels),
    }
}

/// Lines that describe each chip: its number and PCIe, then what it runs.
fn labels(board: &Board, placement: Option<&Placement>) -> BTreeMap<ChipId, Vec<String>> {
    let mut labels: BTreeMap<ChipId, Vec<String>> = board
        .chips()
        .iter()
        .map(|chip| {
            let pcie = chip.pcie.filter(|pcie| pcie.lanes > 0).map(|pcie| format!(" pcie x{}", pcie.lanes));
            (chip.id, vec![format!("chip {}{}", chip.id, pcie.unwrap_or_default())])
        })
        .collect();
    for (number, pipeline) in placement.iter().flat_map(|placement| placement.pipelines.iter().enumerate()) {
        let alone = pipeline.chips().len() == 1
            && StageKind::ALL.iter().all(|stage| pipeline.of(*stage).count() == 1);
        if alone {
            if let Some(lines) = labels.get_mut(&pipeline.chips()[0]) {
                lines.push(format!("p{number} whole policy"));
            }
            continue;
        }
        for slice in &pipeline.slices {
            for chip in &slice.chips {
                if let Some(lines) = labels.get_mut(chip) {
                    lines.push(format!("p{number} {} {}", slice.stage, slice.layers));
                }
            }
        }
    }
    labels
}

fn mesh(board: &Board, rows: u32, cols: u32, labels: &BTreeMap<ChipId, Vec<String>>) -> String {
    let at: BTreeMap<(u32, u32), ChipId> =
        board.chips().iter().filter_map(|chip| Some(((chip.at?.row, chip.at?.col), chip.id))).collect();
    let lines = || labels.values().flatten();
    let width = lines().map(|line| line.chars().count()).max().unwrap_or(0) + 2;
    let mut out = String::new();
    for row in 0..rows {
        let ids: Vec<Option<ChipId>> = (0..cols).map(|col| at.get(&(row, col)).copied()).collect();
        let below: Vec<Option<ChipId>> = (0..cols).map(|col| at.get(&(row + 1, col)).copied()).collect();
        let height = ids.iter().flatten().filter_map(|id| labels.get(id)).map(Vec::len).max().unwrap_or(1);
        border(&mut out, &ids, width, '┌', '┐', |_| None);
        for line in 0..height {
            text_row(&mut out, board, &ids, labels, width, line);
        }
        border(&mut out, &ids, width, '└', '┘', |col| lanes(board, ids[col], below[col]).map(|_| '┬'));
        vertical_links(&mut out, board, &ids, &below, width);
    }
    let wraps = board.links().iter().filter(|link| link.wraps).count();
    if wraps > 0 {
        let _ = writeln!(out, "and {wraps} links that close rows or columns into rings");
    }
    out
}

fn lanes(board: &Board, a: Option<ChipId>, b: Option<ChipId>) -> Option<u32> {
    Some(board.link(a?, b?)?.lanes)
}

fn border(
    out: &mut String,
    ids: &[Option<ChipId>],
    width: usize,
    left: char,
    right: char,
    middle: impl Fn(usize) -> Option<char>,
) {
    for (col, id) in ids.iter().enumerate() {
        let gap = if col + 1 < ids.len() { "     " } else { "" };
        match id {
            Some(_) => {
                let centre = middle(col).unwrap_or('─');
                let half = width / 2;
                let _ = write!(
                    out,
                    "{left}{}{centre}{}{right}{gap}",
                    "─".repeat(half),
                    "─".repeat(width - half - 1)
                );
            }
            None => {
                let _ = write!(out, "{}{gap}", " ".repeat(width + 2));
            }
        }
    }
    end_line(out);
}

fn text_row(
    out: &mut String,
    board: &Board,
    ids: &[Option<ChipId>],
    labels: &BTreeMap<ChipId, Vec<String>>,
    width: usize,
    line: usize,
) {
    for (col, id) in ids.iter().enumerate() {
        let text = id.and_then(|id| labels.get(&id)?.get(line)).map_or("", String::as_str);
        let edge = if id.is_some() { '│' } else { ' ' };
        let beside = ids.get(col + 1).copied().flatten();
        let link = (line == 0).then(|| lanes(board, *id, beside)).flatten();
        let (right, gap) = match link {
            Some(lanes) => ('├', format!("─{lanes:─^3}─")),
            None => (edge, "     ".to_owned()),
        };
        let _ = write!(out, "{edge} {text:<pad$}{right}", pad = width - 1);
        if col + 1 < ids.len() {
            out.push_str(&gap);
        }
    }
    end_line(out);
}

fn vertical_links(
    out: &mut String,
    board: &Board,
    ids: &[Option<ChipId>],
    below: &[Option<ChipId>],
    width: usize,
) {
    if ids.iter().zip(below).all(|(a, b)| lanes(board, *a, *b).is_none()) {
        return;
    }
    for (a, b) in ids.iter().zip(below) {
        let lanes = lanes(board, *a, *b).map(|lanes| lanes.to_string()).unwrap_or_default();
        let _ = write!(out, "{}{lanes:<rest$}", " ".repeat(1 + width / 2), rest = width + 6 - width / 2);
    }
    end_line(out);
}

fn end_line(out: &mut String) {
    out.truncate(out.trim_end_matches(' ').len());
    out.push('\n');
}

fn list(board: &Board, labels: &BTreeMap<ChipId, Vec<String>>) -> String {
    let mut out = String::new();
    for (id, lines) in labels {
        let links: Vec<String> = board
            .neighbours(*id)
            .filter_map(|other| Some(format!("{other} ({} lanes)", board.link(*id, other)?.lanes)))
            .collect();
        let links =
            if links.is_empty() { String::new() } else { format!("; linked to {}", links.join(", ")) };
        let _ = writeln!(out, "{}{links}", lines.join("; "));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{LayerRange, Pipeline, Preset, Slice};

    #[test]
    fn a_mesh_shows_chips_lanes_and_slices() {
        let slice = |stage, layers, chip| Slice::on(stage, LayerRange::new(0, layers).unwrap(), ChipId(chip));
        let pipeline = Pipeline::new(vec![
            slice(StageKind::Vision, 27, 0),
            slice(StageKind::Prefix, 18, 1),
            slice(StageKind::Expert, 18, 1),
        ]);
        let board = Preset::QuietBox2.board();
        let expected = "\
┌─────────────────┐     ┌─────────────────┐
│ chip 0 pcie x8  ├──2──│ chip 1 pcie x8  │
│ p0 vision 0..27 │     │ p0 prefix 0..18 │
│                 │     │ p0 expert 0..18 │
└────────┬────────┘     └────────┬────────┘
         2                       2
┌─────────────────┐     ┌─────────────────┐
│ chip 2 pcie x8  ├──2──│ chip 3 pcie x8  │
└─────────────────┘     └─────────────────┘
";
        let drawn = draw(&board, Some(&Placement { pipelines: vec![pipeline] }));
        assert_eq!(drawn, expected, "\n{drawn}");
    }

    #[test]
    fn every_preset_can_be_drawn() {
        for preset in Preset::ALL {
            let board = preset.board();
            let drawn = draw(&board, None);
            for chip in board.chips() {
                assert!(drawn.contains(&format!("chip {}", chip.id)), "{preset}");
            }
        }
    }
}
