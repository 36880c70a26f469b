//! A plan as a deployment file.

use std::fmt::Write as _;

use super::{Goal, Plan};
use crate::deployment::Batching;
use crate::placement::{DeviceKind, Pipeline, QUEUE_MIN, Residence, Slice, Split, Transport};
use crate::{ChipId, Preset, StageKind, WeightDtype};

/// As many requests as keep so many chips busy.
pub(super) fn in_flight(chips: usize, max_requests: usize) -> usize {
    (chips + 1).max(2) * max_requests
}

/// As many requests in flight as keep every slice busy, and no ring full.
pub(super) fn batching(pipeline: &Pipeline, max_requests: usize) -> Batching {
    let ring: usize = match pipeline.of(StageKind::Expert).count() {
        0 | 1 => usize::MAX,
        slices => slices * QUEUE_MIN,
    };
    let wanted = in_flight(pipeline.chips().len(), max_requests);
    Batching { max_requests, max_in_flight: wanted.min(ring - 1).max(max_requests.min(ring - 1)) }
}

impl Plan {
    /// The chosen point as the text of a deployment file for a checkpoint.
    pub fn deployment_toml(&self, checkpoint: &str) -> String {
        let point = &self.chosen;
        let pipelines = &point.placement.pipelines;
        let mut out = String::new();
        // Writing to a string cannot fail.
        let _ = writeln!(
            out,
            "# Planned for {}: {} × {} chips.",
            goal(&self.goal),
            point.pipelines,
            point.chips_per_pipeline
        );
        let _ =
            writeln!(out, "# Estimate: {:.1} ms, {:.1} requests/s.", point.latency_ms, point.requests_per_s);
        let _ = writeln!(out, "# {}.", capital(&point.reason));
        let _ = writeln!(out, "{} = {}", board_key(&self.board), quoted(&self.board));
        let _ = writeln!(out, "checkpoint = {}", quoted(checkpoint));
        let _ = writeln!(
            out,
            "\n[request]\ncameras = {}\nprompt_tokens = {}\nsteps = {}",
            self.request.cameras, self.request.prompt_tokens, self.request.steps
        );
        if let Some(first) = pipelines.first() {
            let batching = batching(first, point.batch);
            let _ = writeln!(
                out,
                "\n[batching]\nmax_requests = {}\nmax_in_flight = {}",
                batching.max_requests, batching.max_in_flight
            );
        }
        if let Goal::Slo { slo_ms, .. } = self.goal {
            let _ = writeln!(out, "\n[deadlines]\ndefault_ms = {slo_ms:?}");
        }
        self.pipelines(&mut out);
        out
    }

    fn pipelines(&self, out: &mut String) {
        let pipelines = &self.chosen.placement.pipelines;
        let Some(first) = pipelines.first() else { return };
        let order = in_order(first);
        let copies: Vec<Vec<ChipId>> = pipelines.iter().map(in_order).collect();
        let _ = writeln!(out, "\n[[pipeline]]");
        let single = pipelines.len() == 1;
        let whole_policy = first.chips().len() == 1;
        match (single, whole_policy) {
            (true, true) => drop(writeln!(out, "chips = [{}]", first.chips()[0])),
            (false, _) => drop(writeln!(out, "copies = {}", copies_text(&copies))),
            (true, false) => {}
        }
        let common = &first.slices[0];
        let _ =
            writeln!(out, "device = \"{}\"\nweights = \"{}\"", device(common.device), common.weights.name());
        if whole_policy {
            return;
        }
        for slice in &first.slices {
            let position = |chip: &ChipId| match single {
                true => chip.0,
                false => order.iter().position(|other| other == chip).unwrap_or(0) as u32,
            };
            let chips: Vec<String> = slice.chips.iter().map(|chip| position(chip).to_string()).collect();
            let _ = writeln!(
                out,
                "\n[[pipeline.stage]]\nkind = \"{}\"\nlayers = \"{}\"\nchips = [{}]",
                slice.stage,
                slice.layers,
                chips.join(", ")
            );
            stage_settings(out, slice, common.weights);
        }
    }
}

fn stage_settings(out: &mut String, slice: &Slice, weights: WeightDtype) {
    match slice.split {
        Split::Whole => {}
        Split::Cameras => drop(writeln!(out, "split = \"cameras\"")),
        Split::Tensor => drop(writeln!(out, "split = \"tensor\"")),
    }
    if slice.residence == Residence::L1 {
        let _ = writeln!(out, "resident = \"l1\"");
    }
    if slice.transport == Transport::Host {
        let _ = writeln!(out, "transport = \"host\"");
    }
    if slice.weights != weights {
        let _ = writeln!(out, "weights = \"{}\"", slice.weights.name());
    }
}

/// Chips in the order the slices meet them.
fn in_order(pipeline: &Pipeline) -> Vec<ChipId> {
    let mut order: Vec<ChipId> = Vec::new();
    for chip in pipeline.slices.iter().flat_map(|slice| &slice.chips) {
        if !order.contains(chip) {
            order.push(*chip);
        }
    }
    order
}

/// `"0..32"` when every copy is one chip and they follow each other, else the lists.
fn copies_text(copies: &[Vec<ChipId>]) -> String {
    let mut singles: Vec<u32> = copies.iter().filter(|copy| copy.len() == 1).map(|copy| copy[0].0).collect();
    singles.sort_unstable();
    let first = singles.first().copied().unwrap_or(0);
    if singles.len() == copies.len() && singles.iter().copied().eq(first..first + singles.len() as u32) {
        return format!("\"{first}..{}\"", first + singles.len() as u32);
    }
    let lists: Vec<String> = copies
        .iter()
        .map(|copy| format!("[{}]", copy.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")))
        .collect();
    format!("[\n    {},\n]", lists.join(",\n    "))
}

fn goal(goal: &Goal) -> String {
    match goal {
        Goal::Latency => "latency".to_owned(),
        Goal::Throughput => "throughput".to_owned(),
        Goal::Slo { slo_ms, robots, replan_ms } => {
            format!("{robots} robots within {slo_ms} ms, each asking every {replan_ms} ms")
        }
    }
}

fn device(device: DeviceKind) -> &'static str {
    match device {
        DeviceKind::Host => "host",
        DeviceKind::Ttnn => "ttnn",
        DeviceKind::Emulated => "emulated",
    }
}

/// The key that names a board: a preset, or the descriptor it was read from.
fn board_key(name: &str) -> &'static str {
    match name.parse::<Preset>() {
        Ok(_) => "board",
        Err(_) if name.ends_with(".textproto") => "mesh_graph",
        Err(_) => "cluster",
    }
}

fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}
